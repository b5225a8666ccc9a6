//! A Service, reduced to what load balancing and DNS read (IN-13, IN-23).

use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;

use ipnet::IpNet;

use crate::key::{Family, ObjectKey, Protocol};

/// One Service. Addresses are canonical and never unspecified; lists keep the object's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `metadata.creationTimestamp`, seconds since 1970; decides collisions (oldest wins, IN-27).
    pub created: Option<i64>,
    /// `spec.type`.
    pub kind: ServiceKind,
    /// `spec.clusterIPs`, or what it means when there are none.
    pub cluster_ips: ClusterIps,
    /// `spec.ports`, each (name, protocol) once.
    pub ports: Vec<ServicePort>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` whose `ipMode` is unset or `VIP` (IN-15).
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges` that parse (IN-17 is applied by the plan).
    pub source_ranges: Vec<IpNet>,
    /// Timeout in seconds if `sessionAffinity` is `ClientIP` (IN-22).
    pub affinity: Option<NonZeroU32>,
    /// `externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// `internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `healthCheckNodePort` if set.
    pub health_check_node_port: Option<NonZeroU16>,
    /// Carries the label `service.kubernetes.io/service-proxy-name`: in DNS, but not ours to balance (IN-1).
    pub other_proxy: bool,
}

impl Service {
    /// The cluster IP of `family`, if the Service has one.
    #[must_use]
    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        self.cluster_ips.addresses().iter().copied().find(|ip| Family::of(ip) == family)
    }
}

/// `spec.type`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// `ClusterIP`.
    ClusterIp,
    /// `NodePort`.
    NodePort,
    /// `LoadBalancer`.
    LoadBalancer,
    /// `ExternalName` with its target, no trailing dot.
    ExternalName(Arc<str>),
}

/// What `spec.clusterIPs` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterIps {
    /// `None`: DNS answers with the endpoints.
    Headless,
    /// Nothing assigned (yet): not served at all.
    Unassigned,
    /// At most one address of each family.
    Assigned(Vec<IpAddr>),
}

impl ClusterIps {
    /// The addresses; empty unless assigned.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        match self {
            Self::Headless | Self::Unassigned => &[],
            Self::Assigned(addresses) => addresses,
        }
    }
}

/// One entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Port name, "" if unnamed.
    pub name: Arc<str>,
    /// Protocol, TCP by default.
    pub protocol: Protocol,
    /// The port clients dial on cluster, external and load-balancer IPs.
    pub port: NonZeroU16,
    /// The port clients dial on node addresses.
    pub node_port: Option<NonZeroU16>,
}

/// `Cluster` or `Local`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Any endpoint of the cluster.
    Cluster,
    /// Endpoints of this node only.
    Local,
}
