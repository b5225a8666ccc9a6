//! `shunt explain`: what becomes of a new flow, and the rule behind each step.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use shunt_proxy::control::{Reply, Request, ask};
use shunt_proxy::explain::{Explanation, explain, render};

use super::plan::{Objects, Offline};
use super::{OutputFormat, Socket, complain, print};

#[derive(Args)]
pub(super) struct ExplainArguments {
    /// Who sends: an IP, a pod (NAMESPACE/NAME), node, or outside
    #[arg(value_name = "SRC")]
    source: String,
    /// Where to: IP:PORT/PROTOCOL, IP:PORT (TCP), IP, or a Service: NAMESPACE/NAME, NAMESPACE/NAME:PORT, NAME.NAMESPACE
    #[arg(value_name = "DST")]
    destination: String,
    /// Plan from this folder of manifests instead of asking the daemon; needs no root
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// Plan from the API of this cluster instead; needs no root either
    #[arg(long, value_name = "FILE", conflicts_with = "manifests")]
    kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    offline: Offline,
    #[command(flatten)]
    socket: Socket,
    /// How to print it
    #[arg(long, short, default_value = "table")]
    output: OutputFormat,
}

pub(super) fn run(arguments: ExplainArguments) -> Result<ExitCode> {
    let ExplainArguments { source, destination, manifests, kubeconfig, offline, socket, output } = arguments;
    let explanation = match Objects::given(manifests, kubeconfig) {
        Some(from) => {
            let planned = offline.plan(from)?;
            let explained = explain(&planned.snapshot, &planned.plan, &planned.node, &source, &destination)?;
            Explanation { warnings: planned.warnings, ..explained }
        }
        None => asked(&socket, source, destination)?,
    };
    for warning in &explanation.warnings {
        complain(format_args!("warning: {warning}"));
    }
    print(&match output {
        OutputFormat::Table => render(&explanation),
        OutputFormat::Json => serde_json::to_string_pretty(&explanation)?,
    })?;
    Ok(ExitCode::SUCCESS)
}

fn asked(socket: &Socket, source: String, destination: String) -> Result<Explanation> {
    match ask(&socket.control_socket, &Request::Explain { source, destination })? {
        Reply::Explain(explanation) => Ok(explanation),
        Reply::Error(reason) => bail!(reason),
        Reply::Services(_) | Reply::Dns(_) | Reply::Flows(_) | Reply::Told(_) => {
            bail!("the daemon answers another question than was asked")
        }
    }
}
