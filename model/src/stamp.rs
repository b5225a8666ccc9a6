//! Detects whether a file has changed since it was read.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::SystemTime;

/// Metadata that change whenever a file's content does. Not noticed: a rewrite of the same length within one tick of
/// the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: Option<SystemTime>,
    /// Seconds and nanoseconds; unlike `modified`, programs cannot set it.
    changed: (i64, i64),
}

impl Stamp {
    /// The stamp of the file with these metadata.
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
