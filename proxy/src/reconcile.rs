//! Makes the kernel follow the cluster: the one owner of planner and data path. It applies each plan and retries what
//! failed.

mod backoff;
mod summary;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use shunt_model::source::SourceHealth;
use shunt_model::{Snapshot, with_causes};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::datapath::{Datapath, SyncError, Synced};
use crate::metrics::Durations;
use crate::plan::{Plan, PlanOptions, Planner, PortKey};
use crate::status::{LastSync, Pending, Status};
use backoff::Backoff;
use summary::Summary;

/// How often a part of the kernel is compared with what was written to it.
const AUDIT: Duration = Duration::from_secs(1);
/// A sync of more writes leaves much memory behind that was needed for it alone.
const LARGE: u64 = 10_000;

/// What the kernel is to serve.
#[derive(Clone, Debug, Default)]
pub struct Goal {
    /// The view of the cluster.
    pub snapshot: Arc<Snapshot>,
    /// The options by which it is planned.
    pub options: Arc<PlanOptions>,
}

/// The loop's inputs.
pub struct Input {
    /// The goal; its first view is complete already (SY-1). When the daemon stops, the sender sends what must hold
    /// while no daemon runs, and goes.
    pub goal: watch::Receiver<Goal>,
    /// The health of the source.
    pub health: watch::Receiver<SourceHealth>,
    /// Addresses of this node's interfaces.
    pub addresses: watch::Receiver<Arc<BTreeSet<IpAddr>>>,
    /// Told when another program has changed what the data path installed.
    pub disturbed: Arc<Notify>,
}

/// Where the loop publishes what it did.
pub struct Sinks {
    /// The status, which all others follow.
    pub status: watch::Sender<Status>,
    /// Since when a change waits; not in the status, for it must be seen while a sync hangs.
    pub pending: Pending,
    /// Takes what is measured; not in the status, for whoever follows that sees only the newest one and not every sync.
    pub durations: Durations,
}

/// The loop's state.
pub struct Reconciler {
    planner: Planner,
    /// The options of the planner.
    options: Arc<PlanOptions>,
    datapath: Box<dyn Datapath>,
    input: Input,
    sinks: Sinks,
    status: Status,
    generation: u64,
    backoff: Backoff,
    summary: Summary,
}

impl Reconciler {
    /// A loop that has not begun.
    #[must_use]
    pub fn new(datapath: Box<dyn Datapath>, input: Input, sinks: Sinks) -> Self {
        let options = Arc::clone(&input.goal.borrow().options);
        Self {
            planner: Planner::new((*options).clone()),
            options,
            datapath,
            input,
            sinks,
            status: Status::default(),
            generation: 0,
            backoff: Backoff::default(),
            summary: Summary::default(),
        }
    }

    /// Syncs now, at every new goal, and again after a failure, until it is stopped or the source ends. Syncs block, so
    /// this future needs a thread of its own. The data path stays as it is at the end (SY-17).
    pub async fn run(mut self, stop: CancellationToken) {
        self.look_at_health();
        let mut next = Some(self.sync_newest());
        let mut audits = tokio::time::interval(AUDIT);
        let disturbed = Arc::clone(&self.input.disturbed);
        audits.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let retry = next.take().flatten();
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.end().await,
                changed = self.input.goal.changed() => {
                    if changed.is_err() {
                        return self.source_ended(&stop).await;
                    }
                    next = Some(self.sync_newest());
                }
                changed = self.input.health.changed() => {
                    if changed.is_err() {
                        return self.source_ended(&stop).await;
                    }
                    self.look_at_health();
                    self.publish();
                    next = Some(retry);
                }
                changed = self.input.addresses.changed() => {
                    if changed.is_err() {
                        return self.source_ended(&stop).await;
                    }
                    next = Some(self.sync_newest());
                }
                () = at(retry) => next = Some(self.sync_newest()),
                () = disturbed.notified() => {
                    let found = self.audit();
                    next = Some(if found { Some(Instant::now()) } else { retry });
                }
                _ = audits.tick() => {
                    self.summary.tell_if_due(Instant::now(), self.status.planned.ports.len());
                    let found = self.audit();
                    next = Some(if found { Some(Instant::now()) } else { retry });
                }
            }
        }
    }

    /// Waits for the last goal. New options must hold while no daemon runs; a new view alone is left to the next
    /// daemon.
    async fn end(mut self) {
        while self.input.goal.changed().await.is_ok() {}
        let has_new_options = !Arc::ptr_eq(&self.input.goal.borrow().options, &self.options);
        if has_new_options {
            self.sync_newest();
        }
        self.summary.tell_rest(self.status.planned.ports.len());
    }

    /// Applies the newest goal to the kernel. Returns when to retry, if the sync is incomplete.
    fn sync_newest(&mut self) -> Option<Instant> {
        self.sinks.pending.begin();
        self.sinks.durations.begun();
        let Goal { snapshot, options } = self.input.goal.borrow_and_update().clone();
        self.generation += 1;
        if !Arc::ptr_eq(&options, &self.options) {
            self.planner.renew((*options).clone());
            self.options = options;
        }
        let started = Instant::now();
        self.planner.observe_addresses(Arc::clone(&self.input.addresses.borrow_and_update()));
        self.planner.update(Arc::clone(&snapshot));
        self.sinks.durations.planned(started.elapsed());
        let started = Instant::now();
        let outcome = self.datapath.sync(self.planner.plan());
        let elapsed = outcome.as_ref().map_or_else(|_| started.elapsed(), |synced| synced.elapsed);
        // The first sync and the one after a failure read the kernel back.
        let full = self.status.last_sync.is_none() || self.status.error.is_some();
        self.sinks.durations.synced(full, elapsed);
        let writes_before = self.status.writes;
        self.status.syncs += 1;
        self.status.planned = self.planner.plan().clone();
        self.status.conflicts = self.planner.conflicts().cloned().collect();
        let complete = match outcome {
            Ok(synced) => {
                let before = self.status.snapshot.replace(Arc::clone(&snapshot));
                self.sinks.durations.applied(before.as_deref(), &snapshot);
                self.succeeded(synced, elapsed)
            }
            Err(error) => self.failed(&error),
        };
        self.publish();
        if self.status.error.is_none() {
            self.sinks.pending.end();
        }
        if full || self.status.writes.saturating_sub(writes_before) > LARGE {
            // All tables or rules were there a second time, to be written.
            crate::sys::trim();
        }
        if complete {
            self.backoff.reset();
            return None;
        }
        let delay = self.backoff.next_delay();
        warn!(?delay, "the sync is incomplete; the next one retries it");
        Some(Instant::now() + delay)
    }

    /// Compares and repairs a part of the kernel; true if that failed, so the next sync must read the kernel back.
    fn audit(&mut self) -> bool {
        match self.datapath.audit() {
            Ok(0) => false,
            Ok(repaired) => {
                self.status.repaired += repaired;
                self.publish();
                false
            }
            Err(error) => {
                error!(reason = with_causes(&error), "comparing the kernel with what was written failed");
                true
            }
        }
    }

    /// True if the data path took every service port.
    fn succeeded(&mut self, synced: Synced, elapsed: Duration) -> bool {
        let Synced { writes, refused, elapsed: _, flow_sweeps } = synced;
        self.sinks.durations.swept(&flow_sweeps);
        let generation = self.generation;
        let (refusals, ports) = (refused.len(), self.status.planned.ports.len());
        if self.status.last_sync.is_none() || self.status.error.is_some() {
            info!(generation, writes, refused = refusals, ports, ?elapsed, "synced");
        } else if writes > 0 {
            debug!(generation, writes, refused = refusals, ports, ?elapsed, "synced");
            self.summary.add(Instant::now(), writes, elapsed);
        }
        let status = &mut self.status;
        status.writes += writes;
        status.error = None;
        status.failing_since = None;
        status.last_sync = Some(LastSync { generation, at: SystemTime::now(), elapsed });
        status.programmed = without(self.planner.plan(), &refused);
        status.refused = refused;
        status.refused.is_empty()
    }

    fn failed(&mut self, failure: &SyncError) -> bool {
        let reason = with_causes(failure);
        error!(generation = self.generation, reason, "sync failed; the former state stays in force");
        self.status.failed_syncs += 1;
        self.status.error = Some(reason);
        self.status.failing_since.get_or_insert_with(SystemTime::now);
        false
    }

    /// Takes the health of the source into the status; the source itself logs it.
    fn look_at_health(&mut self) {
        self.status.source = Arc::new(self.input.health.borrow_and_update().clone());
    }

    fn publish(&self) {
        self.sinks.status.send_replace(self.status.clone());
    }

    async fn source_ended(self, stop: &CancellationToken) {
        error!(
            "the source of objects has ended: the data path stays in force but follows no more changes; restart the daemon"
        );
        stop.cancelled().await;
    }
}

fn without(plan: &Plan, refused: &[(PortKey, String)]) -> Plan {
    let mut programmed = plan.clone();
    for (port, _) in refused {
        programmed.ports.remove(port);
    }
    programmed
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
