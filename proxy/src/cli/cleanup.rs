//! `shunt cleanup`: removes what the daemon leaves in place when it ends.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use shunt_proxy::config::BPF_ROOT;
use shunt_proxy::datapath::{self, HostOptions, Mode};
use shunt_proxy::dns::addresses;

use super::print;

#[derive(Args)]
pub(super) struct CleanupArguments {
    /// Where programs and maps are pinned
    #[arg(long, value_name = "DIR", default_value = BPF_ROOT)]
    bpf_root: PathBuf,
}

pub(super) fn run(arguments: &CleanupArguments) -> Result<ExitCode> {
    remove(&arguments.bpf_root)
}

/// Removes what every data path has installed, and the DNS address.
pub(super) fn remove(bpf_root: &Path) -> Result<ExitCode> {
    let root = nix::unistd::geteuid().is_root();
    ensure!(root, "shunt cleanup must be root: it removes BPF programs and an address of lo; try sudo shunt cleanup");
    // The address is removed even if a data path cannot be: remove as much as possible, then report the failure.
    let host = HostOptions { cgroup_root: None, bpf_root: bpf_root.to_owned() };
    let paths = Mode::ALL.map(|mode| datapath::remove(mode, &host));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let addresses = runtime.block_on(addresses::remove());
    let mut done: Vec<String> = paths.iter().flatten().flatten().map(|removed| format!("removed {removed}")).collect();
    for address in addresses.iter().flatten() {
        done.push(format!("removed {address} from lo"));
    }
    if done.is_empty() && paths.iter().all(Result::is_ok) && addresses.is_ok() {
        done.push("nothing of shunt is installed".to_owned());
    }
    if !done.is_empty() {
        print(&done.join("\n"))?;
    }
    for removed in paths {
        removed?;
    }
    addresses.context("removing the DNS address")?;
    Ok(ExitCode::SUCCESS)
}
