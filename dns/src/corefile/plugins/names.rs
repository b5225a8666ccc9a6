//! The directives that give names of their own: `hosts`, `rewrite` and `template`.

use std::path::PathBuf;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::Name;
use regex::Regex;

use super::{fallthrough, only, options, regex, unknown, value, zones_of};
use crate::corefile::text::Line;
use crate::corefile::{CorefileError, values};
use crate::hosts::{self, HostsConfig};
use crate::names::{self, NameError, Unit};
use crate::rewrite::{AnswerPart, AnswerRule, NameRule, Replacement, Rewrite};
use crate::stats::RCODE_NAMES;
use crate::template::{RecordTemplate, Template};
use crate::types::record_type;

const HOSTS: &str = "/etc/hosts";

pub(super) fn hosts(line: &Line, domains: &[Name]) -> Result<HostsConfig, CorefileError> {
    let (file, zones) = line.arguments().split_first().map_or((HOSTS, [].as_slice()), |(file, zones)| (file, zones));
    let mut config = HostsConfig {
        file: Some(PathBuf::from(file)),
        lines: Vec::new(),
        zones: zones_of(line, zones, domains)?,
        ttl: 3600,
        no_reverse: false,
        reload: Duration::from_secs(5),
        fallthrough: Vec::new(),
    };
    for option in options(line) {
        match option.name() {
            "fallthrough" => config.fallthrough = fallthrough(option)?,
            "no_reverse" => {
                super::no_arguments(option)?;
                config.no_reverse = true;
            }
            "reload" => config.reload = value(option, values::duration(only(option)?))?,
            "ttl" => config.ttl = value(option, values::number(only(option)?, 1, 65_535))?,
            address if hosts::address(address).is_some() => {
                if option.arguments().is_empty() {
                    return Err(option.error("has no name"));
                }
                for name in option.arguments() {
                    value(option, values::domain(name))?;
                }
                config.lines.push(option.words.clone());
            }
            address if address.starts_with(|first: char| first.is_ascii_digit()) => {
                return Err(option.error("is no address"));
            }
            _ => return Err(unknown(line, option)),
        }
    }
    Ok(config)
}

/// `rewrite [continue|stop] name [KIND] FROM TO [answer ...]`; what comes after the first word may be the lines of a
/// block. Keywords are in upper or lower case.
pub(super) fn rewrite(line: &Line) -> Result<Rewrite, CorefileError> {
    let block = options(line).iter().flat_map(|option| &option.words);
    let all: Vec<&str> = line.arguments().iter().chain(block).map(String::as_str).collect();
    let mut words = all.as_slice();
    let goes_on = keyword(&mut words, &["continue", "stop"]) == Some("continue");
    if keyword(&mut words, &["name"]).is_none() {
        return Err(match words.first() {
            Some(field) => line.error(format!("{field} cannot be rewritten: only name is supported")),
            None => line.error("takes a rule, such as name FROM TO"),
        });
    }
    // Two words are always names.
    let given = if words.len() > 2 { keyword(&mut words, &KINDS) } else { None };
    let [from, to, rest @ ..] = words else {
        return Err(line.error("name takes what to look for and what to put there"));
    };
    if given.is_none() && rest.first().is_some_and(|word| !is_in(word, &AFTER_A_RULE)) {
        return Err(line.error(format!("{from} is no kind of rule; there are {}", KINDS.join(", "))));
    }
    let kind = given.unwrap_or(EXACT);
    let (auto, answers) = answer_rules(line, rest)?;
    Ok(Rewrite {
        text: format!("name {kind} {from} {to}"),
        rule: name_rule(line, kind, from, to)?,
        auto: auto || kind == EXACT,
        answers,
        goes_on,
    })
}

const EXACT: &str = "exact";
const KINDS: [&str; 5] = [EXACT, "prefix", "suffix", "substring", "regex"];
const AFTER_A_RULE: [&str; 4] = ["answer", "auto", "name", "value"];

/// Keywords are in upper or lower case.
fn is_in(word: &str, known: &[&str]) -> bool {
    known.iter().any(|known| word.eq_ignore_ascii_case(known))
}

/// Takes the first word away if it is one of these.
fn keyword(words: &mut &[&str], known: &[&'static str]) -> Option<&'static str> {
    let (first, rest) = words.split_first()?;
    let found = known.iter().find(|known| first.eq_ignore_ascii_case(known))?;
    *words = rest;
    Some(found)
}

/// `answer auto`, also written `answer name auto`, and `answer name|value PATTERN TO`; after the first, `answer` may be
/// left out.
fn answer_rules(line: &Line, mut words: &[&str]) -> Result<(bool, Vec<AnswerRule>), CorefileError> {
    const PARTS: [&str; 3] = ["auto", "name", "value"];
    let (mut auto, mut rules) = (false, Vec::new());
    let mut may_begin = false;
    while let Some(word) = words.first() {
        let is_said = keyword(&mut words, &["answer"]).is_some();
        let begins = is_said || may_begin;
        let part = match keyword(&mut words, &PARTS).filter(|_| begins) {
            Some("auto") => None,
            Some("name") if is_auto(words) => {
                keyword(&mut words, &PARTS);
                None
            }
            Some("name") => Some(AnswerPart::Name),
            Some(_) => Some(AnswerPart::Value),
            None if is_said => return Err(line.error("answer takes auto, name or value")),
            None => {
                return Err(line.error(format!(
                    "{word} is too much: after a rule come answer auto, answer name and answer value, and every rule is a \
                     rewrite of its own"
                )));
            }
        };
        match (part, words) {
            (None, _) => auto = true,
            (Some(part), [pattern, to, rest @ ..]) => {
                let pattern = regex(line, pattern)?;
                rules.push(AnswerRule { part, to: replacement(line, &pattern, to)?, pattern });
                words = rest;
            }
            (Some(_), _) => return Err(line.error("answer name and answer value take a pattern and a name")),
        }
        may_begin = true;
    }
    Ok((auto, rules))
}

/// The next word is `auto` and no pattern: nothing follows that it could be rewritten to.
fn is_auto(words: &[&str]) -> bool {
    match words {
        [auto] => is_in(auto, &["auto"]),
        [auto, next, ..] => is_in(auto, &["auto"]) && is_in(next, &AFTER_A_RULE),
        [] => false,
    }
}

fn name_rule(line: &Line, kind: &str, from: &str, to: &str) -> Result<NameRule, CorefileError> {
    // Names are compared with their final dot, which may be left out where a name ends.
    let with_dot = |text: &str| {
        let mut units = part(line, text)?;
        if units.last() != Some(&Unit::Dot) {
            units.push(Unit::Dot);
        }
        Ok::<_, CorefileError>(units)
    };
    Ok(match kind {
        EXACT => NameRule::Exact(value(line, values::domain(from))?, value(line, values::domain(to))?),
        "prefix" => NameRule::Prefix(part(line, from)?, part(line, to)?),
        "suffix" => NameRule::Suffix(with_dot(from)?, with_dot(to)?),
        "substring" if from.is_empty() => return Err(line.error("substring takes what to look for")),
        "substring" => NameRule::Substring(part(line, from)?, part(line, to)?),
        _ => {
            let pattern = regex(line, from)?;
            let to = replacement(line, &pattern, to)?;
            NameRule::Regex(pattern, to)
        }
    })
}

/// A part of a name, which may begin and end within a label.
fn part(line: &Line, text: &str) -> Result<Vec<Unit>, CorefileError> {
    let units = names::units(text).and_then(|units| {
        let has_empty = units.windows(2).any(|pair| pair == [Unit::Dot, Unit::Dot]);
        if has_empty { Err(NameError::Empty) } else { Ok(units) }
    });
    units.map_err(|error| line.error(format!("{text:?} is no part of a name: {error}")))
}

/// What names that match become.
fn replacement(line: &Line, pattern: &Regex, text: &str) -> Result<Replacement, CorefileError> {
    let replacement = Replacement::read(text);
    let groups = pattern.captures_len().saturating_sub(1);
    if replacement.last_group() > groups {
        return Err(line.error(format!(
            "{text:?} has a place for group {}, and the pattern {:?} has {groups}",
            replacement.last_group(),
            pattern.as_str()
        )));
    }
    // Whatever the groups are.
    names::absolute(&replacement.filled(|_| "x"))
        .map_err(|error| line.error(format!("{text:?} never becomes a name: {error}")))?;
    Ok(replacement)
}

pub(super) fn template(line: &Line, domains: &[Name]) -> Result<Template, CorefileError> {
    let [class, rtype, zones @ ..] = line.arguments() else {
        return Err(line.error("takes a class, a type and domains, such as IN A example.org"));
    };
    if !["IN", "ANY"].iter().any(|known| class.eq_ignore_ascii_case(known)) {
        return Err(line.error(format!("class {class} is not served, only IN")));
    }
    let rtype = record_type(rtype)
        .ok_or_else(|| line.error(format!("{rtype} is no type of records; any may be written as TYPE123")))?;
    let mut template = Template {
        rtype,
        zones: zones_of(line, zones, domains)?,
        patterns: patterns(line)?,
        answers: Vec::new(),
        authorities: Vec::new(),
        additionals: Vec::new(),
        rcode: ResponseCode::NoError,
        fallthrough: Vec::new(),
    };
    for option in options(line) {
        match option.name() {
            "match" => {} // read already
            "answer" => template.answers.extend(records(option, &template.patterns)?),
            "authority" => template.authorities.extend(records(option, &template.patterns)?),
            "additional" => template.additionals.extend(records(option, &template.patterns)?),
            "rcode" => template.rcode = rcode(option)?,
            "fallthrough" => template.fallthrough = fallthrough(option)?,
            // An alias is followed always.
            "upstream" => {}
            _ => return Err(unknown(line, option)),
        }
    }
    Ok(template)
}

/// All patterns of a template, whose groups its records may have.
fn patterns(line: &Line) -> Result<Vec<Regex>, CorefileError> {
    let mut patterns = Vec::new();
    for option in options(line).iter().filter(|option| option.name() == "match") {
        if option.arguments().is_empty() {
            return Err(option.error("takes a pattern"));
        }
        for pattern in option.arguments() {
            patterns.push(regex(option, pattern)?);
        }
    }
    Ok(patterns)
}

/// A record in each quoted argument, or one in all words.
fn records(option: &Line, patterns: &[Regex]) -> Result<Vec<RecordTemplate>, CorefileError> {
    let words = option.arguments();
    let texts = if words.iter().any(|word| word.contains(' ')) { words.to_vec() } else { vec![words.join(" ")] };
    let read = |text: &String| RecordTemplate::read(text, patterns).map_err(|error| option.error(error.to_string()));
    texts.iter().map(read).collect()
}

fn rcode(option: &Line) -> Result<ResponseCode, CorefileError> {
    let known = RCODE_NAMES;
    let name = only(option)?;
    let code = (0_u8..).zip(known).find(|(_, known)| name.eq_ignore_ascii_case(known));
    let unknown = || option.error(format!("{name} cannot be answered; known are {}", known.join(", ")));
    code.map(|(code, _)| ResponseCode::from(0, code)).ok_or_else(unknown)
}
