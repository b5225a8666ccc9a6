//! What leads from one plan to the next, or from what is installed to a plan: elements and chains, old and new.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use shunt_model::Family;

use super::Rendering;
use super::chain::SharedChain;
use super::hooks::{MARKER, fixed_chains};
use super::image::{self, Place, PortImage, port_image};
use super::installed::Installed;
use super::leftovers::Leftovers;
use super::script::Unused;
use crate::plan::{Plan, PortKey, PortPlan};

/// A name in the table of a family.
pub(super) type Named = (Family, String);

/// A thing before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step<T> {
    pub(super) old: Option<T>,
    pub(super) new: Option<T>,
    /// The service port for which it is new, if it is one's own.
    pub(super) owner: Option<Arc<PortPlan>>,
}

impl<T> Default for Step<T> {
    fn default() -> Self {
        Self { old: None, new: None, owner: None }
    }
}

/// What must change; what stays as it is, is not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// Elements, with what they lead to.
    pub(super) elements: BTreeMap<Place, Step<String>>,
    /// Chains with their rules. Those that are gone are emptied now and deleted later.
    pub(super) chains: BTreeMap<Named, Step<Vec<String>>>,
    /// Sets of clients, with the seconds for which they remember one.
    pub(super) clients: BTreeMap<Named, Step<u32>>,
    /// Service ports that cannot be programmed.
    pub(super) refused: BTreeMap<PortKey, String>,
}

/// How much differed from what should be installed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) elements: usize,
    /// Chains that are missing, that are too many, or with another number of rules.
    pub(super) chains: usize,
    pub(super) sets: usize,
}

/// How many service ports need what is shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    chains: HashMap<(Family, SharedChain), usize>,
    hairpins: HashMap<IpAddr, usize>,
}

/// What was counted before a change began, for what it touched.
#[derive(Default)]
struct Before {
    chains: HashMap<(Family, SharedChain), usize>,
    hairpins: HashMap<IpAddr, usize>,
}

/// All that the tables hold for a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::datapath) struct Image {
    pub(super) elements: BTreeMap<Place, (String, Option<Arc<PortPlan>>)>,
    pub(super) chains: BTreeMap<Named, (Vec<String>, Option<Arc<PortPlan>>)>,
    pub(super) clients: BTreeMap<Named, u32>,
    /// Service ports that cannot be programmed.
    pub(super) refused: BTreeMap<PortKey, String>,
}

impl Change {
    /// From one plan to another of which `counts` counts the first, and then the second.
    pub(super) fn between(old: &Plan, new: &Plan, counts: &mut Counts, rendering: &Rendering) -> Self {
        let (mut change, mut before) = (Self::default(), Before::default());
        for item in old.ports.diff(&new.ports) {
            let (gone, come) = match item {
                DiffItem::Add(_, port) => (None, Some(port)),
                DiffItem::Update { old: (_, old), new: (_, new) } => (Some(old), Some(new)),
                DiffItem::Remove(_, port) => (Some(port), None),
            };
            // The new one first: what both need is then never counted as gone.
            if let Some(port) = come {
                change.come(port, counts, &mut before, rendering);
            }
            if let Some(port) = gone {
                change.gone(port, counts, &mut before, rendering);
            }
        }
        change.follow_addresses(old, new);
        change.follow_networks(old, new);
        change.settle(counts, before, rendering);
        change
    }

    fn come(&mut self, port: &Arc<PortPlan>, counts: &mut Counts, before: &mut Before, rendering: &Rendering) {
        if !rendering.families.contains(&port.key.family) {
            return;
        }
        let PortImage { elements, shared, own, hairpins } = match port_image(port, rendering) {
            Ok(image) => image,
            Err(reason) => {
                self.refused.insert(port.key.clone(), reason);
                return;
            }
        };
        let family = port.key.family;
        for (place, leads_to) in elements {
            let step = self.elements.entry(place).or_default();
            step.new = Some(leads_to);
            step.owner = Some(Arc::clone(port));
        }
        for chain in shared {
            let count = counts.chains.entry((family, chain)).or_default();
            before.chains.entry((family, chain)).or_insert(*count);
            *count += 1;
        }
        for address in hairpins {
            let count = counts.hairpins.entry(address).or_default();
            before.hairpins.entry(address).or_insert(*count);
            *count += 1;
        }
        for (name, rules) in own.chains {
            let step = self.chains.entry((family, name)).or_default();
            step.new = Some(rules);
            step.owner = Some(Arc::clone(port));
        }
        for name in own.clients {
            self.clients.entry((family, name)).or_default().new = Some(own.timeout);
        }
    }

    fn gone(&mut self, port: &Arc<PortPlan>, counts: &mut Counts, before: &mut Before, rendering: &Rendering) {
        if !rendering.families.contains(&port.key.family) {
            return;
        }
        let Ok(PortImage { elements, shared, own, hairpins }) = port_image(port, rendering) else { return };
        let family = port.key.family;
        for (place, leads_to) in elements {
            self.elements.entry(place).or_default().old = Some(leads_to);
        }
        for chain in shared {
            let count = counts.chains.entry((family, chain)).or_default();
            before.chains.entry((family, chain)).or_insert(*count);
            *count = count.saturating_sub(1);
        }
        for address in hairpins {
            let count = counts.hairpins.entry(address).or_default();
            before.hairpins.entry(address).or_insert(*count);
            *count = count.saturating_sub(1);
        }
        for (name, rules) in own.chains {
            self.chains.entry((family, name)).or_default().old = Some(rules);
        }
        for name in own.clients {
            self.clients.entry((family, name)).or_default().old = Some(own.timeout);
        }
    }

    fn follow_addresses(&mut self, old: &Plan, new: &Plan) {
        for item in old.addresses.diff(&new.addresses) {
            let (gone, come) = match item {
                DiffItem::Add(address, meaning) => (None, Some((address, meaning))),
                DiffItem::Update { old, new } => (Some(old), Some(new)),
                DiffItem::Remove(address, meaning) => (Some((address, meaning)), None),
            };
            self.put_all(
                gone.into_iter().flat_map(|(address, meaning)| image::of_address(*address, *meaning)),
                come.into_iter().flat_map(|(address, meaning)| image::of_address(*address, *meaning)),
            );
        }
    }

    fn follow_networks(&mut self, old: &Plan, new: &Plan) {
        if old.pods != new.pods || old.service_cidrs != new.service_cidrs {
            self.put_all(image::networks(old), image::networks(new));
        }
    }

    /// Elements of sets that go and come.
    fn put_all(&mut self, gone: impl IntoIterator<Item = Place>, come: impl IntoIterator<Item = Place>) {
        for place in gone {
            self.elements.entry(place).or_default().old = Some(String::new());
        }
        for place in come {
            self.elements.entry(place).or_default().new = Some(String::new());
        }
    }

    /// Takes in what the counts say, and leaves out what is as before.
    fn settle(&mut self, counts: &mut Counts, before: Before, rendering: &Rendering) {
        for ((family, chain), former) in before.chains {
            let now = counts.chains.get(&(family, chain)).copied().unwrap_or_default();
            if (former > 0) != (now > 0) {
                let rules = Some(chain.rules(family, rendering));
                let (old, new) = if now > 0 { (None, rules) } else { (rules, None) };
                self.chains.insert((family, chain.name()), Step { old, new, owner: None });
            }
            if now == 0 {
                counts.chains.remove(&(family, chain));
            }
        }
        for (address, former) in before.hairpins {
            let now = counts.hairpins.get(&address).copied().unwrap_or_default();
            let is = |count| (count > 0).then(String::new);
            self.elements.insert(image::hairpin(address), Step { old: is(former), new: is(now), owner: None });
            if now == 0 {
                counts.hairpins.remove(&address);
            }
        }
        self.elements.retain(|place, step| rendering.families.contains(&place.family) && step.old != step.new);
        self.chains.retain(|_, step| step.old != step.new);
        self.clients.retain(|_, step| step.old != step.new);
    }

    /// From what is installed to all that a plan needs. The rules of a chain are written again, whatever they are:
    /// they are not read.
    pub(super) fn from_installed(installed: &Installed, wanted: Image) -> Self {
        let mut change = Self { refused: wanted.refused, ..Self::default() };
        for (place, leads_to) in &installed.elements {
            change.elements.entry(place.clone()).or_default().old = Some(leads_to.clone());
        }
        for (place, (leads_to, owner)) in wanted.elements {
            let step = change.elements.entry(place).or_default();
            (step.new, step.owner) = (Some(leads_to), owner);
        }
        for (name, rules) in &installed.chains {
            let unread = vec![String::new(); *rules];
            change.chains.entry(name.clone()).or_default().old = Some(unread);
        }
        for (name, (rules, owner)) in wanted.chains {
            let step = change.chains.entry(name).or_default();
            (step.new, step.owner) = (Some(rules), owner);
        }
        for (name, clients) in &installed.clients {
            let wanted = wanted.clients.get(name);
            let timeouts = clients.iter().map(|client| client.timeout);
            // One that differs stands for all: each is asked for its own when they are moved.
            let differs = timeouts.into_iter().find(|timeout| Some(timeout) != wanted);
            let old = differs.or_else(|| wanted.copied()).unwrap_or_default();
            change.clients.entry(name.clone()).or_default().old = Some(old);
        }
        for (name, timeout) in wanted.clients {
            change.clients.entry(name).or_default().new = Some(timeout);
        }
        change.elements.retain(|_, step| step.old != step.new);
        change.chains.retain(|(_, name), step| step.old != step.new || (name != MARKER && step.new.is_some()));
        change.clients.retain(|_, step| step.old != step.new);
        change
    }

    /// What it repairs, if it leads from what is installed to what should be. What waits to be deleted is not wrong.
    pub(super) fn wrong(&self, leftovers: &Leftovers) -> Wrong {
        let rules = |rules: &Option<Vec<String>>| rules.as_ref().map(Vec::len);
        let waits = |kind, (family, name): &Named, needed: bool| {
            !needed && leftovers.contains(&Unused { family: *family, kind, name: name.clone() })
        };
        let chains = self
            .chains
            .iter()
            .filter(|(name, step)| rules(&step.old) != rules(&step.new) && !waits("chain", name, step.new.is_some()));
        let sets = self.clients.iter().filter(|(name, step)| !waits("set", name, step.new.is_some()));
        Wrong { elements: self.elements.len(), chains: chains.count(), sets: sets.count() }
    }

    /// How many elements and rules it writes, removed elements included. Chains that were there with as many rules do
    /// not count: their rules are written again unread, in case somebody has edited them. Nor do chains and sets that
    /// nothing uses any more, which go later.
    pub(super) fn writes(&self) -> u64 {
        let is_unread = |rules: &Vec<String>| rules.iter().all(String::is_empty);
        let rules = self.chains.values().map(|Step { old, new, owner: _ }| match (old, new) {
            (Some(old), Some(new)) if is_unread(old) && old.len() == new.len() => 0,
            (_, Some(new)) => new.len(),
            (_, None) => 0,
        });
        let sets = self.clients.values().filter(|step| step.new.is_some()).count();
        let writes = rules.sum::<usize>().saturating_add(self.elements.len()).saturating_add(sets);
        u64::try_from(writes).unwrap_or(u64::MAX)
    }

    /// Whether there is nothing to write.
    pub(super) fn is_empty(&self) -> bool {
        self.elements.is_empty() && self.chains.is_empty() && self.clients.is_empty()
    }
}

impl Counts {
    /// Counts the first plan again, after a change to the second was not made.
    pub(super) fn undo(&mut self, first: &Plan, second: &Plan, rendering: &Rendering) {
        Change::between(second, first, self, rendering);
    }
}

impl Image {
    /// All that the tables hold for a plan, and what its service ports have in common.
    pub(super) fn of(plan: &Plan, rendering: &Rendering) -> (Self, Counts) {
        let mut counts = Counts::default();
        let Change { elements, chains, clients, refused } =
            Change::between(&Plan::default(), plan, &mut counts, rendering);
        let mut image = Self { refused, ..Self::default() };
        for (place, Step { old: _, new, owner }) in elements {
            image.elements.extend(new.map(|leads_to| (place, (leads_to, owner))));
        }
        for (name, Step { old: _, new, owner }) in chains {
            image.chains.extend(new.map(|rules| (name, (rules, owner))));
        }
        for (name, Step { old: _, new, owner: _ }) in clients {
            image.clients.extend(new.map(|timeout| (name, timeout)));
        }
        for family in &rendering.families {
            for chain in fixed_chains(*family, rendering) {
                image.chains.insert((*family, chain.name.to_owned()), (chain.rules, None));
            }
        }
        (image, counts)
    }
}
