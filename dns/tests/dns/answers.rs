//! The table of names, types and answers: first asked of the zone, then over UDP and TCP of both families.

use std::collections::BTreeSet;
use std::sync::Arc;

use hickory_proto::op::{Message, ResponseCode};
use shunt_dns::{Answer, PodMode, Record, RecordType, Zone, ZoneConfig};

use crate::client;
use crate::fixture::{cluster, ip, name, zone_config};

/// Question and wanted answer. `NODATA`, `NXDOMAIN`, or the data of the records; after ` + ` those of the additional
/// section. `…` stands for `shop.svc.cluster.local.`
const ROWS: &[(&str, RecordType, &str)] = &[
    // 2.1, 2.1.2
    ("dns-version.cluster.local.", RecordType::TXT, "\"1.1.0\""),
    ("dns-version.cluster.local.", RecordType::A, "NODATA"),
    // 2.2.1, 2.2.2, 2.2.3
    ("web.…", RecordType::A, "10.96.0.1"),
    ("web.…", RecordType::AAAA, "NODATA"),
    ("WeB.Shop.SVC.Cluster.LOCAL.", RecordType::A, "10.96.0.1"),
    ("dual.…", RecordType::A, "10.96.0.2"),
    ("dual.…", RecordType::AAAA, "fd00::2"),
    ("idle.…", RecordType::A, "10.96.0.3"),
    ("svc.svc.svc.cluster.local.", RecordType::A, "10.96.0.4"),
    // 2.2.6, 2.4
    ("10-1-0-1.web.…", RecordType::A, "10.1.0.1"),
    ("front.web.…", RecordType::A, "10.1.0.2"),
    ("FRONT.web.…", RecordType::AAAA, "NODATA"),
    ("10-1-0-2.web.…", RecordType::A, "NXDOMAIN"),
    ("10-1-0-3.web.…", RecordType::A, "NXDOMAIN"),
    ("10-96-0-1.web.…", RecordType::A, "NXDOMAIN"),
    ("some-pod.web.…", RecordType::A, "NXDOMAIN"),
    // 2.3
    ("db.…", RecordType::A, "10.1.1.1 10.1.1.2"),
    ("db.…", RecordType::AAAA, "fd01::1 fd88:77:0:0:9::"),
    ("one.…", RecordType::AAAA, "NODATA"),
    ("one.…", RecordType::SRV, "NODATA"),
    ("down.…", RecordType::A, "NXDOMAIN"),
    ("down.…", RecordType::TXT, "NXDOMAIN"),
    ("db-0.db.…", RecordType::A, "10.1.1.1"),
    ("db-0.db.…", RecordType::AAAA, "fd01::1"),
    ("db-2.db.…", RecordType::A, "NXDOMAIN"),
    ("fd88-77-0-0-9--0.db.…", RecordType::AAAA, "fd88:77:0:0:9::"),
    // 2.5
    ("_http._tcp.web.…", RecordType::SRV, "0 100 80 web.… + 10.96.0.1"),
    ("_HTTP._Tcp.web.…", RecordType::SRV, "0 100 80 web.… + 10.96.0.1"),
    ("_http._udp.web.…", RecordType::SRV, "NXDOMAIN"),
    ("_._udp.web.…", RecordType::SRV, "NXDOMAIN"),
    ("_nope._tcp.web.…", RecordType::SRV, "NXDOMAIN"),
    ("_http._tcp.web.…", RecordType::A, "NODATA"),
    ("_http.web.…", RecordType::SRV, "NXDOMAIN"),
    ("x._http._tcp.web.…", RecordType::SRV, "NXDOMAIN"),
    ("_http._tcp.dual.…", RecordType::SRV, "0 50 80 dual.… + 10.96.0.2 fd00::2"),
    ("dual.…", RecordType::SRV, "0 25 80 dual.… | 0 25 81 dual.… + 10.96.0.2 fd00::2"),
    ("web.…", RecordType::SRV, "0 50 53 web.… | 0 50 80 web.… + 10.96.0.1"),
    (
        "_sql._tcp.db.…",
        RecordType::SRV,
        "0 20 15432 10-1-1-2.db.… | 0 20 15432 db-0.db.… | 0 20 15432 fd88-77-0-0-9--0.db.… \
         + 10.1.1.1 10.1.1.2 fd01::1 fd88:77:0:0:9::",
    ),
    ("_http._tcp.one.…", RecordType::SRV, "NXDOMAIN"),
    ("_http._tcp.down.…", RecordType::SRV, "NXDOMAIN"),
    ("front.web.…", RecordType::SRV, "0 50 53 front.web.… | 0 50 8080 front.web.… + 10.1.0.2"),
    // 2.6
    ("inner.…", RecordType::A, "WEB.… 10.96.0.1"),
    ("inner.…", RecordType::CNAME, "WEB.…"),
    ("twice.…", RecordType::A, "inner.… WEB.… 10.96.0.1"),
    ("twice.…", RecordType::AAAA, "inner.… WEB.…"),
    ("gone.…", RecordType::A, "nothing.…"),
    ("loop-a.…", RecordType::A, "loop-b.… loop-a.…"),
    ("inner.…", RecordType::SRV, "NODATA"),
    ("x.inner.…", RecordType::A, "NXDOMAIN"),
    ("_http._tcp.inner.…", RecordType::SRV, "NXDOMAIN"),
    ("number.…", RecordType::A, "NXDOMAIN"),
    // 3.1, 3.2, 3.3
    ("pending.…", RecordType::A, "NXDOMAIN"),
    ("10-1-9-1.pending.…", RecordType::A, "NXDOMAIN"),
    ("nothing.…", RecordType::A, "NXDOMAIN"),
    ("web.hidden.svc.cluster.local.", RecordType::A, "NXDOMAIN"),
    ("web.nowhere.svc.cluster.local.", RecordType::A, "NXDOMAIN"),
    ("shop.svc.cluster.local.", RecordType::A, "NODATA"),
    ("nowhere.svc.cluster.local.", RecordType::A, "NXDOMAIN"),
    ("svc.cluster.local.", RecordType::TXT, "NODATA"),
    ("pod.cluster.local.", RecordType::A, "NODATA"),
    ("cluster.local.", RecordType::TXT, "NODATA"),
    ("other.cluster.local.", RecordType::A, "NXDOMAIN"),
    ("web.…", RecordType::MX, "NODATA"),
    ("web.…", RecordType::HTTPS, "NODATA"),
    ("web.…", RecordType::ANY, "NODATA"),
    ("nothing.…", RecordType::ANY, "NXDOMAIN"),
    ("web.…", RecordType::Unknown(65280), "NODATA"),
    // 4
    ("cluster.local.", RecordType::NS, "ns.dns.cluster.local. + 10.96.0.10"),
    ("cluster.local.", RecordType::A, "NODATA"),
    ("ns.dns.cluster.local.", RecordType::A, "10.96.0.10"),
    ("ns.dns.cluster.local.", RecordType::AAAA, "NODATA"),
    ("dns.cluster.local.", RecordType::A, "NXDOMAIN"),
    ("web.…", RecordType::SOA, "NODATA"),
    // 5
    ("1.0.96.10.in-addr.arpa.", RecordType::PTR, "web.…"),
    ("1.0.96.10.in-addr.arpa.", RecordType::A, "NODATA"),
    ("1.0.1.10.in-addr.arpa.", RecordType::PTR, "10-1-0-1.web.…"),
    ("2.0.1.10.in-addr.arpa.", RecordType::PTR, "front.web.…"),
    ("3.0.1.10.in-addr.arpa.", RecordType::PTR, "NXDOMAIN"),
    ("5.0.96.10.in-addr.arpa.", RecordType::PTR, "NXDOMAIN"),
    ("200.2.0.192.in-addr.arpa.", RecordType::PTR, "NXDOMAIN"),
    ("10.in-addr.arpa.", RecordType::PTR, "NXDOMAIN"),
    ("web.…", RecordType::PTR, "NODATA"),
    // 6.2
    ("10-9-8-7.shop.pod.cluster.local.", RecordType::A, "10.9.8.7"),
    ("10-9-8-7.shop.pod.cluster.local.", RecordType::AAAA, "NODATA"),
    ("fd00--9.shop.pod.cluster.local.", RecordType::AAAA, "fd00::9"),
    ("10-9-8-07.shop.pod.cluster.local.", RecordType::A, "NXDOMAIN"),
    ("10-9-8-7.nowhere.pod.cluster.local.", RecordType::A, "NXDOMAIN"),
    ("shop.pod.cluster.local.", RecordType::A, "NODATA"),
    ("nowhere.pod.cluster.local.", RecordType::A, "NXDOMAIN"),
    // 3.10: neither ours nor, without upstreams, anybody's
    ("xcluster.local.", RecordType::A, "REFUSED"),
    ("www.example.test.", RecordType::A, "REFUSED"),
];

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

#[track_caller]
fn check_soa(row: &str, authority: &[Record]) {
    let [soa] = authority else { panic!("{row}: one SOA, not {authority:?}") };
    assert_eq!((soa.record_type(), soa.ttl), (RecordType::SOA, 5), "{row}"); // 3.5
}

#[track_caller]
fn check(zone: &Zone, asked: &str, rtype: RecordType, expected: &str) {
    let row = format!("{asked} {rtype}");
    let asked = name(&asked.replace('…', "shop.svc.cluster.local."));
    match zone.answer(&asked, rtype) {
        Answer::Records(records) => {
            check_sections(&row, &records.answers, &records.additionals, expected);
            assert!(records.answers[0].name.eq_case(&asked), "{row}: owner in the spelling of the question");
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
    for (asked, rtype, expected) in ROWS {
        check(&zone, asked, *rtype, expected);
    }
}

#[track_caller]
fn check_reply(asked: &str, rtype: RecordType, reply: &Message, expected: &str) {
    let row = format!("{asked} {rtype} on the wire");
    let meta = reply.metadata;
    let asked = name(&asked.replace('…', "shop.svc.cluster.local."));
    assert!(reply.queries[0].name.eq_case(&asked), "{row}: question echoed"); // 9.3
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
            assert!(reply.answers[0].name.eq_case(&asked), "{row}: owner in the spelling of the question");
        }
    }
}

#[tokio::test]
async fn the_server_answers_the_same_over_udp_and_tcp() {
    let server = client::start(zone_config(), Some(cluster()), vec![]).await;
    for address in server.local_addresses() {
        let full = |text: &str| name(&text.replace('…', "shop.svc.cluster.local."));
        let asked: Vec<Message> = ROWS.iter().map(|(text, rtype, _)| client::question(&full(text), *rtype)).collect();
        let replies = client::tcp(*address, &asked).await;
        for ((message, reply), (text, rtype, expected)) in asked.iter().zip(&replies).zip(ROWS) {
            check_reply(text, *rtype, reply, expected);
            check_reply(text, *rtype, &client::udp(*address, message).await, expected);
        }
    }
    let stats = server.stats();
    let rows = 2 * u64::try_from(ROWS.len()).unwrap();
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
    assert!(found.answers[0].data.to_string().starts_with("0 1 80 ")); // 2.5.4
}

#[test]
fn pod_modes_differ() {
    let disabled = zone_of(ZoneConfig { pods: PodMode::Disabled, ..zone_config() });
    check(&disabled, "10-1-0-1.shop.pod.cluster.local.", RecordType::A, "NXDOMAIN"); // 6.1
    check(&disabled, "shop.pod.cluster.local.", RecordType::A, "NXDOMAIN");
    check(&disabled, "pod.cluster.local.", RecordType::A, "NODATA");
    let verified = zone_of(ZoneConfig { pods: PodMode::Verified, ..zone_config() });
    check(&verified, "10-1-0-1.shop.pod.cluster.local.", RecordType::A, "10.1.0.1"); // 6.3
    check(&verified, "fd01-0--1.shop.pod.cluster.local.", RecordType::AAAA, "fd01::1");
    check(&verified, "10-1-0-2.shop.pod.cluster.local.", RecordType::A, "NXDOMAIN");
    check(&verified, "10-1-0-1.svc.pod.cluster.local.", RecordType::A, "NXDOMAIN");
}

#[test]
fn the_soa_says_how_long_absence_lasts() {
    let zone = zone_of(ZoneConfig { ttl: 600, ..zone_config() });
    let Answer::Records(apex) = zone.answer(&name("Cluster.local."), RecordType::SOA) else { panic!("records") };
    let soa = &apex.answers[0];
    assert_eq!((soa.name.to_ascii().as_str(), soa.ttl), ("Cluster.local.", 300)); // 3.5, 4.1
    let wanted = "ns.dns.Cluster.local. hostmaster.Cluster.local. 7 7200 1800 86400 600";
    assert_eq!(soa.data.to_string(), wanted);
}

#[test]
fn without_dns_addresses_the_apex_has_no_ns() {
    let zone = zone_of(ZoneConfig { dns_addresses: vec![], ..zone_config() });
    check(&zone, "cluster.local.", RecordType::NS, "NODATA"); // 4.3
}

#[test]
fn another_domain_can_be_served() {
    let zone = zone_of(ZoneConfig { cluster_domain: name("Corp.Example.Test."), ..zone_config() });
    check(&zone, "web.shop.svc.corp.example.test.", RecordType::A, "10.96.0.1");
    check(&zone, "web.shop.svc.cluster.local.", RecordType::A, "REFUSED");
    let reverse = zone.answer(&name("1.0.96.10.in-addr.arpa."), RecordType::PTR);
    assert!(reverse.explain().contains("web.shop.svc.Corp.Example.Test."), "{}", reverse.explain());
    assert_eq!(ip("10.96.0.1").to_string(), "10.96.0.1");
}

#[test]
fn an_answer_explains_itself() {
    let explain = |text: &str| zone_of(zone_config()).answer(&name(text), RecordType::A).explain();
    assert!(explain("down.shop.svc.cluster.local.").contains("no ready endpoint"));
    assert!(explain("web.shop.svc.cluster.local.").contains("10.96.0.1"));
    assert!(explain("outer.shop.svc.cluster.local.").contains("www.example.test."));
}
