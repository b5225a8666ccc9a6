//! Counters of the server, read by metrics.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::plugin::Author;
use crate::request::Transport;

/// Rcodes 0–15 fit the header; of the extended ones only BADVERS (16) is ever sent by us.
const RCODES: usize = 24;
/// The types that CoreDNS counts separately (DNS-12).
const TYPES: [RecordType; 18] = [
    RecordType::A,
    RecordType::AAAA,
    RecordType::CNAME,
    RecordType::DNSKEY,
    RecordType::DS,
    RecordType::MX,
    RecordType::NSEC,
    RecordType::NSEC3,
    RecordType::NS,
    RecordType::PTR,
    RecordType::RRSIG,
    RecordType::SOA,
    RecordType::SRV,
    RecordType::TXT,
    RecordType::HTTPS,
    RecordType::SVCB,
    RecordType::IXFR,
    RecordType::AXFR,
];
/// CoreDNS's buckets of message sizes in octets (DNS-12).
const SIZES: [f64; 14] =
    [0.0, 100.0, 200.0, 300.0, 400.0, 511.0, 1023.0, 2047.0, 4095.0, 8291.0, 16e3, 32e3, 48e3, 64e3];

/// What the server has done since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Queries received over UDP.
    pub udp_queries: u64,
    /// Queries received over TCP.
    pub tcp_queries: u64,
    /// Replies by rcode, as its name in upper case.
    pub replies: BTreeMap<String, u64>,
    /// Queries that were not the cluster's and went to the forwarder.
    pub forwarded: u64,
    /// Of these, answered from what an upstream had said before.
    pub cache_hits: u64,
    /// Of the forwarded ones, answered from what had run out, because no upstream gave an answer.
    pub cache_stale: u64,
    /// Answers asked for again before they ran out.
    pub cache_prefetches: u64,
    /// Forwarded queries that no upstream answered.
    pub forward_failures: u64,
    /// Forwarded queries refused because too many were waiting.
    pub forward_rejects: u64,
    /// Messages that are not one question.
    pub malformed: u64,
    /// TCP clients that were rejected or too slow.
    pub tcp_rejects: u64,
    /// Replies that could not be sent.
    pub send_failures: u64,
}

/// The counters of a server block.
#[derive(Debug)]
pub(crate) struct Counters {
    /// By transport, family of the client, and type; the last type stands for all others, the one before for ANY.
    requests: [[[Counter; TYPES.len() + 2]; 2]; 2],
    responses: [[Counter; RCODES]; Author::ALL.len()],
    pub(crate) dnssec_requests: Counter,
    pub(crate) duration: Histogram,
    pub(crate) request_sizes: [Histogram; 2],
    pub(crate) response_sizes: [Histogram; 2],
    pub(crate) forwarded: Counter,
    pub(crate) cache_requests: Counter,
    pub(crate) cache_hits: ByKind,
    pub(crate) cache_evictions: ByKind,
    pub(crate) cache_stale: Counter,
    pub(crate) cache_prefetches: Counter,
    pub(crate) forward_failures: Counter,
    pub(crate) forward_rejects: Counter,
    pub(crate) all_upstreams_down: Counter,
    pub(crate) autopath_successes: Counter,
    template_matches: [Counter; TYPES.len() + 2],
}

/// What is counted before a block is known.
#[derive(Debug, Default)]
pub(crate) struct Dropped {
    pub(crate) malformed: Counter,
    pub(crate) send_failures: Counter,
    pub(crate) tcp_rejects: Counter,
    pub(crate) panics: Counter,
}

/// What is counted of `/health`.
#[derive(Debug)]
pub(crate) struct HealthCounters {
    pub(crate) duration: Histogram,
    pub(crate) failures: Counter,
}

impl Default for HealthCounters {
    fn default() -> Self {
        // 0.25 ms to 2.5 s (DNS-12).
        let duration = Histogram::new(exponential_buckets(0.00025, 10.0, 5));
        Self { duration, failures: Counter::default() }
    }
}

/// What is counted of one upstream.
#[derive(Debug, Default)]
pub(crate) struct PeerCounters {
    durations: [OnceLock<Histogram>; RCODES],
    pub(crate) connections_made: Counter,
    pub(crate) connections_used_again: Counter,
    pub(crate) failed_probes: Counter,
}

/// The counters of upstreams by address: server blocks that ask the same one share them, and they outlive a reload.
#[derive(Debug, Default)]
pub(crate) struct Peers(Mutex<BTreeMap<SocketAddr, Arc<PeerCounters>>>);

impl Peers {
    pub(crate) fn of(&self, upstream: SocketAddr) -> Arc<PeerCounters> {
        Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(upstream).or_default())
    }

    pub(crate) fn all(&self) -> BTreeMap<SocketAddr, Arc<PeerCounters>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Success,
    Denial,
}

/// Answers with records and denials apart.
#[derive(Debug, Default)]
pub(crate) struct ByKind {
    success: Counter,
    denial: Counter,
}

impl ByKind {
    pub(crate) fn of(&self, kind: Kind) -> &Counter {
        match kind {
            Kind::Success => &self.success,
            Kind::Denial => &self.denial,
        }
    }
}

/// Counts up; read without ordering, as metrics are.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

impl Counter {
    pub(crate) fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Default for Counters {
    fn default() -> Self {
        let sizes = || [(); 2].map(|()| Histogram::new(SIZES));
        Self {
            requests: Default::default(),
            responses: Default::default(),
            dnssec_requests: Counter::default(),
            duration: durations(),
            request_sizes: sizes(),
            response_sizes: sizes(),
            forwarded: Counter::default(),
            cache_requests: Counter::default(),
            cache_hits: ByKind::default(),
            cache_evictions: ByKind::default(),
            cache_stale: Counter::default(),
            cache_prefetches: Counter::default(),
            forward_failures: Counter::default(),
            forward_rejects: Counter::default(),
            all_upstreams_down: Counter::default(),
            autopath_successes: Counter::default(),
            template_matches: Default::default(),
        }
    }
}

impl Counters {
    /// Counts a query of `length` octets.
    pub(crate) fn asked(&self, transport: Transport, client: IpAddr, rtype: RecordType, length: usize) {
        let family = usize::from(client.to_canonical().is_ipv6());
        let of_family = self.requests.get(index(transport)).and_then(|families| families.get(family));
        if let Some(counter) = of_family.and_then(|types| types.get(type_index(rtype))) {
            counter.add_one();
        }
        observe(&self.request_sizes, transport, length);
    }

    /// Counts an answer made by a template.
    pub(crate) fn template_matched(&self, rtype: RecordType) {
        if let Some(counter) = self.template_matches.get(type_index(rtype)) {
            counter.add_one();
        }
    }

    /// Those answers, by type.
    pub(crate) fn template_matches(&self) -> impl Iterator<Item = (String, u64)> {
        let counted = self.template_matches.iter().enumerate().filter(|(_, counter)| counter.get() > 0);
        counted.map(|(at, counter)| (type_name(at), counter.get()))
    }

    /// Counts a reply of `length` octets.
    pub(crate) fn replied(
        &self,
        author: Author,
        rcode: ResponseCode,
        transport: Transport,
        length: usize,
        took: Duration,
    ) {
        let of_author = Author::ALL.iter().position(|known| *known == author).and_then(|at| self.responses.get(at));
        if let Some(counter) = of_author.and_then(|rcodes| rcodes.get(rcode_index(rcode))) {
            counter.add_one();
        }
        observe(&self.response_sizes, transport, length);
        self.duration.observe(took.as_secs_f64());
    }

    /// The queries so far: transport, family as 1 or 2, type, count.
    pub(crate) fn requests(&self) -> impl Iterator<Item = (Transport, &'static str, String, u64)> {
        let transports = [Transport::Udp, Transport::Tcp].into_iter().zip(&self.requests);
        transports.flat_map(|(transport, families)| {
            ["1", "2"].into_iter().zip(families).flat_map(move |(family, types)| {
                let counted = types.iter().enumerate().filter(|(_, counter)| counter.get() > 0);
                counted.map(move |(at, counter)| (transport, family, type_name(at), counter.get()))
            })
        })
    }

    /// The replies so far: author, rcode, count.
    pub(crate) fn responses(&self) -> impl Iterator<Item = (Author, String, u64)> {
        Author::ALL.iter().zip(&self.responses).flat_map(|(author, rcodes)| {
            let counted = (0_u16..).zip(rcodes).filter(|(_, counter)| counter.get() > 0);
            counted.map(move |(code, counter)| (*author, rcode_name(code.into()), counter.get()))
        })
    }

    /// Adds these counters to a sum.
    pub(crate) fn add_to(&self, stats: &mut Stats) {
        for (transport, _, _, count) in self.requests() {
            match transport {
                Transport::Udp => stats.udp_queries += count,
                Transport::Tcp => stats.tcp_queries += count,
            }
        }
        for (_, rcode, count) in self.responses() {
            *stats.replies.entry(rcode).or_default() += count;
        }
        stats.forwarded += self.forwarded.get();
        stats.cache_hits += self.cache_hits.success.get() + self.cache_hits.denial.get();
        stats.cache_stale += self.cache_stale.get();
        stats.cache_prefetches += self.cache_prefetches.get();
        stats.forward_failures += self.forward_failures.get();
        stats.forward_rejects += self.forward_rejects.get();
    }
}

impl PeerCounters {
    pub(crate) fn answered(&self, rcode: ResponseCode, took: Duration) {
        if let Some(histogram) = self.durations.get(rcode_index(rcode)) {
            histogram.get_or_init(durations).observe(took.as_secs_f64());
        }
    }

    /// How long answers took, by rcode.
    pub(crate) fn durations(&self) -> impl Iterator<Item = (String, &Histogram)> {
        (0_u16..).zip(&self.durations).filter_map(|(code, histogram)| Some((rcode_name(code.into()), histogram.get()?)))
    }
}

/// CoreDNS's buckets: 0.25 ms, doubling 16 times (DNS-12).
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.00025, 2.0, 16))
}

fn observe(histograms: &[Histogram; 2], transport: Transport, length: usize) {
    if let Some(histogram) = histograms.get(index(transport)) {
        histogram.observe(f64::from(u32::try_from(length).unwrap_or(u32::MAX)));
    }
}

fn index(transport: Transport) -> usize {
    match transport {
        Transport::Udp => 0,
        Transport::Tcp => 1,
    }
}

fn type_index(rtype: RecordType) -> usize {
    let other = if rtype == RecordType::ANY { TYPES.len() } else { TYPES.len() + 1 };
    TYPES.iter().position(|known| *known == rtype).unwrap_or(other)
}

fn type_name(at: usize) -> String {
    match TYPES.get(at) {
        Some(rtype) => rtype.to_string(),
        None if at == TYPES.len() => "ANY".to_owned(),
        None => "other".to_owned(),
    }
}

fn rcode_index(rcode: ResponseCode) -> usize {
    usize::from(u16::from(rcode)).min(RCODES - 1)
}

/// The registered names of the rcodes from 0 on.
pub(crate) const RCODE_NAMES: [&str; 11] = [
    "NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET", "NXRRSET", "NOTAUTH",
    "NOTZONE",
];

/// The rcode's registered name.
pub(crate) fn rcode_name(rcode: ResponseCode) -> String {
    let code = u16::from(rcode);
    match RCODE_NAMES.get(usize::from(code)) {
        Some(name) => (*name).to_owned(),
        None if code == 16 => "BADVERS".to_owned(),
        None => format!("RCODE{code}"),
    }
}
