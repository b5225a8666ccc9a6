//! The flows that are known: found, begun, and moved to the large tables once their client has sent a second packet.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use proxy_abi::connection::{Connection, Key, SOURCE_PORTS, STAYS_OPENING, State, Translation};
use proxy_abi::packet::{Ends, protocol};
use proxy_abi::{Count, Port};

use crate::decisions::count;
use crate::direct::is_connected;
use crate::sender::seconds;
use crate::skb::Skb;
use crate::tracked::{CONNECTIONS, OPENED, OPENING_TRANSLATIONS, OPENINGS, Scratch, TRANSLATIONS};

/// So many seconds a packet may be on its way: an answer to a datagram, or between the hooks.
const ON_ITS_WAY: u32 = 2;
/// How many ports are tried that could stand for a client's; in the second half also those of flows that have ended.
const TRIES: u32 = 16;
/// So many seconds after the last answer nothing more is expected of a flow that has been closed.
const LAST_PACKETS: u32 = 2;
/// After so many seconds without a packet in either direction a flow of UDP that was answered leaves its port of this
/// node to another one that finds none: most are one question and its answer.
const QUIET: u32 = 5;

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
    match connection_in(Tables::Large, ends) {
        None if ends.protocol == protocol::TCP => connection_in(Tables::Opening, ends),
        found => found,
    }
}

/// The same, in one of the tables.
#[inline(always)]
pub(crate) fn connection_in(tables: Tables, ends: &Ends) -> Option<(*mut Connection, Tables)> {
    let found = match tables {
        Tables::Large => CONNECTIONS.get_ptr_mut(ends),
        Tables::Opening => OPENINGS.get_ptr_mut(ends),
    };
    Some((found?, tables))
}

/// Whether a packet in the middle of a connection of TCP changes nothing of what is known of it: it is up, and has had
/// a packet within the second.
#[inline(always)]
pub(crate) fn is_steady(connection: &Connection) -> bool {
    let Connection { state, flags, seen, .. } = connection;
    *state != State::Opening as u8 && flags & Connection::FOREIGN == 0 && *seen == seconds()
}

/// Whether what leads back from a key of TCP may be that of a connection that is opening. Most packets are of none, and
/// this is the cheaper look.
#[inline(always)]
pub(crate) fn may_be_opening(key: &Key) -> bool {
    // SAFETY: an element stays readable; it is written at any moment.
    OPENED.get_ptr(key.opened()).is_none_or(|until| unsafe { until.read_volatile() } >= seconds().into())
}

/// Notes that what leads back to such a connection is or will be there, for as long as the daemon lets it. One that was
/// open before may stay for as long as others that are open.
#[inline(always)]
pub(crate) fn note_opening(tables: Tables, key: &Key, state: u8) {
    if tables != Tables::Opening {
        return;
    }
    let until = if state == State::Opening as u8 { u64::from(seconds()) + u64::from(STAYS_OPENING) } else { u64::MAX };
    if let Some(place) = OPENED.get_ptr_mut(key.opened())
        // SAFETY: an element stays readable.
        && unsafe { place.read_volatile() } < until
    {
        // SAFETY: an aligned word that stays writable.
        unsafe { place.write_volatile(until) };
    }
}

/// What leads back from a packet, the look that costs the least.
#[inline(always)]
pub(crate) fn leading_back(key: &Key) -> Option<*mut Translation> {
    match translation_in(Tables::Large, key) {
        None if key.ends.protocol == protocol::TCP && may_be_opening(key) => translation_in(Tables::Opening, key),
        found => found,
    }
}

/// What leads back from these ends.
#[inline(always)]
pub(crate) fn translation(key: &Key) -> Option<*mut Translation> {
    match translation_in(Tables::Large, key) {
        None if key.ends.protocol == protocol::TCP => translation_in(Tables::Opening, key),
        found => found,
    }
}

/// The same, in one of the tables.
#[inline(always)]
pub(crate) fn translation_in(tables: Tables, key: &Key) -> Option<*mut Translation> {
    match tables {
        Tables::Large => TRANSLATIONS.get_ptr_mut(key.ends),
        Tables::Opening => OPENING_TRANSLATIONS.get_ptr_mut(key.ends),
    }
}

#[inline(always)]
pub(crate) fn put_translation(tables: Tables, key: &Key, value: &Translation, only_new: bool) -> bool {
    let flags = u64::from(if only_new { BPF_NOEXIST } else { BPF_ANY });
    let done = match tables {
        Tables::Large => TRANSLATIONS.insert(key.ends, value, flags),
        Tables::Opening => OPENING_TRANSLATIONS.insert(key.ends, value, flags),
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

/// Remembers the new flow of the scratch, whose client is `pod`, as [`proxy_abi::Device::pod`]. It may change the port
/// that stands for the client's.
#[inline(always)]
pub(crate) fn begin(skb: Skb, scratch: &mut Scratch, pod: u32) -> Result<(), Count> {
    let Scratch { packet, connection, key, translation: value, .. } = scratch;
    let tables = first_tables(packet.ends.protocol);
    let looks = pod != 0 && packet.ends.protocol == protocol::TCP;
    for attempt in 0..TRIES {
        if attempt > 0 {
            connection.client_port = candidate(&packet.ends, attempt);
        }
        let inner = connection.inner(&packet.ends);
        *key = Key::of(&inner);
        *value = connection.leading_back(&packet.ends, key);
        note_opening(tables, key, connection.state);
        let is_free = || !looks || !is_connected(skb, &inner, packet.ipv4, pod);
        if take(tables, key, value, attempt >= TRIES / 2, is_free) {
            if attempt > 0 {
                count(Count::PortChanged);
            }
            let put = put_connection(tables, &packet.ends, connection);
            return if put { Ok(()) } else { Err(Count::TableFull) };
        }
    }
    Err(Count::NoClientPort)
}

/// Makes a new flow the one to which a key leads, if it leads to none, or to this one from before it was forgotten, or
/// to one that has ended and may give way.
#[inline(always)]
pub(crate) fn take(
    tables: Tables,
    key: &Key,
    value: &Translation,
    gives_way: bool,
    is_free: impl Fn() -> bool,
) -> bool {
    let elsewhere = match tables {
        Tables::Large if key.ends.protocol == protocol::TCP => translation_in(Tables::Opening, key),
        Tables::Large => None,
        Tables::Opening => translation_in(Tables::Large, key),
    };
    let found = match elsewhere {
        None if !is_free() => translation_in(tables, key),
        None if put_translation(tables, key, value, true) => return true,
        None => translation_in(tables, key),
        found => found,
    };
    let Some(found) = found else { return false };
    take_over(found, value)
        || (gives_way && clear_ended(found, key) && is_free() && put_translation(tables, key, value, true))
}

/// Forgets a flow that begins anew, perhaps in other tables, or that is refused now.
#[inline(always)]
pub(crate) fn forget(ends: &Ends, tables: Tables) {
    let _gone = match tables {
        Tables::Large => CONNECTIONS.remove(ends),
        Tables::Opening => OPENINGS.remove(ends),
    };
}

/// Whether a packet that opens a connection to the endpoint is none of the flow that the translation of the scratch
/// leads to, `found` if it is known: that has ended, and what was dialled from the same port now is the endpoint
/// itself. Then nothing leads back to that flow any more.
#[inline(always)]
pub(crate) fn forget_former(scratch: &Scratch, found: Option<*mut Connection>) -> bool {
    let Scratch { translation: leads_back, key, .. } = scratch;
    let ended = match found {
        // SAFETY: an element that was found stays readable.
        Some(place) => State::of(unsafe { (*place).state }) == State::Closed,
        // A flood may have driven out a flow that began this instant.
        None => idle(leads_back.seen) > ON_ITS_WAY,
    };
    if ended {
        let _gone = (TRANSLATIONS.remove(key.ends), OPENING_TRANSLATIONS.remove(key.ends));
    }
    ended
}

/// Whether the flow for whose client this node stands goes on, by its translation in the scratch, although the programs
/// begin nothing any more: the port of one that has ended may be another path's by now. Of datagrams only the first
/// answer is waited for.
#[inline(always)]
pub(crate) fn goes_on(scratch: &mut Scratch) -> bool {
    let Scratch { packet, translation: of_node, client, key, .. } = scratch;
    let protocol = packet.ends.protocol;
    let (from, from_port) = (of_node.address, of_node.port);
    let (to, to_port) = (packet.ends.from, packet.ends.from_port);
    *key = Key::of(&Ends { from, to, from_port, to_port, protocol, padding: [0; 3] });
    let Some(place) = translation(key) else { return false };
    // SAFETY: an element that was found stays readable.
    *client = unsafe { place.read() }.dialled(from, protocol);
    let Some((place, _)) = connection(client) else { return false };
    // SAFETY: as above.
    let found = unsafe { place.read() };
    match State::of(found.state) {
        State::Closed => false,
        State::Opening => protocol::connects(protocol) || idle(found.seen) <= ON_ITS_WAY,
        State::Open | State::ClientClosed | State::EndpointClosed => protocol::connects(protocol),
    }
}

/// Whether a translation is that of a flow which was forgotten, or has ended; it becomes that of the new one.
#[inline(always)]
pub(crate) fn take_over(found: *mut Translation, value: &Translation) -> bool {
    // SAFETY: an element that was found stays readable; one that is recycled this instant is another flow's.
    let ours = unsafe { (*found).leads_as(value) };
    if ours {
        // SAFETY: as above. Whether this node stands for the client may have changed.
        unsafe { (*found).flags = value.flags };
        // SAFETY: as above.
        unsafe { (*found).seen = value.seen };
    }
    ours
}

/// The seconds since then. Another processor may be ahead of this one.
#[inline(always)]
fn idle(seen: u32) -> u32 {
    let since = seconds().wrapping_sub(seen);
    if since > u32::MAX / 2 { 0 } else { since }
}

/// Makes room where what leads back to a flow that has ended is in the way of another one, once its last packets have
/// had their time; or that of a flow of UDP without packets. In the instant in which this decides, a packet of that
/// flow may still leave by the port.
#[inline(always)]
pub(crate) fn clear_ended(found: *mut Translation, key: &Key) -> bool {
    const ANSWERED: u32 = Translation::OF_NODE | Translation::ANSWERED;
    // SAFETY: an element that was found stays readable; one that is recycled this instant is another flow's.
    let flags = unsafe { (*found).flags };
    // SAFETY: as above.
    let idle = idle(unsafe { (*found).seen });
    let quiet = key.ends.protocol == protocol::UDP && flags & ANSWERED == ANSWERED && idle >= QUIET;
    let ended = flags & Translation::ENDED != 0 && idle >= LAST_PACKETS;
    // Only one processor takes it out. A flow leaves what led back to it when it began in the small table.
    let taken = || (TRANSLATIONS.remove(key.ends).is_ok(), OPENING_TRANSLATIONS.remove(key.ends).is_ok());
    (ended || quiet) && taken() != (false, false)
}

/// Notes in what leads back to the flow of `connection` that it has been closed. `key` is room for a key.
#[inline(always)]
pub(crate) fn end(client: &Ends, connection: &Connection, key: &mut Key) {
    *key = Key::of(&connection.inner(client));
    mark_ended(key);
    if connection.source_port != 0 {
        *key = Key::of(&connection.of_node(client.protocol));
        mark_ended(key);
    }
}

/// Not inlined: it has a stack of its own.
#[inline(never)]
fn mark_ended(key: &Key) -> i32 {
    let Some(found) = translation(key) else { return 0 };
    // SAFETY: an element that was found stays writable; other writes at the same time are of packets that come late.
    unsafe { (*found).flags |= Translation::ENDED };
    1
}

/// A port for a flow that would else look like another one of its client, below those of most clients.
#[inline(always)]
fn candidate(ends: &Ends, attempt: u32) -> Port {
    source_port(ends.digest(attempt))
}

/// One of the ports that stand for clients' ports, by any number.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a port is below 65,536")]
pub(crate) fn source_port(number: u32) -> Port {
    const FIRST: u32 = SOURCE_PORTS.0 as u32;
    const COUNT: u32 = SOURCE_PORTS.1 as u32 - FIRST + 1;
    ((FIRST + number % COUNT) as u16).to_be()
}

/// Those of a flow whose client has sent one packet. One of TCP may be a forged one, whatever its flags say: a flood of
/// those must not remove others.
#[inline(always)]
fn first_tables(protocol: u8) -> Tables {
    if protocol == protocol::TCP { Tables::Opening } else { Tables::Large }
}

/// Remembers that the flow of the scratch is none of ours.
#[inline(always)]
pub(crate) fn leave_alone(scratch: &mut Scratch) {
    let Scratch { packet, connection, .. } = scratch;
    let (now, state) = (seconds(), State::Open as u8);
    *connection = Connection { flags: Connection::FOREIGN, state, seen: now, begun: now, ..Connection::default() };
    put_connection(first_tables(packet.ends.protocol), &packet.ends, connection);
}

/// Notes a packet of the client's, and leaves its connection in the scratch. One whose client goes on leaves the small
/// tables. Not inlined: it has a stack of its own.
#[inline(never)]
pub(crate) fn note(scratch: &mut Scratch, place: *mut Connection, tables: Tables) {
    // SAFETY: as above. Writes of other processors at the same time say the same, but for a packet more or less.
    scratch.connection = unsafe { place.read() };
    let Scratch { packet, connection, key, .. } = scratch;
    let (state, now) = (State::of(connection.state).after(true, packet) as u8, seconds());
    let (seen, before) = (connection.seen, connection.state);
    if state != connection.state || now != seen {
        (connection.state, connection.seen) = (state, now);
        // SAFETY: as above.
        unsafe { (*place).state = state };
        // SAFETY: as above.
        unsafe { (*place).seen = now };
    }
    if state != before && State::of(state) == State::Closed {
        end(&packet.ends, connection, key);
    }
    if tables == Tables::Opening && !scratch.packet.opens() {
        settle(scratch);
    } else if now != seen && !lead_back(scratch, tables) {
        // SAFETY: as above.
        unsafe { (*place).source_port = 0 };
    }
}

/// Moves the flow of the scratch to the large tables.
#[inline(always)]
fn settle(scratch: &mut Scratch) {
    // It is written below as the scratch has it.
    let _keeps_port = lead_back(scratch, Tables::Large);
    let Scratch { packet, connection, .. } = scratch;
    put_connection(Tables::Large, &packet.ends, connection);
    count(Count::Established);
    let _gone = OPENINGS.remove(packet.ends);
}

/// Makes what leads back to the flow of the scratch where it is missing. The tables forget the longest unused, and of
/// the elements of a flow that is not always the connection. False if the port that stood for its client is another
/// flow's by now: it gets another one where the packet leaves.
#[inline(always)]
fn lead_back(scratch: &mut Scratch, tables: Tables) -> bool {
    let Scratch { packet, connection, key, translation: value, .. } = scratch;
    if connection.flags & Connection::FOREIGN != 0 {
        return true;
    }
    *key = Key::of(&connection.inner(&packet.ends));
    *value = connection.leading_back(&packet.ends, key);
    note_opening(tables, key, connection.state);
    let _there = keep_translation(tables, key, value);
    if connection.source_port != 0 {
        *key = Key::of(&connection.of_node(packet.ends.protocol));
        *value = connection.for_client(&packet.ends, key);
        note_opening(tables, key, connection.state);
        match keep_translation(tables, key, value) {
            // SAFETY: an element that was found stays readable; one that is recycled this instant is another flow's.
            Some(found) if unsafe { (*found).leads_as(value) } => {
                // SAFETY: as above.
                unsafe { (*found).seen = value.seen };
            }
            Some(_) => {
                connection.source_port = 0;
                return false;
            }
            None => {}
        }
    }
    true
}

/// Writes it unless it is there, and returns what is: a write takes an element of the table even if it fails.
#[inline(always)]
fn keep_translation(tables: Tables, key: &Key, value: &Translation) -> Option<*mut Translation> {
    let found = translation_in(tables, key);
    if found.is_none() {
        put_translation(tables, key, value, true);
    }
    found
}
