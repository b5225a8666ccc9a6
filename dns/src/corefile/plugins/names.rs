//! The directives that give names of their own: `hosts`, `rewrite` and `template`.

use std::path::PathBuf;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};

use super::{fallthrough, only, options, regex, unknown, value, zones_of};
use crate::corefile::text::Line;
use crate::corefile::{CorefileError, values};
use crate::hosts::HostsConfig;
use crate::rewrite::{NameRule, Rewrite};
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
            address if address.parse::<std::net::IpAddr>().is_ok() => config.lines.push(option.words.join(" ")),
            _ => return Err(unknown(line, option)),
        }
    }
    Ok(config)
}

/// `rewrite [continue|stop] name [KIND] FROM TO [answer ...]`, or a block of the same without the first word.
pub(super) fn rewrites(line: &Line) -> Result<Vec<Rewrite>, CorefileError> {
    let mut words: Vec<&str> = line.arguments().iter().map(String::as_str).collect();
    let goes_on = words.first() == Some(&"continue");
    if goes_on || words.first() == Some(&"stop") {
        words.remove(0);
    }
    let block = options(line);
    if words.is_empty() && !block.is_empty() {
        let rule = |option: &Line| -> Result<Rewrite, CorefileError> {
            let words: Vec<&str> = option.words.iter().map(String::as_str).collect();
            // The last rule of a block decides for the block.
            Ok(Rewrite { rule: rule(option, &words)?, goes_on: true })
        };
        let mut rules = block.iter().map(rule).collect::<Result<Vec<_>, _>>()?;
        if let Some(last) = rules.last_mut() {
            last.goes_on = goes_on;
        }
        return Ok(rules);
    }
    if let [option, ..] = block {
        return Err(unknown(line, option));
    }
    Ok(vec![Rewrite { rule: rule(line, &words)?, goes_on }])
}

fn rule(line: &Line, words: &[&str]) -> Result<NameRule, CorefileError> {
    let ["name", rest @ ..] = words else {
        let field = words.first().copied().unwrap_or_default();
        return Err(line.error(format!("{field} cannot be rewritten in this server, only name")));
    };
    let (kind, rest) = match rest {
        [kind @ ("exact" | "prefix" | "suffix" | "substring" | "regex"), rest @ ..] => (*kind, rest),
        rest => ("exact", rest),
    };
    let (from, to) = match rest {
        [from, to] | [from, to, "answer", "auto"] => (*from, *to),
        [_, _, "answer", ..] => {
            return Err(
                line.error("the client always gets its own name back, which is `answer auto`; leave the rest out")
            );
        }
        _ => return Err(line.error("name takes what to look for and what to put there")),
    };
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
            // An alias is followed without being told to.
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
    let known = [
        "NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET", "NXRRSET", "NOTAUTH",
        "NOTZONE",
    ];
    let name = only(option)?;
    let code = (0_u8..).zip(known).find(|(_, known)| name.eq_ignore_ascii_case(known));
    let unknown = || option.error(format!("{name} cannot be answered; known are {}", known.join(", ")));
    code.map(|(code, _)| ResponseCode::from(0, code)).ok_or_else(unknown)
}
