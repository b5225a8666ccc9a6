//! `EVENTS`: decisions of the packet programs, told as they are taken while somebody listens.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::packet::Ends;
use crate::{Address6, Port};

/// A decision: 72 bytes, no padding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Event {
    /// The ends of the client's packets as they come in.
    pub client: Ends,
    /// The endpoint; 0 without.
    pub endpoint: Address6,
    /// The endpoint's port; 0 without.
    pub endpoint_port: Port,
    /// Always 0.
    pub padding: u16,
    /// The index of the device at which it was decided.
    pub device: u32,
    /// The directory entry; [`Event::NO_SERVICE`] without.
    pub service: u32,
    /// What was decided: the number of a [`Count`](crate::Count).
    pub what: u32,
}

impl Event {
    /// No directory entry has this index.
    pub const NO_SERVICE: u32 = u32::MAX;
}
