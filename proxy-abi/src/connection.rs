//! `CONNECTIONS` and `TRANSLATIONS`: what the packet programs remember of a flow.
//!
//! A flow has one element of `CONNECTIONS`, under the ends of its client's packets as they come in. `TRANSLATIONS` only
//! lead back to it: from the ends between client and endpoint, and from those between this node and the endpoint if the
//! node's address stands for the client. They hold nothing that cannot be made again from the connection.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::packet::{Ends, Packet, protocol};
use crate::{Address6, BackendRef, Port, capacity, same};

/// Value of `CONNECTIONS`: 56 bytes, no padding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Connection {
    /// The endpoint.
    pub endpoint: Address6,
    /// The address of this node that stands for the client; 0 without.
    pub source: Address6,
    /// The endpoint's port.
    pub endpoint_port: Port,
    /// The port that stands for the client's: another one only if two of the client's flows to one endpoint would
    /// else be one.
    pub client_port: Port,
    /// The port of this node that stands for the client's; 0 without.
    pub source_port: Port,
    /// See [`State`].
    pub state: u8,
    /// See [`Connection::SOURCE_NAT`].
    pub flags: u8,
    /// The backend's reference, raw ([`BackendRef`]).
    pub reference: u32,
    /// The directory entry that leads to the endpoint.
    pub service: u32,
    /// When its last packet came, in seconds of the monotonic clock.
    pub seen: u32,
    /// When its first packet came.
    pub begun: u32,
}

/// The first and the last of the ports of this node that stand for clients' ports: neither sockets of this node nor
/// node ports have them by default.
pub const SOURCE_PORTS: (Port, Port) = (1024, 29_999);

/// So many seconds a connection of TCP that opens stays without a packet: Linux sends a SYN six times in 63 s, and each
/// of them counts as one.
pub const OPENING: u32 = 60;

/// So many seconds after its last packet the daemon has removed one.
pub const STAYS_OPENING: u32 = OPENING + 1;

impl Connection {
    /// A flag: an address of this node stands for the client.
    pub const SOURCE_NAT: u8 = 1;
    /// A flag: it is none of ours, and its packets pass. Its first packet was an answer, so whoever sends them did not
    /// open it.
    pub const FOREIGN: u8 = 2;

    /// The backend's reference.
    #[inline(always)]
    #[must_use]
    pub const fn reference(&self) -> BackendRef {
        BackendRef(self.reference)
    }

    /// The ends of the client's packets between the two hooks: its destination is the endpoint already.
    #[inline(always)]
    #[must_use]
    pub const fn inner(&self, client: &Ends) -> Ends {
        let Ends { from, protocol, .. } = *client;
        Ends {
            from,
            to: self.endpoint,
            from_port: self.client_port,
            to_port: self.endpoint_port,
            protocol,
            padding: [0; 3],
        }
    }

    /// The ends of the packets to the endpoint that this node sends in the client's place.
    #[inline(always)]
    #[must_use]
    pub const fn of_node(&self, protocol: u8) -> Ends {
        let (from, to) = (self.source, self.endpoint);
        let (from_port, to_port) = (self.source_port, self.endpoint_port);
        Ends { from, to, from_port, to_port, protocol, padding: [0; 3] }
    }
}

impl Connection {
    /// What leads back from the endpoint's packets to the client's. `key` is that of [`Connection::inner`].
    #[inline(always)]
    #[must_use]
    pub const fn leading_back(&self, client: &Ends, key: &Key) -> Translation {
        let mut flags = if key.reversed { 0 } else { Translation::CLIENT_FIRST };
        if self.flags & Self::SOURCE_NAT != 0 {
            flags |= Translation::SOURCE_NAT;
        }
        let (address, port, client_port) = (client.to, client.to_port, client.from_port);
        Translation { address, port, client_port, seen: self.seen, flags, padding: 0 }
    }

    /// What leads from the endpoint's answers to the node back to the client. `key` is that of
    /// [`Connection::of_node`].
    #[inline(always)]
    #[must_use]
    pub const fn for_client(&self, client: &Ends, key: &Key) -> Translation {
        let first = if key.reversed { 0 } else { Translation::CLIENT_FIRST };
        Translation {
            address: client.from,
            port: self.client_port,
            client_port: self.source_port,
            seen: self.seen,
            flags: first | Translation::OF_NODE,
            padding: 0,
        }
    }
}

/// Value of `TRANSLATIONS`: 32 bytes, no padding. Its key says which of the two it is: see [`Key`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Translation {
    /// Between client and endpoint: what the client dialled. Between node and endpoint: the client.
    pub address: Address6,
    /// The port that goes with it.
    pub port: Port,
    /// Between client and endpoint: the client's own port. Between node and endpoint: the port that stands for it.
    pub client_port: Port,
    /// When an answer came last, in seconds of the monotonic clock; between node and endpoint also when the client sent
    /// last.
    pub seen: u32,
    /// See the constants.
    pub flags: u32,
    /// Always 0.
    pub padding: u32,
}

impl Translation {
    /// A flag: it is between this node and the endpoint.
    pub const OF_NODE: u32 = 1;
    /// A flag: the client, or the node, is the first end of the key.
    pub const CLIENT_FIRST: u32 = 2;
    /// A flag: an address of this node stands for the client.
    pub const SOURCE_NAT: u32 = 4;
    /// A flag: the endpoint has answered.
    pub const ANSWERED: u32 = 8;
    /// A flag, between this node and the endpoint: the kernel's own tracking has given this port to a flow, whose
    /// packets pass. It leads to no client.
    pub const TAKEN: u32 = 16;

    /// A flag: its flow has been closed, so another one may have its ports if others are short.
    pub const ENDED: u32 = 32;

    /// That of an address and a port with which the kernel stands for a client of its own.
    #[must_use]
    pub const fn taken(port: Port, seen: u32) -> Self {
        let flags = Self::OF_NODE | Self::TAKEN;
        Self { address: [0; 4], port: 0, client_port: port, seen, flags, padding: 0 }
    }

    /// Whether it is between this node and the endpoint, and leads to a client.
    #[inline(always)]
    #[must_use]
    pub const fn stands_for_client(&self) -> bool {
        self.flags & (Self::OF_NODE | Self::TAKEN) == Self::OF_NODE
    }

    /// Whether a packet with this key comes from the client, or from the node in its place.
    #[inline(always)]
    #[must_use]
    pub const fn is_from_client(&self, key: &Key) -> bool {
        (self.flags & Self::CLIENT_FIRST != 0) != key.reversed
    }

    /// The ends of the client's packets as they come in; of a translation between client and endpoint.
    #[inline(always)]
    #[must_use]
    pub const fn dialled(&self, client: Address6, protocol: u8) -> Ends {
        Ends {
            from: client,
            to: self.address,
            from_port: self.client_port,
            to_port: self.port,
            protocol,
            padding: [0; 3],
        }
    }

    /// Whether both lead to the same flow.
    #[inline(always)]
    #[must_use]
    pub const fn leads_as(&self, other: &Self) -> bool {
        same(&self.address, &other.address) && self.port == other.port && self.client_port == other.client_port
    }
}

/// The key of a translation: the ends in an order that does not depend on the direction of a packet, so that one
/// look-up serves both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// As the table has it.
    pub ends: Ends,
    /// The packet goes from the second end to the first.
    pub reversed: bool,
}

impl Key {
    /// The key of a packet.
    #[inline(always)]
    #[must_use]
    pub const fn of(ends: &Ends) -> Self {
        let reversed = is_greater(&ends.from, ends.from_port, &ends.to, ends.to_port);
        Self { ends: if reversed { ends.reversed() } else { *ends }, reversed }
    }

    /// Its index in `OPENED`, which other keys may have too.
    #[inline(always)]
    #[must_use]
    pub const fn opened(&self) -> u32 {
        let ([a, b, c, d], [e, f, g, h]) = (self.ends.from, self.ends.to);
        let ports = (self.ends.from_port as u32) << 16 | self.ends.to_port as u32;
        let (addresses, hosts) = ((a ^ e) as u64 ^ (b ^ f) as u64 ^ (c ^ g) as u64, (d as u64) << 32 | h as u64);
        let mixed = (hosts ^ addresses ^ (ports as u64) << 16).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        #[expect(clippy::cast_possible_truncation, reason = "it is below the number of elements")]
        let index = (mixed >> (u64::BITS - capacity::OPENED.ilog2())) as u32;
        index
    }
}

/// Whether one end comes after another, in any order that is the same on all processors of a host.
#[inline(always)]
const fn is_greater(left: &Address6, left_port: Port, right: &Address6, right_port: Port) -> bool {
    let ([a, b, c, d], [e, f, g, h]) = (*left, *right);
    if !same(left, right) {
        return if a != e {
            a > e
        } else if b != f {
            b > f
        } else if c != g {
            c > g
        } else {
            d > h
        };
    }
    left_port > right_port
}

/// How far a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum State {
    /// Its client has sent its first packet, and nothing since.
    Opening = 0,
    /// Packets go both ways, or the client has sent more than one.
    Open = 1,
    /// The client has closed its direction.
    ClientClosed = 2,
    /// The endpoint has closed its direction.
    EndpointClosed = 3,
    /// Both have, or one has reset it.
    Closed = 4,
}

impl State {
    /// The state of this number.
    #[inline(always)]
    #[must_use]
    pub const fn of(number: u8) -> Self {
        match number {
            0 => Self::Opening,
            1 => Self::Open,
            2 => Self::ClientClosed,
            3 => Self::EndpointClosed,
            _ => Self::Closed,
        }
    }

    /// The state after a packet of the client, or else of the endpoint.
    #[inline(always)]
    #[must_use]
    pub const fn after(self, from_client: bool, packet: &Packet) -> Self {
        if !protocol::connects(packet.ends.protocol) {
            return Self::Open;
        }
        if packet.flags & Packet::RST != 0 {
            return Self::Closed;
        }
        if packet.flags & Packet::FIN != 0 {
            return match (self, from_client) {
                (Self::EndpointClosed | Self::Closed, true) | (Self::ClientClosed | Self::Closed, false) => {
                    Self::Closed
                }
                (_, true) => Self::ClientClosed,
                (_, false) => Self::EndpointClosed,
            };
        }
        match self {
            Self::Opening if from_client && !packet.opens() => Self::Open,
            Self::Opening | Self::Open | Self::ClientClosed | Self::EndpointClosed | Self::Closed => self,
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;
    use crate::mapped;

    fn ends(from: u8, from_port: u16, to: u8, to_port: u16) -> Ends {
        let address = |last| mapped(u32::from_ne_bytes([10, 0, 0, last]));
        let (from, to, protocol) = (address(from), address(to), protocol::TCP);
        Ends { from, to, from_port: from_port.to_be(), to_port: to_port.to_be(), protocol, padding: [0; 3] }
    }

    fn packet(flags: u8) -> Packet {
        Packet { ends: ends(1, 40_000, 9, 80), flags, ..Packet::default() }
    }

    #[test]
    fn both_directions_have_one_key() {
        for (from, to) in [((1, 40_000), (2, 80)), ((2, 80), (1, 40_000)), ((1, 80), (1, 81)), ((1, 7), (1, 7))] {
            let there = ends(from.0, from.1, to.0, to.1);
            let (key, answer) = (Key::of(&there), Key::of(&there.reversed()));
            assert_eq!(key.ends, answer.ends);
            assert!(key.reversed != answer.reversed || from == to);
        }
    }

    #[test]
    fn keys_are_spread_evenly_over_what_tells_them() {
        let of_one_client = |number| ends(1, 1024 + number, 9, 80);
        let of_many_endpoints = |number: u16| {
            let [_, last] = number.to_be_bytes();
            ends(last, 40_000, 9, number)
        };
        for ends_of in [of_one_client, of_many_endpoints] {
            let mut numbers: Vec<u32> = (0..4096).map(|number| Key::of(&ends_of(number)).opened()).collect();
            numbers.sort_unstable();
            numbers.dedup();
            assert!(
                numbers.len() > 3400 && numbers.iter().all(|number| *number < capacity::OPENED),
                "{}",
                numbers.len()
            );
        }
    }

    #[test]
    fn a_connection_knows_the_ends_of_all_its_packets() {
        let client = ends(1, 40_000, 9, 80);
        let endpoint = ends(0, 0, 2, 8080);
        let mut connection = Connection {
            endpoint: endpoint.to,
            endpoint_port: endpoint.to_port,
            client_port: client.from_port,
            ..Connection::default()
        };
        assert_eq!(connection.inner(&client), ends(1, 40_000, 2, 8080));
        connection.source = ends(0, 0, 5, 0).to;
        connection.source_port = 50_000_u16.to_be();
        assert_eq!(connection.of_node(protocol::TCP), ends(5, 50_000, 2, 8080));
    }

    #[test]
    fn a_connection_of_tcp_opens_and_closes_as_its_packets_say() {
        const SYN: u8 = Packet::SYN;
        const ACK: u8 = Packet::ACK;
        const FIN: u8 = Packet::FIN | Packet::ACK;
        const RST: u8 = Packet::RST;
        let check = |packets: &[(bool, u8)], wanted| {
            let state = packets.iter().fold(State::Opening, |state, (client, flags)| {
                let next = state.after(*client, &packet(*flags));
                assert_eq!(State::of(next as u8), next);
                next
            });
            assert_eq!(state, wanted, "{packets:?}");
        };
        check(&[(true, SYN)], State::Opening);
        check(&[(true, SYN), (true, SYN), (false, SYN | ACK)], State::Opening);
        check(&[(true, SYN), (false, SYN | ACK), (true, ACK)], State::Open);
        check(&[(true, ACK), (true, FIN)], State::ClientClosed);
        check(&[(true, ACK), (true, FIN), (true, FIN), (false, ACK)], State::ClientClosed);
        check(&[(true, ACK), (false, FIN), (true, ACK)], State::EndpointClosed);
        check(&[(true, ACK), (false, FIN), (true, FIN)], State::Closed);
        check(&[(true, ACK), (true, FIN), (false, FIN), (true, ACK)], State::Closed);
        check(&[(true, SYN), (false, RST)], State::Closed);
        check(&[(true, ACK), (true, RST), (true, ACK)], State::Closed);
    }

    #[test]
    fn a_connection_of_sctp_opens_and_is_closed_at_once() {
        let chunk = |flags| {
            let mut packet = packet(flags);
            packet.ends.protocol = protocol::SCTP;
            packet
        };
        let (init, data, abort) = (chunk(Packet::SYN), chunk(Packet::ACK), chunk(Packet::RST));
        assert!(init.opens() && !data.opens());
        assert_eq!(State::Opening.after(true, &init), State::Opening);
        assert_eq!(State::Opening.after(false, &chunk(Packet::SYN | Packet::ACK)), State::Opening);
        assert_eq!(State::Opening.after(true, &data), State::Open);
        for from_client in [true, false] {
            assert_eq!(State::Open.after(from_client, &abort), State::Closed);
        }
        assert_eq!(State::Closed.after(true, &data), State::Closed);
    }

    #[test]
    fn other_protocols_are_open_after_the_second_packet() {
        let mut datagram = packet(Packet::FIN | Packet::RST);
        datagram.ends.protocol = protocol::UDP;
        assert_eq!(State::Opening.after(true, &datagram), State::Open);
    }
}
