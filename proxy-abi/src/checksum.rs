//! The checksum of IP, TCP, UDP and ICMP (RFC 1071), and what a change of a packet does to it (RFC 1624).

use crate::{Address4, Address6};

/// A sum of words as one word.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "what is above was added below")]
pub const fn word(sum: u64) -> u32 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    ((sum & 0xffff_ffff) + (sum >> 32)) as u32
}

/// The same as a half, of which a checksum is the complement.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "what is above was added below")]
pub const fn half(sum: u64) -> u16 {
    let sum = word(sum);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// What the sum over a packet changes by if `new` takes the place of `old`.
#[inline(always)]
#[must_use]
pub const fn difference(old: &Address6, new: &Address6) -> u32 {
    let ([a, b, c, d], [e, f, g, h]) = (*old, *new);
    word(!a as u64 + !b as u64 + !c as u64 + !d as u64 + e as u64 + f as u64 + g as u64 + h as u64)
}

/// The checksum of a header after `new` took the place of `old`.
#[inline(always)]
#[must_use]
pub const fn changed(checksum: u16, old: Address4, new: Address4) -> u16 {
    !half(!checksum as u64 + !old as u64 + new as u64)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::*;

    /// The checksum of these words, with none of its own among them.
    fn checksum(words: &[u32]) -> u16 {
        !half(words.iter().map(|word| u64::from(*word)).sum())
    }

    #[test]
    fn the_example_of_the_rfc() {
        let words = [[0x00, 0x01, 0xf2, 0x03], [0xf4, 0xf5, 0xf6, 0xf7]].map(u32::from_ne_bytes);
        assert_eq!((!checksum(&words)).to_ne_bytes(), [0xdd, 0xf2]);
    }

    proptest! {
        #[test]
        fn a_change_of_one_word_is_taken_along(first in 1..u32::MAX, old: u32, new: u32) {
            prop_assert_eq!(changed(checksum(&[first, old]), old, new), checksum(&[first, new]));
        }

        #[test]
        fn a_change_of_an_address_is_taken_along(first in 1..u32::MAX, old: [u32; 4], new in any::<[u32; 4]>()) {
            let of = |[a, b, c, d]: [u32; 4]| checksum(&[first, a, b, c, d]);
            let after = !half(u64::from(!of(old)) + u64::from(difference(&old, &new)));
            prop_assert_eq!(after, of(new));
        }
    }
}
