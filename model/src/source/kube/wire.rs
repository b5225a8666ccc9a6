//! The fields of the API's objects that are read: a Pod has a thousand fields, of which this needs five.
//!
//! Each object is decoded by itself, so that a malformed one affects no other.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::Kind;

/// An object as the API sent it, or why it cannot be read.
#[derive(Clone, Debug)]
pub(super) struct Read<T> {
    pub(super) metadata: Metadata,
    pub(super) object: Result<T, String>,
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Read<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let head = serde_json::from_str::<Head>(text.get());
        let object = serde_json::from_str::<T>(text.get());
        match (head, object) {
            (Ok(Head { metadata }), object) => Ok(Self { metadata, object: object.map_err(|error| error.to_string()) }),
            // Not even a name can be read: only that an object exists is known.
            (Err(error), _) => Ok(Self { metadata: Metadata::default(), object: Err(error.to_string()) }),
        }
    }
}

/// One line of a watch.
#[derive(Debug)]
pub(super) enum Event<T> {
    /// Added or modified.
    Present(Read<T>),
    /// Deleted, or no longer selected.
    Gone(Metadata),
    /// Nothing happened up to this version.
    Bookmark(Metadata),
    /// The watch is over.
    Error(Box<kube::core::Status>),
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Event<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The object's form depends on the type, whichever of the two comes first.
        #[derive(Deserialize)]
        struct Line {
            r#type: String,
            object: Box<RawValue>,
        }
        let Line { r#type, object } = Line::deserialize(deserializer)?;
        let head = || serde_json::from_str::<Head>(object.get()).map(|Head { metadata }| metadata);
        let event = match r#type.as_str() {
            "ADDED" | "MODIFIED" => serde_json::from_str(object.get()).map(Self::Present),
            "DELETED" => head().map(Self::Gone),
            "BOOKMARK" => head().map(Self::Bookmark),
            "ERROR" => serde_json::from_str(object.get()).map(Self::Error),
            other => return Err(D::Error::custom(format!("events of type {other:?} are not known"))),
        };
        // Not passed on as it is: an object that ends too soon must not be taken for a line that does.
        event.map_err(D::Error::custom)
    }
}

#[derive(Deserialize)]
struct Head {
    metadata: Metadata,
}

/// Metadata without the fields that are not read here: `managedFields` alone is often larger than the object.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Metadata {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) resource_version: String,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
}

impl From<Metadata> for ObjectMeta {
    fn from(metadata: Metadata) -> Self {
        Self {
            namespace: Some(metadata.namespace),
            name: Some(metadata.name),
            labels: metadata.labels,
            annotations: metadata.annotations,
            creation_timestamp: metadata.creation_timestamp,
            deletion_timestamp: metadata.deletion_timestamp,
            ..Self::default()
        }
    }
}

/// An object on its way to the view.
#[derive(Debug)]
pub(super) enum ApiObject {
    Service(Box<core::Service>),
    Slice(Box<discovery::EndpointSlice>),
    Node(Box<core::Node>),
    Pod(Box<core::Pod>),
    Namespace(Box<core::Namespace>),
    ServiceCidr(Box<networking::ServiceCIDR>),
}

/// What is decoded besides the metadata.
pub(super) trait Wire: Clone + DeserializeOwned + Send + 'static {
    const KIND: Kind;

    fn object(self, metadata: ObjectMeta) -> ApiObject;
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct WireService {
    spec: Option<core::ServiceSpec>,
    status: Option<core::ServiceStatus>,
}

impl Wire for WireService {
    const KIND: Kind = Kind::Service;

    fn object(self, metadata: ObjectMeta) -> ApiObject {
        ApiObject::Service(Box::new(core::Service { metadata, spec: self.spec, status: self.status }))
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WireSlice {
    address_type: String,
    // Go writes an empty list as null.
    endpoints: Option<Vec<discovery::Endpoint>>,
    ports: Option<Vec<discovery::EndpointPort>>,
}

impl Wire for WireSlice {
    const KIND: Kind = Kind::Slice;

    fn object(self, metadata: ObjectMeta) -> ApiObject {
        let Self { address_type, endpoints, ports } = self;
        let endpoints = endpoints.unwrap_or_default();
        ApiObject::Slice(Box::new(discovery::EndpointSlice { metadata, address_type, endpoints, ports }))
    }
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct WireNode {
    spec: Option<NodeSpec>,
    status: Option<NodeStatus>,
}

#[derive(Clone, Debug, Deserialize)]
struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
    taints: Option<Vec<core::Taint>>,
}

#[derive(Clone, Debug, Deserialize)]
struct NodeStatus {
    addresses: Option<Vec<core::NodeAddress>>,
}

impl Wire for WireNode {
    const KIND: Kind = Kind::Node;

    fn object(self, metadata: ObjectMeta) -> ApiObject {
        let spec = self.spec.map(|NodeSpec { pod_cidr, pod_cidrs, taints }| core::NodeSpec {
            pod_cidr,
            pod_cidrs,
            taints,
            ..core::NodeSpec::default()
        });
        let status = self.status.map(|NodeStatus { addresses }| core::NodeStatus { addresses, ..Default::default() });
        ApiObject::Node(Box::new(core::Node { metadata, spec, status }))
    }
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct WirePod {
    spec: Option<PodSpec>,
    status: Option<PodStatus>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    node_name: Option<String>,
    host_network: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<core::PodIP>>,
}

impl Wire for WirePod {
    const KIND: Kind = Kind::Pod;

    fn object(self, metadata: ObjectMeta) -> ApiObject {
        let spec = self.spec.map(|PodSpec { node_name, host_network }| core::PodSpec {
            node_name,
            host_network,
            ..core::PodSpec::default()
        });
        let status = self.status.map(|PodStatus { phase, pod_ip, pod_ips }| core::PodStatus {
            phase,
            pod_ip,
            pod_ips,
            ..core::PodStatus::default()
        });
        ApiObject::Pod(Box::new(core::Pod { metadata, spec, status }))
    }
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct WireNamespace {}

impl Wire for WireNamespace {
    const KIND: Kind = Kind::Namespace;

    fn object(self, metadata: ObjectMeta) -> ApiObject {
        ApiObject::Namespace(Box::new(core::Namespace { metadata, ..core::Namespace::default() }))
    }
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct WireServiceCidr {
    spec: Option<networking::ServiceCIDRSpec>,
}

impl Wire for WireServiceCidr {
    const KIND: Kind = Kind::ServiceCidr;

    fn object(self, metadata: ObjectMeta) -> ApiObject {
        ApiObject::ServiceCidr(Box::new(networking::ServiceCIDR { metadata, spec: self.spec, status: None }))
    }
}
