//! The chains of plans: against the reference reading, against each other, and in the kernel.

mod kernel;
mod text;

use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::prelude::*;
use shunt_model::{Family, Protocol};

use super::change::Changes;
use super::image::Image;
use super::rule::{Name, Table};
use super::walk::Walk;
use crate::datapath::PacketOptions;
use crate::datapath::packets::PacketOutcome;
use crate::plan::fixture::{NODE, cluster, ip, options, service, set_node, slice};
use crate::plan::properties::{NODE_ADDRESSES, any_cluster, any_options};
use crate::plan::{Packet, Plan, PlanOptions, Source, Verdict, plan};

pub(super) const PACKETS: PacketOptions =
    PacketOptions { masquerade_mark: 0x4000, drop_invalid: true, loopback_node_ports: true };

type Chains = BTreeMap<(Table, Name), Vec<String>>;

fn chains(plan: &Plan, family: Family) -> Chains {
    of_image(&Image::of(plan, family, PACKETS))
}

fn of_image(image: &Image) -> Chains {
    let text = |rules: Vec<super::rule::Rule>| rules.iter().map(ToString::to_string).collect();
    image.chains().map(|(table, name, rules)| ((table, name), text(rules))).collect()
}

/// What the kernel does with changes; a chain that is removed must be there, and no other may lead to it.
fn write(chains: &mut Chains, changes: &Changes) {
    for (table, changes) in changes.parts() {
        for (name, rules) in &changes.writes {
            chains.insert((table, name.clone()), rules.iter().map(ToString::to_string).collect());
        }
        for name in &changes.removals {
            assert!(chains.remove(&(table, name.clone())).is_some(), "{name} is not there");
        }
        for ((of, from), rule) in chains.iter().flat_map(|(chain, rules)| rules.iter().map(move |rule| (chain, rule))) {
            let Some(target) = rule.rsplit(' ').next().filter(|target| target.starts_with("SHUNT-")) else { continue };
            assert!(chains.contains_key(&(*of, target.into())), "{from} leads to {target}, which is gone");
        }
    }
}

/// One source address of each kind.
fn source_of(plan: &Plan, source: Source, family: Family) -> Option<IpAddr> {
    match (source, family) {
        (Source::Pod, _) => {
            let networks = plan.pods.networks.iter().filter(|network| Family::of(&network.addr()) == family);
            networks.map(ipnet::IpNet::addr).next()
        }
        (Source::Node, Family::V4) => Some(ip(NODE_ADDRESSES[0])),
        (Source::Node, Family::V6) => Some(ip(NODE_ADDRESSES[1])),
        (Source::Outside, Family::V4) => Some(ip("203.0.113.9")),
        (Source::Outside, Family::V6) => Some(ip("2001:db8:9::9")),
    }
}

/// Packets to everything that a plan names, and beside it.
fn packets(plan: &Plan) -> Vec<Packet> {
    let ports = [1, 53, 80, 8080, 30053, 30080, 0, 65535];
    let more = ["10.96.9.9", "10.112.0.1", "203.0.113.1", "fd00:96::99", "127.0.0.1", "127.1.2.3"].map(ip);
    let addresses: Vec<IpAddr> = plan.addresses.keys().copied().chain(more).collect();
    let mut packets = Vec::new();
    for source in [Source::Pod, Source::Node, Source::Outside] {
        for destination in &addresses {
            // Loopback is not reached from elsewhere.
            if destination.is_loopback() && (source != Source::Node || destination.is_ipv6()) {
                continue;
            }
            let Some(address) = source_of(plan, source, Family::of(destination)) else { continue };
            for port in ports {
                for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                    let source_address = Some(address);
                    packets.push(Packet { source, source_address, destination: *destination, port, protocol });
                }
            }
        }
    }
    packets
}

fn in_words(plan: &Plan, packet: &Packet) -> PacketOutcome {
    match plan.verdict(packet) {
        Verdict::NotOurs => PacketOutcome::Pass,
        Verdict::Reject => PacketOutcome::Reject,
        Verdict::Drop => PacketOutcome::Drop,
        Verdict::Forward { port, endpoints } => PacketOutcome::Endpoints {
            addresses: endpoints.iter().map(|endpoint| endpoint.address).collect(),
            sticky: plan.ports.get(port).is_some_and(|port| port.affinity.is_some()),
        },
    }
}

proptest! {
    #[test]
    fn packets_get_what_the_plan_says(snapshot in any_cluster(), options in any_options()) {
        let (plan, _) = plan(&snapshot, &options);
        let walk = Walk::of(&plan, PACKETS);
        for packet in packets(&plan) {
            prop_assert_eq!(walk.outcome(&packet), in_words(&plan, &packet), "{:?}", packet);
        }
    }

    #[test]
    fn endpoints_are_as_likely_and_see_the_right_source(snapshot in any_cluster(), options in any_options()) {
        let (plan, _) = plan(&snapshot, &options);
        let walk = Walk::of(&plan, PACKETS);
        for packet in packets(&plan) {
            let decision = plan.decide(&packet);
            let (Verdict::Forward { endpoints, .. }, Some(reason)) = (decision.verdict, decision.reason) else { continue };
            let rule = reason.met().unwrap().rule;
            let reached = walk.reached(&packet);
            // An endpoint may be at an address that is a cluster IP, and then gets what packets get there.
            for one in &reached {
                let endpoint = endpoints.iter().find(|endpoint| endpoint.address == one.address).unwrap();
                prop_assert!((one.chance * endpoints.len() as f64 - 1.0).abs() < 1e-6);
                let source = packet.source_address.unwrap();
                // A pod of this node is no endpoint elsewhere, whatever a random cluster says.
                if source == endpoint.address.ip() && !endpoint.local && packet.source == Source::Pod {
                    continue;
                }
                let wanted = rule.masquerades(source, endpoint);
                prop_assert_eq!(one.masqueraded, wanted, "{:?} to {:?}", packet, endpoint);
            }
        }
    }

    #[test]
    fn changes_lead_from_one_image_to_the_next(
        snapshots in prop::collection::vec((any_cluster(), any_options()), 2..5)
    ) {
        for family in Family::BOTH {
            let mut image = Image::new(family, PACKETS);
            let mut installed = of_image(&image);
            for (snapshot, options) in &snapshots {
                let (plan, _) = plan(snapshot, options);
                write(&mut installed, &image.update(&plan));
                prop_assert_eq!(&installed, &chains(&plan, family));
                let changes = image.update(&plan);
                prop_assert!(changes.is_empty(), "{:?}", changes);
            }
        }
    }
}

#[test]
fn names_fit_into_the_kernel() {
    let (plan, _) = story();
    for family in Family::BOTH {
        let names: Vec<Name> = Image::of(&plan, family, PACKETS).chains().map(|(_, name, _)| name).collect();
        assert!(names.iter().all(|name| name.len() <= 28 && name.starts_with("SHUNT-")), "{names:?}");
    }
}

/// Everything at once: both families, all kinds of frontends, policies, ranges, affinity, services without endpoints.
pub(super) fn story() -> (Plan, PlanOptions) {
    let services = [
        service("web", "ip=10.96.0.1 ip=fd00:96::1 port=http:80/tcp np=30080 ext=192.0.2.1 ext=2001:db8::1"),
        service("local", "ip=10.96.0.2 ip=fd00:96::2 port=http:80/tcp np=30081 vip=192.0.2.2 type=lb eTP check=30900"),
        service("dns", "ip=10.96.0.10 ip=fd00:96::a port=dns:53/udp port=dns-tcp:53/tcp"),
        service("inside", "ip=10.96.0.3 ip=fd00:96::3 port=http:80/tcp iTP"),
        service("sticky", "ip=10.96.1.4 ip=fd00:96::1:4 port=http:80/tcp aff=10800"),
        service("ranges", "ip=10.96.1.5 port=http:80/tcp vip=192.0.2.5 type=lb from=198.51.100.0/24 from=10.0.0.0/8"),
        service("empty", "ip=10.97.0.6 ip=fd00:96::2:6 port=http:80/tcp np=30086 vip=192.0.2.6 type=lb"),
        service("sctp", "ip=10.96.1.7 port=http:80/sctp np=30087"),
    ];
    let mut slices = Vec::new();
    for (name, ports) in [
        ("web", "http:8080/tcp"),
        ("local", "http:8080/tcp"),
        ("dns", "dns:53/udp dns-tcp:53/tcp"),
        ("inside", "http:80/tcp"),
        ("sticky", "http:80/tcp"),
        ("ranges", "http:80/tcp"),
        ("sctp", "http:80/sctp"),
    ] {
        slices.push(slice(name, "x", ports, "e1:Rl; e2:R; e3:R"));
        slices.push(slice(name, "y", ports, "f1:Rl; f2:R; f3:R"));
    }
    let mut snapshot = cluster(services, slices);
    set_node(&mut snapshot, None, &NODE_ADDRESSES);
    let node = snapshot.nodes.get_mut(NODE).unwrap();
    std::sync::Arc::make_mut(node).pod_cidrs = ["10.1.0.0/24", "fd00::/64"].map(|range| range.parse().unwrap()).into();
    let options = PlanOptions { service_cidrs: vec!["10.96.0.0/12".parse().unwrap()], ..options() };
    (plan(&snapshot, &options).0, options)
}
