//! House rules that no compiler checks: file sizes, where unsafe code may stand, the door to data paths, names of
//! modules, lines of documents, licences, what may be linked, and that every rule ID can be looked up.

mod dependencies;
mod privileges;
mod prose;
mod rules;
mod source;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::ui::say;
use crate::workspace::{Workspace, dependencies as linked};

/// Lines that ARCHITECTURE.md may have: a map is read in one sitting or not at all.
const ARCHITECTURE_LINES: usize = 150;

/// Checks all rules and reports all that are broken at once.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let mut broken = Vec::new();
    let files = rust_files(workspace.root())?;
    for path in &files {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let shown = path.strip_prefix(workspace.root()).unwrap_or(path);
        broken.extend(source::broken_rules(shown, &text));
    }
    broken.extend(architecture(workspace.root())?);
    broken.extend(strays(workspace.root())?);
    let all = self::files(workspace.root())?;
    broken.extend(rules::check(workspace.root(), &all)?);
    broken.extend(documents(workspace.root(), &all)?);
    let linked = linked(workspace.root())?;
    broken.extend(dependencies::check(&linked.packages));
    broken.extend(privileges::check(&linked));
    if broken.is_empty() {
        say(format!("   {} source files, every rule holds", files.len()));
        return Ok(());
    }
    bail!("{} broken house rules (see docs/development.md):\n  {}", broken.len(), broken.join("\n  "))
}

fn architecture(root: &Path) -> Result<Option<String>> {
    let path = root.join("ARCHITECTURE.md");
    let lines = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?.lines().count();
    let broken = lines >= ARCHITECTURE_LINES;
    Ok(broken.then(|| format!("ARCHITECTURE.md: {lines} lines; it must stay under {ARCHITECTURE_LINES}")))
}

/// Lines of documents that are too long.
fn documents(root: &Path, files: &[PathBuf]) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    for path in files.iter().filter(|path| path.extension().is_some_and(|extension| extension == "md")) {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        broken.extend(prose::long_lines(path.strip_prefix(root).unwrap_or(path), &text));
    }
    Ok(broken)
}

/// All other files among the sources have come there by mistake.
fn strays(root: &Path) -> Result<Vec<String>> {
    let files = files(root)?;
    let shown = files.iter().map(|path| path.strip_prefix(root).unwrap_or(path));
    let strays = shown.filter(|path| !is_rust(path) && path.iter().any(|folder| folder == "src"));
    Ok(strays.map(|path| format!("{}: only Rust files belong in src", path.display())).collect())
}

fn is_rust(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
}

/// All Rust files of the workspace, in order, without what was generated.
fn rust_files(root: &Path) -> Result<Vec<PathBuf>> {
    Ok(files(root)?.into_iter().filter(|path| is_rust(path)).collect())
}

/// All files of the workspace, in order, without what was generated.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("reading {}", directory.display()))?;
            let path = entry.path();
            let name = entry.file_name();
            let hidden_or_generated = name == "target" || name.to_string_lossy().starts_with('.');
            if path.is_dir() && !path.is_symlink() && !hidden_or_generated {
                directories.push(path);
            } else if !path.is_dir() {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
