//! Debian packages: which are missing, and installing them when we may.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command::{answer, program, quiet};
use crate::ui::Step;

/// Whether this is a system whose packages we know how to install.
pub(crate) fn is_debian_like() -> bool {
    program("apt-get").is_some() && program("dpkg-query").is_some()
}

/// Whether we may change the system.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Those of the named packages that are not installed.
pub(crate) fn missing<'a>(names: &[&'a str]) -> Vec<&'a str> {
    names.iter().copied().filter(|name| !is_installed(name)).collect()
}

fn is_installed(name: &str) -> bool {
    let status = answer(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Abbrev}", name]));
    status.is_some_and(|text| text.starts_with("ii"))
}

/// The version that would be installed, if the package lists know the package at all.
fn candidate(name: &str) -> Option<String> {
    let policy = answer(Command::new("apt-cache").env("LC_ALL", "C").args(["policy", name]))?;
    candidate_in(&policy)
}

fn candidate_in(policy: &str) -> Option<String> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

/// Installs packages, refreshing the package lists only when they do not know one of them.
pub(crate) fn install(names: &[&str], what_for: &str, expectation: &str) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    if !is_debian_like() {
        bail!("{what_for} needs the programs of the Debian packages {}; install them", names.join(" "));
    }
    if !is_root() {
        bail!(
            "{what_for} needs packages that are not installed, and only root can install them; run:\n  \
             sudo apt-get update && sudo apt-get install --no-install-recommends {}",
            names.join(" ")
        );
    }
    if names.iter().any(|name| candidate(name).is_none()) {
        let step = Step::start("refreshing the package lists", "about 10 s");
        quiet(apt(&["update"]), &step, "check the network and the system's package sources")?;
        step.done("done");
    }
    if let Some(unknown) = names.iter().find(|name| candidate(name).is_none()) {
        bail!("{what_for} needs the package {unknown}, which this system's package sources do not have");
    }
    let step = Step::start(format!("installing packages for {what_for}: {}", names.join(" ")), expectation);
    let mut command = apt(&["install", "--yes", "--no-install-recommends"]);
    command.args(names);
    if quiet(command, &step, "").is_err() {
        // Lists that are a few weeks old name files that the archive no longer has.
        quiet(apt(&["update"]), &step, "check the network and the system's package sources")?;
        let mut again = apt(&["install", "--yes", "--no-install-recommends"]);
        again.args(names);
        quiet(again, &step, "run the command by hand to see more; then start this one again")?;
    }
    step.done("installed");
    Ok(())
}

/// Puts the file of the first package that `name` depends on into a folder and installs nothing: of a package that only
/// leads to the newest build of something, whose name must begin with `begins`.
pub(crate) fn download_newest(name: &str, begins: &str, folder: &Path, step: &Step) -> Result<()> {
    into(folder, step, || {
        let depends = answer(Command::new("apt-cache").env("LC_ALL", "C").args(["depends", name]));
        let build = depends.as_deref().and_then(first_dependency).filter(|build| build.starts_with(begins));
        let build = build.with_context(|| format!("the package sources have no {name} that leads to {begins}*"))?;
        let mut command = apt(&["download", build]);
        command.current_dir(folder);
        Ok(command)
    })
}

fn first_dependency(depends: &str) -> Option<&str> {
    depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "))
}

/// Puts the files of packages, and of what they need and the system lacks, into a folder and installs nothing.
pub(crate) fn download_with_dependencies(names: &[&str], folder: &Path, step: &Step) -> Result<()> {
    into(folder, step, || {
        let mut command = apt(&["install", "--yes", "--no-install-recommends", "--download-only"]);
        // It writes to the folder only, so it needs no lock.
        command.args(["-o", "Debug::NoLocking=1", "-o"]);
        command.arg(format!("Dir::Cache::archives={}", folder.display())).args(names);
        Ok(command)
    })
}

fn into(folder: &Path, step: &Step, fetch: impl Fn() -> Result<Command>) -> Result<()> {
    // apt wants its sub-folder for what is not complete yet.
    let partial = folder.join("partial");
    fs::create_dir_all(&partial).with_context(|| format!("creating {}", partial.display()))?;
    if fetch().and_then(|command| quiet(command, step, "")).is_err() {
        // Lists that are a few weeks old name files that the archive no longer has; a fresh system has no lists.
        quiet(apt(&["update"]), step, "check the network and the system's package sources; it needs root")?;
        quiet(fetch()?, step, "run the command by hand to see more")?;
    }
    Ok(())
}

fn apt(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    // Another package manager may hold the lock for a while, on a fresh machine above all: wait for it.
    command.args(["-q", "-o", "DPkg::Lock::Timeout=300"]).args(arguments);
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(policy: &str, wanted: Option<&str>) {
        assert_eq!(candidate_in(policy).as_deref(), wanted);
    }

    #[test]
    fn a_package_is_known_when_the_policy_names_a_candidate() {
        check("ip:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1\n", Some("1.96.0+dfsg1-1"));
        check("ip:\n  Installed: (none)\n  Candidate: (none)\n", None);
        check("", None);
    }

    #[test]
    fn a_package_that_only_leads_to_another_names_it_first() {
        let depends = "linux-image-amd64\n  Depends: linux-image-6.1.0-57-amd64\n  Depends: other\n";
        assert_eq!(first_dependency(depends), Some("linux-image-6.1.0-57-amd64"));
        assert_eq!(first_dependency("linux-image-amd64\n"), None);
    }
}
