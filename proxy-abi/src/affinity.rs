//! `AFFINITY`: an LRU hash map from a client of a service port to the endpoint it had last (SA-1, SA-16).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Address6, BackendRef};

/// Key of `AFFINITY`: 24 bytes, no padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AffinityKey {
    /// The client: its source address, or for sockets of this node the cookie of the network namespace in the first
    /// two words. A pod has a namespace and an address of its own, and all that run in the node's share both (SA-2).
    pub client: Address6,
    /// The directory entry that stands for the service port ([`Terms::port`](crate::Terms::port)).
    pub port: u32,
    /// [`AffinityKey::NAMESPACE`] or [`AffinityKey::ADDRESS`].
    pub kind: u32,
}

impl AffinityKey {
    /// `client` is the cookie of a network namespace.
    pub const NAMESPACE: u32 = 0;
    /// `client` is a source address.
    pub const ADDRESS: u32 = 1;

    /// The key of a socket in the network namespace with this cookie.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "both halves are kept")]
    pub const fn of_namespace(cookie: u64, port: u32) -> Self {
        Self { client: [cookie as u32, (cookie >> 32) as u32, 0, 0], port, kind: Self::NAMESPACE }
    }

    /// Which endpoint to choose, out of 2^32, when `record` has run out or leads to none.
    ///
    /// Flows of a client that begin at the same moment on several processors have read the same record and so get the
    /// same endpoint, without a lock; clients are spread, and a client is moved from one time to the next.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is as good as the upper")]
    pub const fn seed(self, record: Option<AffinityValue>) -> u32 {
        let [a, b, c, d] = self.client;
        let record = match record {
            Some(record) => record.0,
            None => 0,
        };
        let mut seed = mixed((a as u64) << 32 | b as u64);
        seed = mixed(seed ^ ((c as u64) << 32 | d as u64));
        seed = mixed(seed ^ self.port as u64);
        mixed(seed ^ record) as u32
    }
}

/// Each bit of the input changes each bit of the output about half the time (the finalizer of `MurmurHash3`).
#[inline(always)]
pub(crate) const fn mixed(mut bits: u64) -> u64 {
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    bits ^ (bits >> 33)
}

/// Value of `AFFINITY`: the backend's reference in the lower 32 bits; above, when the last new flow began.
///
/// Time is counted in steps of 2^24 ns (16.8 ms) of the monotonic clock, modulo 2^32 steps (834 days).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AffinityValue(pub u64);

const STEP_BITS: u32 = 24;

impl AffinityValue {
    /// A new flow to `backend` at `now` nanoseconds.
    #[inline(always)]
    #[must_use]
    pub const fn new(backend: BackendRef, now: u64) -> Self {
        Self(((now >> STEP_BITS) << 32) | backend.0 as u64)
    }

    /// The backend.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
    pub const fn backend(self) -> BackendRef {
        BackendRef(self.0 as u32)
    }

    /// Less than `timeout` seconds have passed at `now` nanoseconds since the last new flow (SA-3).
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the difference of two counters modulo 2^32")]
    pub const fn is_valid(self, now: u64, timeout: u64) -> bool {
        let elapsed = ((now >> STEP_BITS) as u32).wrapping_sub((self.0 >> 32) as u32);
        (elapsed as u64) < ((timeout * 1_000_000_000) >> STEP_BITS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[track_caller]
    fn check(began: u64, now: u64, timeout: u64, valid: bool) {
        let value = AffinityValue::new(BackendRef::new(5, 7), began);
        assert_eq!((value.backend(), value.is_valid(now, timeout)), (BackendRef::new(5, 7), valid));
    }

    #[test]
    fn a_record_is_valid_until_its_timeout() {
        check(0, 0, 1, true);
        check(0, SECOND * 9 / 10, 1, true);
        check(0, SECOND, 1, false);
        check(5 * SECOND, 129 * SECOND, 125, true); // E2E-24
        check(5 * SECOND, 135 * SECOND, 125, false);
        check(0, 86_400 * SECOND - SECOND, 86_400, true);
        check(0, 86_400 * SECOND + SECOND, 86_400, false);
    }

    #[test]
    fn the_counter_may_go_round() {
        let round = 1_u64 << (32 + STEP_BITS);
        check(round - SECOND, round + SECOND, 3, true);
        check(round - SECOND, round + 3 * SECOND, 3, false);
    }

    /// How many of 3,000 seeds choose each of three endpoints.
    #[track_caller]
    fn check_spread(seeds: impl Iterator<Item = u32>) {
        let mut chosen = [0_usize; 3];
        for seed in seeds.take(3000) {
            chosen[((u64::from(seed) * 3) >> 32) as usize] += 1;
        }
        assert!(chosen.iter().all(|count| (900..1100).contains(count)), "{chosen:?}");
    }

    #[test]
    fn seeds_spread() {
        check_spread((1..).map(|cookie| AffinityKey::of_namespace(cookie, 7).seed(None)));
        check_spread((1..).map(|port| AffinityKey::of_namespace(1, port).seed(None)));
        let key = AffinityKey::of_namespace(1, 7);
        let record = |step: u64| AffinityValue::new(BackendRef::new(5, 7), step << STEP_BITS);
        check_spread((1..).map(|step| key.seed(Some(record(step)))));
        assert_eq!(key.seed(Some(record(1))), key.seed(Some(record(1))));
    }
}
