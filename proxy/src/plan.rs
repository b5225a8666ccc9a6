//! What this node must do for every frontend, so specific that a data path has nothing left to decide.
//!
//! The plan is a pure function of a [`Snapshot`](shunt_model::Snapshot), this node and [`PlanOptions`]: no clock, no
//! I/O, no randomness, and the order of the input never matters. [`Plan::verdict`](Plan) is the reference reading
//! against which every data path is tested.

mod built_in;
mod claims;
#[cfg(test)]
mod fixture;
mod frontends;
mod lists;
mod merge;
mod planner;
#[cfg(test)]
mod properties;
mod verdict;
mod view;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;

use imbl::OrdMap;
use serde::Serialize;
use shunt_model::{Family, ObjectKey, Protocol};

pub use claims::{Claim, Conflict};
pub use planner::{Planner, plan};
pub use verdict::{Decision, Packet, Reason, Source, Verdict};
pub use view::{EndpointView, FrontendView, PlanView, PortView, RuleView, render_json, render_table};

/// What the plan depends on besides the snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanOptions {
    /// Own node name, trimmed and in lower case; empty means that no endpoint is local (spec IN-9).
    pub node: Arc<str>,
    /// For which families pods can be told from other clients (spec TP-19).
    pub detector: Detect,
    /// The service addresses pods use for DNS.
    pub cluster_dns: Vec<IpAddr>,
    /// Where the bundled DNS listens on this node; empty means that it is off.
    pub dns_backends: Vec<SocketAddr>,
}

/// For which families the local detector can tell whether a flow comes from a pod (spec 2.4, TP-19).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detect {
    /// For none: pods are treated like clients from outside the node.
    Nothing,
    /// For one family only, as when `--cluster-cidr` names only one.
    Only(Family),
    /// For both, as the socket path does by network namespace.
    #[default]
    Both,
}

impl Detect {
    /// Whether pods of `family` can be told apart.
    #[must_use]
    pub fn covers(self, family: Family) -> bool {
        match self {
            Self::Nothing => false,
            Self::Only(only) => only == family,
            Self::Both => true,
        }
    }
}

/// Everything this node must do. Two plans share structure, so `old.ports.diff(&new.ports)` costs as much as the change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// One entry per (service port, family).
    pub ports: OrdMap<PortKey, Arc<PortPlan>>,
}

/// Identity of a service port in one family (spec IN-11, IN-12).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey {
    /// The Service.
    pub service: ObjectKey,
    /// Port name, "" if unnamed.
    pub port: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Family of all its addresses.
    pub family: Family,
}

impl fmt::Display for PortKey {
    /// `namespace/name:port/protocol`, without `:port` if it has no name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, port, protocol, family: _ } = self;
        match port.is_empty() {
            true => write!(f, "{service}/{protocol}"),
            false => write!(f, "{service}:{port}/{protocol}"),
        }
    }
}

/// One service port in one family: where clients dial and who may answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPlan {
    /// Which service port.
    pub key: PortKey,
    /// Where clients dial; sorted, and no two entries of a [`Plan`] share one (collisions are already decided).
    pub frontends: Vec<Frontend>,
    /// Who answers under policy Cluster (spec EP-20); sorted, each address once.
    pub cluster: Vec<Endpoint>,
    /// Who answers under policy Local (spec EP-21); sorted, each address once.
    pub local: Vec<Endpoint>,
    /// Session affinity timeout in seconds, if the Service asks for ClientIP affinity.
    pub affinity: Option<NonZeroU32>,
}

/// An endpoint a new flow may reach. Ordered by address, then port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Its address and port.
    pub address: SocketAddr,
    /// It runs on this node (spec IN-36).
    pub local: bool,
}

/// Where clients dial, and what becomes of a new flow by where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// The address; `None` means every accepted node address (a node port).
    pub address: Option<IpAddr>,
    /// The port.
    pub port: NonZeroU16,
    /// What kind of address this is.
    pub kind: FrontendKind,
    /// For flows from pods.
    pub from_pods: Rule,
    /// For flows from this node itself.
    pub from_node: Rule,
    /// For all other flows.
    pub from_outside: Rule,
}

/// Kinds of frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum FrontendKind {
    /// A cluster IP (spec TP-1).
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// One of `spec.externalIPs` (spec TP-2).
    #[serde(rename = "ExternalIP")]
    External,
    /// A load balancer's address with ipMode VIP (spec TP-2).
    LoadBalancer,
    /// A node port (spec TP-3).
    NodePort,
}

/// Which endpoints serve, and what happens if there are none (spec 2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// The list to pick from.
    pub list: List,
    /// What happens when that list is empty.
    pub empty: Empty,
}

/// The two lists of a [`PortPlan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum List {
    /// [`PortPlan::cluster`].
    Cluster,
    /// [`PortPlan::local`].
    Local,
}

/// What a new flow gets when nobody may answer (spec section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Empty {
    /// Refuse at once: ICMP port unreachable, ECONNREFUSED at a socket (spec NE-1, NE-4).
    Reject,
    /// Silence: another node may have an endpoint (spec NE-2, NE-3, NE-5).
    Drop,
}
