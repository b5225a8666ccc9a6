//! The directives that give names of their own: `hosts`, `rewrite` and `template`.

use std::path::PathBuf;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};

use super::{fallthrough, only, options, regex, unknown, value, zones_of};
use crate::corefile::text::Line;
use crate::corefile::{CorefileError, values};
use crate::hosts::{self, HostsConfig};
use crate::rewrite::{AnswerPart, AnswerRule, NameRule, Rewrite};
use crate::stats::RCODE_NAMES;
use crate::template::{RecordTemplate, Template};

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
            "no_reverse" => config.no_reverse = true,
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
/// block.
pub(super) fn rewrite(line: &Line) -> Result<Rewrite, CorefileError> {
    let block = options(line).iter().flat_map(|option| &option.words);
    let words: Vec<&str> = line.arguments().iter().chain(block).map(String::as_str).collect();
    let (goes_on, words) = match words.as_slice() {
        ["continue", rest @ ..] => (true, rest),
        ["stop", rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    let ["name", rest @ ..] = words else {
        return Err(match words.first() {
            Some(field) => line.error(format!("{field} cannot be rewritten: only name is supported")),
            None => line.error("takes a rule, such as name FROM TO"),
        });
    };
    let (kind, rest) = match rest {
        [kind @ ("exact" | "prefix" | "suffix" | "substring" | "regex"), rest @ ..] => (*kind, rest),
        rest => ("exact", rest),
    };
    let [from, to, rest @ ..] = rest else {
        return Err(line.error("name takes what to look for and what to put there"));
    };
    Ok(Rewrite { rule: name_rule(line, kind, from, to)?, answers: answer_rules(line, rest)?, goes_on })
}

/// `answer auto`, which is what is done anyway, and `answer name|value PATTERN TO`.
fn answer_rules(line: &Line, mut words: &[&str]) -> Result<Vec<AnswerRule>, CorefileError> {
    let mut rules = Vec::new();
    loop {
        let (part, pattern, to, rest) = match words {
            [] => return Ok(rules),
            ["answer", "auto", rest @ ..] => {
                words = rest;
                continue;
            }
            ["answer", "name", pattern, to, rest @ ..] => (AnswerPart::Name, pattern, to, rest),
            ["answer", "value", pattern, to, rest @ ..] => (AnswerPart::Value, pattern, to, rest),
            [word, ..] => {
                return Err(line.error(format!(
                    "{word} is too much: after a rule come answer auto, answer name and answer value, and every rule is a \
                     rewrite of its own"
                )));
            }
        };
        rules.push(AnswerRule { part, pattern: regex(line, pattern)?, to: (*to).to_owned() });
        words = rest;
    }
}

fn name_rule(line: &Line, kind: &str, from: &str, to: &str) -> Result<NameRule, CorefileError> {
    let lower = |text: &str| text.to_ascii_lowercase();
    // Names are compared with their final dot, which may be left out where a name ends.
    let dotted = |text: &str| if text.ends_with('.') { lower(text) } else { format!("{}.", lower(text)) };
    Ok(match kind {
        "exact" => NameRule::Exact(value(line, values::domain(from))?, value(line, values::domain(to))?),
        "prefix" => NameRule::Prefix(lower(from), lower(to)),
        "suffix" => NameRule::Suffix(dotted(from), dotted(to)),
        "substring" => NameRule::Substring(lower(from), lower(to)),
        _ => NameRule::Regex(regex(line, from)?, to.to_owned()),
    })
}

pub(super) fn template(line: &Line, domains: &[Name]) -> Result<Template, CorefileError> {
    let [class, rtype, zones @ ..] = line.arguments() else {
        return Err(line.error("takes a class, a type and domains, such as IN A example.org"));
    };
    if !["IN", "ANY"].iter().any(|known| class.eq_ignore_ascii_case(known)) {
        return Err(line.error(format!("class {class} is not served, only IN")));
    }
    let rtype: RecordType =
        rtype.to_ascii_uppercase().parse().map_err(|_name| line.error(format!("{rtype} is no type of records")))?;
    let mut template = Template {
        rtype,
        zones: zones_of(line, zones, domains)?,
        patterns: Vec::new(),
        answers: Vec::new(),
        authorities: Vec::new(),
        additionals: Vec::new(),
        rcode: ResponseCode::NoError,
        fallthrough: Vec::new(),
    };
    for option in options(line) {
        match option.name() {
            "match" => {
                for pattern in option.arguments() {
                    template.patterns.push(regex(option, pattern)?);
                }
            }
            "answer" => template.answers.extend(records(option)?),
            "authority" => template.authorities.extend(records(option)?),
            "additional" => template.additionals.extend(records(option)?),
            "rcode" => template.rcode = rcode(option)?,
            "fallthrough" => template.fallthrough = fallthrough(option)?,
            // An alias is followed always.
            "upstream" => {}
            _ => return Err(unknown(line, option)),
        }
    }
    Ok(template)
}

/// A record in each quoted argument, or one in all words.
fn records(option: &Line) -> Result<Vec<RecordTemplate>, CorefileError> {
    let words = option.arguments();
    let texts = if words.iter().any(|word| word.contains(' ')) { words.to_vec() } else { vec![words.join(" ")] };
    let read = |text: &String| RecordTemplate::read(text).map_err(|error| option.error(error.to_string()));
    texts.iter().map(read).collect()
}

fn rcode(option: &Line) -> Result<ResponseCode, CorefileError> {
    let known = RCODE_NAMES;
    let name = only(option)?;
    let code = (0_u8..).zip(known).find(|(_, known)| name.eq_ignore_ascii_case(known));
    let unknown = || option.error(format!("{name} cannot be answered; known are {}", known.join(", ")));
    code.map(|(code, _)| ResponseCode::from(0, code)).ok_or_else(unknown)
}
