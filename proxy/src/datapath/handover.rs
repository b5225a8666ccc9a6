//! From one data path to another: the new one serves before what others left is removed.

#[cfg(test)]
mod tests;

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
    pub(super) remove: Box<dyn FnMut() -> Result<Vec<Removed>, RemoveError> + Send>,
}

/// Syncs may follow one another closely, and a removal runs commands in their thread.
const AGAIN: Duration = Duration::from_secs(5);

/// The open path. After its first complete sync it removes what others left; a sync some seconds later retries a
/// removal that failed.
pub(super) struct Handover {
    path: Box<dyn Datapath>,
    /// Those not yet removed.
    others: Vec<Other>,
    /// How long after an attempt the next one may follow, and when the last one ended.
    again: Duration,
    tried: Option<Instant>,
    reports: watch::Sender<Report>,
}

impl Handover {
    pub(super) fn new(path: Box<dyn Datapath>, others: Vec<Other>, reports: watch::Sender<Report>) -> Self {
        Self { path, others, again: AGAIN, tried: None, reports }
    }

    fn remove_others(&mut self) {
        if self.tried.is_some_and(|tried| tried.elapsed() < self.again) {
            return;
        }
        let mut leftovers = Vec::new();
        self.others.retain_mut(|Other { part, remove }| match remove() {
            Ok(removed) => {
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
        self.tried = Some(Instant::now());
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
        if synced.refused.is_empty() && !self.others.is_empty() {
            self.remove_others();
        }
        Ok(synced)
    }

    fn mark_own_dns(&mut self, sockets: &[OwnedFd]) -> Result<(), SyncError> {
        self.path.mark_own_dns(sockets)
    }

    fn audit(&mut self) -> Result<u64, SyncError> {
        self.path.audit()
    }
}
