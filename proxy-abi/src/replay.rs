//! What the programs are measured with.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A packet that is given to a program again and again: 72 bytes, no padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Replayed {
    /// A frame of IPv4 without options.
    pub frame: [u8; 64],
    /// The first of the source ports that it gets in turns.
    pub first: u16,
    /// How many there are; 0 leaves the frame's own.
    pub ports: u16,
    /// How often it was given.
    pub turns: u32,
}

impl Replayed {
    /// Where the source port is.
    const PORT: usize = 34;

    /// Gives the frame its next source port.
    #[inline(always)]
    pub const fn turn(&mut self) {
        if self.ports == 0 {
            return;
        }
        #[expect(clippy::cast_possible_truncation, reason = "below the number of ports")]
        let [high, low] = self.first.wrapping_add((self.turns % self.ports as u32) as u16).to_be_bytes();
        self.turns = self.turns.wrapping_add(1);
        self.frame[Self::PORT] = high;
        self.frame[Self::PORT + 1] = low;
    }
}
