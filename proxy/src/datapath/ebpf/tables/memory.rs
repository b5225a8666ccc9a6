//! The tables as plain memory, read with the arithmetic of the programs: what a plan comes to without a kernel.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;

use ipnet::IpNet;
use proxy_abi::{Backend6, Directory, Extent, FrontendValue, Lead, RangesWord, Slot, Terms};
use shunt_model::{Family, Protocol};

use super::super::image;
use super::super::layout::write::{Life, backend_parts};
use super::super::layout::{Capacity, Dump, FrontendKey, Full, Layout, Write};
use super::addresses::{Addresses, Meaning};
use crate::plan::Plan;

/// The tables.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    pub(in crate::datapath::ebpf) frontends: HashMap<FrontendKey, FrontendValue>,
    pub(in crate::datapath::ebpf) directory: HashMap<u32, Directory>,
    pub(in crate::datapath::ebpf) slots: HashMap<u32, u64>,
    pub(in crate::datapath::ebpf) backends: HashMap<(Family, u32), [u64; 4]>,
    pub(in crate::datapath::ebpf) ranges: BTreeSet<(u32, IpNet)>,
    addresses: HashMap<IpAddr, Meaning>,
}

/// Who dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// A process in the node's own network namespace.
    Node,
    /// A pod of this node with this address.
    Pod(IpAddr),
}

/// What a socket gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// One of these endpoints.
    Endpoints {
        /// Each is as likely for a new client.
        addresses: BTreeSet<SocketAddr>,
        /// A client stays with the one it got.
        sticky: bool,
    },
    /// ECONNREFUSED: nobody serves, or the Service does not define the port.
    Refused,
    /// Nobody on this node, and policy Local.
    Elsewhere,
    /// The source is outside of the Service's ranges.
    Denied,
    /// Left alone.
    Foreign,
}

impl Memory {
    /// The tables that `plan` comes to.
    pub fn of(plan: &Plan) -> Result<Self, Full> {
        let (mut memory, mut addresses) = (Self::default(), Addresses::default());
        let mut layout = Layout::new(Capacity::default());
        for port in plan.ports.values() {
            if let Some(target) = image::target(port) {
                layout.upsert(&port.key, &target, 0)?.iter().for_each(|write| memory.apply(write));
            }
        }
        addresses.follow(&plan.addresses);
        memory.addresses = addresses.take_changes().0.into_iter().collect();
        Ok(memory)
    }

    /// What a socket of `client` gets that dials `to`.
    #[must_use]
    pub fn outcome(&self, client: Client, to: SocketAddr, protocol: Protocol) -> Outcome {
        let address = to.ip().to_canonical();
        let Some(port) = NonZeroU16::new(to.port()) else { return Outcome::Foreign };
        if let Some(lead) = self.lead(&FrontendKey::new(address, port, protocol)) {
            return self.choices(client, Family::of(&address), lead);
        }
        let known = match (address, client) {
            (address, Client::Pod(_)) if address.is_loopback() => return Outcome::Foreign,
            (IpAddr::V4(four), Client::Node) if four.is_loopback() => Ipv4Addr::LOCALHOST.into(),
            (IpAddr::V6(six), Client::Node) if six.is_loopback() => Ipv6Addr::LOCALHOST.into(),
            (address, Client::Node | Client::Pod(_)) => address,
        };
        let (node, cluster) = self.addresses.get(&known).copied().unwrap_or_default();
        let node_port = FrontendKey::node_port(Family::of(&address), port, protocol);
        match self.lead(&node_port).filter(|_| node) {
            Some(lead) => self.choices(client, Family::of(&address), lead),
            None if cluster => Outcome::Refused,
            None => Outcome::Foreign,
        }
    }

    pub(in crate::datapath::ebpf) fn lead(&self, key: &FrontendKey) -> Option<Lead> {
        self.frontends.get(key).map(|value| value.lead())
    }

    pub(in crate::datapath::ebpf) fn entry(&self, service: u32) -> Directory {
        self.directory.get(&service).copied().unwrap_or_default()
    }

    fn choices(&self, client: Client, family: Family, lead: Lead) -> Outcome {
        let [extent, _, terms, ranges] = self.entry(lead.service);
        let (extent, terms, ranges) = (Extent(extent), Terms(terms), RangesWord(ranges));
        if lead.filtered && !self.is_inside(client, ranges) {
            return Outcome::Denied;
        }
        let count = extent.count(lead.local);
        if count == 0 {
            return if lead.local && terms.silent() { Outcome::Elsewhere } else { Outcome::Refused };
        }
        // The program draws a random number; here every one of its outcomes is visited once.
        let random =
            (0..count).map(|nth| u32::try_from((u64::from(nth) << 32) / u64::from(count) + 1).unwrap_or(u32::MAX));
        let slots = random.filter_map(|random| self.slots.get(&extent.choice(count, random)));
        let addresses = slots.filter_map(|slot| self.alive(family, Slot(*slot))).map(|life| life.address).collect();
        Outcome::Endpoints { addresses, sticky: terms.timeout() != 0 }
    }

    fn is_inside(&self, client: Client, ranges: RangesWord) -> bool {
        match client {
            Client::Node => ranges.node(),
            Client::Pod(address) => {
                self.ranges.iter().any(|(id, prefix)| *id == ranges.id() && prefix.contains(&address))
            }
        }
    }

    /// The backend behind a slot, unless it is dead.
    pub(in crate::datapath::ebpf) fn alive(&self, family: Family, slot: Slot) -> Option<Life> {
        let words = self.backends.get(&(family, slot.backend().index()))?;
        let life = backend_parts(family, *words);
        (life.generation != 0 && life.generation == slot.backend().generation()).then_some(life)
    }

    /// Carries out a write.
    pub fn apply(&mut self, write: &Write) {
        let mut entry = |service: u32, at: usize, value: u64| {
            if let Some(word) = self.directory.entry(service).or_default().get_mut(at) {
                *word = value;
            }
        };
        match *write {
            Write::Extent { service, extent } => entry(service, 0, extent.0),
            Write::Shape { service, shape } => entry(service, 1, shape.0),
            Write::Terms { service, terms } => entry(service, 2, terms.0),
            Write::Ranges { service, ranges } => entry(service, 3, ranges.0),
            Write::Range { id, prefix } => drop(self.ranges.insert((id, prefix))),
            Write::RangeGone { id, prefix } => drop(self.ranges.remove(&(id, prefix))),
            Write::Backend { family, index, words } => drop(self.backends.insert((family, index), words)),
            Write::Standing { family, index, standing } => self.set_backend(family, index, (1, 3), standing.0),
            Write::BackendGone { family, index } => self.set_backend(family, index, (0, Backend6::LIFE), 0),
            Write::Slot { index, slot } => drop(self.slots.insert(index, slot.0)),
            Write::Frontend { key, lead } => drop(self.frontends.insert(key, key.value(lead))),
            Write::FrontendGone { key } => drop(self.frontends.remove(&key)),
        }
    }

    /// `at`: which word, in an IPv4 and in an IPv6 backend.
    fn set_backend(&mut self, family: Family, index: u32, (four, six): (usize, usize), value: u64) {
        let at = if family == Family::V4 { four } else { six };
        if let Some(word) = self.backends.get_mut(&(family, index)).and_then(|words| words.get_mut(at)) {
            *word = value;
        }
    }

    /// What a daemon would read back.
    #[must_use]
    pub fn dump(&self) -> Dump {
        let of = |wanted| {
            let of_family = self.backends.iter().filter(move |((family, _), _)| *family == wanted);
            of_family.map(|((_, at), words)| (*at, *words)).collect()
        };
        Dump {
            frontends: self.frontends.iter().map(|(key, value)| (*key, *value)).collect(),
            directory: self.directory.iter().map(|(service, entry)| (*service, *entry)).collect(),
            slots: self.slots.clone(),
            backends4: of(Family::V4),
            backends6: of(Family::V6),
            ranges: self.ranges.iter().copied().collect(),
        }
    }
}
