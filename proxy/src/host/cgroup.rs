//! Where the cgroup v2 tree is. It may be mounted in a sub-directory of a v1 tree (hybrid layout), so its place is read
//! from the mount table and never assumed (DP-0).

use std::path::{Path, PathBuf};
use std::{fs, io};

/// No cgroup v2 tree, so no programs on sockets.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The mount table could not be read.
    #[error("reading /proc/self/mountinfo")]
    Mounts(#[source] io::Error),
    /// There is no cgroup2 mount.
    #[error(
        "no cgroup2 file system is mounted: socket load balancing attaches there; mount it (mount -t cgroup2 none \
         /sys/fs/cgroup/unified) or name a directory of one with --cgroup-root"
    )]
    NotMounted,
    /// The directory given is not one of a cgroup2 tree.
    #[error("{} is not a directory of a cgroup2 file system: --cgroup-root must name one", .0.display())]
    NotCgroup(PathBuf),
}

/// A mounted cgroup v2 tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub path: PathBuf,
    /// Which part of the tree is mounted there; other than `/` in a cgroup namespace or container, where pods may be
    /// outside (DP-14).
    pub root: PathBuf,
}

/// The cgroup v2 tree of this mount namespace.
pub fn discover() -> Result<Mount, CgroupError> {
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(CgroupError::Mounts)?;
    find(&table).ok_or(CgroupError::NotMounted)
}

/// Whether `path` is a directory of a cgroup v2 tree.
pub fn verify(path: &Path) -> Result<(), CgroupError> {
    let cgroup2 = nix::sys::statfs::statfs(path)
        .is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::CGROUP2_SUPER_MAGIC);
    if cgroup2 && path.is_dir() { Ok(()) } else { Err(CgroupError::NotCgroup(path.to_owned())) }
}

/// The widest cgroup2 mount of a mount table, preferring the whole tree.
fn find(table: &str) -> Option<Mount> {
    let mounts = table.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        if after.split(' ').next()? != "cgroup2" {
            return None;
        }
        let mut fields = before.split(' ').skip(3);
        let root = PathBuf::from(unescaped(fields.next()?));
        Some(Mount { root, path: PathBuf::from(unescaped(fields.next()?)) })
    });
    mounts.min_by_key(|mount| mount.root.components().count())
}

/// The kernel writes white space and backslashes in paths as three octal digits.
fn unescaped(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (code, letter)| text.replace(code, letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(table: &str, wanted: Option<(&str, &str)>) {
        let wanted = wanted.map(|(root, path)| Mount { root: root.into(), path: path.into() });
        assert_eq!(find(table), wanted);
    }

    #[test]
    fn the_tree_is_found_wherever_it_is_mounted() {
        let unified = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw";
        let hybrid = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
        let v1 = "31 23 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu";
        let container = "50 23 0:26 /kubepods/pod1 /sys/fs/cgroup ro - cgroup2 cgroup ro";
        let odd = "50 23 0:26 / /mnt/a\\040b rw - cgroup2 none rw";
        check(unified, Some(("/", "/sys/fs/cgroup")));
        check(&format!("{v1}\n{hybrid}"), Some(("/", "/sys/fs/cgroup/unified")));
        check(v1, None);
        check("", None);
        check(&format!("{container}\n{unified}"), Some(("/", "/sys/fs/cgroup")));
        check(container, Some(("/kubepods/pod1", "/sys/fs/cgroup")));
        check(odd, Some(("/", "/mnt/a b")));
    }
}
