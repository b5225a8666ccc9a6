//! A tree of chains that finds a packet's rule in a few steps: each chain looks at the next four bits that differ.
//!
//! Keys are prefixes of what is looked up, in steps of four bits; the longest that fits wins. Steps at which all keys
//! agree have no chain of their own, so a new key changes the chains on its own way and no other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use ipnet::IpNet;
use shunt_model::{Family, Protocol};

use super::names;
use super::rule::{Match, Name, OURS, Rule, Target};

/// Steps of four bits.
pub(super) type Key = Arc<[u8]>;

/// What a tree looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looks {
    /// At the destination address, then at the protocol, then at the destination port.
    Destination(Family),
    /// At the protocol, then at the destination port.
    Port,
    /// At the source address.
    Source(Family),
}

/// What happens at a key: one rule, whose conditions come on top of those of the key.
pub(super) type Leaf = Rule;

/// A tree of chains.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    looks: Looks,
    /// The first chain.
    root: Name,
    /// How the names of the other chains begin.
    prefix: &'static str,
    leaves: BTreeMap<Key, Leaf>,
}

impl Tree {
    pub(super) fn new(looks: Looks, root: &str, prefix: &'static str) -> Self {
        Self { looks, root: root.into(), prefix, leaves: BTreeMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.leaves.is_empty()
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Leaf> {
        self.leaves.get(key)
    }

    /// Sets or removes a leaf.
    pub(super) fn set(&mut self, key: Key, leaf: Option<Leaf>) {
        match leaf {
            Some(leaf) => self.leaves.insert(key, leaf),
            None => self.leaves.remove(&key),
        };
    }

    /// The chains that a change of this key may change, as the prefixes at which they stand.
    pub(super) fn on_the_way(key: &[u8]) -> impl Iterator<Item = Key> {
        (0..=key.len()).filter_map(|steps| key.get(..steps)).map(Arc::from)
    }

    /// All prefixes at which there are chains; the root is always one.
    pub(super) fn places(&self) -> BTreeSet<Key> {
        let mut places = BTreeSet::from([Key::default()]);
        let mut before: Option<&Key> = None;
        for key in self.leaves.keys() {
            if let Some(before) = before {
                places.insert(common(before, key).into());
            }
            before = Some(key);
        }
        places
    }

    /// The chain that stands at a prefix.
    pub(super) fn name(&self, place: &[u8]) -> Name {
        let digits: String = place.iter().filter_map(|step| char::from_digit((*step).into(), 16)).collect();
        match place.len() {
            0 => Arc::clone(&self.root),
            1..=16 => format!("{OURS}{}-{digits}", self.prefix).into(),
            _ => format!("{OURS}{}-{}", self.prefix, names::hash(digits.as_bytes())).into(),
        }
    }

    /// The rules of the chain at a prefix, if there is one.
    pub(super) fn rules(&self, place: &Key) -> Option<Vec<Rule>> {
        let own = self.leaves.get(place);
        let children = self.children(place);
        if !place.is_empty() && (children.len() < 2 && (own.is_none() || children.is_empty())) {
            return None;
        }
        let mut rules: Vec<Rule> = Vec::with_capacity(children.len().saturating_add(1));
        for child in children {
            match self.leaves.get(&child) {
                Some(leaf) if !self.is_place(&child) => rules.push(self.narrow(place, &child, leaf.clone())),
                Some(_) | None => rules.push(self.narrow(place, &child, Rule::all(Target::Goto(self.name(&child))))),
            }
        }
        // What the way here did not find is what the nearest shorter key says.
        let shorter = (0..=place.len()).rev().filter_map(|steps| place.get(..steps));
        rules.extend(shorter.filter_map(|key| self.leaves.get(key)).next().cloned());
        Some(rules)
    }

    /// A key with longer keys below it is also a chain.
    fn is_place(&self, key: &Key) -> bool {
        self.next_below(key, key).is_some()
    }

    /// The first key below `place` that comes after `after`.
    fn next_below(&self, place: &[u8], after: &Key) -> Option<&Key> {
        let next = self.leaves.range((Bound::Excluded(Arc::clone(after)), Bound::Unbounded)).next();
        next.map(|(key, _)| key).filter(|key| key.starts_with(place))
    }

    /// The prefixes to which the chain at a prefix leads: for each next step what all keys there have in common.
    fn children(&self, place: &Key) -> Vec<Key> {
        let mut children = Vec::new();
        let mut first = self.next_below(place, place);
        while let Some(key) = first {
            let step = place.len().saturating_add(1);
            let branch = key.get(..step).unwrap_or(key);
            let mut end = branch.to_vec();
            let last = match end.last_mut().map(|last| *last = last.saturating_add(1)) {
                Some(()) => self.leaves.range(..Key::from(end)).next_back().map_or(key, |(last, _)| last),
                None => key,
            };
            children.push(common(key, last).into());
            first = self.next_below(place, last);
        }
        children
    }

    /// `rule` for what is at `child`, in a chain to which only what is at `place` comes.
    fn narrow(&self, place: &[u8], child: &[u8], rule: Rule) -> Rule {
        let (address, ports) = match self.looks {
            Looks::Destination(family) | Looks::Source(family) => (steps(family), steps(family).saturating_add(1)),
            Looks::Port => (0, 1),
        };
        let mut rule = rule;
        if place.len() < address {
            let network = network(self.looks, child.get(..address.min(child.len())).unwrap_or(child));
            rule = match self.looks {
                Looks::Source(_) => Rule { source: network, ..rule },
                Looks::Destination(_) | Looks::Port => Rule { destination: network, ..rule },
            };
        }
        let Some(protocol) = child.get(address).and_then(|step| protocol(*step)) else { return rule };
        rule.protocol = Some(protocol);
        if let Some(digits) = child.get(ports..).filter(|digits| !digits.is_empty()) {
            let first = digits.iter().fold(0_u16, |port, digit| port << 4 | u16::from(*digit));
            let open = 4_usize.saturating_sub(digits.len()).saturating_mul(4);
            let wide = u16::try_from((1_u32 << open).saturating_sub(1)).unwrap_or(u16::MAX);
            let low = u32::from(first) << open;
            let low = u16::try_from(low).unwrap_or(u16::MAX);
            rule.matches.insert(0, Match::Ports(low, low | wide));
        }
        rule
    }
}

/// What two keys have in common.
fn common<'a>(one: &'a [u8], other: &[u8]) -> &'a [u8] {
    let length = one.iter().zip(other).take_while(|(one, other)| one == other).count();
    one.get(..length).unwrap_or(one)
}

fn steps(family: Family) -> usize {
    match family {
        Family::V4 => 8,
        Family::V6 => 32,
    }
}

fn digits(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf])
}

fn address_digits(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => digits(&address.octets()).collect(),
        IpAddr::V6(address) => digits(&address.octets()).collect(),
    }
}

/// The key of an address.
pub(super) fn of_address(address: IpAddr) -> Key {
    address_digits(address).into()
}

/// The keys of a network: more than one if its length is not a multiple of four.
pub(super) fn of_network(network: IpNet) -> Vec<Key> {
    let whole = usize::from(network.prefix_len() / 4);
    let digits = address_digits(network.network());
    let start = digits.get(..whole).unwrap_or(&digits);
    let Some(rest) = digits.get(whole).filter(|_| !network.prefix_len().is_multiple_of(4)) else {
        return vec![start.into()];
    };
    let wide = 1_u8 << (4 - network.prefix_len() % 4);
    (0..wide).map(|more| [start, &[rest | more]].concat().into()).collect()
}

/// The key of a port at any address.
pub(super) fn of_port(protocol: Protocol, port: u16) -> Key {
    let number = match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => 1,
        Protocol::Sctp => 2,
    };
    std::iter::once(number).chain(digits(&port.to_be_bytes())).collect()
}

/// The key of a port at an address.
pub(super) fn of_frontend(address: IpAddr, protocol: Protocol, port: u16) -> Key {
    address_digits(address).into_iter().chain(of_port(protocol, port).iter().copied()).collect()
}

fn protocol(step: u8) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].get(usize::from(step)).copied()
}

/// The network of a prefix of address digits.
fn network(looks: Looks, prefix: &[u8]) -> Option<super::rule::Side> {
    let family = match looks {
        Looks::Destination(family) | Looks::Source(family) => family,
        Looks::Port => return None,
    };
    let bits = u8::try_from(prefix.len().saturating_mul(4)).ok()?;
    let number = prefix.iter().fold(0_u128, |number, digit| number << 4 | u128::from(*digit));
    let network = match family {
        Family::V4 => {
            let number =
                u32::try_from(number).ok()?.checked_shl(32_u32.saturating_sub(bits.into())).unwrap_or_default();
            IpNet::new(IpAddr::V4(number.into()), bits)
        }
        Family::V6 => {
            let number = number.checked_shl(128_u32.saturating_sub(bits.into())).unwrap_or_default();
            IpNet::new(IpAddr::V6(number.into()), bits)
        }
    };
    Some(super::rule::Side { network: network.ok()?, outside: false })
}
