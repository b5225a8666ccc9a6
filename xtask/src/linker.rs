//! bpf-linker, built once for an LLVM and kept: in the user's cache if there is one, else under target/.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{answer, quiet};
use crate::ui::Step;
use crate::workspace::Workspace;

const VERSION: &str = "0.13.0";
/// The LLVMs that this version can be built for.
const LLVMS: std::ops::RangeInclusive<u32> = 21..=23;

/// The linker for an LLVM, built when the cache has none that runs.
pub(crate) fn ready(workspace: &Workspace, llvm: u32, prefix: &Path) -> Result<PathBuf> {
    if !LLVMS.contains(&llvm) {
        bail!("bpf-linker {VERSION} cannot be built for LLVM {llvm}");
    }
    let name = format!("bpf-linker-{VERSION}-llvm-{llvm}");
    let own = workspace.target().join("tools").join(&name);
    let roots: Vec<PathBuf> = user_cache().map(|cache| cache.join(&name)).into_iter().chain([own.clone()]).collect();
    if let Some(found) = roots.iter().map(|root| binary_in(root)).find(|binary| works(binary)) {
        return Ok(found);
    }
    let root = roots.first().unwrap_or(&own);
    let step = Step::start(format!("building bpf-linker {VERSION} for LLVM {llvm}"), "about 75 s, only once");
    let objects = workspace.target().join("tools/build");
    let mut command = workspace.cargo(&["install", "bpf-linker", "--version", VERSION, "--locked", "--force"]);
    command.args(["--no-default-features", "--features", &format!("llvm-{llvm}"), "--no-track"]);
    command.arg("--root").arg(root).arg("--target-dir").arg(&objects).env("LLVM_PREFIX", prefix);
    quiet(command, &step, "it needs crates.io, a C compiler and the LLVM development package")?;
    std::fs::remove_dir_all(&objects).with_context(|| format!("removing {}", objects.display()))?;
    let linker = binary_in(root);
    if !works(&linker) {
        bail!("{} was built but does not start; run it by hand to see why", linker.display());
    }
    step.done("built");
    Ok(linker)
}

/// Whether it is there and its LLVM library can still be loaded.
pub(crate) fn works(linker: &Path) -> bool {
    linker.is_file() && answer(Command::new(linker).arg("--version")).is_some()
}

fn binary_in(root: &Path) -> PathBuf {
    root.join("bin/bpf-linker")
}

/// shunt's directory in the user's cache; none on machines without a cache directory, such as CI.
fn user_cache() -> Option<PathBuf> {
    let configured = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let base = configured.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    (base.is_absolute() && base.is_dir()).then(|| base.join("shunt"))
}
