//! The whole view at one moment.

use std::sync::Arc;

use imbl::OrdMap;

use crate::endpoint::EndpointSlice;
use crate::key::{ObjectKey, SliceKey};
use crate::node::{Namespace, Node, Pod, ServiceCidr};
use crate::service::Service;

/// An immutable view of the cluster. Cloning is cheap and shares structure, so a source clones, edits and publishes,
/// and a reader finds what changed with `old.services.diff(&new.services)` in time proportional to the change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Namespaces by name.
    pub namespaces: OrdMap<Arc<str>, Arc<Namespace>>,
    /// Services of every kind.
    pub services: OrdMap<ObjectKey, Arc<Service>>,
    /// EndpointSlices; those of one Service are neighbours.
    pub slices: OrdMap<SliceKey, Arc<EndpointSlice>>,
    /// Unfinished Pods. One that was first seen while it was being deleted is missing (DNS-6.3), unless it has an
    /// annotation that is kept.
    pub pods: OrdMap<ObjectKey, Arc<Pod>>,
    /// Nodes by name.
    pub nodes: OrdMap<Arc<str>, Arc<Node>>,
    /// ServiceCIDRs by name; a folder of manifests has none.
    pub service_cidrs: OrdMap<Arc<str>, Arc<ServiceCidr>>,
}

impl Snapshot {
    /// Whether nothing was touched between the two, at the price of a few pointers.
    #[must_use]
    pub fn ptr_eq(&self, other: &Self) -> bool {
        let Self { namespaces, services, slices, pods, nodes, service_cidrs } = self;
        namespaces.ptr_eq(&other.namespaces)
            && services.ptr_eq(&other.services)
            && slices.ptr_eq(&other.slices)
            && pods.ptr_eq(&other.pods)
            && nodes.ptr_eq(&other.nodes)
            && service_cidrs.ptr_eq(&other.service_cidrs)
    }

    /// The slices of a Service, in order of their names.
    pub fn slices_of<'a>(&'a self, service: &'a ObjectKey) -> impl Iterator<Item = &'a Arc<EndpointSlice>> {
        let first = SliceKey { service: service.clone(), slice: Arc::from("") };
        self.slices.range(first..).take_while(move |(key, _)| key.service == *service).map(|(_, slice)| slice)
    }
}
