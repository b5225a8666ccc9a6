//! Transfers of the whole zone, beside all else that the server does (DNS-4.5).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{RData, Record};
use shunt_dns::{
    Answer, BlockConfig, ForwardConfig, Name, RecordType, Server, ServerConfig, Transfer, Upstreams, Zone, serve,
};
use shunt_model::Snapshot;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::client;
use crate::fixture::{cluster, key, name, service, slice, zone_config};

/// Longer than any transfer here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server that gives its zone to this host.
async fn start(snapshot: Snapshot) -> Server {
    let mut block = BlockConfig::usual(name("cluster.local."), ForwardConfig::to(Upstreams::Servers(vec![])));
    let transfer = Transfer { zones: vec![Name::root()], to: vec!["127.0.0.0/8".parse().unwrap()] };
    block.transfer = Some(transfer);
    let listen = vec!["127.0.0.1:0".parse().unwrap()];
    let (_, snapshots) = watch::channel(Some(Arc::new(snapshot)));
    serve(ServerConfig { listen, zone: zone_config(), blocks: vec![block], startup_timeout: Duration::ZERO }, snapshots)
        .await
        .unwrap()
}

fn ask(rtype: RecordType) -> Message {
    client::question(&name("cluster.local."), rtype)
}

/// An IXFR of a client that has the zone of `serial`.
fn changes_since(serial: u32) -> Message {
    let data = SOA::new(name("ns.dns.cluster.local."), name("hostmaster.cluster.local."), serial, 0, 0, 0, 0);
    let mut message = ask(RecordType::IXFR);
    message.authorities.push(Record::from_rdata(name("cluster.local."), 0, RData::SOA(data)));
    message
}

/// All records, the SOA at both ends included.
async fn transfer(server: SocketAddr) -> Vec<Record> {
    let wire = ask(RecordType::AXFR).to_vec().unwrap();
    let mut stream = TcpStream::connect(server).await.unwrap();
    stream.write_u16(u16::try_from(wire.len()).unwrap()).await.unwrap();
    stream.write_all(&wire).await.unwrap();
    let mut records: Vec<Record> = Vec::new();
    while records.len() < 2 || records.first() != records.last() {
        let length = timeout(PATIENCE, stream.read_u16()).await.expect("more of the zone").unwrap();
        let mut wire = vec![0; usize::from(length)];
        stream.read_exact(&mut wire).await.unwrap();
        let reply = Message::from_vec(&wire).unwrap();
        assert_eq!((reply.metadata.response_code, reply.metadata.truncation), (ResponseCode::NoError, false));
        records.extend(reply.answers);
    }
    records
}

/// A Service of `count` endpoints without cluster IP.
fn with_endpoints(count: u32) -> Snapshot {
    let mut snapshot = cluster();
    service(&mut snapshot, &key("all"), "None", "http:tcp:80");
    for part in 0..count / 100 {
        let addresses: Vec<String> = (0..100).map(|n| format!("10.{}.{}.{n}", 16 + part / 250, part % 250)).collect();
        slice(&mut snapshot, &key("all"), &format!("all-{part}"), "http:tcp:80", &addresses.join(" "));
    }
    snapshot
}

#[test]
fn a_transfer_holds_what_questions_are_answered_with() {
    let zone = Zone::new(Arc::new(zone_config()), Arc::new(cluster()), 7);
    let records: Vec<Record> = zone.records().collect();
    let texts: BTreeSet<String> = records.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), records.len(), "each record once");
    let asked: BTreeSet<_> = records.iter().map(|record| (record.name.clone(), record.record_type())).collect();
    for (owner, rtype) in asked {
        let Answer::Records(found) = zone.answer(&owner, rtype) else { panic!("{owner} {rtype}") };
        let in_zone = records.iter().filter(|record| record.name == owner && record.record_type() == rtype);
        let in_zone: BTreeSet<String> = in_zone.map(ToString::to_string).collect();
        let answered: BTreeSet<String> = found.answers.iter().map(ToString::to_string).collect();
        let alias = rtype == RecordType::CNAME;
        assert!(in_zone == answered || alias && answered.is_superset(&in_zone), "{owner} {rtype}: {in_zone:?}");
    }
    for owner in ["_sql._tcp.db", "fd88-77-0-0-9--0.db", "front.web", "10-1-0-1.web", "dual", "_admin._tcp.dual"] {
        let owner = name(&format!("{owner}.shop.svc.cluster.local."));
        assert!(records.iter().any(|record| record.name == owner), "{owner}");
    }
}

#[tokio::test]
async fn a_large_zone_is_transferred_while_others_are_answered() {
    let server = start(with_endpoints(20_000)).await;
    let at = server.local_addresses()[0];
    let running = tokio::spawn(transfer(at));
    let mut answered = 0;
    while !running.is_finished() {
        let question = client::question(&name("web.shop.svc.cluster.local."), RecordType::A);
        assert_eq!(client::tcp(at, &[question]).await[0].answers.len(), 1);
        answered += 1;
    }
    // One may have come before the transfer has begun; the server and this test share a thread.
    assert!(answered > 2, "{answered} questions were answered meanwhile");
    let records = running.await.unwrap();
    // Of each endpoint: its address by either name, and its port.
    let of_all = records.iter().filter(|record| record.name.to_ascii().contains("all.shop"));
    assert_eq!(of_all.count(), 60_000);
    server.shutdown().await;
}

#[tokio::test]
async fn transfers_at_the_same_time_are_all_done() {
    let server = start(with_endpoints(1_000)).await;
    let at = server.local_addresses()[0];
    let all = futures::future::join_all((0..20).map(|_| transfer(at))).await;
    assert!(all.iter().all(|records| records.len() == all[0].len()));
    server.shutdown().await;
}

#[tokio::test]
async fn who_has_the_current_zone_gets_its_soa_only() {
    let server = start(cluster()).await;
    let at = server.local_addresses()[0];
    let serial = server.views().borrow().zone.serial();
    for (known, whole) in [(serial, false), (serial - 1, true), (serial + 1, true), (0, true)] {
        let reply = client::tcp(at, &[changes_since(known)]).await.remove(0);
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
        assert_eq!(reply.answers[0].record_type(), RecordType::SOA);
        assert_eq!(reply.answers.len() > 1, whole, "{known} while the zone is {serial}");
    }
    server.shutdown().await;
}

#[tokio::test]
async fn an_unknown_version_of_edns_is_told_before_anything_is_transferred() {
    let server = start(cluster()).await;
    for rtype in [RecordType::AXFR, RecordType::IXFR] {
        let mut message = client::with_edns(ask(rtype), 1232);
        message.edns.as_mut().unwrap().set_version(1);
        let reply = client::tcp(server.local_addresses()[0], &[message]).await.remove(0);
        let rcode = u16::from(reply.metadata.response_code);
        assert_eq!((rcode, reply.answers.len()), (u16::from(ResponseCode::BADVERS), 0), "{rtype}"); // DNS-9.10
    }
    server.shutdown().await;
}
