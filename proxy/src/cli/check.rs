//! `shunt check`: what this kernel and host offer, before anything is started.

use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use shunt_dns::Upstreams;
use shunt_proxy::config::kube_proxy::KubeProxyConfiguration;
use shunt_proxy::config::{self, BPF_ROOT, CONTROL_SOCKET};
use shunt_proxy::control::is_listening;
use shunt_proxy::datapath::{
    self, Check, CheckState, Chosen, FlowTimeouts, HostOptions, Offer, Options, Part, Requested, Wanted, kube_proxy,
};
use shunt_proxy::host::devices::Devices;
use shunt_proxy::host::local_ports::LocalPorts;
use shunt_proxy::host::{privileges, sysctls};
use shunt_proxy::plan::PodDetection;

use super::print;

/// What an API server allocates unless it is told otherwise.
const NODE_PORTS: RangeInclusive<u16> = 30000..=32767;

#[derive(Args)]
pub(super) struct CheckArguments {
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

pub(super) fn run(arguments: &CheckArguments) -> anyhow::Result<ExitCode> {
    let CheckArguments { cgroup_root, bpf_root, control_socket } = arguments;
    let host = HostOptions { cgroup_root: cgroup_root.clone(), bpf_root: bpf_root.clone() };
    let requested = Requested { mode: None, sockets: Wanted::Auto };
    let treatment = config::packets(&KubeProxyConfiguration::default());
    let options = Options {
        host,
        object: None,
        bind_protection: true,
        packets: treatment,
        devices: Devices::default(),
        flow_timeouts: FlowTimeouts::default(),
        pods: PodDetection::default(),
    };
    let offers = datapath::probe(&options, requested);
    let mut checks = vec![root(), capabilities()];
    let allowed = checks.iter().all(|check| check.state != CheckState::Missing);
    let used = datapath::choose(requested, &offers).ok().filter(|_| allowed);
    // Two parts may need the same.
    for check in offers.into_iter().flat_map(|offer| checks_of(offer, used.as_ref())) {
        if !checks.contains(&check) {
            checks.push(check);
        }
    }
    checks.push(node_ports());
    checks.extend(packets_of_others(used.as_ref()));
    checks.push(predecessor());
    checks.push(upstreams());
    checks.push(daemon(control_socket));
    print(&table(&checks, used.as_ref()))?;
    Ok(if used.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What a part lacks is a note if others serve without it.
fn checks_of(offer: Offer, used: Option<&Chosen>) -> Vec<Check> {
    let spared = used.is_some_and(|chosen| !chosen.has(offer.part));
    let shown = |check: Check| match check.state {
        CheckState::Missing | CheckState::Partial if spared => Check { state: CheckState::Note, ..check },
        CheckState::Ok | CheckState::Note | CheckState::Partial | CheckState::Missing => check,
    };
    offer.checks.into_iter().map(shown).collect()
}

fn root() -> Check {
    let (state, detail) = if nix::unistd::geteuid().is_root() {
        (CheckState::Ok, "running as root")
    } else {
        (
            CheckState::Missing,
            "not root: shunt run needs it for BPF programs and an address on lo; try sudo shunt check",
        )
    };
    Check { name: "root", state, detail: detail.to_owned() }
}

fn capabilities() -> Check {
    let (state, detail) = match privileges::missing(true) {
        Ok(missing) if missing.is_empty() => (CheckState::Ok, "all that are needed".to_owned()),
        Ok(missing) => {
            let missing: Vec<String> = missing.iter().map(|c| format!("{} ({})", c.name, c.purpose)).collect();
            (CheckState::Missing, missing.join(", "))
        }
        Err(error) => (CheckState::Note, format!("cannot be asked for: {error}")),
    };
    Check { name: "capabilities", state, detail }
}

/// Of the usual range: which ones the cluster has is known to a daemon only, and it warns of those.
fn node_ports() -> Check {
    let (state, detail) = match LocalPorts::read() {
        Ok(local) if local.may_give_some_of(NODE_PORTS) => (
            CheckState::Note,
            "the kernel may give ports of 30000-32767 to sockets of this node; if the node ports of your cluster are \
             there, put 30000-32767 into net.ipv4.ip_local_reserved_ports",
        ),
        Ok(_) => (CheckState::Ok, "the kernel gives none of 30000-32767 to other sockets of this node"),
        Err(error) => {
            return Check {
                name: "node ports",
                state: CheckState::Note,
                detail: format!("cannot be asked for: {error}"),
            };
        }
    };
    Check { name: "node ports", state, detail: detail.to_owned() }
}

/// How this host treats packets of others.
fn packets_of_others(used: Option<&Chosen>) -> Vec<Check> {
    let by_programs = used.is_some_and(|used| used.has(Part::Programs));
    let of_kernel = if by_programs { sysctls::faults_of_programs() } else { sysctls::faults() };
    let faults = [of_kernel, kube_proxy::drops_of_iptables()].concat();
    if faults.is_empty() {
        let detail = match by_programs {
            true => "the kernel forwards them, and gives no port of the programs to sockets",
            false => "the kernel forwards them, and rules see those inside bridges",
        };
        let detail = detail.to_owned();
        return vec![Check { name: "packets of others", state: CheckState::Ok, detail }];
    }
    let check = |detail| Check { name: "packets of others", state: CheckState::Note, detail };
    faults.into_iter().map(check).collect()
}

/// A kube-proxy beside the daemon.
fn predecessor() -> Check {
    let (state, detail) = match kube_proxy::running().first() {
        None => (CheckState::Ok, "none is seen on this node".to_owned()),
        Some(process) => (
            CheckState::Note,
            format!(
                "runs (process {process}); its rules stay until it is taken off this node, and serve beside shunt's"
            ),
        ),
    };
    Check { name: "kube-proxy", state, detail }
}

/// Of other names, unless a daemon is told where to ask.
fn upstreams() -> Check {
    let (state, detail) = match Upstreams::usual().problem() {
        None => (CheckState::Ok, "/etc/resolv.conf names servers for names outside of the cluster".to_owned()),
        Some(problem) => (CheckState::Note, format!("{problem}; give --dns-upstream")),
    };
    Check { name: "dns upstreams", state, detail }
}

fn daemon(control_socket: &Path) -> Check {
    let socket = control_socket.display();
    let detail = if is_listening(control_socket) {
        format!("running, listens on {socket}")
    } else {
        format!("none listens on {socket}")
    };
    Check { name: "daemon", state: CheckState::Note, detail }
}

fn table(checks: &[Check], used: Option<&Chosen>) -> String {
    let mut text = String::new();
    for Check { name, state, detail } in checks {
        let word = match state {
            CheckState::Ok => "ok",
            CheckState::Note => "note",
            CheckState::Partial => "partial",
            CheckState::Missing => "MISSING",
        };
        // Writing to a String cannot fail.
        writeln!(text, "{word:<8} {name:<20} {detail}").unwrap_or_default();
    }
    text.push_str(&match used {
        Some(chosen) if chosen.packets.is_none() => format!(
            "\nshunt run would balance connections with {chosen}. Nothing serves packets: clients outside of this node \
             would reach no Service here.\n"
        ),
        Some(chosen) => format!("\nshunt run would balance connections with {chosen}.\n"),
        None => "\nshunt run cannot work here: see the lines marked MISSING.\n".to_owned(),
    });
    text
}
