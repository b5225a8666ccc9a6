//! `DIRECTORY`: an array from service id to the service's region of slots.

/// Value of `DIRECTORY`: four words: the switch ([`Extent`]), the [`Shape`], the [`Terms`] and the [`RangesWord`].
pub type Directory = [u64; 4];

/// The words of a [`Directory`] by their index.
pub mod at {
    /// The [`Extent`](crate::Extent).
    pub const EXTENT: usize = 0;
    /// The [`Shape`](crate::Shape).
    pub const SHAPE: usize = 1;
    /// The [`Terms`](crate::Terms).
    pub const TERMS: usize = 2;
    /// The [`RangesWord`](crate::RangesWord).
    pub const RANGES: usize = 3;
}

/// Where the slots of a service are: base, how many there are, and how many of the first are on this node.
///
/// One word, so that a reader can never combine an old base with a new count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent(pub u64);

const COUNT_BITS: u32 = 20;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

impl Extent {
    /// No endpoints: new flows are refused.
    pub const EMPTY: Self = Self(0);
    /// Largest count of endpoints.
    pub const MAX_COUNT: u32 = (1 << COUNT_BITS) - 1;

    /// Packs base (24 bits), all (20 bits), local (20 bits).
    #[must_use]
    pub const fn new(base: u32, all: u32, local: u32) -> Self {
        Self(
            ((base as u64) << (2 * COUNT_BITS))
                | ((all as u64 & COUNT_MASK) << COUNT_BITS)
                | (local as u64 & COUNT_MASK),
        )
    }

    /// Index of the first slot.
    #[inline(always)]
    #[must_use]
    pub const fn base(self) -> u32 {
        (self.0 >> (2 * COUNT_BITS)) as u32
    }

    /// How many slots there are.
    #[inline(always)]
    #[must_use]
    pub const fn all(self) -> u32 {
        ((self.0 >> COUNT_BITS) & COUNT_MASK) as u32
    }

    /// How many of the first slots are endpoints on this node.
    #[inline(always)]
    #[must_use]
    pub const fn local(self) -> u32 {
        (self.0 & COUNT_MASK) as u32
    }

    /// How many endpoints may serve under policy Local or Cluster.
    #[inline(always)]
    #[must_use]
    pub const fn count(self, local: bool) -> u32 {
        if local { self.local() } else { self.all() }
    }

    /// The slot of one of the first `count` endpoints, by an even random number.
    ///
    /// By multiplication: as even as a modulo and without the division.
    #[inline(always)]
    #[must_use]
    pub const fn choice(self, count: u32, random: u32) -> u32 {
        self.base().wrapping_add(((random as u64 * count as u64) >> 32) as u32)
    }
}

/// What the daemon needs to rebuild its allocator from the map: size of the region and family of the backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape(pub u64);

impl Shape {
    const IN_USE: u64 = 1 << 63;
    const IPV6: u64 = 1 << 62;

    /// A service in use whose region has `1 << order` slots.
    #[must_use]
    pub const fn new(order: u8, ipv6: bool) -> Self {
        Self(Self::IN_USE | if ipv6 { Self::IPV6 } else { 0 } | order as u64)
    }

    /// The entry belongs to a service.
    #[must_use]
    pub const fn in_use(self) -> bool {
        self.0 & Self::IN_USE != 0
    }

    /// Slots refer to `BACKENDS6`.
    #[must_use]
    pub const fn ipv6(self) -> bool {
        self.0 & Self::IPV6 != 0
    }

    /// Binary logarithm of the size of the region.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the lowest byte is meant")]
    pub const fn order(self) -> u8 {
        self.0 as u8
    }
}

/// How programs choose among the endpoints of a service port. Changed by one store.
///
/// From the top: service port 32 (the directory entry that stands for it in affinity records and in backends; a service
/// port whose lists differ has two entries and one of them stands for both), flags 8, affinity timeout 24 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms(pub u64);

impl Terms {
    const KEEPS_DESTINATION: u64 = 1 << 24;
    const SILENT: u64 = 1 << 25;
    const TIMEOUT: u64 = (1 << 24) - 1;

    /// Terms of the service port that entry `port` stands for. `timeout`: of session affinity in seconds, 0 without.
    /// `keeps_destination`: under policy Local without an endpoint on this node, a socket's flow keeps its destination
    /// if true, and is refused if false. `silent`: there, packets are dropped if true, and refused if false.
    #[must_use]
    pub const fn new(port: u32, timeout: u32, keeps_destination: bool, silent: bool) -> Self {
        let keeps_destination = if keeps_destination { Self::KEEPS_DESTINATION } else { 0 };
        let silent = if silent { Self::SILENT } else { 0 };
        Self(((port as u64) << 32) | keeps_destination | silent | (timeout as u64 & Self::TIMEOUT))
    }

    /// The entry that stands for the service port.
    #[inline(always)]
    #[must_use]
    pub const fn port(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Affinity timeout in seconds, 0 without affinity.
    #[inline(always)]
    #[must_use]
    pub const fn timeout(self) -> u64 {
        self.0 & Self::TIMEOUT
    }

    /// See [`Terms::new`].
    #[inline(always)]
    #[must_use]
    pub const fn keeps_destination(self) -> bool {
        self.0 & Self::KEEPS_DESTINATION != 0
    }

    /// See [`Terms::new`].
    #[inline(always)]
    #[must_use]
    pub const fn silent(self) -> bool {
        self.0 & Self::SILENT != 0
    }
}

/// The sources that may use the [`filtered`](crate::Lead) frontends of a service: id of the ranges in `RANGES` in the
/// lower 32 bits, 0 for none; bit 32: this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RangesWord(pub u64);

impl RangesWord {
    const NODE: u64 = 1 << 32;

    /// The ranges `id`, and this node itself or not.
    #[must_use]
    pub const fn new(id: u32, node: bool) -> Self {
        Self(id as u64 | if node { Self::NODE } else { 0 })
    }

    /// Id of the ranges.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
    pub const fn id(self) -> u32 {
        self.0 as u32
    }

    /// This node itself is inside.
    #[inline(always)]
    #[must_use]
    pub const fn node(self) -> bool {
        self.0 & Self::NODE != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extent_gives_back_its_parts_at_their_limits() {
        for (base, all, local) in [(0, 0, 0), (1, 2, 1), ((1 << 24) - 1, Extent::MAX_COUNT, Extent::MAX_COUNT)] {
            let extent = Extent::new(base, all, local);
            assert_eq!((extent.base(), extent.all(), extent.local()), (base, all, local));
        }
    }

    #[test]
    fn a_zeroed_entry_is_not_in_use() {
        assert!(!Shape::default().in_use());
        let shape = Shape::new(5, true);
        assert_eq!((shape.in_use(), shape.ipv6(), shape.order()), (true, true, 5));
    }

    #[test]
    fn terms_and_ranges_give_back_their_parts() {
        for (keeps_destination, silent) in [(false, false), (false, true), (true, false), (true, true)] {
            let terms = Terms::new(u32::MAX, 86_400, keeps_destination, silent);
            assert_eq!((terms.port(), terms.timeout()), (u32::MAX, 86_400));
            assert_eq!((terms.keeps_destination(), terms.silent()), (keeps_destination, silent));
        }
        assert_eq!(Terms::default().timeout(), 0);
        let ranges = RangesWord::new(7, true);
        assert_eq!((ranges.id(), ranges.node(), RangesWord::new(7, false).node()), (7, true, false));
    }
}
