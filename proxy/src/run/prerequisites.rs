//! Checks what the daemon needs of its host, before it changes anything.

use anyhow::{Context as _, Result, bail, ensure};
use tracing::{info, warn};

use crate::config::{self, Config};
use crate::datapath::{self, Chosen, HostOptions, Options, PacketPath, Wanted};
use crate::host::cgroup;
use crate::host::privileges::{self, Capability};
use crate::source;

const NO_PACKETS: &str = "nothing serves packets: clients outside of this node reach no node port, external IP or load \
                          balancer address here; install nftables 1.0.1 or later, or iptables";

const NOT_OF_NODE: &str = "connections of this node's own processes reach no Service: programs at network devices see \
                           what comes in, and --socket-lb off leaves out the programs at sockets; give --proxy-mode \
                           nftables to serve them by packets";

/// Returns what serves, and what it will need.
pub(super) fn check(config: &Config) -> Result<(Chosen, Options)> {
    let root = nix::unistd::geteuid().is_root();
    ensure!(root, "shunt run must be root: it loads BPF programs and adds an address to lo; try sudo shunt run");
    let missing = privileges::missing(config.dns.is_some()).context("asking for the capabilities of this process")?;
    if let Some(Capability { name, purpose, .. }) = missing.first() {
        bail!("{name} is missing, which {purpose}; give this process all that docs/privileges.md lists");
    }
    source::check(&config.source)?;
    let mut options = Options {
        host: HostOptions { cgroup_root: config.cgroup_root.clone(), bpf_root: config.bpf_root.clone() },
        object: config.bpf_object.clone(),
        bind_protection: config.bind_protection,
        packets: config.packets,
        devices: config.devices.clone(),
        flow_timeouts: config::flow_timeouts(&config.kube_proxy),
        pods: config.pods.clone(),
    };
    // Whoever names it wants programs there: to serve by packets alone instead would hide the mistake.
    if let Some(root) = config.cgroup_root.as_deref().filter(|_| config.mode.sockets != Wanted::Off) {
        cgroup::verify(root)?;
    }
    let chosen = datapath::choose(config.mode, &datapath::probe(&options, config.mode))?;
    options.packets.loopback_node_ports &= !chosen.sockets;
    for lacks in &chosen.without {
        info!(lacks, "this part of the data path does not serve; shunt check says more");
    }
    if chosen.packets.is_none() {
        warn!("{NO_PACKETS}");
    }
    if chosen.packets == Some(PacketPath::Programs) && !chosen.sockets {
        warn!("{NOT_OF_NODE}");
    }
    Ok((chosen, options))
}

/// A failure costs only this protection (CF-13). A kubelet or a service manager has usually set one already.
pub(super) fn adjust_oom_score(score: i32) {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        info!(score, %error, "oom-score-adj stays as it was: lowering it takes CAP_SYS_RESOURCE");
    }
}
