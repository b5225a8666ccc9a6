//! Changes a service port in the tables: first reserves what the change needs, so that a full table changes nothing;
//! then publishes the endpoints that join, then the frontends, and only then removes what leaves.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use proxy_abi::{BackendRef, Lead, RangesWord, Standing, Terms};

use super::pool::{Moment, Region, order_for};
use super::record::{Change, Placed, Record};
use super::write::{FrontendKey, Write, backend};
use super::{Access, Full, Layout, Target, zero};
use crate::plan::{Endpoint, List};

/// The entries of a service port, taken out of the layout while they change.
struct Port {
    main: u32,
    record: Record,
    second: Option<(u32, Record)>,
}

/// The lists of a service port as its entries hold them.
struct EntryLists<'a> {
    main: &'a [Endpoint],
    second: Option<&'a [Endpoint]>,
}

/// One entry and how it changes.
struct EntryStep<'a> {
    wanted: &'a [Endpoint],
    change: Change,
    slots: Slots,
}

/// How the slots of an entry get another list.
#[derive(Clone, Copy)]
enum Slots {
    /// One by one, in the region they have.
    InPlace,
    /// All written to this new region; an empty list has none.
    Anew(Option<Region>),
}

/// How much of a service port a change concerns.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Its lists alone, which only get shorter.
    Lists,
    /// All of it, and each frontend that stays leads to the same entry.
    Whole,
    /// All of it, and a frontend that stays leads to another entry: neither old nor new endpoints may be missing until
    /// all frontends are pointed.
    Repointed,
}

/// What a change needs.
struct Reserved {
    second: Option<u32>,
    backends: HashMap<Endpoint, BackendRef>,
    ranges: Option<u32>,
}

/// The terms of the service port that `main` stands for.
pub(super) fn terms(main: u32, target: &Target<'_>) -> Terms {
    Terms::new(main, target.affinity, target.keeps_destination, target.silent)
}

impl Slots {
    /// The region that was taken for them.
    fn taken(self) -> Option<Region> {
        match self {
            Self::InPlace => None,
            Self::Anew(region) => region,
        }
    }

    fn are_anew(self) -> bool {
        match self {
            Self::InPlace => false,
            Self::Anew(_) => true,
        }
    }
}

impl<'a> EntryLists<'a> {
    fn of(target: &Target<'a>) -> Self {
        let uses = |list: List| target.frontends.iter().any(|(_, access)| access.list == list);
        if !uses(List::Local) {
            return Self { main: target.cluster, second: None };
        }
        let is_a_part = target.cluster.iter().filter(|end| end.local).eq(target.local);
        // A frontend that falls back needs the endpoints behind the local ones.
        let falls_back = is_a_part && target.frontends.iter().any(|(_, access)| access.falls_back);
        if !uses(List::Cluster) && !falls_back {
            return Self { main: target.local, second: None };
        }
        Self { main: target.cluster, second: if is_a_part { None } else { Some(target.local) } }
    }
}

impl Port {
    /// It has neither endpoints nor source ranges.
    fn is_empty(&self) -> bool {
        let Record { placed, draining, prefixes, ranges, region, .. } = &self.record;
        placed.is_empty()
            && draining.is_empty()
            && prefixes.is_empty()
            && ranges.id() == 0
            && region.is_none()
            && self.second.is_none()
    }

    fn references(&self) -> HashMap<Endpoint, BackendRef> {
        let second = self.second.iter().flat_map(|(_, record)| record.endpoints());
        second.chain(self.record.endpoints()).collect()
    }

    fn lead(&self, access: Access) -> Lead {
        let Access { list, filtered, falls_back, source_nat } = access;
        let (service, local) = match (list, &self.second) {
            (List::Cluster, _) => (self.main, false),
            (List::Local, Some((second, _))) => (*second, true),
            (List::Local, None) => (self.main, true),
        };
        Lead { service, local, filtered, falls_back, source_nat }
    }
}

impl Layout {
    /// The writes that make the service port of entry `main` look like `target`.
    pub(super) fn change(&mut self, main: u32, target: &Target<'_>, now: Moment) -> Result<Vec<Write>, Full> {
        let lists = EntryLists::of(target);
        self.with_port(main, |layout, port| match port.is_empty() && lists.second.is_none() {
            true => layout.fill(port, target, lists.main, now),
            false => {
                let scope = layout.scope(port, target, &lists);
                layout.apply(port, target, &lists, scope, now)
            }
        })
        .unwrap_or(Ok(Vec::new()))
    }

    /// The short way for a service port that had no endpoint so far, as all are after a start: no endpoint stays,
    /// leaves or is shared.
    fn fill(
        &mut self,
        port: &mut Port,
        target: &Target<'_>,
        wanted: &[Endpoint],
        now: Moment,
    ) -> Result<Vec<Write>, Full> {
        let step = EntryStep { wanted, change: Change::default(), slots: Slots::InPlace };
        let slots = self.slots_for(None, &step, Scope::Whole, now)?;
        let family = port.record.family;
        let full = Full { table: "backend", capacity: self.capacity.backends };
        let taken = self.backends.take(family, wanted.len(), now).ok_or(full);
        let ranges = taken.and_then(|taken| match target.ranges {
            Some(sources) => match self.ranges.take(sources.prefixes.len(), now) {
                Ok(id) => Ok((taken, Some(id))),
                Err(full) => {
                    taken.into_iter().for_each(|reference| self.backends.untake(family, reference));
                    Err(full)
                }
            },
            None => Ok((taken, None)),
        });
        let (taken, ranges) = ranges.inspect_err(|_| {
            slots.taken().into_iter().for_each(|region| self.regions.release(region));
        })?;
        let mut writes = Vec::with_capacity(wanted.len().saturating_mul(2).saturating_add(4));
        let endpoints: Vec<(Endpoint, BackendRef)> = wanted.iter().copied().zip(taken).collect();
        for (end, reference) in &endpoints {
            let standing = Standing::new(reference.generation(), port.main, true, end.local);
            writes.push(backend(family, end.address, *reference, standing));
        }
        if let Slots::Anew(region) = slots {
            port.record.switch(port.main, region, &endpoints, &mut writes);
        }
        self.settle(port, target, None, ranges, now, &mut writes);
        Ok(writes)
    }

    /// The writes that remove what `target` no longer holds, for a service port that could not grow because of
    /// [`Full`]: a removed endpoint must get no new flow even then.
    pub(crate) fn shrink(&mut self, owner: &crate::plan::PortKey, target: &Target<'_>, now: Moment) -> Vec<Write> {
        let Some(main) = self.ports.get(owner).copied() else { return Vec::new() };
        let wanted: HashSet<SocketAddr> = target.cluster.iter().chain(target.local).map(|end| end.address).collect();
        let kept = |record: &Record| -> Vec<Endpoint> {
            let kept = record.endpoints().filter(|(end, _)| wanted.contains(&end.address));
            kept.map(|(end, _)| end).collect()
        };
        let shrunk = self.with_port(main, |layout, port| {
            let (held, second) = (kept(&port.record), port.second.as_ref().map(|(_, record)| kept(record)));
            let lists = EntryLists { main: &held, second: second.as_deref() };
            layout.apply(port, target, &lists, Scope::Lists, now)
        });
        // Nothing is added, so nothing can be full.
        shrunk.and_then(Result::ok).unwrap_or_default()
    }

    fn with_port<T>(&mut self, main: u32, work: impl FnOnce(&mut Self, &mut Port) -> T) -> Option<T> {
        let record = self.records.remove(&main)?;
        let second = record.second.and_then(|second| Some((second, self.records.remove(&second)?)));
        let mut port = Port { main, record, second };
        let result = work(self, &mut port);
        port.record.second = port.second.as_ref().map(|(second, _)| *second);
        self.records.insert(main, port.record);
        self.records.extend(port.second);
        Some(result)
    }

    fn apply(
        &mut self,
        port: &mut Port,
        target: &Target<'_>,
        lists: &EntryLists<'_>,
        scope: Scope,
        now: Moment,
    ) -> Result<Vec<Write>, Full> {
        let mut main = EntryStep { wanted: lists.main, change: port.record.change(lists.main), slots: Slots::InPlace };
        let held = port.second.as_ref().map(|(_, record)| record);
        let mut second = lists.second.map(|wanted| EntryStep {
            wanted,
            change: held.map_or_else(|| all(wanted), |record| record.change(wanted)),
            slots: Slots::InPlace,
        });
        let reserved = self.reserve(port, target, (&mut main, second.as_mut()), scope, now)?;
        let mut writes = Vec::new();
        let references = self.enliven(port, &reserved, (&main, second.as_ref()), &mut writes);
        lower(port, &target.draining, (&main, second.as_ref()), &mut writes);
        let mut left = self.show((port.main, &mut port.record), &main, scope, &references, &mut writes, now);
        if let Some(step) = &second {
            let (service, record) = port.second.get_or_insert_with(|| {
                let record = Record::new(port.record.family, port.record.owner.clone());
                (reserved.second.unwrap_or_default(), record)
            });
            left.extend(self.show((*service, record), step, scope, &references, &mut writes, now));
        }
        let gone = if second.is_none() { port.second.take() } else { None };
        if scope != Scope::Lists {
            self.settle(port, target, gone.as_ref(), reserved.ranges, now, &mut writes);
        }
        left.extend(self.hide((port.main, &mut port.record), &main, scope, &mut writes, now));
        if let (Some(step), Some((service, record))) = (&second, &mut port.second) {
            left.extend(self.hide((*service, record), step, scope, &mut writes, now));
        }
        if let Some((service, record)) = gone {
            writes.extend(zero(service));
            record.region.into_iter().for_each(|region| self.regions.retire(region, now));
            self.services.retire(service, now);
            left.extend(record.placed);
        }
        self.dismiss(port, &target.draining, left, now, &mut writes);
        Ok(writes)
    }

    /// The scope of a change of the whole service port.
    fn scope(&self, port: &Port, target: &Target<'_>, lists: &EntryLists<'_>) -> Scope {
        if self.repoints(port, target, lists) { Scope::Repointed } else { Scope::Whole }
    }

    /// Whether a frontend that stays leads to another entry.
    fn repoints(&self, port: &Port, target: &Target<'_>, lists: &EntryLists<'_>) -> bool {
        lists.second.is_some() != port.second.is_some()
            || target
                .frontends
                .iter()
                .any(|(key, access)| self.frontends.get(key).is_some_and(|lead| lead != port.lead(*access)))
    }

    /// Reserves all that the change needs, or nothing.
    fn reserve(
        &mut self,
        port: &Port,
        target: &Target<'_>,
        steps: (&mut EntryStep<'_>, Option<&mut EntryStep<'_>>),
        scope: Scope,
        now: Moment,
    ) -> Result<Reserved, Full> {
        let (main, mut second) = steps;
        let mut reserved = Reserved { second: None, backends: HashMap::new(), ranges: None };
        let outcome = (|| {
            main.slots = self.slots_for(Some(&port.record), main, scope, now)?;
            if let Some(step) = &mut second {
                let record = port.second.as_ref().map(|(_, record)| record);
                step.slots = self.slots_for(record, step, scope, now)?;
                if record.is_none() {
                    reserved.second = Some(self.services.take(now).ok_or_else(|| self.full_of_services())?);
                }
            }
            let new = new_endpoints(port, main, second.as_deref());
            let full = Full { table: "backend", capacity: self.capacity.backends };
            let taken = self.backends.take(port.record.family, new.len(), now).ok_or(full)?;
            reserved.backends = new.into_iter().zip(taken).collect();
            if let Some(sources) = target.ranges.filter(|_| scope != Scope::Lists)
                && (port.record.ranges.id() == 0 || port.record.prefixes != sources.prefixes)
            {
                reserved.ranges = Some(self.ranges.take(sources.prefixes.len(), now)?);
            }
            Ok(())
        })();
        if let Err(full) = outcome {
            let steps = [Some(&*main), second.as_deref()];
            steps
                .into_iter()
                .flatten()
                .filter_map(|step| step.slots.taken())
                .for_each(|region| self.regions.release(region));
            reserved.second.into_iter().for_each(|service| self.services.untake(service));
            reserved.backends.into_values().for_each(|reference| self.backends.untake(port.record.family, reference));
            return Err(full);
        }
        Ok(reserved)
    }

    fn slots_for(
        &mut self,
        record: Option<&Record>,
        step: &EntryStep<'_>,
        scope: Scope,
        now: Moment,
    ) -> Result<Slots, Full> {
        let needed =
            record.map_or(!step.wanted.is_empty(), |record| record.needs_region(&step.change, step.wanted.len()));
        let keeps = if scope == Scope::Repointed { step.change.removed.len() } else { 0 };
        let count = step.wanted.len().saturating_add(keeps);
        if !needed || step.wanted.is_empty() && scope == Scope::Repointed {
            return Ok(Slots::InPlace);
        }
        let full = Full { table: "slot", capacity: self.capacity.slots };
        let count = u32::try_from(count).ok().filter(|count| *count <= proxy_abi::Extent::MAX_COUNT).ok_or(full)?;
        match count {
            0 => Ok(Slots::Anew(None)),
            _ => Ok(Slots::Anew(Some(self.regions.take(order_for(count), now).ok_or(full)?))),
        }
    }

    /// Creates backends, or gives draining ones and those of the other list their new standing. Returns the backends of
    /// all endpoints.
    fn enliven(
        &mut self,
        port: &mut Port,
        reserved: &Reserved,
        steps: (&EntryStep<'_>, Option<&EntryStep<'_>>),
        writes: &mut Vec<Write>,
    ) -> HashMap<Endpoint, BackendRef> {
        let (family, main) = (port.record.family, port.main);
        let mut references = HashMap::new();
        let rewritten = steps.0.slots.are_anew() || steps.1.is_some() || port.second.is_some();
        if rewritten {
            references = port.references();
        }
        let listed: HashSet<&Endpoint> = match steps.1 {
            Some(_) => steps.0.wanted.iter().collect(),
            None => HashSet::new(),
        };
        let standing = |reference: BackendRef, end: &Endpoint| {
            let is_listed = steps.1.is_none() || listed.contains(end);
            Standing::new(reference.generation(), main, is_listed, end.local)
        };
        for end in steps.0.change.added.iter().chain(steps.1.iter().flat_map(|step| &step.change.added)) {
            if let Some(reference) = references.get(end).copied() {
                let (index, standing) = (reference.index(), standing(reference, end));
                writes.push(Write::Standing { family, index, standing });
            } else if let Some(reference) = reserved.backends.get(end).copied() {
                references.insert(*end, reference);
                writes.push(backend(family, end.address, reference, standing(reference, end)));
            } else if let Some(at) = port.record.draining.iter().position(|held| held.address == end.address) {
                let reference = port.record.draining.swap_remove(at).reference;
                references.insert(*end, reference);
                let (index, standing) = (reference.index(), standing(reference, end));
                writes.push(Write::Standing { family, index, standing });
            }
        }
        references
    }

    /// Publishes what joins an entry; returns the endpoints that a switch of regions removed.
    fn show(
        &mut self,
        (service, record): (u32, &mut Record),
        step: &EntryStep<'_>,
        scope: Scope,
        references: &HashMap<Endpoint, BackendRef>,
        writes: &mut Vec<Write>,
        now: Moment,
    ) -> Vec<Placed> {
        let with_backend = |end: &Endpoint| Some((*end, references.get(end).copied()?));
        let Slots::Anew(region) = step.slots else {
            for (end, reference) in step.change.added.iter().filter_map(with_backend) {
                record.insert(service, end, reference, writes);
            }
            return Vec::new();
        };
        let mut endpoints: Vec<(Endpoint, BackendRef)> = step.wanted.iter().filter_map(with_backend).collect();
        if scope == Scope::Repointed {
            let leaving =
                step.change.removed.iter().map(|(address, local)| Endpoint { address: *address, local: *local });
            endpoints.extend(leaving.filter_map(|end| with_backend(&end)));
        }
        let (former, left) = record.switch(service, region, &endpoints, writes);
        former.into_iter().for_each(|former| self.regions.retire(former, now));
        let stays: HashSet<BackendRef> = record.placed.iter().map(|placed| placed.reference).collect();
        left.into_iter().filter(|placed| !stays.contains(&placed.reference)).collect()
    }

    /// Ranges, terms, then the frontends: each write is in force when the next one needs it.
    fn settle(
        &mut self,
        port: &mut Port,
        target: &Target<'_>,
        gone: Option<&(u32, Record)>,
        fresh_ranges: Option<u32>,
        now: Moment,
        writes: &mut Vec<Write>,
    ) {
        let former = (port.record.ranges, std::mem::take(&mut port.record.prefixes));
        let (word, prefixes) = match (target.ranges, fresh_ranges) {
            (Some(sources), Some(id)) => {
                writes.extend(sources.prefixes.iter().map(|prefix| Write::Range { id, prefix: *prefix }));
                (RangesWord::new(id, sources.node), sources.prefixes.to_vec())
            }
            (Some(sources), None) => (RangesWord::new(former.0.id(), sources.node), former.1.clone()),
            (None, _) => (former.0, former.1.clone()),
        };
        let terms = terms(port.main, target);
        let entries = std::iter::once((port.main, &mut port.record));
        for (service, record) in entries.chain(port.second.as_mut().map(|(service, record)| (*service, record))) {
            record.set(service, terms, word, writes);
        }
        self.point(port, gone, &target.frontends, writes);
        if target.ranges.is_none() {
            let entries = std::iter::once((port.main, &mut port.record));
            for (service, record) in entries.chain(port.second.as_mut().map(|(service, record)| (*service, record))) {
                record.set(service, terms, RangesWord::default(), writes);
            }
        } else {
            port.record.prefixes = prefixes;
        }
        if former.0.id() != port.record.ranges.id() {
            writes.extend(self.ranges.retire(former.0.id(), &former.1, now));
        }
    }

    /// Makes the frontends in `wanted`, and no others, lead to the entries of `port`.
    fn point(
        &mut self,
        port: &mut Port,
        gone: Option<&(u32, Record)>,
        wanted: &[(FrontendKey, Access)],
        writes: &mut Vec<Write>,
    ) {
        let mut former = std::mem::take(&mut port.record.frontends);
        former.extend(port.second.iter_mut().flat_map(|(_, record)| std::mem::take(&mut record.frontends)));
        former.extend(gone.iter().flat_map(|(_, record)| &record.frontends));
        for (key, access) in wanted {
            let lead = port.lead(*access);
            match &mut port.second {
                Some((second, record)) if lead.service == *second => record.frontends.push(*key),
                Some(_) | None => port.record.frontends.push(*key),
            }
            let before = self.frontends.insert(*key, lead);
            if before == Some(lead) {
                continue;
            }
            if let Some(loser) = before.and_then(|before| self.records.get_mut(&before.service)) {
                loser.frontends.retain(|held| held != key);
            }
            writes.push(Write::Frontend { key: *key, lead });
        }
        for key in former.into_iter().filter(|key| !wanted.iter().any(|(kept, _)| kept == key)) {
            self.frontends.remove(&key);
            writes.push(Write::FrontendGone { key });
        }
    }

    /// Removes from an entry what leaves it.
    fn hide(
        &mut self,
        (service, record): (u32, &mut Record),
        step: &EntryStep<'_>,
        scope: Scope,
        writes: &mut Vec<Write>,
        now: Moment,
    ) -> Vec<Placed> {
        if step.wanted.is_empty() && !record.placed.is_empty() {
            let (former, left) = record.switch(service, None, &[], writes);
            former.into_iter().for_each(|former| self.regions.retire(former, now));
            return left;
        }
        // A switch of regions has already removed what leaves.
        let removed = step.change.removed.iter().filter(|_| !step.slots.are_anew() || scope == Scope::Repointed);
        removed.filter_map(|(address, local)| record.take_out(service, *address, *local, writes)).collect()
    }

    /// Ends the backends that left every list, but for those that drain.
    fn dismiss(
        &mut self,
        port: &mut Port,
        draining: &[SocketAddr],
        left: Vec<Placed>,
        now: Moment,
        writes: &mut Vec<Write>,
    ) {
        let family = port.record.family;
        let mut done = HashSet::new();
        for placed in left {
            if !done.insert(placed.reference) {
                continue;
            }
            let stays = |record: &Record| record.holds(placed.reference);
            if stays(&port.record) || port.second.as_ref().is_some_and(|(_, record)| stays(record)) {
                continue;
            }
            if draining.contains(&placed.address) {
                port.record.draining.push(placed);
            } else {
                writes.push(self.backends.retire(family, placed.reference, now));
            }
        }
        let (stay, gone) = std::mem::take(&mut port.record.draining)
            .into_iter()
            .partition(|held: &Placed| draining.contains(&held.address));
        port.record.draining = stay;
        writes.extend(gone.into_iter().map(|held| self.backends.retire(family, held.reference, now)));
    }
}

/// Writes the new standing of backends that leave a list, before their slots are removed. After a crash a daemon knows
/// a draining backend by its standing alone; a backend without a slot and with another standing was never published.
fn lower(
    port: &Port,
    draining: &[SocketAddr],
    steps: (&EntryStep<'_>, Option<&EntryStep<'_>>),
    writes: &mut Vec<Write>,
) {
    let second = port.second.as_ref().map(|(_, record)| record);
    if draining.is_empty() && second.is_none() && steps.1.is_none() {
        return;
    }
    let in_second = |end: &Endpoint| steps.1.is_some_and(|step| step.wanted.contains(end));
    let in_main = |end: &Endpoint| steps.0.wanted.contains(end);
    let drains = |end: &Endpoint| draining.contains(&end.address);
    let mut lower = |end: &Endpoint, reference: BackendRef| {
        let standing = Standing::new(reference.generation(), port.main, false, in_second(end));
        writes.push(Write::Standing { family: port.record.family, index: reference.index(), standing });
    };
    for (end, reference) in port.record.endpoints().filter(|(end, _)| !in_main(end)) {
        if in_second(&end) || drains(&end) {
            lower(&end, reference);
        }
    }
    for (end, reference) in second.into_iter().flat_map(Record::endpoints) {
        if drains(&end) && !in_main(&end) && !in_second(&end) && !port.record.holds(reference) {
            lower(&end, reference);
        }
    }
}

fn all(wanted: &[Endpoint]) -> Change {
    Change { added: wanted.to_vec(), removed: Vec::new() }
}

/// The endpoints that no list of the port holds yet, nor its draining ones.
fn new_endpoints(port: &Port, main: &EntryStep<'_>, second: Option<&EntryStep<'_>>) -> Vec<Endpoint> {
    let held = if second.is_some() || port.second.is_some() { port.references() } else { HashMap::new() };
    let added = main.change.added.iter().chain(second.into_iter().flat_map(|step| &step.change.added));
    let mut seen = HashSet::new();
    let new = added.filter(|end| !held.contains_key(end)).filter(|end| second.is_none() || seen.insert(**end));
    let drains = |end: &&Endpoint| port.record.draining.iter().any(|held| held.address == end.address);
    new.filter(|end| !drains(end)).copied().collect()
}
