//! Keys and values of every BPF map of shunt, defined once for the daemon and for the programs.
//!
//! Byte order, stated once: addresses and ports are kept exactly as they lie in a packet (network order in memory,
//! types [`Address4`], [`Address6`] and [`Port`]); everything else is a native integer. Values that a program may read
//! while the daemon writes them are single aligned 64-bit words, so a reader sees the old or the new one and nothing
//! in between. A layout is never changed in place: a change takes another version, of which each
//! [`Lifetime`](maps::Lifetime) has its own.
#![no_std]
#![forbid(unsafe_code)]

pub mod address;
pub mod affinity;
pub mod backend;
pub mod bind;
pub mod checksum;
pub mod config;
pub mod connection;
pub mod counters;
pub mod crc32c;
pub mod device;
pub mod directory;
pub mod event;
pub mod fragment;
pub mod frontend;
pub mod icmp;
pub mod lookup;
pub mod maps;
pub mod packet;
pub mod range;
pub mod refusal;
pub mod replay;
pub mod slot;
pub mod socket;

pub use address::{AddressBit, AddressValue, NodePorts};
pub use affinity::{AffinityKey, AffinityValue};
pub use backend::{Backend4, Backend6, BackendRef, Standing};
pub use config::{Config, Namespace};
pub use counters::{Count, Served};
pub use device::Device;
pub use directory::{Directory, Extent, RangesWord, Shape, Terms};
pub use event::Event;
pub use frontend::{FrontendKey4, FrontendKey6, FrontendValue, Lead, SourceNat, scope};
pub use range::{RangeKey, RangePrefix, ServicePrefix};
pub use replay::Replayed;
pub use slot::Slot;
pub use socket::{DatagramFlows, Flow, FurtherFlows, ListedFlow};

/// An IPv4 address as it lies in a packet.
pub type Address4 = u32;

/// An IPv6 address as it lies in a packet. IPv4 addresses are IPv4-mapped wherever both families share a table.
pub type Address6 = [u32; 4];

/// A port as it lies in a packet.
pub type Port = u16;

/// How many elements each map can hold. The daemon may create them smaller or larger; programs do not depend on it.
pub mod capacity {
    /// Frontends of one family.
    pub const FRONTENDS: u32 = 65_536;
    /// Directory entries, one per service port and family.
    pub const SERVICES: u32 = 65_536;
    /// Slots of all services together; a service of n endpoints takes the next power of two.
    pub const SLOTS: u32 = 524_288;
    /// Backends of one family, one per endpoint of a service port.
    pub const BACKENDS: u32 = 262_144;
    /// Addresses of both families that are of this node or of a Service.
    pub const ADDRESSES: u32 = 131_072;
    /// Words of 64 bits that tell most addresses which are not among them: a power of two.
    pub const ADDRESS_BITS: u32 = 4096;
    /// Clients remembered by session affinity; the longest unused is forgotten first.
    pub const AFFINITY: u32 = 65_536;
    /// Prefixes of all `loadBalancerSourceRanges` together.
    pub const RANGES: u32 = 65_536;
    /// Ranges in which the addresses of services lie.
    pub const SERVICE_RANGES: u32 = 1024;
    /// Network namespaces that the daemon knows.
    pub const NAMESPACES: u32 = 16_384;
    /// Devices with packet programs.
    pub const DEVICES: u32 = 4096;
    /// Flows of packets; the longest unused is forgotten first.
    pub const CONNECTIONS: u32 = 131_072;
    /// Those of TCP whose client has sent one packet so far.
    pub const OPENINGS: u32 = 16_384;
    /// Numbers by which most keys are told that lead to none of those: a power of two.
    pub const OPENED: u32 = 16_384;
    /// Datagrams in fragments; the longest unused is forgotten first.
    pub const FRAGMENTS: u32 = 8192;
    /// What packet programs count; more than there is, so that another count needs no other version of the tables.
    pub const COUNTERS: u32 = 64;
    /// Bytes of the queue of events: a power of two.
    pub const EVENTS: u32 = 524_288;
}

/// The third word of an IPv4-mapped IPv6 address, `::ffff:0:0`, as it lies in a packet.
pub const MAPPED_PREFIX: u32 = 0xffff_u32.to_be();

/// The IPv4-mapped form of an address.
#[inline(always)]
#[must_use]
pub const fn mapped(address: Address4) -> Address6 {
    [0, 0, MAPPED_PREFIX, address]
}

/// The IPv4 address inside an IPv4-mapped one.
#[inline(always)]
#[must_use]
pub const fn unmapped(address: Address6) -> Option<Address4> {
    let [a, b, c, d] = address;
    if a == 0 && b == 0 && c == MAPPED_PREFIX { Some(d) } else { None }
}

/// Word by word: `==` on arrays becomes a call of `memcmp`, which a BPF program cannot make.
#[inline(always)]
#[must_use]
pub const fn same(left: &Address6, right: &Address6) -> bool {
    let ([a, b, c, d], [e, f, g, h]) = (*left, *right);
    a == e && b == f && c == g && d == h
}
