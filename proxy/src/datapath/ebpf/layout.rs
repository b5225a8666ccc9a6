//! Which service, slot and backend elements hold what, and the writes that lead from one state to the next.
//!
//! A plain value without access to the kernel: [`Layout::upsert`] and [`Layout::remove`] return [`Write`]s in an order
//! in which every prefix is safe. After each of them every frontend leads to a service all of whose visible slots point
//! at living backends of its old or new endpoints, and a frontend that has endpoints before and after is never without
//! in between (TB-2; proved by the property test in `layout/tests.rs`).
//!
//! A service port has one entry in the directory. Its slots begin with the endpoints on this node, so frontends under
//! policy Local use the first of them and all others the whole. Where the list of policy Local is not a part of that of
//! policy Cluster (topology hints, fallback to terminating endpoints), a second entry holds it.

mod backends;
mod change;
mod frontends;
pub(crate) mod pool;
mod ranges;
pub(in crate::datapath::ebpf) mod rebuild;
mod record;
#[cfg(test)]
mod tests;
pub(crate) mod write;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;

use ipnet::IpNet;
use proxy_abi::{BackendRef, Extent, Lead, RangesWord, Shape, SourceNat, Terms, capacity};
use shunt_model::Family;

use self::backends::Backends;
use self::frontends::Frontends;
use self::pool::{Moment, Pool, Regions};
use self::ranges::Ranges;
pub(crate) use self::rebuild::Dump;
use self::record::Record;
pub(crate) use self::write::{FrontendKey, Write};
use crate::plan::{Endpoint, List, PortKey};

/// How many elements each table has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capacity {
    /// Frontends of one family.
    pub frontends: u32,
    /// Services.
    pub services: u32,
    /// Slots.
    pub slots: u32,
    /// Backends of one family.
    pub backends: u32,
    /// Prefixes of source ranges.
    pub ranges: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            frontends: capacity::FRONTENDS,
            services: capacity::SERVICES,
            slots: capacity::SLOTS,
            backends: capacity::BACKENDS,
            ranges: capacity::RANGES,
        }
    }
}

/// A table has no room; the change was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {table} table is full ({capacity} elements)")]
pub(crate) struct Full {
    /// Which table.
    pub table: &'static str,
    /// How many elements it has.
    pub capacity: u32,
}

/// What the tables must hold for a service port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Target<'a> {
    /// The frontends.
    pub frontends: Vec<(FrontendKey, Access)>,
    /// The endpoints of policy Cluster; each address once.
    pub cluster: &'a [Endpoint],
    /// The endpoints of policy Local; holds all local ones of `cluster`.
    pub local: &'a [Endpoint],
    /// Endpoints that get no new flow and keep the running ones.
    pub draining: Vec<SocketAddr>,
    /// Timeout of session affinity in seconds, 0 without.
    pub affinity: u32,
    /// What a socket's flow under policy Local gets without an endpoint on this node: it keeps its address if true, and
    /// is refused if false.
    pub keeps_destination: bool,
    /// There, packets are dropped if true, and refused if false.
    pub silent: bool,
    /// The sources that may dial the filtered frontends.
    pub ranges: Option<Sources<'a>>,
}

/// How a frontend is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// The list it uses.
    pub list: List,
    /// Only sources in the ranges may dial it.
    pub filtered: bool,
    /// While the node's own DNS is closed, the endpoints that are not local serve.
    pub falls_back: bool,
    /// Whose packets get an address of this node as their source.
    pub source_nat: SourceNat,
}

/// The sources that filtered frontends take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sources<'a> {
    /// Prefixes of pods and others.
    pub prefixes: &'a [IpNet],
    /// The node itself.
    pub node: bool,
}

/// How much of the tables is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Entries of the directory.
    pub services: usize,
    /// Frontends of both families.
    pub frontends: usize,
    /// Endpoints that slots show.
    pub backends: usize,
}

/// Which lists of a service port have an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Served {
    cluster: bool,
    local: bool,
}

impl Served {
    /// A list has an endpoint now and had none.
    #[must_use]
    pub(crate) fn more_than(self, before: Self) -> bool {
        self.cluster && !before.cluster || self.local && !before.local
    }
}

/// The allocation of all tables.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    capacity: Capacity,
    records: HashMap<u32, Record>,
    /// The entry that stands for each service port.
    ports: HashMap<PortKey, u32>,
    frontends: Frontends,
    services: Pool,
    regions: Regions,
    backends: Backends,
    ranges: Ranges,
}

impl Layout {
    /// Empty tables.
    #[must_use]
    pub(crate) fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            records: HashMap::new(),
            ports: HashMap::new(),
            frontends: Frontends::default(),
            services: Pool::new(capacity.services, &BTreeSet::new()),
            regions: Regions::new(capacity.slots),
            backends: Backends::new(capacity.backends),
            ranges: Ranges::new(capacity.ranges),
        }
    }

    /// How much of the tables is in use.
    #[must_use]
    pub(crate) fn usage(&self) -> Usage {
        Usage {
            services: self.records.len(),
            frontends: self.frontends.count(Family::V4).saturating_add(self.frontends.count(Family::V6)),
            backends: self.records.values().map(|record| record.placed.len()).sum(),
        }
    }

    /// The writes that make `owner` look like `target`. Nothing is changed if a table is full.
    pub(crate) fn upsert(&mut self, owner: &PortKey, target: &Target<'_>, now: Moment) -> Result<Vec<Write>, Full> {
        self.check_frontends(target)?;
        let found = self.ports.get(owner).copied().or_else(|| self.adopt(owner, target));
        if let Some(main) = found {
            return self.change(main, target, now);
        }
        let main = self.services.take(now).ok_or_else(|| self.full_of_services())?;
        let mut record = Record::new(owner.family, Some(owner.clone()));
        record.terms = change::terms(main, target);
        let mut writes = vec![
            Write::Extent { service: main, extent: Extent::EMPTY },
            Write::Shape { service: main, shape: record.shape() },
            Write::Terms { service: main, terms: record.terms },
        ];
        self.records.insert(main, record);
        match self.change(main, target, now) {
            Ok(more) => {
                self.ports.insert(owner.clone(), main);
                writes.extend(more);
                Ok(writes)
            }
            Err(full) => {
                self.records.remove(&main);
                self.services.untake(main);
                Err(full)
            }
        }
    }

    /// Gives what `old` owns to `new`, which owns nothing yet: its running flows and its clients' affinity go on.
    pub(crate) fn rename(&mut self, old: &PortKey, new: &PortKey) {
        if self.ports.contains_key(new) || (old.family, old.protocol) != (new.family, new.protocol) {
            return;
        }
        let Some(main) = self.ports.remove(old) else { return };
        let second = self.records.get(&main).and_then(|record| record.second);
        for service in [Some(main), second].into_iter().flatten() {
            if let Some(record) = self.records.get_mut(&service) {
                record.owner = Some(new.clone());
            }
        }
        self.ports.insert(new.clone(), main);
    }

    /// The entry that serves `frontend`, and the backend of one of the endpoints behind it; also of one that drains.
    /// TODO(scale): O(endpoints of the service port), for each flow that is taken over from the kernel at a start.
    #[must_use]
    pub(crate) fn backend_behind(&self, frontend: &FrontendKey, endpoint: SocketAddr) -> Option<(u32, BackendRef)> {
        let service = self.frontends.get(frontend)?.service;
        let main = self.records.get(&self.records.get(&service)?.terms.port())?;
        let second = main.second.and_then(|second| self.records.get(&second));
        let mut held =
            std::iter::once(main).chain(second).flat_map(|record| record.placed.iter().chain(&record.draining));
        held.find(|placed| placed.address == endpoint).map(|placed| (service, placed.reference))
    }

    /// Which lists of `owner` have an endpoint.
    #[must_use]
    pub(crate) fn served(&self, owner: &PortKey) -> Served {
        let Some(main) = self.ports.get(owner).and_then(|main| self.records.get(main)) else {
            return Served::default();
        };
        let second = main.second.and_then(|second| self.records.get(&second));
        Served { cluster: !main.placed.is_empty(), local: second.map_or(main.local, |second| second.local) > 0 }
    }

    /// The writes that remove all elements of `owner`.
    pub(crate) fn remove(&mut self, owner: &PortKey, now: Moment) -> Vec<Write> {
        self.ports.remove(owner).map_or_else(Vec::new, |main| self.drop_port(main, now))
    }

    /// The writes that remove what no service port has adopted since the tables were read back.
    pub(crate) fn remove_unclaimed(&mut self, now: Moment) -> Vec<Write> {
        let mut unclaimed: Vec<u32> =
            self.records.iter().filter(|(_, record)| record.owner.is_none()).map(|(service, _)| *service).collect();
        unclaimed.sort_unstable();
        let mut writes: Vec<Write> = unclaimed.into_iter().flat_map(|service| self.drop_port(service, now)).collect();
        writes.extend(self.ranges.remove_strays(now));
        writes.extend(self.backends.remove_strays(now));
        writes
    }

    /// The service ports' entries, in order.
    #[must_use]
    pub(crate) fn services(&self) -> Vec<u32> {
        let mut services: Vec<u32> = self.ports.values().copied().collect();
        services.sort_unstable();
        services
    }

    /// The writes, in a safe order, that make the tables hold what the layout has for one service port.
    #[must_use]
    pub(crate) fn image(&self, service: u32) -> Vec<Write> {
        let Some(record) = self.records.get(&service) else { return Vec::new() };
        let second = record.second.and_then(|second| Some((second, self.records.get(&second)?)));
        let mut writes = record.backends_image(service, second.map(|(_, second)| second));
        writes.extend(record.prefixes.iter().map(|prefix| Write::Range { id: record.ranges.id(), prefix: *prefix }));
        for (service, record) in std::iter::once((service, record)).chain(second) {
            writes.extend(record.entry_image(service));
            let leads = record.frontends.iter().filter_map(|key| Some((*key, self.frontends.get(key)?)));
            writes.extend(leads.map(|(key, lead)| Write::Frontend { key, lead }));
        }
        writes
    }

    /// The entries of a service port.
    pub(crate) fn entries(&self, owner: &PortKey) -> impl Iterator<Item = u32> + use<> {
        let main = self.ports.get(owner).copied();
        let second = main.and_then(|main| self.records.get(&main)).and_then(|record| record.second);
        [main, second].into_iter().flatten()
    }

    /// The service port that an entry stands for.
    #[must_use]
    pub(crate) fn owner(&self, service: u32) -> Option<&PortKey> {
        self.records.get(&service)?.owner.as_ref()
    }

    /// Whether the layout has the frontend `key`.
    #[must_use]
    pub(crate) fn has_frontend(&self, key: &FrontendKey) -> bool {
        self.frontends.get(key).is_some()
    }

    fn full_of_services(&self) -> Full {
        Full { table: "service", capacity: self.capacity.services }
    }

    fn check_frontends(&self, target: &Target<'_>) -> Result<(), Full> {
        let new = |family| {
            let of_family = target.frontends.iter().filter(move |(key, _)| key.family() == family);
            of_family.filter(|(key, _)| self.frontends.get(key).is_none()).count()
        };
        let fits = |family| {
            let new = new(family);
            new == 0 || self.frontends.count(family).saturating_add(new) <= self.capacity.frontends as usize
        };
        let full = Full { table: "frontend", capacity: self.capacity.frontends };
        if Family::BOTH.into_iter().all(fits) { Ok(()) } else { Err(full) }
    }

    /// After a restart: the entry that `target`'s frontends lead to, if it has no owner yet.
    fn adopt(&mut self, owner: &PortKey, target: &Target<'_>) -> Option<u32> {
        let leads = target.frontends.iter().filter_map(|(key, _)| self.frontends.get(key));
        let sound = |lead: Lead| self.records.get(&lead.service).filter(|record| !record.broken);
        let mains = leads.filter_map(|lead| Some(sound(lead)?.terms.port()));
        let orphan =
            |service: &u32| self.records.get(service).is_some_and(|record| record.owner.is_none() && !record.broken);
        let main = mains.into_iter().find(orphan)?;
        let record = self.records.get_mut(&main)?;
        if record.family != owner.family {
            return None;
        }
        record.owner = Some(owner.clone());
        if let Some(second) = record.second.and_then(|second| self.records.get_mut(&second)) {
            second.owner = Some(owner.clone());
        }
        self.ports.insert(owner.clone(), main);
        Some(main)
    }

    /// Removes an entry and the second one that belongs to it, with all backends.
    fn drop_port(&mut self, main: u32, now: Moment) -> Vec<Write> {
        let Some(mut record) = self.records.remove(&main) else { return Vec::new() };
        let mut second = record.second.and_then(|second| Some((second, self.records.remove(&second)?)));
        let mut references: Vec<_> = record.placed.iter().chain(&record.draining).map(|held| held.reference).collect();
        references.extend(second.iter().flat_map(|(_, second)| second.placed.iter().map(|held| held.reference)));
        references.sort_unstable();
        references.dedup();
        let mut writes = Vec::new();
        let mut records = vec![(main, &mut record)];
        records.extend(second.as_mut().map(|(service, record)| (*service, record)));
        for (_, record) in &records {
            for key in &record.frontends {
                self.frontends.remove(key);
                writes.push(Write::FrontendGone { key: *key });
            }
        }
        for (service, record) in &records {
            writes.extend(zero(*service));
            if let Some(region) = record.region {
                self.regions.retire(region, now);
            }
            self.services.retire(*service, now);
        }
        writes.extend(self.ranges.retire(record.ranges.id(), &record.prefixes, now));
        writes.extend(references.into_iter().map(|reference| self.backends.retire(record.family, reference, now)));
        writes
    }
}

/// The writes that empty an entry of the directory, the switch first.
fn zero(service: u32) -> [Write; 4] {
    [
        Write::Extent { service, extent: Extent::EMPTY },
        Write::Terms { service, terms: Terms::default() },
        Write::Ranges { service, ranges: RangesWord::default() },
        Write::Shape { service, shape: Shape::default() },
    ]
}
