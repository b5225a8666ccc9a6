//! Rebuilds the layout from the tables of an earlier daemon.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnet::IpNet;
use proxy_abi::{BackendRef, Directory, Extent, FrontendValue, RangesWord, Shape, Slot, Terms};
use shunt_model::Family;

use super::backends::{Backends, Restored};
use super::pool::{Pool, Region, Regions};
use super::ranges::Ranges;
use super::record::{Placed, Record};
use super::write::{FrontendKey, Life, Write, backend_parts};
use super::{Capacity, Frontends, Layout};

/// Everything that is in the tables.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Dump {
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
    /// All prefixes of source ranges.
    pub ranges: Vec<(u32, IpNet)>,
}

struct Found {
    alive: HashMap<u32, Life>,
    restored: Restored,
}

impl Layout {
    /// Takes over what is in the tables. Services are without an owner until [`Layout::upsert`] finds them by their
    /// frontends; [`Layout::remove_unclaimed`] removes the rest. A state that this program does not write, as after a
    /// crash in the middle of a change, stays readable, but it is only replaced and never extended.
    #[must_use]
    pub(crate) fn restored(capacity: Capacity, dump: &Dump) -> Self {
        let mut four = Found::new(Family::V4, &dump.backends4);
        let mut six = Found::new(Family::V6, &dump.backends6);
        let mut regions = Regions::new(capacity.slots);
        let mut records = HashMap::new();
        for (service, words) in &dump.directory {
            let [extent, shape, ..] = *words;
            let shape = Shape(shape);
            if !shape.in_use() && Extent(extent) == Extent::EMPTY {
                continue;
            }
            let family = if shape.ipv6() { Family::V6 } else { Family::V4 };
            let found = match family {
                Family::V4 => &mut four,
                Family::V6 => &mut six,
            };
            let record = record(family, words, &dump.slots, &mut regions, found);
            records.insert(*service, record);
        }
        let frontends = lead(&dump.frontends, &mut records);
        join(&mut records);
        let used: BTreeSet<u32> = records.keys().copied().collect();
        let mut ranges = Ranges::restored(capacity.ranges, &dump.ranges);
        let (mut draining4, mut draining6) = (four.draining(), six.draining());
        for (service, record) in records.iter_mut().filter(|(service, record)| record.terms.port() == **service) {
            record.prefixes = ranges.adopt(record.ranges.id());
            let (draining, found) = match record.family {
                Family::V4 => (&mut draining4, &mut four),
                Family::V6 => (&mut draining6, &mut six),
            };
            record.draining = draining.remove(service).unwrap_or_default();
            found.adopt(&record.draining);
        }
        Self {
            capacity,
            ports: HashMap::new(),
            frontends,
            services: Pool::new(capacity.services, &used),
            regions,
            backends: Backends::restored(capacity.backends, four.finish(), six.finish()),
            ranges,
            records,
        }
    }
}

/// The writes that make empty tables hold what `dump` holds, every element at its index and in its generation, dead
/// backends too: a reference to a dead backend must never match again. What does not fit into `capacity` is left out.
pub(in crate::datapath::ebpf) fn image(dump: &Dump, capacity: Capacity) -> Vec<Write> {
    let mut writes = Vec::new();
    for (family, backends) in [(Family::V4, &dump.backends4), (Family::V6, &dump.backends6)] {
        let fitting = backends.iter().filter(|(index, _)| *index < capacity.backends);
        writes.extend(fitting.map(|(index, words)| Write::Backend { family, index: *index, words: *words }));
    }
    let slots = dump.slots.iter().filter(|(index, _)| **index < capacity.slots);
    writes.extend(slots.map(|(index, slot)| Write::Slot { index: *index, slot: Slot(*slot) }));
    writes.extend(dump.ranges.iter().map(|(id, prefix)| Write::Range { id: *id, prefix: *prefix }));
    for (service, words) in dump.directory.iter().filter(|(service, _)| *service < capacity.services) {
        let ([extent, shape, terms, ranges], service) = (*words, *service);
        writes.extend([
            Write::Shape { service, shape: Shape(shape) },
            Write::Terms { service, terms: Terms(terms) },
            Write::Ranges { service, ranges: RangesWord(ranges) },
            Write::Extent { service, extent: Extent(extent) },
        ]);
    }
    writes.extend(dump.frontends.iter().map(|(key, value)| Write::Frontend { key: *key, lead: value.lead() }));
    writes
}

/// Joins second entries to those that stand for their service ports. A second entry without a first one is broken.
fn join(records: &mut HashMap<u32, Record>) {
    let seconds: Vec<(u32, u32)> = records
        .iter()
        .filter(|(service, record)| !record.broken && record.terms.port() != **service)
        .map(|(service, record)| (*service, record.terms.port()))
        .collect();
    for (second, main) in seconds {
        let stands = |record: &&mut Record| record.terms.port() == main && !record.broken && record.second.is_none();
        let joined = match records.get_mut(&main).filter(stands) {
            Some(record) => {
                record.second = Some(second);
                true
            }
            None => false,
        };
        if let Some(record) = records.get_mut(&second).filter(|_| !joined) {
            record.broken = true;
        }
    }
}

/// Points the frontends at their records; one that leads nowhere gets a broken record, so that it is replaced.
fn lead(found: &[(FrontendKey, FrontendValue)], records: &mut HashMap<u32, Record>) -> Frontends {
    let mut frontends = Frontends::default();
    for (key, value) in found {
        let lead = value.lead();
        let broken = Record { broken: true, ..Record::new(key.family(), None) };
        records.entry(lead.service).or_insert(broken).frontends.push(*key);
        frontends.insert(*key, lead);
    }
    frontends
}

fn record(
    family: Family,
    words: &Directory,
    slots: &HashMap<u32, u64>,
    regions: &mut Regions,
    found: &mut Found,
) -> Record {
    let [extent, shape, terms, ranges] = *words;
    let (extent, shape, terms) = (Extent(extent), Shape(shape), Terms(terms));
    let mut record = Record { broken: true, terms, ranges: RangesWord(ranges), ..Record::new(family, None) };
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
            let life = found.alive.get(&slot.backend().index())?;
            let local = at < extent.local();
            let is_ours = life.generation == slot.backend().generation() && life.standing.port() == terms.port();
            (is_ours && slot.local() == local).then_some(Placed { address: life.address, reference: slot.backend() })
        })
        .collect();
    // The two entries of a service port share backends; entries of different ones do not, as backends name theirs.
    let Some(placed) = placed.filter(|placed| sound && distinct(placed)) else { return record };
    if !regions.claim(region) {
        return record;
    }
    found.restored.used.extend(placed.iter().map(|placed| placed.reference.index()));
    Record { broken: false, region: Some(region), local: extent.local() as usize, placed, ..record }
}

/// Whether each backend occurs once.
fn distinct(placed: &[Placed]) -> bool {
    let mut seen = BTreeSet::new();
    placed.iter().all(|placed| seen.insert(placed.reference.index()))
}

impl Found {
    fn new(family: Family, backends: &[(u32, [u64; 4])]) -> Self {
        let mut alive = HashMap::new();
        let mut generations = BTreeMap::new();
        for (index, words) in backends {
            let life = backend_parts(family, *words);
            generations.insert(*index, life.standing.generation().max(life.generation));
            if life.generation != 0 {
                alive.insert(*index, life);
            }
        }
        Self { alive, restored: Restored { generations, ..Restored::default() } }
    }

    /// The draining backends: alive, without a slot, and with the standing of a draining one, by the service port that
    /// they name. Other backends without a slot were not published yet when the daemon died.
    fn draining(&self) -> HashMap<u32, Vec<Placed>> {
        let mut draining: HashMap<u32, Vec<Placed>> = HashMap::new();
        let unseen = self.alive.iter().filter(|(index, _)| !self.restored.used.contains(index));
        for (index, life) in unseen.filter(|(_, life)| life.standing.drains()) {
            let placed = Placed { address: life.address, reference: BackendRef::new(*index, life.generation) };
            draining.entry(life.standing.port()).or_default().push(placed);
        }
        draining.values_mut().for_each(|held| held.sort_unstable_by_key(|held| held.reference));
        draining
    }

    /// The draining backends that a service port has taken.
    fn adopt(&mut self, draining: &[Placed]) {
        self.restored.used.extend(draining.iter().map(|held| held.reference.index()));
    }

    fn finish(self) -> Restored {
        let strays = self.alive.into_keys().filter(|index| !self.restored.used.contains(index)).collect();
        Restored { strays, ..self.restored }
    }
}
