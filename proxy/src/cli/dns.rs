//! `shunt dns`: what the bundled DNS would answer, from the running daemon or from manifests alone.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use ipnet::IpNet;
use shunt_dns::{Answerer, Corefile, ServerConfig};
use shunt_model::source::manifests::{self, ManifestsOptions};
use shunt_proxy::config::{self, Address, CommaSeparated, DnsConfig, PodNames, Settings};
use shunt_proxy::control::{DnsReply, Reply, Request, ask};
use shunt_proxy::dns::service::zone_config;

use super::{OutputFormat, Socket, complain, print};

#[derive(Args)]
pub(super) struct DnsArguments {
    /// The name, such as web.default.svc.cluster.local; without a final dot it is completed as a pod would do
    name: String,
    /// The type
    #[arg(default_value = "A", value_name = "TYPE")]
    rtype: String,
    #[command(flatten)]
    socket: Socket,
    /// Answer from this folder instead of asking the daemon
    #[arg(long, value_name = "DIR", conflicts_with = "control_socket")]
    manifests: Option<PathBuf>,
    /// With --manifests: a CoreDNS configuration to answer by
    #[arg(long, value_name = "FILE", requires = "manifests", conflicts_with_all = ["cluster_domain", "dns_pods", "dns_ttl"])]
    corefile: Option<PathBuf>,
    /// With --manifests: domain of cluster names [default: cluster.local]
    #[arg(long, value_name = "DOMAIN", requires = "manifests")]
    cluster_domain: Option<String>,
    /// With --manifests: ranges from which Services without a clusterIP get one [default: 10.96.0.0/12]
    #[arg(long, value_name = "CIDR,...", requires = "manifests")]
    service_cidr: Option<CommaSeparated<IpNet>>,
    /// With --manifests: service addresses of DNS [default: 10.96.0.10]
    #[arg(long, value_name = "IP,...", requires = "manifests")]
    cluster_dns: Option<CommaSeparated<Address>>,
    /// With --manifests: answers for names of pods [default: insecure]
    #[arg(long, requires = "manifests")]
    dns_pods: Option<PodNames>,
    /// With --manifests: TTL in seconds [default: 5]
    #[arg(long, value_name = "SECONDS", requires = "manifests")]
    dns_ttl: Option<u32>,
    /// How to print it
    #[arg(long, short, default_value = "table")]
    output: OutputFormat,
}

pub(super) fn run(mut arguments: DnsArguments) -> Result<ExitCode> {
    let reply = match arguments.manifests.take() {
        Some(folder) => offline(&arguments, &folder)?,
        None => from_daemon(&arguments)?,
    };
    print(&match arguments.output {
        OutputFormat::Table => reply.table(&arguments.name),
        OutputFormat::Json => serde_json::to_string_pretty(&reply)?,
    })?;
    Ok(ExitCode::SUCCESS)
}

fn from_daemon(arguments: &DnsArguments) -> Result<DnsReply> {
    let request = Request::Dns { name: arguments.name.clone(), rtype: arguments.rtype.clone() };
    match ask(&arguments.socket.control_socket, &request)? {
        Reply::Dns(reply) => Ok(reply),
        Reply::Error(reason) => bail!(reason),
        Reply::Services(_) | Reply::Explain(_) | Reply::Flows(_) | Reply::Told(_) => {
            bail!("the daemon answers another question than was asked")
        }
    }
}

fn offline(arguments: &DnsArguments, folder: &Path) -> Result<DnsReply> {
    let cluster_dns = config::cluster_dns(arguments.cluster_dns.as_ref())?;
    let (snapshot, problems) = manifests::read(&ManifestsOptions {
        dir: folder.to_path_buf(),
        service_cidrs: config::service_cidrs(arguments.service_cidr.clone()),
        reserved: cluster_dns.clone(),
        pod_annotations: Vec::new(),
    })?;
    for problem in problems {
        complain(format_args!("ignored: {problem}"));
    }
    let snapshot = Some(Arc::new(snapshot));
    let ServerConfig { zone, blocks, .. } = server_config(arguments, cluster_dns)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let explained = runtime.block_on(async {
        let explainer = Answerer::new(zone, snapshot, blocks)?;
        let reply = DnsReply::of(&explainer.explainer(), &arguments.name, &arguments.rtype).await;
        reply.map_err(anyhow::Error::msg)
    });
    explained?.context("the manifests are no view of a cluster; this is a bug of shunt")
}

/// What a daemon with these settings would answer from; it would listen nowhere.
fn server_config(arguments: &DnsArguments, cluster_dns: Vec<IpAddr>) -> Result<ServerConfig> {
    if let Some(path) = &arguments.corefile {
        let file = Corefile::read(path)?;
        let zone = file.zone(cluster_dns);
        return Ok(file.server_config(Vec::new(), zone));
    }
    let settings = Settings {
        cluster_domain: arguments.cluster_domain.clone(),
        dns_pods: arguments.dns_pods,
        dns_ttl: arguments.dns_ttl,
        ..Settings::default()
    };
    let config = DnsConfig::new(&settings)?;
    let zone = zone_config(&config, &cluster_dns)?;
    Ok(ServerConfig::usual(Vec::new(), zone, config.forward))
}
