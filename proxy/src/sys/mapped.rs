//! An array map seen as memory: 64-bit words that are read and written whole.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// The values of a BPF array map created with `BPF_F_MMAPABLE` (kernel 5.5), as one row of words.
///
/// A store is one aligned 8-byte write with release order: a program sees the old or the new word, and sees words
/// stored earlier if it sees this one.
#[derive(Debug)]
pub struct Mapped {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the memory is shared with the kernel anyway and only touched through atomics.
unsafe impl Send for Mapped {}

// SAFETY: as for `Send`: every access is one atomic operation.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps `words` words of the values of `map`. The kernel refuses more than the map has.
    pub fn new(map: BorrowedFd<'_>, words: usize) -> io::Result<Self> {
        let bytes = words.checked_mul(8).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory of ours.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, map.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Self { start, words })
    }

    fn word(&self, index: usize) -> Option<&AtomicU64> {
        if index >= self.words {
            return None;
        }
        // SAFETY: `index` is below the number of mapped words.
        let word = unsafe { self.start.add(index) };
        // SAFETY: the mapping lives as long as `self`, is page-aligned, and any bytes are a valid `AtomicU64`.
        Some(unsafe { word.as_ref() })
    }

    /// The word at `index`; `None` beyond the end.
    #[must_use]
    pub fn load(&self, index: usize) -> Option<u64> {
        self.word(index).map(|word| word.load(Ordering::Acquire))
    }

    /// Writes the word at `index`.
    pub fn store(&self, index: usize, value: u64) -> io::Result<()> {
        let word = self.word(index).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        word.store(value, Ordering::Release);
        Ok(())
    }

    /// Writes the word at `index` with what `change` makes of it, in one step: no other change is lost, nor is this
    /// one.
    pub fn update(&self, index: usize, change: impl Fn(u64) -> u64) -> io::Result<()> {
        let word = self.word(index).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        match word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| Some(change(now))) {
            Ok(_former) | Err(_former) => Ok(()),
        }
    }

    /// How many words there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.words
    }

    /// There are no words.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words == 0
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made by `new`, and no reference into it outlives `self`.
        let result = unsafe { libc::munmap(self.start.as_ptr().cast(), self.words.saturating_mul(8)) };
        debug_assert_eq!(result, 0, "unmapping our own mapping cannot fail");
    }
}
