//! The backend arrays: which elements are in use, and their generations.

use std::collections::{BTreeMap, BTreeSet};

use proxy_abi::BackendRef;
use proxy_abi::backend::next_generation;
use shunt_model::Family;

use super::pool::{Moment, Pool};
use super::write::Write;

/// Both backend arrays.
#[derive(Clone, Debug)]
pub(super) struct Backends {
    four: Lives,
    six: Lives,
}

#[derive(Clone, Debug)]
struct Lives {
    pool: Pool,
    /// Last generation of each element used so far.
    generations: Vec<u16>,
    /// Elements that were read back alive, but to which no service refers.
    strays: BTreeSet<u32>,
}

impl Backends {
    pub(super) fn new(capacity: u32) -> Self {
        let lives =
            Lives { pool: Pool::new(capacity, &BTreeSet::new()), generations: Vec::new(), strays: BTreeSet::new() };
        Self { four: lives.clone(), six: lives }
    }

    /// The arrays as read back: `used` elements belong to services, `strays` are alive without one.
    pub(super) fn restored(capacity: u32, four: Restored, six: Restored) -> Self {
        let lives = |restored: Restored| {
            let taken = restored.used.union(&restored.strays).copied().collect();
            let mut generations = Vec::new();
            for (index, generation) in restored.generations {
                let index = index as usize;
                if generations.len() <= index {
                    generations.resize(index.saturating_add(1), 0);
                }
                if let Some(last) = generations.get_mut(index) {
                    *last = generation;
                }
            }
            Lives { pool: Pool::new(capacity, &taken), generations, strays: restored.strays }
        };
        Self { four: lives(four), six: lives(six) }
    }

    fn of(&mut self, family: Family) -> &mut Lives {
        match family {
            Family::V4 => &mut self.four,
            Family::V6 => &mut self.six,
        }
    }

    /// `count` elements, each in a new generation, or none at all.
    pub(super) fn take(&mut self, family: Family, count: usize, now: Moment) -> Option<Vec<BackendRef>> {
        let lives = self.of(family);
        let mut taken = Vec::with_capacity(count);
        for _ in 0..count {
            let Some(index) = lives.pool.take(now) else {
                for reference in taken {
                    lives.untake(reference);
                }
                return None;
            };
            taken.push(lives.start(index));
        }
        Some(taken)
    }

    /// Gives back a backend that was never published.
    pub(super) fn untake(&mut self, family: Family, reference: BackendRef) {
        self.of(family).untake(reference);
    }

    /// Removes a backend.
    pub(super) fn retire(&mut self, family: Family, reference: BackendRef, now: Moment) -> Write {
        self.of(family).pool.retire(reference.index(), now);
        Write::BackendGone { family, index: reference.index() }
    }

    /// Removes the backends that belong to no service.
    pub(super) fn remove_strays(&mut self, now: Moment) -> Vec<Write> {
        let mut writes = Vec::new();
        for family in Family::BOTH {
            let lives = self.of(family);
            for index in std::mem::take(&mut lives.strays) {
                lives.pool.retire(index, now);
                writes.push(Write::BackendGone { family, index });
            }
        }
        writes
    }
}

impl Lives {
    fn start(&mut self, index: u32) -> BackendRef {
        let place = index as usize;
        if self.generations.len() <= place {
            self.generations.resize(place.saturating_add(1), 0);
        }
        let generation = self.generations.get_mut(place).map_or(1, |last| {
            *last = next_generation(*last);
            *last
        });
        BackendRef::new(index, generation)
    }

    fn untake(&mut self, reference: BackendRef) {
        self.pool.untake(reference.index());
    }
}

/// One backend array as read back.
#[derive(Clone, Debug, Default)]
pub(super) struct Restored {
    pub(super) used: BTreeSet<u32>,
    pub(super) strays: BTreeSet<u32>,
    pub(super) generations: BTreeMap<u32, u16>,
}
