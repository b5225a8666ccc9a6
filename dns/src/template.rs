//! Answers made from the question by a template (DNS-13.6).

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use regex::{Captures, Regex};

use crate::names;
use crate::plugin::Author;
use crate::reply::Reply;
use crate::request::Request;

/// What is answered to which questions.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    /// The type asked for; ANY for all.
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
    /// No record.
    #[error("{0:?} is no record: write NAME [TTL] [CLASS] TYPE DATA")]
    Record(String),
    /// The record's data do not fit its type.
    #[error("{0:?} does not fit its type")]
    Data(String),
}

impl RecordTemplate {
    /// Reads a record with holes. Data without holes must fit their type.
    pub(crate) fn read(text: &str) -> Result<Self, TemplateError> {
        let wrong = || TemplateError::Record(text.to_owned());
        let mut words = words(text).into_iter().peekable();
        let owner = TextTemplate::read(&words.next().ok_or_else(wrong)?)?;
        let mut ttl = None;
        // TTL and class, in either order.
        while let Some(word) = words.peek() {
            match word.parse() {
                Ok(seconds) if ttl.is_none() => ttl = Some(seconds),
                _ if word.eq_ignore_ascii_case("IN") || Part::Class.is(word) => {}
                _ => break,
            }
            words.next();
        }
        let rtype = words.next().ok_or_else(wrong)?;
        let rtype = if Part::Type.is(&rtype) {
            None
        } else {
            Some(rtype.to_ascii_uppercase().parse().map_err(|_unknown| wrong())?)
        };
        let data = words.collect::<Vec<_>>().join(" ");
        let read = TextTemplate::read(&data)?;
        if let Some(rtype) = rtype
            && !data.contains("{{")
            && RData::try_from_str(rtype, &data).is_err()
        {
            return Err(TemplateError::Data(text.to_owned()));
        }
        Ok(Self { owner, ttl: ttl.unwrap_or(3600), rtype, data: read })
    }

    fn fill(&self, filling: &Filling<'_>) -> Option<Record> {
        let owner = names::absolute(&self.owner.fill(filling)).ok()?;
        // The spelling of the question.
        let owner = if owner == filling.query.name { filling.query.name.clone() } else { owner };
        let rtype = self.rtype.unwrap_or(filling.query.query_type);
        let data = RData::try_from_str(rtype, &self.data.fill(filling)).ok()?;
        Some(Record::from_rdata(owner, self.ttl, data))
    }
}

/// Words; what is between double braces is one.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut inside = false;
    for word in text.split_whitespace() {
        match words.last_mut().filter(|_| inside) {
            Some(last) => {
                last.push(' ');
                last.push_str(word);
            }
            None => words.push(word.to_owned()),
        }
        inside = words.last().is_some_and(|word| word.matches("{{").count() > word.matches("}}").count());
    }
    words
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
            ["index", ".Group", name] => Self::Group(name.trim_matches('"').to_owned()),
            [word] => Self::Group(word.strip_prefix(".Group.").ok_or_else(unknown)?.to_owned()),
            _ => return Err(unknown()),
        })
    }

    /// The word is this hole and nothing else.
    fn is(&self, word: &str) -> bool {
        let hole = word.strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}"));
        hole.is_some_and(|hole| Self::read(hole).is_ok_and(|part| part == *self))
    }

    fn fill(&self, filling: &Filling<'_>) -> String {
        let group = |group: Option<regex::Match<'_>>| group.map_or_else(String::new, |group| group.as_str().to_owned());
        match self {
            Self::Literal(text) => text.clone(),
            Self::Name => filling.name.clone(),
            Self::Type => filling.query.query_type.to_string(),
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
    name: String,
    zone: String,
    remote: String,
    groups: Option<Captures<'a>>,
}

impl Template {
    /// `None` if the template has no answer and the next handler must be asked.
    pub(crate) fn answer(&self, query: &Query, request: &Request) -> Option<Reply> {
        let of_type = self.rtype == RecordType::ANY || self.rtype == query.query_type;
        if !of_type || query.query_class != DNSClass::IN {
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
        let filling = Filling { query, name: name.clone(), zone, remote, groups };
        let fill = |templates: &[RecordTemplate]| -> Option<Vec<Record>> {
            templates.iter().map(|template| template.fill(&filling)).collect()
        };
        let sections = (fill(&self.answers), fill(&self.authorities), fill(&self.additionals));
        let (Some(answers), Some(authorities), Some(additionals)) = sections else {
            tracing::debug!(name, "a template gives no record for this name");
            return Some(Reply { author: Author::Template, ..Reply::error(ResponseCode::ServFail) });
        };
        Some(Reply { rcode: self.rcode, answers, authorities, additionals, ..Reply::cluster(Author::Template) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_with_holes_are_read() {
        let read = |text: &str| RecordTemplate::read(text).map_err(|error| error.to_string());
        let record = read("{{ .Name }} 60 IN A 10.1.{{ .Group.b }}.{{ index .Match 1 }}").unwrap();
        assert_eq!((record.ttl, record.rtype), (60, Some(RecordType::A)));
        for text in [
            "{{.Name}} IN 60 A 10.1.1.1",
            "{{ .Name }} 60 {{ .Class }} A 10.1.1.1",
            "{{ .Name }} 60 {{.Type}} 10.1.1.1",
        ] {
            assert_eq!(read(text).map(|record| record.ttl), Ok(60), "{text}");
        }
        assert!(read("{{ .Zone }} 60 {{ .Class }} SOA ns.{{ .Zone }} admin.{{ .Zone }} (1 60 60 60 60)").is_ok());
        assert_eq!(read("{{ .Name }} A 10.1.1.1").unwrap().ttl, 3600);
        for (text, part) in [
            ("{{ .Meta \"x\" }} A 10.1.1.1", ".Meta"),
            ("name 60 IN", "no record"),
            ("name 60 IN A 10.1.1", "does not fit"),
            ("", "no record"),
        ] {
            assert!(read(text).unwrap_err().contains(part), "{text}");
        }
    }
}
