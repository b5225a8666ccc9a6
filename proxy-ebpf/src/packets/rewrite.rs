//! Changes an address and a port of a packet, with all checksums.

use core::mem::size_of;

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM};
use aya_ebpf::helpers::{bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_store_bytes};
use proxy_abi::packet::{Packet, protocol};
use proxy_abi::{Address6, Port};

use crate::sctp;
use crate::skb::Skb;

/// Which end of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

impl Side {
    /// This end of a packet.
    #[inline(always)]
    pub(crate) fn of(self, packet: &Packet) -> (&Address6, Port) {
        match self {
            Self::Source => (&packet.ends.from, packet.ends.from_port),
            Self::Destination => (&packet.ends.to, packet.ends.to_port),
        }
    }

    /// Where its address is.
    #[inline(always)]
    pub(crate) fn address(self, packet: &Packet) -> u32 {
        packet.network
            + match (self, packet.ipv4) {
                (Self::Source, true) => at::SOURCE4,
                (Self::Destination, true) => at::DESTINATION4,
                (Self::Source, false) => at::SOURCE6,
                (Self::Destination, false) => at::DESTINATION6,
            }
    }

    /// Where its port is.
    #[inline(always)]
    pub(crate) fn port(self, packet: &Packet) -> u32 {
        packet.transport
            + match self {
                Self::Source => at::SOURCE_PORT,
                Self::Destination => at::DESTINATION_PORT,
            }
    }
}

/// Where fields are in their headers.
pub(crate) mod at {
    pub(crate) const CHECKSUM4: u32 = 10;
    pub(crate) const SOURCE4: u32 = 12;
    pub(crate) const DESTINATION4: u32 = 16;
    pub(crate) const SOURCE6: u32 = 8;
    pub(crate) const DESTINATION6: u32 = 24;
    pub(crate) const SOURCE_PORT: u32 = 0;
    pub(crate) const DESTINATION_PORT: u32 = 2;
    pub(crate) const TCP_CHECKSUM: u32 = 16;
    pub(crate) const UDP_CHECKSUM: u32 = 6;
    pub(crate) const SCTP_CHECKSUM: u32 = 8;
    pub(crate) const ICMP_CHECKSUM: u32 = proxy_abi::icmp::CHECKSUM;
}

/// A helper refused; nothing that was changed before is right any more.
pub(crate) struct Failed;

pub(crate) fn done(result: i64) -> Result<(), Failed> {
    if result == 0 { Ok(()) } else { Err(Failed) }
}

/// Gives one end of a packet another address and port.
#[inline(always)]
pub(crate) fn set(skb: Skb, packet: &Packet, side: Side, address: &Address6, port: Port) -> Result<(), Failed> {
    let ((_, old_port), checksum) = (side.of(packet), checksum(packet));
    if port != old_port && packet.ends.protocol == protocol::SCTP {
        // Its checksum knows no addresses.
        if !sctp::set_port(skb, packet, side, port) {
            return Err(Failed);
        }
    } else if port != old_port {
        let place = side.port(packet);
        if let Some((checksum, flags)) = checksum {
            // SAFETY: the context is valid, as in all calls below; the helper checks the offset.
            done(unsafe { bpf_l4_csum_replace(skb.0, checksum, old_port.into(), port.into(), flags | 2) })?;
        }
        store(skb, place, &port, if lacks_checksum(skb, packet)? { BPF_F_RECOMPUTE_CSUM.into() } else { 0 })?;
    }
    set_address(skb, packet, side, address, checksum)
}

/// Whether nothing in a packet takes up a change of its ports, which the sum over the packet, where a device gave one,
/// then has to.
#[inline(always)]
fn lacks_checksum(skb: Skb, packet: &Packet) -> Result<bool, Failed> {
    if packet.ends.protocol != protocol::UDP {
        return Ok(false);
    }
    let checksum = skb.two(packet.transport + at::UDP_CHECKSUM).ok_or(Failed)?;
    Ok(checksum == 0)
}

/// Where the checksum is of the protocol of a packet, if it covers addresses, and how it is changed.
#[inline(always)]
pub(crate) fn checksum(packet: &Packet) -> Option<(u32, u64)> {
    match packet.ends.protocol {
        protocol::TCP => Some((packet.transport + at::TCP_CHECKSUM, 0)),
        // A sum of 0 says that there is none.
        protocol::UDP => Some((packet.transport + at::UDP_CHECKSUM, BPF_F_MARK_MANGLED_0.into())),
        // That of ICMP in IPv4 covers none.
        protocol::ICMPV6 => Some((packet.transport + at::ICMP_CHECKSUM, 0)),
        _ => None,
    }
}

/// Gives one end of a packet another address.
#[inline(always)]
pub(crate) fn set_address(
    skb: Skb,
    packet: &Packet,
    side: Side,
    address: &Address6,
    checksum: Option<(u32, u64)>,
) -> Result<(), Failed> {
    let (old, _) = side.of(packet);
    if packet.ipv4 {
        set4(skb, packet, side, (old, address), checksum)
    } else {
        set6(skb, packet, side, (old, address), checksum)
    }
}

#[inline(always)]
fn set4(
    skb: Skb,
    packet: &Packet,
    side: Side,
    ([_, _, _, old], [_, _, _, new]): (&Address6, &Address6),
    checksum: Option<(u32, u64)>,
) -> Result<(), Failed> {
    if old == new {
        return Ok(());
    }
    if let Some((checksum, flags)) = checksum {
        let flags = flags | u64::from(BPF_F_PSEUDO_HDR) | 4;
        // SAFETY: the context is valid, as in all calls below; the helper checks the offset.
        done(unsafe { bpf_l4_csum_replace(skb.0, checksum, (*old).into(), (*new).into(), flags) })?;
    }
    let header = packet.network + at::CHECKSUM4;
    // SAFETY: as above.
    done(unsafe { bpf_l3_csum_replace(skb.0, header, (*old).into(), (*new).into(), 4) })?;
    store(skb, side.address(packet), new, 0)
}

/// A header of IPv6 has no checksum that takes up the change, so the sum over the whole packet, where a device gave
/// one, is kept right by `BPF_F_RECOMPUTE_CSUM`: it takes back what `BPF_F_PSEUDO_HDR` does to it for IPv4.
#[inline(always)]
fn set6(
    skb: Skb,
    packet: &Packet,
    side: Side,
    (old, new): (&Address6, &Address6),
    checksum: Option<(u32, u64)>,
) -> Result<(), Failed> {
    if proxy_abi::same(old, new) {
        return Ok(());
    }
    if let Some((checksum, flags)) = checksum {
        let flags = flags | u64::from(BPF_F_PSEUDO_HDR);
        // SAFETY: as above.
        done(unsafe { bpf_l4_csum_replace(skb.0, checksum, 0, difference(old, new)?, flags) })?;
    }
    store(skb, side.address(packet), new, BPF_F_RECOMPUTE_CSUM.into())
}

/// What the sum over a packet changes by if one address takes the place of another.
#[inline(always)]
pub(crate) fn difference(old: &Address6, new: &Address6) -> Result<u64, Failed> {
    let size = bytes::<Address6>();
    // SAFETY: both have so many bytes, and the helper only reads them.
    let difference = unsafe { bpf_csum_diff(old.as_ptr().cast_mut(), size, new.as_ptr().cast_mut(), size, 0) };
    u64::try_from(difference).or(Err(Failed))
}

/// The size of a value, as helpers take it.
#[expect(clippy::cast_possible_truncation, reason = "values are small")]
pub(crate) const fn bytes<T>() -> u32 {
    size_of::<T>() as u32
}

#[inline(always)]
pub(crate) fn store<T>(skb: Skb, at: u32, value: &T, flags: u64) -> Result<(), Failed> {
    let (from, length) = (core::ptr::from_ref(value).cast(), bytes::<T>());
    // SAFETY: as above; so many bytes are there.
    done(unsafe { bpf_skb_store_bytes(skb.0, at, from, length, flags) })
}
