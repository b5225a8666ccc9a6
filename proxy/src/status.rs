//! The status of the daemon, which health, metrics and the command line read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use shunt_model::Snapshot;
use shunt_model::source::SourceHealth;

use crate::plan::{Conflict, Plan, PortKey};

/// The status after the last sync. Each sync publishes a new one.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// How many syncs have been tried.
    pub syncs: u64,
    /// How many of them failed as a whole.
    pub failed_syncs: u64,
    /// Elements written since the start.
    pub writes: u64,
    /// Elements of the kernel that differed from what was written and were repaired.
    pub repaired: u64,
    /// The last sync that succeeded; it may have refused single service ports.
    pub last_sync: Option<LastSync>,
    /// Why the last sync failed as a whole, if it did.
    pub error: Option<String>,
    /// Since when syncs have been failing.
    pub failing_since: Option<SystemTime>,
    /// The plan that the kernel serves since the last successful sync.
    pub programmed: Plan,
    /// The view of the cluster that led to it. A name must resolve only to a service of this view, which is reachable.
    pub snapshot: Option<Arc<Snapshot>>,
    /// Service ports the data path could not take, with the reason.
    pub refused: Vec<(PortKey, String)>,
    /// Service ports that do not get a frontend because another has it.
    pub conflicts: Vec<Conflict>,
    /// The health of the source.
    pub source: Arc<SourceHealth>,
    /// The last plan, whether or not its sync succeeded.
    pub planned: Plan,
}

/// One successful sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LastSync {
    /// How many views of the cluster had been seen, this one included.
    pub generation: u64,
    /// When it ended.
    #[serde(rename = "unixSeconds", serialize_with = "unix_seconds")]
    pub at: SystemTime,
    /// What it took.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub elapsed: Duration,
}

/// Since when a change waits to be synced; all clones share it. Zero milliseconds stand for none.
#[derive(Clone, Debug, Default)]
pub struct Pending(Arc<AtomicU64>);

impl Pending {
    /// Notes that a change waits from now on, unless an older one waits already (HM-12).
    pub fn begin(&self) {
        // The oldest change counts.
        let _older = self.0.compare_exchange(0, now(), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Notes that no change waits.
    pub fn end(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// How long the oldest change has waited.
    #[must_use]
    pub fn age(&self) -> Duration {
        match self.0.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => Duration::from_millis(now().saturating_sub(since)),
        }
    }

    /// A change that has waited for `age`.
    #[cfg(test)]
    pub(crate) fn of_age(age: Duration) -> Self {
        let since = now().saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        Self(Arc::new(AtomicU64::new(since)))
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Status {
    /// The reasons why this node is not ready; empty when it is. A sync that fails later keeps the former state in
    /// force, but the node no longer follows the cluster, so it counts.
    #[must_use]
    pub fn not_ready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if let Some(error) = &self.error {
            reasons.push(format!("last sync failed: {error}"));
        } else if self.last_sync.is_none() {
            let why = self.source.unreachable.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            reasons.push(format!("no sync yet{why}"));
        }
        if let Some((port, reason)) = self.refused.first() {
            reasons.push(format!("{reason}: {} service ports are not served, the first is {port}", self.refused.len()));
        }
        reasons
    }
}

fn unix_seconds<S: serde::Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    serializer.serialize_f64(since.as_secs_f64())
}

fn seconds<S: serde::Serializer>(elapsed: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(elapsed.as_secs_f64())
}
