//! Which service, slot and backend elements hold what, and the writes that lead from one state to the next.
//!
//! A plain value without access to the kernel: [`Layout::upsert`] and [`Layout::remove`] return [`Write`]s in an order
//! in which every prefix is safe. After each of them every frontend leads to a service all of whose visible slots
//! point at living backends of its old or new endpoints, and a service that has endpoints before and after is never
//! empty in between (spec/datapath.md 2.4; proved by the property test in `layout/tests.rs`).

mod backends;
mod frontends;
pub mod pool;
mod rebuild;
#[cfg(test)]
mod tests;
pub mod write;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;

use proxy_abi::{BackendRef, Extent, Shape, Slot, capacity};
use shunt_model::Family;

use self::backends::Backends;
use self::frontends::Frontends;
use self::pool::{Moment, Pool, Region, Regions, order_for};
pub use self::rebuild::Dump;
pub use self::write::{FrontendKey, Write};
use crate::plan::{Endpoint, PortKey};

/// How many elements each table has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Frontends of one family.
    pub frontends: u32,
    /// Services.
    pub services: u32,
    /// Slots.
    pub slots: u32,
    /// Backends of one family.
    pub backends: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            frontends: capacity::FRONTENDS,
            services: capacity::SERVICES,
            slots: capacity::SLOTS,
            backends: capacity::BACKENDS,
        }
    }
}

/// A table has no room; nothing of the change was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {table} table is full ({capacity} elements)")]
pub struct Full {
    /// Which table.
    pub table: &'static str,
    /// How many elements it has.
    pub capacity: u32,
}

/// What a service port is to look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// What clients dial.
    pub frontends: Vec<FrontendKey>,
    /// Who answers; each address once.
    pub endpoints: &'a [Endpoint],
}

/// One element of the directory and all that hangs on it.
#[derive(Clone, Debug)]
struct Record {
    family: Family,
    /// `None` after a restart, until a service port of the plan turns out to own its frontends.
    owner: Option<PortKey>,
    /// Read back in a state we would not have written; never adopted, only replaced.
    broken: bool,
    region: Option<Region>,
    /// The visible slots in order, those on this node first.
    placed: Vec<Placed>,
    local: usize,
    frontends: Vec<FrontendKey>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Placed {
    address: SocketAddr,
    reference: BackendRef,
}

/// The allocation of all tables.
#[derive(Clone, Debug)]
pub struct Layout {
    capacity: Capacity,
    records: HashMap<u32, Record>,
    owners: HashMap<PortKey, u32>,
    frontends: Frontends,
    services: Pool,
    regions: Regions,
    backends: Backends,
}

impl Layout {
    /// Empty tables.
    #[must_use]
    pub fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            records: HashMap::new(),
            owners: HashMap::new(),
            frontends: Frontends::default(),
            services: Pool::new(capacity.services, &BTreeSet::new()),
            regions: Regions::new(capacity.slots),
            backends: Backends::new(capacity.backends),
        }
    }

    /// How many services, frontends and backends are in use.
    #[must_use]
    pub fn usage(&self) -> (usize, usize, usize) {
        (
            self.records.len(),
            self.frontends.count(Family::V4).saturating_add(self.frontends.count(Family::V6)),
            self.records.values().map(|record| record.placed.len()).sum(),
        )
    }

    /// The writes that make `owner` look like `target`. Nothing is changed if a table is full.
    pub fn upsert(&mut self, owner: &PortKey, target: &Target<'_>, now: Moment) -> Result<Vec<Write>, Full> {
        self.check_frontends(target)?;
        let found = self.owners.get(owner).copied().or_else(|| self.adopt(owner, target));
        let Some(service) = found else { return self.create(owner, target, now) };
        let Some(mut record) = self.records.remove(&service) else { return self.create(owner, target, now) };
        let mut writes = Vec::new();
        let placed = self.place(service, &mut record, target.endpoints, now, &mut writes);
        self.records.insert(service, record);
        placed?;
        self.point(service, &target.frontends, &mut writes);
        Ok(writes)
    }

    /// The writes that take away what `wanted` no longer holds, for a service port that [`Full`] kept from growing: a
    /// removed endpoint gets nothing more even then.
    pub fn shrink(&mut self, owner: &PortKey, wanted: &[Endpoint], now: Moment) -> Vec<Write> {
        let mut writes = Vec::new();
        let Some(service) = self.owners.get(owner).copied() else { return writes };
        let Some(record) = self.records.get_mut(&service) else { return writes };
        let wanted: HashSet<SocketAddr> = wanted.iter().map(|end| end.address).collect();
        let placed = record.placed.iter().enumerate().map(|(at, placed)| (placed.address, at < record.local));
        let gone: Vec<(SocketAddr, bool)> = placed.filter(|(address, _)| !wanted.contains(address)).collect();
        take_out_all(&mut self.backends, service, record, &gone, now, &mut writes);
        writes
    }

    /// The writes that make everything of `owner` disappear.
    pub fn remove(&mut self, owner: &PortKey, now: Moment) -> Vec<Write> {
        self.owners.remove(owner).map_or_else(Vec::new, |service| self.drop_service(service, now))
    }

    /// The writes that remove what no service port has claimed since the tables were read back.
    pub fn remove_unclaimed(&mut self, now: Moment) -> Vec<Write> {
        let mut unclaimed: Vec<u32> =
            self.records.iter().filter(|(_, record)| record.owner.is_none()).map(|(service, _)| *service).collect();
        unclaimed.sort_unstable();
        let mut writes: Vec<Write> =
            unclaimed.into_iter().flat_map(|service| self.drop_service(service, now)).collect();
        writes.extend(self.backends.remove_strays(now));
        writes
    }

    fn check_frontends(&self, target: &Target<'_>) -> Result<(), Full> {
        let new = |family| {
            let of_family = target.frontends.iter().filter(move |key| key.family() == family);
            of_family.filter(|key| self.frontends.get(key).is_none()).count()
        };
        let fits = |family| {
            let new = new(family);
            new == 0 || self.frontends.count(family).saturating_add(new) <= self.capacity.frontends as usize
        };
        let full = Full { table: "frontend", capacity: self.capacity.frontends };
        if Family::BOTH.into_iter().all(fits) { Ok(()) } else { Err(full) }
    }

    /// After a restart: the service that `target`'s frontends lead to, if nobody owns it yet.
    fn adopt(&mut self, owner: &PortKey, target: &Target<'_>) -> Option<u32> {
        let candidates = target.frontends.iter().filter_map(|key| self.frontends.get(key));
        let orphan =
            |service: &u32| self.records.get(service).is_some_and(|record| record.owner.is_none() && !record.broken);
        let service = candidates.into_iter().find(orphan)?;
        let record = self.records.get_mut(&service)?;
        if record.family != owner.family {
            return None;
        }
        record.owner = Some(owner.clone());
        self.owners.insert(owner.clone(), service);
        Some(service)
    }

    fn create(&mut self, owner: &PortKey, target: &Target<'_>, now: Moment) -> Result<Vec<Write>, Full> {
        let full = Full { table: "service", capacity: self.capacity.services };
        let service = self.services.take(now).ok_or(full)?;
        let mut record = Record {
            family: owner.family,
            owner: Some(owner.clone()),
            broken: false,
            region: None,
            placed: Vec::new(),
            local: 0,
            frontends: Vec::new(),
        };
        let mut writes = Vec::new();
        if target.endpoints.is_empty() {
            writes.push(Write::Extent { service, extent: Extent::EMPTY });
            writes.push(Write::Shape { service, shape: Shape::new(0, owner.family == Family::V6) });
        } else if let Err(full) = self.place(service, &mut record, target.endpoints, now, &mut writes) {
            self.services.untake(service);
            return Err(full);
        }
        self.records.insert(service, record);
        self.owners.insert(owner.clone(), service);
        self.point(service, &target.frontends, &mut writes);
        Ok(writes)
    }

    /// Brings the endpoints of a service to `wanted`.
    fn place(
        &mut self,
        service: u32,
        record: &mut Record,
        wanted: &[Endpoint],
        now: Moment,
        writes: &mut Vec<Write>,
    ) -> Result<(), Full> {
        let keep: HashSet<(SocketAddr, bool)> = wanted.iter().map(|end| (end.address, end.local)).collect();
        let held: HashSet<(SocketAddr, bool)> =
            record.placed.iter().enumerate().map(|(at, placed)| (placed.address, at < record.local)).collect();
        let added: Vec<Endpoint> =
            wanted.iter().filter(|end| !held.contains(&(end.address, end.local))).copied().collect();
        let removed: Vec<(SocketAddr, bool)> = held.difference(&keep).copied().collect();
        if added.is_empty() && removed.is_empty() {
            return Ok(());
        }
        let room = record.region.map_or(0, |region| region.size() as usize);
        let peak = record.placed.len().saturating_add(added.len());
        let few = added.len().saturating_add(removed.len()) <= record.placed.len().max(2);
        if wanted.is_empty() || peak > room || !few {
            return self.rewrite(service, record, wanted, now, writes);
        }
        let references = self.take_backends(record.family, &added, now)?;
        for (end, reference) in added.iter().zip(references) {
            record.insert(service, *end, reference, writes);
        }
        take_out_all(&mut self.backends, service, record, &removed, now, writes);
        Ok(())
    }

    /// Writes all slots of a service to a fresh region and switches over.
    fn rewrite(
        &mut self,
        service: u32,
        record: &mut Record,
        wanted: &[Endpoint],
        now: Moment,
        writes: &mut Vec<Write>,
    ) -> Result<(), Full> {
        let full = Full { table: "slot", capacity: self.capacity.slots };
        let count = u32::try_from(wanted.len()).ok().filter(|count| *count <= Extent::MAX_COUNT).ok_or(full)?;
        let region = match count {
            0 => None,
            _ => Some(self.regions.take(order_for(count), now).ok_or(full)?),
        };
        let mut kept: HashMap<SocketAddr, BackendRef> =
            record.placed.iter().map(|placed| (placed.address, placed.reference)).collect();
        let added: Vec<Endpoint> = wanted.iter().filter(|end| !kept.contains_key(&end.address)).copied().collect();
        let taken = self.take_backends(record.family, &added, now).inspect_err(|_| {
            if let Some(region) = region {
                self.regions.release(region);
            }
        })?;
        let fresh: HashMap<SocketAddr, BackendRef> = added.iter().map(|end| end.address).zip(taken).collect();
        writes.extend(added.iter().filter_map(|end| {
            fresh.get(&end.address).map(|reference| backend(record.family, end.address, *reference))
        }));
        let mut placed = Vec::with_capacity(wanted.len());
        for end in wanted.iter().filter(|end| end.local).chain(wanted.iter().filter(|end| !end.local)) {
            let Some(reference) = kept.remove(&end.address).or_else(|| fresh.get(&end.address).copied()) else {
                continue;
            };
            placed.push(Placed { address: end.address, reference });
        }
        let local = wanted.iter().filter(|end| end.local).count();
        record.switch(service, region, placed, local, writes).into_iter().for_each(|old| self.regions.retire(old, now));
        let mut gone: Vec<BackendRef> = kept.into_values().collect();
        gone.sort_unstable();
        writes.extend(gone.into_iter().map(|reference| self.backends.retire(record.family, reference, now)));
        Ok(())
    }

    fn take_backends(&mut self, family: Family, ends: &[Endpoint], now: Moment) -> Result<Vec<BackendRef>, Full> {
        let full = Full { table: "backend", capacity: self.capacity.backends };
        self.backends.take(family, ends.len(), now).ok_or(full)
    }

    /// Makes exactly `wanted` lead to `service`.
    fn point(&mut self, service: u32, wanted: &[FrontendKey], writes: &mut Vec<Write>) {
        for key in wanted {
            let former = self.frontends.insert(*key, service);
            if former == Some(service) {
                continue;
            }
            if let Some(loser) = former.and_then(|former| self.records.get_mut(&former)) {
                loser.frontends.retain(|held| held != key);
            }
            writes.push(Write::Frontend { key: *key, service });
        }
        let Some(record) = self.records.get_mut(&service) else { return };
        let former = std::mem::replace(&mut record.frontends, wanted.to_vec());
        for key in former.into_iter().filter(|key| !wanted.contains(key)) {
            self.frontends.remove(&key);
            writes.push(Write::FrontendGone { key });
        }
    }

    fn drop_service(&mut self, service: u32, now: Moment) -> Vec<Write> {
        let Some(record) = self.records.remove(&service) else { return Vec::new() };
        let mut writes: Vec<Write> = record.frontends.iter().map(|key| Write::FrontendGone { key: *key }).collect();
        for key in &record.frontends {
            self.frontends.remove(key);
        }
        writes.push(Write::Extent { service, extent: Extent::EMPTY });
        writes.push(Write::Shape { service, shape: Shape::default() });
        for placed in &record.placed {
            writes.push(self.backends.retire(record.family, placed.reference, now));
        }
        if let Some(region) = record.region {
            self.regions.retire(region, now);
        }
        self.services.retire(service, now);
        writes
    }
}

/// Takes endpoints out of sight one by one; each backend dies only once no slot shows it.
fn take_out_all(
    backends: &mut Backends,
    service: u32,
    record: &mut Record,
    gone: &[(SocketAddr, bool)],
    now: Moment,
    writes: &mut Vec<Write>,
) {
    for (address, local) in gone {
        if let Some(placed) = record.take_out(service, *address, *local, writes) {
            writes.push(backends.retire(record.family, placed.reference, now));
        }
    }
}

fn backend(family: Family, address: SocketAddr, reference: BackendRef) -> Write {
    Write::Backend { family, index: reference.index(), words: write::backend_words(address, reference) }
}

/// A slot number or count; tables are smaller than 2^24, so this never saturates.
fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl Record {
    fn base(&self) -> u32 {
        self.region.map_or(0, |region| region.base)
    }

    fn extent(&self) -> Extent {
        Extent::new(self.base(), number(self.placed.len()), number(self.local))
    }

    fn slot(&self, at: usize, placed: Placed, local: bool) -> Write {
        Write::Slot { index: self.base().saturating_add(number(at)), slot: Slot::new(placed.reference, local) }
    }

    /// Adds one endpoint; the region has room. A local one goes to the end of the local slots, and the remote one that
    /// stands there goes to the end of all.
    fn insert(&mut self, service: u32, end: Endpoint, reference: BackendRef, writes: &mut Vec<Write>) {
        writes.push(backend(self.family, end.address, reference));
        let placed = Placed { address: end.address, reference };
        let tail = self.placed.len();
        match self.placed.get(self.local).copied().filter(|_| end.local) {
            Some(displaced) => {
                writes.push(self.slot(tail, displaced, false));
                writes.push(self.slot(self.local, placed, true));
                self.placed.push(displaced);
                if let Some(place) = self.placed.get_mut(self.local) {
                    *place = placed;
                }
            }
            None => {
                writes.push(self.slot(tail, placed, end.local));
                self.placed.push(placed);
            }
        }
        self.local = self.local.saturating_add(usize::from(end.local));
        writes.push(Write::Extent { service, extent: self.extent() });
    }

    /// Takes one endpoint out of sight. Its old tail slot stays as it is, for readers that hold the old extent.
    fn take_out(&mut self, service: u32, address: SocketAddr, local: bool, writes: &mut Vec<Write>) -> Option<Placed> {
        let range = if local { 0..self.local } else { self.local..self.placed.len() };
        let at = range.into_iter().find(|at| self.placed.get(*at).is_some_and(|placed| placed.address == address))?;
        let gone = *self.placed.get(at)?;
        let mut hole = at;
        if local {
            hole = self.local.checked_sub(1)?;
            let last_local = *self.placed.get(hole)?;
            if hole != at {
                writes.push(self.slot(at, last_local, true));
                *self.placed.get_mut(at)? = last_local;
            }
            self.local = hole;
            if hole != self.placed.len().checked_sub(1)? {
                writes.push(Write::Extent { service, extent: self.extent() });
            }
        }
        let tail = self.placed.pop()?;
        if hole < self.placed.len() {
            writes.push(self.slot(hole, tail, false));
            *self.placed.get_mut(hole)? = tail;
        }
        writes.push(Write::Extent { service, extent: self.extent() });
        Some(gone)
    }

    /// Switches to another region; returns the one left behind.
    fn switch(
        &mut self,
        service: u32,
        region: Option<Region>,
        placed: Vec<Placed>,
        local: usize,
        writes: &mut Vec<Write>,
    ) -> Option<Region> {
        let former = std::mem::replace(&mut self.region, region);
        self.placed = placed;
        self.local = local;
        for (at, placed) in self.placed.iter().enumerate() {
            writes.push(self.slot(at, *placed, at < local));
        }
        let order = region.map_or(0, |region| region.order);
        let shape = Shape::new(order, self.family == Family::V6);
        if former.map(|former| former.order) != region.map(|region| region.order) {
            writes.push(Write::Shape { service, shape });
        }
        writes.push(Write::Extent { service, extent: self.extent() });
        former
    }
}
