//! `cargo xtask demo`: from nothing to the lab's story on the terminal.

use std::process::ExitCode;

use anyhow::Result;
use lab::demo::{self, DemoOptions};

use crate::ui::heading;
use crate::workspace::Workspace;
use crate::{build, gate, setup};

/// Where the daemons of the demo take their objects from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Source {
    /// A folder of manifests
    Manifests,
    /// A Kubernetes API server of the lab
    Kube,
}

/// Readies the machine, builds, tells the story; its exit code is the demo's own.
pub(crate) fn run(workspace: &Workspace, keep: bool, source: Source) -> Result<ExitCode> {
    gate::can_run_a_lab("cargo xtask demo")?;
    heading("set-up");
    let toolchain = setup::for_running(workspace)?;
    heading("build");
    build::bpf_objects(workspace, &toolchain)?;
    build::binaries(workspace, build::LAB_PROFILE)?;
    heading("demo");
    demo::run(DemoOptions {
        kube: source == Source::Kube,
        keep,
        shunt: workspace.binary(build::LAB_PROFILE, "shunt"),
        peer: workspace.binary(build::LAB_PROFILE, "lab-peer"),
    })
}
