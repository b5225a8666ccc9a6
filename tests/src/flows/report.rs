//! What came of playing the corpus: by story, and side by side for several readers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::reader::Seen;
use super::scene::Scene;

/// The result of a reader.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The stories that it played, in their order.
    pub stories: Vec<Played>,
}

/// What came of one story.
#[derive(Clone, Debug, Default)]
pub struct Played {
    /// Its file and its name.
    pub title: String,
    /// Flows that were as expected.
    pub right: usize,
    /// Every flow that was not, and how.
    pub wrong: Vec<String>,
    /// Flows that the reader could not see, by reason.
    pub skipped: BTreeMap<&'static str, usize>,
}

impl Played {
    pub(super) fn new(title: String) -> Self {
        Self { title, ..Self::default() }
    }

    pub(super) fn take(&mut self, scene: &Scene<'_>, seen: Vec<Seen>) {
        for (flow, seen) in scene.flows.iter().zip(seen) {
            match seen {
                Seen::Right => self.right += 1,
                Seen::Wrong(what) if scene.when.is_empty() => self.wrong.push(format!("{flow}: {what}")),
                Seen::Wrong(what) => self.wrong.push(format!("when {}: {flow}: {what}", scene.when)),
                Seen::Skipped(why) => *self.skipped.entry(why).or_default() += 1,
            }
        }
    }

    /// In one word, with the letters of the reasons why flows were skipped.
    fn verdict(&self, reasons: &BTreeMap<&str, char>) -> String {
        let letters: String = self.skipped.keys().filter_map(|why| reasons.get(why)).collect();
        match (self.wrong.is_empty(), self.right, letters.as_str()) {
            (false, _, _) => "WRONG".to_owned(),
            (true, _, "") => "ok".to_owned(),
            (true, 0, letters) => format!("skip {letters}"),
            (true, _, letters) => format!("ok -{letters}"),
        }
    }
}

impl Report {
    /// Stories in which something was wrong.
    #[must_use]
    pub fn wrong(&self) -> usize {
        self.stories.iter().filter(|story| !story.wrong.is_empty()).count()
    }

    fn skipped(&self) -> BTreeMap<&'static str, usize> {
        let mut all = BTreeMap::new();
        for (why, count) in self.stories.iter().flat_map(|story| &story.skipped) {
            *all.entry(*why).or_default() += count;
        }
        all
    }
}

/// One line for each story and one column for each reader, which all played the same stories; then why flows were
/// skipped.
#[must_use]
pub fn matrix(readers: &[(&str, Report)]) -> String {
    let whys = readers.iter().flat_map(|(_, report)| report.skipped().into_keys()).collect::<BTreeSet<_>>();
    let reasons: BTreeMap<&str, char> = whys.into_iter().zip('a'..='z').collect();
    let width = readers.iter().map(|(name, _)| name.len()).max().unwrap_or_default().max(8);
    let line = |cells: Vec<String>, title: &str| {
        let cells: String = cells.iter().map(|cell| format!("{cell:<width$} ")).collect();
        format!("{cells}{title}\n")
    };
    let mut text = line(readers.iter().map(|(name, _)| (*name).to_owned()).collect(), "story");
    let first = readers.first().map(|(_, report)| report.stories.as_slice()).unwrap_or_default();
    for (number, story) in first.iter().enumerate() {
        let cell =
            |report: &Report| report.stories.get(number).map(|story| story.verdict(&reasons)).unwrap_or_default();
        text.push_str(&line(readers.iter().map(|(_, report)| cell(report)).collect(), &story.title));
    }
    for (why, letter) in &reasons {
        let counts =
            readers.iter().map(|(name, report)| (name, report.skipped().get(why).copied().unwrap_or_default()));
        let counts: Vec<String> = counts.map(|(name, count)| format!("{count} flows on {name}")).collect();
        text.push_str(&format!("{letter}: {why} ({})\n", counts.join(", ")));
    }
    text
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for story in self.stories.iter().filter(|story| !story.wrong.is_empty()) {
            writeln!(f, "WRONG {}", story.title)?;
            for flow in &story.wrong {
                writeln!(f, "      {flow}")?;
            }
        }
        for (why, count) in self.skipped() {
            writeln!(f, "SKIPPED {count} flows: {why}")?;
        }
        let right: usize = self.stories.iter().map(|story| story.right).sum();
        write!(f, "{right} flows right, {} of {} stories wrong", self.wrong(), self.stories.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrix_names_each_story_and_the_reason_for_what_was_left_out() {
        let story = |right, wrong: &[&str], skipped: &[(&'static str, usize)]| Played {
            title: "topic: a fact".to_owned(),
            right,
            wrong: wrong.iter().map(|&flow| flow.to_owned()).collect(),
            skipped: skipped.iter().copied().collect(),
        };
        let readers = [
            ("one", Report { stories: vec![story(3, &[], &[]), story(0, &[], &[("blind", 2)])] }),
            ("two", Report { stories: vec![story(1, &["a1: no"], &[]), story(1, &[], &[("blind", 1)])] }),
        ];
        let lines = [
            "one      two      story",
            "ok       WRONG    topic: a fact",
            "skip a   ok -a    topic: a fact",
            "a: blind (2 flows on one, 1 flows on two)",
        ];
        assert_eq!(matrix(&readers).lines().collect::<Vec<_>>(), lines);
    }
}
