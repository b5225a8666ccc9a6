//! Makes the kernel follow the cluster: the one owner of planner and data path. It applies each plan and retries what
//! failed.

mod backoff;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use shunt_model::source::SourceHealth;
use shunt_model::{Snapshot, with_causes};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::datapath::{Datapath, SyncError, Synced};
use crate::dns::choice::PlanChoice;
use crate::http::health_checks::Checks;
use crate::plan::{Plan, Planner, PortKey};
use crate::status::census::Census;
use crate::status::{LastSync, Pending, Status};
use backoff::Backoff;

/// How often a part of the kernel is compared with what was written to it.
const AUDIT: Duration = Duration::from_secs(1);

/// The loop's inputs.
pub struct Input {
    /// Views of the cluster; the first is complete already (SY-1).
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The health of the source.
    pub health: watch::Receiver<SourceHealth>,
    /// Addresses of this node's interfaces.
    pub addresses: watch::Receiver<Arc<BTreeSet<IpAddr>>>,
    /// The options of the plan.
    pub options: PlanChoice,
}

/// Where the loop publishes what it did.
pub struct Sinks {
    /// The status.
    pub status: watch::Sender<Status>,
    /// The views that the kernel serves, for DNS: a name must not resolve to a service that is not reachable yet.
    pub reachable: watch::Sender<Option<Arc<Snapshot>>>,
    /// The health checks of the plan that the kernel serves.
    pub health_checks: watch::Sender<Checks>,
    /// Since when a change waits.
    pub pending: Pending,
    /// Takes the duration of every sync in seconds.
    pub durations: crate::metrics::Durations,
}

/// The loop's state.
pub struct Reconciler {
    planner: Planner,
    datapath: Box<dyn Datapath>,
    input: Input,
    sinks: Sinks,
    status: Status,
    census: Census,
    /// The view that came last.
    received: Arc<Snapshot>,
    generation: u64,
    backoff: Backoff,
}

impl Reconciler {
    /// A loop that has not begun.
    #[must_use]
    pub fn new(datapath: Box<dyn Datapath>, input: Input, sinks: Sinks) -> Self {
        Self {
            planner: Planner::new(input.options.usual()),
            datapath,
            input,
            sinks,
            status: Status::default(),
            census: Census::default(),
            received: Arc::default(),
            generation: 0,
            backoff: Backoff::default(),
        }
    }

    /// Syncs now, at every new view, and again after a failure, until it is stopped or the source ends. Syncs block, so
    /// this future needs a thread of its own. The data path stays as it is at the end (SY-17).
    pub async fn run(mut self, stop: CancellationToken) {
        self.look_at_health();
        // Our DNS server knows no name before the first sync; until then the cluster's own DNS pods serve, if there are
        // any.
        self.choose_options();
        let mut next = Some(self.sync_newest());
        let mut audits = tokio::time::interval(AUDIT);
        audits.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let retry = next.take().flatten();
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    self.input.options.end();
                    if self.choose_options() {
                        self.sync_newest();
                    }
                    return;
                }
                () = self.input.options.changed() => {
                    next = Some(if self.choose_options() { self.sync_newest() } else { retry });
                }
                changed = self.input.snapshots.changed() => {
                    if changed.is_err() {
                        return self.source_ended(&stop).await;
                    }
                    self.choose_options();
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
                _ = audits.tick() => {
                    let found = self.audit();
                    next = Some(if found { Some(Instant::now()) } else { retry });
                }
            }
        }
    }

    /// Takes the options that fit the newest view: while our DNS server does not serve, the cluster's own DNS pods may.
    /// True if the options changed, so a sync must follow.
    fn choose_options(&mut self) -> bool {
        let snapshot = Arc::clone(&self.input.snapshots.borrow());
        let chosen = self.input.options.choose(&snapshot);
        let changed = chosen.is_some();
        if let Some(options) = chosen {
            self.planner = Planner::new(options);
        }
        changed
    }

    /// Applies the newest view to the kernel. Returns when to retry, if the sync is incomplete.
    fn sync_newest(&mut self) -> Option<Instant> {
        self.sinks.pending.begin();
        let snapshot = Arc::clone(&self.input.snapshots.borrow_and_update());
        self.generation += 1;
        self.sinks.durations.kube_proxy.received(&self.received, &snapshot);
        self.received = Arc::clone(&snapshot);
        let started = Instant::now();
        self.planner.observe_addresses(Arc::clone(&self.input.addresses.borrow_and_update()));
        self.planner.update(Arc::clone(&snapshot));
        self.sinks.durations.plan.observe(started.elapsed().as_secs_f64());
        let started = Instant::now();
        let outcome = self.datapath.sync(self.planner.plan());
        let elapsed = started.elapsed();
        self.sinks.durations.sync.observe(elapsed.as_secs_f64());
        // The first sync and the one after a failure read the kernel back.
        let full = self.status.last_sync.is_none() || self.status.error.is_some();
        self.sinks.durations.kube_proxy.synced(full, elapsed);
        self.status.syncs += 1;
        self.status.planned = self.census.count(self.planner.plan());
        self.status.conflicts = self.planner.conflicts().cloned().collect();
        let complete = match outcome {
            Ok(synced) => {
                let before = self.status.snapshot.replace(Arc::clone(&snapshot));
                let without_local = self.status.planned.without_local;
                self.sinks.durations.kube_proxy.applied(before.as_deref(), &snapshot, without_local);
                self.succeeded(synced, elapsed)
            }
            Err(error) => self.failed(&error),
        };
        self.publish();
        if self.status.error.is_none() {
            self.sinks.reachable.send_replace(Some(snapshot));
            self.sinks.pending.end();
            self.give_health_checks();
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

    /// After the sync, so that a load balancer sends no client here too early (HM-7).
    fn give_health_checks(&self) {
        let checks = Checks::from(self.planner.plan());
        self.sinks.health_checks.send_if_modified(|known| {
            let modified = *known != checks;
            *known = checks;
            modified
        });
    }

    /// True if the data path took every service port.
    fn succeeded(&mut self, synced: Synced, elapsed: Duration) -> bool {
        let Synced { writes, refused } = synced;
        let generation = self.generation;
        if writes > 0 || self.status.last_sync.is_none() {
            info!(
                generation,
                writes,
                refused = refused.len(),
                frontends = self.status.planned.frontends,
                ?elapsed,
                "synced"
            );
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
