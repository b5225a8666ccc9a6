//! The frontends of a service port, and which list serves which source there (IN-10…26, EP-1…4, DT-1…3).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;

use imbl::ordmap::DiffItem;
use shunt_model::{ClusterIps, Family, ObjectKey, Service, ServiceKind, ServicePort, Snapshot, TrafficPolicy};

use super::lists::Needs;
use super::{Empty, EmptyAtSocket, EmptyLocal, Frontend, FrontendKind, List, PlanOptions, Rule};

/// A frontend without its rules. Depends on the Service only, not on its endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Site {
    pub(super) address: Option<IpAddr>,
    pub(super) port: NonZeroU16,
    pub(super) kind: FrontendKind,
}

impl Frontend {
    /// Where it is, without its rules.
    pub(super) fn site(&self) -> Site {
        Site { address: self.address, port: self.port, kind: self.kind }
    }
}

/// Whether we balance this Service at all (IN-1, IN-10).
pub(super) fn is_balanced(service: &Service) -> bool {
    let has_address = match &service.cluster_ips {
        ClusterIps::Headless | ClusterIps::Unassigned => false,
        ClusterIps::Assigned(addresses) => !addresses.is_empty(),
    };
    let is_alias = match &service.kind {
        ServiceKind::ExternalName(_) => true,
        ServiceKind::ClusterIp | ServiceKind::NodePort | ServiceKind::LoadBalancer => false,
    };
    has_address && !is_alias && !service.other_proxy
}

/// Every service port in every family in which the Service has a cluster IP; without one it does not exist there,
/// whatever other addresses it lists (IN-11).
pub(super) fn ports_of(service: &Service) -> impl Iterator<Item = (&ServicePort, Family, IpAddr)> {
    let families = Family::BOTH.into_iter().filter(|_| is_balanced(service));
    families
        .filter_map(|family| Some((family, service.cluster_ip(family)?)))
        .flat_map(|(family, cluster_ip)| service.ports.iter().map(move |port| (port, family, cluster_ip)))
}

/// The frontends of this port: node port first, then addresses in order, each once.
pub(super) fn sites_of(
    service: &Service,
    (port, family, cluster_ip): (&ServicePort, Family, IpAddr),
    external_ips: bool,
) -> Vec<Site> {
    let at = |kind| move |address: &IpAddr| Site { address: Some(*address), port: port.port, kind };
    let mut sites = vec![at(FrontendKind::ClusterIp)(&cluster_ip)];
    sites.extend(of_family(&service.load_balancer_ips, family).map(at(FrontendKind::LoadBalancer)));
    let external = of_family(&service.external_ips, family).filter(|_| external_ips); // IN-16
    sites.extend(external.map(at(FrontendKind::External)));
    sites.retain(|site| site.address.is_none_or(|address| why_not_served(&address).is_none()));
    sites.extend(port.node_port.map(|port| Site { address: None, port, kind: FrontendKind::NodePort }));
    // A stable sort: of an address that is listed twice, the kind that was pushed first stays. A load balancer's
    // address that is also an external IP stays a load balancer's address, so source ranges hold for it (TP-36 as in
    // nftables mode).
    sites.sort_by_key(|site| (site.address, site.port));
    sites.dedup_by_key(|site| (site.address, site.port));
    sites
}

/// Why no Service is served at `address`, whoever writes it into one (TP-9). Link-local addresses are served as any
/// other: cluster DNS often has one.
pub(super) fn why_not_served(address: &IpAddr) -> Option<&'static str> {
    let is_broadcast = match address {
        IpAddr::V4(v4) => v4.is_broadcast(),
        IpAddr::V6(_) => false,
    };
    if address.is_loopback() {
        Some("each pod and node has a loopback of its own")
    } else if address.is_unspecified() {
        Some("a client that dials it reaches its own loopback")
    } else if address.is_multicast() || is_broadcast {
        Some("it is the address of many hosts")
    } else {
        None
    }
}

/// The addresses of Services at which these are not served, and which `old` did not have.
pub(super) fn newly_not_served(old: &Snapshot, new: &Snapshot) -> Vec<(ObjectKey, IpAddr)> {
    let mut found = Vec::new();
    for item in old.services.diff(&new.services) {
        let (before, service) = match item {
            DiffItem::Add(_, service) => (BTreeSet::new(), service),
            DiffItem::Update { old: (_, old), new: (_, service) } => (not_served(old), service),
            DiffItem::Remove(..) => continue,
        };
        let fresh = not_served(service).into_iter().filter(|address| !before.contains(address));
        found.extend(fresh.map(|address| (service.key.clone(), address)));
    }
    found
}

fn not_served(service: &Service) -> BTreeSet<IpAddr> {
    let cluster_ips = Family::BOTH.into_iter().filter_map(|family| service.cluster_ip(family));
    let others = service.load_balancer_ips.iter().chain(&service.external_ips).copied();
    cluster_ips.chain(others).filter(|address| is_balanced(service) && why_not_served(address).is_some()).collect()
}

/// The lists this service port uses (EP-2, EP-3, EP-4). External IPs count even if they are switched off (IN-16).
pub(super) fn needs_of(service: &Service, port: &ServicePort, family: Family) -> Needs {
    let external = port.node_port.is_some()
        || of_family(&service.load_balancer_ips, family).next().is_some()
        || of_family(&service.external_ips, family).next().is_some();
    match service.internal_policy {
        TrafficPolicy::Cluster => Needs { cluster: true, local: external && is_external_local(service) },
        TrafficPolicy::Local => Needs { cluster: external, local: true },
    }
}

/// What the rules depend on besides the Service and the kind of frontend.
#[derive(Clone, Copy, Debug)]
pub(super) struct Situation<'a> {
    /// The service port has endpoints on some node (EP-22).
    pub(super) has_endpoints: bool,
    /// The Service has source ranges of this family.
    pub(super) restricted: bool,
    /// Of the service port.
    pub(super) family: Family,
    pub(super) options: &'a PlanOptions,
}

/// The rules for flows from pods, from the node and from outside.
type Rules = (Rule, Rule, Rule);

/// Turns a site into a frontend by the decision table (DT-1…3) and the matrix of source NAT (MX-2).
pub(super) fn frontend(site: Site, service: &Service, situation: Situation<'_>) -> Frontend {
    let Situation { has_endpoints, restricted, family, options } = situation;
    let local = |masquerade| local_rule(has_endpoints, masquerade);
    let (from_pods, from_node, from_outside) = match site.kind {
        FrontendKind::ClusterIp => match service.internal_policy {
            TrafficPolicy::Cluster => cluster_ip_rules(cluster_rule, options, family),
            TrafficPolicy::Local => cluster_ip_rules(local, options, family),
        },
        FrontendKind::External | FrontendKind::LoadBalancer | FrontendKind::NodePort => {
            match (is_external_local(service), options.detector.covers(family)) {
                (false, _) => (cluster_rule(true), cluster_rule(true), cluster_rule(true)), // TP-20
                // Pods and the node reach the Service without leaving the cluster (TP-21, TP-22, TP-25).
                (true, true) => (cluster_rule(false), cluster_rule(true), local(false)),
                (true, false) => (local(false), cluster_rule(true), local(false)), // TP-19
            }
        }
    };
    let filtered = match site.kind {
        FrontendKind::LoadBalancer => restricted,
        FrontendKind::ClusterIp | FrontendKind::External | FrontendKind::NodePort => false,
    };
    let at_sockets = match (site.kind, service.internal_policy) {
        (FrontendKind::ClusterIp, TrafficPolicy::Local) => List::Local,
        (FrontendKind::ClusterIp, TrafficPolicy::Cluster) => List::Cluster,
        // A client inside the cluster does not leave it to reach the Service (TP-21, TP-22).
        (FrontendKind::External | FrontendKind::LoadBalancer | FrontendKind::NodePort, _) => List::Cluster,
    };
    let Site { address, port, kind } = site;
    Frontend { falls_back: false, address, port, kind, filtered, at_sockets, from_pods, from_node, from_outside }
}

/// What a socket gets when policy Local has no endpoint. Where no node has one, a refusal is right in any case.
pub(super) fn empty_local_at_sockets(has_endpoints: bool, options: &PlanOptions) -> EmptyAtSocket {
    match (has_endpoints, options.empty_local) {
        (true, EmptyLocal::Pass) => EmptyAtSocket::Pass,
        (true, EmptyLocal::Refuse) | (false, EmptyLocal::Refuse | EmptyLocal::Pass) => EmptyAtSocket::Refuse,
    }
}

/// The rules of a cluster IP, which differ in source NAT alone (TP-40).
pub(super) fn cluster_ip_rules(rule: impl Fn(bool) -> Rule, options: &PlanOptions, family: Family) -> Rules {
    match (options.masquerade_all, options.detector.covers(family)) {
        (true, _) => (rule(true), rule(true), rule(true)),
        (false, true) => (rule(false), rule(true), rule(true)),
        (false, false) => (rule(false), rule(false), rule(false)),
    }
}

/// Policy Cluster.
fn cluster_rule(masquerade: bool) -> Rule {
    Rule { list: List::Cluster, empty: Empty::Reject, masquerade }
}

/// Policy Local. Packets are dropped only if another node has an endpoint; otherwise the flow is refused.
fn local_rule(has_endpoints: bool, masquerade: bool) -> Rule {
    let empty = if has_endpoints { Empty::Drop } else { Empty::Reject };
    Rule { list: List::Local, empty, masquerade }
}

/// Policy Local counts only for a Service that clients outside can reach (IN-19).
fn is_external_local(service: &Service) -> bool {
    let accessible = match &service.kind {
        ServiceKind::LoadBalancer | ServiceKind::NodePort => true,
        ServiceKind::ClusterIp => !service.external_ips.is_empty(),
        ServiceKind::ExternalName(_) => false,
    };
    accessible && service.external_policy == TrafficPolicy::Local
}

fn of_family(addresses: &[IpAddr], family: Family) -> impl Iterator<Item = &IpAddr> {
    addresses.iter().filter(move |address| Family::of(address) == family)
}

#[cfg(test)]
mod tests {
    use super::{newly_not_served, why_not_served};
    use crate::plan::fixture::{cluster, frontends, names, options, service, slice};
    use crate::plan::{PlanOptions, plan};

    /// Each planned port of a Service `web` as `port family: frontends`.
    #[track_caller]
    fn check(words: &str, wanted: &[&str]) {
        let endpoints = slice("web", "web-1", "http:80/tcp dns:53/udp", "e1:R");
        let (plan, conflicts) = plan(&cluster([service("web", words)], [endpoints]), &options());
        let shown =
            |port: &crate::plan::PortPlan| format!("{} {}: {}", port.key.port, port.key.family, frontends(port));
        assert_eq!(plan.ports.values().map(|port| shown(port)).collect::<Vec<_>>(), wanted);
        assert_eq!(conflicts, []);
    }

    #[test]
    fn a_service_is_dialled_at_all_its_addresses_and_its_node_port() {
        check("ip=10.96.0.1", &["http IPv4: 10.96.0.1:80"]); // TP-1
        check(
            "ip=10.96.0.1 np=30080 ext=203.0.113.9 vip=192.0.2.1 type=lb",
            &["http IPv4: *:30080 10.96.0.1:80 192.0.2.1:80 203.0.113.9:80"], // TP-2, TP-3
        );
        check("ip=10.96.0.1 type=lb vip=192.0.2.1", &["http IPv4: 10.96.0.1:80 192.0.2.1:80"]); // IN-26
        check("ip=10.96.0.1 vip=192.0.2.1", &["http IPv4: 10.96.0.1:80 192.0.2.1:80"]); // IN-15: whatever the type
        check("ip=10.96.0.1 ext=192.0.2.1 ext=192.0.2.1 vip=192.0.2.1", &["http IPv4: 10.96.0.1:80 192.0.2.1:80"]);
    }

    #[test]
    fn ports_and_families_stand_for_themselves() {
        check(
            "ip=10.96.0.1 port=http:80/tcp port=dns:53/udp",
            &["dns IPv4: 10.96.0.1:53", "http IPv4: 10.96.0.1:80"], // IN-12
        );
        check(
            "ip=10.96.0.1 ip=fd00:96::1 np=30080 ext=2001:db8::1",
            &["http IPv4: *:30080 10.96.0.1:80", "http IPv6: *:30080 [2001:db8::1]:80 [fd00:96::1]:80"],
        );
        check("ip=10.96.0.1 ext=2001:db8::1", &["http IPv4: 10.96.0.1:80"]); // IN-11: no cluster IP, no IPv6
        check("ip=10.96.0.1 port=:53/tcp port=:53/udp", &[" IPv4: 10.96.0.1:53", " IPv4: 10.96.0.1:53"]); // IN-14
    }

    #[test]
    fn external_ips_can_be_switched_off() {
        let options = PlanOptions { external_ips: false, ..options() };
        let service = service("web", "ip=10.96.0.1 ext=203.0.113.9 ext=192.0.2.1 vip=192.0.2.1 eTP");
        let (plan, _) = plan(&cluster([service], [slice("web", "a", "http:80/tcp", "e1:R; e2:Rl")]), &options);
        let port = plan.ports.values().next().unwrap();
        assert_eq!(frontends(port), "10.96.0.1:80 192.0.2.1:80"); // IN-16
        assert_eq!(names(&port.local), "e2", "the raw list still makes it accessible from outside"); // IN-16, IN-19
    }

    #[test]
    fn no_service_is_served_at_loopback_or_at_the_address_of_many_hosts() {
        for own in ["127.0.0.1", "127.1.2.3", "0.0.0.0", "224.0.0.251", "239.1.2.3", "255.255.255.255"] {
            for kind in ["ext", "vip"] {
                check(
                    &format!("ip=10.96.0.1 {kind}={own} {kind}=192.0.2.1"),
                    &["http IPv4: 10.96.0.1:80 192.0.2.1:80"],
                );
            }
            check(&format!("ip={own} np=30080"), &["http IPv4: *:30080"]); // TP-9
        }
        for own in ["::1", "::", "ff02::fb", "ff05::1"] {
            check(&format!("ip=fd00:96::1 ext={own} vip={own}"), &["http IPv6: [fd00:96::1]:80"]);
        }
        for (address, wanted) in [
            ("127.9.9.9", Some("each pod and node has a loopback of its own")),
            ("::", Some("a client that dials it reaches its own loopback")),
            ("ff02::fb", Some("it is the address of many hosts")),
            ("255.255.255.255", Some("it is the address of many hosts")),
            ("0.0.0.1", None),
        ] {
            assert_eq!(why_not_served(&address.parse().unwrap()), wanted, "{address}");
        }
        // These mean one host, as with kube-proxy.
        check("ip=10.96.0.1 vip=169.254.20.9", &["http IPv4: 10.96.0.1:80 169.254.20.9:80"]);
        check("ip=fd00:96::1 vip=fe80::9", &["http IPv6: [fd00:96::1]:80 [fe80::9]:80"]);
    }

    #[test]
    fn an_address_that_is_not_served_is_reported_once() {
        let of = |words: &[&str]| {
            let names = ["web", "api"].into_iter().zip(words);
            cluster(names.map(|(name, words)| service(name, words)), [])
        };
        let told = |old: &[&str], new: &[&str]| {
            let found = newly_not_served(&of(old), &of(new)).into_iter();
            found.map(|(service, address)| format!("{service} {address}")).collect::<Vec<_>>().join(", ")
        };
        let web = "ip=10.96.0.1 ip=fd00:96::1 vip=127.0.0.1 ext=::1 ext=192.0.2.1";
        assert_eq!(told(&[], &[web]), "default/web 127.0.0.1, default/web ::1");
        assert_eq!(told(&[web], &[&format!("{web} aff=60")]), "");
        assert_eq!(
            told(&[web], &[&format!("{web} vip=0.0.0.0"), "ip=127.0.0.9"]),
            "default/api 127.0.0.9, default/web 0.0.0.0"
        );
        assert_eq!(told(&[web], &[]), "");
        assert_eq!(told(&[], &["headless vip=127.0.0.1"]), "", "it is not served anywhere");
    }

    #[test]
    fn services_that_we_do_not_balance_are_left_out() {
        check("", &[]); // IN-10: unassigned
        check("headless ext=203.0.113.9", &[]); // IN-10
        check("ip=10.96.0.1 alias", &[]); // IN-10: ExternalName with an address left over
        check("ip=10.96.0.1 np=30080 other", &[]); // IN-1
    }
}
