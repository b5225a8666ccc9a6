//! Endpoints of a Service with a selector, derived from Pods as the EndpointSlice controller would (IN-42…44).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::allocate::{Families, FamilyPolicy};
use crate::endpoint::{Endpoint, EndpointPort, EndpointSlice};
use crate::key::{Family, ObjectKey, Protocol, SliceKey};
use crate::node::Pod;
use crate::service::{ClusterIps, Service, ServiceKind};
use crate::source::convert::{self, Conversion, Rejection};

/// A label and its value.
pub(super) type Label = (Arc<str>, Arc<str>);

/// What of a Service decides its derived endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Selection {
    service: ObjectKey,
    /// All of these labels must match; never empty.
    pub(super) selector: Vec<Label>,
    ports: Vec<TargetPort>,
    families: Vec<Family>,
    headless: bool,
    publish_not_ready: bool,
    hints: Hints,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct TargetPort {
    name: Arc<str>,
    protocol: Protocol,
    target: Target,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Number(NonZeroU16),
    /// A container port's name; its number may differ from Pod to Pod.
    Name(Arc<str>),
}

/// `trafficDistribution`, as the hints it leads to (IN-44).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hints {
    None,
    Zone,
    ZoneAndNode,
}

/// An unfinished Pod with what decides whether and where it is an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) pod: Arc<Pod>,
    pub(super) labels: Vec<Label>,
    ready: bool,
    terminating: bool,
    /// It is left out of the view, see [`convert::is_leaving`].
    pub(super) leaving: bool,
    hostname: Option<Arc<str>>,
    subdomain: Option<Arc<str>>,
    ports: Vec<EndpointPort>,
}

impl Selection {
    /// `None` for a Service without a selector: manifests give its endpoints.
    pub(super) fn new(
        object: &core::Service,
        service: &Service,
        families: &Families,
        cx: &mut Conversion,
    ) -> Option<Self> {
        let spec = object.spec.as_ref()?;
        let selector = spec.selector.as_ref().filter(|selector| !selector.is_empty())?;
        if matches!(service.kind, ServiceKind::ExternalName(_)) {
            return None;
        }
        Some(Self {
            service: service.key.clone(),
            selector: labels(selector, cx),
            ports: target_ports(spec, service, cx),
            families: slice_families(service, families),
            headless: service.cluster_ips == ClusterIps::Headless,
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
            hints: hints(object, spec),
        })
    }

    /// Whether the Pod is one of this Service's.
    pub(super) fn selects(&self, candidate: &Candidate) -> bool {
        self.service.namespace == candidate.pod.key.namespace
            && self.selector.iter().all(|label| candidate.labels.contains(label))
    }
}

impl Candidate {
    /// None for a finished Pod.
    pub(super) fn new(object: &core::Pod, cx: &mut Conversion) -> Result<Option<Self>, Rejection> {
        let Some(pod) = convert::pod(object, cx)? else { return Ok(None) };
        let conditions = object.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        // No kubelet runs the probes of a Pod in a manifest; without any condition it counts as ready.
        let ready = conditions.is_empty() || conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
        let spec = object.spec.as_ref();
        Ok(Some(Self {
            leaving: convert::is_leaving(object, &pod),
            pod: Arc::new(pod),
            labels: object.metadata.labels.as_ref().map(|given| labels(given, cx)).unwrap_or_default(),
            ready,
            terminating: object.metadata.deletion_timestamp.is_some(),
            hostname: cx.hostname(spec.and_then(|spec| spec.hostname.as_deref())),
            subdomain: cx.intern_some(spec.and_then(|spec| spec.subdomain.as_deref())),
            ports: spec.map(|spec| container_ports(spec, cx)).unwrap_or_default(),
        }))
    }
}

/// The slices of a Service over the Pods that it selects; `zone_of` knows the Nodes.
///
/// Endpoints of a slice share its ports, so Pods that give a named target port different numbers are in different
/// slices. Their names carry the numbers, so that one Pod coming or going never renames another's slice.
pub(super) fn slices<'a>(
    selection: &Selection,
    pods: impl Iterator<Item = &'a Candidate>,
    zone_of: impl Fn(&str) -> Option<Arc<str>>,
) -> Vec<EndpointSlice> {
    let mut groups: BTreeMap<(Family, Vec<Option<NonZeroU16>>), Vec<Endpoint>> = BTreeMap::new();
    for pod in pods.filter(|pod| selection.selects(pod)) {
        for family in &selection.families {
            // One per Pod and family, as the API's own rule for podIPs has it.
            if let Some(address) = pod.pod.addresses.iter().find(|address| Family::of(address) == *family) {
                let numbers = selection.ports.iter().map(|port| port.number(pod)).collect();
                groups.entry((*family, numbers)).or_default().push(endpoint(selection, pod, *address, &zone_of));
            }
        }
    }
    groups
        .into_iter()
        .map(|((family, numbers), mut endpoints)| {
            endpoints.sort_by(|a, b| (&a.addresses, &a.target).cmp(&(&b.addresses, &b.target)));
            EndpointSlice {
                key: SliceKey { service: selection.service.clone(), slice: slice_name(selection, family, &numbers) },
                family,
                ports: slice_ports(selection, &numbers),
                endpoints,
                headless: selection.headless,
                triggered: None,
            }
        })
        .collect()
}

impl TargetPort {
    /// The number in this Pod; none if it has no such port.
    fn number(&self, pod: &Candidate) -> Option<NonZeroU16> {
        match &self.target {
            Target::Number(number) => Some(*number),
            Target::Name(name) => {
                pod.ports.iter().find(|port| port.name == *name && port.protocol == self.protocol).map(|port| port.port)
            }
        }
    }
}

fn slice_ports(selection: &Selection, numbers: &[Option<NonZeroU16>]) -> Vec<EndpointPort> {
    let pairs = selection.ports.iter().zip(numbers);
    pairs
        .filter_map(|(port, number)| {
            number.map(|port_number| EndpointPort {
                name: Arc::clone(&port.name),
                protocol: port.protocol,
                port: port_number,
            })
        })
        .collect()
}

fn slice_name(selection: &Selection, family: Family, numbers: &[Option<NonZeroU16>]) -> Arc<str> {
    let service = &selection.service.name;
    let mut name = match family {
        Family::V4 => format!("{service}-derived-ipv4"),
        Family::V6 => format!("{service}-derived-ipv6"),
    };
    for (port, number) in selection.ports.iter().zip(numbers) {
        if matches!(port.target, Target::Name(_)) {
            name.push_str(&number.map_or_else(|| "-none".to_owned(), |number| format!("-{number}")));
        }
    }
    Arc::from(name)
}

fn endpoint(
    selection: &Selection,
    candidate: &Candidate,
    address: IpAddr,
    zone_of: impl Fn(&str) -> Option<Arc<str>>,
) -> Endpoint {
    let pod = &candidate.pod;
    let zone = pod.node.as_deref().and_then(zone_of);
    let ready = selection.publish_not_ready || (candidate.ready && !candidate.terminating);
    let (zone_hint, node_hint) = match selection.hints {
        Hints::Zone if ready => (zone.clone(), None),
        Hints::ZoneAndNode if ready => (zone.clone(), pod.node.clone()),
        Hints::None | Hints::Zone | Hints::ZoneAndNode => (None, None),
    };
    let named = candidate.subdomain.as_deref() == Some(&*selection.service.name);
    Endpoint {
        addresses: Box::new([address]),
        ready,
        serving: candidate.ready,
        terminating: candidate.terminating,
        node: pod.node.clone(),
        zone,
        zone_hints: zone_hint.into_iter().collect(),
        node_hints: node_hint.into_iter().collect(),
        hostname: candidate.hostname.clone().filter(|_| named),
        target: Some(Arc::clone(&pod.key.name)),
    }
}

/// The families a Service says it has. One that says nothing takes what its Pods have: which single family the API
/// server would pick depends on its flags, and endpoints of a family without a cluster IP are never used anyway.
fn slice_families(service: &Service, families: &Families) -> Vec<Family> {
    let given = service.cluster_ips.addresses();
    match families.policy {
        FamilyPolicy::PreferDual | FamilyPolicy::RequireDual => Family::BOTH.to_vec(),
        FamilyPolicy::Single if !families.listed.is_empty() => families.listed.clone(),
        FamilyPolicy::Single if !given.is_empty() => given.iter().map(Family::of).collect(),
        FamilyPolicy::Single => Family::BOTH.to_vec(),
    }
}

fn target_ports(spec: &core::ServiceSpec, service: &Service, cx: &mut Conversion) -> Vec<TargetPort> {
    let mut ports = Vec::with_capacity(service.ports.len());
    for port in &service.ports {
        let given = spec.ports.iter().flatten().find(|given| {
            given.name.as_deref().unwrap_or_default() == &*port.name && given.port == i32::from(port.port.get())
        });
        let target = match given.and_then(|given| given.target_port.as_ref()) {
            None | Some(IntOrString::Int(0)) => Target::Number(port.port),
            Some(IntOrString::String(name)) if name.is_empty() => Target::Number(port.port),
            Some(IntOrString::String(name)) if name.bytes().all(|byte| byte.is_ascii_digit()) => {
                cx.note(format!(
                    "port {:?} has targetPort {name:?} in quotes, which is a name and not a number, and Kubernetes refuses \
                     it; write targetPort: {name}. The port has no endpoints",
                    port.name
                ));
                continue;
            }
            Some(IntOrString::String(name)) => {
                if let Some(fault) = convert::port_name_fault(name) {
                    let port = &port.name;
                    cx.note(format!(
                        "port {port:?} has targetPort {name:?}, which {fault}; Kubernetes would refuse it"
                    ));
                }
                Target::Name(cx.intern(name))
            }
            Some(IntOrString::Int(number)) => {
                let Some(number) = convert::port_number(*number) else {
                    let name = &port.name;
                    cx.note(format!(
                        "port {name:?} has targetPort {number}, which is not within 1-65535, so it has no endpoints"
                    ));
                    continue;
                };
                Target::Number(number)
            }
        };
        ports.push(TargetPort { name: Arc::clone(&port.name), protocol: port.protocol, target });
    }
    ports
}

fn hints(object: &core::Service, spec: &core::ServiceSpec) -> Hints {
    // This older setting takes precedence. Its hints depend on the CPUs of every node; without hints is what the
    // controller itself falls back to.
    let annotations = object.metadata.annotations.as_ref();
    let mode = annotations.and_then(|annotations| annotations.get("service.kubernetes.io/topology-mode"));
    if mode.is_some_and(|mode| mode.eq_ignore_ascii_case("auto")) {
        return Hints::None;
    }
    match spec.traffic_distribution.as_deref() {
        Some("PreferClose" | "PreferSameZone") => Hints::Zone,
        Some("PreferSameNode") => Hints::ZoneAndNode,
        Some(_) | None => Hints::None,
    }
}

/// Named ports of the containers, sidecars (restartable init containers) last, as Kubernetes looks them up.
fn container_ports(spec: &core::PodSpec, cx: &mut Conversion) -> Vec<EndpointPort> {
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let mut ports = Vec::new();
    for port in spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten()) {
        let name = port.name.as_deref().filter(|name| !name.is_empty());
        let protocol = convert::protocol(port.protocol.as_deref());
        if let (Some(name), Some(protocol), Some(number)) = (name, protocol, convert::port_number(port.container_port))
        {
            ports.push(EndpointPort { name: cx.intern(name), protocol, port: number });
        }
    }
    ports
}

fn labels(given: &BTreeMap<String, String>, cx: &mut Conversion) -> Vec<Label> {
    given.iter().map(|(name, value)| (cx.intern(name), cx.intern(value))).collect()
}

#[cfg(test)]
mod tests;
