//! The node's own DNS, planned like a Service whose only endpoints are on this node.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;

use shunt_model::{Family, ObjectKey, Protocol};

use super::frontends::{cluster_ip_rules, why_not_served};
use super::{Empty, EmptyAtSocket, Endpoint, Frontend, FrontendKind, List, PlanOptions, PortKey, PortPlan, Rule};

const DNS_PORT: NonZeroU16 = NonZeroU16::new(53).unwrap();

/// The name under which the node's own DNS stands in the plan.
pub(super) fn built_in_key() -> ObjectKey {
    ObjectKey::new("shunt", "cluster-dns")
}

/// The node's own DNS at the cluster DNS addresses. A family in which either is missing is not planned, so the
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
        .filter(|address| Family::of(address) == family && why_not_served(address).is_none())
        .map(|address| frontend(address, options, family))
        .collect();
    if cluster.is_empty() || frontends.is_empty() {
        return Vec::new();
    }
    let port = |(name, protocol)| PortPlan {
        key: PortKey { service: built_in_key(), port: Arc::from(name), protocol, family },
        frontends: frontends.clone(),
        cluster: cluster.clone(),
        local: cluster.clone(),
        affinity: None,
        draining: Vec::new(),
        source_ranges: None,
        empty_local_at_sockets: EmptyAtSocket::Refuse,
    };
    [("dns", Protocol::Udp), ("dns-tcp", Protocol::Tcp)].map(port).into()
}

fn frontend(address: IpAddr, options: &PlanOptions, family: Family) -> Frontend {
    let (from_pods, from_node, from_outside) = cluster_ip_rules(local_rule, options, family);
    let (address, kind) = (Some(address), FrontendKind::ClusterIp);
    Frontend {
        falls_back: true,
        address,
        port: DNS_PORT,
        kind,
        filtered: false,
        at_sockets: List::Local,
        from_pods,
        from_node,
        from_outside,
    }
}

/// One of these service ports with the endpoints of the Services that would have its frontends: they serve while this
/// node's server is closed.
pub(super) fn with_others<'a>(port: &PortPlan, others: impl Iterator<Item = &'a Endpoint>) -> PortPlan {
    let own = |address: SocketAddr| port.cluster.iter().any(|endpoint| endpoint.address == address);
    let others = others.map(|endpoint| endpoint.address).filter(|address| !own(*address));
    // None of them is local in this list: the local ones are the servers of this node.
    let others = others.map(|address| Endpoint { address, local: false });
    let cluster = sorted(port.cluster.iter().copied().chain(others));
    if cluster.len() == port.cluster.len() {
        return port.clone();
    }
    PortPlan { cluster: exact(cluster), ..port.clone() }
}

fn exact<T>(mut list: Vec<T>) -> Vec<T> {
    list.shrink_to_fit();
    list
}

/// The servers of this node alone: what else [`PortPlan::cluster`] holds serves while they are closed.
fn local_rule(masquerade: bool) -> Rule {
    Rule { list: List::Local, empty: Empty::Reject, masquerade }
}

fn sorted<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.collect();
    items.sort_unstable();
    items.dedup();
    items
}

#[cfg(test)]
mod tests {
    use crate::plan::fixture::{cluster, frontends, ip, names, options, service, slice};
    use crate::plan::{PlanOptions, plan};

    /// The plan of a cluster with a DNS Service, on a node whose own DNS listens at `backends`.
    #[track_caller]
    fn check(cluster_dns: &[&str], backends: &[&str], wanted: &[&str]) {
        let ports = "port=dns:53/udp port=dns-tcp:53/tcp port=metrics:9153/tcp";
        let dns = service("kube-dns", &format!("ip=10.96.0.10 ip=fd00:96::a created=1 {ports}"));
        let endpoints = slice("kube-dns", "a", "dns:53/udp dns-tcp:53/tcp metrics:9153/tcp", "e1:R");
        let options = PlanOptions {
            cluster_dns: cluster_dns.iter().map(|address| ip(address)).collect(),
            dns_backends: backends.iter().map(|address| address.parse().unwrap()).collect(),
            ..options()
        };
        let (plan, lost) = plan(&cluster([dns], [endpoints]), &options);
        let shown = |port: &crate::plan::PortPlan| {
            format!("{} {} -> {}", port.key, frontends(port), names(&port.cluster)).trim_end().to_owned()
        };
        assert_eq!(plan.ports.values().map(|port| shown(port)).collect::<Vec<_>>(), wanted);
        assert_eq!(lost, [], "the cluster's DNS does not contest its own address");
    }

    #[test]
    fn own_dns_answers_at_the_cluster_dns_address() {
        check(
            &["10.96.0.10", "fd00:96::a"],
            &["169.254.20.10:53"],
            &[
                "default/kube-dns:dns/udp [fd00:96::a]:53 ->",
                "default/kube-dns:dns-tcp/tcp [fd00:96::a]:53 ->",
                "default/kube-dns:metrics/tcp 10.96.0.10:9153 -> e1:9153",
                "default/kube-dns:metrics/tcp [fd00:96::a]:9153 ->",
                "shunt/cluster-dns:dns/udp 10.96.0.10:53 -> e1:53 e10:53",
                "shunt/cluster-dns:dns-tcp/tcp 10.96.0.10:53 -> e1:53 e10:53",
            ],
        );
    }

    /// Where the cluster DNS address leads with this Service and these endpoints: open, closed, and whether it falls
    /// back.
    #[track_caller]
    fn check_closed(words: &str, endpoints: &str, wanted: &str) {
        let options = PlanOptions {
            cluster_dns: vec![ip("10.96.0.10")],
            dns_backends: vec!["169.254.20.10:53".parse().unwrap()],
            ..options()
        };
        let others = service("kube-dns", words);
        let snapshot = cluster([others], [slice("kube-dns", "a", "dns:53/udp dns-tcp:53/tcp", endpoints)]);
        let (whole, _) = plan(&snapshot, &options);
        let shown = |port: &crate::plan::PortPlan| {
            let frontend = &port.frontends[0];
            let others: Vec<_> = port.cluster.iter().filter(|endpoint| !endpoint.local).copied().collect();
            assert!(frontend.falls_back && frontend.from_pods.list == frontend.at_sockets);
            format!("{} {}", names(port.list(frontend.at_sockets)), names(&others)).trim_end().to_owned()
        };
        let own: Vec<_> = whole.ports.values().filter(|port| &*port.key.service.namespace == "shunt").collect();
        assert_eq!(own.len(), 2);
        assert_eq!(own.into_iter().map(|port| shown(port)).collect::<Vec<_>>().join(", "), wanted);
        // The planner comes to the same from any state before.
        let mut planner = crate::plan::Planner::new(options);
        for before in [cluster([], []), snapshot.clone(), cluster([], []), snapshot] {
            planner.update(std::sync::Arc::new(before));
        }
        assert_eq!(*planner.plan(), whole);
    }

    #[test]
    fn while_own_dns_is_closed_the_endpoints_of_the_service_serve() {
        let both = "ip=10.96.0.10 port=dns:53/udp port=dns-tcp:53/tcp";
        check_closed(both, "e1:R; e2:R", "e10:53 e1:53 e2:53, e10:53 e1:53 e2:53");
        check_closed(both, "", "e10:53, e10:53");
        check_closed(both, "e1:U", "e10:53, e10:53");
        check_closed("ip=10.96.0.10 port=dns:53/udp", "e1:R", "e10:53 e1:53, e10:53");
        check_closed("ip=10.96.0.77 port=dns:53/udp", "e1:R", "e10:53, e10:53");
        // Only the Service whose cluster IP it is stands in, not one that names the address as an external IP.
        let external = "ip=10.96.0.77 ext=10.96.0.10 port=dns:53/udp port=dns-tcp:53/tcp";
        check_closed(external, "e1:R", "e10:53, e10:53");
        // A pod of this node is no server of the daemon.
        check_closed(both, "e1:Rl", "e10:53 e1:53, e10:53 e1:53");
    }

    #[test]
    fn with_internal_policy_local_only_the_pods_of_the_node_serve_meanwhile() {
        let both = "ip=10.96.0.10 iTP port=dns:53/udp port=dns-tcp:53/tcp";
        check_closed(both, "e1:Rl; e2:R", "e10:53 e1:53, e10:53 e1:53");
        check_closed(both, "e2:R", "e10:53, e10:53");
        check_closed(&format!("{both} np=30053"), "e1:Rl; e2:R", "e10:53 e1:53, e10:53 e1:53");
    }

    #[test]
    fn who_only_names_the_address_gets_none_of_its_queries() {
        let both = "ip=10.96.0.77 port=dns:53/udp port=dns-tcp:53/tcp";
        for address in ["ext=10.96.0.10", "vip=10.96.0.10 type=lb"] {
            check_closed(&format!("{both} {address}"), "e1:R", "e10:53, e10:53");
        }
    }

    #[test]
    fn without_own_dns_the_service_serves() {
        check(
            &["10.96.0.10"],
            &[],
            &[
                "default/kube-dns:dns/udp 10.96.0.10:53 -> e1:53",
                "default/kube-dns:dns/udp [fd00:96::a]:53 ->",
                "default/kube-dns:dns-tcp/tcp 10.96.0.10:53 -> e1:53",
                "default/kube-dns:dns-tcp/tcp [fd00:96::a]:53 ->",
                "default/kube-dns:metrics/tcp 10.96.0.10:9153 -> e1:9153",
                "default/kube-dns:metrics/tcp [fd00:96::a]:9153 ->",
            ],
        );
    }

    #[test]
    fn the_name_of_own_dns_is_taken() {
        let mut impostor = service("cluster-dns", "ip=10.96.0.10 port=dns:53/udp created=1");
        impostor.key.namespace = "shunt".into();
        let options = PlanOptions {
            cluster_dns: vec![ip("10.96.0.10")],
            dns_backends: vec!["169.254.20.10:53".parse().unwrap()],
            ..options()
        };
        let (with, _) = plan(&cluster([impostor.clone()], []), &options);
        let (without, _) = plan(&cluster([], []), &options);
        assert_eq!(with, without);
        let (off, _) = plan(&cluster([impostor], []), &PlanOptions { dns_backends: Vec::new(), ..options });
        assert_eq!(off.ports.len(), 1);
    }
}
