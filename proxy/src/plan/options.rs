//! What the plan depends on besides the snapshot.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use clap::ValueEnum;
use ipnet::IpNet;
use serde::Deserialize;
use shunt_model::Family;

use super::PodDetection;

/// What the plan depends on besides the snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanOptions {
    /// Own node name, trimmed and in lower case; empty means that no endpoint is local (IN-9).
    pub node: Arc<str>,
    /// The families in which the local detector knows pods from other clients (TP-19).
    pub detector: Detect,
    /// The service addresses pods use for DNS.
    pub cluster_dns: Vec<IpAddr>,
    /// Where the bundled DNS listens on this node; empty means that it is off.
    pub dns_backends: Vec<SocketAddr>,
    /// Which of this node's addresses accept node ports (TP-10…14).
    pub node_ports: NodePortAddresses,
    /// Obey `spec.externalIPs` (IN-16).
    pub external_ips: bool,
    /// Ranges that belong to Services alone: the plan drops a new flow to an address in them that no Service has
    /// (NE-12). If the list is empty, the plan has no such rule.
    pub service_cidrs: Vec<IpNet>,
    /// What a socket gets under policy Local if only other nodes have endpoints.
    pub empty_local: EmptyLocal,
    /// Source NAT for every packet to a cluster IP, from every source (TP-40).
    pub masquerade_all: bool,
    /// How packet paths know the pods of this node.
    pub pods: PodDetection,
    /// Annotations that take a local Pod out of socket load balancing: key and, if given, the value it must have.
    pub opt_out: Vec<(Arc<str>, Option<Arc<str>>)>,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            node: Arc::from(""),
            detector: Detect::default(),
            cluster_dns: Vec::new(),
            dns_backends: Vec::new(),
            node_ports: NodePortAddresses::default(),
            external_ips: true,
            service_cidrs: Vec::new(),
            empty_local: EmptyLocal::default(),
            masquerade_all: false,
            pods: PodDetection::default(),
            opt_out: Vec::new(),
        }
    }
}

/// The families in which the local detector says whether a flow comes from a pod (LD-1, TP-19).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detect {
    /// None: pods are treated like clients outside of the node.
    Nothing,
    /// One family, as when `--cluster-cidr` names only one.
    Only(Family),
    /// Both, as at sockets, which are known by their network namespace.
    #[default]
    Both,
}

impl Detect {
    /// Whether the local detector knows pods of `family`.
    #[must_use]
    pub fn covers(self, family: Family) -> bool {
        match self {
            Self::Nothing => false,
            Self::Only(only) => only == family,
            Self::Both => true,
        }
    }
}

/// Which addresses of a node accept node ports (TP-10…14).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// All of them, loopback included.
    #[default]
    All,
    /// The primary address of each family. A family without one accepts none (TP-13).
    Primary,
    /// Those inside one of these networks; if no network is of a family, all addresses of that family (TP-10).
    Within(Vec<IpNet>),
}

/// `--empty-local`.
#[derive(ValueEnum, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum EmptyLocal {
    /// ECONNREFUSED at once
    #[default]
    Refuse,
    /// The address is left as it is, so the packets go unanswered
    Pass,
}
