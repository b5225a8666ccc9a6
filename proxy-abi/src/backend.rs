//! `BACKENDS4`, `BACKENDS6`: arrays of endpoints, referred to by index and generation.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Address4, Address6, Port};

/// A reference to one generation of one backend element: index in the lower 20 bits, generation in the upper 12.
///
/// An element that is used again has another generation, so a stale reference of a socket, an affinity record or a slow
/// reader no longer matches. Generation 0 is never alive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendRef(pub u32);

const INDEX_BITS: u32 = 20;

impl BackendRef {
    /// Largest generation; the next one is 1 again.
    pub const MAX_GENERATION: u16 = (1 << 12) - 1;

    /// The reference to `index` in `generation`.
    #[must_use]
    pub const fn new(index: u32, generation: u16) -> Self {
        Self((index & ((1 << INDEX_BITS) - 1)) | ((generation as u32) << INDEX_BITS))
    }

    /// Index into the backend array of the family.
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> u32 {
        self.0 & ((1 << INDEX_BITS) - 1)
    }

    /// The generation of that element.
    #[inline(always)]
    #[must_use]
    pub const fn generation(self) -> u16 {
        (self.0 >> INDEX_BITS) as u16
    }
}

/// The generation after `generation`; never 0.
#[must_use]
pub const fn next_generation(generation: u16) -> u16 {
    if generation >= BackendRef::MAX_GENERATION { 1 } else { generation + 1 }
}

/// What a backend is in its service port: from the bottom, last generation 16, listed 1, local 1 bit; service port 32.
///
/// The daemon reads it after a restart, and programs that follow an affinity record read it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Standing(pub u64);

impl Standing {
    const LISTED: u64 = 1 << 16;
    const LOCAL: u64 = 1 << 17;

    /// A backend of the service port that directory entry `port` stands for. `listed`: policy Cluster may choose it;
    /// `local`: it is on this node, and policy Local may choose it unless it drains. One that is neither drains:
    /// flows to it go on, new ones do not reach it.
    #[must_use]
    pub const fn new(generation: u16, port: u32, listed: bool, local: bool) -> Self {
        let listed = if listed { Self::LISTED } else { 0 };
        let local = if local { Self::LOCAL } else { 0 };
        Self(((port as u64) << 32) | listed | local | generation as u64)
    }

    /// The last generation of the element that was ever used; alive or not.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the lowest quarter is meant")]
    pub const fn generation(self) -> u16 {
        self.0 as u16
    }

    /// The directory entry that stands for the service port.
    #[inline(always)]
    #[must_use]
    pub const fn port(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// No new flow may choose it.
    #[must_use]
    pub const fn drains(self) -> bool {
        self.0 & (Self::LISTED | Self::LOCAL) == 0
    }

    /// Whether a new flow may choose it, under policy Local or Cluster.
    #[inline(always)]
    #[must_use]
    pub const fn may_serve(self, local: bool) -> bool {
        self.0 & if local { Self::LOCAL } else { Self::LISTED } != 0
    }
}

/// Packs what identifies a living backend beside its address: generation, port.
#[inline(always)]
const fn life(port: Port, generation: u16) -> u64 {
    ((generation as u64) << 16) | port as u64
}

/// Value of `BACKENDS4`. `words[0]`: generation 16 (0: dead), port 16, address 32 bits; one load gives a
/// consistent endpoint. `words[1]`: [`Standing`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Backend4 {
    /// See the type.
    pub words: [u64; 2],
}

impl Backend4 {
    /// Index of the word that holds generation, port and address.
    pub const LIFE: usize = 0;
    /// Index of the word that holds the [`Standing`].
    pub const STANDING: usize = 1;

    /// A living backend.
    #[must_use]
    pub const fn new(address: Address4, port: Port, standing: Standing) -> Self {
        Self { words: [(life(port, standing.generation()) << 32) | address as u64, standing.0] }
    }

    /// Address in `words[0]`.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
    pub const fn address(word: u64) -> Address4 {
        word as u32
    }

    /// Port in `words[0]`.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the third quarter is meant")]
    pub const fn port(word: u64) -> Port {
        (word >> 32) as u16
    }

    /// Generation in `words[0]`.
    #[inline(always)]
    #[must_use]
    pub const fn generation(word: u64) -> u16 {
        (word >> 48) as u16
    }
}

/// Value of `BACKENDS6`. `words[0..2]`: address; `words[2]`: generation 16 (0: dead), port 16 bits; `words[3]`:
/// [`Standing`].
///
/// The address does not fit into one word with the generation. It is written before `words[2]` and an element is not
/// used again until every program that may hold a reference has ended (the daemon waits).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Backend6 {
    /// See the type.
    pub words: [u64; 4],
}

impl Backend6 {
    /// Index of the word that holds generation and port.
    pub const LIFE: usize = 2;
    /// Index of the word that holds the [`Standing`].
    pub const STANDING: usize = 3;

    /// A living backend.
    #[must_use]
    pub const fn new(address: Address6, port: Port, standing: Standing) -> Self {
        let [a, b, c, d] = address;
        let first = ((b as u64) << 32) | a as u64;
        let second = ((d as u64) << 32) | c as u64;
        Self { words: [first, second, life(port, standing.generation()), standing.0] }
    }

    /// Address in `words[0..2]`.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "halves are meant")]
    pub const fn address(first: u64, second: u64) -> Address6 {
        [first as u32, (first >> 32) as u32, second as u32, (second >> 32) as u32]
    }

    /// Port in `words[2]`.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the lowest quarter is meant")]
    pub const fn port(word: u64) -> Port {
        word as u16
    }

    /// Generation in `words[2]`.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the second quarter is meant")]
    pub const fn generation(word: u64) -> u16 {
        (word >> 16) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_gives_back_its_parts() {
        let standing = Standing::new(4095, 9, true, false);
        let word = Backend4::new(0x0102_0304, 8080, standing).words[0];
        assert_eq!(
            (Backend4::address(word), Backend4::port(word), Backend4::generation(word)),
            (0x0102_0304, 8080, 4095)
        );
        let six = Backend6::new([1, 2, 3, 4], 8080, Standing::new(7, 9, true, true)).words;
        assert_eq!(Backend6::address(six[0], six[1]), [1, 2, 3, 4]);
        assert_eq!((Backend6::port(six[2]), Backend6::generation(six[2])), (8080, 7));
    }

    #[test]
    fn a_standing_gives_back_its_parts() {
        let standing = Standing::new(4095, u32::MAX, true, false);
        assert_eq!((standing.generation(), standing.port()), (4095, u32::MAX));
        assert!(standing.may_serve(false) && !standing.may_serve(true));
        let draining = Standing::new(1, 2, false, false);
        assert!(!draining.may_serve(false) && !draining.may_serve(true));
    }

    #[test]
    fn generations_go_round_without_zero() {
        assert_eq!(next_generation(0), 1);
        assert_eq!(next_generation(BackendRef::MAX_GENERATION), 1);
        let reference = BackendRef::new((1 << 20) - 1, BackendRef::MAX_GENERATION);
        assert_eq!((reference.index(), reference.generation()), ((1 << 20) - 1, BackendRef::MAX_GENERATION));
    }
}
