//! A packet leaves: its source becomes what its receiver dialled, or an address of this node in the client's place.

use proxy_abi::connection::{Connection, Key, SOURCE_PORTS, State, Translation};
use proxy_abi::packet::{Packet, protocol};
use proxy_abi::{Address6, Count, Device, mapped};

use crate::decisions::{DECIDED, count, decided, finish};
use crate::flows::{self, Tables};
use crate::ingress::{device, unless_unused};
use crate::rewrite::{self, Ports, Side};
use crate::sender::seconds;
use crate::skb::{Kind, Skb};
use crate::tracked::{Scratch, scratch};
use crate::{DROP, NEXT, errors, fragments};

/// How many ports of this node are tried for a flow; in the second half also those of flows that have ended.
const TRIES: u32 = 32;
/// No verdict of the kernel's, as [`DECIDED`]: an address and a port of this node stand for the client.
const STANDS_IN: i32 = -3;

#[inline(always)]
pub(crate) fn run<const NETWORK: u32>(skb: &Skb) -> i32 {
    let Some(scratch) = scratch() else { return NEXT };
    match skb.read(NETWORK, &mut scratch.packet) {
        Kind::Packet => {}
        Kind::Message => return errors::leave(*skb, scratch),
        Kind::Fragment => return fragments::leave(*skb, scratch),
        Kind::Other => return NEXT,
    }
    scratch.key = Key::of(&scratch.packet.ends);
    fragments::forget(&scratch.packet);
    // What comes in has met this already; what this node sends has not.
    let Some(place) = flows::leading_back(&scratch.key) else { return unless_unused(&scratch.packet) };
    let verdict = serve(*skb, scratch, place);
    if verdict != DECIDED {
        return verdict;
    }
    decided(*skb, &scratch.client, &scratch.connection, scratch.what);
    DROP
}

/// The verdict on the packet of the scratch, which `place` leads back from, or [`DECIDED`].
#[inline(always)]
fn serve(skb: Skb, scratch: &mut Scratch, place: *mut Translation) -> i32 {
    // SAFETY: an element that was found stays readable.
    scratch.translation = unsafe { place.read() };
    let flags = scratch.translation.flags;
    if flags & Translation::OF_NODE != 0 {
        return NEXT;
    }
    match scratch.translation.is_from_client(&scratch.key) {
        false => answer(skb, scratch, place),
        true if flags & Translation::SOURCE_NAT != 0 => masquerade(skb, scratch),
        true if scratch.packet.opens() => unless_former(scratch),
        true => NEXT,
    }
}

/// The verdict on a packet of the endpoint's to the client. Not inlined: see `serve` of ingress.
#[inline(never)]
fn answer(skb: Skb, scratch: &mut Scratch, place: *mut Translation) -> i32 {
    let Scratch { packet, translation, client, connection: known, key, .. } = scratch;
    let now = seconds();
    let is_first = translation.flags & Translation::ANSWERED == 0;
    if is_first || translation.seen != now || packet.flags & (Packet::FIN | Packet::RST) != 0 {
        // SAFETY: an element that was found stays writable; the stamp may as well be another processor's.
        unsafe { (*place).seen = now };
        // SAFETY: as above.
        unsafe { (*place).flags = translation.flags | Translation::ANSWERED };
        *client = translation.dialled(packet.ends.to, packet.ends.protocol);
        if let Some((connection, _)) = flows::connection(client) {
            // SAFETY: as above.
            let before = State::of(unsafe { (*connection).state });
            let state = before.after(false, packet);
            // SAFETY: as above.
            unsafe { (*connection).state = state as u8 };
            // SAFETY: as above.
            unsafe { (*connection).seen = now };
            if state != before && state == State::Closed {
                // SAFETY: as above.
                *known = unsafe { connection.read() };
                flows::end(client, known, key);
            }
        }
    }
    let ports = Ports { from: translation.port, to: translation.client_port };
    finish(packet, rewrite::set(skb, packet, Side::Source, &translation.address, ports))
}

/// The verdict on a packet of the client's for which this node stands, or [`DECIDED`].
#[inline(always)]
fn masquerade(skb: Skb, scratch: &mut Scratch) -> i32 {
    match find_stand_in(skb, scratch) {
        STANDS_IN => stand_in(skb, scratch),
        verdict => verdict,
    }
}

/// Finds the flow of the packet of the scratch; `None` if there is none, or it is none of that packet's.
#[inline(always)]
fn flow(scratch: &mut Scratch) -> Option<(*mut Connection, Tables)> {
    let opens = scratch.packet.opens();
    scratch.client = scratch.translation.dialled(scratch.packet.ends.from, scratch.packet.ends.protocol);
    let mut found = None;
    if opens && scratch.client.protocol == protocol::TCP {
        found = flows::connection_in(Tables::Opening, &scratch.client);
    }
    if found.is_none() {
        found = flows::connection(&scratch.client);
    }
    if opens && flows::forget_former(scratch, found.map(|(place, _)| place)) { None } else { found }
}

/// The verdict on a packet that opens a connection from its client's own address. Not inlined, as above.
#[inline(never)]
fn unless_former(scratch: &mut Scratch) -> i32 {
    flow(scratch);
    NEXT
}

/// Finds the address and port of this node that stand for the client of the scratch: [`STANDS_IN`], or what becomes of
/// the packet. Not inlined, as above.
#[inline(never)]
fn find_stand_in(skb: Skb, scratch: &mut Scratch) -> i32 {
    // Without a flow it is what leads back to one that has ended; the packet came to the endpoint itself.
    let Some((place, tables)) = flow(scratch) else { return NEXT };
    // SAFETY: an element that was found stays readable.
    scratch.connection = unsafe { place.read() };
    if scratch.connection.source_port != 0 {
        return STANDS_IN;
    }
    let Some(source) = source(skb, &scratch.packet) else { return give_up(scratch, Count::NoSourceAddress) };
    scratch.connection.source = source;
    if take_port(scratch, tables).is_none() {
        return give_up(scratch, Count::NoSourcePort);
    }
    count(Count::SourceNat);
    // SAFETY: as above.
    unsafe { (*place).source = scratch.connection.source };
    // SAFETY: as above.
    unsafe { (*place).source_port = scratch.connection.source_port };
    STANDS_IN
}

#[inline(always)]
fn give_up(scratch: &mut Scratch, why: Count) -> i32 {
    count(why);
    scratch.what = why;
    DECIDED
}

/// Not inlined, as above.
#[inline(never)]
fn stand_in(skb: Skb, scratch: &mut Scratch) -> i32 {
    let Scratch { packet, connection, .. } = scratch;
    let ports = Ports { from: connection.source_port, to: packet.ends.to_port };
    finish(packet, rewrite::set(skb, packet, Side::Source, &connection.source, ports))
}

/// The address of the device by which the packet leaves.
#[inline(always)]
fn source(skb: Skb, packet: &Packet) -> Option<Address6> {
    let Device { address4, address6, .. } = *device(skb)?;
    let (address, exists) =
        if packet.ipv4 { (mapped(address4), address4 != 0) } else { (address6, address6 != [0; 4]) };
    exists.then_some(address)
}

/// Takes a port of this node for a flow, the client's own if it can: its answers must be no other flow's.
#[inline(always)]
fn take_port(scratch: &mut Scratch, tables: Tables) -> Option<()> {
    let (digest, own) = (scratch.client.digest(1), scratch.connection.client_port);
    let (first, last) = SOURCE_PORTS;
    let fits = (first..=last).contains(&u16::from_be(own));
    // Ports in a row may all be taken.
    let step = digest >> 16 | 1;
    for attempt in 0..TRIES {
        let number = digest.wrapping_add(attempt.wrapping_mul(step));
        scratch.connection.source_port = if attempt == 0 && fits { own } else { flows::source_port(number) };
        scratch.key = Key::of(&scratch.connection.of_node(scratch.client.protocol));
        scratch.translation = scratch.connection.for_client(&scratch.client, &scratch.key);
        let (key, value) = (&scratch.key, &scratch.translation);
        flows::note_opening(tables, key, scratch.connection.state);
        if flows::take(tables, key, value, attempt >= TRIES / 2, || true) {
            return Some(());
        }
    }
    None
}
