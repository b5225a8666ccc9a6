//! The one door to the kernel: probes the data paths, opens what serves, and removes what one has left.
//!
//! Nothing outside of this module names a data path's own types. What serves is made of [`Part`]s: programs at sockets,
//! on or off, over one path for packets. Every part takes the whole plan and writes the difference; a part is one arm
//! of each `match` on [`Part`] below.

mod caller;
mod command;
mod composed;
mod ebpf;
mod handover;
mod iptables;
pub mod kube_proxy;
mod lock;
mod looking;
mod nftables;
mod offer;
mod packets;
pub mod reading;
mod report;

use std::error::Error;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shunt_model::Family;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub use self::ebpf::{FlowFilter, FlowState, FlowTimeouts, Flows, FlowsError, KnownFlow};
use self::handover::{Handover, Other, Retired};
pub use self::lock::{Holder, Lock, LockError};
pub use self::looking::{Counters, Decision, DecisionVerdict, Decisions, Heard, Listening, Looking, Meter};
use self::offer::RulePath;
pub use self::offer::{Check, CheckState, ChooseError, Chosen, Offer, PacketPath, Requested, Wanted, choose};
pub use self::report::{Installed, Number, NumberKind, OpenPath, Report};
use crate::host::devices::Devices;
use crate::plan::{Plan, PodDetection, PortKey};

/// The data paths by the names that operators use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// BPF programs at sockets, over rules or programs for packets.
    Ebpf,
    /// nftables rules for packets.
    Nftables,
    /// iptables rules for packets.
    Iptables,
}

impl Mode {
    /// The word for logs, metrics and `/proxyMode`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a data path is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// BPF programs at the sockets of this node.
    Sockets,
    /// BPF programs at the network devices of this node, for packets.
    Programs,
    /// nftables rules, for packets.
    Nftables,
    /// iptables rules, for packets.
    Iptables,
}

impl Part {
    /// All of them, in the order in which they are preferred.
    pub const ALL: [Self; 4] = [Self::Sockets, Self::Programs, Self::Nftables, Self::Iptables];

    /// The word for logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sockets => "sockets",
            Self::Programs => "programs",
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }

    /// What balances connections there, for people.
    #[must_use]
    pub const fn description(self) -> &'static str {
        match self {
            Self::Sockets => "eBPF programs at sockets",
            Self::Programs => "eBPF programs for packets",
            Self::Nftables => "nftables rules for packets",
            Self::Iptables => "iptables rules for packets",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where things are on this host.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// The directory of the cgroup v2 tree below which all pods and the node's own processes are; discovered if absent.
    pub cgroup_root: Option<PathBuf>,
    /// Where programs and maps are pinned, on a BPF file system.
    pub bpf_root: PathBuf,
}

/// What the operator chose for data paths; each path uses the options that concern it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where things are.
    pub host: HostOptions,
    /// Load BPF programs from this file and not from the binary; for development.
    pub object: Option<PathBuf>,
    /// A process of the node cannot bind a node port in use.
    pub bind_protection: bool,
    /// How packets are treated.
    pub packets: PacketOptions,
    /// The devices by which this node reaches others, for programs that serve packets.
    pub devices: Devices,
    /// How long programs remember a flow without packets.
    pub flow_timeouts: FlowTimeouts,
    /// How packets of pods are known; of these, programs follow an interface, and know pods by their devices else.
    pub pods: PodDetection,
}

/// What the operator chose for packets; the paths for packets have these in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketOptions {
    /// The bit of the packet mark that asks for source NAT (TP-43), alone.
    pub masquerade_mark: u32,
    /// Forwarded packets that conntrack cannot place are dropped (CT-20).
    pub drop_invalid: bool,
    /// The node reaches its node ports at 127.0.0.0/8 by packets (TP-15). Sockets need no packets for it.
    pub loopback_node_ports: bool,
}

/// Work that goes on beside syncs, on a thread of its own, until the token is cancelled. It needs a Tokio runtime.
pub type Beside = Box<dyn FnOnce(CancellationToken) + Send>;

/// A data path that is open.
pub struct Opened {
    /// Applies plans.
    pub path: Box<dyn Datapath>,
    /// What it adopted from an earlier daemon, for the log.
    pub adopted: String,
    /// Its health and its counters, by part.
    pub reports: Vec<watch::Receiver<Report>>,
    /// What it lets others look at.
    pub looking: Looking,
    /// Told when another program has changed what the path installed: an audit must not wait.
    pub disturbed: Arc<Notify>,
    /// Its upkeep, which must run beside it, each on a thread of its own. Without upkeep the path balances, but it does
    /// not follow namespaces and sockets, and does not put back what another program removes.
    pub beside: Vec<Beside>,
}

/// A part that is open.
struct OpenedPart {
    path: Box<dyn Datapath>,
    adopted: String,
    reports: Vec<watch::Receiver<Report>>,
    looking: Looking,
    beside: Vec<Beside>,
}

/// A way to apply a [`Plan`].
pub trait Datapath: Send {
    /// Applies `plan`: writes to the kernel only what differs. A second call with an equal plan writes nothing. After
    /// an error the next call reads the kernel back first.
    fn sync(&mut self, plan: &Plan) -> Result<Synced, SyncError>;

    /// Makes this path notice when one of the sockets of the node's own DNS closes, also because this process is
    /// killed: from then on, frontends that fall back lead to their other endpoints. In force with the next sync.
    fn mark_own_dns(&mut self, sockets: &[OwnedFd]) -> Result<(), SyncError>;

    /// Compares a small part of the kernel with what the last sync wrote, and repairs what differs; the next call
    /// compares the next part. Returns how many elements it repaired.
    fn audit(&mut self) -> Result<u64, SyncError>;
}

/// What one [`Datapath::sync`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// Map elements or rules written, removals included.
    pub writes: u64,
    /// Service ports that could not be programmed, with the reason; all others are. Every sync retries them.
    pub refused: Vec<(PortKey, String)>,
    /// The time until the kernel had all of it. What a path does for it beside the tables comes after.
    pub elapsed: Duration,
    /// The searches for stale UDP flows that followed, at most one for each family.
    pub flow_sweeps: Vec<FlowSweep>,
}

/// One search for stale UDP flows (CT-11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowSweep {
    /// Of which flows.
    pub family: Family,
    /// How long it took.
    pub elapsed: Duration,
    /// How many flows it ended.
    pub ended: u64,
}

/// Why a sync failed as a whole. What it did not write keeps its former state.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The kernel refused a write.
    #[error("writing {object}")]
    Write {
        /// The map or table.
        object: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The kernel refused a read.
    #[error("reading back {object}")]
    Read {
        /// The map or table.
        object: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

/// A part of a data path cannot be opened. What balances traffic stays as it was.
#[derive(Debug, thiserror::Error)]
#[error("opening {part}")]
pub struct OpenError {
    part: Part,
    #[source]
    source: Box<dyn Error + Send + Sync>,
}

/// Things of one kind that [`remove`] removed, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// How many.
    pub count: usize,
    /// Of what, in the plural.
    pub what: &'static str,
    /// Where they were.
    pub place: String,
}

impl fmt::Display for Removed {
    /// `10 links below /sys/fs/bpf/shunt`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.count, self.what, self.place)
    }
}

/// What a data path has left could not be removed, or not all of it.
#[derive(Debug, thiserror::Error)]
#[error("removing {what}")]
pub struct RemoveError {
    what: &'static str,
    #[source]
    source: Box<dyn Error + Send + Sync>,
}

/// What each part that matters for what is requested can do on this host, in the order of [`Part::ALL`]. Probing
/// changes nothing.
#[must_use]
pub fn probe(options: &Options, requested: Requested) -> Vec<Offer> {
    let checks = |part| match part {
        Part::Sockets => ebpf::probe(options),
        // What is asked for by name is loaded next, or the start ends with what the kernel said.
        Part::Programs => ebpf::probe_packets(options, requested.mode.is_none()),
        Part::Nftables => nftables::probe(options),
        Part::Iptables => iptables::probe(options),
    };
    let concerned = Part::ALL.into_iter().filter(|part| requested.concerns(*part));
    concerned.map(|part| Offer { part, checks: checks(part) }).collect()
}

/// Opens what was chosen and adopts what an earlier daemon left of it. What balances traffic now stays as it is until
/// the first sync; after the first complete sync, what other data paths left here is removed. What looks after the pins
/// holds `lock` too.
pub fn open(chosen: &Chosen, options: &Options, lock: &Arc<Lock>) -> Result<Opened, OpenError> {
    let disturbed = Arc::new(Notify::new());
    let (programs, rules) = (chosen.programs(), chosen.rules());
    let programs = programs.map(|part| open_programs(part, chosen, options, lock)).transpose()?;
    let rules = rules.map(|part| open_rules(part, options, &disturbed)).transpose()?;
    let (leftovers, left) = watch::channel(Report { checked: true, ..Report::default() });
    let mut opened = composed::over(programs, rules, options.packets, disturbed);
    opened.reports.push(left);
    opened.path = Box::new(Handover::new(opened.path, replaced(chosen, options), leftovers));
    // Without a path for packets, clients outside of this node need kube-proxy's rules.
    if chosen.packets.is_some() {
        let (reports, report) = watch::channel(Report { checked: true, ..Report::default() });
        opened.reports.push(report);
        opened.path = Box::new(kube_proxy::Retiring::new(opened.path, reports));
    }
    Ok(opened)
}

/// Opens the tables and programs of eBPF. `part` stands for them in an error.
fn open_programs(part: Part, chosen: &Chosen, options: &Options, lock: &Arc<Lock>) -> Result<OpenedPart, OpenError> {
    let opened = ebpf::open(chosen, options, Arc::clone(lock));
    opened.map_err(|error| OpenError { part, source: error.into() })
}

fn open_rules(path: RulePath, options: &Options, disturbed: &Arc<Notify>) -> Result<OpenedPart, OpenError> {
    let (part, opened) = match path {
        RulePath::Nftables => {
            (Part::Nftables, nftables::open(options, disturbed).map_err(Box::<dyn Error + Send + Sync>::from))
        }
        RulePath::Iptables => (Part::Iptables, iptables::open(options, disturbed).map_err(Into::into)),
    };
    opened.map_err(|source| OpenError { part, source })
}

/// The parts whose leftovers must go once the chosen ones serve.
fn replaced(chosen: &Chosen, options: &Options) -> Vec<Other> {
    let has_rules = chosen.rules().is_some();
    let other = |part| {
        let (host, timeouts) = (options.host.clone(), options.flow_timeouts);
        Other { part, retire: Box::new(move || retire(part, &host, &timeouts, has_rules)) }
    };
    Part::ALL.into_iter().filter(|part| !chosen.has(*part)).map(other).collect()
}

/// Removes what a part has installed, or lets it begin nothing more while flows go on by it. `has_rules`: rules of
/// another part serve, for which the kernel goes on to translate what conntrack knows.
fn retire(part: Part, host: &HostOptions, timeouts: &FlowTimeouts, has_rules: bool) -> Result<Retired, RemoveError> {
    match part {
        Part::Programs => ebpf::retire_packets(host, timeouts)
            .map_err(|error| RemoveError { what: "programs for packets", source: error.into() }),
        Part::Nftables if !has_rules => nftables::retire(),
        Part::Sockets | Part::Nftables | Part::Iptables => remove(part, host).map(Retired::Gone),
    }
}

/// The flows that packet programs remember, with the names of the Services that `plan` has.
pub fn flows(host: &HostOptions, plan: &Plan, filter: &FlowFilter) -> Result<Flows, FlowsError> {
    ebpf::flows(&host.bpf_root, plan, filter)
}

/// Removes all that a part has installed on this host. What is missing counts as removed.
pub fn remove(part: Part, host: &HostOptions) -> Result<Vec<Removed>, RemoveError> {
    match part {
        Part::Sockets => {
            ebpf::remove_sockets(host).map_err(|error| RemoveError { what: "programs and maps", source: error.into() })
        }
        Part::Programs => ebpf::remove_packets(host)
            .map_err(|error| RemoveError { what: "programs for packets", source: error.into() }),
        Part::Nftables => nftables::remove(),
        Part::Iptables => iptables::remove(),
    }
}
