//! `shunt cleanup`: removes what the daemon leaves in place when it ends.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use shunt_proxy::config::{BPF_ROOT, CONTROL_SOCKET};
use shunt_proxy::datapath::kube_proxy::{self, Retired};
use shunt_proxy::datapath::{self, HostOptions, Lock, LockError, Part};
use shunt_proxy::host::sysctls;
use shunt_proxy::made;

use super::print;

#[derive(Args)]
pub(super) struct CleanupArguments {
    /// Where programs and maps are pinned
    #[arg(long, value_name = "DIR", default_value = BPF_ROOT)]
    bpf_root: PathBuf,
    /// Where the daemon listened
    #[arg(long, value_name = "PATH", default_value = CONTROL_SOCKET)]
    control_socket: PathBuf,
    /// Remove the programs under a daemon that runs; it attaches them again within a second, unless it hangs
    #[arg(long)]
    force: bool,
    /// Remove the rules that kube-proxy left, of all its modes, and nothing of shunt; what the kubelet made stays
    #[arg(long)]
    kube_proxy: bool,
}

/// Whether a daemon that runs is to be respected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Running {
    /// Remove nothing.
    Refuse,
    /// Remove all the same.
    Ignore,
}

pub(super) fn run(arguments: &CleanupArguments) -> Result<ExitCode> {
    let CleanupArguments { bpf_root, control_socket, force, kube_proxy } = arguments;
    let running = if *force { Running::Ignore } else { Running::Refuse };
    match kube_proxy {
        true => remove_kube_proxys(running),
        false => remove(bpf_root, control_socket, running),
    }
}

/// Removes what kube-proxy left.
fn remove_kube_proxys(running: Running) -> Result<ExitCode> {
    let root = nix::unistd::geteuid().is_root();
    ensure!(root, "shunt cleanup --kube-proxy must be root: it removes rules of this host; try sudo");
    match (kube_proxy::running().first(), running) {
        (Some(process), Running::Refuse) => bail!(
            "kube-proxy still runs (process {process}) and would put its rules back: take it off this node first. \
             --force removes them all the same"
        ),
        (Some(_), Running::Ignore) | (None, _) => {}
    }
    let Retired { removed, kept } = kube_proxy::remove()?;
    let removed = removed.iter().map(|removed| format!("removed {removed}"));
    let done: Vec<String> = removed.chain(kept).collect();
    let nothing = "nothing of kube-proxy is left".to_owned();
    print(&if done.is_empty() { nothing } else { done.join("\n") })?;
    Ok(ExitCode::SUCCESS)
}

/// Removes what every data path has installed, and all that the daemon makes beside it.
pub(super) fn remove(bpf_root: &Path, control_socket: &Path, running: Running) -> Result<ExitCode> {
    let root = nix::unistd::geteuid().is_root();
    ensure!(root, "shunt cleanup must be root: it removes BPF programs and an address of lo; try sudo shunt cleanup");
    // Held until the end: a daemon that starts meanwhile would lose what it has just made.
    let _lock = match Lock::of_existing(bpf_root) {
        Ok(lock) => Some(lock),
        Err(LockError::PacketsHeld { holder }) => match running {
            Running::Refuse => bail!(
                "{holder} serves the packets of this network namespace: stop it first. --force removes its rules all \
                 the same, and it writes them again within a second, unless it hangs"
            ),
            Running::Ignore => None,
        },
        Err(LockError::Held { root, holder }) => match running {
            Running::Refuse => bail!(
                "{holder} serves with the BPF root {}: stop it first. --force removes its programs all the same, and \
                 it attaches them again within a second, unless it hangs",
                root.display()
            ),
            Running::Ignore => None,
        },
        Err(error @ (LockError::Root { .. } | LockError::Lock { .. } | LockError::Packets(_))) => {
            return Err(error.into());
        }
    };
    // Remove as much as possible, then report the failures.
    let host = HostOptions { cgroup_root: None, bpf_root: bpf_root.to_owned() };
    // Rules guard it, and they go now.
    let loopback = sysctls::end_route_localnet();
    let paths = Part::ALL.map(|part| datapath::remove(part, &host));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let beside = made::Kind::ALL.map(|kind| runtime.block_on(kind.remove(control_socket)));
    let removed = paths.iter().flatten().flatten().map(ToString::to_string);
    let mut done: Vec<String> =
        removed.chain(beside.iter().flatten().flatten().cloned()).map(|removed| format!("removed {removed}")).collect();
    done.extend(loopback.iter().flatten().map(ToString::to_string));
    if done.is_empty() && paths.iter().all(Result::is_ok) && beside.iter().all(Result::is_ok) {
        done.push("nothing of shunt is installed".to_owned());
    }
    if !done.is_empty() {
        print(&done.join("\n"))?;
    }
    for removed in paths {
        removed?;
    }
    for removed in beside {
        removed?;
    }
    loopback?;
    Ok(ExitCode::SUCCESS)
}
