//! Chains that know the kinds of sources: what differs by kind is asked there, so that no chain of a Service names the
//! networks of pods, which change more often.

use std::fmt;
use std::sync::Arc;

use shunt_model::Family;

use super::rule::{Match, Name, OURS, Rule, Target};
use crate::plan::{Empty, PodInterface, PodSources};

/// Something for each kind of source: pods, this node, others. It makes up a part of a name, a letter each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ByKind<T> {
    pub(super) pods: T,
    pub(super) node: T,
    pub(super) outside: T,
}

impl<T: Copy> ByKind<T> {
    pub(super) fn map<U>(self, each: impl Fn(T) -> U) -> ByKind<U> {
        let Self { pods, node, outside } = self;
        ByKind { pods: each(pods), node: each(node), outside: each(outside) }
    }

    pub(super) fn all(self) -> [T; 3] {
        let Self { pods, node, outside } = self;
        [pods, node, outside]
    }
}

/// What a packet gets that was not translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Answer {
    /// What others make of it.
    Pass,
    Reject,
    Drop,
}

impl From<Empty> for Answer {
    fn from(empty: Empty) -> Self {
        match empty {
            Empty::Reject => Self::Reject,
            Empty::Drop => Self::Drop,
        }
    }
}

/// Sets or clears the masquerade bit by kind of source: true sets it.
pub(super) type Masquerade = ByKind<bool>;
/// What an untranslated packet gets by kind of source.
pub(super) type Answers = ByKind<Answer>;

impl fmt::Display for Masquerade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pods, node, outside } = *self;
        let letters = [(pods, 'P'), (node, 'N'), (outside, 'O')].into_iter().filter(|(marked, _)| *marked);
        f.write_str(&letters.map(|(_, letter)| letter).collect::<String>())
    }
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |answer| match answer {
            Answer::Pass => 'P',
            Answer::Reject => 'R',
            Answer::Drop => 'D',
        };
        f.write_str(&self.map(letter).all().into_iter().collect::<String>())
    }
}

/// Which packets come from which kind of source, in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kinds {
    pods: Arc<PodSources>,
    family: Family,
}

impl Kinds {
    pub(super) fn new(pods: &Arc<PodSources>, family: Family) -> Self {
        Self { pods: Arc::clone(pods), family }
    }

    /// One target by kind of source. The node comes first: its bridge has an address in the network of its pods.
    pub(super) fn rules(&self, targets: &ByKind<Target>) -> Vec<Rule> {
        let ByKind { pods, node, outside } = targets;
        let mut rules = Vec::new();
        if pods != outside || node != outside {
            if pods != node || pods != outside {
                rules.push(Rule::all(node.clone()).when(Match::SourceIsLocal));
            }
            if pods != outside {
                rules.extend(self.of_pods(pods));
            }
        }
        // The end of the chain returns as well.
        rules.extend((*outside != Target::Return).then(|| Rule::all(outside.clone())));
        rules
    }

    fn of_pods(&self, target: &Target) -> impl Iterator<Item = Rule> {
        let PodSources { networks, interface } = &*self.pods;
        let interface = interface.as_ref().map(|interface| match interface {
            PodInterface::Named(name) => Arc::clone(name),
            PodInterface::Prefixed(prefix) => format!("{prefix}+").into(),
        });
        let by_interface = interface.map(|interface| Rule { interface: Some(interface), ..Rule::all(target.clone()) });
        let networks = networks.iter().filter(|network| Family::of(&network.addr()) == self.family);
        let by_network = networks.map(|network| Rule::all(target.clone()).from(*network));
        by_network.chain(by_interface)
    }
}

/// The chain that sets or clears the mark, and the way to it from a chain of a Service: none where nothing is marked.
pub(super) fn masquerade(by_kind: Masquerade, mark: u32) -> Option<Rule> {
    match by_kind.all() {
        [false, false, false] => None,
        [true, true, true] => Some(Rule::all(Target::Mark(mark))),
        [_, _, _] => Some(Rule::all(Target::Jump(mark_chain(by_kind)))),
    }
}

/// What leads to the answers from the tree of frontends.
pub(super) fn answer(by_kind: Answers, family: Family) -> Rule {
    Rule::all(match by_kind.all() {
        [Answer::Pass, Answer::Pass, Answer::Pass] => Target::Return,
        [Answer::Drop, Answer::Drop, Answer::Drop] => Target::Drop,
        [Answer::Reject, Answer::Reject, Answer::Reject] => Target::Reject(family),
        [_, _, _] => Target::Goto(answer_chain(by_kind)),
    })
}

/// The name of the chain that sets or clears the mark so.
pub(super) fn mark_chain(by_kind: Masquerade) -> Name {
    format!("{OURS}MASQ-{by_kind}").into()
}

/// The name of the chain that answers so.
pub(super) fn answer_chain(by_kind: Answers) -> Name {
    format!("{OURS}ANSWER-{by_kind}").into()
}

/// What an answer is to one packet.
pub(super) fn target(answer: Answer, family: Family) -> Target {
    match answer {
        Answer::Pass => Target::Return,
        Answer::Reject => Target::Reject(family),
        Answer::Drop => Target::Drop,
    }
}
