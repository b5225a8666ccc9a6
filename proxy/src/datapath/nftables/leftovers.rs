//! What nothing refers to any more, until it is deleted: a moment after the change, and alone if that did not work.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::script::Unused;

/// Before 6.2 the kernel counts a chain as used for a moment after its last reference goes (SY-10).
pub(super) const MOMENT: Duration = Duration::from_secs(1);
/// How long one rests that cannot be deleted alone.
const REST: Duration = Duration::from_secs(60);
/// How many are deleted alone at a time: each costs a run of nft.
const ALONE: usize = 16;

/// Chains and sets to delete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Leftovers(BTreeMap<Unused, Due>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Due {
    at: Option<Instant>,
    /// A transaction with others failed.
    alone: bool,
}

impl Due {
    fn is_over(self, now: Instant) -> bool {
        self.at.is_some_and(|at| at <= now)
    }
}

impl Leftovers {
    /// Nothing refers to it from now on.
    pub(super) fn put(&mut self, thing: Unused, now: Instant) {
        self.0.insert(thing, Due { at: now.checked_add(MOMENT), alone: false });
    }

    /// It is needed again.
    pub(super) fn remove(&mut self, thing: &Unused) {
        self.0.remove(thing);
    }

    pub(super) fn contains(&self, thing: &Unused) -> bool {
        self.0.contains_key(thing)
    }

    /// What each of the next transactions deletes. None of it is a leftover any more.
    pub(super) fn take(&mut self, now: Instant) -> Vec<Vec<Unused>> {
        let due = |alone| self.0.iter().filter(move |(_, due)| due.is_over(now) && due.alone == alone);
        let together: Vec<Unused> = due(false).map(|(thing, _)| thing.clone()).collect();
        let alone = due(true).take(ALONE).map(|(thing, _)| vec![thing.clone()]);
        let batches: Vec<Vec<Unused>> = alone.chain([together]).filter(|batch| !batch.is_empty()).collect();
        for thing in batches.iter().flatten() {
            self.0.remove(thing);
        }
        batches
    }

    /// A transaction failed: each of its things is tried alone, later.
    pub(super) fn put_back(&mut self, batch: Vec<Unused>, now: Instant) {
        let rest = if batch.len() > 1 { MOMENT } else { REST };
        let due = Due { at: now.checked_add(rest), alone: true };
        self.0.extend(batch.into_iter().map(|thing| (thing, due)));
    }
}

#[cfg(test)]
mod tests {
    use shunt_model::Family;

    use super::*;

    fn chain(name: &str) -> Unused {
        Unused { family: Family::V4, kind: "chain", name: name.to_owned() }
    }

    #[test]
    fn what_fails_together_is_tried_alone_and_then_rests() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut leftovers = Leftovers::default();
        leftovers.put(chain("a"), start);
        leftovers.put(chain("b"), start);
        leftovers.put(chain("needed"), start);
        leftovers.remove(&chain("needed"));
        assert_eq!(leftovers.take(start), Vec::<Vec<Unused>>::new());
        let both = leftovers.take(after(1));
        assert_eq!(both, [[chain("a"), chain("b")]]);
        leftovers.put_back(both.concat(), after(1));
        leftovers.put(chain("c"), after(1));
        assert_eq!(leftovers.take(after(1)), Vec::<Vec<Unused>>::new());
        assert_eq!(leftovers.take(after(2)), [[chain("a")], [chain("b")], [chain("c")]]);
        leftovers.put_back(vec![chain("b")], after(2));
        assert_eq!(leftovers.take(after(61)), Vec::<Vec<Unused>>::new());
        assert!(leftovers.contains(&chain("b")));
        assert_eq!(leftovers.take(after(62)), [[chain("b")]]);
        assert_eq!(leftovers, Leftovers::default());
    }
}
