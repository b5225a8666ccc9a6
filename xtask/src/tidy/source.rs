//! Rules about single source files.

use std::path::Path;

use super::prose::{COLUMNS, is_prose};

/// Lines a file may have, tests included.
const LINES: usize = 600;
/// Where unsafe code may stand.
const UNSAFE_PLACES: [&str; 3] = ["proxy-ebpf", "proxy/src/sys", "proxy/src/sys.rs"];
/// Names that say nothing about what is inside.
const BANNED_NAMES: [&str; 8] = ["util", "utils", "common", "helper", "helpers", "manager", "misc", "stuff"];
/// The one door to data paths, and what is behind it; and the measurement of the packet programs.
const DATAPATH_PLACES: [&str; 3] = ["proxy/src/datapath", "proxy/src/datapath.rs", "tests/src/peer/programs.rs"];
/// The modules of data paths; what is theirs is named nowhere else.
const DATAPATHS: [&str; 3] = ["ebpf", "nftables", "iptables"];
/// Promises in place of code.
const BANNED_CODE: [&str; 3] = ["todo!(", "unimplemented!(", "#[ignore"];

/// What is wrong with a file, one line each; `path` is relative to the workspace.
pub(super) fn broken_rules(path: &Path, text: &str) -> Vec<String> {
    let code = without_comments_and_literals(text);
    let lines = text.lines().count();
    let mut broken = Vec::new();
    if lines > LINES {
        broken.push(format!("{lines} lines; split it at {LINES}"));
    }
    if !text.lines().find(|line| !line.trim().is_empty()).is_some_and(|line| line.starts_with("//! ")) {
        broken.push("it must open with one //! sentence that a stranger understands".to_owned());
    }
    if has_word(&code, "unsafe") && !UNSAFE_PLACES.iter().any(|place| path.starts_with(place)) {
        broken.push(format!("unsafe code may stand only in {}", UNSAFE_PLACES.join(", ")));
    }
    if !DATAPATH_PLACES.iter().any(|place| path.starts_with(place)) {
        for name in datapath_names(&code) {
            broken.push(format!("`{name}` belongs to a data path: go through the door, proxy/src/datapath.rs"));
        }
    }
    if let Some(name) = banned_name(path) {
        broken.push(format!("`{name}` says nothing about what is inside"));
    }
    for (number, columns) in long_comments(text) {
        broken.push(format!("line {number} has {columns} columns; wrap the comment at {COLUMNS}"));
    }
    for banned in BANNED_CODE.iter().filter(|banned| code.contains(**banned)) {
        broken.push(format!("`{banned}` is a promise, not code"));
    }
    broken.into_iter().map(|reason| format!("{}: {reason}", path.display())).collect()
}

/// The numbers and the columns of the lines of comments that are too long; rustfmt leaves comments as they are.
fn long_comments(text: &str) -> impl Iterator<Item = (usize, usize)> {
    let comments = (1..).zip(text.lines()).filter_map(|(number, line)| {
        let comment = line.trim_start().strip_prefix("//")?.trim_start_matches(['/', '!']);
        is_prose(comment).then(|| (number, line.chars().count()))
    });
    comments.filter(|(_, columns)| *columns > COLUMNS)
}

fn banned_name(path: &Path) -> Option<&'static str> {
    let parts = path.with_extension("");
    BANNED_NAMES.into_iter().find(|name| parts.iter().any(|part| part == *name))
}

fn has_word(code: &str, word: &str) -> bool {
    code.split(|letter: char| !letter.is_alphanumeric() && letter != '_').any(|found| found == word)
}

/// What code names of data paths: their modules as parts of a path, and the loader of BPF programs.
fn datapath_names(code: &str) -> impl Iterator<Item = &'static str> {
    let code: String = code.split_whitespace().collect::<Vec<_>>().join(" ").replace(" ::", "::").replace(":: ", "::");
    let is_module = |name: &str| {
        code.match_indices(name).any(|(at, _)| {
            let (before, after) = (code.get(..at).unwrap_or_default(), code.get(at + name.len()..).unwrap_or_default());
            let is_whole = !before.ends_with(is_word) && !after.starts_with(is_word);
            is_whole && (after.starts_with("::") || before.ends_with("datapath::"))
        })
    };
    let loader = has_word(&code, "aya").then_some("aya");
    let found: Vec<&str> = DATAPATHS.into_iter().filter(|name| is_module(name)).chain(loader).collect();
    found.into_iter()
}

/// The code with comments, strings and characters blanked; a scanner for rules, not a parser.
fn without_comments_and_literals(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if first == '"' {
            quoted(rest, '"')
        } else if first == 'r' && !code.ends_with(is_word) {
            raw_string(rest)
        } else if first == '\'' {
            character(rest)
        } else {
            0
        };
        if skipped == 0 {
            code.push(first);
        } else {
            code.push(' ');
        }
        rest = rest.get(skipped.max(first.len_utf8())..).unwrap_or_default();
    }
    code
}

fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// The length of a block comment, nested ones included.
fn block_comment(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let step = if rest.starts_with("/*") {
            depth += 1;
            2
        } else if rest.starts_with("*/") {
            depth -= 1;
            2
        } else {
            rest.chars().next().map_or(1, char::len_utf8)
        };
        at += step;
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// The length of a literal that ends at the next unescaped quote.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, letter) in text.char_indices().skip(1) {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            found if found == quote => return at + quote.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// The length of `r"…"` or `r#"…"#`; 0 when it is none.
fn raw_string(text: &str) -> usize {
    let after = text.get(1..).unwrap_or_default();
    let hashes = after.len() - after.trim_start_matches('#').len();
    let Some(body) = after.get(hashes..).and_then(|body| body.strip_prefix('"')) else { return 0 };
    let end = format!("\"{}", "#".repeat(hashes));
    body.find(&end).map_or(text.len(), |at| text.len() - body.len() + at + end.len())
}

/// The length of a character literal; 0 for a lifetime.
fn character(text: &str) -> usize {
    let mut letters = text.chars().skip(1);
    match (letters.next(), letters.next()) {
        (Some('\\'), _) => quoted(text, '\''),
        (Some(letter), Some('\'')) => letter.len_utf8() + 2,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `wanted` is a part of the one rule that is broken, or empty.
    #[track_caller]
    fn check(path: &str, text: &str, wanted: &str) {
        let broken = broken_rules(Path::new(path), text);
        match wanted {
            "" => assert_eq!(broken, Vec::<String>::new()),
            _ => assert!(broken.len() == 1 && broken[0].contains(wanted), "wanted {wanted}, got {broken:?}"),
        }
    }

    #[test]
    fn a_file_opens_with_a_sentence() {
        check("dns/src/zone.rs", "//! The zone.\nfn a() {}\n", "");
        check("dns/src/zone.rs", "\n//! The zone.\n", "");
        check("dns/src/zone.rs", "// The zone.\n", "must open");
        check("dns/src/zone.rs", "", "must open");
    }

    #[test]
    fn a_file_has_at_most_600_lines() {
        check("a.rs", &format!("//! A.\n{}", "\n".repeat(599)), "");
        check("a.rs", &format!("//! A.\n{}", "\n".repeat(600)), "601 lines");
    }

    #[test]
    fn unsafe_code_stands_only_in_the_listed_places() {
        let text = "//! A.\nfn a() { unsafe { b() } }\n";
        check("proxy-ebpf/src/maps.rs", text, "");
        check("proxy-abi/src/lib.rs", text, "unsafe code");
        check("proxy/src/sys/batch.rs", text, "");
        check("proxy/src/plan.rs", text, "unsafe code");
        check("proxy/src/system.rs", text, "unsafe code");
        check("dns/src/zone.rs", "//! A.\n#[unsafe(no_mangle)]\nfn a() {}\n", "unsafe code");
        check("dns/src/zone.rs", "//! A.\n#![forbid(unsafe_code)]\n// unsafe\n/* /* unsafe */ unsafe */\n", "");
        check("dns/src/zone.rs", "//! A.\nconst A: [&str; 2] = [\"\\\" unsafe\", r#\"\" unsafe\"#];\n", "");
        check(
            "dns/src/zone.rs",
            "//! A.\nfn a<'a>(b: &'a str) -> bool { b.starts_with('\"') || unsafe { c() } }\n",
            "unsafe",
        );
    }

    #[test]
    fn data_paths_are_named_behind_the_door_only() {
        let text = "//! A.\nuse crate::datapath::ebpf::Ebpf;\n";
        check("proxy/src/datapath.rs", text, "");
        check("proxy/src/datapath/handover.rs", text, "");
        check("proxy/tests/flows.rs", text, "`ebpf`");
        check("proxy/src/reconcile.rs", text, "`ebpf`");
        check("proxy/src/datapaths.rs", text, "`ebpf`");
        check("proxy/src/run.rs", "//! A.\nuse crate::datapath::{self, ebpf::Ebpf};\n", "`ebpf`");
        check("proxy/src/run.rs", "//! A.\nuse crate::datapath:: nftables as path;\n", "`nftables`");
        check("proxy/src/run.rs", "//! A.\nfn a() { iptables ::open() }\n", "`iptables`");
        check("proxy/src/cli/check.rs", "//! A.\nuse aya::programs::ProgramType;\n", "`aya`");
        check("proxy/src/sys/bpf.rs", "//! Calls that aya has no wrapper for.\nfn a() { b(\"ebpf::c\") }\n", "");
        check("proxy/src/run.rs", "//! A.\nfn a(b: Mode) -> bool { b == Mode::Ebpf }\n", "");
        check("proxy/src/config.rs", "//! A.\nstruct A { iptables: B, nftables: kube::iptables_mode }\n", "");
        check("proxy-ebpf/src/main.rs", "//! A.\nuse aya_ebpf::macros::map;\n", "");
    }

    #[test]
    fn comments_wrap() {
        let words = |count: usize| "word ".repeat(count);
        check("a.rs", &format!("//! {}\n", words(23)), "");
        check("a.rs", &format!("//! {}\n", words(24)), "line 1 has 124 columns");
        check("a.rs", &format!("//! A.\nfn a() {{\n    // {}\n}}\n", words(23)), "line 3 has 122 columns");
        check("a.rs", &format!("//! A.\nconst A: &str = \"{}\";\n", words(30)), "");
        check("a.rs", &format!("//! A.\n/// | {} |\nfn a() {{}}\n", words(30)), "");
    }

    #[test]
    fn names_say_what_is_inside() {
        check("proxy/src/utils.rs", "//! A.\n", "`utils`");
        check("tests/tests/common/mod.rs", "//! A.\n", "`common`");
        check("proxy/src/uncommon.rs", "//! A.\n", "");
    }

    #[test]
    fn promises_are_not_code() {
        check("a.rs", "//! A.\nfn a() { todo!() }\n", "todo!(");
        check("a.rs", "//! A.\n#[ignore = \"slow\"]\nfn a() {}\n", "#[ignore");
        check("a.rs", "//! A.\n// TODO(scale): not a todo!()\n", "");
    }
}
