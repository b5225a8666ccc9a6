//! Datagrams in fragments: only the first one has ports, so the others go where it went.
//!
//! A first fragment of a flow of ours is translated as any packet, its checksum included, which covers the whole
//! datagram. `FRAGMENTS` remembers its ports, at each hook under the addresses that it has there; if its identification
//! comes again with another first fragment, the newest one counts. Of the others only the addresses change. Nothing is
//! put together or looked into, so overlapping fragments stay for their receiver to refuse.
//!
//! Nothing is held back: a fragment that comes before its first one has no ports, and its datagram is lost. At ingress
//! it is dropped if it is for an address whose other ports are refused too, that of a Service alone, and else left to
//! the kernel, whose own datagrams it may belong to. At egress it goes on, as nothing tells whose it is. Where the
//! kernel tracks connections it puts datagrams together between the hooks and cuts them again, in order; then only the
//! order of arrival counts. Fragments whose first one the table has forgotten, of more than 8192 datagrams at once, are
//! lost likewise, and so are those of IPv6 that have further headers behind that of the fragment: they are not read.

use aya_ebpf::bindings::BPF_ANY;
use proxy_abi::Address6;
use proxy_abi::connection::{Key, Translation};
use proxy_abi::fragment::{FragmentKey, Ports};
use proxy_abi::lookup::address_value;
use proxy_abi::packet::Packet;

use crate::rewrite::{self, Side};
use crate::skb::Skb;
use crate::tables::Kernel;
use crate::tracked::{FRAGMENTS, Scratch};
use crate::{DROP, NEXT, flows, ingress};

/// No verdict of the kernel's: the flow of a fragment is not known.
const UNKNOWN: i32 = -2;

/// Forgets what is known of an identification, if this is a first fragment: it may be one that is not ours.
#[inline(always)]
pub(crate) fn forget(packet: &Packet) {
    if packet.fragment != 0 {
        drop_ports(packet);
    }
}

/// Not inlined: it has a stack of its own. It returns something, as the kernel's verifier expects of functions.
#[inline(never)]
fn drop_ports(packet: &Packet) -> i32 {
    i32::from(FRAGMENTS.remove(FragmentKey::of(packet)).is_ok())
}

/// Remembers the ports of a packet of a flow of ours, if it is a first fragment.
#[inline(always)]
pub(crate) fn remember(packet: &Packet) {
    if packet.fragment != 0 {
        keep(packet);
    }
}

/// Not inlined, as above.
#[inline(never)]
fn keep(packet: &Packet) -> i32 {
    let key = FragmentKey::of(packet);
    i32::from(FRAGMENTS.insert(key, Ports::of(&packet.ends), BPF_ANY.into()).is_ok())
}

/// A fragment without ports comes in, that of the scratch.
#[inline(always)]
pub(crate) fn come_in(skb: Skb, scratch: &mut Scratch) -> i32 {
    let fragment = &scratch.packet;
    let value = address_value(&Kernel, &fragment.ends.to);
    if !value.is_known() || !skb.is_whole(fragment, 1) {
        return NEXT;
    }
    match bring(skb, scratch, ingress::may_be_of_node(value)) {
        UNKNOWN if value.refuses_other_ports() => DROP,
        UNKNOWN => NEXT,
        verdict => verdict,
    }
}

/// Gives the fragment of the scratch its ports, if its first one is known.
#[inline(always)]
fn find_ports(packet: &mut Packet) -> bool {
    // SAFETY: an element that was found stays readable; one that is recycled this instant is another datagram's, whose
    // ports lead to no flow between these addresses or to one.
    let Some(ports) = (unsafe { FRAGMENTS.get(FragmentKey::of(packet)) }) else { return false };
    (packet.ends.from_port, packet.ends.to_port) = (ports.from, ports.to);
    true
}

/// The fragment of the scratch, which has come in, goes to its endpoint, or to the client for which this node stood.
/// Not inlined: it has a stack of its own.
#[inline(never)]
fn bring(skb: Skb, scratch: &mut Scratch, to_node: bool) -> i32 {
    let Scratch { packet, connection, key, translation, .. } = scratch;
    if !find_ports(packet) {
        return UNKNOWN;
    }
    if let Some((place, _)) = flows::connection(&packet.ends) {
        // SAFETY: an element that was found stays readable.
        *connection = unsafe { place.read() };
        return set_address(skb, packet, Side::Destination, &connection.endpoint);
    }
    if !to_node {
        return UNKNOWN;
    }
    *key = Key::of(&packet.ends);
    let Some(place) = flows::translation(key) else { return UNKNOWN };
    // SAFETY: as above.
    *translation = unsafe { place.read() };
    if !translation.stands_for_client() {
        return UNKNOWN;
    }
    set_address(skb, packet, Side::Destination, &translation.address)
}

/// The fragment of the scratch, which leaves, gets the source that its first one got.
#[inline(never)]
pub(crate) fn leave(skb: Skb, scratch: &mut Scratch) -> i32 {
    let Scratch { packet, connection, key, translation, client, .. } = scratch;
    if !find_ports(packet) {
        return NEXT;
    }
    *key = Key::of(&packet.ends);
    let Some(place) = flows::translation(key) else { return NEXT };
    // SAFETY: an element that was found stays readable.
    *translation = unsafe { place.read() };
    if translation.flags & Translation::OF_NODE != 0 {
        return NEXT;
    }
    if !translation.is_from_client(key) {
        return set_address(skb, packet, Side::Source, &translation.address);
    }
    if translation.flags & Translation::SOURCE_NAT == 0 {
        return NEXT;
    }
    *client = translation.dialled(packet.ends.from, packet.ends.protocol);
    let Some((place, _)) = flows::connection(client) else { return DROP };
    // SAFETY: as above.
    *connection = unsafe { place.read() };
    if connection.source_port == 0 {
        return DROP;
    }
    set_address(skb, packet, Side::Source, &connection.source)
}

/// The verdict on a fragment that gets another address. Its checksum, if it has one, is in the first one.
#[inline(always)]
fn set_address(skb: Skb, packet: &Packet, side: Side, address: &Address6) -> i32 {
    if rewrite::set_address(skb, packet, side, address, None).is_ok() { NEXT } else { DROP }
}
