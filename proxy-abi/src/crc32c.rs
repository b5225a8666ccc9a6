//! The checksum of SCTP, CRC32c: what becomes of it if the first word of a packet changes.
//!
//! It is linear: the checksums of two packets of one length differ by that of their difference, which is one word and
//! zeroes behind it. So the rest of the packet is not read. A polynomial is a word with its highest power in bit 0, as
//! the protocol has it.

/// Of Castagnoli, without x^32.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// What a polynomial is multiplied by for 2^`N` bytes of zeroes behind it: x^(8 * 2^N).
struct Zeroes<const N: usize>;

impl<const N: usize> Zeroes<N> {
    const FACTOR: u32 = {
        let (mut factor, mut at) = (1 << (31 - 8), 0);
        while at < N {
            factor = product(factor, factor);
            at += 1;
        }
        factor
    };

    /// With so many of `length` bytes behind it.
    #[inline(always)]
    const fn behind(word: u32, length: u32) -> u32 {
        if length >> N & 1 == 0 { word } else { product(word, Self::FACTOR) }
    }
}

/// The product of two polynomials.
#[inline(always)]
const fn product(left: u32, right: u32) -> u32 {
    let (mut left, mut right, mut product, mut step) = (left, right, 0, 0);
    while step < u32::BITS {
        // Without branches, which a processor would guess wrong half of the time.
        product ^= right & 0_u32.wrapping_sub(left >> 31);
        right = right >> 1 ^ POLYNOMIAL & 0_u32.wrapping_sub(right & 1);
        left <<= 1;
        step += 1;
    }
    product
}

/// The checksum of a packet of `length` bytes, up to 65,535, after its first four have changed in the bits of
/// `difference`. Both are words as they lie in a packet.
#[inline(always)]
#[must_use]
pub const fn changed(checksum: u32, difference: u32, length: u32) -> u32 {
    let word = Zeroes::<0>::behind(u32::from_le(difference), length);
    let word = Zeroes::<1>::behind(word, length);
    let word = Zeroes::<2>::behind(word, length);
    let word = Zeroes::<3>::behind(word, length);
    let word = Zeroes::<4>::behind(word, length);
    let word = Zeroes::<5>::behind(word, length);
    let word = Zeroes::<6>::behind(word, length);
    let word = Zeroes::<7>::behind(word, length);
    let word = Zeroes::<8>::behind(word, length);
    let word = Zeroes::<9>::behind(word, length);
    let word = Zeroes::<10>::behind(word, length);
    let word = Zeroes::<11>::behind(word, length);
    let word = Zeroes::<12>::behind(word, length);
    let word = Zeroes::<13>::behind(word, length);
    let word = Zeroes::<14>::behind(word, length);
    checksum ^ Zeroes::<15>::behind(word, length).to_le()
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    /// The checksum of these bytes, one after the other, by a table.
    fn checksum(bytes: &[u8]) -> u32 {
        let table: Vec<u32> = (0..256)
            .map(|byte| (0..8).fold(byte, |rest, _| if rest & 1 == 1 { rest >> 1 ^ 0x82f6_3b78 } else { rest >> 1 }))
            .collect();
        !bytes.iter().fold(!0, |rest, byte| rest >> 8 ^ table[usize::from(rest.to_le_bytes()[0] ^ byte)])
    }

    #[test]
    fn the_first_word_of_a_packet_of_any_length_may_change() {
        // As many documents give it.
        assert_eq!(checksum(b"123456789"), 0xe306_9283);
        let mut bytes: Vec<u8> = (0..65_535_u32).map(|at| at.wrapping_mul(0x9e37_79b1).to_be_bytes()[0]).collect();
        let lengths =
            (4..600).chain((10..16).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) + 1])).chain([65_535]);
        for (length, change) in
            lengths.zip([[0x9c, 0x40, 0, 0], [0, 0, 0x1f, 0x90], [1, 2, 3, 4], [0, 0, 0, 1]].iter().cycle())
        {
            let before = checksum(&bytes[..length]).to_le();
            bytes.iter_mut().zip(change).for_each(|(byte, change)| *byte ^= change);
            let length = u32::try_from(length).unwrap();
            let after = changed(before, u32::from_ne_bytes(*change), length);
            assert_eq!(after, checksum(&bytes[..length as usize]).to_le(), "{length} bytes, {change:x?}");
            assert_eq!(changed(before, 0, length), before);
        }
    }
}
