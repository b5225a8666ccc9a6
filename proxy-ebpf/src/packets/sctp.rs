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
use proxy_abi::crc32c;
use proxy_abi::packet::Packet;

use crate::rewrite::{Failed, Ports, at, store};
use crate::skb::Skb;

/// Gives an SCTP packet other ports. It returns whether that went well. Not inlined: few packets need it.
#[inline(never)]
pub(crate) fn set_ports(skb: Skb, packet: &Packet, ports: Ports) -> bool {
    change(skb, packet, ports).is_ok()
}

/// The sum over the whole packet, where a device gave one, takes up both changes by `BPF_F_RECOMPUTE_CSUM`.
#[inline(always)]
fn change(skb: Skb, packet: &Packet, ports: Ports) -> Result<(), Failed> {
    if packet.fragment != 0 {
        return Err(Failed);
    }
    let difference = Ports::of(packet).word() ^ ports.word();
    let place = packet.transport + at::SCTP_CHECKSUM;
    let checksum = skb.four(place).ok_or(Failed)?;
    if checksum != 0 {
        let length = packet.end() - packet.transport;
        store(skb, place, &crc32c::changed(checksum, difference, length), BPF_F_RECOMPUTE_CSUM.into())?;
    }
    store(skb, packet.transport, &ports.word(), BPF_F_RECOMPUTE_CSUM.into())
}
