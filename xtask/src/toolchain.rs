//! The BPF tool chain: a Rust compiler that has `core` for the BPF target, and a linker built against its LLVM.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{answer, program};
use crate::workspace::Workspace;
use crate::{linker, packages};

/// The target of every BPF program: the host's byte order is little endian on all platforms we know.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// The LLVM that Debian's compiler is built with, and that the linker must therefore understand.
const DEBIAN_LLVM: u32 = 22;
const DEBIAN_PREFIX: &str = "/usr/lib/llvm-22";
const DEBIAN_PACKAGES: [&str; 5] =
    ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf", "llvm-22-dev", "libpolly-22-dev"];
/// By full path, so that a rustup tool chain in PATH does not win.
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// What to do when neither route is open.
const RECIPES: &str = "either route will do:
  (a) rustup:          rustup toolchain install nightly --component rust-src
                       and a bpf-linker in PATH that is built for the same LLVM (cargo install bpf-linker)
  (b) Debian, Ubuntu:  sudo apt-get install --no-install-recommends \\
                         rustc-web cargo-web libstd-rust-web-dev-bpf llvm-22-dev libpolly-22-dev
then start this command again";

/// A compiler and a linker that together make BPF objects.
pub(crate) struct BpfToolchain {
    compiler: Compiler,
    linker: PathBuf,
}

enum Compiler {
    /// A rustup tool chain that compiles `core` itself.
    Nightly { toolchain: String },
    /// The distribution's compiler with its ready-made `core`.
    Debian,
}

impl BpfToolchain {
    /// Finds a tool chain, installs what is missing of it, and builds the linker when there is none yet.
    pub(crate) fn ready(workspace: &Workspace) -> Result<Self> {
        let mut reasons = Vec::new();
        match nightly(workspace) {
            Ok(found) => return Ok(found),
            Err(reason) => reasons.push(format!("(a) rustup nightly: {reason:#}")),
        }
        match debian(workspace) {
            Ok(found) => return Ok(found),
            Err(reason) => reasons.push(format!("(b) packages: {reason:#}")),
        }
        bail!("no tool chain for BPF programs\n{}\n{RECIPES}", reasons.join("\n"))
    }

    /// One line for the developer.
    pub(crate) fn description(&self) -> String {
        let compiler = match &self.compiler {
            Compiler::Nightly { toolchain } => format!("rustup {toolchain} with rust-src"),
            Compiler::Debian => "packaged rustc with its BPF core".to_owned(),
        };
        format!("{compiler}; linker {}", self.linker.display())
    }

    /// `cargo <verb>` for the BPF target. `extra_flags` go to the compiler after those every object needs.
    pub(crate) fn cargo(&self, workspace: &Workspace, verb: &str, extra_flags: &[&str]) -> Command {
        let mut command = match &self.compiler {
            Compiler::Nightly { toolchain } => {
                let mut command = Command::new("rustup");
                command.args(["run", toolchain, "cargo", verb, "-Z", "build-std=core"]).env_remove("RUSTC");
                command
            }
            Compiler::Debian => {
                let mut command = Command::new(DEBIAN_CARGO);
                // aya-ebpf uses one unstable feature, which a stable compiler refuses without the variable.
                command.arg(verb).env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                command
            }
        };
        // What the outer cargo has set for itself is wrong for this compiler.
        for inherited in
            ["CARGO", "RUSTUP_TOOLCHAIN", "RUSTDOC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS"]
        {
            command.env_remove(inherited);
        }
        let linker = format!("linker={}", self.linker.display());
        let mut flags = vec!["-C", "debuginfo=2", "-C", &linker, "-C", "link-arg=--btf"];
        flags.extend(extra_flags);
        // Separated by a byte that no path contains, unlike the blank of RUSTFLAGS.
        command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        command.args(["--target", TARGET]).current_dir(workspace.root());
        command
    }
}

/// Route (a). The error is the reason why it is closed.
fn nightly(workspace: &Workspace) -> Result<BpfToolchain> {
    let list = answer(Command::new("rustup").args(["toolchain", "list"])).context("no rustup")?;
    let toolchain = list
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .find(|name| name.starts_with("nightly") && has_rust_src(name))
        .context("no nightly tool chain with the component rust-src")?
        .to_owned();
    let linker = match program("bpf-linker") {
        Some(found) if linker::works(&found) => found,
        Some(_) | None => {
            let version = answer(Command::new("rustup").args(["run", &toolchain, "rustc", "-vV"]));
            let llvm =
                version.as_deref().and_then(llvm_major).context("its compiler does not print its LLVM version")?;
            linker::ready(workspace, llvm, &llvm_prefix(llvm)?)?
        }
    };
    Ok(BpfToolchain { compiler: Compiler::Nightly { toolchain }, linker })
}

fn has_rust_src(toolchain: &str) -> bool {
    let sysroot = answer(Command::new("rustup").args(["run", toolchain, "rustc", "--print", "sysroot"]));
    sysroot.is_some_and(|path| Path::new(path.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file())
}

/// An installed LLVM with headers, for building the linker against.
fn llvm_prefix(major: u32) -> Result<PathBuf> {
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{major}"));
    if prefix.join("bin/llvm-config").exists() {
        return Ok(prefix);
    }
    bail!("no bpf-linker in PATH and no LLVM {major} to build one with ({} is missing)", prefix.display())
}

/// Route (b). The error is the reason why it is closed.
fn debian(workspace: &Workspace) -> Result<BpfToolchain> {
    if !packages::is_debian_like() {
        bail!("this system has no apt-get");
    }
    let missing = packages::missing(&DEBIAN_PACKAGES);
    packages::install(&missing, "compiling BPF programs", "a download of about 250 MB, 1 to 3 minutes")?;
    let version =
        answer(Command::new(DEBIAN_RUSTC).arg("-vV")).with_context(|| format!("{DEBIAN_RUSTC} does not run"))?;
    let llvm = llvm_major(&version);
    if llvm != Some(DEBIAN_LLVM) {
        bail!("{DEBIAN_RUSTC} is built with LLVM {llvm:?}, but the linker for it would read LLVM {DEBIAN_LLVM}");
    }
    let linker = linker::ready(workspace, DEBIAN_LLVM, Path::new(DEBIAN_PREFIX))?;
    Ok(BpfToolchain { compiler: Compiler::Debian, linker })
}

fn llvm_major(version: &str) -> Option<u32> {
    let llvm = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    llvm.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(version: &str, wanted: Option<u32>) {
        assert_eq!(llvm_major(version), wanted);
    }

    #[test]
    fn the_compiler_tells_the_llvm_it_is_built_with() {
        check("rustc 1.96.0\nhost: x86_64-unknown-linux-gnu\nLLVM version: 22.1.8\n", Some(22));
        check("rustc 1.96.0\n", None);
        check("LLVM version: unknown\n", None);
    }
}
