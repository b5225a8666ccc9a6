//! The text of a Corefile as lines of words, each with its position; imported files and snippets are inserted.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{CorefileError, glob};

/// The deepest nesting of imports; deeper ones are taken for a circle.
const DEEPEST: usize = 10;

/// A directive: its words, and the lines between its braces if it has any.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) at: Position,
    pub(super) words: Vec<String>,
    pub(super) block: Option<Vec<Self>>,
    /// In which line each word begins: the names of a server block may fill several.
    pub(super) word_lines: Vec<usize>,
}

/// A file and a line in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) file: Arc<Path>,
    pub(super) line: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

impl Position {
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

    /// Where a word begins.
    pub(super) fn at_word(&self, number: usize) -> Position {
        let line = self.word_lines.get(number).copied().unwrap_or(self.at.line);
        Position { file: Arc::clone(&self.at.file), line }
    }

    pub(super) fn error(&self, reason: impl Into<String>) -> CorefileError {
        self.at.error(format!("{}: {}", self.name(), reason.into()))
    }
}

/// A file that was read, with its text, or none if it could not be read.
pub(super) type Source = (PathBuf, Option<String>);

/// A Corefile with all imports, and every file that was read for it, also if it is refused.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) lines: Result<Vec<Line>, CorefileError>,
    pub(super) sources: Vec<Source>,
}

impl Text {
    pub(super) fn read(path: &Path) -> Self {
        let mut reader = Reader::default();
        let lines = reader.file(path, 0).map(last_block);
        Self { lines, sources: reader.sources }
    }
}

/// The last server block needs no braces: all that comes after its names belongs to it.
fn last_block(mut lines: Vec<Line>) -> Vec<Line> {
    if let Some(names) = lines.iter().position(|line| line.block.is_none()) {
        let directives = lines.split_off(names + 1);
        if let Some(names) = lines.last_mut().filter(|_| !directives.is_empty()) {
            names.block = Some(directives);
        }
    }
    lines
}

#[derive(Default)]
struct Reader {
    sources: Vec<Source>,
    snippets: BTreeMap<String, Vec<Line>>,
}

impl Reader {
    fn file(&mut self, path: &Path, depth: usize) -> Result<Vec<Line>, CorefileError> {
        let read = std::fs::read(path).map_err(|source| CorefileError::Read { path: path.to_owned(), source });
        let text = read.and_then(|octets| decoded(octets, path));
        self.sources.push((path.to_owned(), text.as_ref().ok().cloned()));
        let text = text?;
        let words = words(&text, &Arc::from(path))?.into_iter().peekable();
        let lines = Parser { words, glued: None }.lines(None)?;
        self.expand(lines, path.parent().unwrap_or_else(|| Path::new(".")), depth)
    }

    /// Takes snippets out and puts imports in.
    fn expand(&mut self, lines: Vec<Line>, directory: &Path, depth: usize) -> Result<Vec<Line>, CorefileError> {
        let mut expanded = Vec::new();
        for mut line in lines {
            if let Some(snippet) = line.name().strip_prefix('(').and_then(|name| name.strip_suffix(')')) {
                let snippet = snippet.to_owned();
                let Some(block) = line.block.take() else {
                    return Err(line.error("a snippet needs braces"));
                };
                if self.snippets.insert(snippet, block).is_some() {
                    return Err(line.error("there is such a snippet already"));
                }
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
            return Err(line.error("takes one file, pattern or snippet; arguments are not supported"));
        };
        if depth >= DEEPEST {
            return Err(
                line.error(format!("{what} is imported more than {DEEPEST} files deep; does it import itself?"))
            );
        }
        if let Some(snippet) = self.snippets.get(what) {
            return self.expand(snippet.clone(), directory, depth + 1);
        }
        let path = directory.join(what);
        if what.contains('[') && what.contains(']') {
            return Err(line.error(format!("{what}: patterns have * and ? only, no sets of characters")));
        }
        if !glob::is_pattern(what) {
            let nothing = if path.exists() { "" } else { "no snippet has this name: " };
            let failed = |error| line.error(format!("{nothing}{}", shunt_model::with_causes(&error)));
            return self.file(&path, depth + 1).map_err(failed);
        }
        let mut lines = Vec::new();
        for path in glob::matching(&path).map_err(|error| line.error(format!("{what}: {error}")))? {
            lines.extend(self.file(&path, depth + 1)?);
        }
        Ok(lines)
    }
}

fn decoded(octets: Vec<u8>, path: &Path) -> Result<String, CorefileError> {
    String::from_utf8(octets).map_err(|error| {
        let before = error.as_bytes().iter().take(error.utf8_error().valid_up_to());
        let line = before.filter(|octet| **octet == b'\n').count() + 1;
        let reason = "a character is not UTF-8: save the file in that encoding".to_owned();
        CorefileError::Refused { file: path.to_owned(), line, reason }
    })
}

/// A word, and whether it is the first of its line.
struct Word {
    text: String,
    at: Position,
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
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let (mut line, mut last) = (1, 0);
    // Some editors begin a file with a mark of the order of its octets.
    let mut characters = text.trim_start_matches('\u{feff}').chars().peekable();
    while let Some(&next) = characters.peek() {
        let at = Position { file: Arc::clone(file), line };
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
                    let belongs = |character: &char| !character.is_whitespace() && *character != '#';
                    while let Some(character) = characters.next_if(belongs) {
                        word.push(character);
                    }
                    (word, false)
                };
                words.push(Word { text: environment(&text, variable), first: at.line != last, at, quoted });
                last = line;
                continue;
            }
        }
        characters.next();
    }
    Ok(words)
}

/// Up to the quote that ends it. A backslash stands for itself, except before a quote.
fn quoted(characters: &mut std::iter::Peekable<std::str::Chars<'_>>, line: &mut usize) -> Option<String> {
    let mut text = String::new();
    loop {
        match characters.next()? {
            '"' => return Some(text),
            '\\' => match characters.next()? {
                '"' => text.push('"'),
                character => {
                    *line += usize::from(character == '\n');
                    text.extend(['\\', character]);
                }
            },
            character => {
                *line += usize::from(character == '\n');
                text.push(character);
            }
        }
    }
}

/// Puts variables in. What one says is taken as it is, even if it looks like a variable.
fn environment(word: &str, variable: impl Fn(&str) -> String) -> String {
    let (mut text, mut rest) = (String::new(), word);
    loop {
        let places = [("{$", "}"), ("{%", "%}")].into_iter().filter_map(|(open, close)| {
            let (before, rest) = rest.split_once(open)?;
            let (name, after) = rest.split_once(close)?;
            Some((before, name, after))
        });
        let Some((before, name, after)) = places.min_by_key(|(before, ..)| before.len()) else { break };
        text.push_str(before);
        text.push_str(&variable(name));
        rest = after;
    }
    text + rest
}

/// Makes lines of words.
struct Parser {
    words: std::iter::Peekable<std::vec::IntoIter<Word>>,
    /// The last line that ends with a word and a closing brace in one, such as `log}`.
    glued: Option<(Position, String)>,
}

impl Parser {
    /// Lines up to the end, or to the brace that closes `opened`.
    fn lines(&mut self, opened: Option<&Position>) -> Result<Vec<Line>, CorefileError> {
        let mut lines: Vec<Line> = Vec::new();
        while let Some(word) = self.words.next() {
            if word.is("}") {
                return if opened.is_some() { Ok(lines) } else { Err(word.at.error("} closes nothing")) };
            }
            if word.is("{") {
                // It may stand below the name.
                let Some(line) = lines.last_mut().filter(|line| line.block.is_none() && line.name() != "import") else {
                    return Err(word.at.error("{ opens a block of nothing: write the name before it"));
                };
                line.block = Some(self.lines(Some(&word.at))?);
                continue;
            }
            let in_a_server = |line: &Line| line.block.is_none() && line.name() != "import";
            let names_servers = opened.is_none() && !lines.iter().any(in_a_server);
            lines.push(self.line(word, names_servers)?);
        }
        match (opened, self.glued.take()) {
            (None, _) => Ok(lines),
            (Some(_), Some((at, text))) => {
                Err(at.error(format!("{text}: a brace stands by itself, so put a space before it")))
            }
            (Some(at), None) => Err(at.error("the block that begins here has no end")),
        }
    }

    /// The line that begins with this word, with its block if that begins in it.
    fn line(&mut self, first: Word, names_servers: bool) -> Result<Line, CorefileError> {
        let at = first.at.clone();
        let mut line = Line { at, words: Vec::new(), block: None, word_lines: Vec::new() };
        let mut next = Some(first);
        while let Some(word) = next {
            // A comma says that more names follow, also on the next line.
            let goes_on = names_servers && word.text.ends_with(',');
            line.word_lines.push(word.at.line);
            self.look_for_glued_brace(&word)?;
            line.words.push(word.text);
            next = self.words.next_if(|next| !next.is("}") && !next.is("{") && (!next.first || goes_on));
        }
        if let Some(brace) = self.words.next_if(|next| next.is("{") && !next.first) {
            line.block = Some(self.lines(Some(&brace.at))?);
        }
        Ok(line)
    }

    /// Of a word that is the last of its line, and of the first, since it may be that of a server block. Braces alone
    /// are glued if nothing else is in their line; else they may end a hole, such as `{{ .Name }}`.
    fn look_for_glued_brace(&mut self, word: &Word) -> Result<(), CorefileError> {
        let is_last = self.words.peek().is_none_or(|next| next.first);
        let only = |brace| word.text.chars().all(|character| character == brace);
        if word.quoted {
            return Ok(());
        }
        if (word.first || is_last) && word.text.ends_with('{') && !only('{') {
            return Err(word.at.error(format!("{}: a brace stands by itself, so put a space before it", word.text)));
        }
        if is_last && word.text.ends_with('}') && !word.text.contains('{') && (word.first || !only('}')) {
            self.glued = Some((word.at.clone(), word.text.clone()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_put_in_once() {
        let variable = |name: &str| match name {
            "IP" => "10.0.0.1".to_owned(),
            "SELF" => "a{$SELF}b{%SELF%}".to_owned(),
            _ => String::new(),
        };
        for (word, wanted) in [
            ("{$IP}:{%PORT%}53", "10.0.0.1:53"),
            ("{%IP%},{$IP}", "10.0.0.1,10.0.0.1"),
            ("{$SELF}/{$IP}", "a{$SELF}b{%SELF%}/10.0.0.1"),
            ("{$IP", "{$IP"),
            ("{{ .Name }}", "{{ .Name }}"),
        ] {
            assert_eq!(environment(word, variable), wanted, "{word}");
        }
    }
}
