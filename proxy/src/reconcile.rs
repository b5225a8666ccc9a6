//! Makes the kernel follow the cluster: one owner of planner and data path, which tries again what failed.

mod backoff;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use imbl::ordmap::DiffItem;
use shunt_model::source::SourceHealth;
use shunt_model::{Family, Snapshot, with_causes};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::datapath::ebpf::socket::upkeep::Orders;
use crate::datapath::{Datapath, SyncError, Synced};
use crate::dns::watch as dns_watch;
use crate::events::Recorder;
use crate::http::health_checks::Checks;
use crate::metrics::WithoutLocal;
use crate::plan::{FrontendKind, List, Plan, PlanOptions, Planner, PortKey, PortPlan, Rule};
use crate::status::{LastSync, Pending, Status};
use backoff::Backoff;

/// How often a part of the kernel is compared with what was written to it.
const AUDIT: Duration = Duration::from_secs(1);

/// Where the loop gets its input.
pub struct Input {
    /// Views of the cluster; the first is complete already (spec SY-1).
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// What is wrong with the input.
    pub health: watch::Receiver<SourceHealth>,
    /// Addresses of this node's interfaces.
    pub addresses: watch::Receiver<Arc<BTreeSet<IpAddr>>>,
    /// The bundled DNS knows the cluster and answers.
    pub dns_serves: watch::Receiver<bool>,
}

/// Where the loop tells what it did.
pub struct Output {
    /// How it is doing.
    pub status: watch::Sender<Status>,
    /// The views that the kernel serves, for DNS: a name must not resolve to a service that is not reachable yet.
    pub reachable: watch::Sender<Option<Arc<Snapshot>>>,
    /// What is to be seen to beside the tables.
    pub orders: watch::Sender<Orders>,
    /// The health checks that the kernel's endpoints lead to.
    pub health_checks: watch::Sender<Checks>,
    /// Since when a change waits.
    pub pending: Pending,
    /// Takes what is refused.
    pub events: Recorder,
    /// Takes the duration of every sync in seconds.
    pub durations: crate::metrics::Durations,
}

/// The loop's state.
pub struct Reconciler {
    options: PlanOptions,
    planner: Planner,
    /// The planner leaves the bundled DNS out.
    without_dns: bool,
    datapath: Box<dyn Datapath>,
    input: Input,
    output: Output,
    status: Status,
    counted: Plan,
    /// The view that came last.
    received: Arc<Snapshot>,
    generation: u64,
    backoff: Backoff,
}

impl Reconciler {
    /// A loop that has not begun.
    #[must_use]
    pub fn new(options: PlanOptions, datapath: Box<dyn Datapath>, input: Input, output: Output) -> Self {
        Self {
            planner: Planner::new(options.clone()),
            options,
            without_dns: false,
            datapath,
            input,
            output,
            status: Status::default(),
            counted: Plan::default(),
            received: Arc::default(),
            generation: 0,
            backoff: Backoff::default(),
        }
    }

    /// Syncs now, at every new view, and again after a failure, until stopped or the source ends. Syncs block: this
    /// future wants a thread of its own. The data path stays as it is at the end (spec SY-17).
    pub async fn run(mut self, stop: CancellationToken) {
        self.look_at_health();
        // Our server knows no name before the first sync is done; until then others go on that are there.
        let serves = *self.input.dns_serves.borrow_and_update();
        self.choose_dns(serves);
        let mut next = Some(self.sync_newest());
        let mut audits = tokio::time::interval(AUDIT);
        audits.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let retry = next.take().flatten();
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    // Nobody answers at our address from now on.
                    if self.choose_dns(false) {
                        self.sync_newest();
                    }
                    return;
                }
                Ok(()) = self.input.dns_serves.changed() => {
                    let serves = *self.input.dns_serves.borrow_and_update();
                    next = Some(if self.choose_dns(serves) { self.sync_newest() } else { retry });
                }
                changed = self.input.snapshots.changed() => {
                    if changed.is_err() {
                        return self.source_ended(&stop).await;
                    }
                    // Others may be there now who can do what our server does not.
                    let serves = *self.input.dns_serves.borrow();
                    self.choose_dns(serves);
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

    /// Sends the clients of the cluster DNS address to our server, or while that does not serve and as long as they are
    /// there, to the cluster's own DNS pods. True if that is a change, which a sync has to follow.
    fn choose_dns(&mut self, ours_serves: bool) -> bool {
        if self.options.dns_backends.is_empty() {
            return false;
        }
        let snapshot = Arc::clone(&self.input.snapshots.borrow());
        let others = if ours_serves { None } else { dns_watch::without_ours(&self.options, &snapshot) };
        let without_dns = others.is_some();
        if without_dns == self.without_dns {
            return false;
        }
        let server = if without_dns { "the cluster's own" } else { "the bundled one" };
        info!(server, "the cluster DNS address leads to another server now");
        self.planner = Planner::new(others.unwrap_or_else(|| self.options.clone()));
        self.without_dns = without_dns;
        true
    }

    /// Brings the newest view into the kernel. Returns when to try again, if something is left to be done.
    fn sync_newest(&mut self) -> Option<Instant> {
        self.output.pending.begin();
        let snapshot = Arc::clone(&self.input.snapshots.borrow_and_update());
        self.generation += 1;
        self.output.durations.kube_proxy.received(&self.received, &snapshot);
        self.received = Arc::clone(&snapshot);
        let started = Instant::now();
        self.planner.observe_addresses(Arc::clone(&self.input.addresses.borrow_and_update()));
        self.planner.update(Arc::clone(&snapshot));
        self.output.durations.plan.observe(started.elapsed().as_secs_f64());
        let started = Instant::now();
        let outcome = self.datapath.sync(self.planner.plan());
        let elapsed = started.elapsed();
        self.output.durations.sync.observe(elapsed.as_secs_f64());
        // The first sync and the one after a failure read the kernel back.
        let full = self.status.last_sync.is_none() || self.status.error.is_some();
        self.output.durations.kube_proxy.synced(full, elapsed);
        self.status.syncs += 1;
        self.describe_plan();
        let complete = match outcome {
            Ok(synced) => {
                let before = self.status.snapshot.replace(Arc::clone(&snapshot));
                let without_local = self.status.without_local;
                self.output.durations.kube_proxy.applied(before.as_deref(), &snapshot, without_local);
                self.succeeded(synced, elapsed)
            }
            Err(error) => self.failed(&error),
        };
        self.publish();
        if self.status.error.is_none() {
            self.output.reachable.send_replace(Some(snapshot));
            self.output.pending.end();
            self.give_health_checks();
        }
        if complete {
            self.backoff.reset();
            return None;
        }
        let delay = self.backoff.next_delay();
        warn!(?delay, "the sync is incomplete and will be tried again");
        Some(Instant::now() + delay)
    }

    /// Compares and repairs a part; true if the whole must be read back, which the next sync does.
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

    /// Says what is to be seen to, now that the tables are as planned.
    fn give_orders(&mut self, departed: u64) {
        let plan = self.planner.plan();
        let orders = Orders {
            opted_out: Arc::clone(&plan.opted_out),
            sources: self.status.filtered > 0,
            departed: self.output.orders.borrow().departed.saturating_add(departed),
        };
        self.output.orders.send_if_modified(|known| {
            let modified = *known != orders || self.status.syncs == 1;
            *known = orders;
            modified
        });
    }

    /// After the sync, so that a load balancer sends nobody here too early (spec HM-7).
    fn give_health_checks(&self) {
        let checks = Checks::from(self.planner.plan());
        self.output.health_checks.send_if_modified(|known| {
            let modified = *known != checks;
            *known = checks;
            modified
        });
    }

    /// Counts what the plan holds, looking only at what changed.
    fn describe_plan(&mut self) {
        let plan = self.planner.plan().clone();
        let old = std::mem::replace(&mut self.counted, plan);
        let status = &mut self.status;
        for item in old.ports.diff(&self.counted.ports) {
            let (gone, come) = match item {
                DiffItem::Add(_, new) => (None, Some(new)),
                DiffItem::Remove(_, old) => (Some(old), None),
                DiffItem::Update { old: (_, old), new: (_, new) } => (Some(old), Some(new)),
            };
            if let Some(port) = gone {
                status.filtered -= usize::from(port.source_ranges.is_some());
                status.frontends -= port.frontends.len();
                status.endpoints -= reachable(port);
                count_without_local(port, -1, &mut status.without_local);
            }
            if let Some(port) = come {
                status.filtered += usize::from(port.source_ranges.is_some());
                status.frontends += port.frontends.len();
                status.endpoints += reachable(port);
                count_without_local(port, 1, &mut status.without_local);
            }
        }
        status.ports = self.counted.ports.len();
        status.conflicts = self.planner.conflicts().cloned().collect();
    }

    /// True if every service port was taken.
    fn succeeded(&mut self, synced: Synced, elapsed: Duration) -> bool {
        let Synced { writes, refused, departed } = synced;
        self.give_orders(departed);
        let generation = self.generation;
        if writes > 0 || self.status.last_sync.is_none() {
            info!(generation, writes, refused = refused.len(), frontends = self.status.frontends, ?elapsed, "synced");
        }
        for (port, reason) in new_refusals(&self.status.refused, &refused) {
            error!(service = %port.service, port = %port, reason, "service port is not served");
            let note = format!("port {port} is not served on this node: {reason}");
            self.output.events.service_warning(&port.service, "FailedToProgramService", "Sync", note);
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

    /// Notes what is wrong with the input; the source logs it.
    fn look_at_health(&mut self) {
        self.status.source = Arc::new(self.input.health.borrow_and_update().clone());
    }

    fn publish(&self) {
        self.output.status.send_replace(self.status.clone());
    }

    async fn source_ended(self, stop: &CancellationToken) {
        error!("the source has ended; what is programmed stays in force but follows no changes");
        stop.cancelled().await;
    }
}

/// The refusals that were not there before.
fn new_refusals<'a>(
    old: &'a [(PortKey, String)],
    new: &'a [(PortKey, String)],
) -> impl Iterator<Item = &'a (PortKey, String)> {
    let known: std::collections::HashSet<_> = old.iter().collect();
    new.iter().filter(move |refusal| !known.contains(refusal))
}

/// How many endpoints any of its frontends may lead to; the local ones are nearly always among the others.
fn reachable(port: &PortPlan) -> usize {
    port.cluster.len().max(port.local.len())
}

/// A port with endpoints, but none here for those who must have one here (spec 7.4).
fn count_without_local(port: &PortPlan, by: i64, count: &mut WithoutLocal) {
    if port.cluster.is_empty() || !port.local.is_empty() {
        return;
    }
    let is_local = |rule: Rule| rule.list == List::Local;
    let internal =
        port.frontends.iter().any(|frontend| frontend.kind == FrontendKind::ClusterIp && is_local(frontend.from_pods));
    let external = port
        .frontends
        .iter()
        .any(|frontend| frontend.kind != FrontendKind::ClusterIp && is_local(frontend.from_outside));
    let index = usize::from(port.key.family == Family::V6);
    for (counts, counted) in [(&mut count.internal, internal), (&mut count.external, external)] {
        if let Some(count) = counts.get_mut(index).filter(|_| counted) {
            *count += by;
        }
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
