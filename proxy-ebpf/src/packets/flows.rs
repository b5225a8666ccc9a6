//! The flows that are known: found, begun, and moved to the large tables once their client has sent a second packet.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use proxy_abi::Count;
use proxy_abi::connection::{Connection, Key, State, Translation};
use proxy_abi::packet::{Ends, protocol};

use crate::decisions::count;
use crate::sender::seconds;
use crate::tracked::{CONNECTIONS, OPENING_TRANSLATIONS, OPENINGS, Scratch, TRANSLATIONS};

/// How many ports are tried that could stand for a client's.
const TRIES: u32 = 16;

/// The pair of tables in which a flow is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tables {
    Large,
    /// Of connections that are opening.
    Opening,
}

/// The flow of a client's packet.
#[inline(always)]
pub(crate) fn connection(ends: &Ends) -> Option<(*mut Connection, Tables)> {
    if let Some(found) = CONNECTIONS.get_ptr_mut(ends) {
        return Some((found, Tables::Large));
    }
    if ends.protocol != protocol::TCP {
        return None;
    }
    Some((OPENINGS.get_ptr_mut(ends)?, Tables::Opening))
}

/// What leads back from a packet.
#[inline(always)]
pub(crate) fn translation(key: &Key) -> Option<*mut Translation> {
    if let Some(found) = TRANSLATIONS.get_ptr_mut(&key.ends) {
        return Some(found);
    }
    if key.ends.protocol != protocol::TCP {
        return None;
    }
    OPENING_TRANSLATIONS.get_ptr_mut(&key.ends)
}

#[inline(always)]
pub(crate) fn put_translation(tables: Tables, key: &Key, value: &Translation, only_new: bool) -> bool {
    let flags = u64::from(if only_new { BPF_NOEXIST } else { BPF_ANY });
    let done = match tables {
        Tables::Large => TRANSLATIONS.insert(&key.ends, value, flags),
        Tables::Opening => OPENING_TRANSLATIONS.insert(&key.ends, value, flags),
    };
    done.is_ok()
}

#[inline(always)]
fn put_connection(tables: Tables, ends: &Ends, value: &Connection) -> bool {
    let done = match tables {
        Tables::Large => CONNECTIONS.insert(ends, value, BPF_ANY.into()),
        Tables::Opening => OPENINGS.insert(ends, value, BPF_ANY.into()),
    };
    done.is_ok()
}

/// What leads back from the endpoint's packets to the client's.
#[inline(always)]
fn leading_back(client: &Ends, connection: &Connection, key: &Key) -> Translation {
    let mut flags = if key.reversed { 0 } else { Translation::CLIENT_FIRST };
    if connection.flags & Connection::SOURCE_NAT != 0 {
        flags |= Translation::SOURCE_NAT;
    }
    let (address, port, client_port) = (client.to, client.to_port, client.from_port);
    Translation { address, port, client_port, seen: connection.seen, flags, padding: 0 }
}

/// Remembers the new flow of the scratch. It may change the port that stands for the client's.
#[inline(always)]
pub(crate) fn begin(scratch: &mut Scratch) -> Result<(), Count> {
    let Scratch { packet, connection, key, translation: value, .. } = scratch;
    let tables = if packet.opens() { Tables::Opening } else { Tables::Large };
    for attempt in 0..TRIES {
        if attempt > 0 {
            connection.client_port = candidate(&packet.ends, attempt);
        }
        *key = Key::of(&connection.inner(&packet.ends));
        *value = leading_back(&packet.ends, connection, key);
        let free = match translation(key) {
            // SAFETY: an element that was found stays readable; one that is recycled this instant is another flow's.
            Some(found) => unsafe { (*found).leads_as(value) },
            None => put_translation(tables, key, value, true),
        };
        if free {
            if attempt > 0 {
                count(Count::PortChanged);
            }
            let put = put_connection(tables, &packet.ends, connection);
            return if put { Ok(()) } else { Err(Count::TableFull) };
        }
    }
    Err(Count::NoClientPort)
}

/// A port for a flow that would else look like another one of its client, above those of most clients.
#[inline(always)]
fn candidate(ends: &Ends, attempt: u32) -> u16 {
    const FIRST: u32 = 61_000;
    const COUNT: u32 = 65_535 - FIRST;
    ((FIRST + ends.digest(attempt) % COUNT) as u16).to_be()
}

/// Notes a packet of the client's, and leaves its connection in the scratch. One whose client goes on leaves the small
/// tables.
#[inline(always)]
pub(crate) fn note(scratch: &mut Scratch, place: *mut Connection, tables: Tables) {
    // SAFETY: as above. Writes of other processors at the same time say the same, but for a packet more or less.
    scratch.connection = unsafe { place.read() };
    let Scratch { packet, connection, .. } = scratch;
    let (state, seen) = (State::of(connection.state).after(true, packet) as u8, seconds());
    if state != connection.state || seen != connection.seen {
        (connection.state, connection.seen) = (state, seen);
        // SAFETY: as above.
        unsafe {
            (*place).state = state;
            (*place).seen = seen;
        }
    }
    if tables == Tables::Opening && !scratch.packet.opens() {
        settle(scratch);
    }
}

/// Moves the flow of the scratch to the large tables.
#[inline(always)]
fn settle(scratch: &mut Scratch) {
    let Scratch { packet, connection, key, translation: value, .. } = scratch;
    *key = Key::of(&connection.inner(&packet.ends));
    *value = leading_back(&packet.ends, connection, key);
    put_translation(Tables::Large, key, value, false);
    if connection.source_port != 0 {
        *key = Key::of(&connection.of_node(packet.ends.protocol));
        *value = for_client(&packet.ends, connection, key);
        put_translation(Tables::Large, key, value, false);
    }
    put_connection(Tables::Large, &packet.ends, connection);
    count(Count::Established);
    let _gone = OPENINGS.remove(&packet.ends);
}

/// What leads from the endpoint's answers to the node back to the client.
#[inline(always)]
pub(crate) fn for_client(client: &Ends, connection: &Connection, key: &Key) -> Translation {
    let first = if key.reversed { 0 } else { Translation::CLIENT_FIRST };
    Translation {
        address: client.from,
        port: connection.client_port,
        client_port: connection.source_port,
        seen: connection.seen,
        flags: first | Translation::OF_NODE,
        padding: 0,
    }
}
