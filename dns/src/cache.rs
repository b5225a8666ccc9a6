//! Answers of upstreams: kept for their TTL, and some time longer in case no upstream answers. Only forwarded names are
//! in here; cluster names change without notice.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use quick_cache::{DefaultHashBuilder, Lifecycle, Weighter};

use crate::stats::{Counters, Kind};
use crate::wire::{Age, Extent, Packed, Received, Sections};

/// The TTL of a stale answer (RFC 8767 section 4).
const STALE_TTL: u32 = 30;
/// An entry counts once for each of these octets of memory, so that the capacity bounds that too.
const USUAL_SIZE: usize = 2048;

/// How long answers of upstreams are kept. The default is that of `cache 30` in the stock Corefile (DNS-13.1), with
/// prefetch and stale answers on top.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Answers with records.
    pub(crate) success: Bounds,
    /// Answers that there is nothing.
    pub(crate) denial: Bounds,
    /// How long a failure that an upstream reports is kept (RFC 9520; DNS-14.2).
    pub(crate) failure: Duration,
    /// Which answers are refreshed before they expire, if any.
    pub(crate) prefetch: Option<Prefetch>,
    /// How long after its expiry an answer is still used when no upstream answers (RFC 8767); zero for never.
    pub(crate) stale: Duration,
    /// Domains of which no answers with records are kept.
    pub(crate) no_success: Vec<Name>,
    /// Domains of which no denials are kept.
    pub(crate) no_denial: Vec<Name>,
}

/// What bounds a kind of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// How many are kept; one that takes more than 2 KiB of memory counts several times.
    pub(crate) capacity: u64,
    /// No answer is kept for less, whatever its TTL. Zero leaves TTL 0 out of the cache.
    pub(crate) shortest: Duration,
    /// No answer is kept for longer.
    pub(crate) longest: Duration,
}

/// When an answer is in demand (DNS-14.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefetch {
    /// It was asked for so often,
    pub(crate) hits: u32,
    /// with no longer gap than this,
    pub(crate) gap: Duration,
    /// and less than this share of its time is left.
    pub(crate) percent: u32,
}

impl Default for CacheConfig {
    fn default() -> Self {
        let bounds = Bounds { capacity: 9984, shortest: Duration::ZERO, longest: Duration::from_secs(30) };
        Self {
            success: bounds,
            denial: bounds,
            failure: Duration::from_secs(5),
            prefetch: Some(Prefetch { hits: 2, gap: Duration::from_secs(60), percent: 10 }),
            stale: Duration::from_secs(3600),
            no_success: Vec::new(),
            no_denial: Vec::new(),
        }
    }
}

/// The key of an answer (DNS-14.1). Upper and lower case are equal in names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) name: Name,
    pub(crate) rtype: RecordType,
    pub(crate) dnssec_ok: bool,
    pub(crate) checking_disabled: bool,
}

impl Key {
    fn query(&self) -> Query {
        let mut query = Query::query(self.name.clone(), self.rtype);
        query.set_query_class(DNSClass::IN);
        query
    }
}

/// An answer from the cache, as octets.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    entry: Arc<Entry>,
    age: Age,
}

impl Kept {
    pub(crate) fn rcode(&self) -> ResponseCode {
        self.entry.rcode
    }

    /// The upstream has validated it, which says nothing of an answer that has expired.
    pub(crate) fn authentic(&self) -> bool {
        match self.age {
            Age::Seconds(_) => self.entry.authentic,
            Age::Expired(_) => false,
        }
    }

    pub(crate) fn packed(&self) -> &Packed {
        &self.entry.packed
    }

    pub(crate) fn age(&self) -> Age {
        self.age
    }

    /// Its records, the owner names spelled as asked (DNS-9.3).
    pub(crate) fn sections(&self, query: &Query) -> Sections {
        self.entry.packed.sections(query, self.age)
    }
}

/// An answer whose TTL has not expired.
#[derive(Debug)]
pub(crate) struct Hit {
    pub(crate) kept: Kept,
    /// The caller must ask the upstream again; no other caller gets this flag for this entry.
    pub(crate) refresh: bool,
}

/// Two tables, so that many names that do not exist cannot evict those that do.
pub(crate) struct Cache {
    success: Table,
    denial: Table,
    config: CacheConfig,
    counters: Arc<Counters>,
}

/// What has expired leaves it when there is no room for something else.
type Table = quick_cache::sync::Cache<Key, Arc<Entry>, Weigher, DefaultHashBuilder, Evicted>;

#[derive(Debug)]
struct Entry {
    packed: Packed,
    rcode: ResponseCode,
    authentic: bool,
    stored: Instant,
    lifetime: Duration,
    demand: Mutex<Demand>,
}

#[derive(Debug, Default)]
struct Demand {
    hits: u32,
    last: Option<Instant>,
    refreshing: bool,
}

impl Cache {
    pub(crate) fn new(config: CacheConfig, counters: Arc<Counters>) -> Self {
        let table = |bounds: Bounds| {
            let usual = usize::try_from(bounds.capacity).unwrap_or(usize::MAX);
            Table::with(usual, bounds.capacity, Weigher, DefaultHashBuilder::default(), Evicted)
        };
        let (success, denial) = (table(config.success), table(config.denial));
        Self { success, denial, config, counters }
    }

    /// The answer, if its TTL has not expired.
    pub(crate) fn get(&self, key: &Key, now: Instant) -> Option<Hit> {
        self.counters.cache_requests.add_one();
        let (kind, entry, left) = self.fresh(key, now)?;
        Some(self.hit(kind, entry, left, now))
    }

    /// The same for a reply that is a copy of it, unless the upstream may have to be asked again. If there is none,
    /// nothing is counted.
    pub(crate) fn get_if_not_due(&self, key: &Key, now: Instant) -> Option<Kept> {
        let (kind, entry, left) = self.fresh(key, now)?;
        let is_due = self.config.prefetch.is_some_and(|prefetch| entry.is_due(prefetch, left));
        if is_due || !entry.packed.may_be_copied() {
            return None;
        }
        self.counters.cache_requests.add_one();
        Some(self.hit(kind, entry, left, now).kept)
    }

    fn fresh(&self, key: &Key, now: Instant) -> Option<(Kind, Arc<Entry>, Duration)> {
        let (kind, entry) = self.find(key)?;
        let left = entry.left(now)?;
        Some((kind, entry, left))
    }

    fn hit(&self, kind: Kind, entry: Arc<Entry>, left: Duration, now: Instant) -> Hit {
        self.counters.cache_hits.of(kind).add_one();
        let refresh = self.config.prefetch.is_some_and(|prefetch| entry.is_in_demand(prefetch, left, now));
        if refresh {
            self.counters.cache_prefetches.add_one();
        }
        let age = Age::Seconds(seconds(now.saturating_duration_since(entry.stored)));
        Hit { kept: Kept { entry, age }, refresh }
    }

    /// Whether there is an expired answer for when no upstream answers.
    pub(crate) fn has_stale(&self, key: &Key, now: Instant) -> bool {
        self.find_stale(key, now).is_some()
    }

    /// The expired answer, for when no upstream answers.
    pub(crate) fn get_stale(&self, key: &Key, now: Instant) -> Option<Kept> {
        let entry = self.find_stale(key, now)?;
        self.counters.cache_stale.add_one();
        Some(Kept { entry, age: Age::Expired(STALE_TTL) })
    }

    /// Keeps `answer` if it has a TTL (DNS-14.2, DNS-14.3), and lowers its TTLs to the time that it is kept: the
    /// client must not keep it longer than we do. A failure does not replace an answer that can still be used.
    pub(crate) fn put(&self, key: Key, answer: &mut Received, now: Instant) {
        let Some((kind, lifetime)) = self.config.lifetime(key.rtype, answer) else { return };
        let least = match kind {
            Kind::Success => seconds(self.config.success.shortest),
            Kind::Denial => seconds(self.config.denial.shortest),
        };
        for record in answer.sections.all_mut() {
            record.ttl = record.ttl.max(least).min(seconds(lifetime));
        }
        let unkept = match kind {
            Kind::Success => &self.config.no_success,
            Kind::Denial => &self.config.no_denial,
        };
        if unkept.iter().any(|domain| domain.zone_of(&key.name)) {
            return;
        }
        if is_failure(answer.rcode) && self.find_stale(&key, now).is_some() {
            return;
        }
        let Some(packed) = Packed::new(&answer.sections, &key.query()) else { return };
        let (rcode, authentic) = (answer.rcode, answer.authentic);
        let entry = Arc::new(Entry { packed, rcode, authentic, stored: now, lifetime, demand: Mutex::default() });
        let (table, other) = match kind {
            Kind::Success => (&self.success, &self.denial),
            Kind::Denial => (&self.denial, &self.success),
        };
        other.remove(&key);
        let mut evicted = Vec::new();
        table.insert_with_lifecycle(key.clone(), entry, &mut evicted);
        // What had this name before was replaced.
        evicted.iter().filter(|other| **other != key).for_each(|_| self.counters.cache_evictions.of(kind).add_one());
    }

    /// How many answers with records and how many denials are held.
    pub(crate) fn entries(&self) -> [u64; 2] {
        [&self.success, &self.denial].map(|table| table.len() as u64)
    }

    fn find_stale(&self, key: &Key, now: Instant) -> Option<Arc<Entry>> {
        let (_, entry) = self.find(key)?;
        let over = now.saturating_duration_since(entry.stored).saturating_sub(entry.lifetime);
        let useful = over < self.config.stale && !is_failure(entry.rcode);
        useful.then_some(entry)
    }

    fn find(&self, key: &Key) -> Option<(Kind, Arc<Entry>)> {
        let success = self.success.get(key).map(|entry| (Kind::Success, entry));
        success.or_else(|| self.denial.get(key).map(|entry| (Kind::Denial, entry)))
    }
}

/// What an entry takes of a table's capacity.
#[derive(Clone)]
struct Weigher;

impl Weighter<Key, Arc<Entry>> for Weigher {
    fn weight(&self, _key: &Key, entry: &Arc<Entry>) -> u64 {
        weight(&entry.packed)
    }
}

/// Tells what left a table for another entry.
#[derive(Clone)]
struct Evicted;

impl Lifecycle<Key, Arc<Entry>> for Evicted {
    type RequestState = Vec<Key>;

    fn on_evict(&self, evicted: &mut Vec<Key>, key: Key, _entry: Arc<Entry>) {
        evicted.push(key);
    }
}

impl CacheConfig {
    /// Where a message is kept, and for how long; `None` if it is not.
    fn lifetime(&self, rtype: RecordType, answer: &Received) -> Option<(Kind, Duration)> {
        if answer.extent != Extent::Whole {
            return None;
        }
        let (rcode, sections) = (answer.rcode, &answer.sections);
        if is_failure(rcode) {
            return (!self.failure.is_zero()).then_some((Kind::Denial, self.failure));
        }
        let wanted = |record: &Record| rtype == RecordType::ANY || record.record_type() == rtype;
        let (kind, bounds, ttl) = if rcode == ResponseCode::NoError && sections.answers.iter().any(wanted) {
            (Kind::Success, self.success, smallest_ttl(sections)?)
        } else if [ResponseCode::NoError, ResponseCode::NXDomain].contains(&rcode) {
            (Kind::Denial, self.denial, smallest_ttl(sections)?.min(negative_ttl(sections)?))
        } else {
            return None;
        };
        let lifetime = Duration::from_secs(ttl.into()).max(bounds.shortest).min(bounds.longest);
        (!lifetime.is_zero()).then_some((kind, lifetime))
    }
}

impl Entry {
    /// The time until its TTL expires.
    fn left(&self, now: Instant) -> Option<Duration> {
        let left = self.lifetime.checked_sub(now.saturating_duration_since(self.stored))?;
        (!left.is_zero()).then_some(left)
    }

    /// Little of its time is left.
    fn is_due(&self, prefetch: Prefetch, left: Duration) -> bool {
        left * 100 < self.lifetime * prefetch.percent
    }

    /// Counts a hit; true once, when the entry is worth a refresh.
    fn is_in_demand(&self, prefetch: Prefetch, left: Duration, now: Instant) -> bool {
        let mut demand = self.demand.lock().unwrap_or_else(PoisonError::into_inner);
        let near = demand.last.is_none_or(|last| now.saturating_duration_since(last) <= prefetch.gap);
        demand.hits = if near { demand.hits.saturating_add(1) } else { 1 };
        demand.last = Some(now);
        let due = self.is_due(prefetch, left) && demand.hits >= prefetch.hits;
        due && !std::mem::replace(&mut demand.refreshing, true)
    }
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

/// The upstream has no answer, and says so.
pub(crate) fn is_failure(rcode: ResponseCode) -> bool {
    [ResponseCode::ServFail, ResponseCode::NotImp].contains(&rcode)
}

fn smallest_ttl(sections: &Sections) -> Option<u32> {
    sections.all().map(|record| record.ttl).min()
}

/// How long the SOA lets an absence be kept (RFC 2308 section 5).
fn negative_ttl(sections: &Sections) -> Option<u32> {
    sections.authorities.iter().find_map(|record: &Record| {
        let RData::SOA(soa) = &record.data else { return None };
        Some(record.ttl.min(soa.minimum))
    })
}

fn weight(packed: &Packed) -> u64 {
    let size = size_of::<Entry>() + size_of::<Key>() + packed.size();
    (size / USUAL_SIZE + 1) as u64
}

#[cfg(test)]
mod tests;
