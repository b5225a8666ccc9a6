//! `PEER` and `DATAGRAMS`: what a socket dialled and what it got, kept in socket storage and freed with the socket.

use crate::{Address6, BackendRef, Port};

/// One translation. Addresses are IPv4-mapped where needed, so one layout serves IPv4, IPv6 and IPv4 on IPv6 sockets.
/// Value of `PEER` (the connected peer of a socket).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    /// Size in bytes.
    pub const SIZE: u32 = 44;

    /// The flow that the kernel stores as `bytes`, if these are as many.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::SIZE as usize] = bytes.try_into().ok()?;
        let word = |at: usize| {
            let four = bytes.get(at * 4..at * 4 + 4).and_then(|four| <[u8; 4]>::try_from(four).ok());
            four.map_or(0, u32::from_ne_bytes)
        };
        let [p, q, r, s] = word(8).to_ne_bytes();
        Some(Self {
            frontend: [word(0), word(1), word(2), word(3)],
            backend: [word(4), word(5), word(6), word(7)],
            frontend_port: u16::from_ne_bytes([p, q]),
            backend_port: u16::from_ne_bytes([r, s]),
            reference: word(9),
            service: word(10),
        })
    }

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DatagramFlows {
    /// The translations.
    pub flows: [Flow; FLOWS],
    /// How many have been kept so far; modulo [`FLOWS`], which one is overwritten next.
    pub next: u32,
}

impl DatagramFlows {
    /// Size in bytes.
    pub const SIZE: u32 = 180;
}

/// Key of `OVERFLOW`: a translation of a socket that talks to more frontends than [`FLOWS`], by what was dialled and by
/// what was got. The value is the [`Flow`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// Size in bytes.
    pub const SIZE: u32 = 32;
    /// `address` and `port` are the frontend's.
    pub const DIALLED: u16 = 0;
    /// `address` and `port` are the backend's.
    pub const GOT: u16 = 1;
}

const _: () = assert!(size_of::<OverflowKey>() == OverflowKey::SIZE as usize);
const _: () = assert!(size_of::<Flow>() == Flow::SIZE as usize);
const _: () = assert!(size_of::<DatagramFlows>() == DatagramFlows::SIZE as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_read_as_it_lies_in_memory() {
        let mut bytes = [0; 44];
        for (at, byte) in (0_u8..).zip(bytes.iter_mut()) {
            *byte = at;
        }
        let flow = Flow::from_bytes(&bytes).unwrap();
        assert_eq!(flow.frontend[3], u32::from_ne_bytes([12, 13, 14, 15]));
        assert_eq!(flow.backend[0], u32::from_ne_bytes([16, 17, 18, 19]));
        assert_eq!((flow.frontend_port.to_ne_bytes(), flow.backend_port.to_ne_bytes()), ([32, 33], [34, 35]));
        assert_eq!(flow.reference().0, u32::from_ne_bytes([36, 37, 38, 39]));
        assert_eq!(flow.service, u32::from_ne_bytes([40, 41, 42, 43]));
        assert_eq!(Flow::from_bytes(&bytes[1..]), None);
    }
}
