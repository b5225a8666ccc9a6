//! What this node must do for every frontend, so specific that a data path has nothing left to decide.
//!
//! The plan is a pure function of a [`Snapshot`](shunt_model::Snapshot), this node and [`PlanOptions`]: no clock, no
//! I/O, no randomness, and the order of the input never matters. [`Plan::verdict`](Plan) is the reference reading
//! against which every data path is tested.

#[cfg(test)]
mod bad_input;
mod built_in;
mod claims;
#[cfg(test)]
pub(crate) mod fixture;
mod frontends;
mod health_checks;
mod lists;
mod merge;
mod node;
mod opt_out;
mod options;
mod planner;
#[cfg(test)]
pub(crate) mod properties;
mod ranges;
mod service;
mod verdict;
mod view;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;
use serde::Serialize;
use shunt_model::{Family, ObjectKey, Protocol};

pub use claims::{Claim, Conflict};
pub use health_checks::HealthCheck;
pub use options::{Detect, NodePortAddresses, PlanOptions};
pub use planner::{Planner, plan};
pub use ranges::SourceRanges;
pub use verdict::{Decision, Met, Packet, Reason, Source, Verdict};
pub use view::{
    EndpointView, FrontendView, HealthCheckView, PlanView, PortView, RuleView, SourceRangesView, render_json,
    render_table,
};

/// Everything this node must do. Two plans share structure, so `old.ports.diff(&new.ports)` costs as much as the change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// One entry per (service port, family).
    pub ports: OrdMap<PortKey, Arc<PortPlan>>,
    /// The addresses of this node that accept node ports, in canonical form. 127.0.0.1 stands for 127.0.0.0/8; it and
    /// ::1 count for flows from the node itself only.
    pub node_addresses: Arc<BTreeSet<IpAddr>>,
    /// Addresses of local Pods whose sockets are left alone.
    pub opted_out: Arc<BTreeSet<IpAddr>>,
    /// The health-check node ports to serve (spec HM-1…3, IN-21).
    pub health_checks: OrdMap<(ObjectKey, Family), HealthCheck>,
    /// Those of [`PlanOptions::service_cidrs`] and of the cluster's ServiceCIDRs.
    pub service_cidrs: Arc<[IpNet]>,
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
    /// Serving, but in neither list: no new flow may reach them, running ones go on (spec CT-3, CT-10). Sorted.
    pub draining: Vec<SocketAddr>,
    /// Who may dial the LoadBalancer frontends (spec TP-30…37); `None` is everybody.
    pub source_ranges: Option<Arc<SourceRanges>>,
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
