//! Changes an address and a port of a packet, with all checksums.

use core::mem::size_of;

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM};
use aya_ebpf::helpers::{bpf_l4_csum_replace, bpf_skb_store_bytes};
use proxy_abi::checksum::{self, difference};
use proxy_abi::packet::{Packet, protocol};
use proxy_abi::{Address4, Address6, Port, same};

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
    pub(crate) const END4: u32 = 20;
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

/// The ports of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ports {
    pub(crate) from: Port,
    pub(crate) to: Port,
}

impl Ports {
    #[inline(always)]
    pub(crate) fn of(packet: &Packet) -> Self {
        Self { from: packet.ends.from_port, to: packet.ends.to_port }
    }

    /// As they lie in a packet.
    #[inline(always)]
    pub(crate) fn word(self) -> u32 {
        let ([a, b], [c, d]) = (self.from.to_ne_bytes(), self.to.to_ne_bytes());
        u32::from_ne_bytes([a, b, c, d])
    }
}

/// Gives a packet other ports, and one end of it another address.
#[inline(always)]
pub(crate) fn set(skb: Skb, packet: &Packet, side: Side, address: &Address6, ports: Ports) -> Result<(), Failed> {
    if packet.ends.protocol == protocol::TCP {
        return set_tcp(skb, packet, side, address, ports);
    }
    let checksum = checksum(packet);
    if ports == Ports::of(packet) {
        return set_address(skb, packet, side, address, checksum);
    }
    if packet.ends.protocol == protocol::SCTP {
        // Its checksum knows no addresses.
        let set = sctp::set_ports(skb, packet, ports);
        return if set { set_address(skb, packet, side, address, checksum) } else { Err(Failed) };
    }
    if !lacks_checksum(skb, packet)? {
        return set_all(skb, packet, side, address, ports, checksum);
    }
    store(skb, packet.transport, &ports.word(), BPF_F_RECOMPUTE_CSUM.into())?;
    set_address(skb, packet, side, address, checksum)
}

/// The same for a packet of TCP.
#[inline(always)]
pub(crate) fn set_tcp(skb: Skb, packet: &Packet, side: Side, address: &Address6, ports: Ports) -> Result<(), Failed> {
    set_all(skb, packet, side, address, ports, Some((packet.transport + at::TCP_CHECKSUM, 0)))
}

/// The same for a packet whose checksum takes up what changes.
#[inline(always)]
fn set_all(
    skb: Skb,
    packet: &Packet,
    side: Side,
    address: &Address6,
    ports: Ports,
    checksum: Option<(u32, u64)>,
) -> Result<(), Failed> {
    if let Some((checksum, flags)) = checksum
        && ports != Ports::of(packet)
    {
        let (old, new) = (Ports::of(packet).word(), ports.word());
        // SAFETY: the context is valid, as in all calls below; the helper checks the offset.
        done(unsafe { bpf_l4_csum_replace(skb.0, checksum, old.into(), new.into(), flags | 4) })?;
    }
    // Without options one call writes addresses and ports.
    if packet.ipv4 && packet.transport == packet.network + at::END4 {
        let [sum, a, b, c, d] = changed4(skb, packet, side, address, checksum)?;
        return store(skb, packet.network + at::CHECKSUM4, &[sum, a, b, c, d, ports.from, ports.to], 0);
    }
    store(skb, packet.transport, &ports.word(), 0)?;
    set_address(skb, packet, side, address, checksum)
}

/// Whether nothing in a packet of UDP takes up a change of its ports, which the sum over the packet, where a device
/// gave one, then has to.
#[inline(always)]
fn lacks_checksum(skb: Skb, packet: &Packet) -> Result<bool, Failed> {
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
    if same(old, address) {
        return Ok(());
    }
    if packet.ipv4 {
        let header = changed4(skb, packet, side, address, checksum)?;
        return store(skb, packet.network + at::CHECKSUM4, &header, 0);
    }
    if let Some((checksum, flags)) = checksum {
        let flags = flags | u64::from(BPF_F_PSEUDO_HDR);
        // SAFETY: as above.
        done(unsafe { bpf_l4_csum_replace(skb.0, checksum, 0, difference(old, address).into(), flags) })?;
    }
    // A header of IPv6 has no checksum that takes up the change, so the sum over the whole packet, where a device gave
    // one, is kept right by the flag: it takes back what `BPF_F_PSEUDO_HDR` does to it for IPv4.
    store(skb, side.address(packet), address, BPF_F_RECOMPUTE_CSUM.into())
}

/// The last fields of a header of IPv4, its checksum and both addresses, with another one. In halves, as they begin
/// with one. The checksum of the protocol is changed at once.
#[inline(always)]
fn changed4(
    skb: Skb,
    packet: &Packet,
    side: Side,
    [_, _, _, new]: &Address6,
    checksum: Option<(u32, u64)>,
) -> Result<[u16; 5], Failed> {
    let (([_, _, _, old], _), new) = (side.of(packet), *new);
    if let Some((checksum, flags)) = checksum {
        let flags = flags | u64::from(BPF_F_PSEUDO_HDR) | 4;
        // SAFETY: as above.
        done(unsafe { bpf_l4_csum_replace(skb.0, checksum, (*old).into(), new.into(), flags) })?;
    }
    let ([_, _, _, from], [_, _, _, to]) = (packet.ends.from, packet.ends.to);
    let (from, to) = match side {
        Side::Source => (new, to),
        Side::Destination => (from, new),
    };
    let ([a, b], [c, d]) = (halves(from), halves(to));
    Ok([checksum::changed(packet.sum, *old, new), a, b, c, d])
}

/// The two halves of an address, as they lie in a packet.
#[inline(always)]
fn halves(address: Address4) -> [u16; 2] {
    let [a, b, c, d] = address.to_ne_bytes();
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
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
