//! Where snapshots come from. A source hands out its watch channel only once the first view is complete, so a reader
//! can never mistake "not loaded yet" for "deleted".

mod convert;
pub mod kube;
pub mod manifests;
mod report;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use crate::snapshot::Snapshot;

/// A started source. Dropping it stops the source; the last snapshot stays readable.
pub struct Source {
    /// The current view; never an incomplete one.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// What is wrong with the input right now.
    pub health: watch::Receiver<SourceHealth>,
    /// Ends the source's work when dropped.
    pub(crate) _stop: Box<dyn Send + Sync>,
}

/// What is wrong with a source's input, and how much has been ignored since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceHealth {
    /// Set while the source as a whole cannot be read; the last good view stays in force.
    pub unreachable: Option<String>,
    /// Set while the cluster has no Node of this node's name, with what to do.
    pub unknown_node: Option<String>,
    /// The files and objects that are ignored right now.
    pub problems: Vec<Problem>,
    /// How many problems have appeared since the start, by [`Problem::kind`]; only grows.
    pub counts: BTreeMap<&'static str, u64>,
    /// A complete view of a cluster's API was published, and this is the report on it or on a later one.
    pub complete: bool,
}

impl SourceHealth {
    /// What the operator should know though the node serves.
    pub fn warnings(&self) -> impl Iterator<Item = &String> {
        self.unreachable.iter().chain(&self.unknown_node)
    }
}

/// One ignored file, object or part of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// A short stable word for metrics: `file`, `service`, `endpointslice` …
    pub kind: &'static str,
    /// The file, if the object came from one.
    pub file: Option<PathBuf>,
    /// Line in the file, counted from 1, if known.
    pub line: Option<usize>,
    /// `Kind namespace/name`, if known.
    pub object: Option<String>,
    /// What is wrong and its consequence, lower case, no full stop.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}", file.display())?;
            if let Some(line) = self.line {
                write!(f, ":{line}")?;
            }
            f.write_str(": ")?;
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        f.write_str(&self.reason)
    }
}
