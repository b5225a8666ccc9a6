//! How the open data path is doing, in words that health and metrics print without knowing the path.

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use super::Mode;

/// How a data path is doing beside its syncs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The path has looked at least once whether it is in effect.
    pub checked: bool,
    /// Why it is not in effect where it should be.
    pub faults: Vec<String>,
    /// What other tools have installed in the same places.
    pub foreign: Vec<String>,
    /// What the path counts.
    pub numbers: Vec<Number>,
    /// What other data paths left here that could not be removed. The hand-over writes this, the path all the rest.
    pub leftovers: Vec<String>,
}

/// One number under `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    /// Its name without the prefix `shunt_`, and without `_total` for a counter.
    pub name: &'static str,
    /// What it means.
    pub help: &'static str,
    /// How it moves.
    pub kind: NumberKind,
    /// Its value now.
    pub value: u64,
}

/// How a number moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumberKind {
    /// Only up.
    Counter,
    /// Up and down.
    Gauge,
}

/// The data path that is open, for those who print it; empty until one is. Clones see the same.
#[derive(Clone, Debug, Default)]
pub struct OpenPath(Arc<OnceLock<(Mode, watch::Receiver<Report>)>>);

impl OpenPath {
    /// From now on this path is open. The first one stays: a daemon opens one path.
    pub fn publish(&self, mode: Mode, report: watch::Receiver<Report>) {
        self.0.get_or_init(|| (mode, report));
    }

    /// Which path is open.
    #[must_use]
    pub fn mode(&self) -> Option<Mode> {
        self.0.get().map(|(mode, _)| *mode)
    }

    /// How it is doing; nothing is checked or counted before it is open.
    #[must_use]
    pub fn report(&self) -> Report {
        self.0.get().map(|(_, report)| report.borrow().clone()).unwrap_or_default()
    }
}
