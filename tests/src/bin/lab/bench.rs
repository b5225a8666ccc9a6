//! Measurements side by side, as ratios: what the design's budgets promise is read off here.

mod cluster;
mod dns;
mod kube;
mod kube_proxy;
mod packets;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::peer::BenchLine;

use cluster::{BenchNode, Counters};
use dns::Population;
use packets::Paths;
use report::BenchTable;

/// How many services stand beside the one that is measured.
const SIZES: [u32; 3] = [1, 1_000, 10_000];
/// Pods whose names are answered, in the measurement of memory.
const PODS: u32 = 100_000;

/// What to measure, and with which programs.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchOptions {
    /// The daemon.
    #[arg(long)]
    shunt: PathBuf,
    /// The DNS server as it is shipped: reading Kubernetes' types is not optimised in the profile of the lab, and
    /// lookups compare them.
    #[arg(long)]
    shunt_dns: PathBuf,
    /// The `lab-peer` program.
    #[arg(long)]
    peer: PathBuf,
    /// The BPF object with which the programs are measured.
    #[arg(long)]
    replay: PathBuf,
    /// Connections per target and size.
    #[arg(long)]
    samples: u32,
    /// Changes of one endpoint.
    #[arg(long)]
    changes: u32,
    /// Only what takes an API server.
    #[arg(long)]
    only_api: bool,
    /// Only DNS.
    #[arg(long, conflicts_with = "only_api")]
    only_dns: bool,
    #[command(flatten)]
    connections: OnlyConnections,
}

/// Only a part of what concerns connections.
#[derive(Debug, clap::Args)]
struct OnlyConnections {
    /// Only connections.
    #[arg(long, conflicts_with_all = ["only_api", "only_dns"])]
    only_connects: bool,
    /// Only the data paths for packets, side by side.
    #[arg(long, conflicts_with_all = ["only_api", "only_dns", "only_connects"])]
    only_packets: bool,
}

/// Runs the measurements. Needs root.
pub(crate) fn run(options: &BenchOptions) -> Result<()> {
    let BenchOptions { shunt, peer, .. } = options;
    let mut report = BenchTable::default();
    if options.only_dns {
        names(options, &mut report)?;
        report.print();
        return Ok(());
    }
    if options.only_api {
        report.api(SIZES[2], &kube::measure(shunt, peer, SIZES[2], options.changes)?);
        report.print();
        return Ok(());
    }
    if options.connections.only_packets {
        packet_paths(options, &mut report)?;
        report.print();
        return Ok(());
    }
    let mut cluster = BenchNode::start(shunt, peer)?;
    for size in SIZES {
        cluster.grow_to(size).with_context(|| format!("growing to {size} services"))?;
        connects(&cluster, options, size, &mut report)?;
    }
    if options.connections.only_connects {
        report.print();
        return Ok(());
    }
    exchanges(&cluster, options, &mut report)?;
    changes(&mut cluster, options, &mut report)?;
    changes_of_many(&mut cluster, options, &mut report)?;
    programming(&mut cluster, &mut report)?;
    drop(cluster);
    packet_paths(options, &mut report)?;
    report.api(SIZES[2], &kube::measure(shunt, peer, SIZES[2], options.changes)?);
    names(options, &mut report)?;
    report.print();
    Ok(())
}

/// What serves packets, each path on its own node.
fn packet_paths(options: &BenchOptions, report: &mut BenchTable) -> Result<()> {
    let mut paths = Paths::start(&options.shunt, &options.peer)?;
    for size in [SIZES[1], SIZES[2]] {
        report.packets(&paths.measure(size, options.samples)?);
        report.programs(size, &paths.program_costs(&options.replay)?);
    }
    Ok(())
}

/// DNS: questions a second, and memory.
fn names(options: &BenchOptions, report: &mut BenchTable) -> Result<()> {
    let BenchOptions { shunt_dns: program, peer, .. } = options;
    report.dns(&dns::measure(program, peer, SIZES[2])?);
    // Four endpoints each are what CoreDNS was measured with.
    for (endpoints, pods) in [(4, 0), (10, 0), (10, PODS)] {
        let population = Population { services: SIZES[2], endpoints, pods };
        report.dns_memory(population, dns::memory(program, peer, population)?);
    }
    Ok(())
}

/// Connecting to the backend itself and through its Service, sample by sample in turn.
fn connects(cluster: &BenchNode, options: &BenchOptions, services: u32, report: &mut BenchTable) -> Result<()> {
    for (what, udp) in [("TCP connect", false), ("UDP connect", true)] {
        let lines = cluster.bench_connect(options.samples, udp)?;
        let [direct, service]: &[BenchLine; 2] = lines.as_slice().try_into().context("two targets give two lines")?;
        report.connect(what, services, direct, service);
    }
    Ok(())
}

/// Whole exchanges: through the Service, and with session affinity, each against the server itself.
fn exchanges(cluster: &BenchNode, options: &BenchOptions, report: &mut BenchTable) -> Result<()> {
    let requests = cluster.bench_request_response(options.samples / 2)?;
    let datagrams = cluster.bench_datagrams(options.samples)?;
    for (what, lines) in [("TCP connect, request, close", requests), ("UDP datagram, unconnected", datagrams)] {
        let [direct, plain, sticky]: &[BenchLine; 3] = lines.as_slice().try_into().context("three targets")?;
        report.exchange(what, direct, plain);
        report.exchange(&format!("{what}, affinity"), direct, sticky);
    }
    Ok(())
}

/// One endpoint comes or goes in a service of 5,000 with three frontends.
fn changes_of_many(cluster: &mut BenchNode, options: &BenchOptions, report: &mut BenchTable) -> Result<()> {
    cluster.grow_large()?;
    let before = cluster.counters()?;
    for number in 0..options.changes.min(30) {
        cluster.change_one_of_many(number)?;
    }
    report.change_of_many(&cluster.counters()?.since(&before));
    Ok(())
}

/// One endpoint comes or goes in a service of ten, beside all the others.
fn changes(cluster: &mut BenchNode, options: &BenchOptions, report: &mut BenchTable) -> Result<()> {
    let before = cluster.counters()?;
    let mut seen: Vec<Duration> = Vec::new();
    for number in 0..options.changes {
        seen.push(cluster.change_one_endpoint(number)?);
    }
    let spent = cluster.counters()?.since(&before);
    seen.sort_unstable();
    report.change(&spent, seen.get(seen.len() / 2).copied().unwrap_or_default());
    Ok(())
}

/// A daemon that starts on empty tables with everything to program.
fn programming(cluster: &mut BenchNode, report: &mut BenchTable) -> Result<()> {
    cluster.start_afresh()?;
    let spent: Counters = cluster.counters()?;
    report.programming(&spent, cluster.endpoints(), cluster.rss_kib()?);
    Ok(())
}
