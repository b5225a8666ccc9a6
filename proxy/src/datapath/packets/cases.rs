//! Packets to everything that a plan names, for the tests of all paths for packets.

use std::net::IpAddr;
use std::sync::Arc;

use shunt_model::{Family, Protocol};

use super::PacketOutcome;
use crate::datapath::PacketOptions;
use crate::plan::fixture::{NODE, cluster, ip, options, service, set_node, slice};
use crate::plan::properties::NODE_ADDRESSES;
use crate::plan::{Packet, Plan, PlanOptions, Source, Verdict, plan};

pub(in crate::datapath) const PACKETS: PacketOptions =
    PacketOptions { masquerade_mark: 0x4000, drop_invalid: true, loopback_node_ports: true };

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
pub(in crate::datapath) fn packets(plan: &Plan) -> Vec<Packet> {
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

pub(in crate::datapath) fn in_words(plan: &Plan, packet: &Packet) -> PacketOutcome {
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

/// Everything at once: both families, all kinds of frontends, policies, ranges, affinity, services without endpoints.
pub(in crate::datapath) fn story() -> (Plan, PlanOptions) {
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
    Arc::make_mut(node).pod_cidrs = ["10.1.0.0/24", "fd00::/64"].map(|range| range.parse().unwrap()).into();
    let options = PlanOptions { service_cidrs: vec!["10.96.0.0/12".parse().unwrap()], ..options() };
    (plan(&snapshot, &options).0, options)
}
