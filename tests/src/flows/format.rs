//! What a file of stories holds.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::cast::{Cast, Server};
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

/// Objects and what becomes of flows while they change.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Story {
    /// The fact it proves, as a sentence.
    pub story: String,
    /// The file it is from.
    #[serde(skip)]
    pub file: String,
    /// IDs of the rules and scenarios of the specification that it proves.
    pub proves: Vec<String>,
    /// Set if the story makes no sense in the other family. A story that names no IPv6 address is else played twice.
    #[serde(default)]
    pub family: Option<OnlyFamily>,
    /// What happens, one after the other.
    pub steps: Vec<Step>,
}

/// A family that a story is confined to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum OnlyFamily {
    /// IPv4.
    IPv4,
    /// IPv6.
    IPv6,
}

/// Objects that change, and the flows that are tried then.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Step {
    /// What happens, in words; may be left out of the first step.
    #[serde(default)]
    pub when: String,
    /// Objects that appear or change.
    #[serde(default)]
    pub put: Vec<Value>,
    /// Objects that go, as `Kind/name` or `Kind/namespace/name`.
    #[serde(default)]
    pub remove: Vec<String>,
    /// What is tried then.
    #[serde(default)]
    pub flows: Vec<RawFlow>,
}

/// Who dials what, and what becomes of it. Each of `from` does so on its own.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RawFlow {
    /// Members of the cast; a node means its own network namespace.
    #[serde(deserialize_with = "one_or_more")]
    pub from: Vec<String>,
    /// The node at which packets of `outside` arrive, unless they are sent to an address of a node.
    #[serde(default, deserialize_with = "one_or_more")]
    pub at: Vec<String>,
    /// The source address, if it is not the usual one of `from`.
    #[serde(default)]
    pub from_address: Option<IpAddr>,
    /// `address:port/protocol`; the address may be the name of a member.
    #[serde(deserialize_with = "one_or_more")]
    pub to: Vec<String>,
    /// What becomes of it.
    pub expect: Expect,
}

/// What becomes of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expect {
    /// Exactly these servers answer: all of them over enough tries, and no other.
    To(Vec<Server>),
    /// One of these answers, and always the same one for every address in `to` that this client dials.
    OneOf(Vec<Server>),
    /// Refused at once.
    Reject,
    /// No answer, since the policy is Local and no endpoint is here.
    Drop,
    /// No answer, since source ranges leave the client out.
    Deny,
    /// Not ours: what happens is what would happen without a proxy.
    Pass,
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
    ensure!(!story.proves.is_empty(), "it proves nothing: name the rules of the specification");
    ensure!(story.steps.iter().any(|step| !step.flows.is_empty()), "it has no flows");
    for step in story.steps.iter().skip(1) {
        ensure!(!step.when.is_empty(), "every step but the first says in `when` what happens");
    }
    Ok(story)
}

fn one_or_more<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMore {
        One(String),
        More(Vec<String>),
    }
    Ok(match OneOrMore::deserialize(deserializer)? {
        OneOrMore::One(one) => vec![one],
        OneOrMore::More(more) => more,
    })
}
