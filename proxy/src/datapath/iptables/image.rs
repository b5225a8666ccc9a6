//! All chains of one family, as a plan wants them. An image keeps only what leads to chains; the rules of a chain are
//! written anew whenever they are asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use ipnet::IpNet;
use shunt_model::{Family, Protocol};

use super::change::{Changes, TableChanges};
use super::fixed;
use super::port::{self, PortRules, Refusal};
use super::rule::{Match, Name, Rule, State, Table, Target, only};
use super::sources::{self, Answers, Kinds, Masquerade, answer_chain, mark_chain};
use super::tree::{self, Key, Leaf, Looks, Tree};
use super::{HAIRPIN, HEALTH, MARK, NODE_PORTS, SERVICES, UNMARK, UNSERVED, UNSERVED_NODE_PORTS};
use crate::datapath::PacketOptions;
use crate::plan::{AddressMeaning, NodePorts, Plan, PodSources, PortKey, PortPlan};

/// All chains of one family.
#[derive(Clone, Debug)]
pub(super) struct Image {
    family: Family,
    options: PacketOptions,
    plan: Plan,
    pods: Arc<PodSources>,
    /// By destination, in the table nat.
    frontends: Tree,
    /// By port, in the table nat.
    node_ports: Tree,
    /// By endpoint, in the table nat.
    hairpins: Tree,
    /// By destination, in the table filter.
    answers: Tree,
    /// By port, in the table filter.
    node_port_answers: Tree,
    /// Health-check node ports, in the table filter.
    health: Tree,
    uses: Uses,
}

/// What several service ports need, with how many do.
#[derive(Clone, Debug, Default)]
struct Uses {
    hairpins: BTreeMap<IpAddr, usize>,
    marks: BTreeMap<Masquerade, usize>,
    refusals: BTreeMap<Answers, usize>,
}

/// What changes in the trees.
#[derive(Debug, Default)]
struct Edits {
    frontends: BTreeMap<Key, Option<Leaf>>,
    node_ports: BTreeMap<Key, Option<Leaf>>,
    hairpins: BTreeMap<Key, Option<Leaf>>,
    answers: Answering,
    node_port_answers: Answering,
    health: BTreeMap<Key, Option<Leaf>>,
}

/// What changes in a tree of answers: before the table nat, and after it.
#[derive(Debug, Default)]
struct Answering {
    gone: BTreeMap<Key, usize>,
    come: BTreeMap<Key, (Leaf, usize)>,
}

impl Image {
    /// Without any Service.
    pub(super) fn new(family: Family, options: PacketOptions) -> Self {
        Self {
            family,
            options,
            plan: Plan::default(),
            pods: Arc::default(),
            frontends: Tree::new(Looks::Destination(family), SERVICES, "D"),
            node_ports: Tree::new(Looks::Port, NODE_PORTS, "N"),
            hairpins: Tree::new(Looks::Source(family), HAIRPIN, "H"),
            answers: Tree::new(Looks::Destination(family), UNSERVED, "D"),
            node_port_answers: Tree::new(Looks::Port, UNSERVED_NODE_PORTS, "N"),
            health: Tree::new(Looks::Port, HEALTH, "C"),
            uses: Uses::default(),
        }
    }

    /// The image of a plan.
    pub(super) fn of(plan: &Plan, family: Family, options: PacketOptions) -> Self {
        let mut image = Self::new(family, options);
        image.update(plan);
        image
    }

    pub(super) fn family(&self) -> Family {
        self.family
    }

    /// Follows the plan, and returns the chains that changed.
    pub(super) fn update(&mut self, plan: &Plan) -> Changes {
        let mut changes = Changes::default();
        let fixed_before = self.fixed();
        let mut edits = Edits::default();
        self.follow_ports(plan, &mut edits, &mut changes);
        self.follow_addresses(plan, &mut edits);
        self.follow_health_checks(plan, &mut edits);
        self.plan = plan.clone();
        self.pods = Arc::clone(&plan.pods);
        self.apply(edits, &mut changes);
        let fixed = self.fixed();
        for (table, name, rules) in &fixed {
            let before = fixed_before.iter().find(|(of, known, _)| of == table && known == name);
            match before {
                Some((_, _, same)) if same == rules => {}
                Some(_) => changes.table(*table).write(Arc::clone(name), rules.clone()),
                None => changes.table(*table).write_fresh(Arc::clone(name), rules.clone()),
            }
        }
        for (table, name, _) in fixed_before {
            if !fixed.iter().any(|(kept, known, _)| *kept == table && *known == name) {
                changes.table_at_the_end(table).removals.insert(name);
            }
        }
        changes
    }

    /// All chains with their rules.
    pub(super) fn chains(&self) -> impl Iterator<Item = (Table, Name, Vec<Rule>)> {
        let ports = self.ports().flat_map(|port| {
            let PortRules { nat, filter, .. } = self.rules_of(port);
            let nat = nat.into_iter().map(|(name, rules)| (Table::Nat, name, rules));
            nat.chain(filter.into_iter().map(|(name, rules)| (Table::Filter, name, rules)))
        });
        let trees = self.trees().into_iter().flat_map(|(table, tree)| {
            let chains = tree.places().into_iter();
            chains.filter_map(move |place| Some((table, tree.name(&place), tree.rules(&place)?)))
        });
        self.fixed().into_iter().chain(trees).chain(ports)
    }

    /// The chains that belong to one service port alone, with it. This renders all of them.
    pub(super) fn owners(&self) -> BTreeMap<(Table, Name), &PortKey> {
        let chains = self.ports().flat_map(|port| {
            let PortRules { nat, filter, .. } = self.rules_of(port);
            let nat = nat.into_keys().map(|name| (Table::Nat, name));
            nat.chain(filter.into_keys().map(|name| (Table::Filter, name))).map(|chain| (chain, &port.key))
        });
        chains.collect()
    }

    fn trees(&self) -> [(Table, &Tree); 6] {
        [
            (Table::Nat, &self.frontends),
            (Table::Nat, &self.node_ports),
            (Table::Nat, &self.hairpins),
            (Table::Filter, &self.answers),
            (Table::Filter, &self.node_port_answers),
            (Table::Filter, &self.health),
        ]
    }

    fn ports(&self) -> impl Iterator<Item = &PortPlan> {
        self.plan.ports.values().map(|port| &**port).filter(|port| port.key.family == self.family)
    }

    fn rules_of(&self, port: &PortPlan) -> PortRules {
        port::rules(port, self.options.masquerade_mark)
    }

    /// The chains that stand for no service port alone.
    fn fixed(&self) -> Vec<(Table, Name, Vec<Rule>)> {
        let kinds = Kinds::new(&self.pods, self.family);
        let marks = self.uses.marks.keys().map(|by_kind| {
            let target = |marked| Target::Goto(if marked { MARK } else { UNMARK }.into());
            (Table::Nat, mark_chain(*by_kind), kinds.rules(&by_kind.map(target)))
        });
        let refusals = self.uses.refusals.keys().map(|by_kind| {
            let target = |answer| sources::target(answer, self.family);
            (Table::Filter, answer_chain(*by_kind), kinds.rules(&by_kind.map(target)))
        });
        let health = !self.health.is_empty();
        let all = fixed::chains(self.family, self.options, self.has_loopback_node_ports(), health);
        all.into_iter().chain(marks).chain(refusals).collect()
    }

    /// TP-15
    fn has_loopback_node_ports(&self) -> bool {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let accepts = || self.plan.addresses.get(&loopback).is_some_and(|meaning| meaning.node_ports.is_some());
        self.family == Family::V4 && self.options.loopback_node_ports && accepts()
    }

    fn follow_ports(&mut self, plan: &Plan, edits: &mut Edits, changes: &mut Changes) {
        let before = self.plan.ports.clone();
        let (mut gone, mut come) = (Vec::new(), Vec::new());
        for item in before.diff(&plan.ports) {
            let (old, new) = match item {
                DiffItem::Add(_, new) => (None, Some(new)),
                DiffItem::Update { old: (_, old), new: (_, new) } => (Some(old), Some(new)),
                DiffItem::Remove(_, old) => (Some(old), None),
            };
            if old.or(new).is_none_or(|port| port.key.family != self.family) {
                continue;
            }
            let rules = |port: Option<&Arc<PortPlan>>| port.map(|port| self.rules_of(port)).unwrap_or_default();
            let (old, new) = (rules(old), rules(new));
            changes.nat.follow(&old.nat, &new.nat);
            changes.filter_before.come(&old.filter, &new.filter);
            changes.filter.leave(&old.filter, &new.filter);
            gone.push(old);
            come.push(new);
        }
        for rules in gone {
            self.leave(rules, edits);
        }
        for rules in come {
            self.join(rules, edits);
        }
        self.uses.marks.retain(|_, uses| *uses > 0);
        self.uses.refusals.retain(|_, uses| *uses > 0);
        self.uses.hairpins.retain(|_, uses| *uses > 0);
    }

    fn leave(&mut self, rules: PortRules, edits: &mut Edits) {
        edits.frontends.extend(rules.frontends.into_iter().map(|(key, _)| (key, None)));
        edits.node_ports.extend(rules.node_ports.into_iter().map(|(key, _)| (key, None)));
        edits.answers.leave(rules.answers);
        edits.node_port_answers.leave(rules.node_port_answers);
        let fewer = |uses: &mut usize| *uses = uses.saturating_sub(1);
        for address in rules.hairpins {
            self.uses.hairpins.entry(address).and_modify(fewer);
            if self.uses.hairpins.get(&address) == Some(&0) {
                edits.hairpins.insert(tree::of_address(address), None);
            }
        }
        rules.marks.iter().for_each(|by_kind| fewer(self.uses.marks.entry(*by_kind).or_default()));
        rules.refusals.iter().for_each(|by_kind| fewer(self.uses.refusals.entry(*by_kind).or_default()));
    }

    fn join(&mut self, rules: PortRules, edits: &mut Edits) {
        edits.frontends.extend(rules.frontends.into_iter().map(|(key, leaf)| (key, Some(leaf))));
        edits.node_ports.extend(rules.node_ports.into_iter().map(|(key, leaf)| (key, Some(leaf))));
        edits.answers.join(rules.answers);
        edits.node_port_answers.join(rules.node_port_answers);
        let more = |uses: &mut usize| *uses = uses.saturating_add(1);
        for address in rules.hairpins {
            more(self.uses.hairpins.entry(address).or_default());
            let key = tree::of_address(address);
            // An endpoint that reaches itself (TP-42).
            let leaf = Rule::all(Target::Mark(self.options.masquerade_mark)).to(only(address));
            edits.hairpins.insert(key, Some(leaf));
        }
        rules.marks.iter().for_each(|by_kind| more(self.uses.marks.entry(*by_kind).or_default()));
        rules.refusals.iter().for_each(|by_kind| more(self.uses.refusals.entry(*by_kind).or_default()));
    }

    /// What an address means at ports of which no frontend names it.
    fn follow_addresses(&self, plan: &Plan, edits: &mut Edits) {
        let renumbered = self.plan.service_cidrs != plan.service_cidrs;
        let (old_ranges, new_ranges) = match renumbered {
            true => (self.range_keys(&self.plan), self.range_keys(plan)),
            false => Default::default(),
        };
        old_ranges.difference(&new_ranges).for_each(|key| edits.answers.set(Arc::clone(key), None));
        new_ranges
            .difference(&old_ranges)
            .for_each(|key| edits.answers.set(Arc::clone(key), Some(fixed::unused_address())));
        let all = || self.plan.addresses.keys().chain(plan.addresses.keys()).copied().collect::<BTreeSet<_>>();
        let changed = || self.plan.addresses.diff(&plan.addresses).map(|item| address_of(&item)).collect();
        let addresses = if renumbered { all() } else { changed() };
        for address in addresses.into_iter().filter(|address| Family::of(address) == self.family) {
            if !address.is_loopback() {
                self.follow_address(address, plan, edits);
            }
        }
    }

    fn follow_address(&self, address: IpAddr, plan: &Plan, edits: &mut Edits) {
        let key = tree::of_address(address);
        let (old, new) = (self.plan.addresses.get(&address), plan.addresses.get(&address));
        let answer = |plan: &Plan, meaning: Option<&AddressMeaning>| {
            let is_a_range = || plan.service_cidrs.contains(&only(address));
            match meaning {
                Some(meaning) => fixed::address_leaf(*meaning, in_ranges(&plan.service_cidrs, address)),
                None => is_a_range().then(fixed::unused_address),
            }
        };
        let (before, after) = (answer(&self.plan, old), answer(plan, new));
        if before != after {
            edits.answers.set(Arc::clone(&key), after);
        }
        let accepts = |meaning: Option<&AddressMeaning>| meaning.is_some_and(accepts_node_ports);
        if accepts(old) != accepts(new) {
            edits.frontends.insert(key, accepts(new).then(|| Rule::all(Target::Goto(NODE_PORTS.into()))));
        }
    }

    fn range_keys(&self, plan: &Plan) -> BTreeSet<Key> {
        let ranges = plan.service_cidrs.iter().filter(|range| Family::of(&range.addr()) == self.family);
        ranges.flat_map(|range| tree::of_network(*range)).collect()
    }

    /// NE-10
    fn follow_health_checks(&self, plan: &Plan, edits: &mut Edits) {
        for item in self.plan.health_checks.diff(&plan.health_checks) {
            let (family, old, new) = match item {
                DiffItem::Add((_, family), new) => (family, None, Some(new.port)),
                DiffItem::Update { old: (_, old), new: ((_, family), new) } => (family, Some(old.port), Some(new.port)),
                DiffItem::Remove((_, family), old) => (family, Some(old.port), None),
            };
            if *family != self.family || old == new {
                continue;
            }
            let key = |port: std::num::NonZeroU16| tree::of_port(Protocol::Tcp, port.get());
            if let Some(old) = old {
                edits.health.entry(key(old)).or_insert(None);
            }
            edits.health.extend(new.map(|new| (key(new), Some(Rule::all(Target::Accept)))));
        }
    }

    fn apply(&mut self, edits: Edits, changes: &mut Changes) {
        let Edits { frontends, node_ports, hairpins, answers, node_port_answers, health } = edits;
        changes.nat.apply(&mut self.frontends, frontends);
        changes.nat.apply(&mut self.node_ports, node_ports);
        changes.nat.apply(&mut self.hairpins, hairpins);
        changes.filter.apply(&mut self.health, health);
        for (tree, answering) in [(&mut self.answers, answers), (&mut self.node_port_answers, node_port_answers)] {
            let (before, after) = answering.split();
            changes.filter_before.apply(tree, before);
            changes.filter.apply(tree, after);
        }
    }
}

impl Answering {
    fn leave(&mut self, refusals: Vec<Refusal>) {
        self.gone.extend(refusals.into_iter().map(|Refusal { key, leaf: _, kinds }| (key, kinds)));
    }

    fn join(&mut self, refusals: Vec<Refusal>) {
        self.come.extend(refusals.into_iter().map(|Refusal { key, leaf, kinds }| (key, (leaf, kinds))));
    }

    fn set(&mut self, key: Key, leaf: Option<Leaf>) {
        match leaf {
            Some(leaf) => {
                self.come.insert(key, (leaf, usize::MAX));
            }
            None => {
                self.gone.insert(key, usize::MAX);
            }
        }
    }

    /// What begins to be refused is refused before the table nat stops to translate it; what is refused no more is
    /// translated first.
    fn split(self) -> (BTreeMap<Key, Option<Leaf>>, BTreeMap<Key, Option<Leaf>>) {
        let Self { gone, come } = self;
        let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
        after.extend(gone.keys().filter(|key| !come.contains_key(*key)).map(|key| (Arc::clone(key), None)));
        for (key, (leaf, kinds)) in come {
            let grows = gone.get(&key).is_none_or(|fewer| kinds >= *fewer);
            if grows { &mut before } else { &mut after }.insert(key, Some(leaf));
        }
        (before, after)
    }
}

fn accepts_node_ports(meaning: &AddressMeaning) -> bool {
    match meaning.node_ports {
        Some(NodePorts::FromAnywhere) => true,
        // Loopback has a way of its own, which begins on this node.
        Some(NodePorts::FromNodeOnly) | None => false,
    }
}

fn address_of(item: &DiffItem<'_, '_, IpAddr, AddressMeaning>) -> IpAddr {
    match item {
        DiffItem::Add(address, _) | DiffItem::Remove(address, _) => **address,
        DiffItem::Update { old: _, new: (address, _) } => **address,
    }
}

fn in_ranges(ranges: &[IpNet], address: IpAddr) -> bool {
    ranges.iter().any(|range| range.contains(&address))
}

/// A rule for packets that begin a flow.
pub(super) fn new_flow(rule: Rule) -> Rule {
    rule.when(Match::State(State::New))
}

impl TableChanges {
    /// Applies edits to a tree, and notes the chains that change.
    fn apply(&mut self, tree: &mut Tree, edits: BTreeMap<Key, Option<Leaf>>) {
        let edits: BTreeMap<Key, Option<Leaf>> =
            edits.into_iter().filter(|(key, leaf)| tree.get(key) != leaf.as_ref()).collect();
        /// More edits than this look at the whole tree.
        const FEW: usize = 500;
        let few = edits.len() <= FEW;
        let ways = || edits.keys().flat_map(|key| Tree::on_the_way(key)).collect::<BTreeSet<Key>>();
        let mut places = if few { ways() } else { tree.places() };
        let before: BTreeMap<Key, Vec<Rule>> =
            places.iter().filter_map(|place| Some((Arc::clone(place), tree.rules(place)?))).collect();
        for (key, leaf) in edits {
            tree.set(key, leaf);
        }
        if !few {
            places.extend(tree.places());
        }
        for place in places {
            match (before.get(&place), tree.rules(&place)) {
                (Some(before), Some(after)) if *before == after => {}
                (Some(_), Some(after)) => self.write(tree.name(&place), after),
                (None, Some(after)) => self.write_fresh(tree.name(&place), after),
                (Some(_), None) => self.remove(tree.name(&place)),
                (None, None) => {}
            }
        }
    }
}
