//! Reads the corpus: the cast, and every file of stories with the twins of its stories.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::cast::Cast;
use super::format::Story;
use super::twin;

const CAST: &str = "cast.yaml";

/// All stories, and who plays them.
#[derive(Clone, Debug)]
pub struct Book {
    /// Who plays.
    pub cast: Cast,
    /// The stories in order of their files, each followed by its IPv6 twin if it has one.
    pub stories: Vec<Story>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    nodes: Vec<Value>,
    pods: Vec<Value>,
    /// Only there for their anchors.
    #[serde(rename = "states")]
    _states: Vec<Value>,
    #[serde(default)]
    stories: Vec<Value>,
}

/// Reads all stories of the corpus.
pub fn load() -> anyhow::Result<Book> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("flows");
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
    let cast = read(&directory.join(CAST))?;
    let entries = fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))?;
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in entries {
        files.push(entry.with_context(|| format!("reading {}", directory.display()))?.path());
    }
    files.retain(|path| path.extension().is_some_and(|end| end == "yaml") && !path.ends_with(CAST));
    files.sort();
    let mut stories = Vec::new();
    for path in &files {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        stories.extend(parse(&cast, &name, &read(path)?)?);
    }
    let File { nodes, pods, .. } = yaml(&cast).context(CAST)?;
    Ok(Book { cast: Cast::new(nodes, &pods)?, stories })
}

/// Reads one file of stories behind the cast, twins included.
pub(super) fn parse(cast: &str, file: &str, text: &str) -> anyhow::Result<Vec<Story>> {
    let lines = cast.lines().count();
    // In one piece, because anchors do not reach across documents; so lines are counted from the start of the cast.
    let whole = yaml(&format!("{}\nstories:\n{text}", cast.trim_end()));
    let whole = whole.with_context(|| format!("{file}.yaml (line 1 of it counts as line {})", lines + 2))?;
    let mut stories = Vec::new();
    for value in whole.stories {
        let name = value.get("story").and_then(Value::as_str).unwrap_or("(without a name)").to_owned();
        let story = story(file, value).with_context(|| format!("{file}.yaml: story {name:?}"))?;
        let twin = twin::of(&story).with_context(|| format!("{file}.yaml: the IPv6 twin of story {name:?}"))?;
        stories.push(story);
        stories.extend(twin);
    }
    Ok(stories)
}

fn yaml(text: &str) -> anyhow::Result<File> {
    // The default budget is meant for strangers' input: it counts a file that repeats the cast's pods as an attack.
    let options = serde_saphyr::options! { budget: None };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| anyhow::anyhow!("{}", error.without_snippet()))
}

fn story(file: &str, value: Value) -> anyhow::Result<Story> {
    let mut story: Story = serde_json::from_value(value)?;
    file.clone_into(&mut story.file);
    ensure!(!story.proves.is_empty(), "it proves nothing: name rules of docs/rules.md");
    ensure!(story.steps.iter().any(|step| !step.flows.is_empty()), "it has no flows");
    for step in story.steps.iter().skip(1) {
        ensure!(!step.when.is_empty(), "every step but the first says in `when` what happens");
    }
    Ok(story)
}
