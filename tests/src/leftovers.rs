//! Removing what labs made, by their prefix: at the end, after a crash, and before the next lab.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{env, fs, io};

use anyhow::Context as _;

use crate::host;

/// First part of every name; the second is the lab's name, the third the process that made it.
const FAMILY: &str = "shunt";
const NETNS_DIR: &str = "/run/netns";

/// The prefix of everything a lab of this process makes.
pub(crate) fn prefix(name: &str) -> String {
    format!("{FAMILY}-{name}-{}", std::process::id())
}

/// Removes everything that carries `prefix`: processes, namespaces, cgroups, BPF pins, temporary files.
///
/// What is gone already counts as removed. The first failure is returned after everything has been tried.
pub fn remove(prefix: &str) -> anyhow::Result<()> {
    let results = [remove_cgroups(prefix), remove_namespaces(prefix), remove_pins(prefix), remove_files(prefix)];
    results.into_iter().collect::<anyhow::Result<()>>().with_context(|| format!("removing what {prefix} left"))
}

/// What still carries `prefix`: nothing, after [`remove`].
pub(crate) fn remaining(prefix: &str) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for directory in places()? {
        let ours = names(&directory)?.into_iter().filter(|name| carries(name, prefix));
        found.extend(ours.map(|name| directory.join(name).display().to_string()));
    }
    Ok(found)
}

/// Where labs leave traces.
fn places() -> anyhow::Result<[PathBuf; 4]> {
    Ok([PathBuf::from(NETNS_DIR), host::cgroup2_root()?, PathBuf::from("/sys/fs/bpf"), env::temp_dir()])
}

/// Removes what labs of dead processes left behind.
pub fn remove_leftovers() -> anyhow::Result<()> {
    let mut prefixes = Vec::new();
    for directory in places()? {
        prefixes.extend(names(&directory)?.iter().filter_map(|name| dead_prefix(name)));
    }
    prefixes.sort();
    prefixes.dedup();
    prefixes.iter().try_for_each(|prefix| remove(prefix))
}

/// The lab prefix of a name whose process is dead.
fn dead_prefix(name: &str) -> Option<String> {
    let mut parts = name.splitn(4, '-');
    let (family, lab, pid) = (parts.next()?, parts.next()?, parts.next()?);
    let ours = family == FAMILY && !lab.is_empty() && pid.parse::<u32>().is_ok();
    (ours && !Path::new("/proc").join(pid).exists()).then(|| format!("{family}-{lab}-{pid}"))
}

fn carries(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

fn names(directory: &Path) -> anyhow::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", directory.display())),
    };
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}

fn remove_namespaces(prefix: &str) -> anyhow::Result<()> {
    let found: Vec<String> = names(Path::new(NETNS_DIR))?.into_iter().filter(|name| carries(name, prefix)).collect();
    if found.is_empty() {
        return Ok(());
    }
    let lines: String = found.iter().map(|name| format!("netns del {name}\n")).collect();
    match host::ip_batch(None, &lines) {
        // The guard of a dead process and the next lab may both be at it.
        Err(error) if found.iter().any(|name| Path::new(NETNS_DIR).join(name).exists()) => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn remove_pins(prefix: &str) -> anyhow::Result<()> {
    gone(fs::remove_dir_all(Path::new("/sys/fs/bpf").join(prefix)))
        .with_context(|| format!("removing the pins of {prefix}"))
}

fn remove_files(prefix: &str) -> anyhow::Result<()> {
    gone(fs::remove_dir_all(env::temp_dir().join(prefix))).with_context(|| format!("removing the files of {prefix}"))
}

fn remove_cgroups(prefix: &str) -> anyhow::Result<()> {
    let root = host::cgroup2_root()?.join(prefix);
    if !root.exists() {
        return Ok(());
    }
    kill_all(&root)?;
    remove_tree(&root).with_context(|| format!("removing cgroup {}", root.display()))
}

/// Kills every process below a cgroup and waits until they are gone. Kernel: 5.14 for `cgroup.kill`.
fn kill_all(root: &Path) -> anyhow::Result<()> {
    gone(fs::write(root.join("cgroup.kill"), "1")).with_context(|| format!("killing cgroup {}", root.display()))?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while populated(root)? {
        if Instant::now() > deadline {
            anyhow::bail!("processes in {} outlive being killed", root.display());
        }
        sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn populated(root: &Path) -> anyhow::Result<bool> {
    match fs::read_to_string(root.join("cgroup.events")) {
        Ok(events) => Ok(events.lines().any(|line| line == "populated 1")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("reading cgroup.events of {}", root.display())),
    }
}

/// `remove_dir_all` cannot be used: the files of a cgroup cannot be unlinked, only its directories removed.
fn remove_tree(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => return gone(Err(error)),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    // A killed process leaves its cgroup a moment after it is reported dead.
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {
                sleep(Duration::from_millis(2));
            }
            result => return gone(result),
        }
    }
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::{carries, dead_prefix};

    #[test]
    fn only_names_with_the_whole_prefix_belong_to_a_lab() {
        assert!(carries("shunt-demo-12", "shunt-demo-12"));
        assert!(carries("shunt-demo-12-n1-web", "shunt-demo-12"));
        assert!(!carries("shunt-demo-123", "shunt-demo-12"));
    }

    #[test]
    fn names_of_living_processes_and_of_others_are_left_alone() {
        let own = std::process::id();
        assert_eq!(dead_prefix(&format!("shunt-demo-{own}-router")), None);
        assert_eq!(dead_prefix("shunt-demo-4194999-router"), Some("shunt-demo-4194999".to_owned()));
        assert_eq!(dead_prefix("shunt"), None);
        assert_eq!(dead_prefix("cilium-demo-4194999"), None);
    }
}
