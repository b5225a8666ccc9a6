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
