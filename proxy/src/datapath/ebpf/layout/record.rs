//! One entry of the directory and its slots: the writes that add endpoints, remove them, or switch regions.

use std::collections::HashSet;
use std::net::SocketAddr;

use ipnet::IpNet;
use proxy_abi::{BackendRef, Extent, RangesWord, Shape, Slot, Standing, Terms};
use shunt_model::Family;

use super::pool::Region;
use super::write::{FrontendKey, Write, backend};
use crate::plan::{Endpoint, PortKey};

/// One element of the directory with its slots, backends, frontends and ranges.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) family: Family,
    /// `None` after a restart, until a service port of the plan turns out to own its frontends.
    pub(super) owner: Option<PortKey>,
    /// It was read back in a state that this program does not write; it is never adopted, only replaced.
    pub(super) broken: bool,
    pub(super) region: Option<Region>,
    /// The visible slots in order, those on this node first.
    pub(super) placed: Vec<Placed>,
    pub(super) local: usize,
    pub(super) frontends: Vec<FrontendKey>,
    pub(super) terms: Terms,
    pub(super) ranges: RangesWord,
    /// What `ranges` holds; kept with the entry that stands for the service port.
    pub(super) prefixes: Vec<IpNet>,
    /// Backends that get no new flow while their running ones go on; with the entry that stands for the service port.
    pub(super) draining: Vec<Placed>,
    /// The entry of the same service port that holds the endpoints of this node, if they cannot be a part of this one.
    pub(super) second: Option<u32>,
}

/// An endpoint and its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) address: SocketAddr,
    pub(super) reference: BackendRef,
}

/// The changes that lead from the list of a record to another.
#[derive(Clone, Debug, Default)]
pub(super) struct Change {
    pub(super) added: Vec<Endpoint>,
    pub(super) removed: Vec<(SocketAddr, bool)>,
}

/// A slot number or count; tables are smaller than 2^24, so this never saturates.
pub(super) fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl Record {
    pub(super) fn new(family: Family, owner: Option<PortKey>) -> Self {
        Self {
            family,
            owner,
            broken: false,
            region: None,
            placed: Vec::new(),
            local: 0,
            frontends: Vec::new(),
            terms: Terms::default(),
            ranges: RangesWord::default(),
            prefixes: Vec::new(),
            draining: Vec::new(),
            second: None,
        }
    }

    /// The visible endpoints with their backends.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = (Endpoint, BackendRef)> {
        let endpoint = |(at, placed): (usize, &Placed)| {
            (Endpoint { address: placed.address, local: at < self.local }, placed.reference)
        };
        self.placed.iter().enumerate().map(endpoint)
    }

    /// The difference to `wanted`.
    pub(super) fn change(&self, wanted: &[Endpoint]) -> Change {
        if self.placed.is_empty() {
            return Change { added: wanted.to_vec(), removed: Vec::new() };
        }
        let held: HashSet<Endpoint> = self.endpoints().map(|(endpoint, _)| endpoint).collect();
        let added: Vec<Endpoint> = wanted.iter().filter(|end| !held.contains(end)).copied().collect();
        if wanted.len().saturating_sub(added.len()) == held.len() {
            return Change { added, removed: Vec::new() };
        }
        let keep: HashSet<&Endpoint> = wanted.iter().collect();
        let removed = held.iter().filter(|end| !keep.contains(end)).map(|end| (end.address, end.local)).collect();
        Change { added, removed }
    }

    /// Whether `change` is better done by writing all slots to a fresh region.
    pub(super) fn needs_region(&self, change: &Change, wanted: usize) -> bool {
        let Change { added, removed } = change;
        if added.is_empty() && removed.is_empty() {
            return false;
        }
        let room = self.region.map_or(0, |region| region.size() as usize);
        let peak = self.placed.len().saturating_add(added.len());
        let few = added.len().saturating_add(removed.len()) <= self.placed.len().max(2);
        wanted == 0 || peak > room || !few
    }

    pub(super) fn base(&self) -> u32 {
        self.region.map_or(0, |region| region.base)
    }

    pub(super) fn extent(&self) -> Extent {
        Extent::new(self.base(), number(self.placed.len()), number(self.local))
    }

    pub(super) fn shape(&self) -> Shape {
        Shape::new(self.region.map_or(0, |region| region.order), self.family == Family::V6)
    }

    /// The write of the slot at `at`.
    pub(super) fn slot(&self, at: usize, placed: Placed, local: bool) -> Write {
        Write::Slot { index: self.base().saturating_add(number(at)), slot: Slot::new(placed.reference, local) }
    }

    /// Adds one endpoint; the region has room. A local one goes to the end of the local slots, and the remote one that
    /// stands there goes to the end of all.
    pub(super) fn insert(&mut self, service: u32, end: Endpoint, reference: BackendRef, writes: &mut Vec<Write>) {
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

    /// Removes one endpoint from the visible slots. The last slot stays as it is, for readers that hold the old extent.
    pub(super) fn take_out(
        &mut self,
        service: u32,
        address: SocketAddr,
        local: bool,
        writes: &mut Vec<Write>,
    ) -> Option<Placed> {
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

    /// Switches to another region; returns the former region and the endpoints that are no longer visible.
    pub(super) fn switch(
        &mut self,
        service: u32,
        region: Option<Region>,
        endpoints: &[(Endpoint, BackendRef)],
        writes: &mut Vec<Write>,
    ) -> (Option<Region>, Vec<Placed>) {
        let former = std::mem::replace(&mut self.region, region);
        let order = |local| endpoints.iter().filter(move |(end, _)| end.local == local);
        let placed = order(true).chain(order(false));
        let placed: Vec<Placed> =
            placed.map(|(end, reference)| Placed { address: end.address, reference: *reference }).collect();
        let left = std::mem::replace(&mut self.placed, placed);
        self.local = order(true).count();
        for (at, placed) in self.placed.iter().enumerate() {
            writes.push(self.slot(at, *placed, at < self.local));
        }
        if former.map(|former| former.order) != region.map(|region| region.order) {
            writes.push(Write::Shape { service, shape: self.shape() });
        }
        writes.push(Write::Extent { service, extent: self.extent() });
        (former, left)
    }

    /// The writes of the entry's terms and ranges, in that order.
    pub(super) fn set(&mut self, service: u32, terms: Terms, ranges: RangesWord, writes: &mut Vec<Write>) {
        if self.terms != terms {
            self.terms = terms;
            writes.push(Write::Terms { service, terms });
        }
        if self.ranges != ranges {
            self.ranges = ranges;
            writes.push(Write::Ranges { service, ranges });
        }
    }

    pub(super) fn holds(&self, reference: BackendRef) -> bool {
        self.placed.iter().any(|placed| placed.reference == reference)
    }

    /// The writes of all backends of the service port that this entry stands for.
    pub(super) fn backends_image(&self, service: u32, second: Option<&Self>) -> Vec<Write> {
        let standing =
            |reference: BackendRef, listed, local| Standing::new(reference.generation(), service, listed, local);
        let own =
            self.endpoints().map(|(end, reference)| (end.address, reference, standing(reference, true, end.local)));
        let others = second.into_iter().flat_map(Self::endpoints).filter(|(_, reference)| !self.holds(*reference));
        let others = others.map(|(end, reference)| (end.address, reference, standing(reference, false, end.local)));
        let draining =
            self.draining.iter().map(|held| (held.address, held.reference, standing(held.reference, false, false)));
        let all = own.chain(others).chain(draining);
        all.map(|(address, reference, standing)| backend(self.family, address, reference, standing)).collect()
    }

    /// The writes of the entry and its slots.
    pub(super) fn entry_image(&self, service: u32) -> Vec<Write> {
        let slots = self.placed.iter().enumerate().map(|(at, placed)| self.slot(at, *placed, at < self.local));
        let words = [
            Write::Shape { service, shape: self.shape() },
            Write::Terms { service, terms: self.terms },
            Write::Ranges { service, ranges: self.ranges },
            Write::Extent { service, extent: self.extent() },
        ];
        slots.chain(words).collect()
    }
}
