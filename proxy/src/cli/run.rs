//! `shunt run`: settings to configuration, the log, and the daemon itself.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use shunt_proxy::config::{Config, LogFormat, Settings};
use tracing_subscriber::EnvFilter;

/// For a sync that hangs in the kernel; everything else has ended before.
const PATIENCE: Duration = Duration::from_millis(200);

/// Unless RUST_LOG says otherwise. The DNS library tells every query at level info.
const LOG: &str = "info,hickory_server=warn,kube_client=error";

#[derive(Args)]
pub(super) struct Arguments {
    /// Read settings from this file, YAML or JSON with the names of the flags; flags win
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn run(arguments: Arguments) -> Result<ExitCode> {
    let file = arguments.config.as_deref().map(Settings::read).transpose()?.unwrap_or_default();
    let config = Config::new(arguments.settings.or(file))?;
    start_log(config.log_format);
    let runtime = tokio::runtime::Runtime::new().context("starting the runtime")?;
    let outcome = runtime.block_on(shunt_proxy::run::run(config));
    runtime.shutdown_timeout(PATIENCE);
    outcome.map(|()| ExitCode::SUCCESS)
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let log = log.with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}
