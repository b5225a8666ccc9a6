//! What a lookup in the tables finds is what the plan says, for random clusters and every destination in them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use shunt_model::{Family, Protocol, Snapshot};

use super::memory::Memory;
use crate::datapath::caller::{Caller, Outcome};
use crate::datapath::packets::{PacketOutcome, cases};
use crate::plan::fixture::{ip, options};
use crate::plan::properties::{NODE_ADDRESSES, any_cluster};
use crate::plan::{
    Detect, EmptyLocal, Meeting, NodePortAddresses, Packet, Plan, PlanOptions, PortPlan, SocketVerdict, Source, plan,
};

/// Every frontend, and what is near them: other ports, loopback, unused addresses, node ports at addresses.
fn destinations(plan: &Plan) -> BTreeSet<SocketAddr> {
    let frontends = || plan.ports.values().flat_map(|port| &port.frontends);
    let mut addresses: BTreeSet<IpAddr> = frontends().filter_map(|frontend| frontend.address).collect();
    addresses.extend(NODE_ADDRESSES.map(ip));
    addresses.extend(["127.0.0.1", "127.1.2.3", "::1", "10.96.0.99", "192.0.2.9", "fd00:96::99"].map(ip));
    addresses.extend(["::ffff:10.96.0.1", "::ffff:192.0.2.1", "::ffff:127.0.0.1"].map(ip));
    addresses.extend(["0.0.0.0", "::", "::ffff:0.0.0.0", "224.0.0.251"].map(ip));
    let mut ports: BTreeSet<u16> = frontends().map(|frontend| frontend.port.get()).collect();
    ports.extend([0, 81, 65_535]);
    addresses.into_iter().flat_map(|address| ports.iter().map(move |port| SocketAddr::new(address, *port))).collect()
}

/// The node, a pod inside of the source ranges, and one outside of them.
fn clients(family: Family) -> [Caller; 3] {
    let [inside, outside] = match family {
        Family::V4 => ["10.1.0.1", "10.1.0.9"],
        Family::V6 => ["fd00::1", "fd00::9"],
    };
    [Caller::Node, Caller::Pod(ip(inside)), Caller::Pod(ip(outside))]
}

/// What the plan says a socket gets, in the words of the tables.
fn wanted(plan: &Plan, client: Caller, to: SocketAddr, protocol: Protocol) -> Outcome {
    let (source, source_address) = match client {
        Caller::Node => (Source::Node, None),
        Caller::Pod(address) => (Source::Pod, Some(address)),
    };
    let packet = Packet { source, source_address, destination: to.ip(), port: to.port(), protocol };
    match plan.decide_at_socket(&packet) {
        SocketVerdict::Forward { port, endpoints } => Outcome::Endpoints {
            addresses: endpoints.iter().map(|endpoint| endpoint.address).collect(),
            sticky: plan.ports.get(port).is_some_and(|port| port.affinity.is_some()),
        },
        SocketVerdict::Refuse => Outcome::Refused,
        SocketVerdict::Deny => Outcome::Denied,
        SocketVerdict::Pass => match plan.decide(&packet).reason.map(|reason| reason.meeting) {
            Some(Meeting::Frontend(_)) => Outcome::KeepsDestination,
            Some(Meeting::UndefinedPort | Meeting::UnusedAddress) | None => Outcome::Foreign,
        },
    }
}

/// At sockets, pods are always known as pods.
fn planned(snapshot: &Snapshot, dns: bool, exclusive: bool, empty_local: EmptyLocal) -> Plan {
    planned_with(snapshot, dns, exclusive, empty_local, NodePortAddresses::All)
}

fn planned_with(
    snapshot: &Snapshot,
    dns: bool,
    exclusive: bool,
    empty_local: EmptyLocal,
    node_ports: NodePortAddresses,
) -> Plan {
    let options = PlanOptions {
        node_ports,
        detector: Detect::Both,
        empty_local,
        cluster_dns: vec![ip("10.96.0.10"), ip("fd00:96::2")],
        dns_backends: if dns { vec!["169.254.20.10:53".parse().unwrap()] } else { Vec::new() },
        service_cidrs: if exclusive { vec!["10.96.0.0/16".parse().unwrap()] } else { Vec::new() },
        ..options()
    };
    plan(snapshot, &options).0
}

/// The flows of every caller to every destination.
fn flows(plan: &Plan) -> impl Iterator<Item = (Caller, SocketAddr, Protocol)> {
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    destinations(plan).into_iter().flat_map(move |to| {
        let clients = clients(Family::of(&to.ip().to_canonical()));
        clients.into_iter().flat_map(move |client| protocols.map(|protocol| (client, to, protocol)))
    })
}

proptest! {
    #[test]
    fn a_lookup_in_the_tables_finds_the_verdict(
        snapshot in any_cluster(),
        dns in any::<bool>(),
        exclusive in any::<bool>(),
        pass in any::<bool>(),
    ) {
        let plan = planned(&snapshot, dns, exclusive, if pass { EmptyLocal::Pass } else { EmptyLocal::Refuse });
        let memory = Memory::of(&plan).unwrap();
        for (client, to, protocol) in flows(&plan) {
            let found = memory.outcome(client, to, protocol);
            prop_assert_eq!(found, wanted(&plan, client, to, protocol), "{:?} to {}/{}", client, to, protocol);
        }
    }
}

proptest! {
    /// Of packets, from pods and from outside.
    #[test]
    fn a_packet_finds_the_verdict_in_the_tables(snapshot in any_cluster(), exclusive in any::<bool>()) {
        let plan = planned(&snapshot, false, exclusive, EmptyLocal::Pass);
        let memory = Memory::of(&plan).unwrap();
        for packet in cases::packets(&plan).into_iter().filter(|packet| packet.source != Source::Node) {
            let Packet { source, source_address, destination, port, protocol } = packet;
            let (outside, from) = (source == Source::Outside, source_address.unwrap());
            let to = SocketAddr::new(destination, port);
            let (found, source_nat) = memory.packet_outcome(outside, from, to, protocol);
            let reason = plan.decide(&packet).reason.map(|reason| reason.meeting);
            let masquerades = match reason {
                Some(Meeting::Frontend(met)) => met.rule.masquerade,
                _ => false,
            };
            prop_assert_eq!(&found, &cases::in_words(&plan, &packet), "{:?}", packet);
            let served = matches!(found, PacketOutcome::Endpoints { .. });
            prop_assert_eq!(source_nat, served && masquerades, "{:?}", packet);
        }
    }
}

/// The networks of `--nodeport-addresses`.
fn any_node_port_addresses() -> impl Strategy<Value = NodePortAddresses> {
    let within = |networks: &[&str]| {
        Just(NodePortAddresses::Within(networks.iter().map(|network| network.parse().unwrap()).collect()))
    };
    prop_oneof![
        Just(NodePortAddresses::All),
        Just(NodePortAddresses::Primary),
        within(&["198.51.100.0/24"]),
        within(&["127.0.0.0/8", "2001:db8::/32"]),
        within(&["203.0.113.0/24", "2001:db8:1::/48"]),
    ]
}

proptest! {
    #[test]
    fn a_bind_is_refused_where_a_node_port_is_served(
        snapshot in any_cluster(),
        node_ports in any_node_port_addresses(),
    ) {
        let plan = planned_with(&snapshot, false, false, EmptyLocal::Refuse, node_ports);
        let memory = Memory::of(&plan).unwrap();
        for to in destinations(&plan) {
            for (protocol, v6only) in
                [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().flat_map(|of| [(of, false), (of, true)])
            {
                let is_taken = |ip: IpAddr| plan.is_node_port(ip, to.port(), protocol);
                let any = ip("::");
                let wanted = is_taken(to.ip()) || (to.ip() == any && !v6only && is_taken(ip("0.0.0.0")));
                prop_assert_eq!(memory.is_node_port(to, protocol, v6only), wanted, "{}/{} {}", to, protocol, v6only);
                // What is refused to a process of the node leads elsewhere when it dials it, unless it is a wildcard.
                let outcome = memory.outcome(Caller::Node, to, protocol);
                let served = !matches!(outcome, Outcome::Foreign);
                prop_assert!(!wanted || to.ip().to_canonical().is_unspecified() || served, "{}/{}", to, protocol);
            }
        }
    }
}

proptest! {
    /// With the node's own DNS closed, the cluster DNS address leads to the endpoints of the Services that have it too,
    /// if there are any, and nothing else changes.
    #[test]
    fn a_closed_dns_leads_to_others_and_changes_nothing_else(snapshot in any_cluster()) {
        let plan = planned(&snapshot, true, true, EmptyLocal::Refuse);
        let open = Memory::of(&plan).unwrap();
        let closed = open.with_own_dns_closed();
        let falls_back = |to: SocketAddr, protocol: Protocol| {
            let at = |port: &&PortPlan| {
                port.key.protocol == protocol
                    && port.frontends.iter().any(|f| f.falls_back && f.address == Some(to.ip().to_canonical()) && f.port.get() == to.port())
            };
            plan.ports.values().map(|port| &**port).find(at)
        };
        for (client, to, protocol) in flows(&plan) {
            let others = |port: &PortPlan| -> BTreeSet<SocketAddr> {
                port.cluster.iter().filter(|endpoint| !endpoint.local).map(|endpoint| endpoint.address).collect()
            };
            let wanted = match falls_back(to, protocol).map(others).filter(|others| !others.is_empty()) {
                Some(addresses) => Outcome::Endpoints { addresses, sticky: false },
                None => open.outcome(client, to, protocol),
            };
            prop_assert_eq!(closed.outcome(client, to, protocol), wanted, "{:?} to {}/{}", client, to, protocol);
        }
    }
}

/// Otherwise the agreement above would be about less than it seems.
#[test]
fn the_random_clusters_meet_every_outcome() {
    let mut runner = TestRunner::deterministic();
    let mut met = BTreeSet::new();
    for _ in 0..200 {
        let plan = planned(&any_cluster().new_tree(&mut runner).unwrap().current(), true, true, EmptyLocal::Pass);
        met.extend(flows(&plan).map(|(client, to, protocol)| match wanted(&plan, client, to, protocol) {
            Outcome::Endpoints { sticky: true, .. } => "sticky endpoints",
            Outcome::Endpoints { sticky: false, .. } => "endpoints",
            Outcome::Refused => "refused",
            Outcome::KeepsDestination => "elsewhere",
            Outcome::Denied => "denied",
            Outcome::Foreign => "foreign",
        }));
    }
    assert_eq!(met.len(), 6, "{met:?}");
}
