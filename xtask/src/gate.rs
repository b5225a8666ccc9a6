//! `cargo xtask test`: everything that must hold before a change lands, in the order of what fails soonest.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::command::visible;
use crate::phases::Phases;
use crate::workspace::{BPF_CRATE, LAB_CRATE, Workspace};
use crate::{build, deploy, fuzz, guest, lint, packages, setup};

/// How long the fuzzer looks for messages that break the DNS server.
const FUZZ_SECONDS: u32 = 60;

/// Runs the gate and says at its end what each phase took.
pub(crate) fn run(workspace: &Workspace) -> Result<ExitCode> {
    can_run_a_lab("cargo xtask test")?;
    let mut phases = Phases::new();
    let result = all(workspace, &mut phases);
    phases.summary();
    result.map(|()| ExitCode::SUCCESS)
}

fn all(workspace: &Workspace, phases: &mut Phases) -> Result<()> {
    let toolchain = phases.run("set-up", || setup::for_testing(workspace))?;
    phases.run("BPF objects", || build::bpf_objects(workspace, &toolchain))?;
    lint::run(workspace, &toolchain, phases)?;
    phases.run("unit tests", || unit_tests(workspace))?;
    phases.run("fuzzing", || fuzz::run(workspace, FUZZ_SECONDS))?;
    phases.run("binaries", || build::binaries(workspace, build::LAB_PROFILE))?;
    let rendered = phases.run("deploy", || deploy::render(workspace))?;
    phases.run("lab tests", || lab_tests(workspace, &rendered))
}

/// What has to be there before a lab can be built, in words for a reader who has not read any documentation.
pub(crate) fn can_run_a_lab(what: &str) -> Result<()> {
    if !packages::is_root() {
        bail!(
            "{what} builds network namespaces and loads BPF programs, which only root may do\n  \
             run it as root, for example: sudo -E env PATH=\"$PATH\" {what}"
        );
    }
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let missing = missing_filesystems(&filesystems);
    if !missing.is_empty() {
        bail!(
            "this kernel has no {}; {what} needs a Linux kernel with cgroup v2 and BPF (5.18 or later)",
            missing.join(" and no ")
        );
    }
    Ok(())
}

fn missing_filesystems(filesystems: &str) -> Vec<&'static str> {
    let has = |name: &str| filesystems.lines().any(|line| line.split_whitespace().last() == Some(name));
    ["cgroup2", "bpf"].into_iter().filter(|name| !has(name)).collect()
}

/// Tests that need no root: in the modules, and the integration tests of all crates but the lab.
fn unit_tests(workspace: &Workspace) -> Result<()> {
    // --workspace, and not one package after the other: each choice of packages has its own set of features, and
    // cargo compiles the dependencies anew for each.
    let mut command = workspace.cargo(&["test", "--workspace", "--exclude", BPF_CRATE, "--lib", "--bins"]);
    let lab = workspace.member(LAB_CRATE)?.targets_of_kind("test");
    for package in workspace.members().iter().filter(|package| package.name != LAB_CRATE) {
        for test in package.targets_of_kind("test") {
            // cargo would run both, and the lab's without what it needs.
            if lab.contains(&test) {
                bail!("{LAB_CRATE} and {} both have a test named {test}; rename one", package.name);
            }
            command.args(["--test", test]);
        }
    }
    visible(command, "unit tests", "a failed test is named above; run it alone with: cargo test -p CRATE NAME")
}

/// Tests on network namespaces with the real daemon; one after the other, so that none measures another's load.
fn lab_tests(workspace: &Workspace, rendered: &Path) -> Result<()> {
    let lab = workspace.member(LAB_CRATE)?;
    let tests = lab.targets_of_kind("test");
    if tests.is_empty() {
        bail!("the crate {LAB_CRATE} has no integration tests");
    }
    let mut command = workspace.cargo(&["test", "--workspace", "--exclude", BPF_CRATE]);
    for test in tests {
        command.args(["--test", test]);
    }
    command.args(["--", "--test-threads=1"]);
    guest::with_programs(workspace, &mut command);
    command.env("SHUNT_RENDERED", rendered);
    visible(command, "lab tests", "a failed test is named above; docs/development.md says how to run one alone")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(filesystems: &str, wanted: &[&str]) {
        assert_eq!(missing_filesystems(filesystems), wanted);
    }

    #[test]
    fn a_kernel_without_cgroup_v2_or_bpf_is_told_apart() {
        check("nodev\tcgroup\nnodev\tcgroup2\nnodev\tbpf\n\text4\n", &[]);
        check("nodev\tcgroup\nnodev\tbpf\n", &["cgroup2"]);
        check("", &["cgroup2", "bpf"]);
    }
}
