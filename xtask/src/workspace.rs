//! Where things are: the workspace, its target directory, its packages, as cargo itself reports.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// The crate that is compiled for the BPF target.
pub(crate) const BPF_CRATE: &str = "proxy-ebpf";
/// The crate of the lab, whose integration tests need root.
pub(crate) const LAB_CRATE: &str = "lab";

/// The part of `cargo metadata` that xtask reads.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) workspace_root: PathBuf,
    pub(crate) target_directory: PathBuf,
    pub(crate) packages: Vec<Package>,
    /// Who depends on whom; not there when only the members were asked for.
    pub(crate) resolve: Option<Resolve>,
}

/// What depends on what, as resolved for this platform.
#[derive(Debug, Deserialize)]
pub(crate) struct Resolve {
    pub(crate) nodes: Vec<Node>,
}

/// A package and what it depends on, by their ids.
#[derive(Debug, Deserialize)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) deps: Vec<Dependency>,
}

/// A dependency, and for what.
#[derive(Debug, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) pkg: String,
    pub(crate) dep_kinds: Vec<DependencyKind>,
}

/// For tests (`dev`), for the build script (`build`), or else to be linked.
#[derive(Debug, Deserialize)]
pub(crate) struct DependencyKind {
    pub(crate) kind: Option<String>,
}

/// A package of the workspace, or one it depends on.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) license: Option<String>,
    pub(crate) targets: Vec<Target>,
}

/// Something cargo builds: a library, a binary, a test.
#[derive(Debug, Deserialize)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) kind: Vec<String>,
}

impl Package {
    /// The names of its targets of one kind: `bin`, `test`, `lib`.
    pub(crate) fn targets_of_kind(&self, kind: &str) -> Vec<&str> {
        let of_kind = self.targets.iter().filter(|target| target.kind.iter().any(|found| found == kind));
        of_kind.map(|target| target.name.as_str()).collect()
    }
}

/// The workspace and where its results go.
pub(crate) struct Workspace {
    metadata: Metadata,
}

impl Workspace {
    /// Asks cargo about the workspace this program was built from.
    pub(crate) fn discover() -> Result<Self> {
        Ok(Self { metadata: metadata(&["--no-deps"])? })
    }

    /// The directory of the root Cargo.toml.
    pub(crate) fn root(&self) -> &Path {
        &self.metadata.workspace_root
    }

    /// Cargo's target directory, also if the user has moved it.
    pub(crate) fn target(&self) -> &Path {
        &self.metadata.target_directory
    }

    /// Where the BPF objects are put for the daemon's build script.
    pub(crate) fn bpf_objects(&self) -> PathBuf {
        self.target().join("bpf")
    }

    /// Whether the daemon's build script, which knows only the workspace, finds the objects without being told.
    pub(crate) fn target_is_default(&self) -> bool {
        self.target() == self.root().join("target")
    }

    /// Where a profile's binaries are.
    pub(crate) fn binary(&self, profile: &str, name: &str) -> PathBuf {
        self.target().join(if profile == "dev" { "debug" } else { profile }).join(name)
    }

    /// A member of the workspace.
    pub(crate) fn member(&self, name: &str) -> Result<&Package> {
        let found = self.metadata.packages.iter().find(|package| package.name == name);
        found.with_context(|| format!("the workspace has no package {name}"))
    }

    /// All members of the workspace.
    pub(crate) fn members(&self) -> &[Package] {
        &self.metadata.packages
    }

    /// `cargo` of the tool chain that runs us, started in the workspace, told where the BPF objects are if need be.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = cargo(arguments);
        command.current_dir(self.root());
        if !self.target_is_default() {
            command.env("SHUNT_BPF_OBJECTS", self.bpf_objects());
        }
        command
    }
}

/// Everything the workspace depends on for this platform.
pub(crate) fn dependencies(root: &Path) -> Result<Metadata> {
    let host = crate::command::answer(Command::new("rustc").arg("-vV").current_dir(root)).unwrap_or_default();
    let triple =
        host.lines().find_map(|line| line.strip_prefix("host: ")).context("asking rustc for its host triple")?;
    metadata(&["--filter-platform", triple])
}

fn metadata(arguments: &[&str]) -> Result<Metadata> {
    let mut command = cargo(&["metadata", "--format-version", "1"]);
    command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = command.output().context("starting cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("reading the output of cargo metadata")
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments);
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_about_xtask(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    command
}

/// Whether `cargo run` has set this variable for the package xtask. Build scripts that look at it, ring's for one,
/// would run anew with all that depends on them whenever cargo is started now by xtask and now by hand.
fn is_about_xtask(variable: &str) -> bool {
    variable.starts_with("CARGO_PKG_") || variable.starts_with("CARGO_MANIFEST_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cargo_says_of_xtask_is_not_handed_on_and_what_the_user_says_is() {
        let named = |text: &str| is_about_xtask(text);
        assert!(["CARGO_PKG_NAME", "CARGO_PKG_VERSION", "CARGO_MANIFEST_DIR"].into_iter().all(named));
        assert!(!["CARGO_TARGET_DIR", "CARGO_HOME", "CARGO", "CARGO_BUILD_JOBS"].into_iter().any(named));
    }
}
