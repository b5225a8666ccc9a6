//! What each directive means here.

mod forward;
mod kubernetes;
mod logs;
mod names;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use hickory_proto::rr::Name;
use ipnet::IpNet;
use regex::Regex;

use super::text::Line;
use super::{Corefile, CorefileError, KubernetesSettings, values, whole};
use crate::autopath;
use crate::block::{BlockConfig, Transfer};
use crate::cache::{CacheConfig, Prefetch};

/// The directives that are known.
const KNOWN: &str = "autopath, bind, bufsize, cache, debug, errors, forward, health, hosts, kubernetes, loadbalance, \
                     log, loop, prometheus, ready, reload, rewrite, template and transfer";
/// Where CoreDNS serves what a directive without an address asks for.
const HEALTH: &str = ":8080";
const READY: &str = ":8181";
const PROMETHEUS: &str = "localhost:9153";
const RELOAD: Duration = Duration::from_secs(30);
/// CoreDNS's least interval (DNS-11.10).
const SHORTEST_RELOAD: Duration = Duration::from_secs(2);
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What all server blocks have in common.
#[derive(Debug, Default)]
pub(super) struct Shared {
    port: Option<u16>,
    bind: Option<Vec<IpAddr>>,
    kubernetes: Option<KubernetesSettings>,
    health: Option<SocketAddr>,
    lameduck: Duration,
    ready: Option<SocketAddr>,
    prometheus: Option<SocketAddr>,
    reload: Option<Duration>,
}

impl Shared {
    pub(super) fn port(&mut self, port: u16) -> Result<(), String> {
        match self.port.replace(port) {
            Some(other) if other != port => Err(format!("ports {other} and {port}: all server blocks share one port")),
            Some(_) | None => Ok(()),
        }
    }

    pub(super) fn give_to(self, file: &mut Corefile) {
        file.port = self.port.unwrap_or(super::PORT);
        file.bind = self.bind.unwrap_or_default();
        file.kubernetes = self.kubernetes;
        file.health = self.health;
        file.lameduck = self.lameduck;
        file.ready = self.ready;
        file.prometheus = self.prometheus;
        file.reload = self.reload;
    }
}

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
        "bind" => bind(line, shared)?,
        "bufsize" => block.udp_payload = buffer_size(line)?,
        "cache" => block.forward.cache = Some(cache(line, domains)?),
        "errors" => block.errors = Some(logs::errors(line)?),
        "forward" => {
            let route = forward::forward(line)?;
            if block.forward.routes.iter().any(|earlier| earlier.leaves_nothing_to(&route)) {
                return Err(line.error(format!(
                    "an earlier forward takes all of {}, so these upstreams would never be asked",
                    crate::names::text(&route.from)
                )));
            }
            block.forward.routes.push(route);
        }
        "health" => health(line, shared)?,
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
        "prometheus" => agree(line, &mut shared.prometheus, address(line, PROMETHEUS)?, "address")?,
        "ready" => agree(line, &mut shared.ready, ready(line)?, "address")?,
        "reload" => agree(line, &mut shared.reload, reload(line)?, "interval")?,
        "rewrite" => block.rewrites.push(names::rewrite(line)?),
        "template" => block.templates.push(names::template(line, domains)?),
        "transfer" => block.transfer = Some(transfer(line, domains)?),
        other => return Err(line.at.error(format!("{other} is not supported; supported are {KNOWN}"))),
    }
    Ok(())
}

/// What several server blocks may say, if they say the same.
fn agree<T: PartialEq>(line: &Line, place: &mut Option<T>, new: T, what: &str) -> Result<(), CorefileError> {
    match place.replace(new) {
        Some(other) if place.as_ref() != Some(&other) => {
            Err(line.error(format!("all server blocks share one {what}: say the same in each, or say it once")))
        }
        Some(_) | None => Ok(()),
    }
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

fn address(line: &Line, otherwise: &str) -> Result<SocketAddr, CorefileError> {
    no_block(line)?;
    match line.arguments() {
        [] => value(line, values::listen_address(otherwise)),
        [address] => value(line, values::listen_address(address)),
        _ => Err(line.error("takes one address")),
    }
}

fn bind(line: &Line, shared: &mut Shared) -> Result<(), CorefileError> {
    no_block(line)?;
    let address = |word: &String| -> Result<IpAddr, CorefileError> {
        word.parse().map_err(|_name| line.error(format!("{word} is no address; interfaces are not looked up")))
    };
    let addresses = line.arguments().iter().map(address).collect::<Result<Vec<_>, _>>()?;
    if addresses.is_empty() {
        return Err(line.error("names no address to listen on; without this line all are listened on"));
    }
    agree(line, &mut shared.bind, addresses, "set of addresses")
}

fn buffer_size(line: &Line) -> Result<u16, CorefileError> {
    no_block(line)?;
    match line.arguments() {
        [] => Ok(crate::forward::UDP_PAYLOAD),
        [size] => value(line, values::number(size, 512, 4096)),
        _ => Err(line.error("takes one size")),
    }
}

fn health(line: &Line, shared: &mut Shared) -> Result<(), CorefileError> {
    let address = match line.arguments() {
        [] => HEALTH,
        [address] => address.as_str(),
        _ => return Err(line.error("takes one address")),
    };
    agree(line, &mut shared.health, value(line, values::listen_address(address))?, "address")?;
    for option in options(line) {
        match option.name() {
            "lameduck" => shared.lameduck = value(option, values::duration(only(option)?))?,
            _ => return Err(unknown(line, option)),
        }
    }
    Ok(())
}

fn ready(line: &Line) -> Result<SocketAddr, CorefileError> {
    for option in options(line) {
        if option.name() != "monitor" {
            return Err(unknown(line, option));
        }
        // A cluster that is known stays known, so both mean the same.
        if !matches!(only(option)?, "continuously" | "until-ready") {
            return Err(option.error("takes continuously or until-ready"));
        }
    }
    address(&Line { block: None, ..line.clone() }, READY)
}

fn reload(line: &Line) -> Result<Duration, CorefileError> {
    no_block(line)?;
    match line.arguments() {
        [] => Ok(RELOAD),
        [interval, jitter @ ..] if jitter.len() <= 1 => {
            for jitter in jitter {
                value(line, values::duration(jitter))?;
            }
            match value(line, values::duration(interval))? {
                interval if interval < SHORTEST_RELOAD => {
                    Err(line.error("takes an interval of 2s or more; without this line the file is read only once"))
                }
                interval => Ok(interval),
            }
        }
        _ => Err(line.error("takes an interval and a jitter")),
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

fn cache(line: &Line, domains: &[Name]) -> Result<CacheConfig, CorefileError> {
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
                config.failure = value(option, values::duration(time))?.min(Duration::from_secs(300));
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
