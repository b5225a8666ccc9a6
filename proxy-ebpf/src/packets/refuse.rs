//! Refuses a packet: its sender gets "port unreachable" of ICMP, as from what it dialled, by the device it came from
//! (NE-4).
//!
//! The packet itself becomes the message: room is made between its Ethernet and IP headers, and it is cut to the length
//! of a quotation.

use core::hint::black_box;
use core::ptr::null_mut;

use aya_ebpf::bindings::BPF_F_RECOMPUTE_CSUM;
use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::{
    bpf_csum_diff, bpf_csum_update, bpf_l4_csum_replace, bpf_redirect, bpf_skb_adjust_room, bpf_skb_change_tail,
    bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use aya_ebpf::macros::btf_map;
use proxy_abi::packet::{Packet, protocol};
use proxy_abi::refusal::{self, Bucket, QUOTE};
use proxy_abi::{Count, checksum, icmp};

use crate::decisions::count;
use crate::ingress::{device, is_outside};
use crate::rewrite::{Failed, at, done, store};
use crate::sender::now;
use crate::skb::Skb;
use crate::{DROP, ETHERNET};

/// What pays for refusals on this processor.
#[btf_map]
static REFUSALS: PerCpuArray<Bucket, 1> = PerCpuArray::new();

/// A message as it lies in a packet.
#[repr(C)]
struct Message {
    /// Its IP header. That of IPv4 is in the second half.
    network: [u32; 10],
    icmp: [u32; icmp::HEADER as usize / 4],
    /// Six words more than are used: the kernel's verifier rounds less exactly, and that of older kernels takes the
    /// longer header of IPv6 to begin where that of IPv4 does.
    quote: [u32; QUOTE as usize / 4 + 6],
}

/// Type and code of "port unreachable".
const UNREACHABLE4: [u8; 2] = [3, 3];
const UNREACHABLE6: [u8; 2] = [1, 4];
/// Over so many routers a message goes.
const HOPS: u8 = 64;
/// Length of both headers of a message.
const FRONT4: u32 = 20 + icmp::HEADER;
const FRONT6: u32 = 40 + icmp::HEADER;

#[btf_map]
static MESSAGE: PerCpuArray<Message, 1> = PerCpuArray::new();

/// `PACKET_HOST` and `PACKET_OTHERHOST`.
const TO_HOST: u32 = 0;
const TO_OTHER: u32 = 3;

/// The verdict on a packet that is refused. Not inlined: it has a stack of its own.
#[inline(never)]
pub(crate) fn refuse<const NETWORK: u32>(skb: Skb, packet: &Packet) -> i32 {
    // Frames to all, or to another host that a switch has sent to this one too, get no message. A port of a bridge has
    // what is for the bridge as what is for another host: such devices are of pods. Without frames, all is for this
    // node.
    let addressee = skb.addressee();
    let is_for_node = NETWORK == 0 || addressee == TO_HOST || (addressee == TO_OTHER && !is_outside(device(skb)));
    if !is_for_node || !refusal::may_be_told(&packet.ends.from) {
        count(Count::MessageToNobody);
        return DROP;
    }
    if !is_paid() {
        count(Count::MessageHeldBack);
        return DROP;
    }
    match answer::<NETWORK>(skb, packet) {
        Ok(()) => {
            count(Count::MessageSent);
            back(skb)
        }
        Err(Failed) => {
            count(Count::MessageFailed);
            DROP
        }
    }
}

/// The verdict that sends a packet out of its device.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a verdict is a small number")]
fn back(skb: Skb) -> i32 {
    // SAFETY: the helper takes numbers.
    unsafe { bpf_redirect(skb.device(), 0) as i32 }
}

/// Takes one refusal of those that this processor may send.
#[inline(always)]
fn is_paid() -> bool {
    let Some(bucket) = REFUSALS.get_ptr_mut(0) else { return false };
    // SAFETY: an element of this processor's own.
    let Some(after) = (unsafe { *bucket }).take(now()) else { return false };
    // SAFETY: as above.
    unsafe { *bucket = after };
    true
}

/// Makes the message of the packet.
#[inline(always)]
fn answer<const NETWORK: u32>(skb: Skb, packet: &Packet) -> Result<(), Failed> {
    let message = MESSAGE.get_ptr_mut(0).ok_or(Failed)?;
    // SAFETY: an element of this processor's own, which no other program uses before this one ends.
    let message = unsafe { &mut *message };
    let header = header_length::<NETWORK>(packet)?;
    let length = quote::<NETWORK>(skb, packet, header, message)?;
    // SAFETY: the context is valid, as below. This ends a packet of several segments too.
    done(unsafe { bpf_skb_change_tail(skb.0, NETWORK + length, 0) })?;
    let (front, sum) = if packet.ipv4 {
        (FRONT4, header4(packet, length, message))
    } else {
        (FRONT6, header6(packet, length, message))
    };
    // SAFETY: as above.
    done(unsafe { bpf_skb_adjust_room(skb.0, front.cast_signed(), BPF_ADJ_ROOM_MAC, 0) })?;
    if NETWORK == ETHERNET {
        swap_stations(skb)?;
    }
    finish::<NETWORK>(skb, packet, (header, length), sum, message)
}

/// Length of all before the ports.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "it was compared")]
fn header_length<const NETWORK: u32>(packet: &Packet) -> Result<u32, Failed> {
    // Of 64 bits, as the kernel's verifier follows them best.
    let length = u64::from(packet.transport).wrapping_sub(NETWORK.into());
    if length > u64::from(QUOTE) { Err(Failed) } else { Ok(length as u32) }
}

/// Loads what is quoted, with zeroes up to the next multiple of four. How long it is.
#[inline(always)]
fn quote<const NETWORK: u32>(skb: Skb, packet: &Packet, header: u32, message: &mut Message) -> Result<u32, Failed> {
    let (at, before) = if packet.ipv4 { (2, 0) } else { (4, 40) };
    let length = before + u32::from(u16::from_be(skb.two(NETWORK + at).ok_or(Failed)?));
    let length = if length > QUOTE { QUOTE } else { length };
    if length < header + 8 || length < 28 {
        return Err(Failed);
    }
    // Says once more what was checked: the verifier of older kernels forgets the bounds of a copy.
    let length = (black_box(length - 1) & (QUOTE - 1)) + 1;
    let last = ((length - 1) / 4) as usize;
    *message.quote.get_mut(last).ok_or(Failed)? = 0;
    // SAFETY: there is room for so many bytes.
    done(unsafe { bpf_skb_load_bytes(skb.0.cast(), NETWORK, message.quote.as_mut_ptr().cast(), length) })?;
    Ok(length)
}

/// The checksum of the quoted packet's own protocol, as it stands there.
#[inline(always)]
fn own_checksum(skb: Skb, packet: &Packet) -> Option<Result<u16, Failed>> {
    let front = if packet.ipv4 { FRONT4 } else { FRONT6 };
    let at = match packet.ends.protocol {
        protocol::TCP => at::TCP_CHECKSUM,
        protocol::UDP => at::UDP_CHECKSUM,
        _ => return None,
    };
    Some(skb.two(packet.transport + front + at).ok_or(Failed))
}

/// Each of the two hosts gets the other's place in the Ethernet header.
#[inline(always)]
fn swap_stations(skb: Skb) -> Result<(), Failed> {
    let mut stations = [0_u16; 6];
    // SAFETY: the context is valid, and there is room for so many bytes.
    done(unsafe { bpf_skb_load_bytes(skb.0.cast(), 0, stations.as_mut_ptr().cast(), 12) })?;
    let [a, b, c, d, e, f] = stations;
    store(skb, 0, &[d, e, f, a, b, c], 0)
}

/// A word out of two halves, as they lie in a packet.
#[inline(always)]
fn word([a, b]: [u8; 2], second: u16) -> u32 {
    let [c, d] = second.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

/// The lower half.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
const fn half(number: u32) -> u16 {
    number as u16
}

/// Writes the header of IPv4. Gives the sum of what the checksum of the message covers beside itself.
#[inline(always)]
fn header4(packet: &Packet, length: u32, message: &mut Message) -> u64 {
    let ([_, _, _, client], [_, _, _, dialled]) = (packet.ends.from, packet.ends.to);
    // As the kernel does it: of the class of control traffic, and in one piece, so that it needs no identification.
    let first = word([0x45, 0xc0], half(FRONT4 + length).to_be());
    let second = word([0, 0], 0x4000_u16.to_be());
    let lifetime = [HOPS, protocol::ICMP];
    let sum =
        [first, second, word(lifetime, 0), dialled, client].into_iter().fold(0, |sum, word| sum + u64::from(word));
    let [.., a, b, c, d, e] = &mut message.network;
    (*a, *b, *c, *d, *e) = (first, second, word(lifetime, !checksum::half(sum)), dialled, client);
    0
}

/// The same of IPv6, where the checksum covers addresses, length and protocol.
#[inline(always)]
fn header6(packet: &Packet, length: u32, message: &mut Message) -> u64 {
    let ([e, f, g, h], [a, b, c, d]) = (packet.ends.from, packet.ends.to);
    let length = icmp::HEADER + length;
    let second = word(half(length).to_be_bytes(), u16::from_ne_bytes([protocol::ICMPV6, HOPS]));
    message.network = [word([0x60, 0], 0), second, a, b, c, d, e, f, g, h];
    let covered = [a, b, c, d, e, f, g, h, length.to_be(), u32::from(protocol::ICMPV6).to_be()];
    covered.into_iter().fold(0, |sum, word| sum + u64::from(word))
}

/// Writes message and quotation, with the checksum. `sum` is that of all else that it covers.
///
/// If the sender left its own checksum to a device (`CHECKSUM_PARTIAL`, as pods do), the last device on the way still
/// computes it, into the quotation. Then the sum over what it covers becomes the complement of what stands in its place
/// now, so that the message is right after that; and only if there is nothing to compute, the kernel follows the call
/// that replaces this part by the sum as it is. Programs cannot see which of both a packet is.
#[inline(always)]
fn finish<const NETWORK: u32>(
    skb: Skb,
    packet: &Packet,
    (header, length): (u32, u32),
    sum: u64,
    message: &mut Message,
) -> Result<(), Failed> {
    let kind = if packet.ipv4 { UNREACHABLE4 } else { UNREACHABLE6 };
    let sum = sum + u64::from(word(kind, 0));
    let all = sum_of(message, (length + 3) & !3)?;
    let (before, difference) = match own_checksum(skb, packet) {
        Some(own) => {
            let own = own?;
            let headers = sum_of(message, header)?;
            (headers + u64::from(!own), all + u64::from(!checksum::word(headers)) + u64::from(own))
        }
        None => (all, 0),
    };
    message.icmp = [word(kind, !checksum::half(sum + before)), 0];
    let (from, size): (*const u32, u32) = if packet.ipv4 {
        let [_, _, _, _, _, first, ..] = &message.network;
        (first, FRONT4 + length)
    } else {
        let [first, ..] = &message.network;
        (first, FRONT6 + length)
    };
    // SAFETY: the context is valid; header, message and quotation lie behind each other.
    done(unsafe { bpf_skb_store_bytes(skb.0, NETWORK, from.cast(), size, BPF_F_RECOMPUTE_CSUM.into()) })?;
    if difference != 0 {
        let checksum = NETWORK + size - length - icmp::HEADER + at::ICMP_CHECKSUM;
        let difference = checksum::word(difference);
        // SAFETY: as above.
        done(unsafe { bpf_l4_csum_replace(skb.0, checksum, 0, u64::from(difference), 0) })?;
        // Does nothing unless a device gave the sum over the whole packet, which has changed with the checksum.
        // SAFETY: as above.
        let _none = unsafe { bpf_csum_update(skb.0, !difference) };
    }
    Ok(())
}

/// The sum of so many bytes of the quotation, a multiple of four.
#[inline(always)]
fn sum_of(message: &mut Message, size: u32) -> Result<u64, Failed> {
    // SAFETY: the quotation has so many bytes.
    let sum = unsafe { bpf_csum_diff(null_mut(), 0, message.quote.as_mut_ptr(), size, 0) };
    u64::try_from(sum).or(Err(Failed))
}
