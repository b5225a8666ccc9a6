//! Which ids of source ranges are in use. A changed list gets a new id, so programs meet the old list or the new one.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::Full;
use super::pool::{Moment, Pool};
use super::write::Write;

#[derive(Clone, Debug)]
pub(super) struct Ranges {
    capacity: u32,
    /// Id 0 means no ranges, so ids are one more than the pool's elements.
    ids: Pool,
    prefixes: usize,
    /// Ranges that were read back, but to which no service refers.
    strays: BTreeMap<u32, Vec<IpNet>>,
}

impl Ranges {
    pub(super) fn new(capacity: u32) -> Self {
        Self { capacity, ids: Pool::new(capacity, &BTreeSet::new()), prefixes: 0, strays: BTreeMap::new() }
    }

    /// As read back; everything is a stray until [`Ranges::adopt`].
    pub(super) fn restored(capacity: u32, found: &[(u32, IpNet)]) -> Self {
        let used: BTreeSet<u32> = found.iter().filter_map(|(id, _)| id.checked_sub(1)).collect();
        let mut strays: BTreeMap<u32, Vec<IpNet>> = BTreeMap::new();
        for (id, prefix) in found {
            strays.entry(*id).or_default().push(*prefix);
        }
        strays.values_mut().for_each(|prefixes| prefixes.sort_unstable());
        Self { capacity, ids: Pool::new(capacity, &used), prefixes: found.len(), strays }
    }

    /// The prefixes of `id`, which a service refers to.
    pub(super) fn adopt(&mut self, id: u32) -> Vec<IpNet> {
        self.strays.remove(&id).unwrap_or_default()
    }

    /// A fresh id for `count` prefixes.
    pub(super) fn take(&mut self, count: usize, now: Moment) -> Result<u32, Full> {
        let full = Full { table: "source range", capacity: self.capacity };
        let prefixes = self.prefixes.saturating_add(count);
        if prefixes > self.capacity as usize {
            return Err(full);
        }
        let id = self.ids.take(now).ok_or(full)?;
        self.prefixes = prefixes;
        Ok(id.saturating_add(1))
    }

    /// The writes that remove the prefixes of an id that no service refers to any more. They take effect at once: a
    /// program that still holds the id finds fewer prefixes at worst, and the id itself rests before it is used again.
    pub(super) fn retire(&mut self, id: u32, prefixes: &[IpNet], now: Moment) -> Vec<Write> {
        if id == 0 {
            return Vec::new();
        }
        self.prefixes = self.prefixes.saturating_sub(prefixes.len());
        if let Some(element) = id.checked_sub(1) {
            self.ids.retire(element, now);
        }
        prefixes.iter().map(|prefix| Write::RangeGone { id, prefix: *prefix }).collect()
    }

    /// The writes that remove prefixes to which no service refers.
    pub(super) fn remove_strays(&mut self, now: Moment) -> Vec<Write> {
        let strays = std::mem::take(&mut self.strays);
        strays.into_iter().flat_map(|(id, prefixes)| self.retire(id, &prefixes, now)).collect()
    }
}
