//! What a socket gets by a plan: read without a kernel, with the same lookup that the programs run.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use shunt_model::Protocol;

use super::ebpf::tables::memory::Memory;
use crate::plan::Plan;

/// The tables of a plan, in memory.
#[derive(Clone, Debug)]
pub struct Reading(Memory);

/// The plan does not fit into the tables.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the plan does not fit into the tables of the socket programs")]
pub struct ReadingError(#[source] super::ebpf::layout::Full);

/// A process that dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// In the node's own network namespace.
    Node,
    /// In a pod of this node with this address.
    Pod(IpAddr),
}

/// What a socket gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// One of these endpoints.
    Endpoints {
        /// Each is as likely for a new client.
        addresses: BTreeSet<SocketAddr>,
        /// A client stays with the one it got.
        sticky: bool,
    },
    /// ECONNREFUSED: no endpoint serves, or the Service does not define the port.
    Refused,
    /// The socket keeps the address: policy Local, no endpoint on this node, and the plan lets such flows keep it.
    LeftAlone,
    /// EPERM: the source is outside of the Service's source ranges.
    Denied,
    /// The socket keeps the address: it is no frontend.
    Foreign,
}

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
