//! Whether the processes of pods are below the cgroup that the programs are attached to.
//!
//! In a container with a cgroup namespace of its own, the root that it sees is not the host's; without this check pods
//! beside it would silently get no load balancing (DP-14).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::host::cgroup;
use crate::host::netns::Inventory;

/// The processes of pods whose cgroup is not below `root`, with that cgroup: one process for each network namespace.
pub(super) fn uncovered(root: &Path, inventory: &Inventory) -> io::Result<Vec<(u32, String)>> {
    let Ok(mount) = cgroup::discover() else { return Ok(Vec::new()) };
    let served = served(root, &mount);
    let mut outside = Vec::new();
    for process in inventory.namespaces.iter().filter(|namespace| !namespace.own).filter_map(|n| n.process) {
        let path = inventory.proc.join(process.to_string()).join("cgroup");
        match fs::read_to_string(&path) {
            Ok(text) => outside.extend(
                cgroup_of(&text).filter(|path| !is_below(path, &served)).map(|path| (process, path.to_owned())),
            ),
            // It has ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(outside)
}

/// The attached directory as `/proc/<pid>/cgroup` would call it.
fn served(root: &Path, mount: &cgroup::Mount) -> PathBuf {
    let below = root.strip_prefix(&mount.path).unwrap_or_else(|_| Path::new(""));
    mount.root.join(below)
}

/// The cgroup v2 path in a `/proc/<pid>/cgroup`.
fn cgroup_of(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

fn is_below(path: &str, served: &Path) -> bool {
    // A path that leaves our cgroup namespace begins with `/..`.
    !path.starts_with("/..") && Path::new(path).starts_with(served)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(cgroup: &str, served: &str, wanted: bool) {
        let text = format!("12:devices:/user.slice\n0::{cgroup}\n");
        assert_eq!(is_below(cgroup_of(&text).unwrap(), Path::new(served)), wanted);
    }

    #[test]
    fn a_process_is_served_below_the_attached_directory() {
        check("/kubepods/pod1/c1", "/", true);
        check("/kubepods/pod1/c1", "/kubepods", true);
        check("/", "/", true);
        check("/kubepods-other/c1", "/kubepods", false);
        check("/system.slice", "/kubepods", false);
        check("/../pod2", "/", false);
    }
}
