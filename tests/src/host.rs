//! What the lab needs of the machine it runs on: root, a few tools, cgroup2 and bpffs.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use anyhow::{Context as _, bail};
use nix::mount::{MsFlags, mount};

const BPFFS: &str = "/sys/fs/bpf";

/// Whether this process may make namespaces and cgroups.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}

/// Says in plain words what a lab would miss here, or `None`.
#[must_use]
pub fn missing() -> Option<String> {
    if !is_root() {
        return Some("the lab makes network namespaces and cgroups: run it as root".to_owned());
    }
    let absent = |tool: &&str| find_tool(tool).is_none();
    ["ip", "nsenter", "sh"]
        .iter()
        .find(|tool| absent(tool))
        .map(|tool| format!("`{tool}` is not installed; it is in the Debian packages iproute2, util-linux and dash"))
}

/// A program's path by the search path and the usual system directories.
pub(crate) fn find_tool(name: &str) -> Option<PathBuf> {
    let search = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&search)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}

/// The cgroup2 mount: on hybrid systems it is in a sub-directory, so it is never assumed.
pub(crate) fn cgroup2_root() -> anyhow::Result<PathBuf> {
    mount_point("cgroup2", None)?
        .context("no cgroup2 file system is mounted: mount one with `mount -t cgroup2 none DIR`")
}

/// The bpffs mount, mounted here if it is not.
pub(crate) fn bpffs_root() -> anyhow::Result<PathBuf> {
    let root = PathBuf::from(BPFFS);
    if mount_point("bpf", Some(&root))?.is_none() {
        mount(Some("bpf"), &root, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mounting bpffs on {BPFFS}"))?;
    }
    Ok(root)
}

fn mount_point(kind: &str, at: Option<&Path>) -> anyhow::Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    Ok(mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let point = PathBuf::from(before.split(' ').nth(4)?);
        let matches = after.split(' ').next() == Some(kind) && at.is_none_or(|at| at == point);
        matches.then_some(point)
    }))
}

/// Runs a batch of `ip` commands, one a line, in a namespace or in this one.
pub(crate) fn ip_batch(netns: Option<&str>, lines: &str) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-n", netns]);
    }
    batch(command, netns, lines)
}

/// The same for commands that are for IPv4 unless `ip` is told otherwise.
pub(crate) fn ip_batch_v6(netns: &str, lines: &str) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    command.args(["-6", "-n", netns]);
    batch(command, Some(netns), lines)
}

fn batch(mut command: Command, netns: Option<&str>, lines: &str) -> anyhow::Result<()> {
    command.args(["-batch", "-"]);
    feed(&mut command, lines)
        .with_context(|| format!("ip batch in {}:\n{}", netns.unwrap_or("this namespace"), lines.trim_end()))
}

fn feed(command: &mut Command, input: &str) -> anyhow::Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", display(command)))?;
    let written = child.stdin.take().context("stdin was not piped")?.write_all(input.as_bytes());
    let output = child.wait_with_output().context("waiting for the command")?;
    if !output.status.success() {
        bail!("{} ended with {}: {}", display(command), output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    written.context("writing to the command")
}

fn display(command: &Command) -> String {
    let program = std::iter::once(command.get_program());
    program.chain(command.get_args()).map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}
