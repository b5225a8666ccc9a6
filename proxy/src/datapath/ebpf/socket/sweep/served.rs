//! The cgroups below which the programs run: a socket made elsewhere never gets an endpoint, however old it is.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The inode number of the root of a cgroup v2 tree, which is its id (KERNFS_ROOT_ID).
const ROOT: u64 = 1;

/// The cgroup to which the programs are attached.
#[derive(Debug)]
pub(super) struct Served(PathBuf);

/// The served cgroups at one moment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cgroups {
    /// All that there are.
    All,
    /// Those with these ids.
    These(HashSet<u64>),
}

impl Served {
    pub(super) fn new(cgroup: &Path) -> Self {
        Self(cgroup.to_owned())
    }

    /// Reads the tree below the cgroup, unless it is the root.
    pub(super) fn now(&self) -> io::Result<Cgroups> {
        let top = fs::metadata(&self.0)?.ino();
        if top == ROOT {
            return Ok(Cgroups::All);
        }
        let (mut ids, mut unread) = (HashSet::from([top]), vec![self.0.clone()]);
        while let Some(directory) = unread.pop() {
            // A cgroup that was removed meanwhile has no sockets any more.
            let Ok(entries) = fs::read_dir(directory) else { continue };
            for entry in entries.filter_map(Result::ok) {
                if entry.file_type().is_ok_and(|kind| kind.is_dir())
                    && let Ok(found) = entry.metadata()
                {
                    ids.insert(found.ino());
                    unread.push(entry.path());
                }
            }
        }
        Ok(Cgroups::These(ids))
    }
}

impl Cgroups {
    /// Whether a socket of this cgroup is served. A kernel that does not say which it is leaves only the root.
    pub(super) fn hold(&self, cgroup: Option<u64>) -> bool {
        match self {
            Self::All => true,
            Self::These(ids) => cgroup.is_some_and(|cgroup| ids.contains(&cgroup)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_directories_below_are_served_and_none_beside() {
        let root = tempfile::tempdir().unwrap();
        let made = ["node", "node/pod", "node/pod/container", "beside"].map(|name| {
            let path = root.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::metadata(path).unwrap().ino()
        });
        let served = Served::new(&root.path().join("node")).now().unwrap();
        assert_eq!(made.map(|id| served.hold(Some(id))), [true, true, true, false]);
        assert!(!served.hold(None) && Cgroups::All.hold(None) && Cgroups::All.hold(Some(7)));
    }
}
