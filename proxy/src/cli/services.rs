//! `shunt services`: what the running daemon has programmed.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use shunt_proxy::control::{Reply, Request, Services, ask};

use super::{OutputFormat, Socket, complain, print};

#[derive(Args)]
pub(super) struct ServicesArguments {
    #[command(flatten)]
    socket: Socket,
    /// How to print it
    #[arg(long, short, default_value = "table")]
    output: OutputFormat,
}

pub(super) fn run(arguments: ServicesArguments) -> Result<ExitCode> {
    let services = match ask(&arguments.socket.control_socket, &Request::Services)? {
        Reply::Services(services) => services,
        Reply::Error(reason) => bail!(reason),
        Reply::Dns(_) | Reply::Explain(_) | Reply::Flows(_) | Reply::Told(_) => {
            bail!("the daemon answers another question than was asked")
        }
    };
    for reason in &services.refused {
        complain(format_args!("not served: {reason}"));
    }
    for warning in &services.warnings {
        complain(format_args!("warning: {warning}"));
    }
    if let Some(error) = &services.error {
        complain(format_args!("last sync failed, this is what was programmed before: {error}"));
    }
    for fault in &services.faults {
        complain(format_args!("not in effect now: {fault}"));
    }
    let Services { ports, data_path, refused, error, faults, problems, warnings, table } = services;
    print(&match arguments.output {
        OutputFormat::Table => match data_path {
            Some(serves) => format!("{table}\nserved by {serves}"),
            None => table,
        },
        OutputFormat::Json => serde_json::to_string_pretty(&serde_json::json!({
            "ports": ports, "dataPath": data_path, "refused": refused, "error": error, "faults": faults, "problems": problems,
            "warnings": warnings
        }))?,
    })?;
    Ok(ExitCode::SUCCESS)
}
