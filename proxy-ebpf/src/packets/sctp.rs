//! Changes a port of an SCTP packet.
//!
//! Its checksum, CRC32c over the whole packet, covers the ports, and no helper of the kernel updates it: it is taken
//! along by its linearity ([`crc32c`]), so one that was wrong stays wrong. A checksum of 0 is one that the sender has
//! left to a device, as pods do; whoever computes it, does so after the last change here. One packet out of 2^32 has
//! this checksum for its own. With another port it is lost, and SCTP sends it again in another packet.
//!
//! In a first fragment the rest of the packet is not known, and neither is how much follows the ports: a change of a
//! port is refused there, and the packet dropped. SCTP does not send packets that need fragments.

use aya_ebpf::bindings::BPF_F_RECOMPUTE_CSUM;
use proxy_abi::packet::Packet;
use proxy_abi::{Port, crc32c};

use crate::rewrite::{Failed, Side, at, store};
use crate::skb::Skb;

/// Gives one end of an SCTP packet another port. It returns whether that went well. Not inlined: few packets need it.
#[inline(never)]
pub(crate) fn set_port(skb: Skb, packet: &Packet, side: Side, port: Port) -> bool {
    change(skb, packet, side, port).is_ok()
}

/// The sum over the whole packet, where a device gave one, takes up both changes by `BPF_F_RECOMPUTE_CSUM`.
#[inline(always)]
fn change(skb: Skb, packet: &Packet, side: Side, port: Port) -> Result<(), Failed> {
    if packet.fragment != 0 {
        return Err(Failed);
    }
    let (_, old) = side.of(packet);
    let [a, b] = (old ^ port).to_ne_bytes();
    let difference = u32::from_ne_bytes(match side {
        Side::Source => [a, b, 0, 0],
        Side::Destination => [0, 0, a, b],
    });
    let place = packet.transport + at::SCTP_CHECKSUM;
    let checksum = skb.four(place).ok_or(Failed)?;
    if checksum != 0 {
        let length = skb.end(packet).ok_or(Failed)? - packet.transport;
        store(skb, place, &crc32c::changed(checksum, difference, length), BPF_F_RECOMPUTE_CSUM.into())?;
    }
    store(skb, side.port(packet), &port, BPF_F_RECOMPUTE_CSUM.into())
}
