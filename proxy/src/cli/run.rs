//! `shunt run`: settings to configuration, the log, and the daemon itself.

use std::io::IsTerminal as _;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{ArgAction, Args};
use shunt_proxy::config::{self, Config, ConfigFile, Given, KubeProxyFlags, LogFormat, Settings};
use tracing_subscriber::EnvFilter;

/// How long the end waits for a sync that hangs in the kernel; all other parts have ended before.
const PATIENCE: Duration = Duration::from_millis(200);

/// The default of RUST_LOG. The source itself logs an API server that is away, once and in full. hickory logs the
/// content of odd packets, which every client may send.
const LOG: &str = "info,kube_client=off,hickory_proto=error";
/// With `-v 4` and above.
const DETAILED_LOG: &str = "shunt=debug,shunt_proxy=debug,shunt_model=debug,shunt_dns=debug,hickory_proto=error,info";

#[derive(Args)]
pub(super) struct RunArguments {
    /// Read settings from this file: ours by the names of the flags, kube-proxy's KubeProxyConfiguration, or both as
    /// two documents
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write the default configuration to this file and end
    #[arg(long, value_name = "FILE")]
    write_config_to: Option<PathBuf>,
    /// Remove everything shunt has installed and end, as shunt cleanup does
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide = true)]
    cleanup: bool,
    /// End at once: this data path needs no preparation that takes more rights than running it
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide = true)]
    init_only: bool,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    kube_proxy: KubeProxyFlags,
}

pub(super) fn run(arguments: RunArguments, passed: Vec<OwnedFd>) -> Result<ExitCode> {
    let RunArguments { config: path, write_config_to, cleanup, init_only, settings: flags, kube_proxy } = arguments;
    if let Some(path) = write_config_to {
        let text = config::defaults_as_text().context("writing the default configuration")?;
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let file = path.as_deref().map(ConfigFile::read).transpose()?.unwrap_or_default();
    if cleanup {
        let root = flags.bpf_root.or(file.settings.bpf_root).unwrap_or_else(|| config::BPF_ROOT.into());
        let socket = flags.control_socket.or(file.settings.control_socket);
        let socket = socket.unwrap_or_else(|| config::CONTROL_SOCKET.into());
        return super::cleanup::remove(&root, &socket, super::cleanup::Running::Refuse);
    }
    let in_cluster = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    let config = Config::new(Given { flags, kube_proxy, file, in_cluster })?;
    start_log(config.log_format, config.verbosity);
    for note in &config.notes {
        tracing::warn!("{note}");
    }
    if init_only {
        super::print("nothing to prepare: sockets are balanced without sysctls or kernel modules")?;
        return Ok(ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Runtime::new().context("starting the runtime")?;
    let outcome = runtime.block_on(shunt_proxy::run::run(config, path, passed));
    runtime.shutdown_timeout(PATIENCE);
    outcome.map(|()| ExitCode::SUCCESS)
}

fn start_log(format: LogFormat, verbosity: u32) {
    // kube-proxy's scale: at 4 and above it logs every change.
    let level = if verbosity >= 4 { DETAILED_LOG } else { LOG };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let log = log.with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}
