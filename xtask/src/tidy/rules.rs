//! The rule that rules are written down: every rule ID that the repository cites has one row in `docs/rules.md`.

mod dead_ends;
mod id;
mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use dead_ends::dead_ends;
use id::{Cited, Id, cited};
use names::ids_in_names;

/// Where rules stand.
const LAW: &str = "docs/rules.md";
/// Kinds of text that cite rules; in [`DEPLOY`] every file may.
const KINDS: [&str; 5] = ["rs", "md", "yaml", "yml", "txt"];
/// What is shipped: templates and configuration without a telling name.
const DEPLOY: &str = "deploy";
/// These make up IDs for their own tests.
const INVENTORS: &str = "xtask/src/tidy/rules";
/// What looks like a family of rules and is none: licences, standards, names of algorithms.
const NO_FAMILIES: [&str; 10] = ["BSD", "BSL", "CC0", "CVE", "FNV", "GPL", "KEP", "MPL", "SHA", "UTF"];

/// Reads `files`, which lie below `root`, and returns what is broken, one line each.
pub(super) fn check(root: &Path, files: &[PathBuf]) -> Result<Vec<String>> {
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
    let (law, mut broken) = Law::read(&read(&root.join(LAW))?);
    for path in files {
        let shown = path.strip_prefix(root).unwrap_or(path);
        if cites_rules(shown) {
            broken.extend(law.broken_citations(shown, &read(path)?));
        }
    }
    Ok(broken)
}

fn cites_rules(path: &Path) -> bool {
    let kind = path.extension().and_then(|extension| extension.to_str());
    let is_text = kind.is_some_and(|kind| KINDS.contains(&kind)) || path.starts_with(DEPLOY);
    is_text && !path.with_extension("").starts_with(INVENTORS)
}

/// The rules, each with the line of `docs/rules.md` that it stands in.
struct Law {
    rows: BTreeMap<Id, usize>,
}

impl Law {
    /// The rules of a text, and what is wrong with it.
    fn read(text: &str) -> (Self, Vec<String>) {
        let mut law = Self { rows: BTreeMap::new() };
        let mut broken = Vec::new();
        let mut last: Option<Id> = None;
        for (number, line) in (1..).zip(text.lines()) {
            if !line.starts_with('|') || is_head(line) {
                last = last.filter(|_| line.starts_with('|'));
                continue;
            }
            match row(line) {
                Err(reason) => broken.push(format!("{LAW}:{number}: {reason}")),
                Ok(id) => {
                    if let Some(before) = law.rows.insert(id.clone(), number) {
                        broken.push(format!("{LAW}:{number}: {id} stands in line {before} already"));
                    }
                    if let Some(last) = last.filter(|last| last.family != id.family || *last > id) {
                        broken.push(format!("{LAW}:{number}: {id} must not stand behind {last}"));
                    }
                    last = Some(id);
                }
            }
        }
        (law, broken)
    }

    /// What `text` cites and cannot be looked up.
    fn broken_citations(&self, path: &Path, text: &str) -> Vec<String> {
        let families = self.rows.keys().map(|id| id.family.to_lowercase()).collect::<BTreeSet<_>>();
        let is_rust = path.extension().is_some_and(|extension| extension == "rs");
        let mut broken = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let place = format!("{}:{number}", path.display());
            for found in cited(line) {
                match found {
                    Cited::Rule(id) if self.resolves(&id) => {}
                    Cited::Rule(id) => broken.push(format!("{place}: {id} has no row in {LAW}")),
                    Cited::NoRange(range) => broken.push(format!("{place}: {range} is no range of rules")),
                }
            }
            for (_, words) in dead_ends(path, line) {
                broken.push(format!("{place}: `{words}` leads nowhere; cite a rule of {LAW} by its ID"));
            }
            for name in ids_in_names(line, &families).into_iter().filter(|_| is_rust) {
                broken.push(format!("{place}: `{name}` cites a rule in a name; cite it in a comment"));
            }
        }
        broken
    }

    fn resolves(&self, id: &Id) -> bool {
        self.rows.contains_key(id) || NO_FAMILIES.contains(&&*id.family)
    }
}

/// The first two lines of a table.
fn is_head(line: &str) -> bool {
    line.starts_with("| ID |") || line.chars().all(|letter| "|- ".contains(letter))
}

/// The ID of a row `| ID | rule | source |`, or what is wrong with the row.
fn row(line: &str) -> Result<Id, String> {
    let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
    let [id, rule, source] = cells[..] else {
        return Err(format!("{} cells in a row of `| ID | rule | source |`", cells.len()));
    };
    if rule.is_empty() || source.is_empty() {
        return Err(format!("{id} needs a rule and a source"));
    }
    match Id::read(id) {
        Some((id, "")) => Ok(id),
        Some(_) | None => Err(format!("`{id}` is no rule ID")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn law() -> Law {
        Law::read("| TP-1 | r | s |\n| TP-2 | r | s |\n| TP-3 | r | s |\n\n| DNS-1.2 | r | s |").0
    }

    #[track_caller]
    fn check_law(text: &str, wanted: &[&str]) {
        assert_eq!(Law::read(text).1, wanted, "{text}");
    }

    #[track_caller]
    fn check_text(text: &str, wanted: &[&str]) {
        assert_eq!(law().broken_citations(Path::new("a.rs"), text), wanted, "{text}");
    }

    #[test]
    fn rules_stand_once_in_order_with_a_source() {
        check_law(
            "| ID | rule | source |\n|---|---|---|\n| TP-1 | a | b |\n| TP-10a | a | b |\n| TP-11 | a | b |",
            &[],
        );
        check_law("| DNS-2.1.2 | a | b |\n| DNS-2.2 | a | b |\n| DNS-2.2.1 | a | b |\n| DNS-12 | a | b |", &[]);
        check_law("| TP-1 | a | b |\n\n## Other\n\n| EP-1 | a | b |", &[]);
        check_law("| TP-1 | a | b |\n| TP-1 | a | b |", &["docs/rules.md:2: TP-1 stands in line 1 already"]);
        check_law("| TP-10 | a | b |\n| TP-9 | a | b |", &["docs/rules.md:2: TP-9 must not stand behind TP-10"]);
        check_law("| EP-1 | a | b |\n| TP-1 | a | b |", &["docs/rules.md:2: TP-1 must not stand behind EP-1"]);
        check_law("| TP-1 | a |  |", &["docs/rules.md:1: TP-1 needs a rule and a source"]);
        check_law("| TP-1 | a |", &["docs/rules.md:1: 2 cells in a row of `| ID | rule | source |`"]);
        check_law("| TP | a | b |", &["docs/rules.md:1: `TP` is no rule ID"]);
        check_law("| TP-1…3 | a | b |", &["docs/rules.md:1: `TP-1…3` is no rule ID"]);
    }

    #[test]
    fn what_is_cited_has_a_row() {
        check_text("// TP-1, and\n// (TP-2, DNS-1.2).", &[]);
        check_text("first\nsecond (TP-4)", &["a.rs:2: TP-4 has no row in docs/rules.md"]);
        check_text("TP-1…3", &[]);
        check_text("TP-2…4", &["a.rs:1: TP-4 has no row in docs/rules.md"]);
        check_text("TP-3…1", &["a.rs:1: TP-3…1 is no range of rules"]);
        check_text("PT-1", &["a.rs:1: PT-1 has no row in docs/rules.md"]);
        check_text("UTF-8, GPL-2.0, KEP-2086", &[]);
        check_text("fn a_tp_1() {}", &["a.rs:1: `a_tp_1` cites a rule in a name; cite it in a comment"]);
        check_text("fn a_in_1() {}", &[]);
        check_text("/// (rule 1.2)", &["a.rs:1: `rule 1.2` leads nowhere; cite a rule of docs/rules.md by its ID"]);
    }

    #[test]
    fn texts_and_all_that_is_shipped_are_read() {
        let reads = |path: &str| cites_rules(Path::new(path));
        assert!(reads("proxy/src/run.rs") && reads("docs/dns.md") && reads("tests/flows/matrix.yaml"));
        assert!(reads("deploy/helm/shunt/templates/_names.tpl") && reads("README.md"));
        assert!(!reads("Cargo.lock") && !reads("xtask/src/tidy/rules/id.rs") && !reads("xtask/src/tidy/rules.rs"));
    }
}
