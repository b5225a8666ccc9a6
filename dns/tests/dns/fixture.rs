//! A small cluster built in code.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use shunt_dns::{Name, ZoneConfig};
use shunt_model::{
    ClusterIps, Endpoint, EndpointPort, EndpointSlice, Family, Namespace, ObjectKey, Pod, Protocol, Service,
    ServiceKind, ServicePort, SliceKey, Snapshot, TrafficPolicy,
};

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

pub(crate) fn zone_config() -> ZoneConfig {
    ZoneConfig { dns_addresses: vec![ip("10.96.0.10")], ..ZoneConfig::usual(name("cluster.local.")) }
}

/// `clusterIPs`: addresses, `None`, or nothing.
fn cluster_ips(ips: &str) -> ClusterIps {
    match ips {
        "" => ClusterIps::Unassigned,
        "None" => ClusterIps::Headless,
        ips => ClusterIps::Assigned(ips.split(' ').map(ip).collect()),
    }
}

/// Ports as `name:protocol:number`.
fn ports(text: &str) -> Vec<(Arc<str>, Protocol, NonZeroU16)> {
    let port = |word: &str| {
        let fields: Vec<&str> = word.split(':').collect();
        let protocol = if fields[1] == "udp" { Protocol::Udp } else { Protocol::Tcp };
        (Arc::from(fields[0]), protocol, fields[2].parse().unwrap())
    };
    text.split_whitespace().map(port).collect()
}

pub(crate) fn namespace(snapshot: &mut Snapshot, name: &str) {
    let name: Arc<str> = Arc::from(name);
    snapshot.namespaces.insert(Arc::clone(&name), Arc::new(Namespace { name }));
}

pub(crate) fn service(snapshot: &mut Snapshot, key: &ObjectKey, ips: &str, service_ports: &str) {
    insert(snapshot, key, ServiceKind::ClusterIp, cluster_ips(ips), service_ports);
}

pub(crate) fn external(snapshot: &mut Snapshot, key: &ObjectKey, target: &str) {
    insert(snapshot, key, ServiceKind::ExternalName(target.into()), ClusterIps::Unassigned, "");
}

fn insert(snapshot: &mut Snapshot, key: &ObjectKey, kind: ServiceKind, cluster_ips: ClusterIps, service_ports: &str) {
    let port = |(name, protocol, port)| ServicePort { name, protocol, port, node_port: None };
    let service = Service {
        key: key.clone(),
        created: None,
        kind,
        cluster_ips,
        ports: ports(service_ports).into_iter().map(port).collect(),
        external_ips: vec![ip("192.0.2.200")],
        load_balancer_ips: vec![ip("192.0.2.201")],
        source_ranges: vec![],
        affinity: None,
        external_policy: TrafficPolicy::Cluster,
        internal_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
        other_proxy: true, // still in DNS
    };
    snapshot.services.insert(key.clone(), Arc::new(service));
}

/// Endpoints as `address`, `hostname=address`, `!address` for one that is not ready, or `~address` for one that is and
/// ends.
pub(crate) fn slice(snapshot: &mut Snapshot, service: &ObjectKey, slice: &str, slice_ports: &str, endpoints: &str) {
    let key = SliceKey { service: service.clone(), slice: slice.into() };
    let endpoints: Vec<Endpoint> = endpoints.split_whitespace().map(endpoint).collect();
    let family = endpoints.first().map_or(Family::V4, |endpoint| Family::of(&endpoint.addresses[0]));
    let port = |(name, protocol, port)| EndpointPort { name, protocol, port };
    let ports = ports(slice_ports).into_iter().map(port).collect();
    let value = EndpointSlice { key: key.clone(), family, ports, endpoints, headless: false, triggered: None };
    snapshot.slices.insert(key, Arc::new(value));
}

fn endpoint(word: &str) -> Endpoint {
    let (word, ready) = word.strip_prefix('!').map_or((word, true), |rest| (rest, false));
    let (word, ends) = word.strip_prefix('~').map_or((word, !ready), |rest| (rest, true));
    let (hostname, address) = word.split_once('=').map_or((None, word), |(host, rest)| (Some(host), rest));
    Endpoint {
        addresses: [ip(address)].into(),
        ready,
        serving: true,
        terminating: ends,
        node: None,
        zone: None,
        zone_hints: Box::default(),
        node_hints: Box::default(),
        hostname: hostname.map(Arc::from),
        target: Some("some-pod".into()),
    }
}

pub(crate) fn pod(snapshot: &mut Snapshot, key: &ObjectKey, addresses: &str) {
    let addresses = addresses.split_whitespace().map(ip).collect();
    let pod = Pod { key: key.clone(), addresses, node: None, host_network: false, annotations: Box::default() };
    snapshot.pods.insert(key.clone(), Arc::new(pod));
}

pub(crate) fn key(service: &str) -> ObjectKey {
    ObjectKey::new("shop", service)
}

/// The cluster of the tables.
pub(crate) fn cluster() -> Snapshot {
    let s = &mut Snapshot::default();
    namespace(s, "shop");
    namespace(s, "svc");
    service(s, &key("web"), "10.96.0.1", "http:tcp:80 :udp:53");
    slice(s, &key("web"), "web-1", "http:tcp:8080 :udp:53", "10.1.0.1 front=10.1.0.2 !10.1.0.3");
    service(s, &key("dual"), "10.96.0.2 fd00::2", "http:tcp:80 admin:tcp:81");
    service(s, &key("idle"), "10.96.0.3", "http:tcp:80");
    service(s, &key("db"), "None", "sql:tcp:5432");
    slice(s, &key("db"), "db-1", "sql:tcp:15432", "db-0=10.1.1.1 10.1.1.2 !db-2=10.1.1.3");
    slice(s, &key("db"), "db-2", "sql:tcp:15432", "db-0=fd01::1 fd88:77:0:0:9::");
    slice(s, &key("db"), "db-3", "sql:tcp:15432", "10.1.1.2");
    service(s, &key("one"), "None", "");
    slice(s, &key("one"), "one-1", "", "10.1.2.1");
    service(s, &key("down"), "None", "http:tcp:80");
    slice(s, &key("down"), "down-1", "http:tcp:80", "!10.1.3.1");
    service(s, &key("pending"), "", "http:tcp:80");
    slice(s, &key("pending"), "pending-1", "http:tcp:80", "10.1.9.1");
    let many: Vec<String> = (1..=120).map(|n| format!("10.2.0.{n}")).collect();
    service(s, &key("many"), "None", "http:tcp:80");
    slice(s, &key("many"), "many-1", "http:tcp:80", &many.join(" "));
    external(s, &key("inner"), "WEB.shop.svc.cluster.local.");
    external(s, &key("twice"), "inner.shop.svc.cluster.local");
    external(s, &key("gone"), "nothing.shop.svc.cluster.local");
    external(s, &key("loop-a"), "loop-b.shop.svc.cluster.local");
    external(s, &key("loop-b"), "loop-a.shop.svc.cluster.local");
    external(s, &key("outer"), "www.example.test");
    external(s, &key("absent"), "absent.example.test");
    external(s, &key("number"), "192.0.2.7");
    service(s, &ObjectKey::new("svc", "svc"), "10.96.0.4", "");
    service(s, &ObjectKey::new("hidden", "web"), "10.96.0.5", "http:tcp:80");
    service(s, &key("outside"), "10.96.0.6", "http:tcp:80");
    service(s, &key("mixed"), "None", "http:tcp:80");
    slice(s, &key("mixed"), "mixed-1", "http:tcp:80", "~10.1.4.1 10.1.4.2 !10.1.4.3 twin=10.1.4.4 twin=10.1.4.5");
    service(s, &key("again"), "10.96.0.7", "http:tcp:80");
    slice(s, &key("again"), "again-1", "http:tcp:80", "10.1.4.1");
    slice(s, &key("inner"), "inner-1", "http:tcp:80", "10.1.7.1");
    slice(s, &key("orphan"), "orphan-1", "http:tcp:80", "10.1.7.2");
    service(s, &key("named"), "None", "http:tcp:80");
    service(s, &key("double"), "None", "http:tcp:80");
    slice(s, &key("double"), "double-1", "http:tcp:80", "10.1.8.1 10.1.8.1 10.1.8.2");
    pod(s, &key("pod-1"), "10.1.0.1 fd01::1");
    s.clone()
}
