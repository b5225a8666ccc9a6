//! The zone of the cluster, transferred: the same octets as questions are answered with.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::raw::{self, Message, Question, Record};
use crate::fixture::cluster;
use crate::{client, corefile};

const IN: u16 = 1;
const CNAME: u16 = 5;
const SOA: u16 = 6;
const AXFR: u16 = 252;

/// All records, the SOA once.
async fn transfer(at: SocketAddr, zone: &str) -> Vec<Record> {
    let question = Question { name: raw::labels(zone), rtype: AXFR, class: IN };
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(&client::framed(&raw::query(7, &question, None))).await.unwrap();
    let mut records: Vec<Record> = Vec::new();
    while records.iter().filter(|record| record.rtype == SOA).count() < 2 {
        let length = stream.read_u16().await.unwrap();
        let mut wire = vec![0; usize::from(length)];
        stream.read_exact(&mut wire).await.unwrap();
        records.extend(Message::read(&wire).unwrap().sections[0].clone());
    }
    records.pop();
    records
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_has_the_octets_of_the_answers() {
    let place = tempfile::tempdir().unwrap();
    let text = ".:53 {\n kubernetes Cluster.Local in-addr.arpa\n transfer {\n to *\n }\n}\n";
    let (server, _) = corefile::start(text, place.path(), Some(cluster())).await;
    let at = server.local_addresses()[0];
    let records = transfer(at, "cluster.local").await;
    let keys: BTreeSet<_> = records.iter().map(|record| (record.owner.clone(), record.rtype)).collect();
    assert!(keys.len() > 50, "{}", keys.len());
    for (owner, rtype) in keys {
        let question = Question { name: owner.clone(), rtype, class: IN };
        let got = Message::read(&client::tcp_bytes(at, &raw::query(7, &question, None)).await).unwrap();
        let parts = |records: &[Record]| -> BTreeSet<(u32, Vec<u8>)> {
            let of_it = records.iter().filter(|record| (&record.owner, record.rtype) == (&owner, rtype));
            of_it.map(|record| (record.ttl, record.rdata.clone())).collect()
        };
        let (answered, transferred) = (parts(&got.sections[0]), parts(&records));
        assert_eq!(answered, transferred, "{} type {rtype}", owner.escape_ascii());
        assert!(rtype == CNAME || got.sections[0].iter().all(|record| record.rtype == rtype));
    }
}
