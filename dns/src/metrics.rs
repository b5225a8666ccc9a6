//! The counters as Prometheus metrics: under CoreDNS's names and labels where the meaning is the same (DNS-12), so
//! that dashboards still work.

mod configured;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use hickory_proto::rr::Name;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use shunt_model::{ClusterIps, Snapshot};

use crate::block::{Block, Blocks};
use crate::plugin::Plugin;
use crate::request::Transport;
use crate::stats::{Counter, Counters, Dropped, HealthCounters, Kind, Peers, Stats};

type Labels<'a> = Vec<(&'static str, &'a str)>;

/// The counters of a server; a reload replaces its blocks, but not these.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Where it listens, as CoreDNS writes it.
    server: String,
    blocks: Mutex<BTreeMap<Name, Arc<Counters>>>,
    pub(crate) peers: Arc<Peers>,
    /// Of queries that no block takes.
    pub(crate) unmatched: Arc<Counters>,
    pub(crate) dropped: Dropped,
    programming: [(&'static str, Histogram); 3],
    /// Older triggers are those of changes that were made before this server started.
    started: SystemTime,
    pub(crate) failed_reloads: Counter,
    /// Which text of the Corefile is in force.
    version: Mutex<Option<String>>,
    /// Where there is a `/health`.
    health: OnceLock<HealthCounters>,
}

/// `dns://ADDRESS:PORT` if there is one address, as CoreDNS writes it with `bind`, and else `dns://:PORT`.
fn server_label(listen: &[SocketAddr]) -> String {
    match listen {
        [one] if !one.ip().is_unspecified() => format!("dns://{one}"),
        _ => format!("dns://:{}", listen.first().map_or(0, SocketAddr::port)),
    }
}

impl Metrics {
    pub(crate) fn new(listen: &[SocketAddr]) -> Self {
        // 1 ms, doubling 20 times.
        let histogram = |kind| (kind, Histogram::new(exponential_buckets(0.001, 2.0, 20)));
        Self {
            server: server_label(listen),
            peers: Arc::default(),
            blocks: Mutex::default(),
            unmatched: Arc::default(),
            dropped: Dropped::default(),
            programming: ["cluster_ip", "headless_with_selector", "headless_without_selector"].map(histogram),
            started: SystemTime::now(),
            failed_reloads: Counter::default(),
            version: Mutex::default(),
            health: OnceLock::new(),
        }
    }

    /// The counters of a block, which are the same after a reload.
    pub(crate) fn counters(&self, domain: &Name) -> Arc<Counters> {
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(blocks.entry(domain.clone()).or_default())
    }

    /// The counters of `/health`, which are exported from the first call on.
    pub(crate) fn health(&self) -> &HealthCounters {
        self.health.get_or_init(HealthCounters::default)
    }

    /// Another text of the Corefile is in force.
    pub(crate) fn runs(&self, version: String) {
        *self.version.lock().unwrap_or_else(PoisonError::into_inner) = Some(version);
    }

    /// How long ago the changes were made that `new` has and `old` has not.
    pub(crate) fn programmed(&self, old: &Snapshot, new: &Snapshot) {
        let now = SystemTime::now();
        for change in old.slices.diff(&new.slices) {
            use imbl::ordmap::DiffItem;
            let (before, slice) = match change {
                DiffItem::Add(_, new) => (None, new),
                DiffItem::Update { old: (_, old), new: (_, new) } => (old.triggered, new),
                DiffItem::Remove(..) => continue,
            };
            let triggered = slice.triggered.filter(|at| *at >= self.started && Some(*at) != before);
            let Some(took) = triggered.and_then(|at| now.duration_since(at).ok()) else { continue };
            let headless =
                new.services.get(&slice.key.service).is_some_and(|service| service.cluster_ips == ClusterIps::Headless);
            // Triggers are written by the controller of Services with a selector.
            let kind = if headless { "headless_with_selector" } else { "cluster_ip" };
            self.observe_programming(kind, took);
        }
    }

    fn observe_programming(&self, kind: &str, took: Duration) {
        for (_, histogram) in self.programming.iter().filter(|(known, _)| *known == kind) {
            histogram.observe(took.as_secs_f64());
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        let mut stats = Stats {
            malformed: self.dropped.malformed.get(),
            send_failures: self.dropped.send_failures.get(),
            tcp_rejects: self.dropped.tcp_rejects.get(),
            ..Stats::default()
        };
        self.unmatched.add_to(&mut stats);
        for counters in self.blocks.lock().unwrap_or_else(PoisonError::into_inner).values() {
            counters.add_to(&mut stats);
        }
        stats
    }

    fn blocks(&self) -> Vec<(String, Arc<Counters>)> {
        let blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        blocks.iter().map(|(domain, counters)| (crate::names::text(domain), Arc::clone(counters))).collect()
    }
}

/// Registers the counters of a server as metrics, and tells its warnings, without keeping the server alive.
#[derive(Clone)]
pub struct Exporter {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) blocks: Weak<Blocks>,
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exporter")
    }
}

impl Exporter {
    /// Adds the metrics under CoreDNS's prefix, and those that CoreDNS has not under `shunt_dns`.
    pub fn register(&self, registry: &mut Registry) {
        registry.sub_registry_with_prefix("coredns").register_collector(Box::new(Coredns(self.clone())));
        registry.sub_registry_with_prefix("shunt_dns").register_collector(Box::new(Own(self.clone())));
    }

    /// What an operator should know of a server that is ready: which names it refuses for want of upstreams.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let blocks = self.blocks.upgrade().map(|blocks| blocks.now()).unwrap_or_default();
        let mut warnings: Vec<String> = blocks.iter().flat_map(|block| block.forwarder.warnings()).collect();
        warnings.sort();
        warnings.dedup();
        warnings
    }
}

#[derive(Debug)]
struct Own(Exporter);

impl Collector for Own {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stats = self.0.metrics.stats();
        for (name, help, value) in [
            ("malformed", "Messages that were not one question", stats.malformed),
            ("send_failures", "Replies that could not be sent", stats.send_failures),
            ("tcp_rejects", "TCP clients that were rejected or too slow", stats.tcp_rejects),
            ("forwards", "Queries that were forwarded", stats.forwarded),
            ("forward_failures", "Forwarded queries that no upstream answered", stats.forward_failures),
        ] {
            plain(&mut encoder, name, help, value)?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Coredns(Exporter);

impl Collector for Coredns {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Exporter { metrics, blocks } = &self.0;
        let of_blocks = metrics.blocks();
        // CoreDNS's word for them.
        let unmatched = ("dropped".to_owned(), Arc::clone(&metrics.unmatched));
        let used = metrics.unmatched.requests().next().is_some();
        let all: Vec<_> = of_blocks.iter().cloned().chain(used.then_some(unmatched)).collect();
        queries(&mut encoder, metrics, &all)?;
        sizes_and_times(&mut encoder, metrics, &all)?;
        cache(&mut encoder, metrics, &of_blocks)?;
        for (name, help, value) in [
            (
                "forward_healthcheck_broken",
                "Queries when all upstreams were down",
                sum(&of_blocks, |c| &c.all_upstreams_down),
            ),
            (
                "forward_max_concurrent_rejects",
                "Queries refused because too many were waiting",
                sum(&of_blocks, |c| &c.forward_rejects),
            ),
            ("reload_failed", "Configurations that could not be used", metrics.failed_reloads.get()),
            ("panics", "Queries that made the server panic", metrics.dropped.panics.get()),
        ] {
            plain(&mut encoder, name, help, value)?;
        }
        templates(&mut encoder, metrics, &of_blocks)?;
        let autopath = [(vec![("server", metrics.server.as_str())], sum(&of_blocks, |c| &c.autopath_successes))];
        counters(&mut encoder, "autopath_success", "Search paths completed", autopath)?;
        let mut programming = encoder.encode_descriptor(
            "kubernetes_dns_programming_duration_seconds",
            "From the change of an endpoint until DNS answers with it",
            None,
            MetricType::Histogram,
        )?;
        for (kind, histogram) in &metrics.programming {
            histogram.encode(programming.encode_family(&[("service_kind", *kind)])?)?;
        }
        let build = [("version", env!("CARGO_PKG_VERSION")), ("revision", ""), ("goversion", "")];
        let mut info = encoder.encode_descriptor("build_info", "The version of shunt", None, MetricType::Gauge)?;
        ConstGauge::new(1_i64).encode(info.encode_family(&build)?)?;
        configured::health(&mut encoder, metrics)?;
        configured::version(&mut encoder, metrics)?;
        let Some(blocks) = blocks.upgrade().map(|blocks| blocks.now()) else { return Ok(()) };
        configured::plugins(&mut encoder, metrics, &blocks)?;
        entries(&mut encoder, metrics, &blocks)?;
        configured::hosts(&mut encoder, &blocks)?;
        upstreams(&mut encoder, metrics)
    }
}

fn sum(blocks: &[(String, Arc<Counters>)], of: fn(&Counters) -> &Counter) -> u64 {
    blocks.iter().map(|(_, counters)| of(counters).get()).sum()
}

fn transport_name(transport: Transport) -> &'static str {
    match transport {
        Transport::Udp => "udp",
        Transport::Tcp => "tcp",
    }
}

fn queries(encoder: &mut DescriptorEncoder<'_>, metrics: &Metrics, blocks: &[(String, Arc<Counters>)]) -> fmt::Result {
    let server = metrics.server.as_str();
    let mut family = encoder.encode_descriptor("dns_requests", "Queries", None, MetricType::Counter)?;
    for (zone, block) in blocks {
        for (transport, of, rtype, count) in block.requests() {
            let labels = [
                ("server", server),
                ("zone", zone),
                ("view", ""),
                ("proto", transport_name(transport)),
                ("family", of),
                ("type", &rtype),
            ];
            one(&mut family, &labels, count)?;
        }
    }
    let mut family = encoder.encode_descriptor("dns_responses", "Replies", None, MetricType::Counter)?;
    for (zone, block) in blocks {
        for (author, rcode, count) in block.responses() {
            let plugin = author.plugin().map_or("", Plugin::name);
            let labels = [("server", server), ("zone", zone), ("view", ""), ("rcode", &rcode), ("plugin", plugin)];
            one(&mut family, &labels, count)?;
        }
    }
    let mut family =
        encoder.encode_descriptor("dns_do_requests", "Queries with the DO bit", None, MetricType::Counter)?;
    for (zone, block) in blocks {
        one(&mut family, &[("server", server), ("zone", zone), ("view", "")], block.dnssec_requests.get())?;
    }
    Ok(())
}

fn sizes_and_times(
    encoder: &mut DescriptorEncoder<'_>,
    metrics: &Metrics,
    blocks: &[(String, Arc<Counters>)],
) -> fmt::Result {
    let server = metrics.server.as_str();
    let mut family = encoder.encode_descriptor(
        "dns_request_duration_seconds",
        "From the query to its reply",
        None,
        MetricType::Histogram,
    )?;
    for (zone, block) in blocks {
        block.duration.encode(family.encode_family(&[("server", server), ("zone", zone), ("view", "")])?)?;
    }
    type Sizes = fn(&Counters) -> &[Histogram; 2];
    let sizes: [(&str, &str, Sizes); 2] = [
        ("dns_request_size_bytes", "Octets of queries", |block| &block.request_sizes),
        ("dns_response_size_bytes", "Octets of replies", |block| &block.response_sizes),
    ];
    for (name, help, of) in sizes {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (zone, block) in blocks {
            for (transport, histogram) in [Transport::Udp, Transport::Tcp].into_iter().zip(of(block)) {
                let labels = [("server", server), ("zone", zone), ("view", ""), ("proto", transport_name(transport))];
                histogram.encode(family.encode_family(&labels)?)?;
            }
        }
    }
    Ok(())
}

fn cache(encoder: &mut DescriptorEncoder<'_>, metrics: &Metrics, blocks: &[(String, Arc<Counters>)]) -> fmt::Result {
    let server = metrics.server.as_str();
    type Of = fn(&Counters) -> u64;
    let plain: [(&str, &str, Of); 4] = [
        ("cache_requests", "Look-ups in the cache", |block| block.cache_requests.get()),
        ("cache_misses", "Look-ups that found nothing", |block| {
            let hits = block.cache_hits.of(Kind::Success).get() + block.cache_hits.of(Kind::Denial).get();
            block.cache_requests.get().saturating_sub(hits)
        }),
        ("cache_prefetch", "Answers refreshed before they expired", |block| block.cache_prefetches.get()),
        ("cache_served_stale", "Expired answers that were served", |block| block.cache_stale.get()),
    ];
    for (name, help, of) in plain {
        let values = blocks
            .iter()
            .map(|(zone, block)| (vec![("server", server), ("zones", zone.as_str()), ("view", "")], of(block)));
        counters(encoder, name, help, values)?;
    }
    type OfKind = fn(&Counters, Kind) -> u64;
    let by_kind: [(&str, &str, OfKind); 2] = [
        ("cache_hits", "Look-ups that found something", |block, kind| block.cache_hits.of(kind).get()),
        ("cache_evictions", "Entries evicted to make room", |block, kind| block.cache_evictions.of(kind).get()),
    ];
    for (name, help, of) in by_kind {
        let values = blocks.iter().flat_map(|(zone, block)| {
            [("success", Kind::Success), ("denial", Kind::Denial)].map(|(label, kind)| {
                let labels = vec![("server", server), ("type", label), ("zones", zone.as_str()), ("view", "")];
                (labels, of(block, kind))
            })
        });
        counters(encoder, name, help, values)?;
    }
    Ok(())
}

fn templates(
    encoder: &mut DescriptorEncoder<'_>,
    metrics: &Metrics,
    blocks: &[(String, Arc<Counters>)],
) -> fmt::Result {
    let mut family =
        encoder.encode_descriptor("template_matches", "Answers made by templates", None, MetricType::Counter)?;
    for (zone, block) in blocks {
        for (rtype, count) in block.template_matches() {
            let server = metrics.server.as_str();
            let labels = [("server", server), ("zone", zone), ("view", ""), ("class", "IN"), ("type", &rtype)];
            one(&mut family, &labels, count)?;
        }
    }
    Ok(())
}

fn entries(encoder: &mut DescriptorEncoder<'_>, metrics: &Metrics, blocks: &[Arc<Block>]) -> fmt::Result {
    let server = metrics.server.as_str();
    let mut family = encoder.encode_descriptor("cache_entries", "Entries of the cache", None, MetricType::Gauge)?;
    for block in blocks.iter().filter(|block| block.config.forward.cache.is_some()) {
        let zone = crate::names::text(&block.config.domain);
        for (label, count) in ["success", "denial"].into_iter().zip(block.forwarder.cached()) {
            let labels = [("server", server), ("type", label), ("zones", &zone), ("view", "")];
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn upstreams(encoder: &mut DescriptorEncoder<'_>, metrics: &Metrics) -> fmt::Result {
    let by_name: Vec<(String, _)> = metrics.peers.all().into_iter().map(|(to, peer)| (to.to_string(), peer)).collect();
    let name = ("proxy_name", "forward");
    let mut family = encoder.encode_descriptor(
        "proxy_request_duration_seconds",
        "From the question to an upstream to its answer",
        None,
        MetricType::Histogram,
    )?;
    for (to, peer) in &by_name {
        for (rcode, histogram) in peer.durations() {
            histogram.encode(family.encode_family(&[name, ("to", to), ("rcode", &rcode)])?)?;
        }
    }
    let failures = by_name.iter().map(|(to, peer)| (vec![name, ("to", to)], peer.failed_probes.get()));
    counters(encoder, "proxy_healthcheck_failures", "Probes that an upstream did not answer", failures)?;
    let tcp = |to, counter: &Counter| (vec![name, ("to", to), ("proto", "tcp")], counter.get());
    let hits = by_name.iter().map(|(to, peer)| tcp(to.as_str(), &peer.connections_used_again));
    counters(encoder, "proxy_conn_cache_hits", "Connections to upstreams used again", hits)?;
    let misses = by_name.iter().map(|(to, peer)| tcp(to.as_str(), &peer.connections_made));
    counters(encoder, "proxy_conn_cache_misses", "Connections to upstreams made", misses)
}

fn plain(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    ConstCounter::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
}

fn counters<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Labels<'a>, u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    values.into_iter().try_for_each(|(labels, value)| one(&mut family, &labels, value))
}

fn one(family: &mut MetricEncoder<'_>, labels: &[(&'static str, &str)], value: u64) -> fmt::Result {
    ConstCounter::new(value).encode(family.encode_family(&labels)?)
}
