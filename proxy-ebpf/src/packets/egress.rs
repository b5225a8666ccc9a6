//! A packet leaves: its source becomes what its receiver dialled, or an address of this node in the client's place.

use proxy_abi::connection::{Key, SOURCE_PORTS, State, Translation};
use proxy_abi::packet::{Ends, Packet, Read};
use proxy_abi::{Address6, Count, Device, mapped};

use crate::decisions::{DECIDED, clear, count, decided};
use crate::errors;
use crate::flows::{self, Tables};
use crate::rewrite::{self, Side};
use crate::sender::seconds;
use crate::skb::Skb;
use crate::tracked::{DEVICES, Scratch, scratch};
use crate::{DROP, NEXT};

/// How many ports of this node are tried for a flow.
const TRIES: u32 = 32;
const FIRST: u32 = SOURCE_PORTS.0 as u32;
const COUNT: u32 = SOURCE_PORTS.1 as u32 - FIRST + 1;

#[inline(always)]
pub(crate) fn run<const NETWORK: u32>(skb: &Skb) -> i32 {
    let packet = match skb.read(NETWORK) {
        Read::Packet(packet) => packet,
        Read::Message(message) => return errors::leave(*skb, &message),
        Read::Fragment(_) | Read::Other => return NEXT,
    };
    if packet.fragment != 0 {
        return NEXT;
    }
    let key = Key::of(&packet.ends);
    let Some(place) = flows::translation(&key) else { return NEXT };
    let Some(scratch) = scratch() else { return NEXT };
    (scratch.packet, scratch.key) = (packet, key);
    let verdict = serve(*skb, scratch, place);
    if verdict != DECIDED {
        return verdict;
    }
    decided(*skb, &scratch.client, &scratch.connection, scratch.what);
    DROP
}

/// The verdict on the packet of the scratch, which `place` leads back from, or [`DECIDED`]. Not inlined: see that of ingress.
#[inline(never)]
fn serve(skb: Skb, scratch: &mut Scratch, place: *mut Translation) -> i32 {
    // SAFETY: an element that was found stays readable.
    scratch.translation = unsafe { place.read() };
    let translation = &scratch.translation;
    if translation.flags & Translation::OF_NODE != 0 {
        return NEXT;
    }
    let result = match translation.is_from_client(&scratch.key) {
        false => answer(skb, scratch, place).or(Err(Count::NotRewritten)),
        true if translation.flags & Translation::SOURCE_NAT != 0 => masquerade(skb, scratch),
        true => Ok(()),
    };
    match result {
        Ok(()) => NEXT,
        Err(Count::NotRewritten) => {
            count(Count::NotRewritten);
            DROP
        }
        Err(why) => {
            count(why);
            scratch.what = why;
            DECIDED
        }
    }
}

/// The ends of the client's packets as they come in.
#[inline(always)]
pub(crate) fn dialled(client: Address6, translation: &Translation, protocol: u8) -> Ends {
    Ends {
        from: client,
        to: translation.address,
        from_port: translation.client_port,
        to_port: translation.port,
        protocol,
        padding: [0; 3],
    }
}

/// A packet of the endpoint's to the client.
#[inline(always)]
fn answer(skb: Skb, scratch: &mut Scratch, place: *mut Translation) -> Result<(), rewrite::Failed> {
    let Scratch { packet, translation, client, .. } = scratch;
    let now = seconds();
    if translation.seen != now || packet.flags & (Packet::FIN | Packet::RST) != 0 {
        // SAFETY: an element that was found stays writable; the stamp may as well be another processor's.
        unsafe { (*place).seen = now };
        *client = dialled(packet.ends.to, translation, packet.ends.protocol);
        if let Some((connection, _)) = flows::connection(client) {
            // SAFETY: as above.
            unsafe {
                (*connection).state = State::of((*connection).state).after(false, packet) as u8;
                (*connection).seen = now;
            }
        }
    }
    if translation.client_port != packet.ends.to_port {
        rewrite::set(skb, packet, Side::Destination, &packet.ends.to, translation.client_port)?;
    }
    rewrite::set(skb, packet, Side::Source, &translation.address, translation.port)
}

/// A packet of the client's for which this node stands.
#[inline(always)]
fn masquerade(skb: Skb, scratch: &mut Scratch) -> Result<(), Count> {
    let ends = &scratch.packet.ends;
    scratch.client = dialled(ends.from, &scratch.translation, ends.protocol);
    let Some((place, tables)) = flows::connection(&scratch.client) else {
        clear(&mut scratch.connection);
        return Err(Count::Forgotten);
    };
    // SAFETY: an element that was found stays readable.
    scratch.connection = unsafe { place.read() };
    if scratch.connection.source_port == 0 {
        scratch.connection.source = source(skb, &scratch.packet).ok_or(Count::NoSourceAddress)?;
        take_port(scratch, tables).ok_or(Count::NoSourcePort)?;
        count(Count::SourceNat);
        // SAFETY: as above.
        unsafe {
            (*place).source = scratch.connection.source;
            (*place).source_port = scratch.connection.source_port;
        }
    }
    let Scratch { packet, connection, .. } = scratch;
    rewrite::set(skb, packet, Side::Source, &connection.source, connection.source_port).or(Err(Count::NotRewritten))
}

/// The address of the device by which the packet leaves.
#[inline(always)]
fn source(skb: Skb, packet: &Packet) -> Option<Address6> {
    // SAFETY: an element is replaced and not rewritten.
    let Device { address4, address6, .. } = *unsafe { DEVICES.get(&skb.device()) }?;
    let (address, exists) =
        if packet.ipv4 { (mapped(address4), address4 != 0) } else { (address6, address6 != [0; 4]) };
    exists.then_some(address)
}

/// Takes a port of this node for a flow: its answers must be no other flow's.
#[inline(always)]
fn take_port(scratch: &mut Scratch, tables: Tables) -> Option<()> {
    let digest = scratch.client.digest(1);
    for attempt in 0..TRIES {
        scratch.connection.source_port = ((FIRST + digest.wrapping_add(attempt) % COUNT) as u16).to_be();
        scratch.key = Key::of(&scratch.connection.of_node(scratch.client.protocol));
        scratch.translation = flows::for_client(&scratch.client, &scratch.connection, &scratch.key);
        if flows::translation(&scratch.key).is_none()
            && flows::put_translation(tables, &scratch.key, &scratch.translation, true)
        {
            return Some(());
        }
    }
    None
}
