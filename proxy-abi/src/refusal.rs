//! Refusals of packets: how many there may be, and to whom.

use crate::{Address6, MAPPED_PREFIX};

/// On each processor so many nanoseconds pass from one refusal to the next, in the long run.
pub const INTERVAL: u64 = 1_000_000;
/// So many may come at once.
pub const BURST: u64 = 200;
/// A refusal quotes at most so many bytes: with its headers they are less than the 576 that every host takes.
pub const QUOTE: u32 = 512;

/// Value of a per-CPU array: the time up to which the refusals so far are paid for, in nanoseconds. At 0 nothing was
/// refused yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bucket(pub u64);

impl Bucket {
    /// After one more refusal at the time `now`; `None` if it would be one too many.
    #[inline(always)]
    #[must_use]
    pub const fn take(self, now: u64) -> Option<Self> {
        let earliest = now.saturating_sub(BURST * INTERVAL);
        let paid = if self.0 > earliest { self.0 } else { earliest } + INTERVAL;
        if paid > now { None } else { Some(Self(paid)) }
    }
}

/// Whether messages may be sent to an address: one host has it, and it is not in each host (RFC 1122, 3.2.2).
#[inline(always)]
#[must_use]
pub const fn may_be_told(address: &Address6) -> bool {
    let [a, b, c, d] = *address;
    if a == 0 && b == 0 && c == MAPPED_PREFIX {
        let [first, ..] = d.to_ne_bytes();
        return first != 0 && first != 127 && first < 224;
    }
    let [first, ..] = a.to_ne_bytes();
    // The first 96 bits are 0 in `::`, `::1` and addresses of IPv4 that no host has in IPv6.
    first != 0xff && (a | b | c) != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapped;

    /// How many of so many refusals may be sent, all at once.
    fn taken(bucket: &mut Bucket, now: u64, wanted: u64) -> u64 {
        let mut count = 0;
        for _ in 0..wanted {
            if let Some(after) = bucket.take(now) {
                *bucket = after;
                count += 1;
            }
        }
        count
    }

    #[test]
    fn a_burst_may_be_refused_and_then_one_in_each_interval() {
        let start = 3_000_000_000_000;
        let mut bucket = Bucket::default();
        assert_eq!(taken(&mut bucket, start, 10 * BURST), BURST);
        assert_eq!(taken(&mut bucket, start + INTERVAL - 1, 5), 0);
        for turn in 1..=1000 {
            assert_eq!(taken(&mut bucket, start + turn * INTERVAL, 5), 1);
        }
        // After a pause there is one burst and no more, however long it was.
        for pause in [BURST, 10 * BURST, 1_000_000 * BURST] {
            bucket = Bucket(start);
            assert_eq!(taken(&mut bucket, start + pause * INTERVAL, 10 * BURST), BURST);
        }
    }

    #[test]
    fn only_single_hosts_are_told() {
        let v4 = |octets| mapped(u32::from_ne_bytes(octets));
        let v6 =
            |first: u8, last: u8| [u32::from_ne_bytes([first, 0, 0, 0]), 0, 0, u32::from_ne_bytes([0, 0, 0, last])];
        for (address, expected) in [
            (v4([10, 0, 0, 1]), true),
            (v4([223, 255, 255, 255]), true),
            (v4([0, 0, 0, 0]), false),
            (v4([127, 0, 0, 1]), false),
            (v4([224, 0, 0, 1]), false),
            (v4([255, 255, 255, 255]), false),
            (v6(0xfd, 1), true),
            (v6(0x20, 0), true),
            (v6(0xff, 1), false),
            (v6(0, 0), false),
            (v6(0, 1), false),
        ] {
            assert_eq!(may_be_told(&address), expected, "{address:x?}");
        }
    }
}
