//! Nodes, Pods and Namespaces.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1 as networking;

use super::names::{self, Rule};
use super::{Conversion, Rejection, network, usable_address};
use crate::node::{Namespace, Node, Pod, ServiceCidr};

/// The label that names a Node's zone (EP-12).
const ZONE: &str = "topology.kubernetes.io/zone";
/// The taint of a Node that the cluster autoscaler is about to remove.
const LEAVING: &str = "ToBeDeletedByClusterAutoscaler";

/// The model of a Namespace.
pub(crate) fn namespace(object: &core::Namespace, cx: &mut Conversion) -> Result<Namespace, Rejection> {
    let name = cx.intern(object.metadata.name.as_deref().unwrap_or_default());
    names::check("the name", &name, Rule::Label)?;
    Ok(Namespace { name })
}

/// The model of a Node.
pub(crate) fn node(object: &core::Node, cx: &mut Conversion) -> Result<Node, Rejection> {
    let name = cx.intern(object.metadata.name.as_deref().unwrap_or_default());
    names::check("the name", &name, Rule::Subdomain)?;
    let labels = object.metadata.labels.as_ref();
    Ok(Node {
        name,
        zone: cx.intern_some(labels.and_then(|labels| labels.get(ZONE)).map(String::as_str)),
        addresses: node_addresses(object, cx),
        pod_cidrs: pod_cidrs(object, cx),
        eligible: eligible(object),
    })
}

/// The model of a Pod; none once it has finished, for its addresses may belong to another by then.
pub(crate) fn pod(object: &core::Pod, cx: &mut Conversion) -> Result<Option<Pod>, Rejection> {
    let key = cx.checked_key(&object.metadata, Rule::Subdomain)?;
    let phase = object.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return Ok(None);
    }
    let spec = object.spec.as_ref();
    Ok(Some(Pod {
        key,
        addresses: pod_addresses(object, cx),
        node: cx.intern_some(spec.and_then(|spec| spec.node_name.as_deref())),
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
        annotations: cx.wanted_annotations(object.metadata.annotations.as_ref()),
    }))
}

/// Whether the Pod is being deleted and its update must be ignored: such a Pod keeps the name that it had before, and
/// gets no new one (DNS-6.3). A Pod with an annotation that is kept is not ignored: its opt-out holds as long as
/// it runs.
pub(crate) fn is_leaving(object: &core::Pod, pod: &Pod) -> bool {
    object.metadata.deletion_timestamp.is_some() && pod.annotations.is_empty()
}

/// The model of a ServiceCIDR.
pub(crate) fn service_cidr(object: &networking::ServiceCIDR, cx: &mut Conversion) -> Result<ServiceCidr, Rejection> {
    let name = cx.intern(object.metadata.name.as_deref().unwrap_or_default());
    names::check("the name", &name, Rule::Subdomain)?;
    let mut ranges = Vec::new();
    for text in object.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten()) {
        match network(text) {
            Some(network) => ranges.push(network),
            None => cx.note(format!("{text:?} is not a CIDR, so it is left out")),
        }
    }
    Ok(ServiceCidr { name, ranges })
}

/// Whether load balancers may go on sending new connections here (HM-15): the taint counts by its key alone.
fn eligible(object: &core::Node) -> bool {
    let taints = object.spec.as_ref().and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
    object.metadata.deletion_timestamp.is_none() && taints.into_iter().all(|taint| taint.key != LEAVING)
}

fn node_addresses(object: &core::Node, cx: &mut Conversion) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for wanted in ["InternalIP", "ExternalIP"] {
        let given = object.status.as_ref().and_then(|status| status.addresses.as_ref()).into_iter().flatten();
        for entry in given.filter(|entry| entry.type_ == wanted) {
            match usable_address(&entry.address) {
                Ok(address) if addresses.contains(&address) => {}
                Ok(address) => addresses.push(address),
                Err(why) => cx.note(format!("{wanted} {why}, so it is left out")),
            }
        }
    }
    addresses
}

fn pod_cidrs(object: &core::Node, cx: &mut Conversion) -> Vec<ipnet::IpNet> {
    let Some(spec) = object.spec.as_ref() else { return Vec::new() };
    let listed = spec.pod_cidrs.as_deref().unwrap_or_default();
    let single = spec.pod_cidr.as_slice();
    let mut networks = Vec::new();
    for text in if listed.is_empty() { single } else { listed } {
        match network(text) {
            Some(network) => networks.push(network),
            None => cx.note(format!("pod CIDR {text:?} is not a CIDR, so it is left out")),
        }
    }
    networks
}

fn pod_addresses(object: &core::Pod, cx: &mut Conversion) -> Vec<IpAddr> {
    let Some(status) = object.status.as_ref() else { return Vec::new() };
    let listed = status.pod_ips.iter().flatten().map(|entry| entry.ip.as_str());
    let mut addresses = Vec::new();
    for text in status.pod_ip.as_deref().into_iter().chain(listed).filter(|ip| !ip.is_empty()) {
        match cx.dialled_address(text) {
            Ok(address) if addresses.contains(&address) => {}
            Ok(address) => addresses.push(address),
            Err(why) => cx.note(format!("pod IP {why}, so it is left out")),
        }
    }
    addresses
}
