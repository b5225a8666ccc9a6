//! The rules that need no root and no lab: formatting, clippy, rustdoc, the BPF programs without warnings, tidy.

use anyhow::{Result, bail};

use crate::build::BPF_PROFILE;
use crate::command::visible;
use crate::phases::Phases;
use crate::tidy;
use crate::toolchain::BpfToolchain;
use crate::workspace::{BPF_CRATE, Workspace};

const CLIPPY: &str = "mend what is shown; if cargo does not know the command: rustup component add clippy";

/// Runs all checks, also after one failed: the end shows everything that must be mended.
pub(crate) fn run(workspace: &Workspace, toolchain: &BpfToolchain, phases: &mut Phases) -> Result<()> {
    let results = [
        phases.run("tidy", || tidy::run(workspace)),
        phases.run("fmt", || formatting(workspace)),
        phases.run("clippy", || clippy(workspace)),
        phases.run("BPF programs", || bpf_programs(workspace, toolchain)),
        phases.run("rustdoc", || rustdoc(workspace)),
    ];
    let broken: Vec<String> = results.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    if broken.is_empty() {
        return Ok(());
    }
    bail!("{}", broken.join("\n\n"))
}

fn formatting(workspace: &Workspace) -> Result<()> {
    let command = workspace.cargo(&["fmt", "--all", "--check"]);
    visible(
        command,
        "checking the formatting",
        "run: cargo fmt --all; if cargo does not know the command: rustup component add rustfmt",
    )
}

fn clippy(workspace: &Workspace) -> Result<()> {
    let arguments = ["clippy", "--workspace", "--all-targets", "--keep-going", "--", "-D", "warnings"];
    visible(workspace.cargo(&arguments), "clippy", CLIPPY)
}

fn rustdoc(workspace: &Workspace) -> Result<()> {
    let mut command = workspace.cargo(&["doc", "--workspace", "--no-deps", "--quiet"]);
    command.env("RUSTDOCFLAGS", "-D warnings");
    visible(command, "rustdoc", "a link in a doc comment names something that is not there")
}

/// The compiler's own lints for the target itself: what is behind `cfg(target_arch = "bpf")` exists for no other.
fn bpf_programs(workspace: &Workspace, toolchain: &BpfToolchain) -> Result<()> {
    let mut command = toolchain.cargo(workspace, "check", &["-D", "warnings"]);
    command.args(["--package", BPF_CRATE, "--bins", "--profile", BPF_PROFILE, "--target-dir"]);
    // Other flags than the build's: in its directory each would throw away what the other has compiled.
    command.arg(workspace.target().join("bpf-lint"));
    visible(command, "checking the BPF programs", "warnings are errors here; the programs are in proxy-ebpf/")
}
