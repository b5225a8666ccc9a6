//! What a socket or a packet gets by a plan, read without a kernel: with the lookup that the programs run, and from the
//! rules that would be written.

use std::net::SocketAddr;

use shunt_model::Protocol;

use super::PacketOptions;
pub use super::caller::{Caller, Outcome};
use super::ebpf::tables::memory::Memory;
use super::iptables::walk::Walk;
use super::nftables::walk::Walk as NftablesWalk;
pub use super::packets::PacketOutcome;
use crate::plan::{Packet, Plan};

/// The tables of a plan, in memory.
#[derive(Clone, Debug)]
pub struct Reading(Memory);

/// The plan does not fit into the tables.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the plan does not fit into the tables of the socket programs")]
pub struct ReadingError(#[source] super::ebpf::layout::Full);

impl Reading {
    /// The tables of `plan`.
    pub fn of(plan: &Plan) -> Result<Self, ReadingError> {
        Memory::of(plan).map(Self).map_err(ReadingError)
    }

    /// What a socket of `caller` gets that dials `to`, over all random numbers and clients.
    #[must_use]
    pub fn outcome(&self, caller: Caller, to: SocketAddr, protocol: Protocol) -> Outcome {
        self.0.outcome(caller, to, protocol)
    }
}

/// The iptables rules of a plan, in memory.
#[derive(Clone, Debug)]
pub struct IptablesReading(Walk);

impl IptablesReading {
    /// The rules of `plan`.
    #[must_use]
    pub fn of(plan: &Plan, options: PacketOptions) -> Self {
        Self(Walk::of(plan, options))
    }

    /// What the first packet of a flow gets, over all random numbers.
    #[must_use]
    pub fn outcome(&self, packet: &Packet) -> PacketOutcome {
        self.0.outcome(packet)
    }
}

/// The nftables rules of a plan, in memory.
#[derive(Clone, Debug)]
pub struct NftablesReading(NftablesWalk);

impl NftablesReading {
    /// The rules of `plan`.
    #[must_use]
    pub fn of(plan: &Plan, options: PacketOptions) -> Self {
        Self(NftablesWalk::of(plan, options))
    }

    /// What the first packet of a flow gets, over all random numbers.
    #[must_use]
    pub fn outcome(&self, packet: &Packet) -> PacketOutcome {
        self.0.outcome(packet)
    }
}
