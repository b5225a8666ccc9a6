//! The table of names, types and answers: first asked of the zone, then over UDP and TCP of both families.

use std::collections::BTreeSet;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RData;
use hickory_proto::rr::rdata::CNAME;
use shunt_dns::{Answer, Name, PodMode, Record, RecordType, Zone, ZoneConfig};
use shunt_model::source::manifests::{self, ManifestsOptions};
use shunt_model::{EndpointSlice, Service, ServiceKind, SliceKey, Snapshot};

use crate::client;
use crate::fixture::{cluster, external, key, name, service, slice, zone_config};

/// The rows, which other servers can be asked too: `cargo xtask dns-compare`.
const ROWS: &str = include_str!("../corpus/answers.txt");
const CLUSTER: &str = include_str!("../corpus/cluster.yaml");

/// Name, type and wanted answer.
fn rows() -> Vec<(&'static str, RecordType, &'static str)> {
    let lines = ROWS.lines().filter(|line| !line.starts_with('#'));
    let row = |line: &'static str| {
        let mut words = line.splitn(3, ' ');
        let (asked, rtype) = (words.next().unwrap(), words.next().unwrap());
        let number = rtype.strip_prefix("TYPE").map(|number| RecordType::from(number.parse::<u16>().unwrap()));
        (asked, number.unwrap_or_else(|| rtype.parse().unwrap()), words.next().unwrap())
    };
    lines.map(row).collect()
}

fn data<'a>(records: impl IntoIterator<Item = &'a Record>) -> BTreeSet<String> {
    records.into_iter().map(|record| record.data.to_string()).collect()
}

/// Splits the wanted text: records of several words are separated by ` | `.
fn wanted(text: &str) -> BTreeSet<String> {
    let text = text.replace('…', "shop.svc.cluster.local.");
    let text = text.trim();
    let canonical = |word: &str| word.parse().map_or_else(|_| word.to_owned(), |ip: std::net::IpAddr| ip.to_string());
    if text.starts_with("0 ") {
        text.split(" | ").map(|record| record.trim().to_owned()).collect()
    } else {
        text.split_whitespace().map(|word| canonical(word.trim_matches('"'))).collect()
    }
}

#[track_caller]
fn check_sections(row: &str, answers: &[Record], additionals: &[Record], expected: &str) {
    let (want, extra) = expected.split_once(" + ").unwrap_or((expected, ""));
    assert_eq!(data(answers), wanted(want), "{row}: answers");
    assert_eq!(data(additionals), wanted(extra), "{row}: additionals");
    let (answer_count, extra_count) = (data(answers).len(), data(additionals).len());
    assert_eq!((answers.len(), additionals.len()), (answer_count, extra_count), "{row}: each record once");
}

/// Each alias comes before what it leads to (DNS-10.2), and nothing else is in the answer (DNS-9.3).
#[track_caller]
fn check_order(row: &str, asked: &Name, answers: &[Record]) {
    let mut owner = asked;
    for (place, record) in answers.iter().enumerate() {
        assert_eq!(&record.name, owner, "{row}: owner of record {place}");
        if let RData::CNAME(CNAME(target)) = &record.data {
            owner = target;
        }
    }
    assert!(answers[0].name.eq_case(asked), "{row}: owner in the spelling of the question");
}

#[track_caller]
fn check_soa(row: &str, authority: &[Record]) {
    let [soa] = authority else { panic!("{row}: one SOA, not {authority:?}") };
    assert_eq!((soa.record_type(), soa.ttl), (RecordType::SOA, 5), "{row}"); // DNS-3.5
}

#[track_caller]
fn check(zone: &Zone, asked: &str, rtype: RecordType, expected: &str) {
    let row = format!("{asked} {rtype}");
    let asked = name(&asked.replace('…', "shop.svc.cluster.local."));
    match zone.answer(&asked, rtype) {
        Answer::Records(records) => {
            check_sections(&row, &records.answers, &records.additionals, expected);
            check_order(&row, &asked, &records.answers);
            if let Some(soa) = records.authority {
                check_soa(&row, &[soa]);
            }
        }
        Answer::NoData { soa } => {
            assert_eq!(expected, "NODATA", "{row}");
            check_soa(&row, &[soa]);
        }
        Answer::NxDomain { soa, why: _ } | Answer::UnknownAddress { soa } => {
            assert_eq!(expected, "NXDOMAIN", "{row}");
            check_soa(&row, &[soa]);
        }
        Answer::NotOurs => assert_eq!(expected, "REFUSED", "{row}"),
        Answer::Alias { .. } => panic!("{row}: an alias that leaves the zone"),
    }
}

fn zone_of(config: ZoneConfig) -> Zone {
    Zone::new(Arc::new(config), Arc::new(cluster()), 7)
}

#[test]
fn the_zone_answers_as_the_table_says() {
    let zone = zone_of(zone_config());
    for (asked, rtype, expected) in rows() {
        check(&zone, asked, rtype, expected);
    }
}

#[tokio::test]
async fn the_manifests_beside_the_table_are_the_cluster_that_it_is_about() {
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("cluster.yaml"), CLUSTER).unwrap();
    let options = ManifestsOptions { dir: place.path().to_owned(), ..ManifestsOptions::default() };
    let source = manifests::start(options).await.unwrap();
    let problems: Vec<String> = source.health.borrow().problems.iter().map(ToString::to_string).collect();
    assert!(matches!(&problems[..], [of_orphan] if of_orphan.contains("shop/orphan")), "{problems:?}");
    let zone = Zone::new(Arc::new(zone_config()), Arc::clone(&source.snapshots.borrow()), 7);
    for (asked, rtype, expected) in rows() {
        check(&zone, asked, rtype, expected);
    }
}

#[track_caller]
fn check_reply(asked: &str, rtype: RecordType, reply: &Message, expected: &str) {
    let row = format!("{asked} {rtype} on the wire");
    let meta = reply.metadata;
    let asked = name(&asked.replace('…', "shop.svc.cluster.local."));
    assert!(reply.queries[0].name.eq_case(&asked), "{row}: question echoed"); // DNS-9.3
    assert_eq!((meta.authoritative, meta.recursion_desired, meta.truncation), (expected != "REFUSED", true, false));
    match expected {
        "REFUSED" => assert_eq!(meta.response_code, ResponseCode::Refused, "{row}"),
        "NXDOMAIN" => {
            assert_eq!(meta.response_code, ResponseCode::NXDomain, "{row}");
            check_soa(&row, &reply.authorities);
        }
        "NODATA" => {
            assert_eq!((meta.response_code, reply.answers.len()), (ResponseCode::NoError, 0), "{row}");
            check_soa(&row, &reply.authorities);
        }
        _ => {
            assert_eq!(meta.response_code, ResponseCode::NoError, "{row}");
            check_sections(&row, &reply.answers, &reply.additionals, expected);
            check_order(&row, &asked, &reply.answers);
        }
    }
}

#[tokio::test]
async fn the_server_answers_the_same_over_udp_and_tcp() {
    let rows = rows();
    let server = client::start(zone_config(), Some(cluster()), vec![]).await;
    for address in server.local_addresses() {
        let full = |text: &str| name(&text.replace('…', "shop.svc.cluster.local."));
        let asked: Vec<Message> = rows.iter().map(|(text, rtype, _)| client::question(&full(text), *rtype)).collect();
        let replies = client::tcp(*address, &asked).await;
        for ((message, reply), (text, rtype, expected)) in asked.iter().zip(&replies).zip(&rows) {
            check_reply(text, *rtype, reply, expected);
            check_reply(text, *rtype, &client::udp(*address, message).await, expected);
        }
    }
    let stats = server.stats();
    let rows = 2 * u64::try_from(rows.len()).unwrap();
    assert_eq!((stats.udp_queries, stats.tcp_queries), (rows, rows));
    assert_eq!(stats.replies.values().sum::<u64>(), 2 * rows);
    server.shutdown().await;
}

#[test]
fn many_endpoints_weigh_at_least_one() {
    let zone = zone_of(zone_config());
    let Answer::Records(found) = zone.answer(&name("_http._tcp.many.shop.svc.cluster.local."), RecordType::SRV) else {
        panic!("records");
    };
    assert_eq!((found.answers.len(), found.additionals.len()), (120, 120));
    assert!(found.answers[0].data.to_string().starts_with("0 1 80 ")); // DNS-2.5.4
}

#[test]
fn no_more_is_made_of_a_large_service_than_a_message_holds() {
    let mut snapshot = cluster();
    service(&mut snapshot, &key("all"), "None", "http:tcp:80");
    let addresses: Vec<String> = (0..8_000).map(|n| format!("10.3.{}.{}", n / 250, n % 250)).collect();
    slice(&mut snapshot, &key("all"), "all-1", "http:tcp:80", &addresses.join(" "));
    let zone = Zone::new(Arc::new(zone_config()), Arc::new(snapshot), 7);
    let Answer::Records(found) = zone.answer(&name("_http._tcp.all.shop.svc.cluster.local."), RecordType::SRV) else {
        panic!("records");
    };
    // The shortest SRV record takes 20 octets: so many are more than fit 65,535.
    assert_eq!((found.answers.len(), found.additionals.len()), (3_277, 3_277));
    assert!(found.answers[0].data.to_string().starts_with("0 1 80 ")); // DNS-2.5.4
    let Answer::Records(found) = zone.answer(&name("all.shop.svc.cluster.local."), RecordType::A) else {
        panic!("records");
    };
    assert_eq!(found.answers.len(), 8_000); // any of them may be the first one after the shuffle
}

#[test]
fn a_pod_s_name_is_its_endpoint_s_label_if_it_is_one() {
    let mut snapshot = cluster();
    service(&mut snapshot, &key("named"), "None", "http:tcp:80");
    slice(&mut snapshot, &key("named"), "named-1", "http:tcp:80", "10.4.0.1 10.4.0.2 host=10.4.0.3 10.4.0.4 10.4.0.5");
    let slice_key = SliceKey { service: key("named"), slice: "named-1".into() };
    let mut named = EndpointSlice::clone(&snapshot.slices[&slice_key]);
    let (short, long) = ("p".repeat(63), "p".repeat(64));
    let targets = ["etcd-ip-10-0-0-1.ec2.internal", "Plain-Pod", "other", &short, &long];
    for (endpoint, target) in named.endpoints.iter_mut().zip(targets) {
        endpoint.target = Some(target.into());
    }
    snapshot.slices.insert(slice_key, Arc::new(named));
    let config = ZoneConfig { endpoint_pod_names: true, ..zone_config() };
    let zone = Zone::new(Arc::new(config), Arc::new(snapshot), 7);
    let rows = [
        ("10-4-0-1.named.…", "10.4.0.1"), // a name of several labels is no label
        ("plain-pod.named.…", "10.4.0.2"),
        ("10-4-0-2.named.…", "NXDOMAIN"),
        ("host.named.…", "10.4.0.3"),
        ("other.named.…", "NXDOMAIN"),
        (&format!("{short}.named.…"), "10.4.0.4"),
        ("10-4-0-5.named.…", "10.4.0.5"),
    ];
    for (asked, expected) in rows {
        check(&zone, asked, RecordType::A, expected); // DNS-2.4.5
    }
    check(&zone, "1.0.4.10.in-addr.arpa.", RecordType::PTR, "10-4-0-1.named.shop.svc.cluster.local.");
}

#[test]
fn an_address_is_no_external_name() {
    let mut snapshot = cluster();
    for (service, target) in [("v4", "192.0.2.7"), ("v6", "2001:db8::7"), ("dotted", "192.0.2.7."), ("none", "")] {
        external(&mut snapshot, &key(service), target);
    }
    let zone = Zone::new(Arc::new(zone_config()), Arc::new(snapshot), 7);
    for service in ["v4", "v6", "dotted", "none"] {
        for rtype in [RecordType::A, RecordType::AAAA, RecordType::CNAME] {
            check(&zone, &format!("{service}.…"), rtype, "NXDOMAIN"); // DNS-2.6.8
        }
    }
}

#[test]
fn only_namespaces_that_are_listed_exist() {
    let zone = zone_of(ZoneConfig { namespaces: ["svc".to_owned()].into(), ..zone_config() });
    let rows = [
        ("svc.svc.svc.cluster.local.", RecordType::A, "10.96.0.4"),
        ("svc.svc.cluster.local.", RecordType::A, "NODATA"),
        ("svc.pod.cluster.local.", RecordType::A, "NODATA"),
        ("web.…", RecordType::A, "NXDOMAIN"),
        ("front.web.…", RecordType::A, "NXDOMAIN"),
        ("_http._tcp.web.…", RecordType::SRV, "NXDOMAIN"),
        ("inner.…", RecordType::CNAME, "NXDOMAIN"),
        ("…", RecordType::A, "NXDOMAIN"),
        ("shop.pod.cluster.local.", RecordType::A, "NXDOMAIN"),
        ("10-1-0-1.shop.pod.cluster.local.", RecordType::A, "NXDOMAIN"),
        ("1.0.96.10.in-addr.arpa.", RecordType::PTR, "NXDOMAIN"),
        ("4.0.96.10.in-addr.arpa.", RecordType::PTR, "svc.svc.svc.cluster.local."),
    ];
    for (asked, rtype, expected) in rows {
        check(&zone, asked, rtype, expected); // DNS-8.5
    }
}

#[test]
fn services_without_endpoints_can_be_hidden() {
    let mut snapshot = cluster();
    slice(&mut snapshot, &key("dual"), "dual-1", "http:tcp:80", "!10.1.5.1");
    let config = ZoneConfig { ignore_empty_service: true, ..zone_config() };
    let zone = Zone::new(Arc::new(config), Arc::new(snapshot), 7);
    for rtype in [RecordType::A, RecordType::AAAA, RecordType::SRV, RecordType::TXT] {
        check(&zone, "idle.…", rtype, "NXDOMAIN"); // DNS-2.2.3
        check(&zone, "dual.…", rtype, "NXDOMAIN");
        check(&zone, "_http._tcp.dual.…", rtype, "NXDOMAIN");
    }
    check(&zone, "web.…", RecordType::A, "10.96.0.1");
    check(&zone, "inner.…", RecordType::CNAME, "WEB.…");
    check(&zone, "3.0.96.10.in-addr.arpa.", RecordType::PTR, "NXDOMAIN");
}

#[test]
fn the_version_of_the_schema_may_be_kept_for_long() {
    let Answer::Records(found) = zone_of(zone_config()).answer(&name("dns-version.cluster.local."), RecordType::TXT)
    else {
        panic!("records");
    };
    assert_eq!(found.answers[0].ttl, 28800); // DNS-2.1.1
}

#[test]
fn pod_modes_differ() {
    let disabled = zone_of(ZoneConfig { pods: PodMode::Disabled, ..zone_config() });
    check(&disabled, "10-1-0-1.shop.pod.cluster.local.", RecordType::A, "NXDOMAIN"); // DNS-6.1
    check(&disabled, "shop.pod.cluster.local.", RecordType::A, "NXDOMAIN");
    check(&disabled, "pod.cluster.local.", RecordType::A, "NODATA");
    let verified = zone_of(ZoneConfig { pods: PodMode::Verified, ..zone_config() });
    check(&verified, "10-1-0-1.shop.pod.cluster.local.", RecordType::A, "10.1.0.1"); // DNS-6.3
    check(&verified, "fd01-0--1.shop.pod.cluster.local.", RecordType::AAAA, "fd01::1");
    check(&verified, "10-1-0-2.shop.pod.cluster.local.", RecordType::A, "NXDOMAIN");
    check(&verified, "10-1-0-1.svc.pod.cluster.local.", RecordType::A, "NXDOMAIN");
}

#[test]
fn the_soa_says_how_long_absence_lasts() {
    let zone = zone_of(ZoneConfig { ttl: 600, ..zone_config() });
    let Answer::Records(apex) = zone.answer(&name("Cluster.local."), RecordType::SOA) else { panic!("records") };
    let soa = &apex.answers[0];
    assert_eq!((soa.name.to_ascii().as_str(), soa.ttl), ("Cluster.local.", 300)); // DNS-3.5, DNS-4.1
    let wanted = "ns.dns.Cluster.local. hostmaster.Cluster.local. 7 7200 1800 86400 600";
    assert_eq!(soa.data.to_string(), wanted);
}

#[test]
fn without_dns_addresses_the_apex_has_no_ns() {
    let zone = zone_of(ZoneConfig { dns_addresses: vec![], ..zone_config() });
    check(&zone, "cluster.local.", RecordType::NS, "NODATA"); // DNS-4.3
}

#[test]
fn another_domain_can_be_served() {
    let zone = zone_of(ZoneConfig { cluster_domain: name("Corp.Example.Test."), ..zone_config() });
    check(&zone, "web.shop.svc.corp.example.test.", RecordType::A, "10.96.0.1");
    check(&zone, "web.shop.svc.cluster.local.", RecordType::A, "REFUSED");
    check(&zone, "1.0.96.10.in-addr.arpa.", RecordType::PTR, "web.shop.svc.Corp.Example.Test.");
}

type Change = fn(&mut Snapshot);

/// What happens to a cluster, and whether DNS shows it.
const CHANGES: [(&str, Change, bool); 8] = [
    ("session affinity", |snapshot| edit(snapshot, "web", |service| service.affinity = NonZeroU32::new(9)), false),
    ("a node port", |snapshot| edit(snapshot, "web", |service| service.ports[0].node_port = NonZeroU16::new(9)), false),
    ("a type", |snapshot| edit(snapshot, "web", |service| service.kind = ServiceKind::NodePort), false),
    ("a port", |snapshot| edit(snapshot, "web", |service| service.ports[0].port = NonZeroU16::MIN), true),
    ("where an endpoint is", |snapshot| edit_slice(snapshot, "web", |slice| slice.endpoints[0].node = None), false),
    ("an unready endpoint", |snapshot| edit_slice(snapshot, "web", |slice| slice.endpoints[2].serving = false), false),
    ("readiness", |snapshot| edit_slice(snapshot, "web", |slice| slice.endpoints[2].ready = true), true),
    (
        "the port of endpoints",
        |snapshot| edit_slice(snapshot, "web", |slice| slice.ports[0].port = NonZeroU16::MIN),
        true,
    ),
];

fn edit(snapshot: &mut Snapshot, service: &str, change: fn(&mut Service)) {
    change(Arc::make_mut(snapshot.services.get_mut(&key(service)).unwrap()));
}

fn edit_slice(snapshot: &mut Snapshot, service: &str, change: fn(&mut EndpointSlice)) {
    let slice = SliceKey { service: key(service), slice: Arc::from(format!("{service}-1")) };
    change(Arc::make_mut(snapshot.slices.get_mut(&slice).unwrap()));
}

#[test]
fn the_serial_moves_with_what_dns_shows_and_nothing_else() {
    for (what, change, shown) in CHANGES {
        let mut snapshot = cluster();
        // One place of an endpoint, to be left.
        edit_slice(&mut snapshot, "web", |slice| slice.endpoints[0].node = Some(Arc::from("n1")));
        let zone = Zone::new(Arc::new(zone_config()), Arc::new(snapshot.clone()), 7);
        change(&mut snapshot);
        assert_eq!(zone.next(Arc::new(snapshot), 8).serial(), if shown { 8 } else { 7 }, "{what}"); // DNS-3.6
    }
}

#[test]
fn nothing_below_an_external_name_has_an_address_of_its_own() {
    let mut snapshot = cluster();
    slice(&mut snapshot, &key("outer"), "outer-1", "", "10.7.0.1");
    let zone = Zone::new(Arc::new(zone_config()), Arc::new(snapshot), 7);
    check(&zone, "10-7-0-1.outer.…", RecordType::A, "NXDOMAIN"); // DNS-2.6.7
    check(&zone, "1.0.7.10.in-addr.arpa.", RecordType::PTR, "NXDOMAIN"); // DNS-5.2
}
