//! The reference reading of a plan: what the first packet of a flow gets. Every data path is tested against it.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use shunt_model::{Family, Protocol};

use super::node::as_listed;
use super::{
    AddressMeaning, Empty, EmptyAtSocket, Endpoint, Frontend, FrontendKind, List, NodePorts, Plan, PortKey, PortPlan,
    Rule, RuleId, SourceRanges,
};

/// The first packet of a flow: the fields that the plan decides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The kind of its source.
    pub source: Source,
    /// Its source address, if known: at a socket the kernel chooses it after the destination.
    pub source_address: Option<IpAddr>,
    /// Its destination; an IPv4-mapped address counts as IPv4.
    pub destination: IpAddr,
    /// Its destination port; a socket that only asks for its source address has 0.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// The kind of source of a packet, as the local detector says (LD-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// A pod.
    Pod,
    /// This node itself, pods in its network namespace included.
    Node,
    /// Every other source.
    Outside,
}

/// What the packets of a new flow get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// The destination is no service port; do not touch the packet.
    NotOurs,
    /// Pick one of the endpoints; there is at least one.
    Forward {
        /// The service port.
        port: &'a PortKey,
        /// The endpoints to pick from.
        endpoints: &'a [Endpoint],
    },
    /// Refuse at once (NE-4).
    Reject,
    /// Drop: the client gets no answer (NE-5).
    Drop,
}

/// What a socket of this node gets that begins a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketVerdict<'a> {
    /// One of the endpoints; there is at least one.
    Forward {
        /// The service port.
        port: &'a PortKey,
        /// The endpoints to pick from.
        endpoints: &'a [Endpoint],
    },
    /// ECONNREFUSED at once.
    Refuse,
    /// EPERM at once: the source is outside of the source ranges.
    Deny,
    /// The socket keeps the address; its packets get what packets get.
    Pass,
}

/// A verdict with what led to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<'a> {
    /// The outcome.
    pub verdict: Verdict<'a>,
    /// Why; `None` if the destination is no address of Services.
    pub reason: Option<Reason<'a>>,
}

/// What a flow met, and the rule that applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason<'a> {
    /// What the flow is sent to.
    pub meeting: Meeting<'a>,
    /// The rule behind it: for [`Verdict::Forward`] why this list, else why this refusal.
    pub rule: RuleId,
}

/// What a flow is sent to, if the plan decides about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meeting<'a> {
    /// A frontend.
    Frontend(Met<'a>),
    /// A cluster IP at a port that its Service does not define (NE-11).
    UndefinedPort,
    /// An address in a range of Services that nothing uses (NE-12).
    UnusedAddress,
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
    /// Whether the source ranges admit the source, if they apply to this frontend.
    pub admitted: Option<bool>,
}

impl Plan {
    /// What a new flow gets that starts with `packet`.
    #[must_use]
    pub fn verdict(&self, packet: &Packet) -> Verdict<'_> {
        self.decide(packet).verdict
    }

    /// As [`Plan::verdict`], with the reason. Looks at every frontend: it is written to be easy to check, not to be
    /// fast.
    #[must_use]
    pub fn decide(&self, packet: &Packet) -> Decision<'_> {
        let Some(meeting) = self.meeting(packet) else {
            return Decision { verdict: Verdict::NotOurs, reason: None };
        };
        let (verdict, rule) = match meeting {
            Meeting::Frontend(met) => decide_at(met, packet.source),
            Meeting::UndefinedPort => (Verdict::without_endpoint(Self::UNDEFINED_PORT.packet), RuleId::Ne11),
            Meeting::UnusedAddress => (Verdict::without_endpoint(Self::UNUSED_ADDRESS.packet), RuleId::Ne12),
        };
        Decision { verdict, reason: Some(Reason { meeting, rule }) }
    }

    /// What a socket of this node gets whose first packet would be `packet`; its source is a pod or the node. The rule
    /// behind it is that of [`Plan::decide`], except for pods that opted out: their sockets are left alone (DP-16).
    #[must_use]
    pub fn decide_at_socket(&self, packet: &Packet) -> SocketVerdict<'_> {
        if self.has_opted_out(packet) {
            return SocketVerdict::Pass;
        }
        match self.meeting(packet) {
            Some(Meeting::Frontend(Met { admitted: Some(false), .. })) => SocketVerdict::Deny,
            Some(Meeting::Frontend(Met { port, frontend, .. })) => {
                match (port.list(frontend.at_sockets), frontend.at_sockets) {
                    ([], List::Cluster) => SocketVerdict::Refuse,
                    ([], List::Local) => SocketVerdict::without_endpoint(port.empty_local_at_sockets),
                    (endpoints, _) => SocketVerdict::Forward { port: &port.key, endpoints },
                }
            }
            Some(Meeting::UndefinedPort) if is_route_probe(packet) => SocketVerdict::Pass,
            Some(Meeting::UndefinedPort) => SocketVerdict::without_endpoint(Self::UNDEFINED_PORT.socket),
            Some(Meeting::UnusedAddress) => SocketVerdict::without_endpoint(Self::UNUSED_ADDRESS.socket),
            None => SocketVerdict::Pass,
        }
    }

    fn has_opted_out(&self, packet: &Packet) -> bool {
        match packet.source {
            Source::Pod => {
                packet.source_address.is_some_and(|address| self.opted_out.contains(&address.to_canonical()))
            }
            Source::Node | Source::Outside => false,
        }
    }

    /// Addresses come before node ports (TP-4), and both before what an address means at its other ports. A client that
    /// dials the unspecified address reaches its own loopback, which is no frontend (TP-9).
    fn meeting(&self, packet: &Packet) -> Option<Meeting<'_>> {
        let packet = Packet { destination: packet.destination.to_canonical(), ..*packet };
        let frontends = || {
            self.frontends_of(Family::of(&packet.destination))
                .filter(|(port, frontend)| port.key.protocol == packet.protocol && frontend.port.get() == packet.port)
        };
        let at_address = || frontends().find(|(_, frontend)| frontend.address == Some(packet.destination));
        let at_node = || frontends().find(|(_, frontend)| frontend.address.is_none());
        if let Some((port, frontend)) = at_address().or_else(|| at_node().filter(|_| self.accepts_node_ports(&packet)))
        {
            return Some(Meeting::Frontend(Met::new(port, frontend, &packet)));
        }
        let in_a_range = || self.service_cidrs.iter().any(|range| range.contains(&packet.destination));
        match self.meaning(packet.destination) {
            _ if packet.port == 0 => None,
            Some(AddressMeaning { refuses_other_ports: true, node_ports: _ }) => Some(Meeting::UndefinedPort),
            None if in_a_range() => Some(Meeting::UnusedAddress),
            Some(AddressMeaning { refuses_other_ports: false, node_ports: _ }) | None => None,
        }
    }

    /// What an address means besides its frontends; `None` if nothing uses it.
    #[must_use]
    pub fn meaning(&self, address: IpAddr) -> Option<AddressMeaning> {
        self.addresses.get(&as_listed(address.to_canonical())).copied()
    }

    /// Whether the packet's destination accepts node ports (TP-10…16).
    #[must_use]
    pub fn accepts_node_ports(&self, packet: &Packet) -> bool {
        match self.meaning(packet.destination).and_then(|meaning| meaning.node_ports) {
            Some(NodePorts::FromAnywhere) => true,
            Some(NodePorts::FromNodeOnly) => packet.source == Source::Node,
            None => false,
        }
    }

    /// Whether a process of the node that binds `address` and `port` would wait in vain, because connections to them
    /// are taken as those to a node port (TP-7). The unspecified address stands for all addresses of its family.
    #[must_use]
    pub fn is_node_port(&self, address: IpAddr, port: u16, protocol: Protocol) -> bool {
        let (address, family) = (address.to_canonical(), Family::of(&address.to_canonical()));
        let accepts = |meaning: &AddressMeaning| meaning.node_ports.is_some();
        let is_served = match address.is_unspecified() {
            true => self.addresses.iter().any(|(own, meaning)| Family::of(own) == family && accepts(meaning)),
            false => self.meaning(address).is_some_and(|meaning| accepts(&meaning)),
        };
        is_served
            && self.frontends_of(family).any(|(planned, frontend)| {
                frontend.address.is_none() && frontend.port.get() == port && planned.key.protocol == protocol
            })
    }

    fn frontends_of(&self, family: Family) -> impl Iterator<Item = (&PortPlan, &Frontend)> {
        let ports = self.ports.values().filter(move |port| port.key.family == family);
        ports.flat_map(|port| port.frontends.iter().map(move |frontend| (&**port, frontend)))
    }
}

/// What a flow finds at a frontend.
enum FrontendOutcome<'a> {
    /// The source is outside of the source ranges.
    KeptOut,
    /// At least one endpoint.
    Served(&'a [Endpoint]),
    /// The list is empty.
    NoEndpoint,
}

impl<'a> Reason<'a> {
    /// The frontend, if it was one.
    #[must_use]
    pub fn met(&self) -> Option<Met<'a>> {
        match self.meeting {
            Meeting::Frontend(met) => Some(met),
            Meeting::UndefinedPort | Meeting::UnusedAddress => None,
        }
    }
}

impl<'a> Met<'a> {
    fn new(port: &'a PortPlan, frontend: &'a Frontend, packet: &Packet) -> Self {
        // For every source (TP-31).
        let admit = |ranges: &SourceRanges| ranges.admit(packet.source, packet.source_address);
        let admitted = port.source_ranges.as_deref().filter(|_| frontend.filtered).map(admit);
        Self { port, frontend, rule: frontend.rule_for(packet.source), admitted }
    }

    fn outcome(&self) -> FrontendOutcome<'a> {
        // The ranges come first: a source outside of them must not learn whether there are endpoints (TP-35).
        match (self.admitted, self.port.list(self.rule.list)) {
            (Some(false), _) => FrontendOutcome::KeptOut,
            (Some(true) | None, []) => FrontendOutcome::NoEndpoint,
            (Some(true) | None, endpoints) => FrontendOutcome::Served(endpoints),
        }
    }
}

impl Verdict<'_> {
    fn without_endpoint(empty: Empty) -> Self {
        match empty {
            Empty::Reject => Self::Reject,
            Empty::Drop => Self::Drop,
        }
    }
}

impl SocketVerdict<'_> {
    fn without_endpoint(empty: EmptyAtSocket) -> Self {
        match empty {
            EmptyAtSocket::Refuse => Self::Refuse,
            EmptyAtSocket::Pass => Self::Pass,
        }
    }
}

/// UDP to port 65535, to which musl connects a socket to learn of the route; glibc takes port 0 (DP-11).
fn is_route_probe(packet: &Packet) -> bool {
    packet.protocol == Protocol::Udp && packet.port == u16::MAX
}

fn decide_at(met: Met<'_>, source: Source) -> (Verdict<'_>, RuleId) {
    match (met.outcome(), met.rule.empty) {
        (FrontendOutcome::KeptOut, _) => (Verdict::Drop, RuleId::Tp32),
        (FrontendOutcome::Served(endpoints), _) => {
            (Verdict::Forward { port: &met.port.key, endpoints }, rule_of_list(met.frontend, source))
        }
        (FrontendOutcome::NoEndpoint, empty @ Empty::Reject) => (Verdict::without_endpoint(empty), RuleId::Ne1),
        (FrontendOutcome::NoEndpoint, empty @ Empty::Drop) if is_internal(met.frontend) => {
            (Verdict::without_endpoint(empty), RuleId::Ne2)
        }
        (FrontendOutcome::NoEndpoint, empty @ Empty::Drop) => (Verdict::without_endpoint(empty), RuleId::Ne3),
    }
}

impl PortPlan {
    /// The endpoints that no new flow of a socket reaches and that keep the flows they have: those that drain, and
    /// those of a list that serves no socket.
    #[must_use]
    pub fn draining_at_sockets(&self) -> Vec<SocketAddr> {
        let serves = |list: List| self.frontends.iter().any(|frontend| frontend.at_sockets == list);
        let in_lists = |serving: bool| {
            let lists = [List::Cluster, List::Local].into_iter().filter(move |list| serves(*list) == serving);
            lists.flat_map(|list| self.list(list)).map(|endpoint| endpoint.address)
        };
        let mut draining = self.draining.clone();
        // Seldom: nearly always the list that serves no socket is empty.
        if in_lists(false).next().is_some() {
            let reached: HashSet<SocketAddr> = in_lists(true).collect();
            draining.extend(in_lists(false).filter(|address| !reached.contains(address)));
        }
        draining
    }

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

/// Whether the internal policy decides at this frontend, for the name of the rule.
fn is_internal(frontend: &Frontend) -> bool {
    match frontend.kind {
        FrontendKind::ClusterIp => true,
        FrontendKind::External | FrontendKind::LoadBalancer | FrontendKind::NodePort => false,
    }
}

/// The rule by which this list serves this source.
fn rule_of_list(frontend: &Frontend, source: Source) -> RuleId {
    let list = frontend.rule_for(source).list;
    match (is_internal(frontend), frontend.from_outside.list, list, source) {
        (true, _, List::Cluster, _) => RuleId::Ep20,
        (true, _, List::Local, _) => RuleId::Ep21,
        (false, List::Cluster, _, _) => RuleId::Tp20,
        (false, List::Local, List::Cluster, Source::Pod) => RuleId::Tp21,
        (false, List::Local, List::Cluster, Source::Node | Source::Outside) => RuleId::Tp22,
        (false, List::Local, List::Local, _) => RuleId::Tp23,
    }
}

#[cfg(test)]
mod tests;
