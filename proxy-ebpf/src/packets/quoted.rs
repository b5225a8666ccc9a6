//! Changes an address and a port of a packet that a message of ICMP quotes, with all checksums.
//!
//! Whatever changes inside of a message, its checksum takes it up: the sum over the message stays, and so does that
//! over the packet, where a device gave one (`CHECKSUM_COMPLETE`). So no call below has a flag for it.

use aya_ebpf::bindings::BPF_F_MARK_MANGLED_0;
use aya_ebpf::helpers::{bpf_l3_csum_replace, bpf_l4_csum_replace};
use proxy_abi::checksum::difference;
use proxy_abi::icmp::Quoted;
use proxy_abi::packet::{Packet, protocol};
use proxy_abi::{Address6, Port, same};

use crate::rewrite::{Failed, Side, at, done, store};
use crate::skb::Skb;

/// The flags with which the checksum of the quoted packet's own protocol is changed.
#[inline(always)]
fn flags(packet: &Packet) -> u64 {
    // A sum of 0 says that there is none.
    if packet.ends.protocol == protocol::UDP { BPF_F_MARK_MANGLED_0.into() } else { 0 }
}

/// Gives one end of the packet that `message` quotes another address and port.
#[inline(always)]
pub(crate) fn set(
    skb: Skb,
    message: &Packet,
    quoted: &Quoted,
    side: Side,
    address: &Address6,
    port: Port,
) -> Result<(), Failed> {
    let packet = &quoted.packet;
    let (old, old_port) = side.of(packet);
    let outer = message.transport + at::ICMP_CHECKSUM;
    let own = quoted.checksum();
    let before = load(skb, own)?;
    if old_port != port {
        replace(skb, outer, old_port, port)?;
        if let Some(own) = own {
            // SAFETY: the context is valid; the helper checks the offset.
            done(unsafe { bpf_l4_csum_replace(skb.0, own, old_port.into(), port.into(), flags(packet) | 2) })?;
        }
        store(skb, side.port(packet), &port, 0)?;
    }
    if !same(old, address) {
        if packet.ipv4 {
            set4(skb, packet, side, (old, address), own)?;
        } else {
            let difference = difference(old, address).into();
            // SAFETY: as above.
            done(unsafe { bpf_l4_csum_replace(skb.0, outer, 0, difference, 0) })?;
            if let Some(own) = own {
                // SAFETY: as above.
                done(unsafe { bpf_l4_csum_replace(skb.0, own, 0, difference, flags(packet)) })?;
            }
            store(skb, side.address(packet), address, 0)?;
        }
    }
    replace(skb, outer, before, load(skb, own)?)
}

/// The quoted header has a checksum of its own, which changes by as much as the address does the other way: that of the
/// message stays.
#[inline(always)]
fn set4(
    skb: Skb,
    packet: &Packet,
    side: Side,
    ([_, _, _, old], [_, _, _, new]): (&Address6, &Address6),
    own: Option<u32>,
) -> Result<(), Failed> {
    let header = packet.network + at::CHECKSUM4;
    // SAFETY: the context is valid; the helper checks the offset.
    done(unsafe { bpf_l3_csum_replace(skb.0, header, (*old).into(), (*new).into(), 4) })?;
    if let Some(own) = own {
        // SAFETY: as above.
        done(unsafe { bpf_l4_csum_replace(skb.0, own, (*old).into(), (*new).into(), flags(packet) | 4) })?;
    }
    store(skb, side.address(packet), new, 0)
}

/// The checksum at this place; 0 without one.
#[inline(always)]
fn load(skb: Skb, at: Option<u32>) -> Result<u16, Failed> {
    match at {
        Some(at) => skb.two(at).ok_or(Failed),
        None => Ok(0),
    }
}

/// Two bytes of the message have changed.
#[inline(always)]
fn replace(skb: Skb, checksum: u32, old: u16, new: u16) -> Result<(), Failed> {
    if old == new {
        return Ok(());
    }
    // SAFETY: the context is valid; the helper checks the offset.
    done(unsafe { bpf_l4_csum_replace(skb.0, checksum, old.into(), new.into(), 2) })
}
