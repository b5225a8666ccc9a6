//! `shunt plan`: what would be programmed for a node, from manifests or from a cluster as it is now.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::Args;
use ipnet::IpNet;
use shunt_model::Snapshot;
use shunt_model::source::manifests::{self, ManifestsOptions};
use shunt_proxy::config::{self, Address, Annotation, CommaSeparated, DNS_PORT};
use shunt_proxy::plan::{Detect, Plan, PlanOptions, Planner, render_json, render_table};
use shunt_proxy::source::{self, Look};

use super::{OutputFormat, complain, print};

#[derive(Args)]
pub(super) struct PlanArguments {
    #[command(flatten)]
    origin: ObjectSource,
    #[command(flatten)]
    offline: Offline,
    /// How to print it
    #[arg(long, short, default_value = "table")]
    output: OutputFormat,
}

/// Where the objects of a plan come from.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct ObjectSource {
    /// Folder of Kubernetes manifests
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// Credentials of a cluster; its API is read once
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

/// Where the objects of a plan come from, once it is decided.
pub(super) enum Objects {
    Manifests(PathBuf),
    Cluster(PathBuf),
}

impl Objects {
    /// `None` if neither is given.
    pub(super) fn given(manifests: Option<PathBuf>, kubeconfig: Option<PathBuf>) -> Option<Self> {
        manifests.map(Self::Manifests).or_else(|| kubeconfig.map(Self::Cluster))
    }
}

/// What a plan depends on besides the objects.
#[derive(Args)]
pub(super) struct Offline {
    /// The node to plan for [default: the host name]
    #[arg(long, value_name = "NAME")]
    hostname_override: Option<String>,
    /// Ranges from which Services without a clusterIP get one [default: 10.96.0.0/12]
    #[arg(long, value_name = "CIDR,...")]
    service_cidr: Option<CommaSeparated<IpNet>>,
    /// Service addresses that pods use for DNS [default: 10.96.0.10]
    #[arg(long, value_name = "IP,...")]
    cluster_dns: Option<CommaSeparated<Address>>,
    /// Where the bundled DNS would listen; without it, its service is left out
    #[arg(long, value_name = "IP[:PORT],...")]
    dns_bind_address: Option<CommaSeparated<Address>>,
}

/// A plan made without a daemon.
pub(super) struct Planned {
    pub(super) snapshot: Snapshot,
    pub(super) plan: Plan,
    pub(super) node: String,
    /// What makes it another plan than the operator may expect.
    pub(super) warnings: Vec<String>,
}

impl Offline {
    /// Plans, and writes to stderr what is ignored and contested.
    pub(super) fn plan(self, from: Objects) -> Result<Planned> {
        let cluster_dns = config::cluster_dns(self.cluster_dns.as_ref())?;
        let node = config::node_name(self.hostname_override.as_deref())?;
        let opt_out = config::default_opt_out();
        let Look { snapshot, problems, unknown_node } = match from {
            Objects::Manifests(dir) => {
                let (snapshot, problems) = manifests::read(&ManifestsOptions {
                    dir,
                    service_cidrs: config::service_cidrs(self.service_cidr),
                    reserved: cluster_dns.clone(),
                    pod_annotations: opt_out.iter().map(|annotation| annotation.key.clone()).collect(),
                })?;
                // A folder need not have Nodes.
                Look { snapshot, problems, unknown_node: None }
            }
            Objects::Cluster(kubeconfig) => source::look(&kubeconfig, &node, &opt_out)?,
        };
        let listen = self.dns_bind_address.map_or_else(Vec::new, |CommaSeparated(listen)| listen);
        let options = PlanOptions {
            node: Arc::from(node.as_str()),
            detector: Detect::Both,
            cluster_dns,
            dns_backends: listen.into_iter().map(|address| address.or_port(DNS_PORT)).collect(),
            opt_out: opt_out.iter().map(Annotation::to_plan).collect(),
            ..PlanOptions::default()
        };
        let mut planner = Planner::new(options);
        let plan = planner.update(Arc::new(snapshot.clone())).clone();
        for problem in problems {
            complain(format_args!("ignored: {problem}"));
        }
        for conflict in planner.conflicts() {
            complain(format_args!("conflict: {conflict}"));
        }
        for service in planner.replaced() {
            complain(format_args!("note: the bundled DNS answers in place of the endpoints of {service}"));
        }
        Ok(Planned { snapshot, plan, node, warnings: unknown_node.into_iter().collect() })
    }
}

pub(super) fn run(arguments: PlanArguments) -> Result<ExitCode> {
    let ObjectSource { manifests, kubeconfig } = arguments.origin;
    let from = Objects::given(manifests, kubeconfig).context("give --manifests or --kubeconfig")?;
    let Planned { plan, warnings, snapshot: _, node: _ } = arguments.offline.plan(from)?;
    for warning in warnings {
        complain(format_args!("warning: {warning}"));
    }
    print(&match arguments.output {
        OutputFormat::Table => render_table(&plan),
        OutputFormat::Json => render_json(&plan)?,
    })?;
    Ok(ExitCode::SUCCESS)
}
