//! `FRAGMENTS`: a hash map from what all fragments of a datagram have to the ports, which only the first one has.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::packet::{Ends, Packet};
use crate::{Address6, Port};

/// Key of `FRAGMENTS`: 40 bytes, no padding.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, IntoBytes, FromBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FragmentKey {
    /// Where they come from; an IPv4 address is IPv4-mapped.
    pub from: Address6,
    /// Where they are sent to.
    pub to: Address6,
    /// Their identification, as it lies in a packet; that of IPv4 is in the lower half.
    pub identification: u32,
    /// The number of their protocol.
    pub protocol: u32,
}

impl FragmentKey {
    /// That of a fragment.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "what is above says that it is a fragment")]
    pub const fn of(packet: &Packet) -> Self {
        let Ends { from, to, protocol, .. } = packet.ends;
        Self { from, to, identification: packet.fragment as u32, protocol: protocol as u32 }
    }
}

/// Value of `FRAGMENTS`: 4 bytes, no padding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Ports {
    /// The source port.
    pub from: Port,
    /// The destination port.
    pub to: Port,
}

impl Ports {
    /// Those of a packet.
    #[inline(always)]
    #[must_use]
    pub const fn of(ends: &Ends) -> Self {
        Self { from: ends.from_port, to: ends.to_port }
    }
}
