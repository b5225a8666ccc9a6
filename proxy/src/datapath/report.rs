//! Health and counters of the open data path, in words that `/readyz` and `/metrics` print without knowing the path.

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use super::Chosen;
use super::looking::{Counters, Decisions, Looking};

/// Health and counters of a data path, beside its syncs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The path has tested at least once whether it is in effect.
    pub checked: bool,
    /// The reasons why it is not in effect.
    pub faults: Vec<String>,
    /// What other tools have installed in the same places.
    pub foreign: Vec<String>,
    /// What the path counts.
    pub numbers: Vec<Number>,
    /// What other data paths left here and could not be removed. The hand-over writes this field, the path all others.
    pub leftovers: Vec<String>,
    /// Whether what the path has installed is still there. The part of the path that looks after it writes this field.
    pub installed: Installed,
}

impl Report {
    /// What two parts of a path report together.
    fn and(self, other: Self) -> Self {
        let Self { checked, faults, foreign, numbers, leftovers, installed } = other;
        let faults_of_installed: Vec<String> = [self.installed.fault, installed.fault].into_iter().flatten().collect();
        Self {
            checked: self.checked && checked,
            faults: [self.faults, faults].concat(),
            foreign: [self.foreign, foreign].concat(),
            numbers: [self.numbers, numbers].concat(),
            leftovers: [self.leftovers, leftovers].concat(),
            installed: Installed {
                fault: (!faults_of_installed.is_empty()).then(|| faults_of_installed.join("; ")),
                restored: self.installed.restored.saturating_add(installed.restored),
            },
        }
    }

    /// The reasons why what is programmed is not in effect; empty when it is.
    #[must_use]
    pub fn not_in_effect(&self) -> Vec<String> {
        match &self.installed.fault {
            Some(fault) => vec![fault.clone()],
            // The self-test only guesses why the programs are not in effect.
            None => self.faults.iter().map(|reason| format!("self-test: {reason}")).collect(),
        }
    }
}

/// Whether all that a data path has installed is still there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// Why the path is not in effect, as long as something is missing.
    pub fault: Option<String>,
    /// How often it put back what another program had removed.
    pub restored: u64,
}

/// One number under `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    /// Its name without the prefix `shunt_`, and without `_total` for a counter.
    pub name: &'static str,
    /// What it means.
    pub help: &'static str,
    /// Whether it is a counter or a gauge.
    pub kind: NumberKind,
    /// Its value now.
    pub value: u64,
}

/// How a number changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumberKind {
    /// It only grows.
    Counter,
    /// It grows and falls.
    Gauge,
}

/// The data path that is open, for health and metrics; empty until one is open. All clones share it.
#[derive(Clone, Debug, Default)]
pub struct OpenPath(Arc<OnceLock<Opened>>);

/// What serves, what it reports, and what it lets others look at.
type Opened = (Chosen, Vec<watch::Receiver<Report>>, Looking);

impl OpenPath {
    /// Publishes the open path. Only the first call counts: a daemon opens one path.
    pub fn publish(&self, chosen: Chosen, reports: Vec<watch::Receiver<Report>>, looking: Looking) {
        self.0.get_or_init(|| (chosen, reports, looking));
    }

    /// Which path is open.
    #[must_use]
    pub fn chosen(&self) -> Option<&Chosen> {
        self.0.get().map(|(chosen, ..)| chosen)
    }

    /// The report of all its parts; empty before a path is open.
    #[must_use]
    pub fn report(&self) -> Report {
        let reports = self.0.get().map_or(&[][..], |(_, reports, _)| reports);
        let reports = reports.iter().map(|report| report.borrow().clone());
        reports.reduce(Report::and).unwrap_or_default()
    }

    /// The counters of all its parts, read now.
    #[must_use]
    pub fn counters(&self) -> Vec<Counters> {
        let meters = self.0.get().map_or(&[][..], |(.., looking)| &looking.meters);
        meters.iter().flat_map(|meter| meter.read()).collect()
    }

    /// Its decisions, if its programs tell them.
    #[must_use]
    pub fn decisions(&self) -> Option<&Decisions> {
        self.0.get().and_then(|(.., looking)| looking.decisions.as_ref())
    }
}
