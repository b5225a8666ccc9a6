//! Where network namespaces can be found in the file system: below `/proc`, and where they are mounted under a name.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{NSFS_MAGIC, statfs};

use super::{inode, is_gone};

/// Device and inode number of a namespace.
pub(super) type Inode = (u64, u64);

/// How many processes of one namespace are remembered as paths to it; one may end at any time.
const PROCESSES: usize = 4;

/// A network namespace that was seen.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// The lowest process in it.
    pub(super) process: Option<u32>,
    /// Paths to it; those that last longer first.
    pub(super) paths: Vec<PathBuf>,
}

impl Place {
    pub(super) fn with_path(mut self, path: &str) -> Self {
        self.paths.push(PathBuf::from(path));
        self
    }
}

/// All that were seen.
#[derive(Debug, Default)]
pub(super) struct Places {
    pub(super) all: BTreeMap<Inode, Place>,
    /// How many could not be read.
    pub(super) unreadable: usize,
}

impl Places {
    /// Finds them. It misses a namespace that only single threads are in and no process.
    pub(super) fn find(proc: &Path, named: &[PathBuf]) -> io::Result<Self> {
        let mut places = Self::default();
        for directory in named {
            match fs::read_dir(directory) {
                Ok(entries) => entries.for_each(|entry| places.add_named(entry)),
                Err(error) if is_gone(&error) => {}
                Err(_) => places.miss(),
            }
        }
        for entry in fs::read_dir(proc)? {
            let entry = entry?;
            let process = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some(process) = process {
                places.add_process(process, entry.path().join("ns/net"));
            }
        }
        Ok(places)
    }

    /// Takes one out.
    pub(super) fn take(&mut self, inode: Inode) -> Place {
        self.all.remove(&inode).unwrap_or_default()
    }

    fn miss(&mut self) {
        self.unreadable = self.unreadable.saturating_add(1);
    }

    fn add_named(&mut self, entry: io::Result<fs::DirEntry>) {
        let found = entry.and_then(|entry| {
            // The name of a namespace that is no longer mounted is an ordinary file.
            let mounted = statfs(&entry.path())?.filesystem_type() == NSFS_MAGIC;
            Ok((inode(&fs::metadata(entry.path())?), entry.path(), mounted))
        });
        match found {
            Ok((inode, path, true)) => self.all.entry(inode).or_default().paths.push(path),
            Ok((_, _, false)) => {}
            Err(error) if is_gone(&error) => {}
            Err(_) => self.miss(),
        }
    }

    fn add_process(&mut self, process: u32, path: PathBuf) {
        match fs::metadata(&path) {
            Ok(metadata) => {
                let place = self.all.entry(inode(&metadata)).or_default();
                place.process = Some(place.process.map_or(process, |lowest| lowest.min(process)));
                if place.paths.len() < PROCESSES {
                    place.paths.push(path);
                }
            }
            Err(error) if is_gone(&error) => {}
            Err(_) => self.miss(),
        }
    }
}
