//! Debian packages: which are missing, and installing them when we may.

use std::process::Command;

use anyhow::{Result, bail};

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
}
