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

use super::braces::{self, Braces, listed, unknown};
use super::text::Line;
use super::{CorefileError, values};
use crate::autopath;
use crate::block::{BlockConfig, Transfer};
use crate::plugin::Plugin;
pub(super) use shared::Shared;

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Makes a directive part of its block.
pub(super) fn understand(
    line: &Line,
    domains: &[Name],
    block: &mut BlockConfig,
    shared: &mut Shared,
) -> Result<(), CorefileError> {
    let Some(plugin) = Plugin::named(line.name()) else { return Err(unsupported(line)) };
    braces::check(plugin, line)?;
    match plugin {
        Plugin::Autopath => block.autopath = Some(search_path(line)?),
        Plugin::Bind => shared::bind(line, shared)?,
        Plugin::Bufsize => block.bufsize = Some(buffer_size(line)?),
        Plugin::Cache => block.forward.cache = Some(cache::cache(line, domains)?),
        Plugin::Errors => block.errors = Some(logs::errors(line)?),
        Plugin::Forward => {
            let route = forward::forward(line)?;
            if block.forward.routes.iter().any(|earlier| earlier.leaves_nothing_to(&route)) {
                return Err(line.error(format!(
                    "an earlier forward takes all of {}, so these upstreams would never be asked",
                    crate::names::text(&route.from)
                )));
            }
            block.forward.routes.push(route);
        }
        Plugin::Health => shared::health(line, shared)?,
        Plugin::Hosts => block.hosts = Some(names::hosts(line, domains)?),
        Plugin::Kubernetes => block.kubernetes = Some(kubernetes::kubernetes(line, domains, shared)?),
        Plugin::Loadbalance => match line.arguments() {
            [] => {}
            [policy] if policy == "round_robin" => {}
            _ => return Err(line.error("only round_robin is supported")),
        },
        Plugin::Log => block.log = Some(logs::log(line, domains)?),
        // Loops are looked for by the forwarder, always; what CoreDNS does on a panic has no counterpart here.
        Plugin::Loop | Plugin::Debug => no_arguments(line)?,
        Plugin::Prometheus => shared::prometheus(line, shared)?,
        Plugin::Ready => shared::ready(line, shared)?,
        Plugin::Reload => shared::reload(line, shared)?,
        Plugin::Rewrite => block.rewrites.push(names::rewrite(line)?),
        Plugin::Template => block.templates.push(names::template(line, domains)?),
        Plugin::Transfer => block.transfer = Some(transfer(line, domains)?),
    }
    Ok(())
}

impl Plugin {
    /// It may stand in a block more than once: its settings add up, or it has none.
    pub(super) fn adds_up(self) -> bool {
        match self {
            Self::Debug | Self::Forward | Self::Loadbalance | Self::Loop | Self::Rewrite | Self::Template => true,
            Self::Reload
            | Self::Bufsize
            | Self::Bind
            | Self::Ready
            | Self::Health
            | Self::Prometheus
            | Self::Errors
            | Self::Log
            | Self::Cache
            | Self::Autopath
            | Self::Transfer
            | Self::Hosts
            | Self::Kubernetes => false,
        }
    }

    /// What may stand between its braces.
    pub(super) fn braces(self) -> Braces {
        let (once, adding, others) = match self {
            Self::Reload | Self::Bufsize | Self::Bind | Self::Debug | Self::Prometheus => ("", "", None),
            Self::Loadbalance | Self::Autopath | Self::Loop => ("", "", None),
            Self::Ready => ("monitor", "", None),
            Self::Health => ("lameduck", "", None),
            Self::Errors => ("stacktrace", "consolidate", None),
            Self::Log => ("", "class", None),
            Self::Cache => ("denial prefetch serve_stale servfail success", "disable", None),
            Self::Rewrite => ("", "", Some("the words of a rule")),
            Self::Template => ("fallthrough rcode upstream", "additional answer authority match", None),
            Self::Transfer => ("", "to", None),
            Self::Hosts => ("fallthrough no_reverse reload ttl", "", Some("addresses with their names")),
            Self::Kubernetes => {
                ("endpoint_pod_names fallthrough ignore kubeconfig pods startup_timeout ttl", "namespaces", None)
            }
            Self::Forward => (
                "expire force_tcp health_check max_concurrent max_fails policy prefer_udp read_timeout tls \
                 tls_servername",
                "except",
                None,
            ),
        };
        Braces { once, adding, others }
    }
}

fn unsupported(line: &Line) -> CorefileError {
    // Imports have been put in by now.
    let known = listed(Plugin::ALL.iter().map(|plugin| plugin.name()).chain(["import"]), None);
    line.at.error(format!("{} is not supported; supported are {known}", line.name()))
}

/// Joins a refusal of a value with the place where it stands.
fn value<T>(line: &Line, read: Result<T, String>) -> Result<T, CorefileError> {
    read.map_err(|reason| line.error(reason))
}

fn no_arguments(line: &Line) -> Result<(), CorefileError> {
    if line.arguments().is_empty() { Ok(()) } else { Err(line.error("takes no arguments")) }
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
    Regex::new(pattern).map_err(|error| {
        // The lines before the last show the pattern again.
        let error = error.to_string();
        let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
        line.error(format!("the pattern {pattern:?} cannot be used{hint}: {reason}"))
    })
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
    let Some((from, zones)) = line.arguments().split_last() else {
        return Err(line.error("takes domains and @kubernetes"));
    };
    if from != "@kubernetes" {
        return Err(line.error(format!("{from}: search paths are those of pods, written @kubernetes")));
    }
    let zones = zones_of(line, zones, &[])?;
    Ok(autopath::AutopathConfig::with_search_of(zones, Path::new(RESOLV_CONF)))
}
