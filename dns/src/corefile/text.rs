//! The text of a Corefile as lines of words, each with its place; files and snippets that it imports are put in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::CorefileError;

/// Imports in imports, after which they lead round in circles.
const DEEPEST: usize = 10;

/// A directive: its words, and the lines between its braces if it has any.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) at: Place,
    pub(super) words: Vec<String>,
    pub(super) block: Option<Vec<Self>>,
}

/// A file and a line in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file: Arc<Path>,
    pub(super) line: usize,
}

impl Place {
    pub(super) fn error(&self, reason: impl Into<String>) -> CorefileError {
        CorefileError::Refused { file: self.file.to_path_buf(), line: self.line, reason: reason.into() }
    }
}

impl Line {
    pub(super) fn name(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    pub(super) fn arguments(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }

    pub(super) fn error(&self, reason: impl Into<String>) -> CorefileError {
        self.at.error(format!("{}: {}", self.name(), reason.into()))
    }
}

/// What a Corefile says, with all imports, and every text that was read for it.
#[derive(Debug, Default)]
pub(super) struct Text {
    pub(super) lines: Vec<Line>,
    pub(super) sources: Vec<(PathBuf, String)>,
}

impl Text {
    pub(super) fn read(path: &Path) -> Result<Self, CorefileError> {
        let mut reader = Reader { text: Self::default(), snippets: BTreeMap::new() };
        let lines = reader.file(path, 0)?;
        Ok(Self { lines, ..reader.text })
    }
}

struct Reader {
    text: Text,
    snippets: BTreeMap<String, Vec<Line>>,
}

impl Reader {
    fn file(&mut self, path: &Path, depth: usize) -> Result<Vec<Line>, CorefileError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| CorefileError::Read { path: path.to_owned(), source })?;
        let mut words = words(&text, &Arc::from(path))?.into_iter().peekable();
        self.text.sources.push((path.to_owned(), text));
        let lines = lines(&mut words, None)?;
        self.expand(lines, path.parent().unwrap_or_else(|| Path::new(".")), depth)
    }

    /// Takes snippets out and puts imports in.
    fn expand(&mut self, lines: Vec<Line>, directory: &Path, depth: usize) -> Result<Vec<Line>, CorefileError> {
        let mut expanded = Vec::new();
        for mut line in lines {
            if let Some(snippet) = line.name().strip_prefix('(').and_then(|name| name.strip_suffix(')')) {
                let snippet = snippet.to_owned();
                self.snippets.insert(snippet, line.block.take().unwrap_or_default());
                continue;
            }
            if line.name() == "import" {
                expanded.extend(self.import(&line, directory, depth)?);
                continue;
            }
            if let Some(block) = line.block.take() {
                line.block = Some(self.expand(block, directory, depth)?);
            }
            expanded.push(line);
        }
        Ok(expanded)
    }

    fn import(&mut self, line: &Line, directory: &Path, depth: usize) -> Result<Vec<Line>, CorefileError> {
        let [what] = line.arguments() else {
            return Err(line.error("takes one file, pattern or snippet; arguments are not in this version"));
        };
        if depth >= DEEPEST {
            return Err(line.error(format!("{what} is imported by what it imports")));
        }
        if let Some(snippet) = self.snippets.get(what) {
            return self.expand(snippet.clone(), directory, depth + 1);
        }
        let path = directory.join(what);
        if !what.contains('*') {
            return self.file(&path, depth + 1).map_err(|error| line.error(shunt_model::with_causes(&error)));
        }
        let mut lines = Vec::new();
        for path in matching(&path).map_err(|error| line.error(format!("{what}: {error}")))? {
            lines.extend(self.file(&path, depth + 1)?);
        }
        Ok(lines)
    }
}

/// The files whose name fits a pattern, in order; none if there is no such folder.
fn matching(pattern: &Path) -> std::io::Result<Vec<PathBuf>> {
    let folder = pattern.parent().unwrap_or_else(|| Path::new("."));
    let name = pattern.file_name().unwrap_or_default().to_string_lossy();
    let parts: Vec<String> = name.split('*').map(regex::escape).collect();
    let regex = regex::Regex::new(&format!("^{}$", parts.join(".*"))).map_err(std::io::Error::other)?;
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if regex.is_match(&path.file_name().unwrap_or_default().to_string_lossy()) && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// A word, and whether it is the first of its line.
struct Word {
    text: String,
    at: Place,
    first: bool,
    quoted: bool,
}

impl Word {
    fn is(&self, text: &str) -> bool {
        !self.quoted && self.text == text
    }
}

/// Splits at white space; words in quotes are one; `#` begins a comment; `{$NAME}` is a variable of the environment.
fn words(text: &str, file: &Arc<Path>) -> Result<Vec<Word>, CorefileError> {
    let mut words = Vec::new();
    let (mut line, mut last) = (1, 0);
    let mut characters = text.chars().peekable();
    while let Some(&next) = characters.peek() {
        let at = Place { file: Arc::clone(file), line };
        match next {
            '\n' => line += 1,
            '#' => {
                while characters.next_if(|character| *character != '\n').is_some() {}
                continue;
            }
            _ if next.is_whitespace() => {}
            _ => {
                let (text, quoted) = if next == '"' {
                    characters.next();
                    (quoted(&mut characters, &mut line).ok_or_else(|| at.error("the quote has no end"))?, true)
                } else {
                    let mut word = String::new();
                    while let Some(character) = characters.next_if(|character| !character.is_whitespace()) {
                        word.push(character);
                    }
                    (word, false)
                };
                words.push(Word { text: environment(&text), first: at.line != last, at, quoted });
                last = line;
                continue;
            }
        }
        characters.next();
    }
    Ok(words)
}

fn quoted(characters: &mut std::iter::Peekable<std::str::Chars<'_>>, line: &mut usize) -> Option<String> {
    let mut text = String::new();
    loop {
        match characters.next()? {
            '"' => return Some(text),
            '\\' if characters.peek() == Some(&'"') => text.extend(characters.next()),
            character => {
                *line += usize::from(character == '\n');
                text.push(character);
            }
        }
    }
}

fn environment(word: &str) -> String {
    let mut text = word.to_owned();
    for (open, close) in [("{$", "}"), ("{%", "%}")] {
        while let Some((before, rest)) = text.split_once(open) {
            let Some((name, after)) = rest.split_once(close) else { break };
            text = format!("{before}{}{after}", std::env::var(name).unwrap_or_default());
        }
    }
    text
}

/// Lines up to the end, or to the brace that closes `opened`.
fn lines(
    words: &mut std::iter::Peekable<std::vec::IntoIter<Word>>,
    opened: Option<&Place>,
) -> Result<Vec<Line>, CorefileError> {
    let mut lines = Vec::new();
    while let Some(word) = words.next() {
        if word.is("}") {
            return if opened.is_some() { Ok(lines) } else { Err(word.at.error("} closes nothing")) };
        }
        if word.is("{") {
            return Err(word.at.error("{ opens a block of nothing: write the name before it, on the same line"));
        }
        let mut line = Line { at: word.at.clone(), words: vec![word.text], block: None };
        // A comma says that more names follow, also on the next line.
        let goes_on = |line: &Line| line.words.last().is_some_and(|last| last.ends_with(','));
        while let Some(next) = words.next_if(|next| !next.is("}") && (!next.first || goes_on(&line))) {
            if next.is("{") {
                line.block = Some(self::lines(words, Some(&next.at))?);
                break;
            }
            line.words.push(next.text);
        }
        lines.push(line);
    }
    match opened {
        None => Ok(lines),
        Some(at) => Err(at.error("the block that begins here has no end")),
    }
}
