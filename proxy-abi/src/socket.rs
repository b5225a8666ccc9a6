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

/// How many more `FURTHER` holds, a power of two for the verifier; then the flow kept for the longest time is
/// forgotten. Its value counts against the `net.core.optmem_max` (20,480 bytes or more) of the socket.
pub const FURTHER_FLOWS: usize = 32;

/// Value of `DATAGRAMS`: the last frontends of an unconnected UDP socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DatagramFlows {
    /// The translations.
    pub flows: [Flow; FLOWS],
    /// See [`DatagramFlows::kept`] and [`DatagramFlows::last`].
    pub marks: u32,
}

impl DatagramFlows {
    const KEPT: u32 = 0xffff;
    /// Taken off before `kept` overflows: divisible by [`FLOWS`], and more than that are left.
    const ROUND: u32 = 0x8000;

    /// How many have been kept so far; modulo [`FLOWS`], which one is overwritten next. If there are more than
    /// [`FLOWS`], the others are in `FURTHER`.
    #[inline(always)]
    #[must_use]
    pub const fn kept(&self) -> usize {
        (self.marks & Self::KEPT) as usize
    }

    /// Which flow was used last: one of these, or from [`FLOWS`] on one of `FURTHER`.
    #[inline(always)]
    #[must_use]
    pub const fn last(&self) -> usize {
        (self.marks >> 16) as usize
    }

    /// One more has been kept.
    #[inline(always)]
    pub const fn count(&mut self) {
        let kept = (self.marks & Self::KEPT) + 1;
        let kept = if kept == Self::KEPT { kept - Self::ROUND } else { kept };
        self.marks = (self.marks & !Self::KEPT) | kept;
    }

    /// The flow at `at` is the one used last.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "an index among FLOWS and FURTHER_FLOWS")]
    pub const fn use_now(&mut self, at: usize) {
        self.marks = (self.marks & Self::KEPT) | ((at as u32) << 16);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_the_next_flow_goes_round_for_ever() {
        let mut flows = DatagramFlows::default();
        flows.use_now(FLOWS + 7);
        for number in 0..100_000 {
            assert_eq!(flows.kept() % FLOWS, number % FLOWS);
            assert_eq!(flows.kept() > FLOWS, number > FLOWS);
            flows.count();
        }
        assert_eq!(flows.last(), FLOWS + 7);
    }
}
