//! The command line: the commands of `shunt` and their exit codes.

mod check;
mod cleanup;
mod dns;
mod explain;
mod flows;
mod monitor;
mod plan;
mod run;
mod services;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use shunt_model::with_causes;
use shunt_proxy::config::ConfigError;

/// Service proxy and cluster DNS of a Kubernetes node, in eBPF
#[derive(Parser)]
#[command(name = "shunt", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the node daemon in the foreground; SIGTERM stops it and leaves the data path in place
    Run(Box<run::RunArguments>),
    /// Print what would be programmed for a node; needs no root
    Plan(plan::PlanArguments),
    /// Print the frontends with their endpoints, as the running daemon has programmed them
    Services(services::ServicesArguments),
    /// Print what becomes of a new flow, and the rule that decided each step
    Explain(explain::ExplainArguments),
    /// Print the flows that the packet programs remember
    Flows(flows::FlowsArguments),
    /// Print what the bundled DNS would answer, and why
    Dns(dns::DnsArguments),
    /// Print what the eBPF programs for packets decide, as they decide it: flows that begin, rejects, drops; sampled
    Monitor(monitor::MonitorArguments),
    /// Print what this kernel and host offer, what would be used, and what is missing and why
    Check(check::CheckArguments),
    /// Remove everything shunt has installed: programs, maps and the DNS address
    Cleanup(cleanup::CleanupArguments),
}

/// How results are printed.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum OutputFormat {
    /// For people
    Table,
    /// For programs
    Json,
}

/// Where the daemon listens for questions.
#[derive(clap::Args)]
struct Socket {
    /// Where the daemon listens
    #[arg(long, value_name = "PATH", default_value = shunt_proxy::config::CONTROL_SOCKET)]
    control_socket: PathBuf,
}

/// Does what the command line says, as a daemon with the descriptors that the service manager has `passed`. 0 is
/// success, 1 failure, 2 a wrong command line or configuration.
pub(crate) fn main(passed: Vec<OwnedFd>) -> ExitCode {
    // clap ends the process itself for --help and for usage errors, with 0 and 2.
    let outcome = match Cli::parse_from(command_line(std::env::args_os())).command {
        Command::Run(arguments) => run::run(*arguments, passed),
        Command::Plan(arguments) => plan::run(arguments),
        Command::Services(arguments) => services::run(arguments),
        Command::Explain(arguments) => explain::run(arguments),
        Command::Flows(arguments) => flows::run(arguments),
        Command::Dns(arguments) => dns::run(arguments),
        Command::Monitor(arguments) => monitor::run(arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Cleanup(arguments) => cleanup::run(&arguments),
    };
    match outcome {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("{}", with_causes(error.as_ref())));
            if error.is::<ConfigError>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// The command line as we read it: called as `kube-proxy`, or with flags right away, it is `shunt run`, so that the
/// image can stand in for kube-proxy's.
fn command_line(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut line: Vec<OsString> = arguments.collect();
    let called = line.first().map(PathBuf::from).unwrap_or_default();
    let first = line.get(1).map(|first| first.to_string_lossy().into_owned()).unwrap_or_default();
    let is_ours = ["--help", "-h", "--version", "-V"].contains(&first.as_str());
    let as_kube_proxy = called.file_name().is_some_and(|name| name == "kube-proxy");
    if !is_ours && (first.starts_with('-') || (as_kube_proxy && first.is_empty())) {
        line.insert(1, "run".into());
    }
    line
}

/// Writes a message to stderr.
#[expect(clippy::print_stderr, reason = "messages of the command line, before or without a log")]
fn complain(message: std::fmt::Arguments<'_>) {
    eprintln!("shunt: {message}");
}

/// Writes a result to stdout.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// Whether the reader of the pipe closed it.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = |error: &(dyn std::error::Error + 'static)| error.downcast_ref::<io::Error>().map(io::Error::kind);
    error.chain().any(|cause| kind(cause) == Some(io::ErrorKind::BrokenPipe))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: &str) {
        let words = command_line(line.split_whitespace().map(OsString::from));
        let words: Vec<String> = words.into_iter().map(|word| word.into_string().unwrap()).collect();
        assert_eq!(words.join(" "), expected);
    }

    #[test]
    fn a_command_line_of_kube_proxy_runs_the_daemon() {
        check(
            "/usr/local/bin/kube-proxy --config=/x --hostname-override=n",
            "/usr/local/bin/kube-proxy run --config=/x --hostname-override=n",
        );
        check("kube-proxy", "kube-proxy run");
        check("shunt --config=/x -v=2", "shunt run --config=/x -v=2");
        check("shunt -v=2", "shunt run -v=2");
        check("shunt plan --manifests m", "shunt plan --manifests m");
        check("shunt --help", "shunt --help");
        check("kube-proxy --version", "kube-proxy --version");
        check("shunt", "shunt");
    }
}
