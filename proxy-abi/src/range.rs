//! `RANGES`: a longest-prefix-match trie of the source ranges of all services.

use crate::Address6;

/// Data of a key of `RANGES`, which the kernel wants behind the length of the prefix in bits: 24 bytes in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct RangeKey {
    /// Id of the ranges ([`RangesWord::id`](crate::RangesWord::id)); always matched whole.
    pub id: u32,
    /// The address, IPv4-mapped if need be.
    pub address: Address6,
}

impl RangeKey {
    /// Bits of a whole key.
    pub const BITS: u32 = 160;
    /// Bits of an IPv4 prefix before the IPv4 address: id and the mapping.
    pub const BITS_BEFORE4: u32 = 128;
    /// Bits of an IPv6 prefix before the address: the id.
    pub const BITS_BEFORE6: u32 = 32;
    /// Size of the key with its prefix length, in bytes.
    pub const SIZE: u32 = 24;

    /// The key as the kernel stores it: the prefix's length and the data.
    #[must_use]
    pub fn to_bytes(self, bits: u32) -> [u8; 24] {
        let [a, b, c, d] = self.address;
        let mut bytes = [0; 24];
        for (place, word) in bytes.chunks_exact_mut(4).zip([bits, self.id, a, b, c, d]) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}
