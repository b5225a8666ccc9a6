//! Citations of documents that are not in the repository, and of rules by a bare number: they lead nowhere.

use std::path::Path;

use super::id::Id;

/// How something is cited that a reader cannot look up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `spec 3.2`, `spec TP-1`, `spec section 4`.
    Spec,
    /// `spec/datapath.md`, `design.md`.
    Document,
    /// `rule 9.16`.
    Rule,
    /// `section 5`, of no RFC.
    Section,
    /// `trap 12`.
    Trap,
    /// A bare number in a comment: `// 9.16`, `(3.7)`.
    Number,
    /// `// V28`.
    Vector,
}

/// Documents that were never part of the repository.
const DOCUMENTS: [&str; 4] = ["service-proxy.md", "datapath.md", "design.md", "conventions.md"];

/// Words that, before a number, cite a rule.
const LEADS: [(&str, Form); 6] = [
    ("spec", Form::Spec),
    ("rule", Form::Rule),
    ("rules", Form::Rule),
    ("section", Form::Section),
    ("trap", Form::Trap),
    ("DNS", Form::Number),
];

/// Those in one line, each as it stands there.
pub(super) fn dead_ends(path: &Path, line: &str) -> Vec<(Form, String)> {
    let documents = DOCUMENTS.iter().filter(|name| line.contains(**name));
    let mut found: Vec<_> = documents.map(|name| (Form::Document, (*name).to_owned())).collect();
    found.extend(after_a_lead(line));
    let Some(comment) = comment(path, line) else { return found };
    found.extend(alone(comment).map(|number| (Form::Number, number.to_owned())));
    found.extend(bracketed(comment).map(|number| (Form::Number, number.to_owned())));
    if path.extension().is_some_and(|extension| extension == "rs") {
        let words = comment.split_whitespace().map(|word| word.trim_matches(is_mark));
        found.extend(words.filter(|word| is_vector(word)).map(|word| (Form::Vector, word.to_owned())));
    }
    found
}

/// `rule 3.1` and the like.
fn after_a_lead(line: &str) -> Vec<(Form, String)> {
    let mut found = Vec::new();
    let mut words = line.split_whitespace().map(|word| word.trim_matches(is_mark)).peekable();
    let mut of_rfc = false;
    while let Some(word) = words.next() {
        let next = words.peek().copied().unwrap_or_default();
        let form = LEADS.iter().find(|(lead, _)| lead.eq_ignore_ascii_case(word)).map(|(_, form)| *form);
        if let Some(form) = form.filter(|form| cites(*form, next) && !(of_rfc && *form == Form::Section)) {
            found.push((form, format!("{word} {next}")));
        }
        // `RFC 1035 section 4.1.4` can be looked up.
        of_rfc = word == "RFC" || (of_rfc && word.chars().all(|letter| letter.is_ascii_digit()));
    }
    found
}

fn is_mark(letter: char) -> bool {
    letter.is_ascii_punctuation()
}

/// Whether `next`, after a word of `form`, is something cited.
fn cites(form: Form, next: &str) -> bool {
    let number = next.starts_with(|letter: char| letter.is_ascii_digit());
    match form {
        Form::Spec => number || next == "DNS" || Id::read(next).is_some(),
        Form::Number => is_dotted(next),
        Form::Rule | Form::Section | Form::Trap => number,
        Form::Document | Form::Vector => false,
    }
}

/// The part of a line that is prose.
fn comment<'l>(path: &Path, line: &'l str) -> Option<&'l str> {
    let kind = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match kind {
        "md" => Some(line),
        "rs" => line.split_once("// ").or_else(|| line.split_once("//! ")).map(|(_, comment)| comment),
        _ => line.split_once("# ").map(|(_, comment)| comment),
    }
}

/// A number at the start of a comment that says nothing else, or has a mark after it: `(rule` may stand at the end of
/// the line before.
fn alone(comment: &str) -> Option<&str> {
    let first = comment.split_whitespace().next()?;
    let number = first.trim_end_matches([',', ':', ';', ')', '.']);
    (is_dotted(number) && (number != first || comment.trim() == first)).then_some(number)
}

/// `(3.7)` and `(1.1, 1.3)`: nothing but numbers up to the first comma or bracket.
fn bracketed(comment: &str) -> impl Iterator<Item = &str> {
    let parts = comment.split('(').skip(1);
    parts.filter_map(|part| part.split([',', ')']).next()).filter(|inside| is_dotted(inside))
}

/// `3.7` or `2.5.4`, but no version and no fraction such as 0.5.
fn is_dotted(word: &str) -> bool {
    let parts: Vec<&str> = word.split('.').collect();
    let number = |part: &&str| (1..=2).contains(&part.len()) && part.chars().all(|letter| letter.is_ascii_digit());
    (2..=3).contains(&parts.len()) && parts.iter().all(number) && !word.starts_with('0')
}

/// `V28`, but not `V4` and `V6`, which are families of addresses.
fn is_vector(word: &str) -> bool {
    let number = word.strip_prefix('V').and_then(|number| number.parse::<u8>().ok());
    number.is_some_and(|number| (1..=30).contains(&number) && number != 4 && number != 6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, line: &str, wanted: &[(Form, &str)]) {
        let wanted: Vec<_> = wanted.iter().map(|(form, words)| (*form, (*words).to_owned())).collect();
        assert_eq!(dead_ends(Path::new(path), line), wanted, "{line}");
    }

    #[test]
    fn what_lies_outside_of_the_repository_is_a_dead_end() {
        check("a.rs", "/// The table (spec 2.4).", &[(Form::Spec, "spec 2.4")]);
        check("a.rs", "/// Its reason (spec NE-2).", &[(Form::Spec, "spec NE-2")]);
        check("a.rs", "/// None (spec section 4).", &[(Form::Section, "section 4")]);
        check(
            "a.rs",
            "//! (spec/datapath.md 3.1 trap 12).",
            &[(Form::Document, "datapath.md"), (Form::Trap, "trap 12")],
        );
        check("a.rs", "    \"no such service (rule 3.1)\",", &[(Form::Rule, "rule 3.1")]);
        check("a.rs", "/// Rules 3.8 and 3.9.", &[(Form::Rule, "Rules 3.8")]);
        check("a.rs", "/// Read (DNS 8.3).", &[(Form::Number, "DNS 8.3")]);
    }

    #[test]
    fn a_bare_number_is_a_dead_end_in_a_comment() {
        check("a.rs", "    assert_eq!(ttl, 5); // 9.16", &[(Form::Number, "9.16")]);
        check("a.rs", "    // 14.2: a failure is kept.", &[(Form::Number, "14.2")]);
        check("a.rs", "/// 15.5).", &[(Form::Number, "15.5")]);
        check("a.rs", "    check(x); // V28: each list for itself", &[(Form::Vector, "V28")]);
        check("a.yaml", "# The matrix (3.7). Each", &[(Form::Number, "3.7")]);
        check("a.yaml", "# What counts (1.1, 1.3).", &[(Form::Number, "1.1")]);
        check("a.md", "  1. the source is the node (3.3)", &[(Form::Number, "3.3")]);
        check("a.txt", "# 2.2.1, 2.2.2", &[(Form::Number, "2.2.1")]);
    }

    #[test]
    fn other_numbers_are_none() {
        check("a.rs", "/// So long (RFC 8767 section 5), RFC 1035 section 4.1.4.", &[]);
        check("a.rs", "    buckets(0.001, 2.0, 15); // 1.5 s", &[]);
        check("a.rs", "    // 0.25, 0.5 and 1", &[]);
        check("a.rs", "    value.pointer(\"/spec/selector\")", &[]);
        check("a.rs", "/// Kernel: 5.14. (kernel 5.7) [`V4`] V6", &[]);
        check("a.rs", "/// House rules that hold (TP-22, DNS-9.16).", &[]);
        check("a.yaml", "  address: 10.1", &[]);
    }
}
