//! Clusters in a few words, for the tests of the plan.
//!
//! Service: `ip=10.96.0.1 port=http:80/tcp np=30080 ext=… vip=… iTP eTP type=lb from=10.0.0.0/8 check=30900 aff=10
//! created=5 other headless alias`. Endpoints in the notation of docs/rules.md, EV: `e3:Rl z=ab n=1; e4:T` is 10.1.0.3,
//! ready, on this node, hinted to zones a and b and to node-1; and 10.1.0.4, serving and terminating. `f3` is fd00::3.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::sync::Arc;

use shunt_model::{
    ClusterIps, Endpoint, EndpointPort, EndpointSlice, Family, Node, ObjectKey, Pod, Protocol, Service, ServiceKind,
    ServicePort, SliceKey, Snapshot, TrafficPolicy,
};

use crate::plan::{PlanOptions, PortPlan};

/// The node for which tests plan.
pub(crate) const NODE: &str = "node-1";

pub(crate) fn options() -> PlanOptions {
    PlanOptions { node: NODE.into(), ..PlanOptions::default() }
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn number(text: &str) -> NonZeroU16 {
    text.parse().unwrap()
}

/// `http:80/udp`, `:80/tcp` if unnamed.
fn port(text: &str) -> ServicePort {
    let (name, rest) = text.split_once(':').unwrap();
    let (port, protocol) = rest.split_once('/').unwrap();
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => panic!("{other}"),
    };
    ServicePort { name: name.into(), protocol, port: number(port), node_port: None }
}

pub(crate) fn service(name: &str, words: &str) -> Service {
    let mut service = Service {
        key: ObjectKey::new("default", name),
        created: None,
        kind: ServiceKind::ClusterIp,
        cluster_ips: ClusterIps::Unassigned,
        ports: Vec::new(),
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        affinity: None,
        external_policy: TrafficPolicy::Cluster,
        internal_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
        other_proxy: false,
    };
    let mut cluster_ips = Vec::new();
    for word in words.split_whitespace() {
        match word.split_once('=').unwrap_or((word, "")) {
            ("ip", address) => cluster_ips.push(ip(address)),
            ("port", text) => service.ports.push(port(text)),
            ("np", text) => {
                if service.ports.is_empty() {
                    service.ports.push(port("http:80/tcp"));
                }
                service.ports.last_mut().unwrap().node_port = Some(number(text));
                service.kind = ServiceKind::NodePort;
            }
            ("ext", address) => service.external_ips.push(ip(address)),
            ("vip", address) => service.load_balancer_ips.push(ip(address)),
            ("iTP", _) => service.internal_policy = TrafficPolicy::Local,
            ("eTP", _) => service.external_policy = TrafficPolicy::Local,
            ("type", "lb") => service.kind = ServiceKind::LoadBalancer,
            ("from", range) => service.source_ranges.push(range.parse().unwrap()),
            ("check", port) => service.health_check_node_port = Some(number(port)),
            ("aff", seconds) => service.affinity = Some(seconds.parse().unwrap()),
            ("created", time) => service.created = Some(time.parse().unwrap()),
            ("other", _) => service.other_proxy = true,
            ("alias", _) => service.kind = ServiceKind::ExternalName("example.com".into()),
            ("headless", _) => service.cluster_ips = ClusterIps::Headless,
            (other, _) => panic!("{other}"),
        }
    }
    if service.ports.is_empty() {
        service.ports.push(port("http:80/tcp"));
    }
    if !cluster_ips.is_empty() {
        service.cluster_ips = ClusterIps::Assigned(cluster_ips);
    }
    service
}

/// `a:8080` is an entry of port "a"; see the module for the endpoints.
pub(crate) fn slice(service: &str, name: &str, ports: &str, endpoints: &str) -> EndpointSlice {
    let family = if endpoints.starts_with('f') { Family::V6 } else { Family::V4 };
    let ports = ports.split_whitespace().map(port);
    EndpointSlice {
        key: SliceKey { service: ObjectKey::new("default", service), slice: name.into() },
        family,
        ports: ports.map(|p| EndpointPort { name: p.name, protocol: p.protocol, port: p.port }).collect(),
        endpoints: endpoints.split(';').map(str::trim).filter(|text| !text.is_empty()).map(endpoint).collect(),
        headless: false,
        triggered: None,
    }
}

pub(crate) fn endpoint(text: &str) -> Endpoint {
    let mut words = text.split_whitespace();
    let (name, state) = words.next().unwrap().split_once(':').unwrap();
    let number: u8 = name[1..].parse().unwrap();
    let address: IpAddr = match &name[..1] {
        "e" => Ipv4Addr::new(10, 1, 0, number).into(),
        "f" => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()).into(),
        other => panic!("{other}"),
    };
    let (mut zone_hints, mut node_hints) = (Vec::new(), Vec::new());
    for word in words {
        match word.split_once('=').unwrap() {
            ("z", zones) => zone_hints.extend(zones.chars().map(|zone| Arc::from(zone.to_string()))),
            ("n", nodes) => node_hints.extend(nodes.chars().map(|node| Arc::from(format!("node-{node}")))),
            (other, _) => panic!("{other}"),
        }
    }
    Endpoint {
        addresses: [address].into(),
        ready: state.starts_with('R'),
        serving: state.starts_with(['R', 'T']),
        terminating: state.starts_with('T'),
        node: Some(if state.ends_with('l') { NODE } else { "elsewhere" }.into()),
        zone: None,
        zone_hints: zone_hints.into(),
        node_hints: node_hints.into(),
        hostname: None,
        target: None,
    }
}

pub(crate) fn cluster(
    services: impl IntoIterator<Item = Service>,
    slices: impl IntoIterator<Item = EndpointSlice>,
) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.services.extend(services.into_iter().map(|service| (service.key.clone(), Arc::new(service))));
    snapshot.slices.extend(slices.into_iter().map(|slice| (slice.key.clone(), Arc::new(slice))));
    snapshot
}

/// `addresses` separated by spaces, one annotation as `key=value` or none.
pub(crate) fn pod(name: &str, addresses: &str, node: &str, annotation: &str) -> Pod {
    Pod {
        key: ObjectKey::new("default", name),
        addresses: addresses.split_whitespace().map(ip).collect(),
        node: Some(node).filter(|node| !node.is_empty()).map(Arc::from),
        host_network: false,
        annotations: annotation.split_once('=').map(|(key, value)| (key.into(), value.into())).into_iter().collect(),
    }
}

pub(crate) fn set_zone(snapshot: &mut Snapshot, zone: Option<&str>) {
    set_node(snapshot, zone, &[]);
}

pub(crate) fn set_node(snapshot: &mut Snapshot, zone: Option<&str>, addresses: &[&str]) {
    let addresses = addresses.iter().map(|address| ip(address)).collect();
    let node = Node { name: NODE.into(), zone: zone.map(Arc::from), addresses, pod_cidrs: Vec::new(), eligible: true };
    snapshot.nodes.insert(node.name.clone(), Arc::new(node));
}

/// `e1 e2` for 10.1.0.1 and 10.1.0.2; other ports than 80 are shown.
pub(crate) fn names<'a>(endpoints: impl IntoIterator<Item = &'a crate::plan::Endpoint>) -> String {
    let name = |endpoint: &crate::plan::Endpoint| {
        let port = match endpoint.address.port() {
            80 => String::new(),
            port => format!(":{port}"),
        };
        match endpoint.address.ip() {
            IpAddr::V4(ip) => format!("e{}{port}", ip.octets()[3]),
            IpAddr::V6(ip) => format!("f{}{port}", ip.segments()[7]),
        }
    };
    endpoints.into_iter().map(name).collect::<Vec<_>>().join(" ")
}

/// The frontends of a port as printed: `10.96.0.1:80 *:30080`.
pub(crate) fn frontends(port: &PortPlan) -> String {
    let print = |frontend: &crate::plan::Frontend| crate::plan::view::socket(frontend.address, frontend.port.get());
    port.frontends.iter().map(print).collect::<Vec<_>>().join(" ")
}
