//! `shunt-dns`: the DNS of shunt alone, without privileges.
#![forbid(unsafe_code)]

use std::io::IsTerminal as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use ipnet::IpNet;
use shunt_dns::{ForwardConfig, Name, PodMode, ServerConfig, StubDomain, Upstreams, ZoneConfig, serve};
use shunt_model::source::Source;
use shunt_model::source::kube::{self, KubeOptions};
use shunt_model::source::manifests::{self, ManifestsOptions};
use shunt_model::{Snapshot, with_causes};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

/// The log tells of an API server that cannot be reached.
const QUIET: &str = "info,kube_client=error";

/// Answers the names of a cluster, and forwards all others. The cluster is the one of --kubeconfig, or the one in which
/// this runs as a pod, or a folder of manifests.
#[derive(Parser)]
#[command(version)]
struct Flags {
    /// Folder of Kubernetes manifests, followed as it changes
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig")]
    manifests: Option<PathBuf>,
    /// Credentials of the Kubernetes API [default: the pod's service account, in a pod]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Where Services without a clusterIP get theirs from
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    service_cidr: Vec<IpNet>,
    /// Addresses to listen on, over UDP and TCP
    #[arg(long, value_name = "ADDR:PORT", value_delimiter = ',', default_value = "127.0.0.1:5353")]
    listen: Vec<SocketAddr>,
    /// The domain of the cluster
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
    /// Who is asked for other names: addresses, tls://IP%NAME, or a file like /etc/resolv.conf; empty refuses them
    #[arg(long, value_name = "ADDR,…|FILE", default_value = "/etc/resolv.conf")]
    upstream: Upstreams,
    /// A domain with upstreams of its own; may be repeated
    #[arg(long, value_name = "DOMAIN=ADDR,…")]
    stub_domain: Vec<StubDomain>,
    /// PEM file with the authorities of upstreams that are asked over TLS [default: the system's]
    #[arg(long, value_name = "FILE")]
    upstream_ca: Option<PathBuf>,
    /// TTL of answers in seconds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=3600))]
    ttl: u32,
    /// Which names of pods are answered
    #[arg(long, value_enum, default_value_t = Pods::Insecure)]
    pods: Pods,
}

#[derive(Clone, Copy, ValueEnum)]
enum Pods {
    /// none
    Disabled,
    /// any address in an existing namespace
    Insecure,
    /// addresses of existing pods
    Verified,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
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
    let config = server_config(&flags)?;
    // Other names are answered while the cluster is not known yet (rule 11.2).
    let (sender, snapshots) = watch::channel(None);
    let relay = match flags.manifests {
        Some(dir) => {
            let options = ManifestsOptions { dir, service_cidrs: flags.service_cidr, ..ManifestsOptions::default() };
            let source = manifests::start(options).await.context("reading the manifests")?;
            sender.send_replace(Some(source.snapshots.borrow().clone()));
            tokio::spawn(relay(source, sender))
        }
        None => {
            let all_pods = matches!(flags.pods, Pods::Verified);
            let options = KubeOptions { kubeconfig: flags.kubeconfig, names: true, all_pods, ..KubeOptions::default() };
            let starting = kube::start(options).await.context("give --kubeconfig, or --manifests for a folder")?;
            tokio::spawn(async move {
                // The log tells what it waits for.
                if let Some(source) = starting.complete().await {
                    sender.send_replace(Some(source.snapshots.borrow().clone()));
                    relay(source, sender).await;
                }
            })
        }
    };
    let server = serve(config, snapshots).await.context("starting the DNS server")?;
    tracing::info!(addresses = ?server.local_addresses(), "serving DNS");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!(stats = ?server.stats(), "stopping");
    relay.abort();
    server.shutdown().await;
    Ok(())
}

fn server_config(flags: &Flags) -> anyhow::Result<ServerConfig> {
    let mut cluster_domain = Name::from_ascii(&flags.cluster_domain)
        .with_context(|| format!("--cluster-domain {:?} is not a domain name", flags.cluster_domain))?;
    cluster_domain.set_fqdn(true);
    anyhow::ensure!(!cluster_domain.is_root(), "--cluster-domain must not be the root");
    let pods = match flags.pods {
        Pods::Disabled => PodMode::Disabled,
        Pods::Insecure => PodMode::Insecure,
        Pods::Verified => PodMode::Verified,
    };
    let usable = |ip: &IpAddr| !ip.is_unspecified() && !ip.is_loopback();
    let dns_addresses = flags.listen.iter().map(SocketAddr::ip).filter(usable).collect();
    let zone = ZoneConfig { cluster_domain, ttl: flags.ttl, pods, dns_addresses };
    let forward = ForwardConfig::to(flags.upstream.clone())
        .with_stub_domains(flags.stub_domain.clone())
        .with_authorities(flags.upstream_ca.as_deref());
    Ok(ServerConfig::usual(flags.listen.clone(), zone, forward))
}

/// Follows the views of a source, which ends with this.
async fn relay(source: Source, to: watch::Sender<Option<Arc<Snapshot>>>) {
    let mut from = source.snapshots.clone();
    while from.changed().await.is_ok() {
        to.send_replace(Some(from.borrow_and_update().clone()));
    }
}
