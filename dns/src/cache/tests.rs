//! The cache, moment by moment: what it keeps, for how long, and what it gives when there is nothing better.

use std::net::Ipv4Addr;

use super::*;
use crate::records;

fn key(name: &str) -> Key {
    let name = Name::from_ascii(name).unwrap();
    Key { name, rtype: RecordType::A, dnssec_ok: false, checking_disabled: false }
}

fn response(rcode: ResponseCode, answers: Vec<Record>, authorities: Vec<Record>) -> Received {
    let sections = Sections { answers, authorities, additionals: Vec::new() };
    Received { rcode, sections, ..Received::default() }
}

fn address(ttl: u32) -> Record {
    records::address(Name::from_ascii("www.example.").unwrap(), ttl, Ipv4Addr::new(192, 0, 2, 1).into())
}

fn alias(ttl: u32) -> Record {
    records::cname(Name::from_ascii("www.example.").unwrap(), ttl, Name::from_ascii("example.").unwrap())
}

fn soa(ttl: u32) -> Record {
    records::soa(Name::from_ascii("example.").unwrap(), ttl, 1)
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// The smallest, for a client that asks for `WWW.example.`.
fn ttl(kept: &Kept) -> u32 {
    let sections = kept.sections(&key("WWW.example.").query());
    assert_eq!(sections.answers.iter().filter(|r| r.name.to_ascii() != "WWW.example.").count(), 0); // DNS-9.3
    sections.all().map(|record| record.ttl).min().unwrap_or_default()
}

/// The TTL seen `after` seconds, `None` if the cache does not answer.
#[track_caller]
fn check(answer: &Received, after: u64, wanted: Option<u32>) {
    let (cache, start) = (Cache::new(CacheConfig::default(), Arc::default()), Instant::now());
    cache.put(key("www.example."), &mut answer.clone(), start);
    let found = cache.get(&key("WWW.example."), start + seconds(after));
    assert_eq!(found.map(|hit| ttl(&hit.kept)), wanted, "{answer:?}");
}

#[test]
fn answers_age_and_expire() {
    let positive = response(ResponseCode::NoError, vec![address(20)], vec![]);
    check(&positive, 0, Some(20));
    check(&positive, 15, Some(5));
    check(&positive, 20, None);
    check(&response(ResponseCode::NoError, vec![address(3600)], vec![]), 0, Some(30));
    check(&response(ResponseCode::NoError, vec![address(3600)], vec![]), 31, None);
    check(&response(ResponseCode::NoError, vec![address(0)], vec![]), 0, None);
    check(&response(ResponseCode::NoError, vec![alias(5), address(20)], vec![]), 5, None);
}

#[test]
fn absence_is_kept_as_long_as_its_soa_says() {
    check(&response(ResponseCode::NXDomain, vec![], vec![soa(10)]), 4, Some(6));
    check(&response(ResponseCode::NoError, vec![], vec![soa(10)]), 11, None);
    check(&response(ResponseCode::NoError, vec![alias(60)], vec![soa(10)]), 4, Some(6));
    check(&response(ResponseCode::NXDomain, vec![], vec![]), 0, None);
    check(&response(ResponseCode::NoError, vec![alias(60)], vec![]), 0, None); // DNS-14.3
    check(&response(ResponseCode::Refused, vec![], vec![soa(10)]), 0, None);
}

#[test]
fn a_failure_is_kept_for_five_seconds() {
    check(&response(ResponseCode::ServFail, vec![], vec![]), 4, Some(0)); // DNS-14.2
    check(&response(ResponseCode::ServFail, vec![], vec![]), 5, None);
}

#[test]
fn truncated_answers_are_not_kept() {
    let answer = response(ResponseCode::NoError, vec![address(20)], vec![]);
    check(&Received { extent: Extent::Truncated, ..answer }, 0, None);
}

#[test]
fn the_last_answer_counts() {
    let (cache, start) = (Cache::new(CacheConfig::default(), Arc::default()), Instant::now());
    let rcode = || cache.get(&key("www.example."), start).unwrap().kept.rcode();
    cache.put(key("www.example."), &mut response(ResponseCode::NoError, vec![address(20)], vec![]), start);
    cache.put(key("www.example."), &mut response(ResponseCode::NXDomain, vec![], vec![soa(20)]), start);
    assert_eq!(rcode(), ResponseCode::NXDomain);
    cache.put(key("www.example."), &mut response(ResponseCode::NoError, vec![address(20)], vec![]), start);
    assert_eq!(rcode(), ResponseCode::NoError);
    assert!(cache.get(&Key { dnssec_ok: true, ..key("www.example.") }, start).is_none()); // DNS-14.1
}

#[test]
fn an_old_answer_serves_when_there_is_no_other() {
    let (cache, start) = (Cache::new(CacheConfig::default(), Arc::default()), Instant::now());
    let stale = |after| cache.get_stale(&key("WWW.example."), start + seconds(after)).map(|kept| ttl(&kept));
    assert_eq!(stale(0), None);
    let validated = response(ResponseCode::NoError, vec![address(3600)], vec![]);
    cache.put(key("www.example."), &mut Received { authentic: true, ..validated }, start);
    assert_eq!(stale(31), Some(30));
    let authentic = |kept: Option<Kept>| kept.is_some_and(|kept| kept.authentic());
    assert!(authentic(cache.get(&key("www.example."), start).map(|hit| hit.kept)));
    assert!(!authentic(cache.get_stale(&key("www.example."), start + seconds(31))));
    // An upstream in trouble says SERVFAIL; what it knew before is of more use.
    let mut failure = response(ResponseCode::ServFail, vec![], vec![]);
    cache.put(key("www.example."), &mut failure, start + seconds(40));
    assert_eq!(stale(3629), Some(30));
    assert_eq!(stale(3630), None);
    let strict = Cache::new(CacheConfig { stale: Duration::ZERO, ..CacheConfig::default() }, Arc::default());
    strict.put(key("www.example."), &mut response(ResponseCode::NoError, vec![address(20)], vec![]), start);
    assert!(strict.get_stale(&key("www.example."), start + seconds(20)).is_none());
}

#[test]
fn an_answer_in_demand_is_asked_for_again_once() {
    let (cache, start) = (Cache::new(CacheConfig::default(), Arc::default()), Instant::now());
    let put = |after| {
        cache.put(key("www.example."), &mut response(ResponseCode::NoError, vec![address(30)], vec![]), start + after);
    };
    let refresh = |after| cache.get(&key("www.example."), start + seconds(after)).unwrap().refresh;
    put(seconds(0));
    assert!(!refresh(28), "one hit is no demand");
    assert!(refresh(28));
    assert!(!refresh(29), "it is being asked for");
    put(seconds(29));
    assert!(!refresh(30));
    assert!(!refresh(40), "there is time left");
    assert!(refresh(57));
}

#[test]
fn large_answers_take_the_room_of_several() {
    let weight_of = |count| {
        let answer = response(ResponseCode::NoError, vec![address(1); count], vec![]);
        weight(&Packed::new(&answer.sections, &key("www.example.").query()).unwrap())
    };
    assert_eq!(weight_of(1), 1);
    // 16 octets each, 2 for the place of the TTL and 2 for that of the address.
    assert_eq!(weight_of(450), 5);
}

#[test]
fn the_first_client_keeps_an_answer_no_longer_than_the_cache() {
    let (cache, start) = (Cache::new(CacheConfig::default(), Arc::default()), Instant::now());
    let mut answer = response(ResponseCode::NoError, vec![address(86_400)], vec![]);
    cache.put(key("www.example."), &mut answer, start);
    assert_eq!(answer.sections.answers[0].ttl, 30);
}

#[test]
fn an_answer_that_replaces_another_of_its_name_evicts_none() {
    let counters = Arc::<Counters>::default();
    let bounds = Bounds { capacity: 8, ..CacheConfig::default().success };
    let (cache, start) =
        (Cache::new(CacheConfig { success: bounds, ..CacheConfig::default() }, Arc::clone(&counters)), Instant::now());
    let put = |name: &str, after| {
        let mut answer = response(ResponseCode::NoError, vec![address(20)], vec![]);
        cache.put(key(name), &mut answer, start + seconds(after));
    };
    for after in 0..3 {
        put("www.example.", after);
    }
    assert_eq!(counters.cache_evictions.of(Kind::Success).get(), 0);
    for number in 0..40 {
        put(&format!("name-{number}.example."), 3);
    }
    let [kept, _] = cache.entries();
    assert_eq!(counters.cache_evictions.of(Kind::Success).get(), 41 - kept);
}

#[test]
fn an_answer_that_cannot_be_copied_is_counted_once() {
    let counters = Arc::<Counters>::default();
    let (cache, start) = (Cache::new(CacheConfig::default(), Arc::clone(&counters)), Instant::now());
    let mail = |host: &str| {
        let data = RData::MX(hickory_proto::rr::rdata::MX::new(10, Name::from_ascii(host).unwrap()));
        Record::from_rdata(Name::from_ascii("www.example.").unwrap(), 20, data)
    };
    let key = Key { rtype: RecordType::MX, ..key("www.example.") };
    let mut answer = response(ResponseCode::NoError, vec![mail("a.example."), mail("b.example.")], vec![]);
    cache.put(key.clone(), &mut answer, start);
    assert!(cache.get_if_not_due(&key, start).is_none());
    assert!(cache.get(&key, start).is_some());
    assert_eq!((counters.cache_requests.get(), counters.cache_hits.of(Kind::Success).get()), (1, 1));
}
