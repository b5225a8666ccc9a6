//! The layout of tables that another life of the daemon left behind.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proxy_abi::{Directory, Extent, FrontendValue, Shape, Slot};
use shunt_model::Family;

use super::backends::{Backends, Restored};
use super::pool::{Pool, Region, Regions};
use super::write::{FrontendKey, backend_parts};
use super::{Capacity, Frontends, Layout, Placed, Record};

/// Everything that is in the tables.
#[derive(Clone, Debug, Default)]
pub struct Dump {
    /// All elements of both frontend maps.
    pub frontends: Vec<(FrontendKey, FrontendValue)>,
    /// The directory entries that are not all zero, by service.
    pub directory: Vec<(u32, Directory)>,
    /// The slots that are not zero, by index.
    pub slots: HashMap<u32, u64>,
    /// The backends that are not all zero, by index, words of `BACKENDS4` padded with zeros.
    pub backends4: Vec<(u32, [u64; 4])>,
    /// The backends that are not all zero, by index.
    pub backends6: Vec<(u32, [u64; 4])>,
}

struct Found {
    alive: HashMap<u32, (std::net::SocketAddr, u16)>,
    restored: Restored,
}

impl Layout {
    /// Takes over what is in the tables. Services are without an owner until [`Layout::upsert`] finds them by their
    /// frontends; [`Layout::remove_unclaimed`] removes the rest. What could not have been written by us (a torn state
    /// of a crashed write) is kept readable but only replaced, never extended.
    #[must_use]
    pub fn restored(capacity: Capacity, dump: &Dump) -> Self {
        let mut four = Found::new(Family::V4, &dump.backends4);
        let mut six = Found::new(Family::V6, &dump.backends6);
        let mut regions = Regions::new(capacity.slots);
        let mut records = HashMap::new();
        for (service, [extent, shape, ..]) in &dump.directory {
            let (extent, shape) = (Extent(*extent), Shape(*shape));
            if !shape.in_use() && extent == Extent::EMPTY {
                continue;
            }
            let family = if shape.ipv6() { Family::V6 } else { Family::V4 };
            let found = match family {
                Family::V4 => &mut four,
                Family::V6 => &mut six,
            };
            records.insert(*service, record(family, extent, shape, &dump.slots, &mut regions, found));
        }
        let frontends = lead(&dump.frontends, &mut records);
        let used: BTreeSet<u32> = records.keys().copied().collect();
        Self {
            capacity,
            owners: HashMap::new(),
            frontends,
            services: Pool::new(capacity.services, &used),
            regions,
            backends: Backends::restored(capacity.backends, four.finish(), six.finish()),
            records,
        }
    }
}

/// Points the frontends at their records; one that leads nowhere gets a broken record, so that it is replaced.
fn lead(found: &[(FrontendKey, FrontendValue)], records: &mut HashMap<u32, Record>) -> Frontends {
    let mut frontends = Frontends::default();
    for (key, value) in found {
        let broken = Record {
            family: key.family(),
            owner: None,
            broken: true,
            region: None,
            placed: Vec::new(),
            local: 0,
            frontends: Vec::new(),
        };
        records.entry(value.service()).or_insert(broken).frontends.push(*key);
        frontends.insert(*key, value.service());
    }
    frontends
}

fn record(
    family: Family,
    extent: Extent,
    shape: Shape,
    slots: &HashMap<u32, u64>,
    regions: &mut Regions,
    found: &mut Found,
) -> Record {
    let mut record =
        Record { family, owner: None, broken: true, region: None, placed: Vec::new(), local: 0, frontends: Vec::new() };
    if !shape.in_use() {
        return record;
    }
    if extent.all() == 0 {
        record.broken = false;
        return record;
    }
    let region = Region { base: extent.base(), order: shape.order() };
    let sound = extent.all() <= region.size() && extent.local() <= extent.all();
    let placed: Option<Vec<Placed>> = (0..extent.all())
        .map(|at| {
            let slot = Slot(*slots.get(&region.base.saturating_add(at))?);
            let (address, generation) = found.alive.get(&slot.backend().index())?;
            let local = at < extent.local();
            (*generation == slot.backend().generation() && slot.local() == local)
                .then_some(Placed { address: *address, reference: slot.backend() })
        })
        .collect();
    let Some(placed) = placed.filter(|placed| sound && distinct(placed, &found.restored.used)) else { return record };
    if !regions.claim(region) {
        return record;
    }
    found.restored.used.extend(placed.iter().map(|placed| placed.reference.index()));
    Record { broken: false, region: Some(region), local: extent.local() as usize, placed, ..record }
}

/// No backend twice, and none that another service holds.
fn distinct(placed: &[Placed], used: &BTreeSet<u32>) -> bool {
    let mut seen = BTreeSet::new();
    placed.iter().all(|placed| !used.contains(&placed.reference.index()) && seen.insert(placed.reference.index()))
}

impl Found {
    fn new(family: Family, backends: &[(u32, [u64; 4])]) -> Self {
        let mut alive = HashMap::new();
        let mut generations = BTreeMap::new();
        for (index, words) in backends {
            let (address, generation, last) = backend_parts(family, *words);
            generations.insert(*index, last.max(generation));
            if generation != 0 {
                alive.insert(*index, (address, generation));
            }
        }
        Self { alive, restored: Restored { generations, ..Restored::default() } }
    }

    fn finish(self) -> Restored {
        let strays = self.alive.into_keys().filter(|index| !self.restored.used.contains(index)).collect();
        Restored { strays, ..self.restored }
    }
}
