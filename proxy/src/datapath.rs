//! The one door to the kernel: probes the data paths, opens one, and removes what one has left.
//!
//! Nothing outside of this module names a data path's own types. Every path takes the whole plan and writes the
//! difference; a path is one arm of each `match` on [`Mode`] below.

mod caller;
mod ebpf;
mod handover;
mod lock;
mod offer;
pub mod reading;
mod report;

use std::error::Error;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::handover::{Handover, Other};
pub use self::lock::{Holder, Lock, LockError};
pub use self::offer::{Check, CheckState, ChooseError, Offer, Requested, choose};
pub use self::report::{Installed, Number, NumberKind, OpenPath, Report};
use crate::plan::{Plan, PortKey};

/// The data paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// BPF programs at sockets.
    Ebpf,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 1] = [Self::Ebpf];

    /// The word for logs, metrics and `/proxyMode`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
        }
    }

    /// What balances connections in this mode, for people.
    #[must_use]
    pub const fn description(self) -> &'static str {
        match self {
            Self::Ebpf => "eBPF programs at sockets",
        }
    }

    /// Whether this path does all that `other` does, so that nothing of `other` may be left once this one serves.
    const fn replaces(self, other: Self) -> bool {
        match (self, other) {
            (Self::Ebpf, Self::Ebpf) => false,
        }
    }
}

impl fmt::Display for Mode {
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
}

/// Work that goes on beside syncs, on a thread of its own, until the token is cancelled. It needs a Tokio runtime.
pub type Beside = Box<dyn FnOnce(CancellationToken) + Send>;

/// A data path that is open.
pub struct Opened {
    /// Applies plans.
    pub path: Box<dyn Datapath>,
    /// Which path it is.
    pub mode: Mode,
    /// What it adopted from an earlier daemon, for the log.
    pub adopted: String,
    /// Its health and its counters.
    pub report: watch::Receiver<Report>,
    /// Its upkeep, which must run beside it, each on a thread of its own. Without upkeep the path balances, but it does
    /// not follow namespaces and sockets, and does not put back what another program removes.
    pub beside: Vec<Beside>,
}

/// A way to apply a [`Plan`].
pub trait Datapath: Send {
    /// Which path this is.
    fn mode(&self) -> Mode;

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

/// A data path cannot be opened. The programs and tables that balance traffic stay as they were.
#[derive(Debug, thiserror::Error)]
#[error("opening the {mode} data path")]
pub struct OpenError {
    mode: Mode,
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

/// What each data path can do on this host, in the order in which [`choose`] prefers them. Probing changes nothing.
#[must_use]
pub fn probe(options: &Options) -> Vec<Offer> {
    let checks = |mode| match mode {
        Mode::Ebpf => ebpf::probe(options),
    };
    Mode::ALL.into_iter().map(|mode| Offer { mode, checks: checks(mode) }).collect()
}

/// Opens a data path and adopts what an earlier daemon left of it. What balances traffic now stays as it is until the
/// first sync; after the first complete sync, what the data paths that this one replaces left here is removed. What
/// looks after the pins holds `lock` too.
pub fn open(mode: Mode, options: &Options, lock: &Arc<Lock>) -> Result<Opened, OpenError> {
    let (reports, report) = watch::channel(Report::default());
    let failed = |source| OpenError { mode, source };
    let opened = match mode {
        Mode::Ebpf => {
            let opened = ebpf::open(options, Arc::clone(lock), reports.clone(), report);
            opened.map_err(|error| failed(error.into()))?
        }
    };
    let path = Box::new(Handover::new(opened.path, replaced(mode, &options.host), reports));
    Ok(Opened { path, ..opened })
}

/// The data paths whose leftovers must go once `mode` serves; others may go on beside it.
fn replaced(mode: Mode, host: &HostOptions) -> Vec<Other> {
    let other = |mode| {
        let host = host.clone();
        Other { mode, remove: Box::new(move || remove(mode, &host)) }
    };
    Mode::ALL.into_iter().filter(|other| mode.replaces(*other)).map(other).collect()
}

/// Removes all that a data path has installed on this host. What is missing counts as removed.
pub fn remove(mode: Mode, host: &HostOptions) -> Result<Vec<Removed>, RemoveError> {
    match mode {
        Mode::Ebpf => {
            ebpf::remove(host).map_err(|error| RemoveError { what: "programs and maps", source: error.into() })
        }
    }
}
