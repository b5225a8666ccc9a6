//! Where an address is used: the lookups a snapshot does not offer, kept up to date from differences alone.

use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdSet;
use imbl::ordmap::DiffItem;
use shunt_model::{EndpointSlice, ObjectKey, Pod, Service, ServiceKind, SliceKey, Snapshot};

use super::PodMode;

/// Shares structure with the index before the change.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Index {
    /// Cluster IPs; two Services may claim one.
    services: OrdSet<(IpAddr, ObjectKey)>,
    /// Endpoint addresses, ready or not. There are many of them, so those of a slice share its key.
    slices: OrdSet<(IpAddr, Arc<SliceKey>)>,
    /// Pod addresses; only in [`PodMode::Verified`], which alone needs 100,000 of them.
    pods: OrdSet<(IpAddr, ObjectKey)>,
}

impl Index {
    /// Follows the change from `old` to `new`; says whether anything changed that DNS can show.
    pub(super) fn apply(&mut self, old: &Snapshot, new: &Snapshot, pods: PodMode) -> bool {
        let namespaces = old.namespaces.diff(&new.namespaces).next().is_some();
        let services = self.apply_services(old, new);
        let slices = self.apply_slices(old, new);
        let pods = pods == PodMode::Verified && self.apply_pods(old, new);
        namespaces || services || slices || pods
    }

    pub(super) fn services_with(&self, address: IpAddr) -> impl Iterator<Item = &ObjectKey> {
        let first = (address, ObjectKey::new("", ""));
        self.services.range(first..).take_while(move |(key, _)| *key == address).map(|(_, service)| service)
    }

    pub(super) fn slices_with(&self, address: IpAddr) -> impl Iterator<Item = &SliceKey> {
        let first = (address, Arc::new(SliceKey { service: ObjectKey::new("", ""), slice: Arc::from("") }));
        self.slices.range(first..).take_while(move |(key, _)| *key == address).map(|(_, slice)| &**slice)
    }

    pub(super) fn pods_with(&self, address: IpAddr) -> impl Iterator<Item = &ObjectKey> {
        let first = (address, ObjectKey::new("", ""));
        self.pods.range(first..).take_while(move |(key, _)| *key == address).map(|(_, pod)| pod)
    }

    fn apply_services(&mut self, old: &Snapshot, new: &Snapshot) -> bool {
        let mut changed = false;
        for (before, after) in old.services.diff(&new.services).map(sides) {
            changed |= before.map(|service| shown_service(service)) != after.map(|service| shown_service(service));
            for entry in before.into_iter().flat_map(|service| service_entries(service)) {
                self.services.remove(&entry);
            }
            self.services.extend(after.into_iter().flat_map(|service| service_entries(service)));
        }
        changed
    }

    fn apply_slices(&mut self, old: &Snapshot, new: &Snapshot) -> bool {
        let mut changed = false;
        for (before, after) in old.slices.diff(&new.slices).map(sides) {
            changed |= !shown_slice(before.map(|slice| &**slice)).eq(shown_slice(after.map(|slice| &**slice)));
            for entry in before.into_iter().flat_map(|slice| slice_entries(slice)) {
                self.slices.remove(&entry);
            }
            self.slices.extend(after.into_iter().flat_map(|slice| slice_entries(slice)));
        }
        changed
    }

    fn apply_pods(&mut self, old: &Snapshot, new: &Snapshot) -> bool {
        let mut changed = false;
        for (before, after) in old.pods.diff(&new.pods).map(sides) {
            changed = true;
            for entry in before.into_iter().flat_map(|pod| pod_entries(pod)) {
                self.pods.remove(&entry);
            }
            self.pods.extend(after.into_iter().flat_map(|pod| pod_entries(pod)));
        }
        changed
    }
}

/// The value before and after, where there is one.
fn sides<'a, K, V>(change: DiffItem<'a, 'a, K, V>) -> (Option<&'a V>, Option<&'a V>) {
    match change {
        DiffItem::Add(_, new) => (None, Some(new)),
        DiffItem::Update { old: (_, old), new: (_, new) } => (Some(old), Some(new)),
        DiffItem::Remove(_, old) => (Some(old), None),
    }
}

/// What DNS shows of a Service, so that nothing else moves the serial (DNS-3.6).
fn shown_service(service: &Service) -> impl PartialEq {
    let target = match &service.kind {
        ServiceKind::ExternalName(target) => Some(target),
        ServiceKind::ClusterIp | ServiceKind::NodePort | ServiceKind::LoadBalancer => None,
    };
    let ports: Vec<_> = service.ports.iter().map(|port| (&port.name, port.protocol, port.port)).collect();
    (target, &service.cluster_ips, ports)
}

/// What DNS shows of a slice: an endpoint with each of the ports, as long as it is ready.
fn shown_slice(slice: Option<&EndpointSlice>) -> impl Iterator<Item = impl PartialEq> {
    slice.into_iter().flat_map(|slice| {
        let ready = slice.endpoints.iter().filter(|endpoint| endpoint.ready);
        ready.map(|endpoint| (&slice.ports, &endpoint.addresses, &endpoint.hostname, &endpoint.target))
    })
}

fn service_entries(service: &Service) -> impl Iterator<Item = (IpAddr, ObjectKey)> {
    service.cluster_ips.addresses().iter().map(|address| (*address, service.key.clone()))
}

fn slice_entries(slice: &EndpointSlice) -> impl Iterator<Item = (IpAddr, Arc<SliceKey>)> {
    let key = Arc::new(slice.key.clone());
    let addresses = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
    addresses.map(move |address| (*address, Arc::clone(&key)))
}

fn pod_entries(pod: &Pod) -> impl Iterator<Item = (IpAddr, ObjectKey)> {
    pod.addresses.iter().map(|address| (*address, pod.key.clone()))
}
