//! The reference reading of a plan: what becomes of the first packet of a flow. Every data path is tested against it.

use std::net::IpAddr;

use shunt_model::{Family, Protocol};

use super::node::as_listed;
use super::{Empty, Endpoint, Frontend, FrontendKind, List, Plan, PortKey, PortPlan, Rule};

/// The first packet of a flow, as far as the plan cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Who sends it.
    pub source: Source,
    /// Its source address, if known: at a socket it is chosen after the destination.
    pub source_address: Option<IpAddr>,
    /// Where it is sent; an IPv4-mapped address counts as IPv4.
    pub destination: IpAddr,
    /// The port it is sent to; 0 as in a socket that only asks for its source address.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// Who sends a packet, after the local detector has had its say (spec 3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// A pod.
    Pod,
    /// This node itself, pods in its network namespace included.
    Node,
    /// Anybody else.
    Outside,
}

/// What becomes of a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// No service port of ours is meant; leave the packet alone.
    NotOurs,
    /// Pick one of the endpoints; there is at least one.
    Forward {
        /// The service port.
        port: &'a PortKey,
        /// Whom to pick from.
        endpoints: &'a [Endpoint],
    },
    /// Refuse at once (spec NE-4).
    Reject,
    /// Say nothing (spec NE-5).
    Drop,
}

/// A verdict with what led to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<'a> {
    /// The outcome.
    pub verdict: Verdict<'a>,
    /// Why; `None` if the packet is not ours.
    pub reason: Option<Reason<'a>>,
}

/// Which frontend was met and which rule applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason<'a> {
    /// The frontend that was met; `None` if the address is refused whatever is behind its other ports.
    pub met: Option<Met<'a>>,
    /// The rule of the spec behind it: for [`Verdict::Forward`] why this list, else why this refusal.
    pub spec: &'static str,
}

/// A frontend that a packet has met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Met<'a> {
    /// The service port that was dialled.
    pub port: &'a PortPlan,
    /// The frontend that matched.
    pub frontend: &'a Frontend,
    /// The rule for this kind of source.
    pub rule: Rule,
    /// Whether the source ranges let it pass, if they apply to this frontend.
    pub admitted: Option<bool>,
}

impl Plan {
    /// What becomes of a new flow that starts with `packet`.
    #[must_use]
    pub fn verdict(&self, packet: &Packet) -> Verdict<'_> {
        self.decide(packet).verdict
    }

    /// As [`Plan::verdict`], with the reason. Looks at every frontend: made to be evident, not fast.
    #[must_use]
    pub fn decide(&self, packet: &Packet) -> Decision<'_> {
        let packet = Packet { destination: packet.destination.to_canonical(), ..*packet };
        match self.met_by(&packet) {
            Some(met) => decide_at(met, packet.source),
            None => self.decide_elsewhere(&packet),
        }
    }

    /// The frontend a packet is sent to: addresses come before node ports (spec TP-4).
    fn met_by(&self, packet: &Packet) -> Option<Met<'_>> {
        let frontends = || {
            self.frontends_of(Family::of(&packet.destination))
                .filter(|(port, frontend)| port.key.protocol == packet.protocol && frontend.port.get() == packet.port)
        };
        let at_address = || frontends().find(|(_, frontend)| frontend.address == Some(packet.destination));
        let at_node = || frontends().find(|(_, frontend)| frontend.address.is_none());
        let (port, frontend) = at_address().or_else(|| at_node().filter(|_| self.accepts_node_ports(packet)))?;
        Some(Met { port, frontend, rule: frontend.rule_for(packet.source), admitted: admitted(port, frontend, packet) })
    }

    /// Whether node ports are accepted where the packet is sent (spec 3.2).
    #[must_use]
    pub fn accepts_node_ports(&self, packet: &Packet) -> bool {
        let address = as_listed(packet.destination.to_canonical());
        let reachable = match packet.source {
            Source::Node => true,
            // Every network namespace has a loopback of its own.
            Source::Pod | Source::Outside => !address.is_loopback(),
        };
        reachable && self.node_addresses.contains(&address)
    }

    /// What becomes of a packet that meets no frontend.
    fn decide_elsewhere(&self, packet: &Packet) -> Decision<'_> {
        let refused = |verdict, spec| Decision { verdict, reason: Some(Reason { met: None, spec }) };
        let not_ours = Decision { verdict: Verdict::NotOurs, reason: None };
        if packet.port == 0 {
            return not_ours;
        }
        let mut kinds = self
            .frontends_of(Family::of(&packet.destination))
            .filter(|(_, frontend)| frontend.address == Some(packet.destination))
            .map(|(_, frontend)| frontend.kind)
            .peekable();
        let in_use = kinds.peek().is_some();
        if kinds.any(|kind| kind == FrontendKind::ClusterIp) {
            refused(Verdict::Reject, "NE-11")
        } else if !in_use && self.service_cidrs.iter().any(|range| range.contains(&packet.destination)) {
            refused(Verdict::Drop, "NE-12")
        } else {
            not_ours
        }
    }

    fn frontends_of(&self, family: Family) -> impl Iterator<Item = (&PortPlan, &Frontend)> {
        let ports = self.ports.values().filter(move |port| port.key.family == family);
        ports.flat_map(|port| port.frontends.iter().map(move |frontend| (&**port, frontend)))
    }
}

/// Source ranges hold for load balancer addresses only (spec TP-30), and for every source (TP-31).
fn admitted(port: &PortPlan, frontend: &Frontend, packet: &Packet) -> Option<bool> {
    match frontend.kind {
        FrontendKind::LoadBalancer => {
            port.source_ranges.as_ref().map(|ranges| ranges.admit(packet.source, packet.source_address))
        }
        FrontendKind::ClusterIp | FrontendKind::External | FrontendKind::NodePort => None,
    }
}

fn decide_at(met: Met<'_>, source: Source) -> Decision<'_> {
    let Met { port, frontend, rule, admitted } = met;
    let endpoints = port.list(rule.list);
    // The ranges come first, so that who is kept out does not learn whether anybody serves (TP-35).
    let (verdict, spec) = match (admitted, endpoints.is_empty(), rule.empty) {
        (Some(false), _, _) => (Verdict::Drop, "TP-32"),
        (_, false, _) => (Verdict::Forward { port: &port.key, endpoints }, spec_of_list(frontend, source)),
        (_, true, Empty::Reject) => (Verdict::Reject, "NE-1"),
        (_, true, Empty::Drop) if is_internal(frontend) => (Verdict::Drop, "NE-2"),
        (_, true, Empty::Drop) => (Verdict::Drop, "NE-3"),
    };
    Decision { verdict, reason: Some(Reason { met: Some(met), spec }) }
}

impl PortPlan {
    /// One of the two lists.
    #[must_use]
    pub fn list(&self, list: List) -> &[Endpoint] {
        match list {
            List::Cluster => &self.cluster,
            List::Local => &self.local,
        }
    }
}

impl Frontend {
    /// The rule for flows from `source`.
    #[must_use]
    pub fn rule_for(&self, source: Source) -> Rule {
        match source {
            Source::Pod => self.from_pods,
            Source::Node => self.from_node,
            Source::Outside => self.from_outside,
        }
    }
}

fn is_internal(frontend: &Frontend) -> bool {
    match frontend.kind {
        FrontendKind::ClusterIp => true,
        FrontendKind::External | FrontendKind::LoadBalancer | FrontendKind::NodePort => false,
    }
}

/// The rule of the spec by which this list serves this source.
fn spec_of_list(frontend: &Frontend, source: Source) -> &'static str {
    let list = frontend.rule_for(source).list;
    match (is_internal(frontend), frontend.from_outside.list, list, source) {
        (true, _, List::Cluster, _) => "EP-20",
        (true, _, List::Local, _) => "EP-21",
        (false, List::Cluster, _, _) => "TP-20",
        (false, List::Local, List::Cluster, Source::Pod) => "TP-21",
        (false, List::Local, List::Cluster, Source::Node | Source::Outside) => "TP-22",
        (false, List::Local, List::Local, _) => "TP-23",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::{cluster, ip, names, options, service, set_node, slice};
    use crate::plan::{Detect, PlanOptions, plan};

    const NODE_IP: &str = "198.51.100.1";

    const ADDRESSES: &str = "ip=10.96.0.1 np=30080 ext=203.0.113.9 vip=192.0.2.1";
    const SOURCES: [Source; 3] = [Source::Pod, Source::Node, Source::Outside];

    fn shown(verdict: &Verdict<'_>) -> String {
        match verdict {
            Verdict::NotOurs => "not ours".to_owned(),
            Verdict::Forward { endpoints, .. } => names(*endpoints),
            Verdict::Reject => "reject".to_owned(),
            Verdict::Drop => "drop".to_owned(),
        }
    }

    fn packet(source: Source, to: &str) -> Packet {
        let (address, port) = to.rsplit_once(':').unwrap();
        let destination = if address == "node" { ip(NODE_IP) } else { ip(address) };
        let port = port.parse().unwrap();
        Packet { source, source_address: None, destination, port, protocol: Protocol::Tcp }
    }

    /// What flows from pod, node and outside get: at the cluster IP, and at every external frontend.
    #[track_caller]
    fn check(words: &str, detector: Detect, endpoints: &str, internal: [&str; 3], external: [&str; 3]) {
        let service = service("web", &format!("{words} {ADDRESSES}"));
        let mut snapshot = cluster([service], [slice("web", "web-1", "http:80/tcp", endpoints)]);
        set_node(&mut snapshot, None, &[NODE_IP]);
        let (plan, _) = plan(&snapshot, &PlanOptions { detector, ..options() });
        let at = |to| SOURCES.map(|source| shown(&plan.verdict(&packet(source, to))));
        assert_eq!(at("10.96.0.1:80"), internal, "cluster IP");
        for frontend in ["node:30080", "203.0.113.9:80", "192.0.2.1:80"] {
            assert_eq!(at(frontend), external, "{frontend}");
        }
    }

    #[test]
    fn decision_table() {
        let (all, one) = ("e1 e2", "e1");
        let (both, far, gone) = ("e1:Rl; e2:R", "e2:R", "e1:Ul; e2:U");
        let pods = Detect::Both;
        check("", pods, both, [all; 3], [all; 3]);
        check("", pods, gone, ["reject"; 3], ["reject"; 3]); // NE-1
        check("iTP", pods, both, [one; 3], [all; 3]);
        check("iTP", pods, far, ["drop"; 3], ["e2"; 3]); // NE-2
        check("iTP", pods, gone, ["reject"; 3], ["reject"; 3]);
        check("eTP", pods, both, [all; 3], [all, all, one]); // TP-21…23
        check("eTP", pods, far, ["e2"; 3], ["e2", "e2", "drop"]); // NE-3
        check("eTP", pods, gone, ["reject"; 3], ["reject"; 3]);
        check("iTP eTP", pods, both, [one; 3], [all, all, one]);
        check("iTP eTP", pods, far, ["drop"; 3], ["e2", "e2", "drop"]);
    }

    #[test]
    fn without_detector_pods_are_outside() {
        for nothing in [Detect::Nothing, Detect::Only(Family::V6)] {
            check("eTP", nothing, "e1:Rl; e2:R", ["e1 e2"; 3], ["e1", "e1 e2", "e1"]); // TP-19
            check("eTP", nothing, "e2:R", ["e2"; 3], ["drop", "e2", "drop"]);
        }
        check("eTP", Detect::Only(Family::V4), "e1:Rl; e2:R", ["e1 e2"; 3], ["e1 e2", "e1 e2", "e1"]);
    }

    /// The columns of spec 3.7 that say which endpoints answer.
    #[test]
    fn upstream_matrix() {
        let endpoints = "e1:Rl; e2:R";
        check("", Detect::Both, endpoints, ["e1 e2"; 3], ["e1 e2"; 3]);
        check("eTP", Detect::Both, endpoints, ["e1 e2"; 3], ["e1 e2", "e1 e2", "e1"]);
        check("iTP", Detect::Both, endpoints, ["e1"; 3], ["e1 e2"; 3]);
    }

    #[track_caller]
    fn check_decision(words: &str, endpoints: &str, source: Source, to: &str, wanted: (&str, Option<&str>)) {
        let service = service("web", words);
        let mut snapshot = cluster([service], [slice("web", "web-1", "http:80/tcp", endpoints)]);
        set_node(&mut snapshot, None, &[NODE_IP]);
        let (plan, _) = plan(&snapshot, &options());
        let decision = plan.decide(&packet(source, to));
        assert_eq!((shown(&decision.verdict).as_str(), decision.reason.map(|reason| reason.spec)), wanted);
    }

    #[test]
    fn decisions_name_the_rule() {
        let (words, one) = ("ip=10.96.0.1 np=30080", "e1:R");
        check_decision(words, one, Source::Pod, "10.96.0.1:80", ("e1", Some("EP-20")));
        check_decision(words, one, Source::Pod, "10.96.0.1:81", ("reject", Some("NE-11")));
        check_decision(words, one, Source::Pod, "10.96.0.2:80", ("not ours", None));
        check_decision(words, one, Source::Pod, "10.96.0.1:30080", ("reject", Some("NE-11")));
        check_decision(words, one, Source::Outside, "node:30080", ("e1", Some("TP-20")));
        check_decision(words, "", Source::Outside, "node:30080", ("reject", Some("NE-1")));
        check_decision("ip=10.96.0.1 iTP", one, Source::Node, "10.96.0.1:80", ("drop", Some("NE-2")));
        check_decision("ip=10.96.0.1 iTP", "e1:Rl", Source::Node, "10.96.0.1:80", ("e1", Some("EP-21")));
        let local = "ip=10.96.0.1 np=30080 eTP";
        check_decision(local, one, Source::Pod, "node:30080", ("e1", Some("TP-21")));
        check_decision(local, one, Source::Node, "node:30080", ("e1", Some("TP-22")));
        check_decision(local, one, Source::Outside, "node:30080", ("drop", Some("NE-3")));
        check_decision(local, "e1:Rl", Source::Outside, "node:30080", ("e1", Some("TP-23")));
    }

    #[track_caller]
    fn check_packet(words: &str, cidrs: &[&str], packet: Packet, wanted: (&str, Option<&str>)) {
        let services = [service("web", words), service("silent", "ip=10.96.0.9 vip=192.0.2.9 from=10.1.0.0/16")];
        let mut snapshot = cluster(services, [slice("web", "web-1", "http:80/tcp", "e1:R")]);
        set_node(&mut snapshot, None, &[NODE_IP]);
        let service_cidrs = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        let (plan, _) = plan(&snapshot, &PlanOptions { service_cidrs, ..options() });
        let decision = plan.decide(&packet);
        assert_eq!((shown(&decision.verdict).as_str(), decision.reason.map(|reason| reason.spec)), wanted);
    }

    #[test]
    fn unused_service_addresses_are_dropped_only_where_the_ranges_are_known() {
        let (words, range) = ("ip=10.96.0.1 np=30080 ext=10.96.0.7", &["10.96.0.0/12", "fd00:96::/112"][..]);
        for source in SOURCES {
            check_packet(words, range, packet(source, "10.96.0.2:80"), ("drop", Some("NE-12")));
            check_packet(words, range, packet(source, "fd00:96::1:80"), ("drop", Some("NE-12")));
            check_packet(words, &[], packet(source, "10.96.0.2:80"), ("not ours", None));
            check_packet(words, range, packet(source, "10.96.0.1:81"), ("reject", Some("NE-11")));
            check_packet(words, range, packet(source, "10.96.0.7:81"), ("not ours", None)); // NE-14
            check_packet(words, range, packet(source, "192.0.2.9:81"), ("not ours", None)); // NE-14
            check_packet(words, range, packet(source, "203.0.113.1:80"), ("not ours", None));
            // A socket that only asks for its source address must not be refused.
            check_packet(words, range, packet(source, "10.96.0.1:0"), ("not ours", None));
            check_packet(words, range, packet(source, "10.96.0.2:0"), ("not ours", None));
            let udp = Packet { protocol: Protocol::Udp, ..packet(source, "10.96.0.1:80") };
            check_packet(words, range, udp, ("reject", Some("NE-11"))); // IN-14
        }
    }

    #[test]
    fn loopback_node_ports_are_for_the_node_itself() {
        let words = "ip=10.96.0.1 ip=fd00:96::1 np=30080";
        for address in ["127.0.0.1:30080", "127.8.8.8:30080"] {
            check_packet(words, &[], packet(Source::Node, address), ("e1", Some("TP-20"))); // TP-15
            check_packet(words, &[], packet(Source::Pod, address), ("not ours", None));
            check_packet(words, &[], packet(Source::Outside, address), ("not ours", None));
        }
        check_packet(words, &[], packet(Source::Node, "::1:30080"), ("reject", Some("NE-1")));
        check_packet(words, &[], packet(Source::Pod, "node:30080"), ("e1", Some("TP-20")));
        check_packet(words, &[], packet(Source::Pod, "198.51.100.2:30080"), ("not ours", None)); // TP-3
    }

    #[test]
    fn source_ranges_come_first_and_hold_for_load_balancer_addresses_alone() {
        let words = "ip=10.96.0.1 np=30080 vip=192.0.2.1 ext=192.0.2.2 from=10.1.0.0/16";
        let from = |address: &str, to: &str| Packet { source_address: Some(ip(address)), ..packet(Source::Pod, to) };
        check_packet(words, &[], from("10.1.0.7", "192.0.2.1:80"), ("e1", Some("TP-20")));
        check_packet(words, &[], from("10.2.0.7", "192.0.2.1:80"), ("drop", Some("TP-32"))); // TP-31
        check_packet(words, &[], packet(Source::Pod, "192.0.2.1:80"), ("drop", Some("TP-32")));
        check_packet(words, &[], packet(Source::Node, "192.0.2.1:80"), ("drop", Some("TP-32")));
        for open in ["10.96.0.1:80", "192.0.2.2:80", "node:30080"] {
            let decision = if open == "10.96.0.1:80" { "EP-20" } else { "TP-20" };
            check_packet(words, &[], from("10.2.0.7", open), ("e1", Some(decision))); // TP-30
        }
        check_packet(words, &[], from("10.1.0.7", "192.0.2.9:80"), ("reject", Some("NE-1"))); // TP-35
        check_packet(words, &[], from("10.2.0.7", "192.0.2.9:80"), ("drop", Some("TP-32"))); // TP-35
    }

    #[test]
    fn mapped_addresses_count_as_ipv4_and_addresses_come_before_node_ports() {
        check_decision("ip=10.96.0.1", "e1:R", Source::Pod, "::ffff:10.96.0.1:80", ("e1", Some("EP-20"))); // IN-24
        let web = service("web", "ip=10.96.0.1 ext=198.51.100.1 port=http:30080/tcp");
        let other = service("other", "ip=10.96.0.2 np=30080");
        let slices = [slice("web", "a", "http:80/tcp", "e1:R"), slice("other", "a", "http:80/tcp", "e2:R")];
        let mut snapshot = cluster([web, other], slices);
        set_node(&mut snapshot, None, &[NODE_IP]);
        let (plan, _) = plan(&snapshot, &options());
        assert_eq!(shown(&plan.verdict(&packet(Source::Pod, "node:30080"))), "e1"); // TP-4
    }
}
