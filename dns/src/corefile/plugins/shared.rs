//! The directives that all server blocks share: `bind`, `health`, `prometheus`, `ready`, `reload`, and the port.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{only, options, unknown, value};
use crate::corefile::text::Line;
use crate::corefile::{Corefile, CorefileError, KubernetesSettings, PORT, values};

/// Where CoreDNS serves what a directive without an address asks for.
const HEALTH: &str = ":8080";
const READY: &str = ":8181";
const PROMETHEUS: &str = "localhost:9153";
const RELOAD: Duration = Duration::from_secs(30);
/// CoreDNS's least interval (DNS-11.10).
const SHORTEST_RELOAD: Duration = Duration::from_secs(2);

/// What all server blocks have in common.
#[derive(Debug, Default)]
pub(in crate::corefile) struct Shared {
    port: Option<u16>,
    bind: Option<Vec<IpAddr>>,
    pub(super) kubernetes: Option<KubernetesSettings>,
    health: Option<SocketAddr>,
    lameduck: Duration,
    ready: Option<SocketAddr>,
    prometheus: Option<SocketAddr>,
    reload: Option<Duration>,
}

impl Shared {
    pub(in crate::corefile) fn port(&mut self, port: u16) -> Result<(), String> {
        match self.port.replace(port) {
            Some(other) if other != port => Err(format!("ports {other} and {port}: all server blocks share one port")),
            Some(_) | None => Ok(()),
        }
    }

    pub(in crate::corefile) fn give_to(self, file: &mut Corefile) {
        file.port = self.port.unwrap_or(PORT);
        file.bind = self.bind.unwrap_or_default();
        file.kubernetes = self.kubernetes;
        file.health = self.health;
        file.lameduck = self.lameduck;
        file.ready = self.ready;
        file.prometheus = self.prometheus;
        file.reload = self.reload;
    }
}

pub(super) fn bind(line: &Line, shared: &mut Shared) -> Result<(), CorefileError> {
    let address = |word: &String| -> Result<IpAddr, CorefileError> {
        word.parse().map_err(|_name| line.error(format!("{word} is no address; interfaces are not looked up")))
    };
    let addresses = line.arguments().iter().map(address).collect::<Result<Vec<_>, _>>()?;
    if addresses.is_empty() {
        return Err(line.error("names no address to listen on; without this line all are listened on"));
    }
    agree(line, &mut shared.bind, addresses, "set of addresses")
}

pub(super) fn health(line: &Line, shared: &mut Shared) -> Result<(), CorefileError> {
    agree(line, &mut shared.health, address(line, HEALTH)?, "address")?;
    for option in options(line) {
        match option.name() {
            "lameduck" => shared.lameduck = value(option, values::duration(only(option)?))?,
            _ => return Err(unknown(line, option)),
        }
    }
    Ok(())
}

pub(super) fn prometheus(line: &Line, shared: &mut Shared) -> Result<(), CorefileError> {
    agree(line, &mut shared.prometheus, address(line, PROMETHEUS)?, "address")
}

pub(super) fn ready(line: &Line, shared: &mut Shared) -> Result<(), CorefileError> {
    for option in options(line) {
        if option.name() != "monitor" {
            return Err(unknown(line, option));
        }
        // A cluster that is known stays known, so both mean the same.
        if !matches!(only(option)?, "continuously" | "until-ready") {
            return Err(option.error("takes continuously or until-ready"));
        }
    }
    agree(line, &mut shared.ready, address(line, READY)?, "address")
}

pub(super) fn reload(line: &Line, shared: &mut Shared) -> Result<(), CorefileError> {
    agree(line, &mut shared.reload, interval(line)?, "interval")
}

fn interval(line: &Line) -> Result<Duration, CorefileError> {
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

fn address(line: &Line, otherwise: &str) -> Result<SocketAddr, CorefileError> {
    match line.arguments() {
        [] => value(line, values::listen_address(otherwise)),
        [address] => value(line, values::listen_address(address)),
        _ => Err(line.error("takes one address")),
    }
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
