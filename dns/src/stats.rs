//! Counters of the server, read by metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use hickory_proto::op::ResponseCode;

/// Rcodes 0–15 fit the header; of the extended ones only BADVERS (16) is ever sent by us.
const RCODES: usize = 24;

/// What the server has done since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Queries received over UDP.
    pub udp_queries: u64,
    /// Queries received over TCP.
    pub tcp_queries: u64,
    /// Replies by rcode, as its name in lower case.
    pub replies: BTreeMap<String, u64>,
    /// Queries that were not the cluster's and went to the forwarder.
    pub forwarded: u64,
    /// Of these, answered from what an upstream had said before.
    pub cache_hits: u64,
    /// Of the forwarded ones, answered from what had run out, because no upstream gave an answer.
    pub cache_stale: u64,
    /// Answers asked for again before they ran out.
    pub cache_prefetches: u64,
    /// Answers with records in the cache.
    pub cached_answers: u64,
    /// Denials and failures in the cache.
    pub cached_denials: u64,
    /// Forwarded queries that no upstream answered.
    pub forward_failures: u64,
    /// Forwarded queries refused because too many were waiting.
    pub forward_rejects: u64,
    /// Queries that parse but are not one question. (Undecodable messages are answered FORMERR below this server.)
    pub malformed: u64,
    /// Replies that could not be sent.
    pub send_failures: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) udp_queries: Counter,
    pub(crate) tcp_queries: Counter,
    replies: [Counter; RCODES],
    pub(crate) forwarded: Counter,
    pub(crate) cache_hits: Counter,
    pub(crate) cache_stale: Counter,
    pub(crate) cache_prefetches: Counter,
    pub(crate) forward_failures: Counter,
    pub(crate) forward_rejects: Counter,
    pub(crate) malformed: Counter,
    pub(crate) send_failures: Counter,
}

/// Counts up; read without ordering, as metrics are.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    pub(crate) fn replied(&self, rcode: ResponseCode) {
        let last = RCODES - 1;
        if let Some(counter) = self.replies.get(usize::from(u16::from(rcode)).min(last)) {
            counter.add_one();
        }
    }

    /// With how many answers and denials the cache holds.
    pub(crate) fn read(&self, [cached_answers, cached_denials]: [u64; 2]) -> Stats {
        let replies = (0_u16..).zip(&self.replies).filter(|(_, counter)| counter.get() > 0);
        Stats {
            udp_queries: self.udp_queries.get(),
            tcp_queries: self.tcp_queries.get(),
            replies: replies.map(|(code, counter)| (name_of(code), counter.get())).collect(),
            forwarded: self.forwarded.get(),
            cache_hits: self.cache_hits.get(),
            cache_stale: self.cache_stale.get(),
            cache_prefetches: self.cache_prefetches.get(),
            cached_answers,
            cached_denials,
            forward_failures: self.forward_failures.get(),
            forward_rejects: self.forward_rejects.get(),
            malformed: self.malformed.get(),
            send_failures: self.send_failures.get(),
        }
    }
}

/// The rcode's registered name in lower case; the last slot also holds all above it.
fn name_of(code: u16) -> String {
    let known = [
        "noerror", "formerr", "servfail", "nxdomain", "notimp", "refused", "yxdomain", "yxrrset", "nxrrset", "notauth",
        "notzone",
    ];
    match known.get(usize::from(code)) {
        Some(name) => (*name).to_owned(),
        None if code == 16 => "badvers".to_owned(),
        None => format!("rcode{code}"),
    }
}
