//! What programs can see while writes are applied one by one.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use proptest::prelude::*;
use proxy_abi::{Backend4, Backend6, Directory, Extent, FrontendValue, Slot};
use shunt_model::{ObjectKey, Protocol};

use super::pool::GRACE;
use super::write::backend_parts;
use super::*;

const SMALL: Capacity = Capacity { frontends: 8, services: 8, slots: 64, backends: 64 };

/// The tables, as memory.
#[derive(Clone, Default)]
struct Tables {
    frontends: HashMap<FrontendKey, FrontendValue>,
    directory: HashMap<u32, Directory>,
    slots: HashMap<u32, u64>,
    backends: HashMap<(Family, u32), [u64; 4]>,
}

impl Tables {
    fn apply(&mut self, write: &Write) {
        match *write {
            Write::Backend { family, index, words } => drop(self.backends.insert((family, index), words)),
            Write::BackendGone { family, index } => {
                let words = self.backends.get_mut(&(family, index)).expect("a backend dies once, after it lived");
                let life = if family == Family::V4 { 0 } else { Backend6::LIFE };
                words[life] = 0;
            }
            Write::Slot { index, slot } => drop(self.slots.insert(index, slot.0)),
            Write::Extent { service, extent } => self.directory.entry(service).or_default()[0] = extent.0,
            Write::Shape { service, shape } => self.directory.entry(service).or_default()[1] = shape.0,
            Write::Frontend { key, service } => drop(self.frontends.insert(key, key.value(service))),
            Write::FrontendGone { key } => drop(self.frontends.remove(&key)),
        }
    }

    fn dump(&self) -> Dump {
        let of = |wanted| {
            self.backends
                .iter()
                .filter(|((family, _), _)| *family == wanted)
                .map(|((_, at), words)| (*at, *words))
                .collect()
        };
        Dump {
            frontends: self.frontends.iter().map(|(key, value)| (*key, *value)).collect(),
            directory: self.directory.iter().map(|(service, entry)| (*service, *entry)).collect(),
            slots: self.slots.clone(),
            backends4: of(Family::V4),
            backends6: of(Family::V6),
        }
    }

    fn alive(&self, family: Family, slot: Slot) -> Option<SocketAddr> {
        let words = self.backends.get(&(family, slot.backend().index()))?;
        let (address, generation, _) = backend_parts(family, *words);
        (generation != 0 && generation == slot.backend().generation()).then_some(address)
    }

    /// What a program can reach through `extent`: every visible slot, `None` where it finds a dead backend.
    fn through(&self, family: Family, extent: Extent) -> Vec<(Option<SocketAddr>, bool)> {
        let slot = |at| Slot(self.slots[&(extent.base() + at)]);
        (0..extent.all()).map(|at| (self.alive(family, slot(at)), slot(at).local())).collect()
    }

    fn extent(&self, key: &FrontendKey) -> Option<Extent> {
        let service = self.frontends.get(key)?.service();
        Some(Extent(self.directory.get(&service)?[0]))
    }

    /// The endpoints behind a frontend; panics at a dead or misplaced one.
    fn visible(&self, key: &FrontendKey) -> Option<BTreeSet<SocketAddr>> {
        let extent = self.extent(key)?;
        let found = self.through(key.family(), extent);
        for (at, (address, local)) in found.iter().enumerate() {
            assert!(address.is_some(), "slot {at} of {key:?} leads to a dead backend");
            assert!(*local || at >= extent.local() as usize, "slot {at} of {key:?} is not local");
        }
        Some(found.into_iter().filter_map(|(address, _)| address).collect())
    }
}

fn owner(number: u8, family: Family) -> PortKey {
    PortKey {
        service: ObjectKey::new("shop", format!("s{number}")),
        port: Arc::from("http"),
        protocol: Protocol::Tcp,
        family,
    }
}

fn frontend(number: u8, family: Family) -> FrontendKey {
    let address: std::net::IpAddr = match family {
        Family::V4 => format!("10.96.0.{number}").parse().unwrap(),
        Family::V6 => format!("fd00::{number}").parse().unwrap(),
    };
    FrontendKey::new(address, 80.try_into().unwrap(), Protocol::Tcp)
}

fn endpoint(number: u8, local: bool, family: Family) -> Endpoint {
    let address = match family {
        Family::V4 => format!("10.244.0.{number}:8080").parse().unwrap(),
        Family::V6 => format!("[fd00:244::{number}]:8080").parse().unwrap(),
    };
    Endpoint { address, local }
}

/// One step of a story: service `number` gets these endpoints and frontends, or goes.
#[derive(Clone, Debug)]
struct Step {
    number: u8,
    ends: Option<Vec<(u8, bool)>>,
    fronts: BTreeSet<u8>,
    wait: Moment,
}

fn step() -> impl Strategy<Value = Step> {
    let ends = proptest::collection::btree_map(0..24_u8, any::<bool>(), 0..12);
    let ends = prop_oneof![5 => ends.prop_map(|ends| Some(ends.into_iter().collect())), 1 => Just(None)];
    let fronts = proptest::collection::btree_set(0..3_u8, 1..3);
    let wait = prop_oneof![Just(0), Just(GRACE)];
    (0..4_u8, ends, fronts, wait).prop_map(|(number, ends, fronts, wait)| Step { number, ends, fronts, wait })
}

/// The plan gives each frontend to one service only; here by number.
fn fronts(step: &Step, family: Family) -> Vec<FrontendKey> {
    step.fronts.iter().map(|front| frontend(step.number * 4 + front, family)).collect()
}

fn run(steps: &[Step], family: Family) {
    let (mut layout, mut tables, mut now) = (Layout::new(SMALL), Tables::default(), 0);
    let mut truth: HashMap<u8, BTreeSet<SocketAddr>> = HashMap::new();
    for step in steps {
        now += step.wait;
        let owner = owner(step.number, family);
        let ends: Vec<Endpoint> =
            step.ends.iter().flatten().map(|(number, local)| endpoint(*number, *local, family)).collect();
        let new: BTreeSet<SocketAddr> = ends.iter().map(|end| end.address).collect();
        let old = truth.get(&step.number).cloned().unwrap_or_default();
        let target = Target { frontends: fronts(step, family), endpoints: &ends };
        let writes = match step.ends {
            Some(_) => match layout.upsert(&owner, &target, now) {
                Ok(writes) => writes,
                Err(Full { .. }) => {
                    check_all(&tables, &truth, family);
                    continue;
                }
            },
            None => layout.remove(&owner, now),
        };
        apply_each(&mut tables, &writes, step, family, (&old, &new));
        match step.ends {
            Some(_) => drop(truth.insert(step.number, new.clone())),
            None => drop(truth.remove(&step.number)),
        }
        check_all(&tables, &truth, family);
        if step.ends.is_some() {
            for key in &target.frontends {
                assert_eq!(tables.visible(key).as_ref(), Some(&new), "{key:?}");
                let local = ends.iter().filter(|end| end.local).count();
                assert_eq!(tables.extent(key).unwrap().local() as usize, local);
            }
            assert_eq!(layout.upsert(&owner, &target, now), Ok(Vec::new()), "a second time writes nothing");
        }
        restart(&tables, &layout, &owner, step.ends.is_some().then_some(&target), now);
    }
}

fn check_all(tables: &Tables, truth: &HashMap<u8, BTreeSet<SocketAddr>>, family: Family) {
    for (number, ends) in truth {
        for key in (0..3).map(|front| frontend(number * 4 + front, family)) {
            assert!(tables.visible(&key).is_none_or(|visible| visible == *ends), "{key:?} of another service changed");
        }
    }
}

/// Every prefix is safe, also for a reader that still holds an extent read earlier in this change.
fn apply_each(
    tables: &mut Tables,
    writes: &[Write],
    step: &Step,
    family: Family,
    ends: (&BTreeSet<SocketAddr>, &BTreeSet<SocketAddr>),
) {
    let (old, new) = ends;
    let keys: Vec<FrontendKey> = (0..3).map(|front| frontend(step.number * 4 + front, family)).collect();
    let either: BTreeSet<SocketAddr> = old.union(new).copied().collect();
    let mut stale: Vec<Extent> = keys.iter().filter_map(|key| tables.extent(key)).collect();
    for write in writes {
        tables.apply(write);
        for key in &keys {
            let Some(visible) = tables.visible(key) else { continue };
            assert!(visible.is_subset(&either), "{key:?} leads to a stranger after {write:?}");
            if !old.is_empty() && !new.is_empty() && step.ends.is_some() {
                assert!(!visible.is_empty(), "{key:?} is empty after {write:?}");
            }
            stale.extend(tables.extent(key));
        }
        for extent in &stale {
            let strangers = tables.through(family, *extent).into_iter().filter_map(|(address, _)| address);
            assert!(strangers.into_iter().all(|address| either.contains(&address)), "a slow reader meets a stranger");
        }
    }
}

/// A new daemon that reads the tables back finds everything in place and writes nothing.
fn restart(tables: &Tables, layout: &Layout, owner: &PortKey, target: Option<&Target<'_>>, now: Moment) {
    let mut restored = Layout::restored(SMALL, &tables.dump());
    assert_eq!(restored.usage(), layout.usage());
    if let Some(target) = target {
        assert_eq!(restored.upsert(owner, target, now), Ok(Vec::new()), "adopted as it is");
    }
    let mut emptied = tables.clone();
    for write in restored.remove_unclaimed(now) {
        emptied.apply(&write);
    }
    let kept = target.map_or(0, |target| target.frontends.len());
    assert_eq!(emptied.frontends.len(), kept, "unclaimed frontends go");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_prefix_of_every_change_is_safe(steps in proptest::collection::vec(step(), 1..40), six in any::<bool>()) {
        run(&steps, if six { Family::V6 } else { Family::V4 });
    }

    /// A crash in the middle of a change: whatever was written, the next daemon ends in the wanted state.
    #[test]
    fn a_torn_change_is_repaired(first in step(), second in step(), cut in 0..60_usize) {
        let (mut layout, mut tables) = (Layout::new(SMALL), Tables::default());
        let family = Family::V4;
        let mut wanted = Vec::new();
        for (step, cut) in [(&first, usize::MAX), (&Step { number: first.number, ..second }, cut)] {
            wanted = step.ends.iter().flatten().map(|(number, local)| endpoint(*number, *local, family)).collect();
            let target = Target { frontends: fronts(step, family), endpoints: &wanted };
            for write in layout.upsert(&owner(step.number, family), &target, 0).unwrap().iter().take(cut) {
                tables.apply(write);
            }
        }
        let mut restored = Layout::restored(SMALL, &tables.dump());
        let key = frontend(first.number * 4, family);
        let target = Target { frontends: vec![key], endpoints: &wanted };
        for write in restored.upsert(&owner(first.number, family), &target, GRACE).unwrap() {
            tables.apply(&write);
        }
        for write in restored.remove_unclaimed(GRACE) {
            tables.apply(&write);
        }
        prop_assert_eq!(tables.visible(&key), Some(wanted.iter().map(|end| end.address).collect()));
        prop_assert_eq!(tables.frontends.len(), 1);
        let alive = tables.backends.values().filter(|words| Backend4::generation(words[0]) != 0).count();
        prop_assert_eq!(alive, wanted.len(), "no backend is left alive without a service");
    }
}

#[track_caller]
fn check_cost(before: &[(u8, bool)], after: &[(u8, bool)], most: usize) {
    let family = Family::V4;
    let ends = |list: &[(u8, bool)]| -> Vec<Endpoint> {
        list.iter().map(|(number, local)| endpoint(*number, *local, family)).collect()
    };
    let mut layout = Layout::new(SMALL);
    let frontends = vec![frontend(1, family), frontend(2, family)];
    let (before, after) = (ends(before), ends(after));
    layout.upsert(&owner(0, family), &Target { frontends: frontends.clone(), endpoints: &before }, 0).unwrap();
    let writes = layout.upsert(&owner(0, family), &Target { frontends, endpoints: &after }, 0).unwrap();
    assert!(writes.len() <= most, "{} writes: {writes:?}", writes.len());
}

#[test]
fn one_endpoint_costs_at_most_six_writes() {
    let five = [(1, true), (2, true), (3, false), (4, false), (5, false)];
    check_cost(&five, &[&five[..], &[(6, false)]].concat(), 3);
    check_cost(&five, &[&five[..], &[(6, true)]].concat(), 4);
    check_cost(&five, &five[..4], 3);
    check_cost(&five, &[five[0], five[1], five[3], five[4]], 3);
    check_cost(&five, &five[1..], 5);
    check_cost(&five, &[five[0], five[2], five[3], five[4]], 5);
}

#[test]
fn a_full_table_changes_nothing() {
    let family = Family::V4;
    let mut layout = Layout::new(Capacity { backends: 2, ..SMALL });
    let ends: Vec<Endpoint> = (1..=3).map(|number| endpoint(number, false, family)).collect();
    let target = |count: usize, front| Target { frontends: vec![frontend(front, family)], endpoints: &ends[..count] };
    layout.upsert(&owner(0, family), &target(2, 1), 0).unwrap();
    let full = Err(Full { table: "backend", capacity: 2 });
    assert_eq!(layout.upsert(&owner(1, family), &target(1, 2), 0), full);
    assert_eq!(layout.upsert(&owner(0, family), &target(3, 1), 0), full);
    assert_eq!(layout.upsert(&owner(0, family), &target(2, 1), 0), Ok(Vec::new()), "the other is as it was");
    let moved = Target { frontends: vec![frontend(1, family)], endpoints: &ends[1..3] };
    assert_eq!(layout.upsert(&owner(0, family), &moved, 0), full);
    let writes = layout.shrink(&owner(0, family), &ends[1..3], 0);
    assert!(matches!(writes.last(), Some(Write::BackendGone { .. })), "the endpoint that left is out: {writes:?}");
    assert_eq!(layout.upsert(&owner(1, family), &target(1, 2), 0), full, "a freed element rests");
    assert!(layout.upsert(&owner(1, family), &target(1, 2), GRACE).is_ok());
}
