//! `SLOTS`: the array of choices; the regions of all services lie in it.

use crate::backend::BackendRef;

/// Value of `SLOTS`: backend reference in the lower 32 bits, flags above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot(pub u64);

impl Slot {
    const LOCAL: u64 = 1 << 32;

    /// A slot.
    #[must_use]
    pub const fn new(backend: BackendRef, local: bool) -> Self {
        Self(backend.0 as u64 | if local { Self::LOCAL } else { 0 })
    }

    /// The backend chosen.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
    pub const fn backend(self) -> BackendRef {
        BackendRef(self.0 as u32)
    }

    /// The backend is on this node. Under policy Local a slot without this mark means that the reader's
    /// [`Extent`](crate::Extent) is stale: read it again.
    #[inline(always)]
    #[must_use]
    pub const fn local(self) -> bool {
        self.0 & Self::LOCAL != 0
    }
}
