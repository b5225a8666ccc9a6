//! Names that are asked for under another name (DNS-13.6). The client gets its own name back, in the question and as
//! owner of the records, so that it knows the reply for its own; other names in the answer stay, unless a rule says
//! more.

#[cfg(test)]
mod tests;

use hickory_proto::rr::Name;
use regex::Regex;

use crate::failure::NoName;
use crate::names::{self, NameError, Unit, from_units, units_of};
use crate::rdata::change_targets;
use crate::reply::Reply;

/// One rule.
#[derive(Clone, Debug)]
pub(crate) struct Rewrite {
    /// The rule as it is configured, for messages.
    pub(crate) text: String,
    /// Which names, and what they are rewritten to.
    pub(crate) rule: NameRule,
    /// In the answer the new name becomes the old one again wherever it stands; with a suffix, so do all names with the
    /// new suffix.
    pub(crate) auto: bool,
    /// How other names in the answer are rewritten.
    pub(crate) answers: Vec<AnswerRule>,
    /// Later rules apply too, to the new name.
    pub(crate) goes_on: bool,
}

/// How the name of a question is rewritten.
#[derive(Clone, Debug)]
pub(crate) enum NameRule {
    /// This very name.
    Exact(Name, Name),
    /// Names that begin so; what follows stays.
    Prefix(Vec<Unit>, Vec<Unit>),
    /// Names that end so, with their final dot; what comes before stays.
    Suffix(Vec<Unit>, Vec<Unit>),
    /// Names that have this in them, wherever it occurs.
    Substring(Vec<Unit>, Vec<Unit>),
    /// Names whose text in lower case matches.
    Regex(Regex, Replacement),
}

/// The text of a name with places for the groups of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Replacement(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Group(usize),
}

/// How names of an answer are rewritten, if they match.
#[derive(Clone, Debug)]
pub(crate) struct AnswerRule {
    /// Which names.
    pub(crate) part: AnswerPart,
    /// What their text in lower case, with the final dot, must match.
    pub(crate) pattern: Regex,
    /// What they are rewritten to.
    pub(crate) to: Replacement,
}

/// Where names stand in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AnswerPart {
    /// Owners of records.
    Name,
    /// What records lead to: targets of aliases, of services, of mail.
    Value,
}

/// A name after the rules that applied to it.
pub(crate) struct Rewritten<'a> {
    /// In their order; there is one at least.
    steps: Vec<Step<'a>>,
    pub(crate) name: Name,
}

/// What one rule did.
struct Step<'a> {
    rule: &'a Rewrite,
    before: Name,
    after: Name,
}

impl NameRule {
    /// The new name, if the rule is for this one.
    fn apply(&self, name: &Name) -> Option<Result<Name, NameError>> {
        let units = || units_of(name);
        Some(match self {
            Self::Exact(from, to) if from == name => Ok(to.clone()),
            Self::Exact(..) => return None,
            Self::Prefix(from, to) => from_units(&[to, behind(&units(), from)?].concat()),
            Self::Suffix(from, to) => from_units(&[before(&units(), from)?, to].concat()),
            Self::Substring(from, to) => from_units(&replaced_all(&units(), from, to)?),
            Self::Regex(pattern, to) => return to.fill(pattern, name),
        })
    }
}

/// What follows `start`.
fn behind<'a>(units: &'a [Unit], start: &[Unit]) -> Option<&'a [Unit]> {
    let (first, rest) = units.split_at_checked(start.len())?;
    are_equal(first, start).then_some(rest)
}

/// What comes before `end`.
fn before<'a>(units: &'a [Unit], end: &[Unit]) -> Option<&'a [Unit]> {
    let (first, last) = units.split_at_checked(units.len().checked_sub(end.len())?)?;
    are_equal(last, end).then_some(first)
}

fn are_equal(units: &[Unit], others: &[Unit]) -> bool {
    units.iter().zip(others).all(|(unit, other)| unit.is(*other))
}

/// With `to` in place of each `from`, if there is one.
fn replaced_all(mut units: &[Unit], from: &[Unit], to: &[Unit]) -> Option<Vec<Unit>> {
    let mut new = Vec::new();
    let mut found = false;
    while let [first, others @ ..] = units {
        match behind(units, from).filter(|_| !from.is_empty()) {
            Some(rest) => {
                found = true;
                new.extend_from_slice(to);
                units = rest;
            }
            None => {
                new.push(*first);
                units = others;
            }
        }
    }
    found.then_some(new)
}

impl Replacement {
    /// Reads a text in which `{1}` stands for the first group, and `{0}` for all that matched.
    pub(crate) fn read(text: &str) -> Self {
        let mut parts = vec![Part::Text(String::new())];
        let mut rest = text;
        while let Some(at) = rest.find('{') {
            let (before, after) = rest.split_at(at);
            let hole = after.split_once('}').and_then(|(hole, after)| Some((hole.get(1..)?.parse().ok()?, after)));
            let (text, part, next) = match hole {
                Some((group, after)) => (before, Part::Group(group), after),
                None => (before, Part::Text("{".to_owned()), after.get(1..).unwrap_or_default()),
            };
            parts.extend([Part::Text(text.to_owned()), part]);
            rest = next;
        }
        parts.push(Part::Text(rest.to_owned()));
        Self(parts)
    }

    /// The last group that has a place.
    pub(crate) fn last_group(&self) -> usize {
        let group = |part: &Part| match part {
            Part::Group(group) => *group,
            Part::Text(_) => 0,
        };
        self.0.iter().map(group).max().unwrap_or_default()
    }

    /// The text with these groups in their places.
    pub(crate) fn filled<'a>(&'a self, group: impl Fn(usize) -> &'a str) -> String {
        let text = |part: &'a Part| match part {
            Part::Text(text) => text.as_str(),
            Part::Group(number) => group(*number),
        };
        self.0.iter().map(text).collect()
    }

    /// The new name, if the pattern matches. Groups are spelled as the name is.
    fn fill(&self, pattern: &Regex, name: &Name) -> Option<Result<Name, NameError>> {
        let text = names::text(name);
        let lower = text.to_ascii_lowercase(); // each character stays where it was
        let groups = pattern.captures(&lower)?;
        let group = |at| groups.get(at).and_then(|group| text.get(group.range())).unwrap_or_default();
        Some(names::absolute(&self.filled(group)))
    }
}

impl<'a> Rewritten<'a> {
    /// The first rule that matches applies, and those after it if that rule says so.
    pub(crate) fn new(rules: &'a [Rewrite], asked: &Name) -> Result<Option<Self>, NoName> {
        let mut steps: Vec<Step<'_>> = Vec::new();
        for rule in rules {
            let before = steps.last().map_or(asked, |step| &step.after);
            let after = match rule.rule.apply(before) {
                None => continue,
                Some(Ok(after)) => after,
                Some(Err(reason)) => return Err(NoName { rule: rule.text.clone(), name: before.clone(), reason }),
            };
            steps.push(Step { rule, before: before.clone(), after });
            if !rule.goes_on {
                break;
            }
        }
        let name = steps.last().map(|step| step.after.clone());
        Ok(name.map(|name| Self { steps, name }))
    }

    /// Gives the client its own name back, and the other names that rules say. Whoever validated the answer did so for
    /// another question.
    pub(crate) fn restore(&self, reply: &mut Reply) {
        reply.clear_authentic();
        let has_values = self.steps.iter().any(|step| step.rule.changes(AnswerPart::Value));
        let sections = [&mut reply.answers, &mut reply.authorities, &mut reply.additionals];
        for record in sections.into_iter().flatten() {
            if let Some(name) = self.undo(AnswerPart::Name, &record.name) {
                record.name = name;
            }
            if has_values {
                change_targets(record, |name| self.undo(AnswerPart::Value, name));
            }
        }
    }

    /// The last rule is undone first. `None` if the name stays.
    fn undo(&self, part: AnswerPart, name: &Name) -> Option<Name> {
        let mut now = None;
        for step in self.steps.iter().rev() {
            now = step.undo(part, now.as_ref().unwrap_or(name)).or(now);
        }
        now
    }
}

impl Rewrite {
    fn changes(&self, part: AnswerPart) -> bool {
        self.auto || self.answers.iter().any(|rule| rule.part == part)
    }
}

impl Step<'_> {
    fn undo(&self, part: AnswerPart, name: &Name) -> Option<Name> {
        if part == AnswerPart::Name && *name == self.after {
            return Some(self.before.clone());
        }
        // The root is above all that may be rewritten; a name that would be none, such as one that is too long, stays.
        if name.is_root() || !self.rule.changes(part) {
            return None;
        }
        let mut now = None;
        for rule in self.rule.answers.iter().rev().filter(|rule| rule.part == part) {
            let new = rule.to.fill(&rule.pattern, now.as_ref().unwrap_or(name));
            now = new.and_then(Result::ok).or(now);
        }
        let back = if self.rule.auto { self.back(now.as_ref().unwrap_or(name)) } else { None };
        back.or(now)
    }

    /// The reverse of the rule.
    fn back(&self, name: &Name) -> Option<Name> {
        let units = match &self.rule.rule {
            NameRule::Suffix(from, to) => {
                // With a dot in front the domain itself, which owns the SOA, has a suffix that begins with a dot.
                let units = [vec![Unit::Dot], units_of(name)].concat();
                let new = [before(&units, to)?, from].concat();
                new.strip_prefix(&[Unit::Dot]).unwrap_or(&new).to_vec()
            }
            NameRule::Exact(..) | NameRule::Prefix(..) | NameRule::Substring(..) | NameRule::Regex(..) => {
                if self.after.is_root() || !self.after.zone_of(name) {
                    return None;
                }
                // As in CoreDNS, also names below it.
                let below = name.iter().len().checked_sub(self.after.iter().len())?;
                let labels = name.iter().take(below).chain(self.before.iter());
                labels.flat_map(|label| label.iter().map(|octet| Unit::Octet(*octet)).chain([Unit::Dot])).collect()
            }
        };
        from_units(&units).ok()
    }
}
