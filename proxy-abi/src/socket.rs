//! `PEER` and `DATAGRAMS`: what a socket dialled and what it got, kept in socket storage and freed with the socket.

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
    /// The service that was dialled.
    pub service: u32,
}

impl Flow {
    /// The backend's reference.
    #[inline(always)]
    #[must_use]
    pub const fn reference(&self) -> BackendRef {
        BackendRef(self.reference)
    }
}

/// How many frontends an unconnected UDP socket can talk to at once before `OVERFLOW` is needed.
pub const FLOWS: usize = 4;

/// Value of `DATAGRAMS`: the last frontends of an unconnected UDP socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DatagramFlows {
    /// The translations.
    pub flows: [Flow; FLOWS],
    /// How many have been kept so far; modulo [`FLOWS`], which one is overwritten next.
    pub next: u32,
}

/// Key of `OVERFLOW`: a translation of a socket that talks to more frontends than [`FLOWS`], by what was dialled and by
/// what was got. The value is the [`Flow`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OverflowKey {
    /// The socket's cookie.
    pub cookie: u64,
    /// The frontend's or the backend's address.
    pub address: Address6,
    /// Its port.
    pub port: Port,
    /// [`OverflowKey::DIALLED`] or [`OverflowKey::GOT`].
    pub side: u16,
    /// Always 0.
    pub padding: u32,
}

impl OverflowKey {
    /// `address` and `port` are the frontend's.
    pub const DIALLED: u16 = 0;
    /// `address` and `port` are the backend's.
    pub const GOT: u16 = 1;
}
