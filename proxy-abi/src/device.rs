//! `DEVICES`: a hash map from the index of a network device to what the packet programs must know of it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Address4, Address6};

/// Value of `DEVICES`: 28 bytes, no padding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Device {
    /// See the constants.
    pub flags: u32,
    /// The address that stands for clients whose packets leave by it; 0 without one.
    pub address4: Address4,
    /// The same in IPv6.
    pub address6: Address6,
    /// The network namespace of its other end, if that is a pod's: what this node calls it, plus 1. 0 if there is none.
    pub pod: u32,
}

impl Device {
    /// A flag: packets of pods of this node come in by it.
    pub const PODS: u32 = 1;
}
