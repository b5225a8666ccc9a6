//! `shunt-dns`: the DNS of shunt alone, without privileges.
#![forbid(unsafe_code)]

mod flags;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use shunt_dns::http::{self, HttpConfig, HttpState};
use shunt_dns::{PodMode, Server, ServerConfig, corefile, serve};
use shunt_model::source::Source;
use shunt_model::source::kube::{self, KubeOptions};
use shunt_model::source::manifests::{self, ManifestsOptions};
use shunt_model::{Snapshot, with_causes};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing_subscriber::EnvFilter;

use flags::{Flags, Plan};

/// The log tells of an API server that cannot be reached, and not of what is in every odd packet that anybody sends.
const QUIET: &str = "info,kube_client=error,hickory_proto=error";

fn main() -> ExitCode {
    let flags = Flags::parse_from(flags::as_coredns(std::env::args_os()));
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(QUIET));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
    let done = tokio::runtime::Runtime::new().context("starting the runtime").and_then(|rt| rt.block_on(run(flags)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", with_causes(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

async fn run(flags: Flags) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let plan = Plan::new(&flags)?;
    let mut tasks = JoinSet::new();
    // Other names are answered while the cluster is not known yet (rule 11.2).
    let (sender, snapshots) = watch::channel(None);
    if plan.needs_cluster {
        start_source(flags, &plan.server, plan.kubeconfig, sender, &mut tasks).await?;
    }
    let dns_addresses = plan.server.zone.dns_addresses.clone();
    let server = Arc::new(serve(plan.server, snapshots).await.context("starting the DNS server")?);
    tracing::info!(addresses = ?server.local_addresses(), "serving DNS");
    let (stop, stopping) = watch::channel(false);
    let _http = start_http(plan.http, plan.needs_cluster, &server, stopping).await?;
    if let Some((path, file)) = plan.corefile
        && let Some(every) = file.reload
    {
        tasks.spawn(corefile::follow(path, file, Arc::downgrade(&server), dns_addresses, every));
    }
    told_to_stop(&mut terminate, &mut interrupt).await;
    stop.send_replace(true);
    if !plan.lameduck.is_zero() {
        tracing::info!(seconds = plan.lameduck.as_secs_f64(), "not ready any more, and answering a while longer");
        tokio::select! {
            () = tokio::time::sleep(plan.lameduck) => {}
            () = told_to_stop(&mut terminate, &mut interrupt) => {}
        }
    }
    tracing::info!(stats = ?server.stats(), "stopping");
    tasks.shutdown().await;
    if let Some(server) = Arc::into_inner(server) {
        // Whoever is being answered gets the answer.
        tokio::time::sleep(GRACE).await;
        server.shutdown().await;
    }
    Ok(())
}

/// Answers on their way at the end.
const GRACE: Duration = Duration::from_millis(100);

async fn told_to_stop(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

async fn start_http(
    config: HttpConfig,
    needs_cluster: bool,
    server: &Server,
    stopping: watch::Receiver<bool>,
) -> anyhow::Result<JoinSet<()>> {
    let views = needs_cluster.then(|| server.views());
    let state = HttpState { views, stopping, exporter: server.exporter() };
    let (addresses, tasks) = http::serve(config, state).await?;
    if !addresses.is_empty() {
        tracing::info!(?addresses, "serving health, readiness and metrics");
    }
    Ok(tasks)
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
    let options = KubeOptions { kubeconfig, names: true, all_pods, ..KubeOptions::default() };
    let starting = kube::start(options).await.context("give --kubeconfig, or --manifests for a folder")?;
    tasks.spawn(async move {
        // The log tells what it waits for.
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
