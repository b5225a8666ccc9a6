//! kube-proxy's metrics by its names, labels and buckets, where the meaning is the same (MT-1).

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use imbl::ordmap::DiffItem;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Metrics;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use shunt_model::{EndpointSlice, Family, Snapshot};
use tokio::sync::watch;

use super::census::WithoutLocal;
use crate::datapath::FlowSweep;
use crate::status::{LastSync, Status};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfFamily {
    ip_family: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPolicy {
    traffic_policy: &'static str,
    ip_family: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCode {
    code: u16,
}

type Seconds = Gauge<f64, AtomicU64>;
type Histograms = Metrics<OfFamily, Histogram, fn() -> Histogram>;

/// The metrics; clones count together.
#[derive(Clone, Debug)]
pub struct KubeProxy {
    started: SystemTime,
    syncs: Histograms,
    full_syncs: Histograms,
    partial_syncs: Histograms,
    programming: Histograms,
    flow_sweeps: Histograms,
    ended_flows: Metrics<OfFamily, Counter>,
    last: Metrics<OfFamily, Seconds>,
    queued: Metrics<OfFamily, Seconds>,
    no_local: Metrics<OfPolicy, Gauge>,
    endpoint_changes: Counter,
    endpoint_changes_pending: Gauge,
    service_changes: Counter,
    service_changes_pending: Gauge,
    healthz: Metrics<OfCode, Counter>,
    livez: Metrics<OfCode, Counter>,
}

impl Default for KubeProxy {
    fn default() -> Self {
        let syncs: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        let programming: fn() -> Histogram = || Histogram::new(programming_buckets());
        Self {
            started: SystemTime::now(),
            syncs: Metrics::new_with_constructor(syncs),
            full_syncs: Metrics::new_with_constructor(syncs),
            partial_syncs: Metrics::new_with_constructor(syncs),
            programming: Metrics::new_with_constructor(programming),
            flow_sweeps: Metrics::new_with_constructor(syncs),
            ended_flows: Metrics::default(),
            last: Metrics::default(),
            queued: Metrics::default(),
            no_local: Metrics::default(),
            endpoint_changes: Counter::default(),
            endpoint_changes_pending: Gauge::default(),
            service_changes: Counter::default(),
            service_changes_pending: Gauge::default(),
            healthz: Metrics::default(),
            livez: Metrics::default(),
        }
    }
}

/// 0.25, 0.5, 1…59 by 1, 60…115 by 5, 120…300 by 30 seconds.
fn programming_buckets() -> impl Iterator<Item = f64> {
    let whole = (1_u32..60).chain((60..=115).step_by(5)).chain((120..=300).step_by(30));
    [0.25, 0.5].into_iter().chain(whole.map(f64::from))
}

fn label(family: Family) -> OfFamily {
    let ip_family = match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    };
    OfFamily { ip_family }
}

fn unix(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// How many slices and Services differ.
fn changes(old: &Snapshot, new: &Snapshot) -> (usize, usize) {
    if std::ptr::eq(old, new) {
        return (0, 0);
    }
    (old.slices.diff(&new.slices).count(), old.services.diff(&new.services).count())
}

impl KubeProxy {
    /// Puts them under their names.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("kubeproxy");
        // Known from the start, for rates and quantiles of the first ones.
        let histograms = [&self.syncs, &self.full_syncs, &self.partial_syncs, &self.programming, &self.flow_sweeps];
        for family in Family::BOTH {
            histograms.into_iter().for_each(|histograms| drop(histograms.get_or_create(&label(family))));
            drop(self.ended_flows.get_or_create(&label(family)));
        }
        let mut syncs = |name, help, metric: &Histograms| registry.register(name, help, metric.clone());
        syncs("sync_proxy_rules_duration_seconds", "Time of each sync, successful or not", &self.syncs);
        syncs("sync_full_proxy_rules_duration_seconds", "Time of syncs that read the kernel back", &self.full_syncs);
        syncs("sync_partial_proxy_rules_duration_seconds", "Time of all other syncs", &self.partial_syncs);
        let help = "From the change of an endpoint in the cluster until it is in the kernel";
        syncs("network_programming_duration_seconds", help, &self.programming);
        syncs(
            "conntrack_reconciler_sync_duration_seconds",
            "Time of each search for stale UDP flows",
            &self.flow_sweeps,
        );
        let help = "Stale UDP flows that were ended";
        registry.register("conntrack_reconciler_deleted_entries", help, self.ended_flows.clone());
        let times = [
            ("sync_proxy_rules_last_timestamp_seconds", "When a sync last succeeded", &self.last),
            ("sync_proxy_rules_last_queued_timestamp_seconds", "When a sync was last asked for", &self.queued),
        ];
        for (name, help, metric) in times {
            registry.register(name, help, metric.clone());
        }
        let help = "Service ports with a Local policy and endpoints, but none on this node";
        registry.register("sync_proxy_rules_no_local_endpoints_total", help, self.no_local.clone());
        let counters = [
            ("sync_proxy_rules_endpoint_changes", "Changes of slices received", &self.endpoint_changes),
            ("sync_proxy_rules_service_changes", "Changes of Services received", &self.service_changes),
        ];
        for (name, help, metric) in counters {
            registry.register(name, help, metric.clone());
        }
        let gauges = [
            (
                "sync_proxy_rules_endpoint_changes_pending",
                "Changes of slices not applied",
                &self.endpoint_changes_pending,
            ),
            (
                "sync_proxy_rules_service_changes_pending",
                "Changes of Services not applied",
                &self.service_changes_pending,
            ),
        ];
        for (name, help, metric) in gauges {
            registry.register(name, help, metric.clone());
        }
        registry.register("proxy_healthz", "Answers on /healthz", self.healthz.clone());
        registry.register("proxy_livez", "Answers on /livez", self.livez.clone());
    }

    /// Counts the changes that come with views and those that wait to be applied, for ever.
    pub async fn follow(self, mut snapshots: watch::Receiver<Arc<Snapshot>>, mut status: watch::Receiver<Status>) {
        let mut received = Arc::<Snapshot>::default();
        loop {
            let newest = Arc::clone(&snapshots.borrow_and_update());
            self.received(&received, &newest);
            received = newest;
            let (served, last) = {
                let status = status.borrow_and_update();
                (status.snapshot.clone(), status.last_sync)
            };
            if let (Some(served), Some(last)) = (served, last) {
                self.served(&served, &received, last);
            }
            tokio::select! {
                Ok(()) = snapshots.changed() => {}
                Ok(()) = status.changed() => {}
                else => return std::future::pending().await,
            }
        }
    }

    /// A view came that leads from `old` to `new`.
    fn received(&self, old: &Snapshot, new: &Snapshot) {
        let (slices, services) = changes(old, new);
        self.endpoint_changes.inc_by(u64::try_from(slices).unwrap_or(u64::MAX));
        self.service_changes.inc_by(u64::try_from(services).unwrap_or(u64::MAX));
        self.endpoint_changes_pending.inc_by(i64::try_from(slices).unwrap_or(i64::MAX));
        self.service_changes_pending.inc_by(i64::try_from(services).unwrap_or(i64::MAX));
    }

    /// The kernel serves `served`, the view that came last is `received`.
    fn served(&self, served: &Snapshot, received: &Snapshot, last: LastSync) {
        let (slices, services) = changes(served, received);
        self.endpoint_changes_pending.set(i64::try_from(slices).unwrap_or(i64::MAX));
        self.service_changes_pending.set(i64::try_from(services).unwrap_or(i64::MAX));
        for family in Family::BOTH {
            self.last.get_or_create(&label(family)).set(unix(last.at));
        }
    }

    /// So many of the service ports that the kernel serves have no endpoint here.
    pub(super) fn serves(&self, without_local: WithoutLocal) {
        for (family, index) in [(Family::V4, 0), (Family::V6, 1)] {
            let ip_family = label(family).ip_family;
            for (traffic_policy, counts) in [("internal", without_local.internal), ("external", without_local.external)]
            {
                let count = counts.get(index).copied().unwrap_or_default();
                self.no_local.get_or_create(&OfPolicy { traffic_policy, ip_family }).set(count);
            }
        }
    }

    /// A sync is asked for.
    pub(super) fn queued(&self) {
        for family in Family::BOTH {
            self.queued.get_or_create(&label(family)).set(unix(SystemTime::now()));
        }
    }

    /// A sync ended, well or not. Both families are synced at once.
    pub(super) fn synced(&self, full: bool, elapsed: Duration) {
        let which = if full { &self.full_syncs } else { &self.partial_syncs };
        for family in Family::BOTH {
            self.syncs.get_or_create(&label(family)).observe(elapsed.as_secs_f64());
            which.get_or_create(&label(family)).observe(elapsed.as_secs_f64());
        }
    }

    /// A sync was followed by these searches for stale UDP flows.
    pub(super) fn swept(&self, sweeps: &[FlowSweep]) {
        for FlowSweep { family, elapsed, ended } in sweeps {
            self.flow_sweeps.get_or_create(&label(*family)).observe(elapsed.as_secs_f64());
            self.ended_flows.get_or_create(&label(*family)).inc_by(*ended);
        }
    }

    /// The kernel went from `old`, the last view it served, to `new` (SY-20).
    pub(super) fn applied(&self, old: Option<&Snapshot>, new: &Snapshot) {
        let now = SystemTime::now();
        let empty = Snapshot::default();
        for item in old.unwrap_or(&empty).slices.diff(&new.slices) {
            let slice = match item {
                DiffItem::Add(_, slice) | DiffItem::Update { old: _, new: (_, slice) } => slice,
                DiffItem::Remove(..) => continue,
            };
            if let Some(elapsed) = self.programming_time(slice, now) {
                self.programming.get_or_create(&label(slice.family)).observe(elapsed.as_secs_f64());
            }
        }
    }

    /// None for what happened before this process did, and for clocks that disagree.
    fn programming_time(&self, slice: &EndpointSlice, now: SystemTime) -> Option<Duration> {
        let triggered = slice.triggered.filter(|triggered| *triggered >= self.started)?;
        now.duration_since(triggered).ok()
    }

    /// An answer on `/healthz`.
    pub fn healthz(&self, code: u16) {
        self.healthz.get_or_create(&OfCode { code }).inc();
    }

    /// An answer on `/livez`.
    pub fn livez(&self, code: u16) {
        self.livez.get_or_create(&OfCode { code }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::{cluster, slice};
    use shunt_serving::metrics::classic;

    fn scrape(metrics: &KubeProxy) -> String {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        classic(&text)
    }

    #[track_caller]
    fn check(text: &str, line: &str) {
        assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
    }

    #[test]
    fn names_labels_and_buckets_are_kube_proxys() {
        let metrics = KubeProxy::default();
        let mut changed = slice("web", "a", "http:80/tcp", "e1:R");
        changed.triggered = Some(SystemTime::now());
        let (old, new) = (Snapshot::default(), cluster([], [changed]));
        metrics.received(&old, &new);
        check(&scrape(&metrics), "kubeproxy_sync_proxy_rules_endpoint_changes_pending 1");
        metrics.synced(true, Duration::from_millis(3));
        metrics.applied(None, &new);
        let last = LastSync { generation: 1, at: SystemTime::now(), elapsed: Duration::from_millis(3) };
        metrics.served(&new, &new, last);
        metrics.serves(WithoutLocal { internal: [1, 0], external: [0, 2] });
        metrics.swept(&[FlowSweep { family: Family::V6, elapsed: Duration::from_millis(3), ended: 7 }]);
        metrics.healthz(503);
        metrics.livez(200);
        let text = scrape(&metrics);
        for line in [
            "# TYPE kubeproxy_sync_proxy_rules_duration_seconds histogram",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.002\",ip_family=\"IPv4\"} 0",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.004\",ip_family=\"IPv6\"} 1",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"0.25\",ip_family=\"IPv4\"} 1",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"115.0\",ip_family=\"IPv4\"} 1",
            "# TYPE kubeproxy_sync_proxy_rules_no_local_endpoints_total gauge",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"internal\",ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\",ip_family=\"IPv6\"} 2",
            "# TYPE kubeproxy_sync_proxy_rules_endpoint_changes_total counter",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 1",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
            "kubeproxy_sync_proxy_rules_service_changes_total 0",
            "kubeproxy_conntrack_reconciler_sync_duration_seconds_bucket{le=\"0.004\",ip_family=\"IPv6\"} 1",
            "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"} 0",
            "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv6\"} 7",
            "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
            "kubeproxy_proxy_livez_total{code=\"200\"} 1",
        ] {
            check(&text, line);
        }
        assert!(text.contains("kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} 1"));
        assert!(!text.contains("# EOF"));
        assert_eq!(programming_buckets().count(), 2 + 59 + 12 + 7);
    }

    /// How many changes of slices have come, and how many of them are not applied.
    fn slice_changes(metrics: &KubeProxy) -> (u64, i64) {
        (metrics.endpoint_changes.get(), metrics.endpoint_changes_pending.get())
    }

    #[tokio::test(start_paused = true)]
    async fn changes_wait_until_the_kernel_serves_their_view() {
        let view = |ends: &str| Arc::new(cluster([], [slice("web", "a", "http:80/tcp", ends)]));
        let last_sync = Some(LastSync { generation: 1, at: SystemTime::now(), elapsed: Duration::ZERO });
        let served = |view: &Arc<Snapshot>| Status { last_sync, snapshot: Some(Arc::clone(view)), ..Status::default() };
        // The clock moves only when the follower has nothing left to do.
        let settle = || tokio::time::sleep(Duration::from_millis(1));
        let (first, second) = (view("e1:R"), view("e1:R; e2:R"));
        let (snapshots, snapshots_read) = watch::channel(Arc::clone(&first));
        let (status, status_read) = watch::channel(Status::default());
        let metrics = KubeProxy::default();
        let follower = tokio::spawn(metrics.clone().follow(snapshots_read, status_read));
        settle().await;
        assert_eq!(slice_changes(&metrics), (1, 1));
        snapshots.send_replace(Arc::clone(&second));
        settle().await;
        assert_eq!(slice_changes(&metrics), (2, 2));
        status.send_replace(served(&first));
        settle().await;
        assert_eq!(slice_changes(&metrics), (2, 1), "the second one still waits");
        status.send_replace(served(&second));
        settle().await;
        assert_eq!(slice_changes(&metrics), (2, 0));
        follower.abort();
    }

    #[test]
    fn only_changes_since_the_start_have_a_programming_time() {
        // SY-20
        let metrics = KubeProxy::default();
        let at = |triggered| EndpointSlice { triggered, ..slice("web", "a", "http:80/tcp", "e1:R") };
        let now = SystemTime::now() + Duration::from_secs(2);
        let time = |triggered| metrics.programming_time(&at(triggered), now).map(|time| time.as_secs());
        assert_eq!(time(Some(now - Duration::from_secs(1))), Some(1));
        assert_eq!(time(Some(now - Duration::from_secs(3_600))), None);
        assert_eq!(time(Some(now + Duration::from_secs(5))), None, "a clock ahead of ours");
        assert_eq!(time(None), None);
    }
}
