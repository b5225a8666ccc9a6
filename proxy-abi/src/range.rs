//! `RANGES` and `SERVICE_RANGES`: longest-prefix-match tries of the source ranges of all services, and of the ranges in
//! which the addresses of services lie.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Address6;

/// Data of a key of `RANGES`, behind the length of the prefix ([`RangePrefix`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RangeKey {
    /// Id of the ranges ([`RangesWord::id`](crate::RangesWord::id)); always matched whole.
    pub id: u32,
    /// The address, IPv4-mapped if need be.
    pub address: Address6,
}

/// A key of `RANGES` as the kernel stores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RangePrefix {
    /// How many bits of `key` count.
    pub bits: u32,
    /// Id and address.
    pub key: RangeKey,
}

/// A key of `SERVICE_RANGES` as the kernel stores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ServicePrefix {
    /// How many bits of the address count.
    pub bits: u32,
    /// The address, IPv4-mapped if need be.
    pub address: Address6,
}

impl ServicePrefix {
    /// Bits of a whole address.
    pub const BITS: u32 = 128;
}

impl RangeKey {
    /// Bits of a whole key.
    pub const BITS: u32 = 160;
    /// Bits of an IPv4 prefix before the IPv4 address: id and the mapping.
    pub const BITS_BEFORE4: u32 = 128;
    /// Bits of an IPv6 prefix before the address: the id.
    pub const BITS_BEFORE6: u32 = 32;
}
