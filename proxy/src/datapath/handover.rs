//! From one data path to another: the new one serves before what others left is removed. What translates flows that are
//! up stays until they end, and begins none.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use shunt_model::with_causes;
use tokio::sync::watch;
use tracing::{info, warn};

use super::{Datapath, Part, RemoveError, Removed, Report, SyncError, Synced};
use crate::plan::Plan;

/// A part that the open path does not have and that may have left something here.
pub(super) struct Other {
    pub(super) part: Part,
    pub(super) retire: Box<dyn FnMut() -> Result<Retired, RemoveError> + Send>,
}

/// What has become of a part that does not serve any more.
pub(super) enum Retired {
    /// Nothing of it is left.
    Gone(Vec<Removed>),
    /// It begins no flow, and so many that it began go on by it.
    Waits(u64),
}

/// Syncs may follow one another closely, and a removal runs commands in their thread.
const AGAIN: Duration = Duration::from_secs(5);
/// To ask whether flows have ended is to read all flows of this host.
const LATER: Duration = Duration::from_secs(30);

/// The open path. After its first complete sync it removes what others left; a sync some seconds later retries a
/// removal that failed.
pub(super) struct Handover {
    path: Box<dyn Datapath>,
    /// Those not yet removed.
    others: Vec<Other>,
    /// All is served by the open path.
    serves: bool,
    /// Those that wait for their flows, and that is logged.
    waiting: BTreeSet<Part>,
    /// How long after an attempt the next one may follow: if it failed, and if flows go on.
    pauses: [Duration; 2],
    /// When the last one ended, and which pause follows it.
    tried: Option<(Instant, Duration)>,
    reports: watch::Sender<Report>,
}

impl Handover {
    pub(super) fn new(path: Box<dyn Datapath>, others: Vec<Other>, reports: watch::Sender<Report>) -> Self {
        let (serves, waiting) = (false, BTreeSet::new());
        Self { path, others, serves, waiting, pauses: [AGAIN, LATER], tried: None, reports }
    }

    fn remove_others(&mut self) {
        let paused = self.tried.is_some_and(|(tried, pause)| tried.elapsed() < pause);
        if paused || !self.serves || self.others.is_empty() {
            return;
        }
        let mut leftovers = Vec::new();
        self.others.retain_mut(|Other { part, retire }| match retire() {
            Ok(Retired::Waits(flows)) => {
                if self.waiting.insert(*part) {
                    info!(%part, flows, "another data path serves new flows now; those that are up go on by this part");
                }
                true
            }
            Ok(Retired::Gone(removed)) => {
                for removed in removed {
                    info!(%part, "removed {removed}: another data path serves now");
                }
                false
            }
            Err(error) => {
                leftovers.push(format!("{part} of another data path are still installed too: {}", with_causes(&error)));
                true
            }
        });
        let [again, later] = self.pauses;
        self.tried = Some((Instant::now(), if leftovers.is_empty() { later } else { again }));
        self.reports.send_if_modified(|report| {
            for reason in leftovers.iter().filter(|reason| !report.leftovers.contains(reason)) {
                warn!(reason, "removing what another data path left failed; a later sync retries it");
            }
            let modified = report.leftovers != leftovers;
            report.leftovers = leftovers;
            modified
        });
    }
}

impl Datapath for Handover {
    fn sync(&mut self, plan: &Plan) -> Result<Synced, SyncError> {
        let synced = self.path.sync(plan)?;
        // Another path may still serve a service port that this one refuses.
        if synced.refused.is_empty() {
            self.serves = true;
            self.remove_others();
        }
        Ok(synced)
    }

    fn mark_own_dns(&mut self, sockets: &[OwnedFd]) -> Result<(), SyncError> {
        self.path.mark_own_dns(sockets)
    }

    fn audit(&mut self) -> Result<u64, SyncError> {
        let repaired = self.path.audit();
        self.remove_others();
        repaired
    }
}
