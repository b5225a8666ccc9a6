//! The cluster as shunt sees it: immutable snapshots of Services, EndpointSlices, Pods, Nodes and Namespaces.
//!
//! Sources (see [`source`]) turn Kubernetes objects or files into a [`Snapshot`]; the proxy's plan and the DNS zone
//! read it and never learn where it came from. Snapshots share structure, so a new one costs as much as the change
//! it carries, and [`OrdMap::diff`](imbl::OrdMap::diff) between two finds that change without looking at the rest.
#![forbid(unsafe_code)]

pub mod causes;
pub mod duration;
pub mod endpoint;
pub mod key;
pub mod node;
pub mod service;
pub mod snapshot;
pub mod source;
pub mod stamp;

pub use causes::with_causes;
pub use duration::GoDuration;
pub use endpoint::{Endpoint, EndpointPort, EndpointSlice};
pub use key::{Family, ObjectKey, Protocol, SliceKey};
pub use node::{Namespace, Node, Pod, ServiceCidr};
pub use service::{ClusterIps, Service, ServiceKind, ServicePort, TrafficPolicy};
pub use snapshot::Snapshot;
pub use stamp::Stamp;
