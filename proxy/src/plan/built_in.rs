//! The node's own DNS, planned like a Service whose only endpoints are on this node.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;

use shunt_model::{Family, ObjectKey, Protocol};

use super::{Empty, Endpoint, Frontend, FrontendKind, List, PlanOptions, PortKey, PortPlan, Rule};

const DNS_PORT: NonZeroU16 = NonZeroU16::new(53).unwrap();

/// The name under which the node's own DNS stands in the plan.
pub(super) fn built_in_key() -> ObjectKey {
    ObjectKey::new("shunt", "cluster-dns")
}

/// The node's own DNS at the cluster DNS addresses. A family that lacks one or the other gets nothing, so that the
/// cluster's DNS Service, if there is one, keeps serving it.
pub(super) fn built_in(options: &PlanOptions) -> Vec<PortPlan> {
    Family::BOTH.into_iter().flat_map(|family| dns_ports(options, family)).collect()
}

fn dns_ports(options: &PlanOptions, family: Family) -> Vec<PortPlan> {
    let backends =
        options.dns_backends.iter().map(|backend| SocketAddr::new(backend.ip().to_canonical(), backend.port()));
    let backends = sorted(backends.filter(|backend| Family::of(&backend.ip()) == family));
    let cluster: Vec<Endpoint> = backends.into_iter().map(|address| Endpoint { address, local: true }).collect();
    let frontends: Vec<Frontend> = sorted(options.cluster_dns.iter().map(IpAddr::to_canonical))
        .into_iter()
        .filter(|address| Family::of(address) == family)
        .map(frontend)
        .collect();
    if cluster.is_empty() || frontends.is_empty() {
        return Vec::new();
    }
    let port = |(name, protocol)| PortPlan {
        key: PortKey { service: built_in_key(), port: Arc::from(name), protocol, family },
        frontends: frontends.clone(),
        cluster: cluster.clone(),
        local: Vec::new(),
        affinity: None,
    };
    [("dns", Protocol::Udp), ("dns-tcp", Protocol::Tcp)].map(port).into()
}

fn frontend(address: IpAddr) -> Frontend {
    let rule = Rule { list: List::Cluster, empty: Empty::Reject };
    Frontend {
        address: Some(address),
        port: DNS_PORT,
        kind: FrontendKind::ClusterIp,
        from_pods: rule,
        from_node: rule,
        from_outside: rule,
    }
}

fn sorted<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.collect();
    items.sort_unstable();
    items.dedup();
    items
}
