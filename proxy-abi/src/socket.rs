//! `PEER`, `DATAGRAMS` and `FURTHER`: what a socket dialled and what it got, kept in socket storage and freed with the
//! socket.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Address6, BackendRef, Port};

/// One translation. Addresses are IPv4-mapped where needed, so one layout serves IPv4, IPv6 and IPv4 on IPv6 sockets.
/// Value of `PEER` (the connected peer of a socket).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Flow {
    /// What the client dialled.
    pub frontend: Address6,
    /// What it got.
    pub backend: Address6,
    /// Port dialled; 0 in an unused entry.
    pub frontend_port: Port,
    /// Port got.
    pub backend_port: Port,
    /// The backend's reference, raw ([`BackendRef`]).
    pub reference: u32,
    /// See [`Flow::protocol`].
    pub origin: u32,
}

impl Flow {
    /// What [`Flow::origin`] says of a protocol.
    #[inline(always)]
    #[must_use]
    pub const fn origin_of(protocol: u8) -> u32 {
        (protocol as u32) << 24
    }

    /// The number of the protocol; 0 if it is not known. Programs before 0.2 kept the directory entry here, which is
    /// below 2^24, and no reader needs it.
    #[inline(always)]
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        (self.origin >> 24) as u8
    }

    /// The backend's reference.
    #[inline(always)]
    #[must_use]
    pub const fn reference(&self) -> BackendRef {
        BackendRef(self.reference)
    }
}

/// What the programs that list flows write for each: a socket by its cookie, and its flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ListedFlow {
    /// The socket's cookie, as sock_diag has it.
    pub cookie: u64,
    /// The value of `PEER`.
    pub flow: Flow,
    /// Always 0.
    pub padding: u32,
}

/// How many frontends an unconnected UDP socket can talk to at once before `FURTHER` is needed.
pub const FLOWS: usize = 4;

/// How many more `FURTHER` holds, a power of two for the verifier; then the flow kept for the longest time is forgotten.
/// Its value counts against the `net.core.optmem_max` (20,480 bytes or more) of the socket.
pub const FURTHER_FLOWS: usize = 32;

/// Value of `DATAGRAMS`: the last frontends of an unconnected UDP socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DatagramFlows {
    /// The translations.
    pub flows: [Flow; FLOWS],
    /// How many have been kept so far; modulo [`FLOWS`], which one is overwritten next.
    pub next: u32,
}

/// Value of `FURTHER`: the frontends that a socket with more than [`FLOWS`] dialled before those.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FurtherFlows {
    /// The translations.
    pub flows: [Flow; FURTHER_FLOWS],
    /// How many have been kept so far; modulo [`FURTHER_FLOWS`], which one is overwritten next.
    pub next: u32,
}
