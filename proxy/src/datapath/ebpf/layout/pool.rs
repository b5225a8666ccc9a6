//! Allocators of the layout: numbered elements and regions of slots, both with a quarantine.
//!
//! A freed element is not handed out again before [`GRACE`] has passed, since a program may still hold it. Programs do
//! not sleep, so each that ran when the element was freed has ended by then (TB-3).

use std::collections::{BTreeSet, VecDeque};

/// Milliseconds of the daemon's own clock; only differences matter.
pub(crate) type Moment = u64;

/// How long a freed element rests, in milliseconds.
pub(crate) const GRACE: Moment = 1000;

/// Elements of an array by number.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    capacity: u32,
    /// Everything from here on has never been used.
    fresh: u32,
    /// Freed elements and when they may be used again, oldest first.
    resting: VecDeque<(u32, Moment)>,
}

impl Pool {
    /// A pool of `0..capacity` of which the elements in `used` are taken.
    #[must_use]
    pub(crate) fn new(capacity: u32, used: &BTreeSet<u32>) -> Self {
        let fresh = used.last().map_or(0, |last| last.saturating_add(1)).min(capacity);
        let resting = (0..fresh).filter(|element| !used.contains(element)).map(|element| (element, 0)).collect();
        Self { capacity, fresh, resting }
    }

    /// Takes a free element.
    pub(crate) fn take(&mut self, now: Moment) -> Option<u32> {
        if self.resting.front().is_some_and(|(_, ready)| *ready <= now) {
            return self.resting.pop_front().map(|(element, _)| element);
        }
        if self.fresh < self.capacity {
            self.fresh = self.fresh.saturating_add(1);
            return Some(self.fresh.saturating_sub(1));
        }
        None
    }

    /// Gives back an element that programs may have seen.
    pub(crate) fn retire(&mut self, element: u32, now: Moment) {
        self.resting.push_back((element, now.saturating_add(GRACE)));
    }

    /// Gives back an element that was never published.
    pub(crate) fn untake(&mut self, element: u32) {
        self.resting.push_front((element, 0));
    }
}

/// A run of `1 << order` slots, aligned to its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Region {
    /// First slot.
    pub base: u32,
    /// Binary logarithm of the size.
    pub order: u8,
}

impl Region {
    /// How many slots it has.
    #[must_use]
    pub(crate) fn size(self) -> u32 {
        1_u32.checked_shl(u32::from(self.order)).unwrap_or(0)
    }
}

/// The order of the smallest region for `count` slots.
#[must_use]
pub(crate) fn order_for(count: u32) -> u8 {
    u8::try_from(count.max(1).next_power_of_two().trailing_zeros()).unwrap_or(u8::MAX)
}

/// Buddy allocator of regions.
#[derive(Clone, Debug)]
pub(crate) struct Regions {
    /// Free regions.
    free: BTreeSet<(u8, u32)>,
    resting: VecDeque<(Region, Moment)>,
    top: u8,
}

impl Regions {
    /// All slots free. `slots` is rounded down to a power of two.
    #[must_use]
    pub(crate) fn new(slots: u32) -> Self {
        let top = u8::try_from(slots.max(1).ilog2()).unwrap_or(0);
        Self { free: BTreeSet::from([(top, 0)]), resting: VecDeque::new(), top }
    }

    /// Takes a free region.
    pub(crate) fn take(&mut self, order: u8, now: Moment) -> Option<Region> {
        while let Some((region, _)) = self.resting.front().copied().filter(|(_, ready)| *ready <= now) {
            self.resting.pop_front();
            self.release(region);
        }
        let (found, base) = self.free.range((order, 0)..).next().copied()?;
        self.free.remove(&(found, base));
        for split in (order..found).rev() {
            self.free.insert((split, base.saturating_add(Region { base, order: split }.size())));
        }
        Some(Region { base, order })
    }

    /// Takes exactly `region`; false if any part of it is taken already.
    pub(crate) fn claim(&mut self, region: Region) -> bool {
        if region.order > self.top || !region.base.is_multiple_of(region.size()) {
            return false;
        }
        let holder = (region.order..=self.top).find_map(|order| {
            let base = region.base & !(Region { base: 0, order }.size().saturating_sub(1));
            self.free.contains(&(order, base)).then_some((order, base))
        });
        let Some((order, base)) = holder else { return false };
        self.free.remove(&(order, base));
        let mut rest = base;
        for split in (region.order..order).rev() {
            let half = Region { base, order: split }.size();
            let upper = rest.saturating_add(half);
            if region.base >= upper {
                self.free.insert((split, rest));
                rest = upper;
            } else {
                self.free.insert((split, upper));
            }
        }
        true
    }

    /// Gives back a region that programs may be reading.
    pub(crate) fn retire(&mut self, region: Region, now: Moment) {
        self.resting.push_back((region, now.saturating_add(GRACE)));
    }

    /// Gives back a region that was never published, or that has rested.
    pub(crate) fn release(&mut self, region: Region) {
        let mut region = region;
        while region.order < self.top {
            let buddy = region.base ^ region.size();
            if !self.free.remove(&(region.order, buddy)) {
                break;
            }
            region = Region { base: region.base.min(buddy), order: region.order.saturating_add(1) };
        }
        self.free.insert((region.order, region.base));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_rests_before_it_is_used_again() {
        let mut pool = Pool::new(2, &BTreeSet::new());
        assert_eq!((pool.take(0), pool.take(0), pool.take(0)), (Some(0), Some(1), None));
        pool.retire(0, 10);
        assert_eq!(pool.take(10 + GRACE - 1), None);
        assert_eq!(pool.take(10 + GRACE), Some(0));
    }

    #[test]
    fn a_pool_knows_what_is_taken() {
        let mut pool = Pool::new(4, &BTreeSet::from([1, 2]));
        assert_eq!((pool.take(0), pool.take(0), pool.take(0)), (Some(0), Some(3), None));
    }

    #[test]
    fn regions_split_and_join() {
        let mut regions = Regions::new(8);
        let first = regions.take(0, 0).unwrap();
        let second = regions.take(1, 0).unwrap();
        assert_eq!((first, second), (Region { base: 0, order: 0 }, Region { base: 2, order: 1 }));
        assert_eq!(regions.take(3, 0), None);
        regions.release(first);
        regions.release(second);
        assert_eq!(regions.take(3, 0), Some(Region { base: 0, order: 3 }));
    }

    #[test]
    fn a_claimed_region_is_not_handed_out() {
        let mut regions = Regions::new(8);
        assert!(regions.claim(Region { base: 2, order: 1 }));
        assert!(!regions.claim(Region { base: 3, order: 0 }), "inside a claimed one");
        assert!(!regions.claim(Region { base: 0, order: 2 }), "around a claimed one");
        assert!(!regions.claim(Region { base: 1, order: 1 }), "not aligned");
        assert_eq!(regions.take(1, 0), Some(Region { base: 0, order: 1 }));
        assert_eq!(regions.take(2, 0), Some(Region { base: 4, order: 2 }));
        assert_eq!(regions.take(0, 0), None);
    }

    #[test]
    fn a_retired_region_rests() {
        let mut regions = Regions::new(1);
        let only = regions.take(0, 0).unwrap();
        regions.retire(only, 0);
        assert_eq!(regions.take(0, GRACE - 1), None);
        assert_eq!(regions.take(0, GRACE), Some(only));
    }
}
