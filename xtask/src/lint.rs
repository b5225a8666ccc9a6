//! The rules that need no root and no lab: formatting, clippy, rustdoc, the BPF programs without warnings, tidy.

use anyhow::Result;

use crate::build::BPF_PROFILE;
use crate::command::visible;
use crate::phases::Phases;
use crate::tidy;
use crate::toolchain::BpfToolchain;
use crate::workspace::{BPF_CRATE, Workspace};

const COMPONENTS: &str = "is a component missing? run: rustup component add rustfmt clippy";

/// Checks everything; the first broken rule ends it.
pub(crate) fn run(workspace: &Workspace, toolchain: &BpfToolchain, phases: &mut Phases) -> Result<()> {
    phases.run("tidy", || tidy::run(workspace))?;
    phases.run("fmt", || {
        let command = workspace.cargo(&["fmt", "--all", "--check"]);
        visible(command, "checking the formatting", &format!("run: cargo fmt --all ({COMPONENTS})"))
    })?;
    phases.run("clippy", || {
        let command = workspace.cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
        visible(command, "clippy", COMPONENTS)
    })?;
    phases.run("BPF programs", || bpf_programs(workspace, toolchain))?;
    phases.run("rustdoc", || {
        let mut command = workspace.cargo(&["doc", "--workspace", "--no-deps", "--quiet"]);
        command.env("RUSTDOCFLAGS", "-D warnings");
        visible(command, "rustdoc", "a link in a doc comment names something that is not there")
    })
}

/// The compiler's own lints for the target itself: what is behind `cfg(target_arch = "bpf")` exists for no other.
fn bpf_programs(workspace: &Workspace, toolchain: &BpfToolchain) -> Result<()> {
    let mut command = toolchain.cargo(workspace, "check", &["-D", "warnings"]);
    command.args(["--package", BPF_CRATE, "--bins", "--profile", BPF_PROFILE, "--target-dir"]);
    // Other flags than the build's: in its directory each would throw away what the other has compiled.
    command.arg(workspace.target().join("bpf-lint"));
    visible(command, "checking the BPF programs", "warnings are errors here; the programs are in proxy-ebpf/")
}
