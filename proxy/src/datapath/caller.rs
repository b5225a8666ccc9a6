//! Who dials at a socket of this node, and what a socket gets.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

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
    KeepsDestination,
    /// EPERM: the source is outside of the Service's source ranges.
    Denied,
    /// The socket keeps the address: it is no frontend.
    Foreign,
}
