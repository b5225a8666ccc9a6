//! House rules that no compiler checks: file sizes, where unsafe code may stand, names of modules, licences,
//! what may be linked.

mod dependencies;
mod privileges;
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

/// All Rust files of the workspace, in order, without what was generated.
fn rust_files(root: &Path) -> Result<Vec<PathBuf>> {
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
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
