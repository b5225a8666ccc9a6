//! What addresses mean besides their frontends: which accept node ports, and which are cluster IPs (TP-3, NE-11).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use proxy_abi::{Address6, AddressValue, NodePorts};

use crate::plan::{self, AddressMeaning};

/// What an address means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::datapath::ebpf) struct Meaning {
    pub(in crate::datapath::ebpf) node_ports: Option<NodePorts>,
    pub(in crate::datapath::ebpf) refuses: bool,
}

impl Meaning {
    /// What the plan says.
    fn planned(planned: AddressMeaning) -> Self {
        let AddressMeaning { node_ports, refuses_other_ports } = planned;
        let node_ports = node_ports.map(|from| match from {
            plan::NodePorts::FromAnywhere => NodePorts::FromAnywhere,
            plan::NodePorts::FromNodeOnly => NodePorts::FromNodeOnly,
        });
        Self { node_ports, refuses: refuses_other_ports }
    }

    /// What the map says.
    pub(in crate::datapath::ebpf) fn of(value: AddressValue) -> Self {
        Self { node_ports: value.node_ports(), refuses: value.refuses_other_ports() }
    }

    /// As the map has it under `key`.
    pub(in crate::datapath::ebpf) fn value(self, key: &Address6) -> AddressValue {
        AddressValue::new(key, self.node_ports, self.refuses)
    }
}

/// The record of what the map holds, and what the last plan says.
#[derive(Clone, Debug, Default)]
pub(in crate::datapath::ebpf) struct Addresses {
    held: BTreeMap<IpAddr, Meaning>,
    planned: OrdMap<IpAddr, AddressMeaning>,
    /// Addresses whose meaning may differ from what the map holds.
    touched: BTreeSet<IpAddr>,
}

impl Addresses {
    /// The record of a map that was read back: each meaning counts as unconfirmed until a plan has it.
    pub(in crate::datapath::ebpf) fn restored(found: Vec<(IpAddr, Meaning)>) -> Self {
        let touched = found.iter().map(|(address, _)| *address).collect();
        Self { held: found.into_iter().collect(), touched, ..Self::default() }
    }

    /// The addresses of a plan, at the cost of what changed since the last one.
    pub(in crate::datapath::ebpf) fn follow(&mut self, planned: &OrdMap<IpAddr, AddressMeaning>) {
        for item in self.planned.diff(planned) {
            match item {
                DiffItem::Add(address, _)
                | DiffItem::Remove(address, _)
                | DiffItem::Update { new: (address, _), .. } => {
                    self.touched.insert(*address);
                }
            }
        }
        self.planned.clone_from(planned);
    }

    /// The changes to the map: new meanings, and addresses that mean nothing any more.
    pub(in crate::datapath::ebpf) fn take_changes(&mut self) -> (Vec<(IpAddr, Meaning)>, Vec<IpAddr>) {
        let (mut set, mut gone) = (Vec::new(), Vec::new());
        for address in std::mem::take(&mut self.touched) {
            let meaning =
                self.planned.get(&address).map_or_else(Meaning::default, |planned| Meaning::planned(*planned));
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
        let planned = |node_ports| AddressMeaning { node_ports: Some(node_ports), refuses_other_ports: false };
        let planned = [
            (ip("172.18.0.11"), planned(plan::NodePorts::FromAnywhere)),
            (ip("127.0.0.1"), planned(plan::NodePorts::FromNodeOnly)),
            (ip("192.0.2.1"), AddressMeaning::default()),
        ];
        addresses.follow(&planned.into_iter().collect());
        let (set, gone) = addresses.take_changes();
        assert_eq!(set, [(ip("127.0.0.1"), node(NodePorts::FromNodeOnly))], "what is there already is not written");
        assert_eq!(gone, [ip("10.96.0.1")], "the plan does not have it");
        assert_eq!(addresses.take_changes(), (vec![], vec![]));
    }
}
