//! The chains of one service port, and the leaves by which packets find them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::names::PortNames;
use super::rule::{Match, Name, Rule, Target};
use super::sources::{Answer, Answers, ByKind, Masquerade, answer, masquerade};
use super::tree::{self, Key};
use super::{UNMARK, tree::Leaf};
use crate::datapath::packets::{Shape, Treatment, hairpins};
use crate::plan::{Frontend, List, PortPlan};

/// All that a service port needs of the rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PortRules {
    /// Its chains in the table nat.
    pub(super) nat: BTreeMap<Name, Vec<Rule>>,
    /// Its chains in the table filter.
    pub(super) filter: BTreeMap<Name, Vec<Rule>>,
    /// Where its addresses lead in the table nat.
    pub(super) frontends: Vec<(Key, Leaf)>,
    /// Where its node ports lead in the table nat.
    pub(super) node_ports: Vec<(Key, Leaf)>,
    /// What untranslated packets get at its addresses.
    pub(super) answers: Vec<Refusal>,
    /// What untranslated packets get at its node ports.
    pub(super) node_port_answers: Vec<Refusal>,
    /// The endpoints that may be the source of a flow to themselves.
    pub(super) hairpins: Vec<IpAddr>,
    /// The chains for kinds of sources that it uses.
    pub(super) marks: Vec<Masquerade>,
    /// The chains for kinds of sources that it uses for untranslated packets.
    pub(super) refusals: Vec<Answers>,
}

/// What untranslated packets get at a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) key: Key,
    pub(super) leaf: Leaf,
    /// How many kinds of sources are refused or get silence.
    pub(super) kinds: usize,
}

/// What serves one kind of source, as a letter of a chain's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Serves {
    /// Not served.
    Nothing,
    List(List, bool),
    /// This kind of source goes another way.
    Elsewhere,
}

/// What serves each kind of source at a frontend.
type Serving = ByKind<Serves>;

impl Serves {
    fn of(treatment: Treatment) -> Self {
        match treatment {
            Treatment::Pick { list, endpoints: _, masquerade } => Self::List(list, masquerade),
            Treatment::None(_) => Self::Nothing,
        }
    }

    fn letter(self) -> char {
        match self {
            Self::Nothing => 'n',
            Self::List(List::Cluster, false) => 'c',
            Self::List(List::Cluster, true) => 'C',
            Self::List(List::Local, false) => 'l',
            Self::List(List::Local, true) => 'L',
            Self::Elsewhere => '_',
        }
    }

    fn masquerades(self) -> bool {
        match self {
            Self::List(_, masquerade) => masquerade,
            Self::Nothing | Self::Elsewhere => false,
        }
    }

    /// The list, whatever the source becomes.
    fn list(self) -> Option<List> {
        match self {
            Self::List(list, _) => Some(list),
            Self::Nothing | Self::Elsewhere => None,
        }
    }
}

/// Everything for one service port.
pub(super) fn rules(port: &PortPlan, mark: u32) -> PortRules {
    let mut builder = Builder { port, names: PortNames::of(&port.key), mark, rules: PortRules::default() };
    for frontend in &port.frontends {
        builder.add(frontend);
    }
    builder.share_lists();
    builder.rules.hairpins = hairpins(port).into_iter().collect();
    builder.rules
}

struct Builder<'a> {
    port: &'a PortPlan,
    names: PortNames,
    mark: u32,
    rules: PortRules,
}

impl Builder<'_> {
    fn add(&mut self, frontend: &Frontend) {
        let shape = Shape::of(self.port, frontend);
        let Shape { pods, node, outside } = shape;
        let by_kind = ByKind { pods, node, outside };
        let target = match by_kind.map(Serves::of) {
            // A frontend comes before node ports, also if it is not served.
            ByKind { pods: Serves::Nothing, node: Serves::Nothing, outside: Serves::Nothing } => Target::Return,
            serving => self.filtered(frontend, serving),
        };
        let (protocol, number) = (self.port.key.protocol, frontend.port.get());
        let (key, frontends) = match frontend.address {
            Some(address) => (tree::of_frontend(address, protocol, number), &mut self.rules.frontends),
            None => (tree::of_port(protocol, number), &mut self.rules.node_ports),
        };
        frontends.push((key.clone(), Rule::all(target)));
        if let Some((leaf, kinds)) = self.untranslated(frontend, shape, by_kind) {
            let answers = match frontend.address {
                Some(_) => &mut self.rules.answers,
                None => &mut self.rules.node_port_answers,
            };
            answers.push(Refusal { key, leaf, kinds });
        }
    }

    /// What admits sources to a frontend that has ranges, or what serves it.
    fn filtered(&mut self, frontend: &Frontend, serving: Serving) -> Target {
        let served = Target::Goto(self.serve(serving));
        let Some(ranges) = self.ranges(frontend) else { return served };
        let name = self.names.chain(&format!("A{}", letters(serving)));
        let admitted = ranges.iter().map(|range| Rule::all(served.clone()).from(*range));
        let rules = admitted.collect();
        self.rules.nat.insert(name.clone(), rules);
        Target::Goto(name)
    }

    fn ranges(&self, frontend: &Frontend) -> Option<Vec<ipnet::IpNet>> {
        let ranges = self.port.source_ranges.as_ref().filter(|_| frontend.filtered)?;
        Some(ranges.ranges.clone())
    }

    /// What packets get that the table nat left as they are. Where sources are restricted, silence is for the others.
    fn untranslated(&mut self, frontend: &Frontend, shape: Shape, by_kind: ByKind<Treatment>) -> Option<(Leaf, usize)> {
        let answers = by_kind.map(|treatment| match treatment {
            Treatment::Pick { .. } => Answer::Pass,
            Treatment::None(empty) => empty.into(),
        });
        let kinds = answers.all().into_iter().filter(|answer| *answer != Answer::Pass).count();
        let unserved = shape.has_unserved().then(|| answer(answers, self.port.key.family));
        let leads_to_chain = unserved.as_ref().is_some_and(|rule| rule.target.chain().is_some());
        self.rules.refusals.extend(leads_to_chain.then_some(answers));
        let Some(ranges) = self.ranges(frontend) else { return unserved.map(|rule| (rule, kinds)) };
        let name = self.names.chain(&format!("U{answers}"));
        let inside = unserved.map_or(Target::Return, |rule| rule.target);
        let admitted = ranges.iter().map(|range| Rule::all(inside.clone()).from(*range));
        let rules = admitted.chain([Rule::all(Target::Drop)]).collect();
        self.rules.filter.insert(name.clone(), rules);
        Some((Rule::all(Target::Goto(name)), kinds))
    }

    /// The chain that serves sources by their kinds. Kinds that another list serves leave it first: the mark tells
    /// them apart for one step, and the chain to which they go begins with what the mark is to be.
    fn serve(&mut self, serving: Serving) -> Name {
        let name = self.names.chain(&letters(serving));
        if self.rules.nat.contains_key(&name) {
            return name;
        }
        let mut rules = Vec::new();
        let first = serving.all().into_iter().find(|serves| *serves != Serves::Elsewhere);
        let list = first.and_then(Serves::list);
        let goes_elsewhere = |serves: Serves| serves != Serves::Elsewhere && serves.list() != list;
        let others = serving.map(|serves| if goes_elsewhere(serves) { serves } else { Serves::Elsewhere });
        let own = serving.map(|serves| if serves.list() == list { serves } else { Serves::Elsewhere });
        let elsewhere = others.map(|serves| serves != Serves::Elsewhere);
        let leads_on = elsewhere.all().contains(&true);
        if leads_on {
            let others = match others.all().iter().all(|serves| serves.list().is_none()) {
                true => UNMARK.into(),
                false => self.serve(others),
            };
            rules.extend(self.mark(elsewhere));
            rules.push(Rule::all(Target::Goto(others)).when(Match::Marked(self.mark)));
        }
        let masquerades = own.map(Serves::masquerades);
        let marked_before = serving.all().contains(&Serves::Elsewhere);
        rules.extend(match masquerades.all() {
            [false, false, false] if marked_before => vec![Rule::all(Target::Unmark(self.mark))],
            [_, _, _] => self.mark(masquerades),
        });
        match list {
            Some(list) => rules.push(Rule::all(Target::Goto(self.list_name(list)))),
            None => rules.push(Rule::all(Target::Return)),
        }
        self.rules.nat.insert(name.clone(), rules);
        name
    }

    /// Sets the mark for some kinds of sources and clears it for the others.
    fn mark(&mut self, by_kind: Masquerade) -> Vec<Rule> {
        let rule = masquerade(by_kind, self.mark);
        let leads_to_chain = rule.as_ref().is_some_and(|rule| rule.target.chain().is_some());
        self.rules.marks.extend(leads_to_chain.then_some(by_kind));
        rule.into_iter().collect()
    }

    fn list_name(&self, list: List) -> Name {
        self.names.chain(match list {
            List::Cluster => "PC",
            List::Local => "PL",
        })
    }

    /// Adds the lists that are used: in a chain of their own if several chains lead there, else where they are used.
    fn share_lists(&mut self) {
        for list in [List::Cluster, List::Local] {
            let name = self.list_name(list);
            let leads = |rule: &Rule| rule.target == Target::Goto(name.clone());
            let uses = self.rules.nat.values().flatten().filter(|rule| leads(rule)).count();
            let picks = match uses {
                0 => continue,
                _ => self.picks(list),
            };
            if uses > 1 {
                self.rules.nat.insert(name, picks);
                continue;
            }
            let user = self.rules.nat.values_mut().find(|rules| rules.last().is_some_and(leads));
            if let Some(user) = user {
                user.pop();
                user.extend(picks);
            }
        }
    }

    /// One of the endpoints, each as likely; with affinity first the one that the client had.
    fn picks(&mut self, list: List) -> Vec<Rule> {
        let protocol = self.port.key.protocol;
        let addresses: Vec<SocketAddr> = self.port.list(list).iter().map(|endpoint| endpoint.address).collect();
        let mut rules = Vec::with_capacity(addresses.len());
        let Some(seconds) = self.port.affinity else {
            let targets = addresses.iter().map(|address| Rule::all(Target::To(*address)).of(protocol));
            rules.extend(by_chance(targets.collect()));
            return rules;
        };
        let mut targets = Vec::with_capacity(addresses.len());
        for address in addresses {
            let (chain, clients) = (self.names.endpoint(address), self.names.clients(address));
            let leads = Rule::all(Target::Goto(chain.clone()));
            rules.push(leads.clone().when(Match::Known(clients.clone(), seconds.get())));
            targets.push(leads);
            let remembers = Rule::all(Target::To(address)).of(protocol).when(Match::Remember(clients));
            self.rules.nat.insert(chain, vec![remembers]);
        }
        rules.extend(by_chance(targets));
        rules
    }
}

/// Rule i of n applies once in n - i times; the last one always.
fn by_chance(rules: Vec<Rule>) -> impl Iterator<Item = Rule> {
    let count = rules.len();
    rules.into_iter().enumerate().map(move |(index, rule)| match u32::try_from(count.saturating_sub(index)) {
        Ok(left @ 2..) => rule.when(Match::OnceIn(left)),
        Ok(_) | Err(_) => rule,
    })
}

fn letters(serving: Serving) -> String {
    serving.map(Serves::letter).all().into_iter().collect()
}
