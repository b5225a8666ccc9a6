//! The reference reading of a plan: what becomes of the first packet of a flow. Every data path is tested against it.

use std::net::IpAddr;

use shunt_model::{Family, Protocol};

use super::{Empty, Endpoint, Frontend, FrontendKind, List, Plan, PortKey, PortPlan, Rule};

/// The first packet of a flow, as far as the plan cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Who sends it.
    pub source: Source,
    /// Where it is sent; an IPv4-mapped address counts as IPv4.
    pub destination: IpAddr,
    /// The port it is sent to.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// `destination` is an address of this node on which node ports are accepted (spec 3.2).
    pub to_node: bool,
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

/// A verdict with the steps that led to it.
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
    /// The service port that was dialled.
    pub port: &'a PortPlan,
    /// The frontend that matched.
    pub frontend: &'a Frontend,
    /// The rule for this kind of source.
    pub rule: Rule,
    /// The rule of the spec behind it: for [`Verdict::Forward`] why this list, else why this refusal.
    pub spec: &'static str,
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
        let Some((port, frontend)) = self.frontend_of(packet) else {
            return Decision { verdict: Verdict::NotOurs, reason: None };
        };
        let rule = frontend.rule_for(packet.source);
        let endpoints = port.list(rule.list);
        let verdict = match (endpoints.is_empty(), rule.empty) {
            (false, _) => Verdict::Forward { port: &port.key, endpoints },
            (true, Empty::Reject) => Verdict::Reject,
            (true, Empty::Drop) => Verdict::Drop,
        };
        let spec = spec_of(frontend, packet.source, &verdict);
        Decision { verdict, reason: Some(Reason { port, frontend, rule, spec }) }
    }

    /// The frontend a packet is sent to: addresses come before node ports (spec TP-4).
    fn frontend_of(&self, packet: &Packet) -> Option<(&PortPlan, &Frontend)> {
        let destination = packet.destination.to_canonical();
        let frontends = || {
            self.ports
                .values()
                .filter(|port| port.key.protocol == packet.protocol && port.key.family == Family::of(&destination))
                .flat_map(|port| port.frontends.iter().map(move |frontend| (&**port, frontend)))
                .filter(|(_, frontend)| frontend.port.get() == packet.port)
        };
        let at_address = || frontends().find(|(_, frontend)| frontend.address == Some(destination));
        let at_node = || frontends().find(|(_, frontend)| frontend.address.is_none());
        at_address().or_else(|| at_node().filter(|_| packet.to_node))
    }
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

/// Names the rule of the spec that decided.
fn spec_of(frontend: &Frontend, source: Source, verdict: &Verdict<'_>) -> &'static str {
    let internal = match frontend.kind {
        FrontendKind::ClusterIp => true,
        FrontendKind::External | FrontendKind::LoadBalancer | FrontendKind::NodePort => false,
    };
    match (verdict, internal) {
        (Verdict::NotOurs, _) => "NE-14",
        (Verdict::Reject, _) => "NE-1",
        (Verdict::Drop, true) => "NE-2",
        (Verdict::Drop, false) => "NE-3",
        (Verdict::Forward { .. }, true) => match frontend.rule_for(source).list {
            List::Cluster => "EP-20",
            List::Local => "EP-21",
        },
        (Verdict::Forward { .. }, false) => {
            match (frontend.from_outside.list, frontend.rule_for(source).list, source) {
                (List::Cluster, _, _) => "TP-20",
                (List::Local, List::Cluster, Source::Pod) => "TP-21",
                (List::Local, List::Cluster, Source::Node | Source::Outside) => "TP-22",
                (List::Local, List::Local, _) => "TP-23",
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::{cluster, ip, names, options, service, slice};
    use crate::plan::{Detect, PlanOptions, plan};

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
        let destination = if address == "node" { ip("198.18.0.1") } else { ip(address) };
        let port = port.parse().unwrap();
        Packet { source, destination, port, protocol: Protocol::Tcp, to_node: address == "node" }
    }

    /// What flows from pod, node and outside get: at the cluster IP, and at every external frontend.
    #[track_caller]
    fn check(words: &str, detector: Detect, endpoints: &str, internal: [&str; 3], external: [&str; 3]) {
        let service = service("web", &format!("{words} {ADDRESSES}"));
        let snapshot = cluster([service], [slice("web", "web-1", "http:80/tcp", endpoints)]);
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
        let snapshot = cluster([service], [slice("web", "web-1", "http:80/tcp", endpoints)]);
        let (plan, _) = plan(&snapshot, &options());
        let decision = plan.decide(&packet(source, to));
        assert_eq!((shown(&decision.verdict).as_str(), decision.reason.map(|reason| reason.spec)), wanted);
    }

    #[test]
    fn decisions_name_the_rule() {
        let (words, one) = ("ip=10.96.0.1 np=30080", "e1:R");
        check_decision(words, one, Source::Pod, "10.96.0.1:80", ("e1", Some("EP-20")));
        check_decision(words, one, Source::Pod, "10.96.0.1:81", ("not ours", None));
        check_decision(words, one, Source::Pod, "10.96.0.2:80", ("not ours", None));
        check_decision(words, one, Source::Pod, "10.96.0.1:30080", ("not ours", None));
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

    #[test]
    fn mapped_addresses_count_as_ipv4_and_addresses_come_before_node_ports() {
        check_decision("ip=10.96.0.1", "e1:R", Source::Pod, "::ffff:10.96.0.1:80", ("e1", Some("EP-20"))); // IN-24
        let web = service("web", "ip=10.96.0.1 ext=198.18.0.1 port=http:30080/tcp");
        let other = service("other", "ip=10.96.0.2 np=30080");
        let slices = [slice("web", "a", "http:80/tcp", "e1:R"), slice("other", "a", "http:80/tcp", "e2:R")];
        let (plan, _) = plan(&cluster([web, other], slices), &options());
        assert_eq!(shown(&plan.verdict(&packet(Source::Pod, "node:30080"))), "e1"); // TP-4
    }
}
