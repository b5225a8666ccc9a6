//! Messages of ICMP that quote the beginning of the packet that they are about: errors, and redirects.
//!
//! Such a message belongs to the flow of the packet that it quotes, whoever sends it.

use crate::packet::{Bytes, Packet, Read, protocol, read};
use crate::same;

/// Length of the header of a message, before the quoted packet.
pub const HEADER: u32 = 8;
/// Where its checksum is in that header.
pub const CHECKSUM: u32 = 2;

/// Types of redirects.
const REDIRECT4: u8 = 5;
const REDIRECT6: u8 = 137;
/// Before the options of a redirect in IPv6: its header, the better next hop, and the destination.
const BEFORE_OPTIONS: u32 = HEADER + 16 + 16;
/// The option that quotes the packet, behind this many bytes. Linux has at most one before it: the link address.
const QUOTING: u8 = 4;
const OPTION_HEADER: u32 = 8;
const OPTIONS: u32 = 3;

/// The packet that a message is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quoted {
    /// As far as it is quoted. Its flags of TCP are not read.
    pub packet: Packet,
    /// Where the message ends.
    pub end: u32,
    /// The message is a redirect: it tells the packet's sender a better next hop. Else it is an error.
    pub redirects: bool,
}

impl Quoted {
    /// Where the checksum of its TCP or UDP is, if the quotation has it.
    #[inline(always)]
    #[must_use]
    pub const fn checksum(&self) -> Option<u32> {
        let at = match self.packet.ends.protocol {
            protocol::TCP => self.packet.transport + 16,
            protocol::UDP => self.packet.transport + 6,
            _ => return None,
        };
        if at + 2 <= self.end { Some(at) } else { None }
    }
}

/// Reads the packet that `message` quotes. `None` if the message quotes none, or less than the ports of one, or if that
/// packet was not sent by who gets the message.
#[inline(always)]
pub fn quoted<B: Bytes + ?Sized>(bytes: &B, message: &Packet) -> Option<Quoted> {
    let kind = bytes.any_byte(message.transport)?;
    let quotation = Quotation { bytes, end: message.end() };
    let redirects = kind == if message.ipv4 { REDIRECT4 } else { REDIRECT6 };
    let at = if redirects && !message.ipv4 {
        quoting_option(&quotation, message.transport + BEFORE_OPTIONS)? + OPTION_HEADER
    } else if redirects || is_error(kind, message.ipv4) {
        message.transport + HEADER
    } else {
        return None;
    };
    let Read::Packet(packet) = read(&quotation, at) else { return None };
    let fits = packet.ipv4 == message.ipv4 && same(&packet.ends.from, &message.ends.to);
    fits.then_some(Quoted { packet, end: quotation.end, redirects })
}

/// Whether messages of this type report an error: unreachable, too big, out of time, ill-formed.
#[inline(always)]
const fn is_error(kind: u8, ipv4: bool) -> bool {
    if ipv4 { matches!(kind, 3 | 11 | 12) } else { matches!(kind, 1..=4) }
}

/// Where the option that quotes a packet is among those that begin at `at`.
#[inline(always)]
fn quoting_option<B: Bytes + ?Sized>(bytes: &Quotation<'_, B>, mut at: u32) -> Option<u32> {
    for _ in 0..OPTIONS {
        // Its length is in units of eight bytes.
        let [kind, length] = bytes.any_two(at)?.to_ne_bytes();
        match (kind, length) {
            (QUOTING, _) => return Some(at),
            (_, 0) => return None,
            (_, length) => at += u32::from(length) * 8,
        }
    }
    None
}

/// The bytes of a packet up to its end, all of them at places that only it tells.
struct Quotation<'a, B: ?Sized> {
    bytes: &'a B,
    end: u32,
}

impl<B: Bytes + ?Sized> Bytes for Quotation<'_, B> {
    const QUOTED: bool = true;

    #[inline(always)]
    fn byte(&self, at: u32) -> Option<u8> {
        self.any_byte(at)
    }

    #[inline(always)]
    fn two(&self, at: u32) -> Option<u16> {
        self.any_two(at)
    }

    #[inline(always)]
    fn four(&self, at: u32) -> Option<u32> {
        self.any_four(at)
    }

    #[inline(always)]
    fn any_byte(&self, at: u32) -> Option<u8> {
        if at < self.end { self.bytes.any_byte(at) } else { None }
    }

    #[inline(always)]
    fn any_two(&self, at: u32) -> Option<u16> {
        if at + 2 <= self.end { self.bytes.any_two(at) } else { None }
    }

    #[inline(always)]
    fn any_four(&self, at: u32) -> Option<u32> {
        if at + 4 <= self.end { self.bytes.any_four(at) } else { None }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;
    use crate::packet::tests::{TCP, v4, v6};

    /// An error about `about`, sent to 10.96.0.1 or fd00::2.
    fn error(kind: u8, about: &[u8]) -> Vec<u8> {
        let ipv4 = about.first().is_some_and(|first| first >> 4 == 4);
        let message = [&[kind, 0, 0, 0, 0, 0, 0, 0], about].concat();
        let mut packet = if ipv4 { v4(protocol::ICMP, 0, 0, &message) } else { v6(&[], protocol::ICMPV6, &message) };
        let length = u16::try_from(packet.len()).unwrap();
        if ipv4 {
            packet[2..4].copy_from_slice(&length.to_be_bytes());
        } else {
            packet[4..6].copy_from_slice(&(length - 40).to_be_bytes());
        }
        packet
    }

    /// A packet whose source is where errors of `error` go.
    fn about(ipv4: bool, protocol: u8, extensions: &[(u8, &[u8])], payload: &[u8]) -> Vec<u8> {
        let mut packet = if ipv4 { v4(protocol, 0, 0, payload) } else { v6(extensions, protocol, payload) };
        if ipv4 {
            packet[12..16].copy_from_slice(&[10, 96, 0, 1]);
        } else {
            packet[23] = 2;
            packet[39] = 3;
        }
        packet
    }

    fn find(bytes: &[u8]) -> Option<Quoted> {
        let Read::Message(message) = read(bytes, 0) else { return None };
        quoted(bytes, &message)
    }

    #[test]
    fn errors_of_both_families_tell_the_packet_that_they_are_about() {
        for (ipv4, kinds) in [(true, &[3, 11, 12][..]), (false, &[1, 2, 3, 4])] {
            for kind in 0..=255 {
                for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
                    let found = find(&error(kind, &about(ipv4, protocol, &[], &TCP)));
                    let found = found.filter(|found| !found.redirects);
                    assert_eq!(found.is_some(), kinds.contains(&kind), "type {kind}");
                    let Some(Quoted { packet, .. }) = found else { continue };
                    let ports = (u16::from_be(packet.ends.from_port), u16::from_be(packet.ends.to_port));
                    assert_eq!((packet.ends.protocol, ports, packet.flags), (protocol, (40_000, 80), 0));
                }
            }
        }
    }

    #[test]
    fn redirects_of_both_families_tell_the_packet_that_they_are_about() {
        let found = find(&error(5, &about(true, protocol::UDP, &[], &TCP))).unwrap();
        assert!(found.redirects && found.packet.transport == 48);
        let address = [2, 1, 0, 0, 0, 0, 0, 0];
        let quoting = [4, 6, 0, 0, 0, 0, 0, 0];
        let packet = about(false, protocol::TCP, &[], &TCP);
        let check = |options: &[&[u8]], wanted: Option<u32>| {
            let found = find(&error(137, &[&[0; 32][..], &options.concat()].concat()));
            assert_eq!(found.map(|found| (found.packet.transport, found.redirects)), wanted.map(|at| (at, true)));
        };
        check(&[&quoting, &packet], Some(40 + 40 + 8 + 40));
        check(&[&address, &quoting, &packet], Some(40 + 40 + 16 + 40));
        check(&[&address, &[14, 2], &[0; 14], &quoting, &packet], Some(40 + 40 + 32 + 40));
        check(&[&address, &address, &address, &quoting, &packet], None);
        check(&[&[2, 0, 0, 0, 0, 0, 0, 0], &quoting, &packet], None);
        check(&[&address], None);
        check(&[], None);
        check(&[&quoting, &packet[..43]], None);
        check(&[&quoting, &packet[..44]], Some(128));
    }

    #[test]
    fn ports_are_found_behind_extensions_of_the_quoted_packet() {
        let fragment = [0, 0, 1, 0, 0, 0, 7];
        let found = find(&error(2, &about(false, protocol::UDP, &[(60, &[0; 7]), (44, &fragment)], &TCP))).unwrap();
        assert_eq!((found.packet.transport, found.packet.ends.to_port), (40 + 8 + 40 + 16, 80_u16.to_be()));
        let later = [0, 0, 8, 0, 0, 0, 7];
        assert_eq!(find(&error(2, &about(false, protocol::UDP, &[(44, &later)], &TCP))), None);
    }

    #[test]
    fn the_checksum_of_the_quoted_packet_may_be_missing() {
        for (protocol, at) in [(protocol::TCP, 16), (protocol::UDP, 6), (protocol::SCTP, 20)] {
            for length in 4..=20 {
                let found = find(&error(3, &about(true, protocol, &[], &TCP[..length]))).unwrap();
                let expected = (at + 2 <= length).then(|| 20 + 8 + 20 + u32::try_from(at).unwrap());
                assert_eq!(found.checksum(), expected, "{protocol} {length}");
            }
        }
    }

    #[test]
    fn nothing_is_read_behind_the_end_that_a_header_tells() {
        for ipv4 in [true, false] {
            let whole = error(3, &about(ipv4, protocol::TCP, &[], &TCP));
            let needed = whole.len() - TCP.len() + 4;
            for length in 0..whole.len() {
                assert_eq!(find(&whole[..length]).is_some(), length >= needed, "cut at {length}");
                let mut short = whole.clone();
                let (at, length) = if ipv4 { (2, length) } else { (4, length.saturating_sub(40)) };
                short[at..at + 2].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
                let end = if ipv4 { length } else { length + 40 };
                assert_eq!(find(&short).is_some(), end >= needed, "told to end at {end}");
            }
        }
    }

    #[test]
    fn errors_about_what_their_receiver_did_not_send_are_none() {
        for ipv4 in [true, false] {
            let mut other = about(ipv4, protocol::TCP, &[], &TCP);
            other[if ipv4 { 15 } else { 23 }] = 9;
            assert_eq!(find(&error(3, &other)), None);
        }
        // Garbage, a message about a message, and the other family's packet.
        assert_eq!(find(&error(3, &about(true, protocol::ICMP, &[], &TCP))), None);
        let mut mixed = error(3, &about(true, protocol::TCP, &[], &TCP));
        mixed[28] = 0x65;
        assert_eq!(find(&mixed), None);
        mixed[28] = 0x44;
        assert_eq!(find(&mixed), None);
    }
}
