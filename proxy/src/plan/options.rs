//! What the plan depends on besides the snapshot.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use clap::ValueEnum;
use ipnet::IpNet;
use serde::Deserialize;
use shunt_model::Family;

/// What the plan depends on besides the snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanOptions {
    /// Own node name, trimmed and in lower case; empty means that no endpoint is local (IN-9).
    pub node: Arc<str>,
    /// For which families pods can be told from other clients (TP-19).
    pub detector: Detect,
    /// The service addresses pods use for DNS.
    pub cluster_dns: Vec<IpAddr>,
    /// Where the bundled DNS listens on this node; empty means that it is off.
    pub dns_backends: Vec<SocketAddr>,
    /// Which of this node's addresses accept node ports (TP-10…14).
    pub node_ports: NodePortAddresses,
    /// Obey `spec.externalIPs` (IN-16).
    pub external_ips: bool,
    /// Ranges that belong to Services alone: a new flow to an address in them that no Service has is dropped (NE-12).
    /// Without any the rule is absent.
    pub service_cidrs: Vec<IpNet>,
    /// What a socket gets whose Service has endpoints, but none on this node where policy Local wants one.
    pub empty_local: EmptyLocal,
    /// Source NAT for every packet to a cluster IP, whoever sends it (TP-40).
    pub masquerade_all: bool,
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
            opt_out: Vec::new(),
        }
    }
}

/// For which families the local detector can tell whether a flow comes from a pod (LD-1, TP-19).
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

/// Which addresses of a node accept node ports (TP-10…14).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// All of them, loopback included.
    #[default]
    All,
    /// The primary address of each family. A family without one accepts none (TP-13).
    Primary,
    /// Those within a network of their family; all of a family that none of the networks is of (TP-10).
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
