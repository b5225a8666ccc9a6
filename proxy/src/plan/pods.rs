//! Which packets come from pods of this node: what packet paths ask, where sockets know the network namespace.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use ipnet::IpNet;
use shunt_model::{Family, Pod, Snapshot};

use super::PlanOptions;

/// Which packets come from pods of this node (LD-1): those from one of the networks or interfaces. What this host sends
/// itself comes from the node, whatever its source address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSources {
    /// Of source addresses; sorted, none inside another.
    pub networks: Vec<IpNet>,
    /// The interface by which packets of pods come in, if the operator knows pods by it.
    pub interface: Option<PodInterface>,
}

/// An interface of pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodInterface {
    /// The one of this name, a bridge.
    Named(Arc<str>),
    /// Every one whose name begins so.
    Prefixed(Arc<str>),
}

/// How the operator wants pods to be known (3.3 of the specification of services).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PodDetection {
    /// By the ranges in the Node object and by the addresses of the Pods on this node.
    #[default]
    Node,
    /// By these networks; a family without one is detected as by [`PodDetection::Node`].
    Networks(Vec<IpNet>),
    /// By the interface.
    Interface(PodInterface),
}

impl PodSources {
    /// What the options, this node's ranges and the addresses of its pods make of it.
    pub(super) fn new(options: &PlanOptions, ranges: &[IpNet], pods: impl Iterator<Item = IpAddr>) -> Self {
        let given = match &options.pods {
            PodDetection::Interface(interface) => {
                return Self { networks: Vec::new(), interface: Some(interface.clone()) };
            }
            PodDetection::Networks(given) => given.as_slice(),
            PodDetection::Node => &[],
        };
        let has = |family| given.iter().any(|network| Family::of(&network.addr()) == family);
        let own = ranges.iter().copied().chain(pods.map(IpNet::from));
        let own = own.filter(|network| !has(Family::of(&network.addr())));
        let mut networks = IpNet::aggregate(&own.chain(given.iter().copied()).collect());
        networks.sort_unstable();
        Self { networks, interface: None }
    }
}

/// The addresses of some pods with how many pods have each: for a moment two pods may have one address, the former pod
/// and the new one.
#[derive(Debug, Default)]
pub(super) struct PodAddresses {
    pods: BTreeMap<IpAddr, usize>,
}

impl PodAddresses {
    /// Follows what changed between two snapshots for the pods that `counts` admits. True if it is another set.
    pub(super) fn follow(&mut self, old: &Snapshot, new: &Snapshot, counts: impl Fn(&Pod) -> bool) -> bool {
        let addresses = |pod: Option<&Arc<Pod>>| {
            let counted = pod.filter(|pod| counts(pod));
            counted.map(|pod| pod.addresses.clone()).unwrap_or_default()
        };
        let mut changed = false;
        for item in old.pods.diff(&new.pods) {
            let (gone, come) = match item {
                DiffItem::Add(_, pod) => (None, Some(pod)),
                DiffItem::Remove(_, pod) => (Some(pod), None),
                DiffItem::Update { old: (_, old), new: (_, new) } => (Some(old), Some(new)),
            };
            for address in addresses(come) {
                changed |= self.add(address);
            }
            for address in addresses(gone) {
                changed |= self.remove(address);
            }
        }
        changed
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = IpAddr> {
        self.pods.keys().copied()
    }

    /// True if it is a new address.
    fn add(&mut self, address: IpAddr) -> bool {
        let pods = self.pods.entry(address).or_default();
        *pods += 1;
        *pods == 1
    }

    /// True if no pod has the address any more.
    fn remove(&mut self, address: IpAddr) -> bool {
        let Some(pods) = self.pods.get_mut(&address) else { return false };
        *pods = pods.saturating_sub(1);
        let last = *pods == 0;
        if last {
            self.pods.remove(&address);
        }
        last
    }
}

/// Whether a pod is on this node and has a network namespace of its own.
pub(super) fn is_local(pod: &Pod, options: &PlanOptions) -> bool {
    !options.node.is_empty() && pod.node.as_deref() == Some(&*options.node) && !pod.host_network
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::{NODE, cluster, options, pod, set_node};
    use crate::plan::plan;

    /// The networks of pods on a node with these ranges, which has pods at some addresses. Another node has one more.
    #[track_caller]
    fn check(detection: PodDetection, ranges: &[&str], pods: &str, wanted: &str) {
        let mut snapshot = cluster([], []);
        set_node(&mut snapshot, None, &["192.168.7.5"]);
        let node = snapshot.nodes.get_mut(&Arc::from(NODE)).unwrap();
        Arc::make_mut(node).pod_cidrs = ranges.iter().map(|range| range.parse().unwrap()).collect();
        for pod in [pod("a", pods, NODE, ""), pod("b", "10.9.9.9", "elsewhere", "")] {
            snapshot.pods.insert(pod.key.clone(), Arc::new(pod));
        }
        let (plan, _) = plan(&snapshot, &PlanOptions { pods: detection, ..options() });
        let shown: Vec<String> = plan.pods.networks.iter().map(ToString::to_string).collect();
        assert_eq!(shown.join(" "), wanted);
    }

    fn networks(networks: &[&str]) -> PodDetection {
        PodDetection::Networks(networks.iter().map(|network| network.parse().unwrap()).collect())
    }

    #[test]
    fn pods_are_known_by_the_ranges_of_their_node_and_by_their_addresses() {
        check(PodDetection::Node, &["10.1.0.0/24", "fd00:1::/64"], "10.1.0.7 fd00:1::7", "10.1.0.0/24 fd00:1::/64");
        // A network plug-in may take other ranges than those of the Node object.
        check(PodDetection::Node, &["10.1.0.0/24"], "10.2.0.7 fd00:1::7", "10.1.0.0/24 10.2.0.7/32 fd00:1::7/128");
        check(PodDetection::Node, &[], "", "");
    }

    #[test]
    fn networks_of_the_operator_stand_for_their_family() {
        let cluster = networks(&["10.0.0.0/8"]);
        check(cluster, &["10.1.0.0/24", "fd00:1::/64"], "10.1.0.7", "10.0.0.0/8 fd00:1::/64"); // TP-19
        check(networks(&["10.0.0.0/8", "fd00::/16"]), &["10.1.0.0/24"], "172.16.0.1", "10.0.0.0/8 fd00::/16");
    }

    #[test]
    fn an_interface_stands_for_all_networks() {
        let bridge = PodDetection::Interface(PodInterface::Named("cni0".into()));
        check(bridge, &["10.1.0.0/24"], "10.1.0.7", "");
    }
}
