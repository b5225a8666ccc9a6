//! The commands that need the lab: everything is built first, then the program `lab` takes the place of this one.
//!
//! xtask itself does not link the lab, so that a first `cargo xtask setup` compiles a few crates and not two hundred.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use crate::ui::heading;
use crate::workspace::{LAB_CRATE, Workspace};
use crate::{build, gate, packages, setup};

/// The program of the lab crate that has the demo and the measurements.
const PROGRAM: &str = "lab";
/// What DNS is measured beside: two authoritative servers with the same names, and two caches.
const OTHER_DNS_SERVERS: [&str; 4] = ["knot", "nsd", "unbound", "dnsmasq-base"];
/// The questions of `dns-compare` and the answers that it expects, in the workspace.
const TABLE: &str = "dns/tests/corpus/answers.txt";

/// How the demo runs.
#[derive(Debug, Args)]
pub(crate) struct DemoOptions {
    /// Leave everything running until Ctrl-C, and say how to look inside.
    #[arg(long)]
    keep: bool,
    /// Where the daemons take their objects from.
    #[arg(long, value_enum, default_value_t = ObjectSource::Manifests)]
    source: ObjectSource,
    /// What serves packets, as the daemon takes it: auto, ebpf, nftables or iptables.
    #[arg(long, value_name = "MODE")]
    proxy_mode: Option<String>,
    /// Whether sockets are served, as the daemon takes it: auto, on or off.
    #[arg(long, value_name = "WHEN")]
    socket_lb: Option<String>,
}

/// Where the daemons of the demo take their objects from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ObjectSource {
    /// A folder of manifests
    Manifests,
    /// A Kubernetes API server of the lab
    Kube,
}

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct BenchOptions {
    /// Connections per target and size.
    #[arg(long, default_value_t = 10_000)]
    samples: u32,
    /// Changes of one endpoint.
    #[arg(long, default_value_t = 100)]
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
#[derive(Debug, Args)]
struct OnlyConnections {
    /// Only connections, directly and through a Service.
    #[arg(long, conflicts_with_all = ["only_api", "only_dns"])]
    only_connects: bool,
    /// Only the data paths for packets, side by side.
    #[arg(long, conflicts_with_all = ["only_api", "only_dns", "only_connects"])]
    only_packets: bool,
}

/// Which server to ask.
#[derive(Debug, Args)]
pub(crate) struct CompareOptions {
    /// A DNS server that serves the cluster of dns/tests/corpus/cluster.yaml under cluster.local.
    #[arg(long, value_name = "ADDR:PORT")]
    server: SocketAddr,
}

/// Prepares the machine, builds, runs the demo; the exit code is the demo's own.
pub(crate) fn demo(workspace: &Workspace, options: &DemoOptions) -> Result<ExitCode> {
    ready(workspace, "cargo xtask demo")?;
    heading("demo");
    let mut command = program(workspace, "demo");
    with_binaries(workspace, &mut command);
    flag(&mut command, "--keep", options.keep);
    flag(&mut command, "--kube", options.source == ObjectSource::Kube);
    for (option, value) in [("--proxy-mode", &options.proxy_mode), ("--socket-lb", &options.socket_lb)] {
        command.args(value.iter().map(|value| format!("{option}={value}")));
    }
    become_it(command)
}

/// Prepares the machine, builds, runs the measurements. Needs root.
pub(crate) fn bench(workspace: &Workspace, options: &BenchOptions) -> Result<ExitCode> {
    ready(workspace, "cargo xtask bench")?;
    let OnlyConnections { only_connects, only_packets } = options.connections;
    if !options.only_api && !only_connects && !only_packets {
        let missing = packages::missing(&OTHER_DNS_SERVERS);
        packages::install(&missing, "measuring DNS beside other servers", "about 30 s")?;
        build::binary(workspace, "shunt-dns", build::RELEASE_PROFILE)?;
    }
    heading("bench");
    let mut command = program(workspace, "bench");
    with_binaries(workspace, &mut command);
    command.arg("--shunt-dns").arg(workspace.binary(build::RELEASE_PROFILE, "shunt-dns"));
    command.arg("--replay").arg(workspace.bpf_objects().join("shunt-replay.o"));
    command.args(["--samples", &options.samples.to_string(), "--changes", &options.changes.to_string()]);
    flag(&mut command, "--only-api", options.only_api);
    flag(&mut command, "--only-dns", options.only_dns);
    flag(&mut command, "--only-connects", only_connects);
    flag(&mut command, "--only-packets", only_packets);
    become_it(command)
}

/// Asks every question of the table; the exit code is 0 only if no answer differs.
pub(crate) fn dns_compare(workspace: &Workspace, options: &CompareOptions) -> Result<ExitCode> {
    heading("build");
    build::binary(workspace, LAB_CRATE, build::LAB_PROFILE)?;
    heading("dns-compare");
    let mut command = program(workspace, "dns-compare");
    command.args(["--server", &options.server.to_string()]).arg("--table").arg(workspace.root().join(TABLE));
    become_it(command)
}

/// Everything up to the point where a lab can be built and has its programs.
fn ready(workspace: &Workspace, what: &str) -> Result<()> {
    gate::can_run_a_lab(what)?;
    heading("set-up");
    let toolchain = setup::for_running(workspace)?;
    heading("build");
    build::bpf_objects(workspace, &toolchain)?;
    build::binaries(workspace, build::LAB_PROFILE)
}

fn program(workspace: &Workspace, subcommand: &str) -> Command {
    let mut command = Command::new(workspace.binary(build::LAB_PROFILE, PROGRAM));
    command.arg(subcommand);
    command
}

fn with_binaries(workspace: &Workspace, command: &mut Command) {
    for (option, name) in [("--shunt", "shunt"), ("--peer", "lab-peer")] {
        command.arg(option).arg(workspace.binary(build::LAB_PROFILE, name));
    }
}

fn flag(command: &mut Command, option: &str, given: bool) {
    if given {
        command.arg(option);
    }
}

/// Replaces this process, so that Ctrl-C and the exit code are the program's own, and no process in between can end
/// early.
fn become_it(mut command: Command) -> Result<ExitCode> {
    let error = command.exec();
    Err(error).with_context(|| format!("starting {}", command.get_program().display()))
}
