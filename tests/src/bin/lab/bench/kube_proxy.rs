//! kube-proxy's rules on a node, without kube-proxy: what it writes at its start and at a change, by the program that
//! it runs. Its own work, of which there is more, is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::kube_proxy_rules::{Cluster, Endpoint, Family, ServicePort, iptables_mode, nftables_mode};
use lab::{Lab, Node};

use super::cluster::filler_addresses;

/// For 10,000 services nft needs more than a minute.
const PATIENCE: Duration = Duration::from_secs(400);
/// The chains that kube-proxy writes anew at every change, in the table nat.
const ALWAYS: [&str; 4] = ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-MARK-MASQ", "KUBE-POSTROUTING"];

/// Whose rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Nftables,
    IptablesNft,
    IptablesLegacy,
}

/// A Service beside those that are only there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Served {
    pub(super) name: &'static str,
    pub(super) address: Ipv4Addr,
    pub(super) port: u16,
    pub(super) node_port: Option<u16>,
    pub(super) endpoint: Ipv4Addr,
}

/// The rules of a node.
pub(super) struct Rules {
    kind: Kind,
    node: Node,
    input: PathBuf,
    /// What is in force.
    text: String,
}

impl Rules {
    pub(super) fn new(kind: Kind, node: Node, lab: &Lab) -> Self {
        let input = lab.directory().join(format!("rules-{}", node.name()));
        Self { kind, node, input, text: String::new() }
    }

    /// Writes everything from nothing; returns how long it takes.
    pub(super) fn write(&mut self, fillers: u32, endpoints: u32, served: &[Served]) -> Result<Duration> {
        if !self.text.is_empty() {
            self.remove()?;
        }
        self.text = self.render(fillers, endpoints, served);
        self.restore(&self.text.clone())
    }

    /// Writes what kube-proxy would, now that the endpoints of `served` are others.
    pub(super) fn change(&mut self, fillers: u32, endpoints: u32, served: &[Served]) -> Result<()> {
        let fresh = self.render(fillers, endpoints, served);
        let script = match self.kind {
            Kind::Nftables => nft_change(&self.text, &fresh),
            Kind::IptablesNft | Kind::IptablesLegacy => iptables_change(&self.text, &fresh),
        };
        self.restore(&script)?;
        self.text = fresh;
        Ok(())
    }

    fn render(&self, fillers: u32, endpoints: u32, served: &[Served]) -> String {
        let remote = |ip: Ipv4Addr, port| Endpoint { address: SocketAddr::new(IpAddr::V4(ip), port), local: false };
        let mut ports: Vec<ServicePort> = (0..fillers)
            .map(|number| {
                let (address, ends) = filler_addresses(number, endpoints);
                let ends = ends.into_iter().map(|end| remote(end, 7000)).collect();
                ServicePort::tcp(&format!("filler-{number}"), IpAddr::V4(address), 7000, ends)
            })
            .collect();
        for Served { name, address, port, node_port, endpoint } in served {
            let mut served = ServicePort::tcp(name, IpAddr::V4(*address), *port, vec![remote(*endpoint, *port)]);
            served.node_port = *node_port;
            ports.push(served);
        }
        let none = || [String::new(), String::new()];
        let cluster = Cluster { pod_ranges: self.node.pod_cidrs(), service_ranges: none(), ports };
        match self.kind {
            Kind::Nftables => nftables_mode::of_kube_proxy(&cluster, Family::V4),
            Kind::IptablesNft | Kind::IptablesLegacy => iptables_mode::of_kube_proxy(&cluster, Family::V4),
        }
    }

    fn restore(&self, text: &str) -> Result<Duration> {
        fs::write(&self.input, text).context("writing rules")?;
        let program = match self.kind {
            Kind::Nftables => "nft -f",
            Kind::IptablesNft => "iptables-nft-restore --noflush",
            Kind::IptablesLegacy => "iptables-legacy-restore --noflush",
        };
        let began = Instant::now();
        self.run(&format!("{program} {}", self.input.display()))?;
        Ok(began.elapsed())
    }

    fn remove(&self) -> Result<()> {
        match self.kind {
            Kind::Nftables => self.run("nft delete table ip kube-proxy"),
            Kind::IptablesNft => self.run("nft flush ruleset"),
            Kind::IptablesLegacy => self
                .run("for table in nat filter; do iptables-legacy -t $table -F && iptables-legacy -t $table -X; done"),
        }
    }

    fn run(&self, command: &str) -> Result<()> {
        let finished = self.node.spawn(&["sh", "-c", command])?.finish(PATIENCE)?;
        ensure!(finished.status.success(), "{command} failed");
        Ok(())
    }
}

/// The rules of each chain of the table nat, in order.
fn chains(text: &str) -> BTreeMap<&str, Vec<&str>> {
    let nat = text.split_once("*nat\n").map_or("", |(_, nat)| nat);
    let mut chains: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in nat.lines() {
        if let Some(name) = line.strip_prefix(':').and_then(|rest| rest.split(' ').next()) {
            chains.entry(name).or_default();
        } else if let Some(name) = line.strip_prefix("-A ").and_then(|rest| rest.split(' ').next()) {
            chains.entry(name).or_default().push(line);
        }
    }
    chains
}

/// The chains that changed, and those that kube-proxy always writes.
fn iptables_change(before: &str, after: &str) -> String {
    let (old, new) = (chains(before), chains(after));
    let written = |name: &&str| ALWAYS.contains(name) || old.get(*name) != new.get(*name);
    let names: Vec<&str> = new.keys().copied().filter(written).collect();
    let gone: Vec<&str> = old.keys().copied().filter(|name| !new.contains_key(name)).collect();
    let mut script = "*nat\n".to_owned();
    for name in names.iter().chain(&gone) {
        script.push_str(&format!(":{name} - [0:0]\n"));
    }
    for line in names.iter().filter_map(|name| new.get(name)).flatten() {
        script.push_str(line);
        script.push('\n');
    }
    for name in gone {
        script.push_str(&format!("-X {name}\n"));
    }
    script.push_str("COMMIT\n");
    script
}

/// The chains of which a line changed, emptied and filled again.
fn nft_change(before: &str, after: &str) -> String {
    let old: BTreeSet<(&str, &str)> = nft_rules(before).collect();
    let mut script = String::new();
    let mut flushed = BTreeSet::new();
    let changed: BTreeSet<&str> = nft_rules(after).filter(|rule| !old.contains(rule)).map(|(chain, _)| chain).collect();
    for (chain, rule) in nft_rules(after).filter(|(chain, _)| changed.contains(chain)) {
        if flushed.insert(chain) {
            script.push_str(&format!("flush chain ip kube-proxy {chain}\n"));
        }
        script.push_str(&format!("add rule ip kube-proxy {chain} {rule}\n"));
    }
    script
}

/// Chains and their rules, as they stand in a table.
fn nft_rules(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut chain = None;
    text.lines().filter_map(move |line| {
        let line = line.trim();
        if let Some(name) = line.strip_prefix("chain ").and_then(|rest| rest.strip_suffix(" {")) {
            chain = Some(name);
            return None;
        }
        if line == "}" {
            chain = None;
        }
        chain.filter(|_| !line.is_empty() && !line.starts_with("type ")).map(|chain| (chain, line))
    })
}
