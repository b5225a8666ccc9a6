//! Guests for the tests: qemu and Debian's kernels from the package archive, unpacked beside the build output. Nothing
//! of it is installed.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::command::{answer, program, quiet, visible};
use crate::ui::{Step, bold, heading, say};
use crate::workspace::{BPF_CRATE, Workspace};
use crate::{build, packages, setup};

/// What the tests call a kernel, the package that leads to its newest build, and how the names of these builds begin.
/// The cloud flavour has the same networking and BPF as the other one, in a third of the size.
const KERNELS: [(&str, &str, &str); 2] = [
    ("debian-6.1", "linux-image-cloud-amd64", "linux-image-6.1."),
    ("debian-6.12", "linux-image-6.12-cloud-amd64", "linux-image-6.12."),
];
/// Has cargo start test programs by another one.
const RUNNER: &str = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER";
const QEMU: (&str, &str) = ("qemu-system-x86_64", "qemu-system-x86");
const KMOD: (&str, &str) = ("kmod", "kmod");

/// Where the lab looks for guests.
pub(crate) fn folder(workspace: &Workspace) -> PathBuf {
    workspace.target().join("tools/guest")
}

/// Which tests to run, and on which kernel.
#[derive(Debug, Args)]
pub(crate) struct GuestOptions {
    /// The kernel: debian-6.1 or debian-6.12.
    #[arg(long, default_value = "debian-6.1")]
    kernel: String,
    /// A file of tests/tests, without its ending.
    file: String,
    /// Only the tests with these in their names.
    names: Vec<String>,
}

/// Runs tests of the lab in a guest: cargo builds the test program and starts the lab's program, which takes it there.
pub(crate) fn run(workspace: &Workspace, options: &GuestOptions) -> Result<()> {
    heading("set-up");
    let toolchain = setup::for_running(workspace)?;
    fetch(&folder(workspace))?;
    heading("build");
    build::bpf_objects(workspace, &toolchain)?;
    build::binaries(workspace, build::LAB_PROFILE)?;
    heading(&format!("{} on {}", options.file, options.kernel));
    let mut command = workspace.cargo(&["test", "--workspace", "--exclude", BPF_CRATE, "--test", &options.file, "--"]);
    command.arg("--test-threads=1").args(&options.names);
    with_programs(workspace, &mut command);
    let lab = workspace.binary(build::LAB_PROFILE, "lab");
    command.env(RUNNER, format!("{} guest --kernel {}", lab.display(), options.kernel));
    visible(command, "tests in a guest", "a failed test is named above")
}

/// Tells tests where guests and the programs of the lab are.
pub(crate) fn with_programs(workspace: &Workspace, command: &mut Command) {
    command.env("SHUNT_BIN", workspace.binary(build::LAB_PROFILE, "shunt"));
    command.env("LAB_PEER_BIN", workspace.binary(build::LAB_PROFILE, "lab-peer"));
    command.env("LAB_GUEST", folder(workspace));
}

/// Fetches what guests need, once. A machine where that fails can run all other tests, so it only says what is lost.
pub(crate) fn ready(workspace: &Workspace) {
    let folder = folder(workspace);
    match fetch(&folder) {
        Ok(kernels) => say(format!("   guests: {}", kernels.join(", "))),
        Err(error) => say(format!(
            "   {} the tests that need another kernel in a guest, SCTP sockets among them: {error:#}",
            bold("SKIPPED:")
        )),
    }
}

/// Returns the names of the kernels that are there.
fn fetch(folder: &Path) -> Result<Vec<&'static str>> {
    if cfg!(not(target_arch = "x86_64")) {
        bail!("guests are made for x86_64 only");
    }
    if !packages::is_debian_like() {
        bail!("qemu and Debian's kernels are fetched with apt-get, which is not here");
    }
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    if !works(&folder.join("qemu"), "--version") || !works(&folder.join("modprobe"), "--version") {
        once(&folder.join("machine"), "fetching qemu", "18 MB, only once", unpack_machine)?;
        link_programs(folder)?;
    }
    let mut ready = Vec::new();
    for (name, package, begins) in KERNELS {
        let place = folder.join(name);
        if !place.is_dir() {
            let what = format!("fetching the kernel {name}");
            let depmod = folder.join("depmod");
            once(&place, &what, "30 MB, only once", |step, new| unpack_kernel(step, new, package, begins, &depmod))?;
        }
        ready.push(name);
    }
    Ok(ready)
}

/// Fills a folder that has its name only when it is complete.
fn once(place: &Path, what: &str, expectation: &str, fill: impl FnOnce(&Step, &Path) -> Result<()>) -> Result<()> {
    let new = place.with_extension("new");
    for old in [&new, place] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("removing {}", old.display()))?;
        }
    }
    fs::create_dir_all(&new).with_context(|| format!("creating {}", new.display()))?;
    let step = Step::start(what, expectation);
    fill(&step, &new).with_context(|| what.to_owned())?;
    fs::rename(&new, place).with_context(|| format!("renaming {}", new.display()))?;
    step.done("fetched");
    Ok(())
}

/// Unpacks qemu and kmod with those of their libraries that the system lacks; nothing if it has all.
fn unpack_machine(step: &Step, new: &Path) -> Result<()> {
    let absent = [QEMU, KMOD].into_iter().filter(|(name, _)| program(name).is_none());
    let absent: Vec<&str> = absent.map(|(_, package)| package).collect();
    if absent.is_empty() {
        return Ok(());
    }
    let debs = new.join("debs");
    packages::download_with_dependencies(&absent, &debs, step)?;
    unpack(step, &debs, new)
}

fn unpack_kernel(step: &Step, new: &Path, package: &str, begins: &str, depmod: &Path) -> Result<()> {
    let debs = new.join("debs");
    packages::download_newest(package, begins, &debs, step)?;
    unpack(step, &debs, new)?;
    let modules = new.join("lib/modules");
    let version = fs::read_dir(&modules).with_context(|| format!("reading {}", modules.display()))?.next();
    let version = version.with_context(|| format!("{package} has no modules"))??.file_name();
    let mut index = Command::new(depmod);
    index.arg("--basedir").arg(new).arg(version);
    quiet(index, step, "it makes the list of the kernel's modules")
}

/// Unpacks all packages in a folder and removes them.
fn unpack(step: &Step, debs: &Path, into: &Path) -> Result<()> {
    for entry in fs::read_dir(debs).with_context(|| format!("reading {}", debs.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "deb") {
            let mut extract = Command::new("dpkg-deb");
            extract.arg("--extract").arg(&path).arg(into);
            quiet(extract, step, "remove the folder target/tools/guest and start again")?;
        }
    }
    fs::remove_dir_all(debs).with_context(|| format!("removing {}", debs.display()))
}

/// Puts `qemu`, `modprobe` and `depmod` where the lab and this module find them, fetched or of the system.
fn link_programs(folder: &Path) -> Result<()> {
    let machine = folder.join("machine");
    let qemu = folder.join("qemu");
    let fetched = machine.join("usr/bin").join(QEMU.0);
    let script = if fetched.exists() {
        let root = machine.display();
        format!(
            "#!/bin/sh\n\
             export LD_LIBRARY_PATH='{root}/usr/lib/x86_64-linux-gnu:{root}/lib/x86_64-linux-gnu'\n\
             exec '{}' -L '{root}/usr/share/qemu' -L '{root}/usr/share/seabios' \"$@\"\n",
            fetched.display()
        )
    } else {
        format!("#!/bin/sh\nexec {} \"$@\"\n", QEMU.0)
    };
    fs::write(&qemu, script).with_context(|| format!("writing {}", qemu.display()))?;
    fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).context("making qemu executable")?;
    let own = ["bin/kmod", "usr/bin/kmod"].map(|path| machine.join(path)).into_iter().find(|path| path.exists());
    let kmod = own.or_else(|| program(KMOD.0)).context("the package kmod has no program kmod")?;
    for name in ["modprobe", "depmod"] {
        let link = folder.join(name);
        if link.symlink_metadata().is_ok() {
            fs::remove_file(&link).with_context(|| format!("removing {}", link.display()))?;
        }
        symlink(&kmod, &link).with_context(|| format!("linking {}", link.display()))?;
    }
    match [&qemu, &folder.join("modprobe")].into_iter().find(|program| !works(program, "--version")) {
        Some(broken) => bail!("{} does not start; run it by hand to see why", broken.display()),
        None => Ok(()),
    }
}

fn works(program: &Path, question: &str) -> bool {
    program.is_file() && answer(Command::new(program).arg(question)).is_some()
}
