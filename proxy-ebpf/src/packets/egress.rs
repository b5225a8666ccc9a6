//! A packet leaves: its source becomes what its receiver dialled, or an address of this node in the client's place.

use proxy_abi::connection::{Key, State, Translation};
use proxy_abi::packet::{Ends, Packet, Read};
use proxy_abi::{Address6, Device, mapped};

use crate::flows::{self, Tables};
use crate::rewrite::{self, Side};
use crate::sender::seconds;
use crate::skb::Skb;
use crate::tracked::{DEVICES, Scratch, scratch};
use crate::{DROP, NEXT, errors, fragments};

/// How many ports of this node are tried for a flow.
const TRIES: u32 = 32;
/// Ports that neither sockets of this node nor node ports use by default.
const FIRST: u32 = 1024;
const COUNT: u32 = 30_000 - FIRST;

#[inline(always)]
pub(crate) fn run<const NETWORK: u32>(skb: &Skb) -> i32 {
    let packet = match skb.read(NETWORK) {
        Read::Packet(packet) => packet,
        Read::Message(message) => return errors::leave(*skb, &message),
        Read::Fragment(fragment) => return fragments::leave(*skb, &fragment),
        Read::Other => return NEXT,
    };
    let Some(scratch) = scratch() else { return NEXT };
    scratch.packet = packet;
    scratch.key = Key::of(&scratch.packet.ends);
    fragments::forget(&scratch.packet);
    let Some(place) = flows::translation(&scratch.key) else { return NEXT };
    serve(*skb, scratch, place)
}

/// The verdict on the packet of the scratch, which `place` leads back from.
#[inline(always)]
fn serve(skb: Skb, scratch: &mut Scratch, place: *mut Translation) -> i32 {
    // SAFETY: an element that was found stays readable.
    scratch.translation = unsafe { place.read() };
    let translation = &scratch.translation;
    if translation.flags & Translation::OF_NODE != 0 {
        return NEXT;
    }
    match translation.is_from_client(&scratch.key) {
        false => answer(skb, scratch, place),
        true if translation.flags & Translation::SOURCE_NAT != 0 => masquerade(skb, scratch),
        true => NEXT,
    }
}

#[inline(always)]
fn finish(packet: &Packet, result: Result<(), rewrite::Failed>) -> i32 {
    if result.is_err() {
        return DROP;
    }
    fragments::remember(packet);
    NEXT
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

/// The verdict on a packet of the endpoint's to the client. Not inlined: see `serve` of ingress.
#[inline(never)]
fn answer(skb: Skb, scratch: &mut Scratch, place: *mut Translation) -> i32 {
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
        let set = rewrite::set(skb, packet, Side::Destination, &packet.ends.to, translation.client_port);
        if set.is_err() {
            return DROP;
        }
    }
    finish(packet, rewrite::set(skb, packet, Side::Source, &translation.address, translation.port))
}

/// The verdict on a packet of the client's for which this node stands.
#[inline(always)]
fn masquerade(skb: Skb, scratch: &mut Scratch) -> i32 {
    if find_stand_in(skb, scratch) { stand_in(skb, scratch) } else { DROP }
}

/// Finds the address and port of this node that stand for the client of the scratch. Not inlined, as above.
#[inline(never)]
fn find_stand_in(skb: Skb, scratch: &mut Scratch) -> bool {
    let ends = &scratch.packet.ends;
    scratch.client = dialled(ends.from, &scratch.translation, ends.protocol);
    let Some((place, tables)) = flows::connection(&scratch.client) else { return false };
    // SAFETY: an element that was found stays readable.
    scratch.connection = unsafe { place.read() };
    if scratch.connection.source_port != 0 {
        return true;
    }
    let Some(source) = source(skb, &scratch.packet) else { return false };
    scratch.connection.source = source;
    if take_port(scratch, tables).is_none() {
        return false;
    }
    // SAFETY: as above.
    unsafe { (*place).source = scratch.connection.source };
    // SAFETY: as above.
    unsafe { (*place).source_port = scratch.connection.source_port };
    true
}

/// Not inlined, as above.
#[inline(never)]
fn stand_in(skb: Skb, scratch: &mut Scratch) -> i32 {
    let Scratch { packet, connection, .. } = scratch;
    finish(packet, rewrite::set(skb, packet, Side::Source, &connection.source, connection.source_port))
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
