//! What a packet program reads of a packet: who sends to whom, and where its headers are.
//!
//! Generic over [`Bytes`], so that programs, tests and fuzzers run the same code. What is not read in full is left
//! alone: nothing is guessed.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::affinity::mixed;
use crate::{Address6, Port, mapped};

/// Protocol numbers in an IP header.
pub mod protocol {
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// ICMP of IPv4.
    pub const ICMP: u8 = 1;
    /// ICMP of IPv6.
    pub const ICMPV6: u8 = 58;

    /// It has connections: the first packet of one says that it is, and a connection stays with its endpoint.
    #[inline(always)]
    #[must_use]
    pub const fn connects(protocol: u8) -> bool {
        protocol == TCP || protocol == SCTP
    }

    /// The length of its shortest header; that of SCTP with one chunk.
    #[inline(always)]
    #[must_use]
    pub const fn header(protocol: u8) -> u32 {
        match protocol {
            TCP => 20,
            SCTP => 16,
            _ => 8,
        }
    }
}

/// The bytes of a packet. Numbers are as they lie in it; `None` behind its end.
///
/// Behind options and extensions a place is known only as the packet is read. The kernel's verifier takes a check of
/// such a place badly, so that programs ask for it in another way.
pub trait Bytes {
    /// They may end behind the ports, as where a message quotes the beginning of a packet.
    const QUOTED: bool = false;

    /// One byte at a fixed place.
    fn byte(&self, at: u32) -> Option<u8>;
    /// Two bytes at a fixed place.
    fn two(&self, at: u32) -> Option<u16>;
    /// Four bytes at a fixed place.
    fn four(&self, at: u32) -> Option<u32>;
    /// One byte at any place.
    fn any_byte(&self, at: u32) -> Option<u8>;
    /// Two bytes at any place.
    fn any_two(&self, at: u32) -> Option<u16>;
    /// Four bytes at any place.
    fn any_four(&self, at: u32) -> Option<u32>;
}

/// Both ends of a packet: 40 bytes, no padding.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, IntoBytes, FromBytes, Immutable, KnownLayout,
)]
#[repr(C, align(8))]
pub struct Ends {
    /// Where it comes from; an IPv4 address is IPv4-mapped.
    pub from: Address6,
    /// Where it is sent to.
    pub to: Address6,
    /// Its source port.
    pub from_port: Port,
    /// Its destination port.
    pub to_port: Port,
    /// The number of its protocol.
    pub protocol: u8,
    /// Always 0.
    pub padding: [u8; 3],
}

impl Ends {
    /// Those of its answer.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self { from: self.to, to: self.from, from_port: self.to_port, to_port: self.from_port, ..*self }
    }

    /// A number that is the same for all packets of a flow, and as even as a random one over many flows.
    #[inline(always)]
    #[must_use]
    pub const fn digest(&self, seed: u32) -> u32 {
        let ([a, b, c, d], [e, f, g, h]) = (self.from, self.to);
        let ports = (self.from_port as u64) << 32 | (self.to_port as u64) << 8 | self.protocol as u64;
        let mut digest = mixed((a as u64) << 32 | b as u64 ^ seed as u64);
        digest = mixed(digest ^ ((c as u64) << 32 | d as u64));
        digest = mixed(digest ^ ((e as u64) << 32 | f as u64));
        digest = mixed(digest ^ ((g as u64) << 32 | h as u64));
        (mixed(digest ^ ports) >> 32) as u32
    }
}

/// What was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// A packet with ports.
    Packet(Packet),
    /// A fragment behind the first one, which has no ports. Its ports are those of the first with the same
    /// identification, source, destination and protocol.
    Fragment(Packet),
    /// A message of ICMP in one piece, in the version of its family. It has no ports.
    Message(Packet),
    /// Neither: another protocol, or it ends too early or says what cannot be.
    Other,
}

/// A packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// Who sends to whom; the ports of a fragment are 0.
    pub ends: Ends,
    /// Where its IP header begins.
    pub network: u32,
    /// Where the header of its protocol begins.
    pub transport: u32,
    /// The flags of TCP; for SCTP those that mean what its first chunk does; else 0.
    pub flags: u8,
    /// It is IPv4.
    pub ipv4: bool,
    /// How long its header says it is: from that header on in IPv4, from behind it in IPv6.
    pub length: u16,
    /// The checksum of its header, as it lies there; 0 in IPv6.
    pub sum: u16,
    /// The identification of its fragments, if it is one, with a bit above it that says so.
    pub fragment: u64,
}

impl Packet {
    /// A flag of TCP.
    pub const FIN: u8 = 1;
    /// A flag of TCP.
    pub const SYN: u8 = 2;
    /// A flag of TCP.
    pub const RST: u8 = 4;
    /// A flag of TCP.
    pub const ACK: u8 = 16;
    /// In [`Packet::fragment`]: it is one.
    pub const FRAGMENT: u64 = 1 << 32;

    /// It opens a connection.
    #[inline(always)]
    #[must_use]
    pub const fn opens(&self) -> bool {
        protocol::connects(self.ends.protocol)
            && self.flags & (Self::SYN | Self::ACK | Self::RST | Self::FIN) == Self::SYN
    }

    /// It is in the middle of a connection of TCP: it neither opens nor closes one.
    #[inline(always)]
    #[must_use]
    pub const fn goes_on(&self) -> bool {
        self.ends.protocol == protocol::TCP && self.flags & (Self::SYN | Self::FIN | Self::RST) == 0
    }

    /// Where it ends by its header. A device may hand over more, and the kernel does for packets of more than 64 KiB,
    /// which tell the length 0.
    #[inline(always)]
    #[must_use]
    pub const fn end(&self) -> u32 {
        self.network + if self.ipv4 { 0 } else { 40 } + self.length as u32
    }

    /// Whether it has room for so many bytes of its protocol, and ends inside of the `length` bytes that there are. The
    /// kernel drops others.
    #[inline(always)]
    #[must_use]
    pub const fn is_whole(&self, header: u32, length: u32) -> bool {
        if self.length == 0 {
            return length > self.network + u16::MAX as u32;
        }
        let end = self.end();
        self.transport + header <= end && end <= length
    }

    /// It answers a packet that opens a connection of TCP.
    #[inline(always)]
    #[must_use]
    pub const fn answers(&self) -> bool {
        const BOTH: u8 = Packet::SYN | Packet::ACK;
        self.ends.protocol == protocol::TCP && self.flags & BOTH == BOTH
    }
}

/// More headers than these between that of IPv6 and that of the protocol are not read.
const EXTENSIONS: usize = 6;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;
/// In the header of IPv6 fragments.
const OFFSET6: u16 = 0xfff8;
/// In the header of IPv6 fragments: more follow.
const MORE6: u16 = 1;
/// Where the flags of TCP are in its header, behind another byte. SCTP has the type of its first chunk in that one.
const FLAGS: u32 = 12;

/// Types of the chunks of SCTP.
mod chunk {
    pub(super) const INIT: u8 = 1;
    pub(super) const INIT_ACK: u8 = 2;
    pub(super) const ABORT: u8 = 6;
    pub(super) const SHUTDOWN_COMPLETE: u8 = 14;
}

/// Reads the packet whose IP header begins at `network`.
#[inline(always)]
pub fn read<B: Bytes + ?Sized>(bytes: &B, network: u32) -> Read {
    // A check of one byte at the very start is none to the kernel's verifier.
    let Some(first) = bytes.four(network) else { return Read::Other };
    let [first, ..] = first.to_ne_bytes();
    let read = match first >> 4 {
        4 => read4(bytes, network, first & 0xf),
        6 => read6(bytes, network),
        _ => None,
    };
    match read {
        Some(read) => read,
        None => Read::Other,
    }
}

#[inline(always)]
fn read4<B: Bytes + ?Sized>(bytes: &B, network: u32, words: u8) -> Option<Read> {
    if words < 5 {
        return None;
    }
    let (from, to) = (bytes.four(network + 12)?, bytes.four(network + 16)?);
    let protocol = bytes.byte(network + 9)?;
    let place = u16::from_be(bytes.two(network + 6)?);
    let transport = network + u32::from(words) * 4;
    let ends = Ends { from: mapped(from), to: mapped(to), protocol, ..Ends::default() };
    let fragment = match place & (MORE_FRAGMENTS | FRAGMENT_OFFSET) {
        0 => 0,
        _ => Packet::FRAGMENT | u64::from(bytes.two(network + 4)?),
    };
    let (length, sum) = (u16::from_be(bytes.two(network + 2)?), bytes.two(network + 10)?);
    let packet = Packet { ends, network, transport, flags: 0, ipv4: true, length, sum, fragment };
    finish(bytes, packet, place & FRAGMENT_OFFSET != 0)
}

#[inline(always)]
fn read6<B: Bytes + ?Sized>(bytes: &B, network: u32) -> Option<Read> {
    let ends = Ends { from: address(bytes, network + 8)?, to: address(bytes, network + 24)?, ..Ends::default() };
    let length = u16::from_be(bytes.two(network + 4)?);
    let mut packet = Packet { ends, network, transport: network + 40, length, ..Packet::default() };
    let (mut next, mut later) = (bytes.byte(network + 6)?, false);
    for _ in 0..EXTENSIONS {
        let at = packet.transport;
        match next {
            HOP_BY_HOP | ROUTING | DESTINATION => packet.transport = at + (u32::from(bytes.any_byte(at + 1)?) + 1) * 8,
            AUTHENTICATION => packet.transport = at + (u32::from(bytes.any_byte(at + 1)?) + 2) * 4,
            FRAGMENT => {
                let place = u16::from_be(bytes.any_two(at + 2)?);
                // Some senders give the header to whole packets (RFC 6946).
                if place & (OFFSET6 | MORE6) != 0 {
                    packet.fragment = Packet::FRAGMENT | u64::from(bytes.any_four(at + 4)?);
                }
                packet.transport = at + 8;
                later = place & OFFSET6 != 0;
            }
            _ => break,
        }
        next = bytes.any_byte(at)?;
        // What follows the header in a later fragment is no header. Where more headers follow in the first one, only
        // that one tells the protocol, so none of them is read.
        if packet.fragment != 0 {
            break;
        }
    }
    packet.ends.protocol = next;
    finish(bytes, packet, later)
}

#[inline(always)]
fn address<B: Bytes + ?Sized>(bytes: &B, at: u32) -> Option<Address6> {
    Some([bytes.four(at)?, bytes.four(at + 4)?, bytes.four(at + 8)?, bytes.four(at + 12)?])
}

/// Reads the ports.
#[inline(always)]
fn finish<B: Bytes + ?Sized>(bytes: &B, mut packet: Packet, later: bool) -> Option<Read> {
    let protocol = packet.ends.protocol;
    if protocol == if packet.ipv4 { protocol::ICMP } else { protocol::ICMPV6 } {
        return if packet.fragment == 0 { Some(Read::Message(packet)) } else { None };
    }
    if protocol != protocol::TCP && protocol != protocol::UDP && protocol != protocol::SCTP {
        return None;
    }
    if later {
        return Some(Read::Fragment(packet));
    }
    let usual = packet.network + if packet.ipv4 { 20 } else { 40 };
    let (ports, flags) = if packet.transport == usual && packet.ipv4 {
        (bytes.four(packet.network + 20)?, bytes.two(packet.network + 20 + FLAGS))
    } else if packet.transport == usual {
        (bytes.four(packet.network + 40)?, bytes.two(packet.network + 40 + FLAGS))
    } else {
        (bytes.any_four(packet.transport)?, bytes.any_two(packet.transport + FLAGS))
    };
    let [a, b, c, d] = ports.to_ne_bytes();
    packet.ends.from_port = u16::from_ne_bytes([a, b]);
    packet.ends.to_port = u16::from_ne_bytes([c, d]);
    if protocol::connects(protocol) && !B::QUOTED {
        let [chunk, flags] = flags?.to_ne_bytes();
        packet.flags = if protocol == protocol::TCP { flags } else { flags_of(chunk) };
    }
    Some(Read::Packet(packet))
}

/// The flags that mean of TCP what the first chunk of a packet means of SCTP.
#[inline(always)]
const fn flags_of(chunk: u8) -> u8 {
    match chunk {
        chunk::INIT => Packet::SYN,
        chunk::INIT_ACK => Packet::SYN | Packet::ACK,
        chunk::ABORT | chunk::SHUTDOWN_COMPLETE => Packet::RST,
        _ => Packet::ACK,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    impl Bytes for [u8] {
        fn byte(&self, at: u32) -> Option<u8> {
            self.get(at as usize).copied()
        }

        fn two(&self, at: u32) -> Option<u16> {
            Some(u16::from_ne_bytes(*self.get(at as usize..)?.first_chunk()?))
        }

        fn four(&self, at: u32) -> Option<u32> {
            Some(u32::from_ne_bytes(*self.get(at as usize..)?.first_chunk()?))
        }

        fn any_byte(&self, at: u32) -> Option<u8> {
            self.byte(at)
        }

        fn any_two(&self, at: u32) -> Option<u16> {
            self.two(at)
        }

        fn any_four(&self, at: u32) -> Option<u32> {
            self.four(at)
        }
    }

    pub(crate) const TCP: [u8; 20] = [0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0];

    /// An IPv4 packet with options of so many words.
    pub(crate) fn v4(protocol: u8, options: u8, place: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::from([0x45 + options, 0, 0, 0, 0x12, 0x34]);
        packet.extend(place.to_be_bytes());
        packet.extend([64, protocol, 0, 0, 192, 0, 2, 1, 10, 96, 0, 1]);
        packet.resize(packet.len() + options as usize * 4, 1);
        packet.extend(payload);
        packet
    }

    /// An IPv6 packet with these headers before its protocol, each with its number.
    pub(crate) fn v6(extensions: &[(u8, &[u8])], protocol: u8, payload: &[u8]) -> Vec<u8> {
        let numbers = extensions.iter().map(|(number, _)| *number).chain([protocol]);
        let mut numbers = numbers.collect::<Vec<_>>().into_iter();
        let mut packet = Vec::from([0x60, 0, 0, 0, 0, 0, numbers.next().unwrap(), 64]);
        packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        for (_, header) in extensions {
            packet.push(numbers.next().unwrap());
            packet.extend(*header);
        }
        packet.extend(payload);
        packet
    }

    #[track_caller]
    fn packet(bytes: &[u8]) -> Packet {
        match read(bytes, 0) {
            Read::Packet(packet) => packet,
            other @ (Read::Fragment(_) | Read::Message(_) | Read::Other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn ports_are_found_behind_options_and_extensions() {
        let ports = |packet: Packet| (u16::from_be(packet.ends.from_port), u16::from_be(packet.ends.to_port));
        for options in 0..=10 {
            let found = packet(&v4(protocol::TCP, options, 0x4000, &TCP));
            assert_eq!((ports(found), found.transport), ((40_000, 80), 20 + u32::from(options) * 4));
            assert!(found.opens() && found.ipv4 && found.fragment == 0);
            assert_eq!(found.ends.to, mapped(u32::from_ne_bytes([10, 96, 0, 1])));
        }
        let long = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let short = [0; 7];
        let authentication = [4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for (extensions, transport) in [
            (&[][..], 40),
            (&[(HOP_BY_HOP, &short[..])][..], 48),
            (&[(HOP_BY_HOP, &long[..]), (ROUTING, &short), (DESTINATION, &short)], 72),
            (&[(AUTHENTICATION, &authentication[..])], 64),
        ] {
            let found = packet(&v6(extensions, protocol::UDP, &TCP));
            assert_eq!((ports(found), found.transport), ((40_000, 80), transport));
            assert_eq!((found.ends.protocol, found.flags, found.ipv4), (protocol::UDP, 0, false));
        }
        let many = [(DESTINATION, &short[..]); 7];
        assert_eq!(read(&v6(&many, protocol::TCP, &TCP)[..], 0), Read::Other);
    }

    #[test]
    fn only_the_first_fragment_has_ports() {
        let first = packet(&v4(protocol::UDP, 0, 0x2000, &TCP));
        assert_eq!(first.fragment, Packet::FRAGMENT | u64::from(0x1234_u16.to_be()));
        for place in [0x2001, 0x0001, 0x1fff] {
            let Read::Fragment(later) = read(&v4(protocol::UDP, 0, place, &TCP)[..], 0) else { panic!("{place:#x}") };
            assert_eq!(later, Packet { ends: Ends { from_port: 0, to_port: 0, ..first.ends }, ..first });
        }
        let place = |offset: u16| {
            let [high, low] = offset.to_be_bytes();
            [0, high, low, 0, 0, 0, 7]
        };
        let first = packet(&v6(&[(FRAGMENT, &place(1))], protocol::UDP, &TCP));
        assert_eq!(first.fragment, Packet::FRAGMENT | u64::from(7_u32.to_be()));
        let later = v6(&[(FRAGMENT, &place(8))], protocol::UDP, &TCP);
        assert!(matches!(read(&later[..], 0), Read::Fragment(later) if later.fragment == first.fragment));
        // What a later fragment begins with may look like another header.
        let later = v6(&[(FRAGMENT, &place(8))], DESTINATION, &TCP);
        assert_eq!(read(&later[..], 0), Read::Other);
        // The later ones would not tell that this one is UDP.
        let first = v6(&[(FRAGMENT, &place(1)), (DESTINATION, &[0; 7])], protocol::UDP, &TCP);
        assert_eq!(read(&first[..], 0), Read::Other);
        let whole = packet(&v6(&[(FRAGMENT, &place(0)), (DESTINATION, &[0; 7])], protocol::UDP, &TCP));
        assert_eq!((whole.fragment, whole.transport), (0, 56));
    }

    #[test]
    fn a_packet_of_sctp_has_the_flags_of_its_first_chunk() {
        let chunks = |kind| {
            let mut header = TCP;
            header[12] = kind;
            header
        };
        for (kind, flags) in
            [(1, Packet::SYN), (2, Packet::SYN | Packet::ACK), (6, Packet::RST), (14, Packet::RST), (0, Packet::ACK)]
        {
            for bytes in [v4(protocol::SCTP, 0, 0, &chunks(kind)), v4(protocol::SCTP, 3, 0, &chunks(kind))] {
                assert_eq!((packet(&bytes).flags, packet(&bytes).opens()), (flags, kind == 1));
            }
            assert_eq!(packet(&v6(&[], protocol::SCTP, &chunks(kind))).flags, flags);
        }
    }

    #[test]
    fn a_packet_ends_where_its_header_says() {
        for (mut bytes, at, before) in [(v4(protocol::TCP, 2, 0, &TCP), 2, 0), (v6(&[], protocol::TCP, &TCP), 4, 40)] {
            for told in 0..200_u16 {
                bytes[at..at + 2].copy_from_slice(&told.to_be_bytes());
                let (found, told) = (packet(&bytes), u32::from(told) + before);
                assert_eq!(found.end(), told);
                for length in [60, 66, 1500] {
                    let fits = told >= found.transport + 20 && told <= length;
                    assert_eq!(found.is_whole(20, length), fits, "{told} of {length}");
                }
                // More than the field can tell.
                assert_eq!(found.is_whole(20, 70_000), told == before || told >= found.transport + 20);
            }
        }
    }

    #[test]
    fn a_packet_that_ends_anywhere_is_read_in_full_or_not_at_all() {
        let short = [0; 7];
        for whole in [
            v4(protocol::TCP, 2, 0, &TCP),
            v4(protocol::SCTP, 0, 0, &TCP),
            v6(&[(HOP_BY_HOP, &short)], protocol::TCP, &TCP),
            v6(&[], protocol::UDP, &TCP),
        ] {
            let expected = packet(&whole);
            for length in 0..whole.len() {
                let found = read(&whole[..length], 0);
                assert!(found == Read::Other || found == Read::Packet(expected), "{length}: {found:?}");
                let needed = expected.transport + if protocol::connects(expected.ends.protocol) { 14 } else { 4 };
                assert_eq!(found != Read::Other, length >= needed as usize, "{length}");
            }
        }
    }

    #[test]
    fn what_is_no_packet_of_a_service_is_left_alone() {
        for other in [
            v4(protocol::ICMPV6, 0, 0, &TCP),
            v4(protocol::ICMP, 0, 0x2000, &TCP),
            v4(protocol::ICMP, 0, 1, &TCP),
            v6(&[], protocol::ICMP, &TCP),
            v6(&[], 59, &TCP),
            Vec::from([0x44; 60]),
            Vec::from([0; 60]),
            Vec::from([0x75; 60]),
        ] {
            assert_eq!(read(&other[..], 0), Read::Other);
        }
        assert!(!packet(&v4(protocol::UDP, 0, 0, &TCP)).opens());
    }

    #[test]
    fn a_message_is_read_in_its_family_behind_options_and_extensions() {
        for (bytes, transport) in [
            (v4(protocol::ICMP, 0, 0x4000, &TCP), 20),
            (v4(protocol::ICMP, 3, 0, &TCP), 32),
            (v6(&[], protocol::ICMPV6, &TCP), 40),
            (v6(&[(HOP_BY_HOP, &[0; 7])], protocol::ICMPV6, &TCP), 48),
        ] {
            let Read::Message(message) = read(&bytes[..], 0) else { panic!("{bytes:?}") };
            assert_eq!((message.transport, message.ends.from_port, message.fragment), (transport, 0, 0));
        }
    }

    #[test]
    fn an_answer_has_the_ends_of_its_question_the_other_way_round() {
        let ends = packet(&v4(protocol::TCP, 0, 0, &TCP)).ends;
        let answer = ends.reversed();
        assert_eq!((answer.from, answer.to_port, answer.protocol), (ends.to, ends.from_port, protocol::TCP));
        assert_eq!(answer.reversed(), ends);
    }
}
