//! `FRONTENDS4`, `FRONTENDS6`: hash maps from what a client dials to the service that answers.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Address4, Address6, Port};

/// Key of `FRONTENDS4`: 8 bytes, no padding. Address 0 is every address of the node that accepts node ports;
/// a client that dials 0 reaches loopback ([`reached4`](crate::lookup::reached4)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FrontendKey4 {
    /// Destination address.
    pub address: Address4,
    /// Destination port.
    pub port: Port,
    /// IP protocol number.
    pub protocol: u8,
    /// Which clients it is for: see [`scope`].
    pub scope: u8,
}

/// Key of `FRONTENDS6`: 20 bytes, no padding. Address 0 is as in [`FrontendKey4`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FrontendKey6 {
    /// Destination address, never IPv4-mapped.
    pub address: Address6,
    /// Destination port.
    pub port: Port,
    /// IP protocol number.
    pub protocol: u8,
    /// Which clients it is for: see [`scope`].
    pub scope: u8,
}

/// The clients that a frontend is for.
pub mod scope {
    /// All, unless there is an element of another scope for them.
    pub const ANY: u8 = 0;
    /// Packets from outside of the cluster, where another list of endpoints serves them than serves its pods.
    pub const OUTSIDE: u8 = 1;
}

const PRIME: u32 = 0x9e37_79b1;

#[inline(always)]
const fn mix(hash: u32, word: u32) -> u32 {
    (hash.rotate_left(5) ^ word).wrapping_mul(PRIME)
}

/// A digest of an address, for values that are checked against their key.
#[inline(always)]
pub(crate) const fn digest(address: &Address6) -> u32 {
    let [a, b, c, d] = *address;
    mix(mix(mix(mix(0, a), b), c), d)
}

#[inline(always)]
const fn tail(port: Port, protocol: u8, scope: u8) -> u32 {
    let [p0, p1] = port.to_ne_bytes();
    u32::from_ne_bytes([p0, p1, protocol, scope])
}

impl FrontendKey4 {
    /// A digest of the key, kept in the value (see [`FrontendValue`]).
    #[inline(always)]
    #[must_use]
    pub const fn fingerprint(&self) -> u32 {
        mix(mix(0, self.address), tail(self.port, self.protocol, self.scope))
    }
}

impl FrontendKey6 {
    /// A digest of the key, kept in the value (see [`FrontendValue`]).
    #[inline(always)]
    #[must_use]
    pub const fn fingerprint(&self) -> u32 {
        mix(digest(&self.address), tail(self.port, self.protocol, self.scope))
    }
}

/// Where a frontend leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lead {
    /// Index into the service directory, below 2^27.
    pub service: u32,
    /// Only the endpoints on this node serve: the first [`local`](crate::Extent::local) slots.
    pub local: bool,
    /// The source must lie in the ranges of the service ([`RangesWord`](crate::RangesWord)).
    pub filtered: bool,
    /// While the node's own DNS does not [serve](crate::Config::dns_serves), the endpoints behind the local ones serve,
    /// if there are any.
    pub falls_back: bool,
    /// Whose packets get an address of this node as their source.
    pub source_nat: SourceNat,
}

/// The clients whose packets get an address of this node as their source on their way to an endpoint (TP-20, TP-40).
/// Sockets have no packets yet whose source could be another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceNat(u8);

impl SourceNat {
    const PODS: u8 = 1;
    const OUTSIDE: u8 = 2;

    /// Of pods of this node, and of all other sources.
    #[must_use]
    pub const fn new(pods: bool, outside: bool) -> Self {
        Self(if pods { Self::PODS } else { 0 } | if outside { Self::OUTSIDE } else { 0 })
    }

    /// Whether it is for clients outside, or for pods.
    #[inline(always)]
    #[must_use]
    pub const fn is_for(self, outside: bool) -> bool {
        self.0 & (if outside { Self::OUTSIDE } else { Self::PODS }) != 0
    }
}

/// Value of both frontend maps: fingerprint of the key in the upper 32 bits; below, from the top: `local` 1,
/// `filtered` 1, `falls_back` 1, source NAT of clients outside 1, of pods 1, service id 27 bits.
///
/// A preallocated hash element can be recycled for another key while a program still holds the pointer, so the
/// program compares the fingerprint after its one 64-bit load; a mismatch is a miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct FrontendValue(pub u64);

const LOCAL: u64 = 1 << 31;
const FILTERED: u64 = 1 << 30;
const FALLS_BACK: u64 = 1 << 29;
const SOURCE_NAT: u32 = 27;
const SOURCE_NATS: u64 = (SourceNat::PODS | SourceNat::OUTSIDE) as u64;
const SERVICE: u64 = (1 << SOURCE_NAT) - 1;

impl FrontendValue {
    /// The value that makes the key with this fingerprint lead to `lead`.
    #[must_use]
    pub const fn new(fingerprint: u32, lead: Lead) -> Self {
        let local = if lead.local { LOCAL } else { 0 };
        let filtered = if lead.filtered { FILTERED } else { 0 };
        let falls_back = if lead.falls_back { FALLS_BACK } else { 0 };
        let source_nat = (lead.source_nat.0 as u64) << SOURCE_NAT;
        let flags = local | filtered | falls_back | source_nat;
        Self(((fingerprint as u64) << 32) | flags | (lead.service as u64 & SERVICE))
    }

    /// Fingerprint of the key this value was written for.
    #[inline(always)]
    #[must_use]
    pub const fn fingerprint(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Where the frontend leads.
    #[inline(always)]
    #[must_use]
    pub const fn lead(self) -> Lead {
        Lead {
            service: (self.0 & SERVICE) as u32,
            local: self.0 & LOCAL != 0,
            filtered: self.0 & FILTERED != 0,
            falls_back: self.0 & FALLS_BACK != 0,
            source_nat: SourceNat((self.0 >> SOURCE_NAT & SOURCE_NATS) as u8),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_lies_in_memory_as_in_a_packet() {
        let key =
            FrontendKey4 { address: u32::from_ne_bytes([10, 96, 0, 10]), port: 53_u16.to_be(), protocol: 17, scope: 0 };
        assert_eq!(key.as_bytes(), [10, 96, 0, 10, 0, 53, 17, 0]);
    }

    #[test]
    fn a_value_gives_back_both_halves() {
        for at in 0..32 {
            let (local, filtered, falls_back) = (at & 1 != 0, at & 2 != 0, at & 4 != 0);
            let source_nat = SourceNat::new(at & 8 != 0, at & 16 != 0);
            assert_eq!([false, true].map(|outside| source_nat.is_for(outside)), [at & 8 != 0, at & 16 != 0]);
            let lead = Lead { service: (1 << 27) - 1, local, filtered, falls_back, source_nat };
            let value = FrontendValue::new(0xdead_beef, lead);
            assert_eq!((value.fingerprint(), value.lead()), (0xdead_beef, lead));
        }
    }
}
