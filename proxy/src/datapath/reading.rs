//! What a socket or a packet gets by a plan, read without a kernel: with the lookup that the programs run, and from the
//! rules that would be written.

use std::net::{IpAddr, SocketAddr};

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

    /// What programs for packets find for the first packet of a flow, which comes from `from`: from a pod of this node
    /// or, if `outside`, from elsewhere.
    #[must_use]
    pub fn findings(&self, outside: bool, from: IpAddr, to: SocketAddr, protocol: Protocol) -> PacketFindings {
        self.0.findings(outside, from, to, protocol)
    }
}

/// What programs for packets find for the first packet of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketFindings {
    /// What the table of addresses says of the destination.
    pub address: KnownAddress,
    /// Of which clients the frontend is, if there is one.
    pub clients: Option<Clients>,
    /// How the endpoint is chosen, if there is one.
    pub endpoint: Option<EndpointChoice>,
}

/// What the table of addresses says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownAddress {
    /// Nothing: packets to it are none of ours.
    No,
    /// It is one of a Service.
    OfService,
    /// It is one of this node that takes node ports.
    TakesNodePorts,
}

/// The clients that a frontend has an element for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// All of them.
    All,
    /// Those from outside of the cluster: others get other endpoints.
    Outside,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointChoice {
    /// The client stays with the one it got.
    pub sticky: bool,
    /// An address of this node becomes the source.
    pub source_nat: bool,
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
