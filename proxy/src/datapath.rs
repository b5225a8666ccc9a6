//! The one door to the kernel: what each data path can do here, opening one, and removing what one has left.
//!
//! Nothing outside of this module names a data path's own types. Every path takes the whole plan and writes the
//! difference; a path is one arm of each `match` on [`Mode`] below.

pub mod ebpf;
mod handover;
mod offer;
pub mod reading;
mod report;

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::handover::{Handover, Other};
pub use self::offer::{Check, CheckState, Offer};
pub use self::report::{Number, NumberKind, OpenPath, Report};
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

/// What the operator chose for data paths; each takes what concerns it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where things are.
    pub host: HostOptions,
    /// Load BPF programs from this file and not from the binary; for development.
    pub object: Option<PathBuf>,
    /// A process of the node cannot bind a node port in use.
    pub bind_protection: bool,
}

/// Work that goes on beside syncs, on a thread of its own, until the token is cancelled. Needs a Tokio runtime around it.
pub type Beside = Box<dyn FnOnce(CancellationToken) + Send>;

/// A data path that is open.
pub struct Opened {
    /// It takes plans.
    pub path: Box<dyn Datapath>,
    /// Which one it is.
    pub mode: Mode,
    /// What it took over from an earlier life of the daemon, for the log.
    pub adopted: String,
    /// How it is doing.
    pub report: watch::Receiver<Report>,
    /// What must run beside it; without this the path serves, but does not keep what it promises.
    pub beside: Option<Beside>,
}

/// A way to carry out a [`Plan`].
pub trait Datapath: Send {
    /// Which path this is.
    fn mode(&self) -> Mode;

    /// Makes the kernel do what `plan` says, writing only what differs from what it does already. Idempotent: a second
    /// call with an equal plan writes nothing. After an error the next call reads the kernel back first.
    fn sync(&mut self, plan: &Plan) -> Result<Synced, SyncError>;

    /// Compares a small part of the kernel with what the last sync left there and repairs what differs; the next call
    /// looks at the next part. Returns how many elements were repaired.
    fn audit(&mut self) -> Result<u64, SyncError>;
}

/// What one [`Datapath::sync`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// Map elements or rules written, removals included.
    pub writes: u64,
    /// Service ports that could not be programmed (all others are), with the reason. They are tried again at every sync.
    pub refused: Vec<(PortKey, String)>,
}

/// Why a sync failed as a whole; the former state stays in force for whatever was not reached.
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
    /// The kernel refused to give back what is installed.
    #[error("reading back {object}")]
    Read {
        /// The map or table.
        object: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

/// Why a data path cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The host lacks something; nothing has been touched.
    #[error(transparent)]
    Host(Box<dyn Error + Send + Sync>),
    /// Opening failed on the way. What balances traffic goes on as before.
    #[error("opening the {} data path", .mode)]
    Open {
        /// Which one.
        mode: Mode,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
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

/// What a data path has left cannot be removed, or not all of it.
#[derive(Debug, thiserror::Error)]
#[error("removing {what}")]
pub struct RemoveError {
    what: &'static str,
    #[source]
    source: Box<dyn Error + Send + Sync>,
}

/// What each data path can do on this host, found by trying and without changing anything.
#[must_use]
pub fn probe(host: &HostOptions) -> Vec<Offer> {
    let checks = |mode| match mode {
        Mode::Ebpf => ebpf::probe(host),
    };
    Mode::ALL.into_iter().map(|mode| Offer { mode, checks: checks(mode) }).collect()
}

/// Fails if `options` cannot work for a reason that is cheap to find, before anything is touched.
pub fn check(mode: Mode, options: &Options) -> Result<(), OpenError> {
    match mode {
        Mode::Ebpf => ebpf::check(&options.host).map_err(|error| OpenError::Host(error.into())),
    }
}

/// Opens a data path and adopts what an earlier life of the daemon left of it. Nothing that balances traffic now is
/// changed before the first sync; after the first complete one, what other data paths left here is removed.
pub fn open(mode: Mode, options: &Options) -> Result<Opened, OpenError> {
    let (reports, report) = watch::channel(Report::default());
    let failed = |source| OpenError::Open { mode, source };
    let opened = match mode {
        Mode::Ebpf => ebpf::open(options, reports.clone(), report).map_err(|error| failed(error.into()))?,
    };
    let path = Box::new(Handover::new(opened.path, others(mode, &options.host), reports));
    Ok(Opened { path, ..opened })
}

fn others(mode: Mode, host: &HostOptions) -> Vec<Other> {
    let other = |mode| {
        let host = host.clone();
        Other { mode, remove: Box::new(move || remove(mode, &host)) }
    };
    Mode::ALL.into_iter().filter(|other| *other != mode).map(other).collect()
}

/// Removes all that a data path has installed on this host. What is not there counts as removed.
pub fn remove(mode: Mode, host: &HostOptions) -> Result<Vec<Removed>, RemoveError> {
    match mode {
        Mode::Ebpf => {
            ebpf::remove(host).map_err(|error| RemoveError { what: "programs and maps", source: error.into() })
        }
    }
}
