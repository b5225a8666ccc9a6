//! The rules that kube-proxy 1.36 writes for a cluster, so that tests can replace them and benchmarks can compare.

pub mod iptables_mode;
mod names;
pub mod nftables_mode;

use std::net::{IpAddr, SocketAddr};

/// The mark that asks for source NAT, as kube-proxy writes it (LY-6).
const MARK: &str = "0x4000";

/// Which kind of address the rules are for: kube-proxy runs once for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    fn has(self, address: &IpAddr) -> bool {
        address.is_ipv4() == (self == Self::V4)
    }

    /// `/32` or `/128` behind the address, as `iptables-save` prints it.
    fn host(self, address: IpAddr) -> String {
        match self {
            Self::V4 => format!("{address}/32"),
            Self::V6 => format!("{address}/128"),
        }
    }
}

/// What kube-proxy knows of the cluster and of its node.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// `--cluster-cidr`: sources in it are pods. One text for each family, IPv4 first; empty for none.
    pub pod_ranges: [String; 2],
    /// The ranges of ServiceCIDR objects, IPv4 first; empty for none.
    pub service_ranges: [String; 2],
    /// The service ports of both families.
    pub ports: Vec<ServicePort>,
}

impl Cluster {
    fn ports(&self, family: Family) -> impl Iterator<Item = &ServicePort> {
        self.ports.iter().filter(move |port| family.has(&port.cluster_ip))
    }

    fn pod_range(&self, family: Family) -> Option<&str> {
        of(&self.pod_ranges, family)
    }

    fn service_range(&self, family: Family) -> Option<&str> {
        of(&self.service_ranges, family)
    }
}

fn of(ranges: &[String; 2], family: Family) -> Option<&str> {
    let [v4, v6] = ranges;
    let range = match family {
        Family::V4 => v4,
        Family::V6 => v6,
    };
    Some(range.as_str()).filter(|range| !range.is_empty())
}

/// A service port in one family.
#[derive(Clone, Debug)]
pub struct ServicePort {
    /// The namespace of the Service.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The name of the port; empty if it has none.
    pub port_name: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: &'static str,
    /// The cluster IP, which says the family.
    pub cluster_ip: IpAddr,
    /// The port at addresses.
    pub port: u16,
    /// The node port, if there is one.
    pub node_port: Option<u16>,
    /// External IPs.
    pub external_ips: Vec<IpAddr>,
    /// Addresses of load balancers.
    pub load_balancer_ips: Vec<IpAddr>,
    /// The sources that may dial those; empty for all.
    pub source_ranges: Vec<String>,
    /// `externalTrafficPolicy`.
    pub external_policy: Policy,
    /// `internalTrafficPolicy`.
    pub internal_policy: Policy,
    /// Seconds of ClientIP affinity.
    pub affinity: Option<u32>,
    /// The endpoints that are ready.
    pub endpoints: Vec<Endpoint>,
}

/// A traffic policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Every endpoint serves.
    Cluster,
    /// Those of this node serve.
    Local,
}

/// An endpoint that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// It is on this node.
    pub local: bool,
}

impl ServicePort {
    /// A TCP port with cluster IP, which all sources reach and all endpoints serve.
    #[must_use]
    pub fn tcp(name: &str, cluster_ip: IpAddr, port: u16, endpoints: Vec<Endpoint>) -> Self {
        Self {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            port_name: String::new(),
            protocol: "tcp",
            cluster_ip,
            port,
            node_port: None,
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            source_ranges: Vec::new(),
            external_policy: Policy::Cluster,
            internal_policy: Policy::Cluster,
            affinity: None,
            endpoints,
        }
    }

    fn local_endpoints(&self) -> Vec<Endpoint> {
        self.endpoints.iter().copied().filter(|endpoint| endpoint.local).collect()
    }

    fn is_external(&self) -> bool {
        self.node_port.is_some() || !self.external_ips.is_empty() || !self.load_balancer_ips.is_empty()
    }

    /// Both kinds of addresses outside of the cluster.
    fn external_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.external_ips.iter().chain(&self.load_balancer_ips).copied()
    }
}
