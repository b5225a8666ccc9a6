//! EndpointSlices (IN-30…41).

use std::net::IpAddr;
use std::time::SystemTime;

use k8s_openapi::api::discovery::v1 as discovery;

use super::names::{self, Rule};
use super::{Conversion, Rejection, port_number, protocol};
use crate::endpoint::{Endpoint, EndpointPort, EndpointSlice};
use crate::key::{Family, ObjectKey, SliceKey};

/// The label that ties a slice to its Service (IN-30).
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label that keeps a slice out of load balancing (IN-2).
const HEADLESS: &str = "service.kubernetes.io/headless";
/// The annotation with the time of the change that led to this version of the slice (SY-20).
const TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// The model of an EndpointSlice; none for addressType FQDN, which nothing here reads (IN-31).
pub(crate) fn slice(
    object: &discovery::EndpointSlice,
    cx: &mut Conversion,
) -> Result<Option<EndpointSlice>, Rejection> {
    let key = cx.checked_key(&object.metadata, Rule::Subdomain)?;
    let family = match object.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        "FQDN" => return Ok(None),
        other => return Err(Rejection(format!("addressType {other:?} is not known, so the EndpointSlice is ignored"))),
    };
    let label = |name: &str| object.metadata.labels.as_ref().and_then(|labels| labels.get(name));
    let Some(service) = label(SERVICE_NAME).filter(|name| !name.is_empty()) else {
        return Err(Rejection(format!("no label {SERVICE_NAME} says whose it is, so the EndpointSlice is ignored")));
    };
    let service = ObjectKey { namespace: key.namespace, name: cx.intern(service) };
    Ok(Some(EndpointSlice {
        key: SliceKey { service, slice: key.name },
        family,
        ports: ports(object, cx),
        endpoints: endpoints(object, family, cx),
        headless: label(HEADLESS).is_some(),
        triggered: triggered(object),
    }))
}

/// What the annotation says; anything that is no time counts as absent (SY-20).
fn triggered(object: &discovery::EndpointSlice) -> Option<SystemTime> {
    let text = object.metadata.annotations.as_ref()?.get(TRIGGERED)?;
    text.parse::<jiff::Timestamp>().ok().map(SystemTime::from)
}

fn ports(object: &discovery::EndpointSlice, cx: &mut Conversion) -> Vec<EndpointPort> {
    let mut ports = Vec::new();
    for port in object.ports.iter().flatten() {
        // The API server fills in "" for an absent name, so no object of its own has none (IN-32).
        let name = port.name.as_deref().unwrap_or_default();
        // No number means "every port", which a proxy cannot use.
        let Some(number) = port.port else { continue };
        // Without the name it would be taken for the port of another name.
        if let Some(fault) = Some(name).filter(|name| !name.is_empty()).and_then(names::label_fault) {
            cx.note(format!("port name {name:?} {fault}, so that port is left out"));
            continue;
        }
        match (port_number(number), protocol(port.protocol.as_deref())) {
            (Some(number), Some(protocol)) => {
                ports.push(EndpointPort { name: cx.intern(name), protocol, port: number });
            }
            (None, _) => {
                cx.note(format!("port {name:?} has number {number}, which is not within 1-65535, so it is left out"));
            }
            (_, None) => {
                let given = port.protocol.as_deref().unwrap_or_default();
                cx.note(format!("port {name:?} has unknown protocol {given:?}, so it is left out"));
            }
        }
    }
    ports
}

fn endpoints(object: &discovery::EndpointSlice, family: Family, cx: &mut Conversion) -> Vec<Endpoint> {
    let mut endpoints = Vec::with_capacity(object.endpoints.len());
    for (index, endpoint) in object.endpoints.iter().enumerate() {
        let addresses = addresses(endpoint, family, cx);
        if addresses.is_empty() {
            cx.note(format!("endpoints[{index}] has no usable {family} address, so it is left out"));
            continue;
        }
        endpoints.push(converted(endpoint, addresses, cx));
    }
    endpoints
}

fn addresses(endpoint: &discovery::Endpoint, family: Family, cx: &mut Conversion) -> Box<[IpAddr]> {
    let mut addresses = Vec::with_capacity(endpoint.addresses.len());
    for text in &endpoint.addresses {
        match cx.dialled_address(text) {
            Ok(address) if Family::of(&address) == family => addresses.push(address),
            Ok(address) => cx.note(format!("endpoint address {address} is not {family}, so it is left out")),
            Err(why) => cx.note(format!("endpoint address {why}, so it is left out")),
        }
    }
    addresses.into_boxed_slice()
}

fn converted(endpoint: &discovery::Endpoint, addresses: Box<[IpAddr]>, cx: &mut Conversion) -> Endpoint {
    let conditions = endpoint.conditions.as_ref();
    let hints = endpoint.hints.as_ref();
    let zones = hints.and_then(|hints| hints.for_zones.as_ref()).into_iter().flatten();
    let nodes = hints.and_then(|hints| hints.for_nodes.as_ref()).into_iter().flatten();
    Endpoint {
        addresses,
        ready: conditions.and_then(|conditions| conditions.ready).unwrap_or(true),
        // Absent does not follow `ready`, it is true (IN-35).
        serving: conditions.and_then(|conditions| conditions.serving).unwrap_or(true),
        terminating: conditions.and_then(|conditions| conditions.terminating).unwrap_or(false),
        node: cx.intern_some(endpoint.node_name.as_deref()),
        zone: cx.intern_some(endpoint.zone.as_deref()),
        zone_hints: zones.map(|zone| cx.intern(&zone.name)).collect(),
        node_hints: nodes.map(|node| cx.intern(&node.name)).collect(),
        hostname: cx.hostname(endpoint.hostname.as_deref()),
        target: cx.intern_some(endpoint.target_ref.as_ref().and_then(|target| target.name.as_deref())),
    }
}
