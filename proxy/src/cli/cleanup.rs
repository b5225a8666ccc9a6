//! `shunt cleanup`: removes what the daemon leaves in place when it ends.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use shunt_proxy::config::BPF_ROOT;
use shunt_proxy::datapath::ebpf::{self, Removed};
use shunt_proxy::dns::addresses;

use super::print;

#[derive(Args)]
pub(super) struct Arguments {
    /// Where programs and maps are pinned
    #[arg(long, value_name = "DIR", default_value = BPF_ROOT)]
    bpf_root: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    remove(&arguments.bpf_root)
}

/// Removes what is pinned below `bpf_root`, and the DNS address.
pub(super) fn remove(bpf_root: &Path) -> Result<ExitCode> {
    let root = nix::unistd::geteuid().is_root();
    ensure!(root, "shunt cleanup must be root: it removes BPF programs and an address of lo; try sudo shunt cleanup");
    // The address goes even if the pins cannot: as much as possible is removed, then the failure is told.
    let pins = ebpf::cleanup(bpf_root);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let addresses = runtime.block_on(addresses::remove());
    let mut done = Vec::new();
    if let Ok(Removed { links, programs, maps }) = &pins {
        let root = bpf_root.display();
        for (count, what) in [(links, "links"), (programs, "programs"), (maps, "maps")] {
            if *count > 0 {
                done.push(format!("removed {count} {what} below {root}"));
            }
        }
    }
    for address in addresses.iter().flatten() {
        done.push(format!("removed {address} from lo"));
    }
    if done.is_empty() && pins.is_ok() && addresses.is_ok() {
        done.push("nothing of shunt is installed".to_owned());
    }
    if !done.is_empty() {
        print(&done.join("\n"))?;
    }
    pins.context("removing programs and maps")?;
    addresses.context("removing the DNS address")?;
    Ok(ExitCode::SUCCESS)
}
