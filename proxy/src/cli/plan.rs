//! `shunt plan`: what would be programmed for a node, from manifests alone.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use clap::Args;
use ipnet::IpNet;
use shunt_model::source::manifests::{self, ManifestsOptions};
use shunt_proxy::config::{self, Address, DNS_PORT, List};
use shunt_proxy::plan::{Detect, PlanOptions, plan, render_json, render_table};

use super::{Output, complain, print};

#[derive(Args)]
pub(super) struct Arguments {
    /// Folder of Kubernetes manifests
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// The node to plan for [default: the host name]
    #[arg(long, value_name = "NAME")]
    hostname_override: Option<String>,
    /// Ranges from which Services without a clusterIP get one [default: 10.96.0.0/12]
    #[arg(long, value_name = "CIDR,...")]
    service_cidr: Option<List<IpNet>>,
    /// Service addresses that pods use for DNS [default: 10.96.0.10]
    #[arg(long, value_name = "IP,...")]
    cluster_dns: Option<List<Address>>,
    /// Where the bundled DNS would listen; without it, its service is left out
    #[arg(long, value_name = "IP[:PORT],...")]
    dns_bind_address: Option<List<Address>>,
    /// How to print it
    #[arg(long, short, default_value = "table")]
    output: Output,
}

pub(super) fn run(arguments: Arguments) -> Result<ExitCode> {
    let cluster_dns = config::cluster_dns(arguments.cluster_dns.as_ref())?;
    let node = config::node_name(arguments.hostname_override.as_deref())?;
    let (snapshot, problems) = manifests::read(&ManifestsOptions {
        dir: arguments.manifests,
        service_cidrs: config::service_cidrs(arguments.service_cidr),
        reserved: cluster_dns.clone(),
        pod_annotations: Vec::new(),
    })?;
    let listen = arguments.dns_bind_address.map_or_else(Vec::new, |List(listen)| listen);
    let dns_backends = listen.into_iter().map(|address| address.or_port(DNS_PORT)).collect();
    let options = PlanOptions {
        node: Arc::from(node),
        detector: Detect::Both,
        cluster_dns,
        dns_backends,
        ..PlanOptions::default()
    };
    let (plan, conflicts) = plan(&snapshot, &options);
    for problem in problems {
        complain(format_args!("ignored: {problem}"));
    }
    for conflict in conflicts {
        complain(format_args!("conflict: {conflict}"));
    }
    print(&match arguments.output {
        Output::Table => render_table(&plan),
        Output::Json => render_json(&plan)?,
    })?;
    Ok(ExitCode::SUCCESS)
}
