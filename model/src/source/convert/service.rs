//! Services (IN-10…27).

use std::collections::HashSet;
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;

use super::names::{self, Rule};
use super::{Conversion, Rejection, network, usable_address};
use crate::key::{Family, Protocol};
use crate::service::{ClusterIps, Service, ServiceKind, ServicePort, TrafficPolicy};

/// Presence of this label hands a Service to another proxy (IN-1).
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// What the API server fills in for `sessionAffinityConfig.clientIP.timeoutSeconds` (IN-22).
const DEFAULT_AFFINITY_SECONDS: NonZeroU32 = NonZeroU32::new(10_800).unwrap();
const MAX_AFFINITY_SECONDS: u32 = 86_400;

/// The model of a Service.
pub(crate) fn service(object: &core::Service, cx: &mut Conversion) -> Result<Service, Rejection> {
    let key = cx.checked_key(&object.metadata, Rule::Label)?;
    let empty = core::ServiceSpec::default();
    let spec = object.spec.as_ref().unwrap_or(&empty);
    let kind = kind(spec)?;
    let cluster_ips = match kind {
        // A cluster IP left over from an earlier type means nothing (IN-10).
        ServiceKind::ExternalName(_) => ClusterIps::Unassigned,
        ServiceKind::ClusterIp | ServiceKind::NodePort | ServiceKind::LoadBalancer => cluster_ips(spec, cx),
    };
    let ports = ports(spec, cx);
    if ports.is_empty() && cluster_ips != ClusterIps::Headless && !matches!(kind, ServiceKind::ExternalName(_)) {
        let given = spec.ports.as_deref().unwrap_or_default().len();
        let why = if given == 0 { "it has no ports" } else { "none of its ports is usable" };
        return Err(Rejection(format!("{why}, so the Service is ignored; list at least one under spec.ports")));
    }
    let labels = object.metadata.labels.as_ref();
    Ok(Service {
        created: object.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second()),
        cluster_ips,
        ports,
        external_ips: external_ips(spec, cx),
        load_balancer_ips: load_balancer_ips(object, cx),
        source_ranges: source_ranges(spec, cx),
        affinity: affinity(spec, cx),
        external_policy: policy("externalTrafficPolicy", spec.external_traffic_policy.as_deref(), cx),
        internal_policy: policy("internalTrafficPolicy", spec.internal_traffic_policy.as_deref(), cx),
        health_check_node_port: spec.health_check_node_port.and_then(port_number),
        other_proxy: labels.is_some_and(|labels| labels.contains_key(PROXY_NAME)),
        key,
        kind,
    })
}

/// A port of 1…65535.
pub(crate) fn port_number(number: i32) -> Option<NonZeroU16> {
    u16::try_from(number).ok().and_then(NonZeroU16::new)
}

/// A protocol; absent means TCP (IN-25).
pub(crate) fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

fn kind(spec: &core::ServiceSpec) -> Result<ServiceKind, Rejection> {
    match spec.type_.as_deref().unwrap_or("ClusterIP") {
        "ClusterIP" => Ok(ServiceKind::ClusterIp),
        "NodePort" => Ok(ServiceKind::NodePort),
        "LoadBalancer" => Ok(ServiceKind::LoadBalancer),
        "ExternalName" => {
            let given = spec.external_name.as_deref().unwrap_or_default();
            let target = given.strip_suffix('.').unwrap_or(given);
            if given.is_empty() {
                return Err(Rejection(
                    "type ExternalName without spec.externalName, so the Service is ignored".to_owned(),
                ));
            }
            // An escape would put a dot into a label, and so name another host.
            if !names::is_host(target) {
                return Err(Rejection(format!(
                    "externalName {given:?} is not a DNS name (labels of at most 63 letters, digits, '-' and '_'), so the Service is ignored"
                )));
            }
            Ok(ServiceKind::ExternalName(Arc::from(target)))
        }
        other => Err(Rejection(format!("type {other:?} is not known, so the Service is ignored"))),
    }
}

fn cluster_ips(spec: &core::ServiceSpec, cx: &mut Conversion) -> ClusterIps {
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let given: Vec<&str> = if listed.is_empty() {
        spec.cluster_ip.iter().map(String::as_str).collect()
    } else {
        listed.iter().map(String::as_str).collect()
    };
    let given: Vec<&str> = given.into_iter().filter(|ip| !ip.is_empty()).collect();
    if given.contains(&"None") {
        return ClusterIps::Headless;
    }
    let mut addresses: Vec<IpAddr> = Vec::new();
    for text in given {
        match usable_address(text) {
            Err(why) => cx.note(format!("cluster IP {why}, so it is left out")),
            Ok(ip) if addresses.iter().any(|known| Family::of(known) == Family::of(&ip)) => {
                let family = Family::of(&ip);
                cx.note(format!("cluster IP {ip} is the second one of {family}, so it is left out"));
            }
            Ok(ip) => addresses.push(ip),
        }
    }
    if addresses.is_empty() { ClusterIps::Unassigned } else { ClusterIps::Assigned(addresses) }
}

fn ports(spec: &core::ServiceSpec, cx: &mut Conversion) -> Vec<ServicePort> {
    let given = spec.ports.as_deref().unwrap_or_default();
    let mut ports: Vec<ServicePort> = Vec::with_capacity(given.len());
    let mut node_ports = HashSet::new();
    for object in given {
        let name = object.name.as_deref().unwrap_or_default();
        match port(object, &ports, cx) {
            Ok(mut port) => {
                if let Some(number) = port.node_port
                    && !node_ports.insert((number, port.protocol))
                {
                    cx.note(format!("port {name:?} repeats node port {number}, so it gets none"));
                    port.node_port = None;
                }
                ports.push(port);
            }
            Err(why) => cx.note(format!("{why}, so that port is left out")),
        }
    }
    ports
}

/// One port, unless it is bad or contradicts an earlier one: the API server would refuse such a Service as a whole.
fn port(object: &core::ServicePort, earlier: &[ServicePort], cx: &mut Conversion) -> Result<ServicePort, String> {
    let name = object.name.as_deref().unwrap_or_default();
    let number = object.port;
    let Some(port) = port_number(number) else {
        return Err(format!("port {name:?} has number {number}, which is not within 1-65535"));
    };
    if let Some(fault) = Some(name).filter(|name| !name.is_empty()).and_then(names::label_fault) {
        return Err(format!("port name {name:?} {fault}"));
    }
    let Some(protocol) = protocol(object.protocol.as_deref()) else {
        let given = object.protocol.as_deref().unwrap_or_default();
        return Err(format!("port {name:?} has protocol {given:?}, which is none of TCP, UDP, SCTP"));
    };
    if earlier.iter().any(|other| *other.name == *name) {
        return Err(if name.is_empty() {
            format!("port {number} has no name although the Service has several ports, which must all be named")
        } else {
            format!("port name {name:?} is used twice (again for {number}/{protocol})")
        });
    }
    if let Some(other) = earlier.iter().find(|other| (other.port, other.protocol) == (port, protocol)) {
        return Err(format!("port {name:?} repeats {number}/{protocol} of port {:?}", &*other.name));
    }
    if (name.is_empty() && !earlier.is_empty()) || earlier.iter().any(|other| other.name.is_empty()) {
        // Unambiguous so far, so it is kept; the note says why an API server would refuse it.
        cx.note("it has several ports but not all are named; name them all, Kubernetes would refuse it");
    }
    let node_port = object.node_port.filter(|number| *number != 0);
    if let Some(bad) = node_port.filter(|number| port_number(*number).is_none()) {
        cx.note(format!("port {name:?} has node port {bad}, which is not within 1-65535, so it gets none"));
    }
    Ok(ServicePort { name: cx.intern(name), protocol, port, node_port: node_port.and_then(port_number) })
}

fn external_ips(spec: &core::ServiceSpec, cx: &mut Conversion) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for text in spec.external_ips.iter().flatten() {
        match cx.dialled_address(text) {
            Ok(ip) if addresses.contains(&ip) => {}
            Ok(ip) => addresses.push(ip),
            Err(why) => cx.note(format!("external IP {why}, so it is left out")),
        }
    }
    addresses
}

/// Addresses with another mode than VIP are reached through the load balancer itself (IN-15). An API server takes any
/// address here, also a loopback one.
fn load_balancer_ips(object: &core::Service, cx: &mut Conversion) -> Vec<IpAddr> {
    let balancer = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let mut addresses = Vec::new();
    for ingress in balancer.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten() {
        let Some(text) = ingress.ip.as_deref().filter(|ip| !ip.is_empty()) else { continue };
        if ingress.ip_mode.as_deref().unwrap_or("VIP") != "VIP" {
            continue;
        }
        match usable_address(text) {
            Ok(ip) if addresses.contains(&ip) => {}
            Ok(ip) => addresses.push(ip),
            Err(why) => cx.note(format!("load balancer address {why}, so it is left out")),
        }
    }
    addresses
}

fn source_ranges(spec: &core::ServiceSpec, cx: &mut Conversion) -> Vec<ipnet::IpNet> {
    let mut ranges = Vec::new();
    for text in spec.load_balancer_source_ranges.iter().flatten() {
        match network(text) {
            Some(range) => ranges.push(range),
            None => cx.note(format!("source range {text:?} is not a CIDR, so it is left out")),
        }
    }
    ranges
}

fn affinity(spec: &core::ServiceSpec, cx: &mut Conversion) -> Option<NonZeroU32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let Some(seconds) = config.and_then(|config| config.timeout_seconds) else {
        return Some(DEFAULT_AFFINITY_SECONDS);
    };
    let valid = u32::try_from(seconds).ok().filter(|seconds| *seconds <= MAX_AFFINITY_SECONDS);
    valid.and_then(NonZeroU32::new).or_else(|| {
        cx.note(format!("affinity timeout {seconds} is not within 1-86400, so {DEFAULT_AFFINITY_SECONDS} counts"));
        Some(DEFAULT_AFFINITY_SECONDS)
    })
}

fn policy(field: &str, value: Option<&str>, cx: &mut Conversion) -> TrafficPolicy {
    match value.unwrap_or_default() {
        "Local" => TrafficPolicy::Local,
        "Cluster" | "" => TrafficPolicy::Cluster,
        other => {
            cx.note(format!("{field} {other:?} is neither Cluster nor Local, so Cluster counts"));
            TrafficPolicy::Cluster
        }
    }
}
