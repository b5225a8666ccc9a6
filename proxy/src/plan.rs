//! What this node must do for every frontend, so specific that a data path has nothing left to decide.
//!
//! The plan is a pure function of a [`Snapshot`](shunt_model::Snapshot), this node and [`PlanOptions`]: no clock, no
//! I/O, no randomness, and the order of the input does not matter, but for an address that one slice lists twice.
//! [`Plan::verdict`](Plan) is the reference reading against which every data path is tested.

mod addresses;
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
mod notices;
mod opt_out;
mod options;
mod planner;
mod pods;
#[cfg(test)]
pub(crate) mod properties;
mod ranges;
mod rules;
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

pub use addresses::{AddressMeaning, NodePorts};
pub use claims::{Claim, Conflict};
pub use health_checks::{HealthCheck, HealthCheckAddresses};
pub use options::{Detect, EmptyLocal, NodePortAddresses, PlanOptions};
pub use planner::{Planner, plan};
pub use pods::{PodDetection, PodInterface, PodSources};
pub use ranges::SourceRanges;
pub use rules::RuleId;
pub use verdict::{Decision, Meeting, Met, Packet, Reason, SocketVerdict, Source, Verdict};
pub use view::{
    EndpointView, FrontendView, HealthCheckView, PlanView, PortView, RuleView, SourceRangesView, render_json,
    render_table,
};

/// Everything this node must do. Two plans share structure, so `old.ports.diff(&new.ports)` costs as much as the
/// change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// One entry per (service port, family).
    pub ports: OrdMap<PortKey, Arc<PortPlan>>,
    /// What an address means at ports of which no frontend names it. Addresses are in canonical form; 127.0.0.1 stands
    /// for 127.0.0.0/8. It holds every address that a frontend names or that this node has, so one that is missing is
    /// unused.
    pub addresses: OrdMap<IpAddr, AddressMeaning>,
    /// Addresses of local Pods that opted out: their sockets are left alone.
    pub opted_out: Arc<BTreeSet<IpAddr>>,
    /// Which packets come from pods of this node. Sockets are known by their network namespace instead.
    pub pods: Arc<PodSources>,
    /// The health-check node ports to serve (HM-1…3, IN-21).
    pub health_checks: OrdMap<(ObjectKey, Family), HealthCheck>,
    /// The addresses on which those servers listen.
    pub health_check_addresses: Arc<HealthCheckAddresses>,
    /// Those of [`PlanOptions::service_cidrs`] and of the cluster's ServiceCIDRs. A flow to an address in them that is
    /// not one of [`Plan::addresses`] gets [`Plan::UNUSED_ADDRESS`]; without any, there is no such rule.
    pub service_cidrs: Arc<[IpNet]>,
}

impl Plan {
    /// The part of the plan that a flow to `address` can meet: the service ports that are dialled there or at node
    /// ports.
    #[must_use]
    pub fn around(&self, address: IpAddr) -> Self {
        let address = address.to_canonical();
        let meets = |frontend: &Frontend| frontend.address.is_none_or(|dialled| dialled == address);
        let met = self.ports.iter().filter(|(_, port)| port.frontends.iter().any(meets));
        Self { ports: met.map(|(key, port)| (key.clone(), Arc::clone(port))).collect(), ..self.clone() }
    }

    /// Why no Service is served at `address`, whoever writes it into one (TP-9).
    #[must_use]
    pub fn why_not_served(address: IpAddr) -> Option<&'static str> {
        frontends::why_not_served(&address.to_canonical())
    }

    /// The ports of one Service.
    pub(crate) fn ports_of(&self, service: &ObjectKey) -> impl Iterator<Item = (&PortKey, &Arc<PortPlan>)> {
        let first =
            PortKey { service: service.clone(), port: Arc::default(), protocol: Protocol::Tcp, family: Family::V4 };
        self.ports.range(first..).take_while(move |(key, _)| key.service == *service)
    }

    /// What a new flow gets at a cluster IP whose Service does not define the port (NE-11). Port 0 is left alone: it is
    /// no flow but a socket that asks for its source address.
    pub const UNDEFINED_PORT: Unserved = Unserved { packet: Empty::Reject, socket: EmptyAtSocket::Refuse };
    /// What a new flow gets at an unused address in a range of Services (NE-12): packets are dropped. A socket keeps
    /// the address, so that its packets meet that rule.
    pub const UNUSED_ADDRESS: Unserved = Unserved { packet: Empty::Drop, socket: EmptyAtSocket::Pass };
}

/// What a new flow gets that is sent to no frontend, but to an address of Services: by kind of path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unserved {
    /// What its packets get.
    pub packet: Empty,
    /// What a socket of this node gets.
    pub socket: EmptyAtSocket,
}

/// Identity of a service port in one family (IN-11, IN-12).
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

/// One service port in one family: its frontends and its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPlan {
    /// Which service port.
    pub key: PortKey,
    /// Its frontends, sorted. No two service ports of a [`Plan`] share one: the planner has decided all conflicts.
    pub frontends: Vec<Frontend>,
    /// The endpoints of policy Cluster (EP-20); sorted, each address once.
    pub cluster: Vec<Endpoint>,
    /// The endpoints of policy Local (EP-21); sorted, each address once.
    pub local: Vec<Endpoint>,
    /// Session affinity timeout in seconds, if the Service asks for ClientIP affinity.
    pub affinity: Option<NonZeroU32>,
    /// Endpoints that serve but are in neither list: they get no new flow and keep the running ones (CT-3, CT-10).
    /// Sorted.
    pub draining: Vec<SocketAddr>,
    /// The sources that may dial the LoadBalancer frontends (TP-30…37); `None` means every source.
    pub source_ranges: Option<Arc<SourceRanges>>,
    /// What a socket of this node gets that `local` serves, when `local` is empty. When `cluster` is empty, a socket
    /// that it serves is refused.
    pub empty_local_at_sockets: EmptyAtSocket,
}

/// An endpoint a new flow may reach. Ordered by address, then port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Its address and port.
    pub address: SocketAddr,
    /// It runs on this node (IN-36).
    pub local: bool,
}

/// What clients dial, and the rule for a new flow from each kind of source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// While the node's own DNS is closed, as after a daemon that was killed, sockets get the endpoints of
    /// [`PortPlan::cluster`] that are on other nodes or in pods.
    pub falls_back: bool,
    /// The address; `None` means every accepted node address (a node port).
    pub address: Option<IpAddr>,
    /// The port.
    pub port: NonZeroU16,
    /// What kind of address this is; nothing depends on it but counts and explanations.
    pub kind: FrontendKind,
    /// Only sources inside [`PortPlan::source_ranges`] may dial it (TP-30, TP-36).
    pub filtered: bool,
    /// The list that serves a socket of this node, in a pod or of the node itself. Whatever a detector can tell of
    /// packets, at sockets the network namespace tells pods from the node, and both are inside the cluster.
    pub at_sockets: List,
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
    /// A cluster IP (TP-1).
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// One of `spec.externalIPs` (TP-2).
    #[serde(rename = "ExternalIP")]
    External,
    /// A load balancer's address with ipMode VIP (TP-2).
    LoadBalancer,
    /// A node port (TP-3).
    NodePort,
}

/// Which endpoints serve, what happens if there are none, and whose address the endpoint sees (DT-1, MX-1, MX-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// The list to pick from.
    pub list: List,
    /// What a packet gets when that list is empty.
    pub empty: Empty,
    /// A packet's source becomes an address of this node (TP-20…23, TP-40). Not at a socket, where the kernel chooses
    /// the source after the endpoint (TP-50). Ask [`Rule::masquerades`], which knows the flows that need it always.
    pub masquerade: bool,
}

impl Rule {
    /// Whether the source of a packet from `source` to `endpoint` becomes an address of this node: by the rule, and
    /// always where the endpoint is the source itself (hairpin, TP-42): its answer would not leave it otherwise.
    #[must_use]
    pub fn masquerades(&self, source: IpAddr, endpoint: &Endpoint) -> bool {
        self.masquerade || source.to_canonical() == endpoint.address.ip().to_canonical()
    }
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

/// What a packet of a new flow gets when the list in use has no endpoint (NE-1…5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Empty {
    /// Refuse at once: ICMP port unreachable, ECONNREFUSED at a socket (NE-1, NE-4).
    Reject,
    /// Silence: another node may have an endpoint (NE-2, NE-3, NE-5).
    Drop,
}

/// What a socket of this node gets when the list in use has no endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum EmptyAtSocket {
    /// ECONNREFUSED at once.
    Refuse,
    /// The socket keeps the address, and its packets get what packets get.
    Pass,
}
