//! Nodes, Pods and Namespaces, reduced to what is read of them.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::key::ObjectKey;

/// A Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`, absent if empty (EP-12).
    pub zone: Option<Arc<str>>,
    /// InternalIP before ExternalIP addresses.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// Neither being deleted nor about to be removed by the cluster autoscaler (HM-15).
    pub eligible: bool,
}

/// A Pod that has not finished (phases Succeeded and Failed never reach the model).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `status.podIPs`, primary first.
    pub addresses: Vec<IpAddr>,
    /// `spec.nodeName`.
    pub node: Option<Arc<str>>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// Those of `metadata.annotations` that the source was asked for, in order of their keys.
    pub annotations: Box<[(Arc<str>, Arc<str>)]>,
}

/// A Namespace; its existence is all that is read (DNS-8.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// `metadata.name`.
    pub name: Arc<str>,
}

/// A ServiceCIDR: ranges that cluster IPs are taken from (IN-5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `spec.cidrs`.
    pub ranges: Vec<IpNet>,
}
