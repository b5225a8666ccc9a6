//! The directive `forward`.

use std::path::PathBuf;

use hickory_proto::rr::Name;
use tokio_rustls::rustls::pki_types::ServerName;

use super::{options, unknown, value, zones_of};
use crate::corefile::text::Line;
use crate::corefile::{CorefileError, values};
use crate::forward::{Policy, Route};
use crate::names;
use crate::upstream::{self, Upstream, Upstreams};

pub(super) fn forward(line: &Line) -> Result<Route, CorefileError> {
    let [from, to @ ..] = line.arguments() else {
        return Err(line.error("takes a domain and its upstreams"));
    };
    let from = domain(line, from)?;
    let mut server_name = None;
    let mut route = Route { policy: Policy::Random, ..Route::new(from, Upstreams::Servers(Vec::new())) };
    for option in options(line) {
        let arguments: Vec<&str> = option.arguments().iter().map(String::as_str).collect();
        match (option.name(), arguments.as_slice()) {
            ("except", [_, ..]) => route.except.extend(zones_of(option, option.arguments(), &[])?),
            ("force_tcp", []) => route.force_tcp = true,
            // This server does so always.
            ("prefer_udp", []) => {}
            ("force_tcp" | "prefer_udp", _) => return Err(option.error("takes no arguments")),
            ("tls", []) => {}
            ("tls", [authorities]) => route.authorities = Some(PathBuf::from(authorities)),
            ("tls", _) => return Err(option.error("certificates of our own are not shown to upstreams; write tls CA")),
            ("tls_servername", [name]) => {
                let read = upstream::server_name(name);
                server_name = Some(read.map_err(|error| option.error(shunt_model::with_causes(&error)))?);
            }
            ("policy", ["random"]) => route.policy = Policy::Random,
            ("policy", ["round_robin"]) => route.policy = Policy::RoundRobin,
            ("policy", ["sequential"]) => route.policy = Policy::Sequential,
            ("policy", _) => return Err(option.error("takes random, round_robin or sequential")),
            ("max_concurrent", [number]) => {
                route.max_concurrent = value(option, values::number(number, 1, 1_000_000))?;
            }
            ("read_timeout", [time]) => {
                let timeout = value(option, values::duration(time))?;
                if timeout.is_zero() {
                    return Err(option.error("no upstream answers in no time; write a longer one, such as 2s"));
                }
                route.read_timeout = timeout;
            }
            ("max_fails", ["0"]) => {
                return Err(
                    option.error("an upstream that fails is asked until it is back; that cannot be switched off")
                );
            }
            // They shape what is done in another way here, so that no choice of theirs changes an answer: only an
            // upstream that failed is probed, it still is asked when all others failed, and a connection that its
            // upstream closed is made again.
            ("max_fails", [number]) => drop(value(option, values::number(number, 1, u32::MAX))?),
            ("expire", [time]) => drop(value(option, values::duration(time))?),
            ("health_check", [time]) | ("health_check", [time, "no_rec"]) => {
                value(option, values::duration(time))?;
            }
            ("health_check", [time, "domain", name] | [time, "no_rec", "domain", name]) => {
                value(option, values::duration(time))?;
                value(option, values::domain(name))?;
            }
            (
                "except" | "tls_servername" | "max_concurrent" | "read_timeout" | "max_fails" | "expire"
                | "health_check",
                _,
            ) => {
                return Err(option.error("its arguments are not those that CoreDNS gives it"));
            }
            _ => return Err(unknown(line, option)),
        }
    }
    route.upstreams = upstreams(line, to, server_name.as_ref())?;
    Ok(route)
}

/// A domain, or a range of addresses that is one reverse zone.
fn domain(line: &Line, from: &str) -> Result<Name, CorefileError> {
    match value(line, values::zones(from))?.as_slice() {
        [from] => Ok(from.clone()),
        several => {
            let names: Vec<String> = several.iter().map(names::text).collect();
            Err(line.error(format!("takes one domain; {from} is {}: forward each", names.join(" and "))))
        }
    }
}

fn upstreams(
    line: &Line,
    to: &[String],
    server_name: Option<&ServerName<'static>>,
) -> Result<Upstreams, CorefileError> {
    let is_file = |word: &&String| word.contains('/') && !word.contains("://");
    match (to, to.iter().find(is_file)) {
        ([], _) => return Err(line.error("names no upstream")),
        ([file], Some(_)) => return Ok(Upstreams::File(PathBuf::from(file))),
        (_, Some(file)) => {
            return Err(line.error(format!(
                "the file {file} beside other upstreams is not supported: name its servers by their addresses"
            )));
        }
        (_, None) => {}
    }
    let upstream = |word: &String| -> Result<Upstream, CorefileError> {
        Upstream::read(word, server_name).map_err(|error| line.error(shunt_model::with_causes(&error)))
    };
    to.iter().map(upstream).collect::<Result<_, _>>().map(Upstreams::Servers)
}
