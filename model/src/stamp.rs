//! Tells a file from the one that was there before.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::SystemTime;

/// What differs whenever a file's content does, short of a rewrite within one tick of the clock by one who keeps the
/// length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: Option<SystemTime>,
    /// Seconds and nanoseconds; unlike the time before, nobody can set it.
    changed: (i64, i64),
}

impl Stamp {
    /// Of the file that the metadata are of.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: metadata.modified().ok(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// When the content was written, if the file system keeps that.
    #[must_use]
    pub fn modified(&self) -> Option<SystemTime> {
        self.modified
    }
}
