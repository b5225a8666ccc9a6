//! `shunt monitor`: what the programs decide, as they decide it.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use shunt_proxy::control::{Monitored, Reply, Request, Told, monitor};
use shunt_proxy::datapath::Decision;
use tokio::signal::unix::{SignalKind, signal};

use super::{OutputFormat, Socket, complain, print};

#[derive(Args)]
#[command(after_help = "The eBPF programs for packets tell each flow that begins, and each first packet that they \
reject or drop, with the reason. They are sampled: on each processor 200 at once and 1,000 a second, and the message \
\"left out\" says how many more there were. Filters choose among those that were told. What sockets of this node dial \
is not among them. The metrics have exact counts of all decisions.")]
pub(super) struct MonitorArguments {
    #[command(flatten)]
    socket: Socket,
    /// Only decisions about this Service
    #[arg(long, value_name = "NAMESPACE/NAME")]
    service: Option<String>,
    /// Only decisions about packets of this client, or of this network
    #[arg(long, value_name = "ADDRESS[/BITS]")]
    client: Option<String>,
    /// How to print each: a line for people, or a line of JSON
    #[arg(long, short, default_value = "table")]
    output: OutputFormat,
}

pub(super) fn run(arguments: MonitorArguments) -> Result<ExitCode> {
    let MonitorArguments { socket, service, client, output } = arguments;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(listen(&socket.control_socket, &Request::Monitor { service, client }, output))
}

async fn listen(path: &Path, request: &Request, output: OutputFormat) -> Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    let mut monitored = monitor(path, request).await?;
    let told = async {
        while print_next(&mut monitored, output).await? {}
        complain(format_args!("the daemon on {} has ended", path.display()));
        Ok(ExitCode::FAILURE)
    };
    tokio::select! {
        ended = told => ended,
        _ = terminate.recv() => Ok(ExitCode::SUCCESS),
        _ = interrupt.recv() => Ok(ExitCode::SUCCESS),
    }
}

/// Waits for the next reply and prints it; false if there is none any more.
async fn print_next(monitored: &mut Monitored, output: OutputFormat) -> Result<bool> {
    let told = match monitored.next().await? {
        None => return Ok(false),
        Some(Reply::Told(told)) => told,
        Some(Reply::Error(reason)) => bail!(reason),
        Some(Reply::Services(_) | Reply::Explain(_) | Reply::Flows(_) | Reply::Dns(_)) => {
            bail!("the daemon answers another question than was asked")
        }
    };
    match (told, output) {
        (Told::Listening, _) => {
            complain(format_args!("listening to the eBPF programs for packets; what they decide is sampled"));
        }
        (Told::Decision(decision), OutputFormat::Table) => print(&line(&decision))?,
        (Told::Decision(decision), OutputFormat::Json) => print(&serde_json::to_string(&decision)?)?,
        (Told::LeftOut(count), OutputFormat::Table) => {
            complain(format_args!("{count} decisions were left out: too many at once"));
        }
        (Told::LeftOut(count), OutputFormat::Json) => print(&serde_json::json!({ "leftOut": count }).to_string())?,
    }
    Ok(true)
}

/// `2026-05-04T03:02:01Z forward new tcp 203.0.113.9:40000 > 192.0.2.1:80 default/web:http > 10.1.0.1:8080 eth0`
fn line(decision: &Decision) -> String {
    let Decision { time, verdict, reason, protocol, client, destination, service, port, endpoint, device } = decision;
    let service = match (service, port.as_deref().filter(|port| !port.is_empty())) {
        (Some(service), Some(port)) => format!("{service}:{port}"),
        (Some(service), None) => service.clone(),
        (None, _) => "-".to_owned(),
    };
    let endpoint = endpoint.map_or_else(|| "-".to_owned(), |endpoint| endpoint.to_string());
    let verdict = verdict.as_str();
    format!("{time} {verdict:<7} {reason:<17} {protocol:<4} {client} > {destination} {service} > {endpoint} {device}")
}
