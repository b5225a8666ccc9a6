//! Documents in Markdown: prose wraps, so that changes of a sentence can be read line by line.

use std::path::Path;

/// Columns that a line of prose may have.
pub(super) const COLUMNS: usize = 120;

/// The lines of a document that are too long, one each; `path` is relative to the workspace.
pub(super) fn long_lines(path: &Path, text: &str) -> Vec<String> {
    let mut in_code = false;
    let mut broken = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        let columns = line.chars().count();
        if columns > COLUMNS && !in_code && !fence && is_prose(line) {
            broken.push(format!("{}:{number}: {columns} columns; wrap it at {COLUMNS}", path.display()));
        }
    }
    broken
}

/// Whether a line can be wrapped: no row of a table, no heading, and not a link or one word alone.
pub(super) fn is_prose(line: &str) -> bool {
    let text = line.trim().trim_start_matches(['-', '*', '>']).trim();
    // `[text](address)`, and `[1]: address`.
    let is_link = text.starts_with('[') && text.ends_with(')') && text.matches("](").count() == 1;
    let is_target = text.starts_with('[') && text.split_once("]: ").is_some_and(|(_, address)| !address.contains(' '));
    let is_one = is_link || is_target || !text.contains(' ');
    !(line.trim_start().starts_with('|') || line.starts_with('#') || is_one)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `wanted` are the numbers of the lines that are too long.
    #[track_caller]
    fn check(text: &str, wanted: &[usize]) {
        let wanted: Vec<_> = wanted.iter().map(|line| format!("a.md:{line}: ")).collect();
        let broken = long_lines(Path::new("a.md"), text);
        let right = broken.iter().zip(&wanted).all(|(line, start)| line.starts_with(start));
        assert!(right && broken.len() == wanted.len(), "wanted {wanted:?}, got {broken:?}");
    }

    #[test]
    fn prose_has_at_most_120_columns() {
        let words = "a word ".repeat(18);
        check(&format!("{}\n{}", &words[..120], &words[..121]), &[2]);
        check(&format!("short\n- {words}\n  {words}\n> {words}"), &[2, 3, 4]);
        check(&"é ".repeat(60), &[]);
        check(&format!("[a](b) {words} [c](d)"), &[1]);
    }

    #[test]
    fn what_cannot_be_wrapped_may_be_longer() {
        let words = "a word ".repeat(18);
        check(&format!("| {words} |\n# {words}"), &[]);
        check(&format!("```\n{words}\n```\n{words}"), &[4]);
        check(&format!("  ```sh\n  {words}\n  ```\n{words}"), &[4]);
        check(&format!("- [{words}](https://a.example)\n<https://{}>", "a".repeat(120)), &[]);
        check(&format!("[1]: https://{}\n{}", "a".repeat(120), "a".repeat(121)), &[]);
    }
}
