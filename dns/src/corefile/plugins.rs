//! What each directive means here.

mod cache;
mod forward;
mod kubernetes;
mod logs;
mod names;
mod shared;

use std::net::IpAddr;
use std::path::Path;

use hickory_proto::rr::Name;
use ipnet::IpNet;
use regex::Regex;

use super::text::Line;
use super::{CorefileError, values, whole};
use crate::autopath;
use crate::block::{BlockConfig, Transfer};
pub(super) use shared::Shared;

/// The directives that are known.
const KNOWN: &str = "autopath, bind, bufsize, cache, debug, errors, forward, health, hosts, kubernetes, loadbalance, \
                     log, loop, prometheus, ready, reload, rewrite, template and transfer";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Makes a directive part of its block.
pub(super) fn understand(
    line: &Line,
    domains: &[Name],
    block: &mut BlockConfig,
    shared: &mut Shared,
) -> Result<(), CorefileError> {
    whole::options_once(line)?;
    match line.name() {
        "autopath" => block.autopath = Some(search_path(line)?),
        "bind" => shared::bind(line, shared)?,
        "bufsize" => block.udp_payload = buffer_size(line)?,
        "cache" => block.forward.cache = Some(cache::cache(line, domains)?),
        "errors" => block.errors = Some(logs::errors(line)?),
        "forward" => {
            let route = forward::forward(line)?;
            if block.forward.routes.iter().any(|earlier| earlier.leaves_nothing_to(&route)) {
                return Err(line.error(format!(
                    "an earlier forward takes all of {}, so these upstreams would never be asked",
                    route.from
                )));
            }
            block.forward.routes.push(route);
        }
        "health" => shared::health(line, shared)?,
        "hosts" => block.hosts = Some(names::hosts(line, domains)?),
        "kubernetes" => block.kubernetes = Some(kubernetes::kubernetes(line, domains, shared)?),
        "loadbalance" => match line.arguments() {
            [] => no_block(line)?,
            [policy] if policy == "round_robin" => no_block(line)?,
            _ => return Err(line.error("only round_robin is supported")),
        },
        "log" => block.log = Some(logs::log(line, domains)?),
        // Loops are looked for by the forwarder, always; what CoreDNS does on a panic has no counterpart here.
        "loop" | "debug" => {
            no_arguments(line)?;
            no_block(line)?;
        }
        "prometheus" => shared::prometheus(line, shared)?,
        "ready" => shared::ready(line, shared)?,
        "reload" => shared::reload(line, shared)?,
        "rewrite" => block.rewrites.push(names::rewrite(line)?),
        "template" => block.templates.push(names::template(line, domains)?),
        "transfer" => block.transfer = Some(transfer(line, domains)?),
        other => return Err(line.at.error(format!("{other} is not supported; supported are {KNOWN}"))),
    }
    Ok(())
}

/// Joins a refusal of a value with the place where it stands.
fn value<T>(line: &Line, read: Result<T, String>) -> Result<T, CorefileError> {
    read.map_err(|reason| line.error(reason))
}

fn no_arguments(line: &Line) -> Result<(), CorefileError> {
    if line.arguments().is_empty() { Ok(()) } else { Err(line.error("takes no arguments")) }
}

fn no_block(line: &Line) -> Result<(), CorefileError> {
    match line.block.as_deref() {
        None | Some([]) => Ok(()),
        Some([option, ..]) => Err(unknown(line, option)),
    }
}

fn unknown(line: &Line, option: &Line) -> CorefileError {
    let known = match line.name() {
        "cache" => "denial, disable, prefetch, serve_stale, servfail and success",
        "errors" => "consolidate and stacktrace",
        "forward" => {
            "except, expire, force_tcp, health_check, max_concurrent, max_fails, policy, prefer_udp, tls and \
             tls_servername"
        }
        "health" => "lameduck",
        "hosts" => "fallthrough, no_reverse, reload, ttl and addresses with their names",
        "kubernetes" => {
            "endpoint_pod_names, fallthrough, ignore, kubeconfig, namespaces, pods, startup_timeout and ttl"
        }
        "log" => "class",
        "ready" => "monitor",
        "template" => "additional, answer, authority, fallthrough, match, rcode and upstream",
        "transfer" => "to",
        _ => "none",
    };
    option.at.error(format!("{}: {} is not supported; supported are {known}", line.name(), option.name()))
}

fn options(line: &Line) -> &[Line] {
    line.block.as_deref().unwrap_or_default()
}

/// The one argument of an option.
fn only(option: &Line) -> Result<&str, CorefileError> {
    match option.arguments() {
        [argument] => Ok(argument),
        _ => Err(option.error("takes one argument")),
    }
}

fn regex(line: &Line, pattern: &str) -> Result<Regex, CorefileError> {
    let hint = if pattern.contains('[') { r" (inside of brackets, - and [ are written \- and \[)" } else { "" };
    Regex::new(pattern).map_err(|error| line.error(format!("the pattern {pattern:?} cannot be used{hint}: {error}")))
}

fn zones_of(line: &Line, words: &[String], otherwise: &[Name]) -> Result<Vec<Name>, CorefileError> {
    if words.is_empty() {
        return Ok(otherwise.to_vec());
    }
    let mut zones = Vec::new();
    for word in words {
        for zone in value(line, values::zones(word))? {
            // RKE2 names the cluster domain twice.
            if !zones.contains(&zone) {
                zones.push(zone);
            }
        }
    }
    Ok(zones)
}

/// `fallthrough [ZONES...]`; without zones, all names.
fn fallthrough(option: &Line) -> Result<Vec<Name>, CorefileError> {
    zones_of(option, option.arguments(), &[Name::root()])
}

fn buffer_size(line: &Line) -> Result<u16, CorefileError> {
    no_block(line)?;
    match line.arguments() {
        [] => Ok(crate::forward::UDP_PAYLOAD),
        [size] => value(line, values::number(size, 512, 4096)),
        _ => Err(line.error("takes one size")),
    }
}

fn transfer(line: &Line, domains: &[Name]) -> Result<Transfer, CorefileError> {
    let mut to = Vec::new();
    for option in options(line) {
        if option.name() != "to" {
            return Err(unknown(line, option));
        }
        for word in option.arguments() {
            if word == "*" {
                to.extend([value(option, values::everywhere(false))?, value(option, values::everywhere(true))?]);
            } else {
                let net = word.parse().or_else(|_| word.parse::<IpAddr>().map(IpNet::from));
                to.push(net.map_err(|_name| option.error(format!("{word} is no address of a client")))?);
            }
        }
    }
    Ok(Transfer { zones: zones_of(line, line.arguments(), domains)?, to })
}

fn search_path(line: &Line) -> Result<autopath::AutopathConfig, CorefileError> {
    no_block(line)?;
    let Some((from, zones)) = line.arguments().split_last() else {
        return Err(line.error("takes domains and @kubernetes"));
    };
    if from != "@kubernetes" {
        return Err(line.error(format!("{from}: search paths are those of pods, written @kubernetes")));
    }
    let zones = zones_of(line, zones, &[])?;
    Ok(autopath::AutopathConfig::with_search_of(zones, Path::new(RESOLV_CONF)))
}
