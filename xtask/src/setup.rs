//! Making the machine ready: the BPF tool chain and the few programs that the lab runs. Changes nothing when all is
//! there.

use anyhow::Result;

use crate::command::program;
use crate::guest;
use crate::packages;
use crate::toolchain::BpfToolchain;
use crate::ui::say;
use crate::workspace::Workspace;

/// Programs that are run, and the packages that bring them.
const BUILD_PROGRAMS: [(&str, &str); 2] = [("cc", "gcc"), ("c++", "g++")];
const LAB_PROGRAMS: [(&str, &str); 5] = [
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("musl-gcc", "musl-tools"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
];
/// What DNS is compared with in the tests, and what looks into the kernel's tables and harms them there.
const TEST_PROGRAMS: [(&str, &str); 3] = [("unbound", "unbound"), ("bpftool", "bpftool"), ("conntrack", "conntrack")];

/// Readies what compiling needs.
pub(crate) fn for_building(workspace: &Workspace) -> Result<BpfToolchain> {
    packages::install(&packages_of_missing(&BUILD_PROGRAMS), "building", "")?;
    let toolchain = BpfToolchain::ready(workspace)?;
    say(format!("   BPF tool chain: {}", toolchain.description()));
    Ok(toolchain)
}

/// Readies what the lab runs as well: all that the demo and the tests need.
pub(crate) fn for_running(workspace: &Workspace) -> Result<BpfToolchain> {
    let missing = packages_of_missing(&LAB_PROGRAMS);
    packages::install(&missing, "the lab", "a few seconds")?;
    let toolchain = for_building(workspace)?;
    say("   lab programs: ip, nsenter, nft, iptables");
    Ok(toolchain)
}

/// Readies what the tests run beside that.
pub(crate) fn for_testing(workspace: &Workspace) -> Result<BpfToolchain> {
    let missing = packages_of_missing(&TEST_PROGRAMS);
    packages::install(&missing, "the tests", "about 10 s")?;
    let toolchain = for_running(workspace)?;
    guest::ready(workspace);
    Ok(toolchain)
}

fn packages_of_missing(programs: &[(&str, &'static str)]) -> Vec<&'static str> {
    programs.iter().filter(|(name, _)| program(name).is_none()).map(|(_, package)| *package).collect()
}
