//! What addresses mean besides their frontends: which accept node ports, and which are cluster IPs (TP-3, NE-11).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use proxy_abi::{Address6, AddressValue, NodePorts};
use shunt_model::Family;

use crate::plan::{self, AddressMeaning};

/// What an address means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::datapath::ebpf) struct Meaning {
    pub(in crate::datapath::ebpf) node_ports: Option<NodePorts>,
    pub(in crate::datapath::ebpf) refuses: bool,
    /// No plan has it any more, but flows may.
    pub(in crate::datapath::ebpf) former: bool,
}

impl Meaning {
    /// What the plan says.
    fn planned(planned: AddressMeaning) -> Self {
        let AddressMeaning { node_ports, refuses_other_ports } = planned;
        let node_ports = node_ports.map(|from| match from {
            plan::NodePorts::FromAnywhere => NodePorts::FromAnywhere,
            plan::NodePorts::FromNodeOnly => NodePorts::FromNodeOnly,
        });
        Self { node_ports, refuses: refuses_other_ports, former: false }
    }

    /// What the map says.
    pub(in crate::datapath::ebpf) fn of(value: AddressValue) -> Self {
        Self { node_ports: value.node_ports(), refuses: value.refuses_other_ports(), former: value.is_former() }
    }

    /// As the map has it under `key`.
    pub(in crate::datapath::ebpf) fn value(self, key: &Address6) -> AddressValue {
        if self.former { AddressValue::former(key) } else { AddressValue::new(key, self.node_ports, self.refuses) }
    }
}

/// The record of what the map holds, and what the last plan says.
#[derive(Clone, Debug, Default)]
pub(in crate::datapath::ebpf) struct Addresses {
    held: BTreeMap<IpAddr, Meaning>,
    planned: OrdMap<IpAddr, AddressMeaning>,
    wildcards: Wildcards,
    /// Addresses whose meaning may differ from what the map holds.
    touched: BTreeSet<IpAddr>,
    /// An address that leaves the plan stays as a former one.
    keeps_former: bool,
}

/// How many addresses of each family accept node ports. The map has the unspecified address of a family beside them if
/// there are any: a process that binds it binds those (see [`AddressValue`]).
#[derive(Clone, Copy, Debug, Default)]
struct Wildcards {
    four: usize,
    six: usize,
}

impl Wildcards {
    fn follow(&mut self, family: Family, [before, after]: [Option<&AddressMeaning>; 2]) {
        let [before, after] =
            [before, after].map(|meaning| meaning.is_some_and(|meaning| meaning.node_ports.is_some()));
        let count = match family {
            Family::V4 => &mut self.four,
            Family::V6 => &mut self.six,
        };
        *count = count.saturating_add(usize::from(after)).saturating_sub(usize::from(before));
    }

    fn meaning(self, family: Family) -> Option<Meaning> {
        let count = match family {
            Family::V4 => self.four,
            Family::V6 => self.six,
        };
        (count > 0).then_some(Meaning { node_ports: Some(NodePorts::FromAnywhere), ..Meaning::default() })
    }
}

fn wildcard(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

impl Addresses {
    /// The record of a map that was read back: each meaning counts as unconfirmed until a plan has it. `keeps_former`:
    /// packets are served, and flows to an address that leaves the plan go on until [`Addresses::forget_former`].
    pub(in crate::datapath::ebpf) fn restored(found: Vec<(IpAddr, Meaning)>, keeps_former: bool) -> Self {
        let touched = found.iter().map(|(address, _)| *address).collect();
        Self { held: found.into_iter().collect(), touched, keeps_former, ..Self::default() }
    }

    /// The addresses of a plan, at the cost of what changed since the last one.
    pub(in crate::datapath::ebpf) fn follow(&mut self, planned: &OrdMap<IpAddr, AddressMeaning>) {
        for item in self.planned.diff(planned) {
            let (address, before, after) = match item {
                DiffItem::Add(address, new) => (address, None, Some(new)),
                DiffItem::Remove(address, old) => (address, Some(old), None),
                DiffItem::Update { old: (_, old), new: (address, new) } => (address, Some(old), Some(new)),
            };
            self.touched.insert(*address);
            self.wildcards.follow(Family::of(address), [before, after]);
        }
        self.touched.extend(Family::BOTH.map(wildcard));
        self.planned.clone_from(planned);
    }

    /// What the map should say of an address, if it has it: packets are looked at only if they are sent to one of
    /// these.
    fn meaning(&self, address: &IpAddr) -> Option<Meaning> {
        match self.planned.get(address) {
            Some(planned) => Some(Meaning::planned(*planned)),
            None if address.is_unspecified() => self.wildcards.meaning(Family::of(address)),
            None if self.keeps_former && self.held.contains_key(address) => {
                Some(Meaning { former: true, ..Meaning::default() })
            }
            None => None,
        }
    }

    /// The changes to the map: new meanings, and addresses that mean nothing any more.
    pub(in crate::datapath::ebpf) fn take_changes(&mut self) -> (Vec<(IpAddr, Meaning)>, Vec<IpAddr>) {
        let (mut set, mut gone) = (Vec::new(), Vec::new());
        for address in std::mem::take(&mut self.touched) {
            match self.meaning(&address) {
                None => gone.extend(self.held.remove(&address).map(|_| address)),
                Some(meaning) if self.held.insert(address, meaning) != Some(meaning) => set.push((address, meaning)),
                Some(_) => {}
            }
        }
        (set, gone)
    }

    /// The former addresses.
    pub(in crate::datapath::ebpf) fn former(&self) -> impl Iterator<Item = IpAddr> {
        self.held.iter().filter(|(_, meaning)| meaning.former).map(|(address, _)| *address)
    }

    /// Drops the former addresses to which no flow leads any more, which the map is to lose now. Returns them.
    pub(in crate::datapath::ebpf) fn forget_former(&mut self, is_in_use: impl Fn(IpAddr) -> bool) -> Vec<IpAddr> {
        let forgotten: Vec<IpAddr> = self.former().filter(|address| !is_in_use(*address)).collect();
        self.held.retain(|address, _| !forgotten.contains(address));
        forgotten
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
        let node = |node_ports| Meaning { node_ports: Some(node_ports), ..Meaning::default() };
        let found = vec![
            (ip("10.96.0.1"), Meaning { refuses: true, ..Meaning::default() }),
            (ip("172.18.0.11"), node(NodePorts::FromAnywhere)),
        ];
        let mut addresses = Addresses::restored(found, false);
        let planned = |node_ports| AddressMeaning { node_ports: Some(node_ports), refuses_other_ports: false };
        let planned = [
            (ip("172.18.0.11"), planned(plan::NodePorts::FromAnywhere)),
            (ip("127.0.0.1"), planned(plan::NodePorts::FromNodeOnly)),
            (ip("192.0.2.1"), AddressMeaning::default()),
        ];
        addresses.follow(&planned.into_iter().collect());
        let (set, gone) = addresses.take_changes();
        let wanted = [
            (ip("0.0.0.0"), node(NodePorts::FromAnywhere)),
            (ip("127.0.0.1"), node(NodePorts::FromNodeOnly)),
            (ip("192.0.2.1"), Meaning::default()),
        ];
        assert_eq!(set, wanted, "what is there already is not written");
        assert_eq!(gone, [ip("10.96.0.1")], "the plan does not have it");
        assert_eq!(addresses.take_changes(), (vec![], vec![]));
    }

    #[test]
    fn an_address_that_leaves_the_plan_stays_as_a_former_one_while_flows_lead_to_it() {
        let refuses = Meaning { refuses: true, ..Meaning::default() };
        let mut addresses = Addresses::restored(vec![(ip("10.96.0.1"), refuses), (ip("10.96.0.2"), refuses)], true);
        let former = Meaning { former: true, ..Meaning::default() };
        let left = vec![(ip("10.96.0.1"), former), (ip("10.96.0.2"), former)];
        assert_eq!(addresses.take_changes(), (left, vec![]));
        assert_eq!(addresses.take_changes(), (vec![], vec![]));
        // One of them comes back.
        let planned = AddressMeaning { node_ports: None, refuses_other_ports: true };
        addresses.follow(&[(ip("10.96.0.2"), planned)].into_iter().collect());
        assert_eq!(addresses.take_changes(), (vec![(ip("10.96.0.2"), refuses)], vec![]));
        assert_eq!(addresses.forget_former(|_| true), Vec::<IpAddr>::new());
        assert_eq!(addresses.forget_former(|_| false), [ip("10.96.0.1")]);
        assert_eq!(addresses.former().count(), 0);
    }

    #[test]
    fn the_unspecified_address_stands_for_those_of_its_family_that_accept_node_ports() {
        let mut addresses = Addresses::default();
        let mut check = |accepting: &[&str], others: &[&str], wanted: &[&str]| {
            let meaning = |node_ports| AddressMeaning { node_ports, refuses_other_ports: true };
            let accepting = accepting.iter().map(|text| (ip(text), meaning(Some(plan::NodePorts::FromNodeOnly))));
            let others = others.iter().map(|text| (ip(text), meaning(None)));
            addresses.follow(&accepting.chain(others).collect());
            addresses.take_changes();
            let held = addresses.held().keys().filter(|address| address.is_unspecified()).copied();
            assert_eq!(held.collect::<Vec<_>>(), wanted.iter().map(|text| ip(text)).collect::<Vec<_>>());
        };
        check(&[], &["10.96.0.1"], &[]);
        check(&["127.0.0.1", "172.18.0.11"], &["10.96.0.1"], &["0.0.0.0"]);
        check(&["172.18.0.11", "::1"], &["127.0.0.1"], &["0.0.0.0", "::"]);
        check(&["::1"], &["172.18.0.11"], &["::"]);
        check(&[], &[], &[]);
    }
}
