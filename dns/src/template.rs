//! Answers made from the question by a template (DNS-13.6).

#[cfg(test)]
mod tests;

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use regex::{Captures, Regex};

use crate::failure::NoRecord;
use crate::names;
use crate::plugin::Author;
use crate::presentation::{self, DataError, seconds};
use crate::reply::Reply;
use crate::request::Request;
use crate::types::{record_type, type_name};

/// What is answered to which questions.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    /// The type asked for; ANY for all. A question for ANY is for each type.
    pub(crate) rtype: RecordType,
    /// Only names in these domains.
    pub(crate) zones: Vec<Name>,
    /// One of these must match the name, as text with its final dot; without any, all do.
    pub(crate) patterns: Vec<Regex>,
    /// The answer section.
    pub(crate) answers: Vec<RecordTemplate>,
    /// The authority section.
    pub(crate) authorities: Vec<RecordTemplate>,
    /// The additional section.
    pub(crate) additionals: Vec<RecordTemplate>,
    /// The rcode.
    pub(crate) rcode: ResponseCode,
    /// Domains in which a name that does not match is looked for elsewhere; else it is a failure, as in CoreDNS.
    pub(crate) fallthrough: Vec<Name>,
}

/// A record with holes, in zone-file form: owner, TTL and class if wanted, type, data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecordTemplate {
    /// All of it, for messages.
    text: String,
    owner: TextTemplate,
    ttl: u32,
    /// The type asked for, if none.
    rtype: Option<RecordType>,
    data: TextTemplate,
}

/// Text with holes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct TextTemplate(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Name,
    Type,
    Class,
    Zone,
    /// A group by its number, 0 for all that matched.
    Match(usize),
    /// A group by its name.
    Group(String),
    Remote,
}

/// Why a template is invalid.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TemplateError {
    /// A hole that we do not know.
    #[error(
        "{{{{{0}}}}} cannot be filled in; known are .Name, .Type, .Class, .Zone, .Remote, .Match, index .Match N \
         and .Group.NAME"
    )]
    Hole(String),
    /// A hole for a group that is never there.
    #[error("no pattern has the group {0}")]
    Group(String),
    /// No record.
    #[error("{0:?} is no record: write NAME [TTL] [CLASS] TYPE DATA")]
    Record(String),
    /// The record's owner or data do not fit its type, whatever the question.
    #[error("{0:?} is no record: {1}")]
    Data(String, DataError),
}

impl RecordTemplate {
    /// Reads a record with holes, whose groups are those of these patterns. Data without holes must fit their type.
    pub(crate) fn read(text: &str, patterns: &[Regex]) -> Result<Self, TemplateError> {
        let wrong = || TemplateError::Record(text.to_owned());
        let (owner, mut rest) = word(text).ok_or_else(wrong)?;
        let mut ttl = None;
        // TTL and class, in either order.
        let rtype = loop {
            let (word, after) = word(rest).ok_or_else(wrong)?;
            rest = after;
            match seconds(word) {
                Some(seconds) if ttl.is_none() => ttl = Some(seconds),
                _ if word.eq_ignore_ascii_case("IN") || Part::Class.is(word) => {}
                _ => break word,
            }
        };
        let rtype = if Part::Type.is(rtype) { None } else { Some(record_type(rtype).ok_or_else(wrong)?) };
        let (owner, data) = (TextTemplate::read(owner)?, TextTemplate::read(rest.trim())?);
        if let Some(group) = owner.0.iter().chain(&data.0).find_map(|part| part.group_in_none_of(patterns)) {
            return Err(TemplateError::Group(group));
        }
        let refused = |error| TemplateError::Data(text.to_owned(), error);
        if let Some(owner) = owner.without_holes() {
            names::absolute(owner).map_err(|error| refused(DataError::Name(owner.to_owned(), error)))?;
        }
        if let (Some(rtype), Some(data)) = (rtype, data.without_holes()) {
            presentation::data(rtype, data).map_err(refused)?;
        }
        Ok(Self { text: text.to_owned(), owner, ttl: ttl.unwrap_or(3600), rtype, data })
    }

    fn fill(&self, filling: &Filling<'_>) -> Result<Record, NoRecord> {
        let made = || {
            let owner = self.owner.fill(filling);
            let owner = names::absolute(&owner).map_err(|error| DataError::Name(owner, error))?;
            // The spelling of the question.
            let owner = if owner == filling.query.name { filling.query.name.clone() } else { owner };
            let data = presentation::data(self.rtype.unwrap_or(filling.rtype), &self.data.fill(filling))?;
            Ok(Record::from_rdata(owner, self.ttl, data))
        };
        made().map_err(|reason| NoRecord { template: self.text.clone(), name: filling.name.clone(), reason })
    }
}

/// The first word, and what follows it. A space between double braces or after a backslash ends no word.
fn word(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    let (mut inside, mut escaped) = (false, false);
    let end = text.char_indices().find(|(at, character)| {
        let rest = text.get(*at..).unwrap_or_default();
        inside = rest.starts_with("{{") || (inside && !rest.starts_with("}}"));
        let ends = character.is_ascii_whitespace() && !inside && !escaped;
        escaped = *character == '\\' && !escaped;
        ends
    });
    let (word, rest) = text.split_at(end.map_or(text.len(), |(at, _)| at));
    (!word.is_empty()).then_some((word, rest))
}

impl TextTemplate {
    fn read(mut text: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        while let Some((before, rest)) = text.split_once("{{") {
            let (hole, after) = rest.split_once("}}").ok_or_else(|| TemplateError::Hole(rest.to_owned()))?;
            parts.push(Part::Literal(before.to_owned()));
            parts.push(Part::read(hole)?);
            text = after;
        }
        parts.push(Part::Literal(text.to_owned()));
        Ok(Self(parts))
    }

    fn without_holes(&self) -> Option<&str> {
        match self.0.as_slice() {
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }

    fn fill(&self, filling: &Filling<'_>) -> String {
        self.0.iter().map(|part| part.fill(filling)).collect()
    }
}

impl Part {
    fn read(hole: &str) -> Result<Self, TemplateError> {
        let unknown = || TemplateError::Hole(hole.to_owned());
        let words: Vec<&str> = hole.trim_matches('-').split_whitespace().collect();
        Ok(match words.as_slice() {
            [".Name" | ".Question.Name"] => Self::Name,
            [".Type"] => Self::Type,
            [".Class"] => Self::Class,
            [".Zone"] => Self::Zone,
            [".Remote"] => Self::Remote,
            [".Match"] => Self::Match(0),
            ["index", ".Match", number] => Self::Match(number.parse().map_err(|_not_a_number| unknown())?),
            // Groups have their numbers as names too.
            ["index", ".Group", name] => {
                let name = name.trim_matches('"');
                name.parse().map_or_else(|_name| Self::Group(name.to_owned()), Self::Match)
            }
            [word] => Self::Group(word.strip_prefix(".Group.").ok_or_else(unknown)?.to_owned()),
            _ => return Err(unknown()),
        })
    }

    /// The word is this hole and nothing else.
    fn is(&self, word: &str) -> bool {
        let hole = word.strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}"));
        hole.is_some_and(|hole| Self::read(hole).is_ok_and(|part| part == *self))
    }

    /// The group that it stands for, if none of these patterns has it.
    fn group_in_none_of(&self, patterns: &[Regex]) -> Option<String> {
        let (group, is_there) = match self {
            // All that matched; without patterns, the name.
            Self::Match(0) => return None,
            Self::Match(number) => {
                (number.to_string(), patterns.iter().any(|pattern| *number < pattern.captures_len()))
            }
            Self::Group(name) => {
                let has = |pattern: &Regex| pattern.capture_names().flatten().any(|known| known == name);
                (name.clone(), patterns.iter().any(has))
            }
            Self::Literal(_) | Self::Name | Self::Type | Self::Class | Self::Zone | Self::Remote => return None,
        };
        (!is_there).then_some(group)
    }

    fn fill(&self, filling: &Filling<'_>) -> String {
        let group = |group: Option<regex::Match<'_>>| group.map_or_else(String::new, |group| group.as_str().to_owned());
        match self {
            Self::Literal(text) => text.clone(),
            Self::Name => filling.name.clone(),
            Self::Type => type_name(filling.rtype),
            Self::Class => "IN".to_owned(),
            Self::Zone => filling.zone.clone(),
            Self::Remote => filling.remote.clone(),
            Self::Match(0) if filling.groups.is_none() => filling.name.clone(),
            Self::Match(number) => group(filling.groups.as_ref().and_then(|groups| groups.get(*number))),
            Self::Group(name) => group(filling.groups.as_ref().and_then(|groups| groups.name(name))),
        }
    }
}

/// What the holes are filled with.
struct Filling<'a> {
    query: &'a Query,
    rtype: RecordType,
    name: String,
    zone: String,
    remote: String,
    groups: Option<Captures<'a>>,
}

impl Template {
    /// `None` if the template has no answer and the next handler must be asked.
    pub(crate) fn answer(&self, query: &Query, request: &Request) -> Option<Reply> {
        let is_of_type = [RecordType::ANY, query.query_type].contains(&self.rtype);
        if !(is_of_type || query.query_type == RecordType::ANY) || query.query_class != DNSClass::IN {
            return None;
        }
        let zones = self.zones.iter().filter(|zone| zone.zone_of(&query.name));
        let zone = names::text(zones.max_by_key(|zone| zone.num_labels())?).to_ascii_lowercase();
        let name = names::text(&query.name).to_ascii_lowercase();
        let groups = self.patterns.iter().find_map(|pattern| pattern.captures(&name));
        if groups.is_none() && !self.patterns.is_empty() {
            let passes = self.fallthrough.iter().any(|zone| zone.zone_of(&query.name));
            return (!passes).then(|| Reply { author: Author::Template, ..Reply::error(ResponseCode::ServFail) });
        }
        let remote = request.client.ip().to_canonical().to_string();
        let filling = Filling { query, rtype: self.type_for(query), name: name.clone(), zone, remote, groups };
        Some(self.filled(&filling).unwrap_or_else(|no_record| Reply {
            author: Author::Template,
            why: Some(no_record.into()),
            ..Reply::error(ResponseCode::ServFail)
        }))
    }

    fn filled(&self, filling: &Filling<'_>) -> Result<Reply, NoRecord> {
        let fill = |templates: &[RecordTemplate]| -> Result<Vec<Record>, NoRecord> {
            templates.iter().map(|template| template.fill(filling)).collect()
        };
        Ok(Reply {
            rcode: self.rcode,
            answers: fill(&self.answers)?,
            authorities: fill(&self.authorities)?,
            additionals: fill(&self.additionals)?,
            ..Reply::cluster(Author::Template)
        })
    }

    /// The type that a question it answers is for: that of the template, if the question is for ANY.
    pub(crate) fn type_for(&self, query: &Query) -> RecordType {
        if query.query_type == RecordType::ANY { self.rtype } else { query.query_type }
    }
}
