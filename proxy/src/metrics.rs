//! The numbers under `/metrics`, read at the moment of each request.

pub mod census;
mod kube_proxy;

use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use shunt_dns::Exporter;
use shunt_model::Snapshot;
use shunt_serving::metrics::Process;

use crate::datapath::{Counters, FlowSweep, Number, NumberKind, OpenPath, Part, Report};
use crate::status::Status;
use census::Counts;

pub use kube_proxy::KubeProxy;

/// What is measured on the way from a new view of the cluster to the kernel: buckets from 0.1 ms to 1.6 s.
///
/// Every sync counts, and the moment at which it ends. Whoever follows the status sees only the newest one, so the
/// reconciler tells these numbers itself.
#[derive(Clone, Debug)]
pub struct Durations {
    plan: Histogram,
    sync: Histogram,
    /// The same and more, by kube-proxy's names.
    kube_proxy: KubeProxy,
}

impl Durations {
    /// Of kube-proxy's metrics, those of syncs are counted in `kube_proxy`.
    #[must_use]
    pub fn new(kube_proxy: KubeProxy) -> Self {
        let histogram = || Histogram::new(exponential_buckets(0.0001, 2.0, 15));
        Self { plan: histogram(), sync: histogram(), kube_proxy }
    }

    /// A plan and its sync begin.
    pub fn begun(&self) {
        self.kube_proxy.queued();
    }

    /// A plan took so long.
    pub fn planned(&self, elapsed: Duration) {
        self.plan.observe(elapsed.as_secs_f64());
    }

    /// A sync was followed by these searches for stale UDP flows.
    pub fn swept(&self, sweeps: &[FlowSweep]) {
        self.kube_proxy.swept(sweeps);
    }

    /// A sync took so long, successful or not; a full one read the kernel back.
    pub fn synced(&self, full: bool, elapsed: Duration) {
        self.sync.observe(elapsed.as_secs_f64());
        self.kube_proxy.synced(full, elapsed);
    }

    /// The kernel went from `old`, the last view it served, to `new`.
    pub fn applied(&self, old: Option<&Snapshot>, new: &Snapshot) {
        self.kube_proxy.applied(old, new);
    }
}

/// All metrics: ours under the prefix `shunt_`, kube-proxy's under its own.
#[must_use]
pub fn registry(
    status: watch::Receiver<Status>,
    counts: watch::Receiver<Counts>,
    path: OpenPath,
    durations: Durations,
    dns: Option<Exporter>,
) -> Registry {
    let mut all = Registry::default();
    if let Some(dns) = dns {
        dns.register(&mut all);
    }
    durations.kube_proxy.register(&mut all);
    all.register_collector(Box::new(Process));
    let registry = all.sub_registry_with_prefix("shunt");
    registry.register("plan_duration_seconds", "Time to plan what a new view changes", durations.plan);
    registry.register("sync_duration_seconds", "Time of each sync, successful or not", durations.sync);
    registry.register_collector(Box::new(Proxy { status, counts }));
    registry.register_collector(Box::new(PathNumbers(path)));
    all
}

/// What the open data path counts; nothing before it is open.
#[derive(Debug)]
struct PathNumbers(OpenPath);

impl Collector for PathNumbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Report { numbers, installed, .. } = self.0.report();
        if let Some(chosen) = self.0.chosen() {
            let help = "Times that what another program had removed was put back";
            counter(&mut encoder, "installation_restored", help, installed.restored)?;
            for part in Part::ALL {
                let (name, help) = match part {
                    Part::Sockets => ("serves_sockets", "1 if programs at sockets serve this node's connections"),
                    Part::Programs => ("serves_packets_by_programs", "1 if programs at network devices serve packets"),
                    Part::Nftables => ("serves_packets_by_nftables", "1 if nftables rules serve packets"),
                    Part::Iptables => ("serves_packets_by_iptables", "1 if iptables rules serve packets"),
                };
                gauge(&mut encoder, name, help, usize::from(chosen.has(part)))?;
            }
        }
        for Number { name, help, kind, value } in numbers {
            match kind {
                NumberKind::Counter => counter(&mut encoder, name, help, value)?,
                NumberKind::Gauge => gauge(&mut encoder, name, help, value)?,
            }
        }
        for Counters { name, help, values } in self.0.counters() {
            match values.as_slice() {
                [(labels, value)] if labels.is_empty() => counter(&mut encoder, name, help, *value)?,
                _ => family(&mut encoder, name, help, values.into_iter())?,
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Proxy {
    status: watch::Receiver<Status>,
    counts: watch::Receiver<Counts>,
}

impl Collector for Proxy {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // The encoder writes to memory and never waits, so the sender is not held up.
        let status = self.status.borrow();
        counter(&mut encoder, "syncs", "Syncs tried", status.syncs)?;
        counter(&mut encoder, "failed_syncs", "Syncs that failed as a whole", status.failed_syncs)?;
        counter(&mut encoder, "kernel_writes", "Map elements written, removals included", status.writes)?;
        counter(&mut encoder, "audit_repairs", "Elements that were not as written and were repaired", status.repaired)?;
        gauge(&mut encoder, "refused_ports", "Service ports the data path could not take", status.refused.len())?;
        gauge(&mut encoder, "conflicts", "Service ports without a frontend that another has", status.conflicts.len())?;
        let Counts { ports, frontends, endpoints, without_local: _ } = *self.counts.borrow();
        gauge(&mut encoder, "service_ports", "Service ports planned", ports)?;
        gauge(&mut encoder, "frontends", "Frontends planned", frontends)?;
        gauge(&mut encoder, "endpoints", "Endpoints planned, once per service port", endpoints)?;
        gauge(&mut encoder, "source_problems", "Objects and files ignored now", status.source.problems.len())?;
        gauge(
            &mut encoder,
            "source_unreachable",
            "1 while the source cannot be read",
            usize::from(status.source.unreachable.is_some()),
        )?;
        let ignored = status.source.counts.iter().map(|(kind, count)| ([("kind", *kind)], *count));
        family(&mut encoder, "objects_ignored", "Objects, parts of objects and files ignored", ignored)
    }
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    ConstCounter::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: impl TryInto<i64>) -> fmt::Result {
    let value = value.try_into().unwrap_or(i64::MAX);
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn family(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl Iterator<Item = (impl EncodeLabelSet, u64)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in values {
        ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}
