//! `shunt check`: what this kernel and host offer, before anything is started.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use aya::programs::ProgramType;
use clap::Args;
use shunt_proxy::config::{BPF_ROOT, CONTROL_SOCKET};
use shunt_proxy::control::is_listening;
use shunt_proxy::datapath::ebpf::probe::{Check, State, probe};
use shunt_proxy::host::privileges;

use super::print;

#[derive(Args)]
pub(super) struct Arguments {
    /// The cgroup2 directory whose processes would be served [default: the root of the cgroup2 mount]
    #[arg(long, value_name = "DIR")]
    cgroup_root: Option<PathBuf>,
    /// Where programs and maps would be pinned
    #[arg(long, value_name = "DIR", default_value = BPF_ROOT)]
    bpf_root: PathBuf,
    /// Where a daemon would listen for questions
    #[arg(long, value_name = "PATH", default_value = CONTROL_SOCKET)]
    control_socket: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut checks = vec![root(), capabilities()];
    checks.extend(probe(arguments.cgroup_root.as_deref(), &arguments.bpf_root));
    checks.extend([packets(), daemon(arguments)]);
    let possible = checks.iter().all(|check| check.state != State::Missing);
    print(&table(&checks, possible))?;
    Ok(if possible { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn root() -> Check {
    let (state, detail) = if nix::unistd::geteuid().is_root() {
        (State::Ok, "running as root")
    } else {
        (State::Missing, "not root: shunt run needs it for BPF programs and an address on lo; try sudo shunt check")
    };
    Check { name: "root", state, detail: detail.to_owned() }
}

fn capabilities() -> Check {
    let (state, detail) = match privileges::missing(true) {
        Ok(missing) if missing.is_empty() => (State::Ok, "all that are needed".to_owned()),
        Ok(missing) => {
            let missing: Vec<String> = missing.iter().map(|c| format!("{} ({})", c.name, c.purpose)).collect();
            (State::Missing, missing.join(", "))
        }
        Err(error) => (State::Note, format!("cannot be asked for: {error}")),
    };
    Check { name: "capabilities", state, detail }
}

/// Only told: this version balances connections at sockets.
fn packets() -> Check {
    let supported = aya::sys::is_program_supported(ProgramType::SchedClassifier);
    let detail = match supported {
        Ok(true) => "programs on interfaces are possible (not used by this version)".to_owned(),
        Ok(false) => "programs on interfaces are not possible (not used by this version)".to_owned(),
        Err(error) => format!("programs on interfaces cannot be asked about: {error} (not used by this version)"),
    };
    Check { name: "packet path", state: State::Note, detail }
}

fn daemon(arguments: &Arguments) -> Check {
    let socket = arguments.control_socket.display();
    let detail = if is_listening(&arguments.control_socket) {
        format!("running, listens on {socket}")
    } else {
        format!("none listens on {socket}")
    };
    Check { name: "daemon", state: State::Note, detail }
}

fn table(checks: &[Check], possible: bool) -> String {
    let mut text = String::new();
    for Check { name, state, detail } in checks {
        let word = match state {
            State::Ok => "ok",
            State::Note => "note",
            State::Missing => "MISSING",
        };
        // Writing to a String cannot fail.
        writeln!(text, "{word:<8} {name:<20} {detail}").unwrap_or_default();
    }
    text.push_str(if possible {
        "\nshunt run would balance connections with eBPF programs at sockets.\n"
    } else {
        "\nshunt run cannot work here: see the lines marked MISSING.\n"
    });
    text
}
