//! What each directive means here.

mod kubernetes;
mod names;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hickory_proto::rr::Name;
use ipnet::IpNet;

use super::text::Line;
use super::{Corefile, CorefileError, KubernetesSettings, values};
use crate::autopath;
use crate::block::BlockConfig;
use crate::cache::{CacheConfig, Prefetch};
use crate::forward::{Policy, Route};
use crate::log::{Class, LogConfig};
use crate::upstream::{Upstream, Upstreams};

/// The directives that are known.
const KNOWN: &str = "autopath, bind, bufsize, cache, errors, forward, health, hosts, kubernetes, loadbalance, log, loop, \
                     prometheus, ready, reload, rewrite, template and transfer";
/// Where CoreDNS serves what a directive without an address asks for.
const HEALTH: &str = ":8080";
const READY: &str = ":8181";
const PROMETHEUS: &str = "localhost:9153";
const RELOAD: Duration = Duration::from_secs(30);
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
    match line.name() {
        "autopath" => block.autopath = Some(search_path(line)?),
        "bind" => bind(line, shared)?,
        "bufsize" => block.udp_payload = buffer_size(line)?,
        "cache" => block.forward.cache = Some(cache(line, domains)?),
        "errors" => {
            no_arguments(line)?;
            no_block(line)?;
            block.errors = true;
        }
        "forward" => block.forward.routes.push(forward(line)?),
        "health" => health(line, shared)?,
        "hosts" => block.hosts = Some(names::hosts(line, domains)?),
        "kubernetes" => block.kubernetes = Some(kubernetes::kubernetes(line, domains, shared)?),
        "loadbalance" => match line.arguments() {
            [] => no_block(line)?,
            [policy] if policy == "round_robin" => no_block(line)?,
            _ => return Err(line.error("only round_robin is in this server")),
        },
        "log" => block.log = Some(log(line, domains)?),
        // Loops are looked for by the forwarder, always.
        "loop" => {
            no_arguments(line)?;
            no_block(line)?;
        }
        "prometheus" => shared.prometheus = Some(address(line, PROMETHEUS)?),
        "ready" => shared.ready = Some(ready(line)?),
        "reload" => shared.reload = Some(reload(line)?),
        "rewrite" => block.rewrites.extend(names::rewrites(line)?),
        "template" => block.templates.push(names::template(line, domains)?),
        "transfer" => block.transfer = transfer(line)?,
        other => return Err(line.at.error(format!("{other} is not in this server; known are {KNOWN}"))),
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
    option.at.error(format!("{}: {} is not in this server", line.name(), option.name()))
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

fn zones_of(line: &Line, words: &[String], otherwise: &[Name]) -> Result<Vec<Name>, CorefileError> {
    if words.is_empty() {
        return Ok(otherwise.to_vec());
    }
    let mut zones = Vec::new();
    for word in words {
        zones.extend(value(line, values::zones(word))?);
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
    match shared.bind.replace(addresses.clone()) {
        Some(others) if others != addresses => Err(line.error("all server blocks share one set of addresses")),
        Some(_) | None => Ok(()),
    }
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
    shared.health = Some(value(line, values::listen_address(address))?);
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
        // A cluster that is known stays known, so both mean the same.
        let known = option.name() == "monitor" && matches!(only(option)?, "continuously" | "until-ready");
        if !known {
            return Err(unknown(line, option));
        }
    }
    address(&Line { block: None, ..line.clone() }, READY)
}

fn reload(line: &Line) -> Result<Duration, CorefileError> {
    no_block(line)?;
    match line.arguments() {
        [] => Ok(RELOAD),
        [interval] | [interval, _] => value(line, values::duration(interval)),
        _ => Err(line.error("takes an interval and a jitter")),
    }
}

fn transfer(line: &Line) -> Result<Vec<IpNet>, CorefileError> {
    let mut allowed = Vec::new();
    for option in options(line) {
        if option.name() != "to" {
            return Err(unknown(line, option));
        }
        for word in option.arguments() {
            if word == "*" {
                allowed.extend([value(option, values::everywhere(false))?, value(option, values::everywhere(true))?]);
            } else {
                let net = word.parse().or_else(|_| word.parse::<IpAddr>().map(IpNet::from));
                allowed.push(net.map_err(|_name| option.error(format!("{word} is no address of a client")))?);
            }
        }
    }
    Ok(allowed)
}

fn search_path(line: &Line) -> Result<autopath::Config, CorefileError> {
    no_block(line)?;
    let Some((from, zones)) = line.arguments().split_last() else {
        return Err(line.error("takes domains and @kubernetes"));
    };
    if from != "@kubernetes" {
        return Err(line.error(format!("{from}: search paths are those of pods, written @kubernetes")));
    }
    let zones = zones_of(line, zones, &[])?;
    Ok(autopath::Config::with_search_of(zones, Path::new(RESOLV_CONF)))
}

fn log(line: &Line, domains: &[Name]) -> Result<LogConfig, CorefileError> {
    let usual = |word: &&String| !["{common}", "{combined}"].contains(&word.as_str());
    let words: Vec<String> = line.arguments().iter().filter(usual).cloned().collect();
    if let Some(format) = words.iter().find(|word| word.contains('{')) {
        return Err(line.error(format!("the format {format:?} is not in this server: it writes {{common}}")));
    }
    let mut classes = Vec::new();
    for option in options(line) {
        if option.name() != "class" {
            return Err(unknown(line, option));
        }
        for word in option.arguments() {
            classes.push(match word.as_str() {
                "all" => Class::All,
                "success" => Class::Success,
                "denial" => Class::Denial,
                "error" => Class::Error,
                _ => return Err(option.error(format!("{word} is none of all, success, denial and error"))),
            });
        }
    }
    if classes.is_empty() {
        classes.push(Class::All);
    }
    Ok(LogConfig { zones: zones_of(line, &words, domains)?, classes })
}

fn cache(line: &Line, domains: &[Name]) -> Result<CacheConfig, CorefileError> {
    let mut config = CacheConfig::default();
    config.success.longest = Duration::from_secs(3600);
    config.denial.longest = Duration::from_secs(1800);
    let mut words = line.arguments();
    if let [ttl, rest @ ..] = words
        && let Ok(ttl) = values::duration(ttl)
    {
        (config.success.longest, config.denial.longest) = (ttl, ttl);
        words = rest;
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
            ("disable", ["success", ..]) => config.no_success = zones_of(option, tail(option), domains)?,
            ("disable", ["denial", ..]) => config.no_denial = zones_of(option, tail(option), domains)?,
            _ => return Err(unknown(line, option)),
        }
    }
    Ok(config)
}

/// Arguments from the second one on.
fn tail(option: &Line) -> &[String] {
    option.arguments().get(1..).unwrap_or_default()
}

fn forward(line: &Line) -> Result<Route, CorefileError> {
    let [from, to @ ..] = line.arguments() else {
        return Err(line.error("takes a domain and whom to ask"));
    };
    let from = value(line, values::domain(from))?;
    let mut server_name = None;
    let mut route = Route { policy: Policy::Random, ..Route::new(from, Upstreams::Servers(Vec::new())) };
    for option in options(line) {
        let arguments: Vec<&str> = option.arguments().iter().map(String::as_str).collect();
        match (option.name(), arguments.as_slice()) {
            ("except", [_, ..]) => route.except.extend(zones_of(option, option.arguments(), &[])?),
            ("force_tcp", []) => route.force_tcp = true,
            // That is what is done anyway.
            ("prefer_udp", []) => {}
            ("tls", []) => {}
            ("tls", [authorities]) => route.authorities = Some(PathBuf::from(authorities)),
            ("tls", _) => return Err(option.error("certificates of our own are not shown to upstreams; write tls CA")),
            ("tls_servername", [name]) => server_name = Some((*name).to_owned()),
            ("policy", ["random"]) => route.policy = Policy::Random,
            ("policy", ["round_robin"]) => route.policy = Policy::RoundRobin,
            ("policy", ["sequential"]) => route.policy = Policy::Sequential,
            ("max_concurrent", [number]) => {
                route.max_concurrent = value(option, values::number(number, 1, 1_000_000))?;
            }
            // These are as they are; saying so is no error.
            ("max_fails", ["2"]) => {}
            ("expire", ["10s"]) => {}
            ("health_check", ["0.5s" | "500ms"]) => {}
            ("max_fails" | "expire" | "health_check", _) => {
                return Err(option.error("cannot be chosen: max_fails is 2, expire 10s, and health_check 0.5s"));
            }
            _ => return Err(unknown(line, option)),
        }
    }
    route.upstreams = upstreams(line, to, server_name.as_deref())?;
    Ok(route)
}

fn upstreams(line: &Line, to: &[String], server_name: Option<&str>) -> Result<Upstreams, CorefileError> {
    if let [file] = to
        && file.starts_with('/')
    {
        return Ok(Upstreams::File(PathBuf::from(file)));
    }
    if to.is_empty() {
        return Err(line.error("names nobody to ask"));
    }
    let upstream = |word: &String| -> Result<Upstream, CorefileError> {
        let named = match server_name {
            Some(name) if word.starts_with("tls://") && !word.contains('%') => format!("{word}%{name}"),
            Some(_) | None => word.trim_start_matches("dns://").to_owned(),
        };
        named.parse().map_err(|error| line.error(shunt_model::with_causes(&error)))
    };
    to.iter().map(upstream).collect::<Result<_, _>>().map(Upstreams::Servers)
}
