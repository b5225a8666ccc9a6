//! What addresses mean besides their frontends: which accept node ports, and which are cluster IPs (spec TP-3, NE-11).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use proxy_abi::{Address6, AddressValue, NodePorts};

use crate::plan::{FrontendKind, PortPlan};

/// What an address means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::datapath::ebpf) struct Meaning {
    pub(in crate::datapath::ebpf) node_ports: Option<NodePorts>,
    pub(in crate::datapath::ebpf) refuses: bool,
}

impl Meaning {
    /// What the map says.
    pub(in crate::datapath::ebpf) fn of(value: AddressValue) -> Self {
        Self { node_ports: value.node_ports(), refuses: value.refuses_other_ports() }
    }

    /// As the map has it under `key`.
    pub(in crate::datapath::ebpf) fn value(self, key: &Address6) -> AddressValue {
        AddressValue::new(key, self.node_ports, self.refuses)
    }
}

/// What the map is believed to hold, and how many service ports make an address a cluster IP.
#[derive(Clone, Debug, Default)]
pub(in crate::datapath::ebpf) struct Addresses {
    held: BTreeMap<IpAddr, Meaning>,
    clusters: HashMap<IpAddr, u32>,
    nodes: BTreeSet<IpAddr>,
    /// Addresses whose meaning may differ from what the map holds.
    touched: BTreeSet<IpAddr>,
}

impl Addresses {
    /// As read back: no meaning is believed in until somebody claims it.
    pub(in crate::datapath::ebpf) fn restored(found: Vec<(IpAddr, Meaning)>) -> Self {
        let touched = found.iter().map(|(address, _)| *address).collect();
        Self { held: found.into_iter().collect(), touched, ..Self::default() }
    }

    /// A service port came, changed or went.
    pub(in crate::datapath::ebpf) fn follow(&mut self, old: Option<&PortPlan>, new: Option<&PortPlan>) {
        let clusters = |port: Option<&PortPlan>| -> Vec<IpAddr> {
            let frontends = port.into_iter().flat_map(|port| &port.frontends);
            let clusters = frontends.filter(|frontend| frontend.kind == FrontendKind::ClusterIp);
            clusters.filter_map(|frontend| frontend.address).collect()
        };
        let (before, after) = (clusters(old), clusters(new));
        if before == after {
            return;
        }
        for address in after {
            let count = self.clusters.entry(address).or_default();
            *count = count.saturating_add(1);
            self.touched.insert(address);
        }
        for address in before {
            if let Some(count) = self.clusters.get_mut(&address) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.clusters.remove(&address);
                }
            }
            self.touched.insert(address);
        }
    }

    /// The addresses that accept node ports are these.
    pub(in crate::datapath::ebpf) fn set_nodes(&mut self, nodes: &BTreeSet<IpAddr>) {
        self.touched.extend(self.nodes.symmetric_difference(nodes));
        self.nodes.clone_from(nodes);
    }

    /// The changes to the map: new meanings, and addresses that mean nothing any more.
    pub(in crate::datapath::ebpf) fn take_changes(&mut self) -> (Vec<(IpAddr, Meaning)>, Vec<IpAddr>) {
        let (mut set, mut gone) = (Vec::new(), Vec::new());
        for address in std::mem::take(&mut self.touched) {
            let node_ports = self.nodes.contains(&address).then_some(match address.is_loopback() {
                true => NodePorts::FromNodeOnly,
                false => NodePorts::FromAnywhere,
            });
            let meaning = Meaning { node_ports, refuses: self.clusters.contains_key(&address) };
            if meaning == Meaning::default() {
                if self.held.remove(&address).is_some() {
                    gone.push(address);
                }
            } else if self.held.insert(address, meaning) != Some(meaning) {
                set.push((address, meaning));
            }
        }
        (set, gone)
    }

    /// What the map should hold.
    pub(in crate::datapath::ebpf) fn held(&self) -> &BTreeMap<IpAddr, Meaning> {
        &self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_means_what_is_claimed_and_nothing_when_read_back() {
        let node = |node_ports| Meaning { node_ports: Some(node_ports), refuses: false };
        let found = vec![
            (ip("10.96.0.1"), Meaning { node_ports: None, refuses: true }),
            (ip("172.18.0.11"), node(NodePorts::FromAnywhere)),
        ];
        let mut addresses = Addresses::restored(found);
        addresses.set_nodes(&BTreeSet::from([ip("172.18.0.11"), ip("127.0.0.1")]));
        let (set, gone) = addresses.take_changes();
        assert_eq!(set, [(ip("127.0.0.1"), node(NodePorts::FromNodeOnly))], "what is there already is not written");
        assert_eq!(gone, [ip("10.96.0.1")], "nobody claims it");
        assert_eq!(addresses.take_changes(), (vec![], vec![]));
    }
}
