//! Building: first the BPF objects, then the binaries that embed them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::command::visible;
use crate::toolchain::{BpfToolchain, TARGET};
use crate::ui::say;
use crate::workspace::{BPF_CRATE, Workspace};

/// The profile of the BPF objects in the root Cargo.toml.
pub(crate) const BPF_PROFILE: &str = "bpf";
/// The profile of what the lab, the demo and the tests run.
pub(crate) const LAB_PROFILE: &str = "lab";
/// The profile of what is shipped.
pub(crate) const RELEASE_PROFILE: &str = "release";
/// The packages with binaries that are shipped or run in the lab.
const SHIPPED: [&str; 3] = ["shunt-proxy", "shunt-dns", "lab"];

/// Compiles the BPF programs and puts one object per binary of the crate where the daemon's build script looks.
pub(crate) fn bpf_objects(workspace: &Workspace, toolchain: &BpfToolchain) -> Result<()> {
    let objects = workspace.bpf_objects();
    let mut command = toolchain.cargo(workspace, "build", &[]);
    command.args(["--package", BPF_CRATE, "--bins", "--profile", BPF_PROFILE, "--target-dir"]).arg(&objects);
    visible(
        command,
        "building the BPF programs",
        "the programs are in proxy-ebpf/; the tool chain is described in docs/development.md",
    )?;
    for name in workspace.member(BPF_CRATE)?.targets_of_kind("bin") {
        let built = objects.join(TARGET).join(BPF_PROFILE).join(name);
        publish(&built, &objects.join(format!("{name}.o")))?;
    }
    Ok(())
}

/// Copies an object unless the same bytes are there: a new modification time would make cargo rebuild the daemon.
fn publish(built: &Path, published: &Path) -> Result<()> {
    let object = fs::read(built).with_context(|| format!("reading the BPF object {}", built.display()))?;
    if !is_bpf_object(&object) {
        bail!("{} is not a BPF object; is another linker configured for {TARGET}?", built.display());
    }
    if fs::read(published).is_ok_and(|present| present == object) {
        return Ok(());
    }
    fs::write(published, &object).with_context(|| format!("writing {}", published.display()))?;
    say(format!("   {}: {} KiB", published.display(), object.len() / 1024));
    Ok(())
}

/// An ELF file, 64 bit, little endian, for machine 247 (EM_BPF).
fn is_bpf_object(object: &[u8]) -> bool {
    object.starts_with(b"\x7fELF\x02\x01") && object.get(18..20) == Some(&[247, 0])
}

/// Compiles the daemon, the DNS server and the lab's programs with a profile of the root Cargo.toml.
pub(crate) fn binaries(workspace: &Workspace, profile: &str) -> Result<()> {
    let mut command = workspace.cargo(&["build", "--bins", "--profile", profile]);
    for package in SHIPPED {
        command.args(["--package", package]);
    }
    visible(command, "building the binaries", "the first error above is the one to read")?;
    say(format!("   binaries: {}", workspace.binary(profile, "{shunt,shunt-dns,lab,lab-peer}").display()));
    Ok(())
}

/// Compiles one of them alone.
pub(crate) fn binary(workspace: &Workspace, package: &str, profile: &str) -> Result<()> {
    let command = workspace.cargo(&["build", "--bins", "--profile", profile, "--package", package]);
    visible(command, &format!("building {package}"), "the first error above is the one to read")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(head: &[u8], machine: [u8; 2], wanted: bool) {
        let mut object = head.to_vec();
        object.resize(18, 0);
        object.extend(machine);
        assert_eq!(is_bpf_object(&object), wanted);
    }

    #[test]
    fn only_little_endian_elf_for_the_bpf_machine_is_taken_for_an_object() {
        check(b"\x7fELF\x02\x01", [247, 0], true);
        check(b"\x7fELF\x02\x01", [62, 0], false);
        check(b"\x7fELF\x02\x02", [0, 247], false);
        check(b"", [247, 0], false);
        assert!(!is_bpf_object(b""));
    }
}
