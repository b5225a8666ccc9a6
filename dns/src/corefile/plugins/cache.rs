//! The directive `cache`.

use std::time::Duration;

use hickory_proto::rr::Name;

use super::{options, unknown, value, zones_of};
use crate::cache::{CacheConfig, Prefetch};
use crate::corefile::text::Line;
use crate::corefile::{CorefileError, values};

/// RFC 2308 section 7.1.
const LONGEST_FAILURE: Duration = Duration::from_secs(300);

pub(super) fn cache(line: &Line, domains: &[Name]) -> Result<CacheConfig, CorefileError> {
    // Nothing is asked for again before it runs out, unless the file says so.
    let mut config = CacheConfig { prefetch: None, ..CacheConfig::default() };
    config.success.longest = Duration::from_secs(3600);
    config.denial.longest = Duration::from_secs(1800);
    let mut words = line.arguments();
    if let [ttl, rest @ ..] = words
        && let Ok(ttl) = values::duration(ttl)
    {
        (config.success.longest, config.denial.longest) = (ttl, ttl);
        words = rest;
    }
    if let Some(word) = words.first().filter(|word| word.starts_with('-')) {
        return Err(line.error(format!("{word:?} is no duration")));
    }
    if zones_of(line, words, domains)? != domains {
        return Err(line.error("keeps answers of all domains of its server block: name no others"));
    }
    for option in options(line) {
        let arguments: Vec<&str> = option.arguments().iter().map(String::as_str).collect();
        match (option.name(), arguments.as_slice()) {
            (kind @ ("success" | "denial"), [capacity, times @ ..]) if times.len() <= 2 => {
                let bounds = if kind == "success" { &mut config.success } else { &mut config.denial };
                bounds.capacity = value(option, values::number(capacity, 1, 10_000_000))?;
                let mut times = times.iter().map(|time| value(option, values::duration(time)));
                bounds.longest = times.next().transpose()?.unwrap_or(bounds.longest);
                bounds.shortest = times.next().transpose()?.unwrap_or(bounds.shortest);
            }
            ("prefetch", [hits, rest @ ..]) if rest.len() <= 2 => {
                let gap = rest.first().map(|gap| value(option, values::duration(gap))).transpose()?;
                let percent = rest.get(1).map(|percent| percent.trim_end_matches('%'));
                let percent = percent.map(|percent| value(option, values::number(percent, 10, 90))).transpose()?;
                let hits = value(option, values::number(hits, 0, u32::MAX))?;
                let gap = gap.unwrap_or(Duration::from_secs(60));
                config.prefetch = (hits > 0).then_some(Prefetch { hits, gap, percent: percent.unwrap_or(10) });
            }
            ("serve_stale", [] | ["verify"]) => {}
            ("serve_stale", [time] | [time, "verify"]) if *time != "immediate" => {
                config.stale = value(option, values::duration(time))?;
            }
            ("serve_stale", _) => {
                return Err(option.error("answers that ran out are given when no upstream answers, which is `verify`"));
            }
            ("servfail", [time]) => {
                config.failure = value(option, values::duration(time))?;
                if config.failure > LONGEST_FAILURE {
                    return Err(option.error("takes 5m at most"));
                }
            }
            ("disable", ["success", ..]) => config.no_success.extend(zones_of(option, tail(option), domains)?),
            ("disable", ["denial", ..]) => config.no_denial.extend(zones_of(option, tail(option), domains)?),
            ("success" | "denial" | "prefetch" | "servfail" | "disable", _) => {
                return Err(option.error("its arguments are not those that CoreDNS gives it"));
            }
            _ => return Err(unknown(line, option)),
        }
    }
    Ok(config)
}

/// Arguments from the second one on.
fn tail(option: &Line) -> &[String] {
    option.arguments().get(1..).unwrap_or_default()
}
