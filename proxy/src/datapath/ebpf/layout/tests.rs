//! What programs can see while writes are applied one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use proptest::prelude::*;
use proxy_abi::{BackendRef, Slot, SourceNat, Standing};
use shunt_model::{ObjectKey, Protocol};

use super::pool::GRACE;
use super::rebuild::image;
use super::*;
use crate::datapath::ebpf::tables::memory::Memory;

const SMALL: Capacity = Capacity { frontends: 8, services: 8, slots: 64, backends: 64, ranges: 8 };

/// What each frontend leads to.
type View = BTreeMap<FrontendKey, BTreeSet<SocketAddr>>;

/// The endpoints behind a frontend, through an entry read now or earlier; panics at a dead or misplaced one.
fn through(memory: &Memory, family: Family, extent: Extent, local: bool) -> Vec<(Option<SocketAddr>, bool)> {
    let slot = |at| Slot(memory.slots[&(extent.base() + at)]);
    let found = |at| (memory.alive(family, slot(at)).map(|life| life.address), slot(at).local());
    (0..extent.count(local)).map(found).collect()
}

fn visible(memory: &Memory, key: &FrontendKey) -> Option<BTreeSet<SocketAddr>> {
    let lead = memory.lead(key)?;
    let [extent, ..] = memory.entry(lead.service);
    let found = through(memory, key.family(), Extent(extent), lead.local);
    for (at, (address, local)) in found.iter().enumerate() {
        assert!(address.is_some(), "slot {at} of {key:?} leads to a dead backend");
        assert!(*local || !lead.local, "slot {at} of {key:?} is not local");
    }
    Some(found.into_iter().filter_map(|(address, _)| address).collect())
}

fn view(memory: &Memory) -> View {
    memory.frontends.keys().filter_map(|key| Some((*key, visible(memory, key)?))).collect()
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
struct StoryStep {
    number: u8,
    /// Endpoint, on this node, and in which of the lists: cluster, local or both.
    ends: Option<BTreeMap<u8, (bool, InLists)>>,
    fronts: BTreeMap<u8, Access>,
    draining: BTreeSet<u8>,
    affinity: u32,
    ranges: Option<BTreeSet<u8>>,
    wait: Moment,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InLists {
    Usual,
    OnlyLocal,
}

fn step() -> impl Strategy<Value = StoryStep> {
    let place = prop_oneof![4 => Just(InLists::Usual), 1 => Just(InLists::OnlyLocal)];
    let ends = proptest::collection::btree_map(0..24_u8, (any::<bool>(), place), 0..12);
    let ends = prop_oneof![5 => ends.prop_map(Some), 1 => Just(None)];
    let access = any::<[bool; 4]>().prop_map(|[local, filtered, pods, outside]| Access {
        list: if local { List::Local } else { List::Cluster },
        filtered,
        falls_back: false,
        source_nat: SourceNat::new(pods, outside),
    });
    let fronts = proptest::collection::btree_map(0..3_u8, access, 1..3);
    let draining = proptest::collection::btree_set(0..24_u8, 0..4);
    let ranges = proptest::option::of(proptest::collection::btree_set(0..4_u8, 0..3));
    let wait = prop_oneof![Just(0), Just(GRACE)];
    (0..4_u8, ends, fronts, draining, 0..2_u32, ranges, wait).prop_map(
        |(number, ends, fronts, draining, affinity, ranges, wait)| StoryStep {
            number,
            ends,
            fronts,
            draining,
            affinity,
            ranges,
            wait,
        },
    )
}

/// The parts of a target, which borrows from them.
struct Wanted {
    frontends: Vec<(FrontendKey, Access)>,
    cluster: Vec<Endpoint>,
    local: Vec<Endpoint>,
    draining: Vec<SocketAddr>,
    affinity: u32,
    prefixes: Option<Vec<IpNet>>,
}

impl Wanted {
    fn of(step: &StoryStep, family: Family) -> Self {
        // The frontends of one service fall back, as those of the node's own DNS always do; its lists are the usual
        // ones.
        let falls_back = step.number == 3;
        let place = |place: InLists| if falls_back { InLists::Usual } else { place };
        let ends = step.ends.iter().flatten().map(|(number, (local, given))| (*number, (*local, place(*given))));
        let ends: Vec<(u8, (bool, InLists))> = ends.collect();
        let ends = || ends.iter();
        let is_local = |local: bool, place: InLists| local || place == InLists::OnlyLocal;
        let mut cluster: Vec<Endpoint> = ends()
            .filter(|(_, (_, place))| *place == InLists::Usual)
            .map(|(number, (local, _))| endpoint(*number, *local, family))
            .collect();
        let mut local: Vec<Endpoint> = ends()
            .filter(|(_, (local, place))| is_local(*local, *place))
            .map(|(number, _)| endpoint(*number, true, family))
            .collect();
        cluster.sort_unstable();
        local.sort_unstable();
        let used = ends().map(|(number, _)| *number).collect::<BTreeSet<_>>();
        let prefix = |number: &u8| format!("10.{number}.0.0/16").parse().unwrap();
        Self {
            frontends: step
                .fronts
                .iter()
                .map(|(front, access)| {
                    let filtered = access.filtered && step.ranges.is_some();
                    let list = if falls_back { List::Local } else { access.list };
                    let access = Access { list, filtered, falls_back, source_nat: access.source_nat };
                    (frontend(step.number * 4 + front, family), access)
                })
                .collect(),
            cluster,
            local,
            draining: step.draining.difference(&used).map(|number| endpoint(*number, true, family).address).collect(),
            affinity: step.affinity,
            prefixes: step.ranges.as_ref().map(|ranges| ranges.iter().map(prefix).collect()),
        }
    }

    fn target(&self) -> Target<'_> {
        Target {
            frontends: self.frontends.clone(),
            cluster: &self.cluster,
            local: &self.local,
            draining: self.draining.clone(),
            affinity: self.affinity,
            keeps_destination: false,
            silent: false,
            ranges: self.prefixes.as_ref().map(|prefixes| Sources { prefixes, node: true }),
        }
    }

    fn view(&self) -> View {
        let list = |access: &Access| match access.list {
            List::Cluster => &self.cluster,
            List::Local => &self.local,
        };
        let addresses = |access: &Access| list(access).iter().map(|end| end.address).collect();
        self.frontends.iter().map(|(key, access)| (*key, addresses(access))).collect()
    }

    fn uses(&self, list: List) -> bool {
        self.frontends.iter().any(|(_, access)| access.list == list)
    }
}

fn of_service(number: u8, family: Family) -> Vec<FrontendKey> {
    (0..3).map(|front| frontend(number * 4 + front, family)).collect()
}

fn run(steps: &[StoryStep], family: Family) {
    let (mut layout, mut memory, mut now) = (Layout::new(SMALL), Memory::default(), 0);
    for step in steps {
        now += step.wait;
        let (owner, wanted) = (owner(step.number, family), Wanted::of(step, family));
        let before = view(&memory);
        let writes = match step.ends {
            Some(_) => match layout.upsert(&owner, &wanted.target(), now) {
                Ok(writes) => writes,
                Err(Full { .. }) => {
                    assert_eq!(view(&memory), before);
                    let writes = layout.shrink(&owner, &wanted.target(), now);
                    writes.iter().for_each(|write| memory.apply(write));
                    view(&memory);
                    continue;
                }
            },
            None => layout.remove(&owner, now),
        };
        let after = if step.ends.is_some() { wanted.view() } else { View::new() };
        apply_each(&mut memory, &writes, step.number, family, (&before, &after));
        let now_seen = view(&memory);
        for key in of_service(step.number, family) {
            assert_eq!(now_seen.get(&key), after.get(&key), "{key:?}");
        }
        if step.ends.is_some() {
            assert_eq!(layout.upsert(&owner, &wanted.target(), now), Ok(Vec::new()), "a second time writes nothing");
            standings(&memory, &wanted, family);
        }
        audited(&memory, &layout);
        restart(&memory, &layout, &owner, step.ends.is_some().then_some(&wanted), now);
    }
}

/// Every prefix is safe, also for a reader that still holds an extent read earlier in this change.
fn apply_each(memory: &mut Memory, writes: &[Write], number: u8, family: Family, (before, after): (&View, &View)) {
    let changes = |write: &Write| {
        let Write::Frontend { key, lead } = *write else { return None };
        memory.lead(&key).is_some_and(|old| old.local != lead.local).then_some(key)
    };
    let changed: BTreeSet<FrontendKey> = writes.iter().filter_map(changes).collect();
    let keys = of_service(number, family);
    let none = BTreeSet::new();
    let ends = |view: &View, key| view.get(key).unwrap_or(&none).clone();
    let all: BTreeSet<SocketAddr> = keys.iter().flat_map(|key| &ends(before, key) | &ends(after, key)).collect();
    let extents = |memory: &Memory| -> Vec<(Extent, bool)> {
        let leads = keys.iter().filter_map(|key| memory.lead(key));
        leads.map(|lead| (Extent(memory.entry(lead.service)[0]), lead.local)).collect()
    };
    let mut stale = extents(memory);
    for write in writes {
        memory.apply(write);
        for key in &keys {
            let Some(seen) = visible(memory, key) else { continue };
            let (old, new) = (ends(before, key), ends(after, key));
            // One that joins, goes or changes its policy may show whatever its service port was and becomes.
            let stays = before.contains_key(key) && after.contains_key(key) && !changed.contains(key);
            let allowed = if stays { &old | &new } else { all.clone() };
            assert!(
                seen.is_subset(&allowed),
                "{key:?} leads to a stranger after {write:?}: {seen:?} not in {allowed:?}"
            );
            if !old.is_empty() && !new.is_empty() {
                assert!(!seen.is_empty(), "{key:?} is empty after {write:?}");
            }
        }
        let others = view(memory);
        for (key, seen) in before.iter().filter(|(key, _)| !keys.contains(key)) {
            assert_eq!(others.get(key), Some(seen), "{key:?} of another service changed");
        }
        stale.extend(extents(memory));
        for (extent, local) in &stale {
            // The lookup skips slots that are not local where only local ones were.
            let met = through(memory, family, *extent, *local).into_iter().filter(|(_, is_local)| *is_local || !local);
            let met = met.filter_map(|(address, _)| address);
            assert!(met.into_iter().all(|address| all.contains(&address)), "a slow reader meets a stranger");
        }
    }
}

/// An affinity record is followed exactly to endpoints of the list in use (SA-5).
fn standings(memory: &Memory, wanted: &Wanted, family: Family) {
    for (list, ends, local) in [(List::Cluster, &wanted.cluster, false), (List::Local, &wanted.local, true)] {
        if !wanted.uses(list) || wanted.frontends.is_empty() {
            continue;
        }
        let lead = memory.lead(&wanted.frontends.iter().find(|(_, access)| access.list == list).unwrap().0).unwrap();
        let port = Terms(memory.entry(lead.service)[2]).port();
        let may: BTreeSet<SocketAddr> = memory
            .backends
            .iter()
            .filter(|((of, _), _)| *of == family)
            .map(|(_, words)| write::backend_parts(family, *words))
            .filter(|life| life.generation != 0 && life.standing.port() == port && life.standing.may_serve(local))
            .map(|life| life.address)
            .collect();
        let expected: BTreeSet<SocketAddr> = ends.iter().map(|end| end.address).collect();
        assert_eq!(may, expected, "{list:?}");
    }
}

/// The layout's record is what the tables hold.
fn audited(memory: &Memory, layout: &Layout) {
    let mut repaired = memory.clone();
    for service in layout.services() {
        layout.image(service).iter().for_each(|write| repaired.apply(write));
    }
    assert_eq!(format!("{:?}", sorted(&repaired)), format!("{:?}", sorted(memory)));
}

fn sorted(memory: &Memory) -> impl std::fmt::Debug {
    let dump = memory.dump();
    let (mut frontends, mut directory) = (dump.frontends, dump.directory);
    let mut backends = [dump.backends4, dump.backends6].concat();
    frontends.sort_unstable_by_key(|(key, _)| *key);
    directory.sort_unstable();
    backends.sort_unstable();
    let slots: BTreeMap<u32, u64> = dump.slots.into_iter().collect();
    (frontends, directory, backends, slots, dump.ranges)
}

/// A new daemon that reads the tables back finds everything in place and writes nothing.
fn restart(memory: &Memory, layout: &Layout, owner: &PortKey, wanted: Option<&Wanted>, now: Moment) {
    let mut restored = Layout::restored(SMALL, &memory.dump());
    assert_eq!(restored.usage(), layout.usage());
    if let Some(wanted) = wanted {
        assert_eq!(restored.upsert(owner, &wanted.target(), now), Ok(Vec::new()), "adopted as it is");
    }
    let mut emptied = memory.clone();
    for write in restored.remove_unclaimed(now) {
        emptied.apply(&write);
    }
    assert_eq!(view(&emptied), wanted.map(Wanted::view).unwrap_or_default(), "unclaimed frontends go");
    if wanted.is_none() {
        assert!(emptied.ranges.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_prefix_of_every_change_is_safe(steps in proptest::collection::vec(step(), 1..40), six in any::<bool>()) {
        run(&steps, if six { Family::V6 } else { Family::V4 });
    }

    /// A crash in the middle of a change: whatever was written, the next daemon ends in the wanted state.
    #[test]
    fn a_torn_change_is_repaired(first in step(), second in step(), cut in 0..80_usize) {
        let (mut layout, mut memory) = (Layout::new(SMALL), Memory::default());
        let family = Family::V4;
        let second = StoryStep { number: first.number, ..second };
        for (step, cut) in [(&first, usize::MAX), (&second, cut)] {
            let wanted = Wanted::of(step, family);
            for write in layout.upsert(&owner(step.number, family), &wanted.target(), 0).unwrap().iter().take(cut) {
                memory.apply(write);
            }
        }
        let mut restored = Layout::restored(SMALL, &memory.dump());
        let wanted = Wanted::of(&second, family);
        for write in restored.upsert(&owner(first.number, family), &wanted.target(), GRACE).unwrap() {
            memory.apply(&write);
        }
        for write in restored.remove_unclaimed(GRACE) {
            memory.apply(&write);
        }
        prop_assert_eq!(view(&memory), wanted.view());
        let prefixes = wanted.prefixes.as_ref().map_or(0, Vec::len);
        prop_assert_eq!(memory.ranges.len(), prefixes, "no prefix is left without a service");
        let fresh = |words: &&[u64; 4]| {
            let life = write::backend_parts(family, **words);
            life.generation != 0 && life.standing != Standing::new(life.generation, life.standing.port(), false, false)
        };
        let ends: BTreeSet<_> = wanted.view_addresses();
        prop_assert_eq!(memory.backends.values().filter(fresh).count(), ends.len(), "no backend is left without a service");
    }
}

impl Wanted {
    fn view_addresses(&self) -> BTreeSet<SocketAddr> {
        let lists = [(List::Cluster, &self.cluster), (List::Local, &self.local)];
        let falls_back = self.frontends.iter().any(|(_, access)| access.falls_back);
        let used = lists.into_iter().filter(|(list, _)| falls_back || self.uses(*list));
        used.flat_map(|(_, list)| list.iter().map(|end| end.address)).collect()
    }
}

const PLAIN: Access =
    Access { list: List::Cluster, filtered: false, falls_back: false, source_nat: SourceNat::new(false, false) };

fn ends(list: &[(u8, bool)]) -> Vec<Endpoint> {
    list.iter().map(|(number, local)| endpoint(*number, *local, Family::V4)).collect()
}

#[track_caller]
fn check_cost(before: &[(u8, bool)], after: &[(u8, bool)], most: usize) {
    let family = Family::V4;
    let mut layout = Layout::new(SMALL);
    let frontends = vec![(frontend(1, family), PLAIN), (frontend(2, family), PLAIN)];
    let (before, after) = (ends(before), ends(after));
    let target = |cluster| Target { frontends: frontends.clone(), cluster, ..Target::default() };
    layout.upsert(&owner(0, family), &target(&before), 0).unwrap();
    let writes = layout.upsert(&owner(0, family), &target(&after), 0).unwrap();
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
    let all = ends(&[(1, false), (2, false), (3, false)]);
    let target = |count: usize, front| Target {
        frontends: vec![(frontend(front, family), PLAIN)],
        cluster: &all[..count],
        ..Target::default()
    };
    layout.upsert(&owner(0, family), &target(2, 1), 0).unwrap();
    let full = Err(Full { table: "backend", capacity: 2 });
    assert_eq!(layout.upsert(&owner(1, family), &target(1, 2), 0), full);
    assert_eq!(layout.upsert(&owner(0, family), &target(3, 1), 0), full);
    assert_eq!(layout.upsert(&owner(0, family), &target(2, 1), 0), Ok(Vec::new()), "the other is as it was");
    let moved = Target { cluster: &all[1..3], ..target(2, 1) };
    assert_eq!(layout.upsert(&owner(0, family), &moved, 0), full);
    let writes = layout.shrink(&owner(0, family), &moved, 0);
    assert!(matches!(writes.last(), Some(Write::BackendGone { .. })), "the endpoint that left is out: {writes:?}");
    assert_eq!(layout.upsert(&owner(1, family), &target(1, 2), 0), full, "a freed element rests");
    assert!(layout.upsert(&owner(1, family), &target(1, 2), GRACE).is_ok());
}

#[test]
fn a_full_table_of_ranges_refuses_the_newcomer_only() {
    let family = Family::V4;
    let mut layout = Layout::new(SMALL);
    let prefixes: Vec<IpNet> = (0..9).map(|number| format!("10.{number}.0.0/16").parse().unwrap()).collect();
    let all = ends(&[(1, false)]);
    let target = |count: usize, front| Target {
        frontends: vec![(frontend(front, family), Access { filtered: true, ..PLAIN })],
        cluster: &all,
        ranges: Some(Sources { prefixes: &prefixes[..count], node: false }),
        ..Target::default()
    };
    layout.upsert(&owner(0, family), &target(5, 1), 0).unwrap();
    let full = Err(Full { table: "source range", capacity: 8 });
    assert_eq!(layout.upsert(&owner(1, family), &target(4, 2), 0), full);
    assert!(layout.upsert(&owner(1, family), &target(3, 2), 0).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Another version of the tables takes over what is there: each reference that a socket or a client may hold means
    /// there what it meant here, and no later change gives it to another endpoint.
    #[test]
    fn another_version_keeps_every_id(steps in proptest::collection::vec(step(), 1..30), cut in 0..30_usize, six in any::<bool>()) {
        let family = if six { Family::V6 } else { Family::V4 };
        let (mut layout, mut memory, mut now) = (Layout::new(SMALL), Memory::default(), 0);
        let mut seen: BTreeMap<BackendRef, (SocketAddr, u32)> = BTreeMap::new();
        for (at, step) in steps.iter().enumerate() {
            now += step.wait;
            if at == cut {
                let mut other = Memory::default();
                image(&memory.dump(), SMALL).iter().for_each(|write| other.apply(write));
                prop_assert_eq!(format!("{:?}", sorted(&other)), format!("{:?}", sorted(&memory)));
                for reference in seen.keys() {
                    prop_assert_eq!(other.life(family, *reference), memory.life(family, *reference));
                }
                (layout, memory) = (Layout::restored(SMALL, &other.dump()), other);
            }
            let (owner, wanted) = (owner(step.number, family), Wanted::of(step, family));
            let writes = match step.ends {
                Some(_) => layout
                    .upsert(&owner, &wanted.target(), now)
                    .unwrap_or_else(|Full { .. }| layout.shrink(&owner, &wanted.target(), now)),
                None => layout.remove(&owner, now),
            };
            for write in &writes {
                memory.apply(write);
                let alive = memory.backends.iter().map(|((_, index), words)| (index, write::backend_parts(family, *words)));
                for (index, life) in alive.filter(|(_, life)| life.generation != 0) {
                    let reference = BackendRef::new(*index, life.generation);
                    let meant = (life.address, life.standing.port());
                    let known = *seen.entry(reference).or_insert(meant);
                    prop_assert_eq!(known, meant, "{:?} became another endpoint", reference);
                }
            }
        }
    }
}
