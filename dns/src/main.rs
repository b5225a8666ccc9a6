//! `shunt-dns`: the DNS of shunt alone, without privileges.
#![forbid(unsafe_code)]

mod flags;

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use shunt_dns::corefile::Follower;
use shunt_dns::http::{self, HttpConfig, HttpState};
use shunt_dns::{PodMode, Server, ServerConfig, serve};
use shunt_model::source::Source;
use shunt_model::source::kube::{self, KubeOptions};
use shunt_model::source::manifests::{self, ManifestsOptions};
use shunt_model::{Snapshot, with_causes};
use shunt_serving::limits;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing_subscriber::EnvFilter;

use flags::{Flags, Plan};

/// The source itself reports an API server that cannot be reached, once and in full; hickory would log every malformed
/// packet.
const QUIET: &str = "info,kube_client=off,hickory_proto=error";

fn main() -> ExitCode {
    let flags = Flags::parse_from(flags::as_coredns(std::env::args_os()));
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(QUIET));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
    limits::raise_open_files();
    let done = tokio::runtime::Runtime::new().context("starting the runtime").and_then(|rt| rt.block_on(run(flags)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", with_causes(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Queries in progress at the end.
const DRAIN: Duration = Duration::from_secs(5);

async fn run(flags: Flags) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let read_again = signal(SignalKind::user_defined1()).context("listening for SIGUSR1")?;
    let quiet = flags.quiet;
    let plan = Plan::new(&flags)?;
    let mut tasks = JoinSet::new();
    // Other names are answered while the cluster is not known yet (DNS-11.2).
    let (sender, snapshots) = watch::channel(None);
    if plan.needs_cluster {
        start_source(flags, &plan.server, plan.kubeconfig, sender, &mut tasks).await?;
    }
    let dns_addresses = plan.server.zone.dns_addresses.clone();
    let server = Arc::new(serve(plan.server, snapshots).await.context("starting the DNS server")?);
    if !quiet {
        tracing::info!(addresses = ?server.local_addresses(), "serving DNS");
    }
    let (stop, stopping) = watch::channel(false);
    let (addresses, _http) = start_http(plan.http, plan.needs_cluster, &server, stopping).await?;
    if !quiet && !addresses.is_empty() {
        tracing::info!(?addresses, "serving health, readiness and metrics");
    }
    let mut lameduck = None;
    if let Some((path, file)) = plan.corefile {
        let follower = Follower::new(path, file, Arc::downgrade(&server), dns_addresses);
        lameduck = Some(follower.lameduck());
        tasks.spawn(follow(follower, read_again));
    } else {
        tasks.spawn(nothing_to_read(read_again));
    }
    let outcome = tokio::select! {
        () = signals.stop() => Ok(()),
        ended = ended(&mut tasks) => Err(ended),
    };
    stop.send_replace(true);
    let lameduck = lameduck.map(|lameduck| *lameduck.borrow()).unwrap_or_default();
    if !lameduck.is_zero() {
        tracing::info!(seconds = lameduck.as_secs_f64(), "no longer ready, still answering until lameduck ends");
        tokio::select! {
            () = tokio::time::sleep(lameduck) => {}
            () = signals.stop() => {}
        }
    }
    tasks.shutdown().await;
    tracing::info!(stats = ?server.stats(), "stopping");
    if let Some(server) = Arc::into_inner(server) {
        tokio::select! {
            () = server.drain(DRAIN) => {}
            () = signals.stop() => {}
        }
    }
    outcome
}

/// Waits for a task that ends by itself, which is a failure: what it kept up to date would be old for ever.
async fn ended(tasks: &mut JoinSet<()>) -> anyhow::Error {
    match tasks.join_next().await {
        Some(Ok(())) => anyhow::anyhow!("a part of the server ended by itself"),
        Some(Err(error)) => anyhow::Error::new(error).context("a part of the server died"),
        None => std::future::pending().await,
    }
}

/// What ends this.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Ignored; without a listener the signal would end the program.
    _hangup: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
        let _hangup = signal(SignalKind::hangup()).context("listening for SIGHUP")?;
        Ok(Self { terminate, interrupt, _hangup })
    }

    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Follows the Corefile at the interval that it sets, and reads it at once on SIGUSR1, as CoreDNS does (DNS-11.10).
async fn follow(mut follower: Follower, mut read_again: Signal) {
    loop {
        tokio::select! {
            () = follower.follow() => drop(read_again.recv().await),
            _ = read_again.recv() => {}
        }
        follower.read_again();
    }
}

async fn nothing_to_read(mut read_again: Signal) {
    while read_again.recv().await.is_some() {
        tracing::info!("SIGUSR1: there is no Corefile to be read again; flags take effect with a restart");
    }
}

async fn start_http(
    config: HttpConfig,
    needs_cluster: bool,
    server: &Server,
    stopping: watch::Receiver<bool>,
) -> anyhow::Result<(Vec<SocketAddr>, JoinSet<()>)> {
    let views = needs_cluster.then(|| server.views());
    let state = HttpState { views, stopping, exporter: server.exporter() };
    Ok(http::serve(config, state).await?)
}

/// Follows the cluster, from its API or a folder.
async fn start_source(
    flags: Flags,
    server: &ServerConfig,
    kubeconfig: Option<std::path::PathBuf>,
    sender: watch::Sender<Option<Arc<Snapshot>>>,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    if let Some(dir) = flags.manifests {
        let options = ManifestsOptions { dir, service_cidrs: flags.service_cidr, ..ManifestsOptions::default() };
        let source = manifests::start(options).await.context("reading the manifests")?;
        sender.send_replace(Some(source.snapshots.borrow().clone()));
        tasks.spawn(relay(source, sender));
        return Ok(());
    }
    let all_pods = server.zone.pods == PodMode::Verified;
    let until_known = "its names get SERVFAIL, other names are answered"; // DNS-11.2, DNS-11.3
    let options = KubeOptions { kubeconfig, names: true, all_pods, until_known, ..KubeOptions::default() };
    let starting = kube::start(options)
        .await
        .context("following the cluster (of --kubeconfig, or with --manifests of a folder)")?;
    tasks.spawn(async move {
        // The source logs what it waits for.
        if let Some(source) = starting.complete().await {
            sender.send_replace(Some(source.snapshots.borrow().clone()));
            relay(source, sender).await;
        }
    });
    Ok(())
}

/// Follows the views of a source, which ends with this.
async fn relay(source: Source, to: watch::Sender<Option<Arc<Snapshot>>>) {
    let mut from = source.snapshots.clone();
    while from.changed().await.is_ok() {
        to.send_replace(Some(from.borrow_and_update().clone()));
    }
}
