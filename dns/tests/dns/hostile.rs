//! Clients that are broken, greedy or not there: none of them hurts another.

use std::net::SocketAddr;
use std::sync::Arc;

use hickory_proto::op::{Message, ResponseCode};
use shunt_dns::{Answer, ForwardConfig, RecordType, ServerConfig, Upstreams, Zone, serve};
use shunt_model::Snapshot;
use shunt_serving::limits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::client;
use crate::fixture::{cluster, name, namespace, service, zone_config};

fn question(text: &str) -> Vec<u8> {
    client::question(&name(text), RecordType::A).to_vec().unwrap()
}

/// A header with an id, flags and counts, and what follows it.
fn message(flags: u16, counts: [u16; 4], rest: &[u8]) -> Vec<u8> {
    let header = [0x1234, flags, counts[0], counts[1], counts[2], counts[3]];
    header.iter().flat_map(|word: &u16| word.to_be_bytes()).chain(rest.iter().copied()).collect()
}

const A_IN: &[u8] = &[0, 1, 0, 1];
const RD: u16 = 0x0100;
const FORMERR: Option<u8> = Some(1);

/// A kind of message, and the rcode it is answered with; none is silence (DNS-9.4…9.6).
fn malformed() -> Vec<(&'static str, Vec<u8>, Option<u8>)> {
    let whole = [&[3, b'w', b'e', b'b', 0], A_IN].concat();
    let long_label = [&[64], [b'x'; 64].as_slice(), &[0], A_IN].concat();
    let long_name = [[[63].as_slice(), &[b'x'; 63]].concat().repeat(4), vec![0], A_IN.to_vec()].concat();
    let record = [&[0, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4], [10, 0, 0, 1].as_slice()].concat();
    vec![
        ("nothing", vec![], None),
        ("half a header", vec![0; 11], None),
        ("a reply", message(0x8000 | RD, [1, 0, 0, 0], &whole), None),
        ("a reply with an error", message(0x8001, [0, 0, 0, 0], &[]), None),
        ("no question", message(RD, [0, 0, 0, 0], &[]), FORMERR),
        ("two questions", message(RD, [2, 0, 0, 0], &[whole.as_slice(), &whole].concat()), FORMERR),
        ("fewer questions than it says", message(RD, [1, 0, 0, 0], &[]), FORMERR),
        ("65,535 questions", message(RD, [0xffff, 0, 0, 0], &whole), FORMERR),
        ("a question cut in its name", message(RD, [1, 0, 0, 0], &whole[..3]), FORMERR),
        ("a question cut in its type", message(RD, [1, 0, 0, 0], &whole[..6]), FORMERR),
        ("a label of 64 octets", message(RD, [1, 0, 0, 0], &long_label), FORMERR),
        ("a name of 257 octets", message(RD, [1, 0, 0, 0], &long_name), FORMERR),
        ("a name that points at itself", message(RD, [1, 0, 0, 0], &[&[0xc0, 12], A_IN].concat()), FORMERR),
        ("names that point at each other", message(RD, [1, 0, 0, 0], &[&[0xc0, 14, 0xc0, 12], A_IN].concat()), FORMERR),
        ("a pointer behind the end", message(RD, [1, 0, 0, 0], &[&[0xc3, 0xff], A_IN].concat()), FORMERR),
        ("a label of no known kind", message(RD, [1, 0, 0, 0], &[&[0x80, 1, 0], A_IN].concat()), FORMERR),
        ("two answers", message(RD, [1, 2, 0, 0], &[whole.as_slice(), &record, &record].concat()), FORMERR),
        (
            "three additional records",
            message(RD, [1, 0, 0, 3], &[whole.as_slice(), &record.repeat(3)].concat()),
            FORMERR,
        ),
        (
            "an OPT cut in its options",
            message(RD, [1, 0, 0, 1], &[whole.as_slice(), &[0, 0, 41, 4, 0, 0, 0, 0, 0, 0, 9, 1]].concat()),
            FORMERR,
        ),
        ("an update", message(5 << 11, [1, 0, 0, 0], &whole), Some(4)),
        ("an unknown opcode", message(15 << 11, [1, 0, 0, 0], &whole), Some(4)),
    ]
}

#[tokio::test]
async fn every_kind_of_malformed_message_is_met_as_the_rules_say() {
    let server = client::start(zone_config(), Some(cluster()), vec![]).await;
    let at = server.local_addresses()[0];
    for (kind, wire, wanted) in malformed() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(at).await.unwrap();
        socket.send(&wire).await.unwrap();
        // The answer to the next question shows that this one gets no reply, not a late one.
        let next = question("web.shop.svc.cluster.local.");
        if wanted.is_none() {
            socket.send(&next).await.unwrap();
        }
        let mut reply = [0; 512];
        let length = timeout(client::PATIENCE, socket.recv(&mut reply)).await.expect(kind).unwrap();
        match wanted {
            None => assert_eq!(reply[..2], next[..2], "{kind}"),
            Some(rcode) => {
                assert_eq!(
                    (&reply[..2], reply[2] & 0x80, reply[3] & 15, length),
                    (&wire[..2], 0x80, rcode, 12),
                    "{kind}"
                );
            }
        }
    }
    server.shutdown().await;
}

#[tokio::test]
async fn the_longest_names_there_can_be_are_answered() {
    let server = client::start(zone_config(), Some(cluster()), vec![]).await;
    let at = server.local_addresses()[0];
    let label = "x".repeat(63);
    // 255 octets on the wire, and below the cluster domain.
    let longest = format!("{label}.{label}.{label}.{}.cluster.local.", "y".repeat(47));
    assert_eq!(question(&longest).len(), 12 + 255 + 4);
    for message in [
        client::question(&name(&longest), RecordType::A),
        client::with_edns(client::question(&name(&longest), RecordType::SRV), 512),
    ] {
        let reply = client::udp(at, &message).await;
        assert_eq!((reply.metadata.response_code, reply.authorities.len()), (ResponseCode::NXDomain, 1));
        assert!(reply.queries[0].name.eq_case(&name(&longest)));
    }
    server.shutdown().await;
}

#[tokio::test]
async fn a_client_that_never_reads_is_let_go() {
    let server = client::start(zone_config(), Some(cluster()), vec![]).await;
    let at = server.local_addresses()[0];
    let mut stream = TcpStream::connect(at).await.unwrap();
    let wire = question("many.shop.svc.cluster.local.");
    let framed = [u16::try_from(wire.len()).unwrap().to_be_bytes().as_slice(), &wire].concat();
    // It sends questions until the server reads no more of them: the server waits for it to read replies, then closes.
    let hung_up = async {
        for _ in 0..1_000_000 {
            if stream.write_all(&framed).await.is_err() {
                return true;
            }
        }
        false
    };
    assert!(timeout(client::PATIENCE, hung_up).await.expect("the server hangs up"));
    assert!(server.stats().tcp_rejects + server.stats().send_failures > 0);
    let reply = client::tcp(at, &[client::question(&name("web.shop.svc.cluster.local."), RecordType::A)]).await;
    assert_eq!(reply[0].answers.len(), 1);
    server.shutdown().await;
}

#[tokio::test]
async fn one_client_does_not_take_all_waiting_places() {
    // An upstream that says nothing: everything that is asked of it waits.
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut forward = ForwardConfig::to(Upstreams::Servers(vec![silent.local_addr().unwrap().into()]));
    forward.routes[0].max_concurrent = 10;
    let server = client::start_with(zone_config(), Some(cluster()), forward).await;
    let at = server.local_addresses()[0];
    let refused = async |local: &str, count: usize| {
        let socket = UdpSocket::bind((local, 0)).await.unwrap();
        socket.connect(at).await.unwrap();
        for number in 0..count {
            socket.send(&question(&format!("name-{number}.{local}.test."))).await.unwrap();
        }
        // Names of the cluster need no place. What comes from one socket is met in its order, and refused at once, so
        // that all refusals come before this answer.
        socket.send(&question("web.shop.svc.cluster.local.")).await.unwrap();
        let mut refused = 0;
        loop {
            let mut reply = [0; 512];
            let length = timeout(client::PATIENCE, socket.recv(&mut reply)).await.expect("a reply").unwrap();
            let message = Message::from_vec(&reply[..length]).unwrap();
            if message.metadata.response_code != ResponseCode::Refused {
                assert_eq!((message.metadata.response_code, message.answers.len()), (ResponseCode::NoError, 1));
                return refused;
            }
            refused += 1;
        }
    };
    assert_eq!(refused("127.0.0.2", 40).await, 35, "half of the places");
    assert_eq!(refused("127.0.0.3", 2).await, 0, "another client still finds some");
    server.shutdown().await;
}

#[tokio::test]
async fn one_client_does_not_take_all_connections() {
    // Both ends of each are files of this process, which are more than the usual 1,024.
    limits::raise_open_files();
    let message = client::question(&name("web.shop.svc.cluster.local."), RecordType::A);
    let framed = client::framed(&message.to_vec().unwrap());
    let server = client::start(zone_config(), Some(cluster()), vec![]).await;
    let mut open = Vec::new();
    for _ in 0..600 {
        let mut stream = TcpStream::connect(server.local_addresses()[0]).await.unwrap();
        let _gone = stream.write_all(&framed).await;
        open.push(stream);
    }
    let mut served = 0;
    for stream in &mut open {
        served += usize::from(stream.read_u16().await.is_ok());
    }
    assert_eq!(served, 512, "half of the connections");
    server.shutdown().await;
}

#[tokio::test]
async fn a_server_on_all_addresses_replies_from_the_one_that_was_asked() {
    let no_upstreams = ForwardConfig::to(Upstreams::Servers(vec![]));
    for (listen, asked) in [("0.0.0.0:0", vec!["127.0.0.1", "127.0.0.77"]), ("[::]:0", vec!["::1", "127.0.0.77"])] {
        let (_, snapshots) = watch::channel(Some(Arc::new(cluster())));
        let config = ServerConfig::usual(vec![listen.parse().unwrap()], zone_config(), no_upstreams.clone());
        let server = serve(config, snapshots).await.unwrap();
        for ip in asked {
            // A connected socket takes replies from nowhere else (DNS-9.17).
            let at = SocketAddr::new(ip.parse().unwrap(), server.local_addresses()[0].port());
            let web = client::question(&name("web.shop.svc.cluster.local."), RecordType::A);
            assert_eq!(client::udp(at, &web).await.answers.len(), 1, "{at}");
            assert_eq!(client::tcp(at, &[web]).await[0].answers.len(), 1, "{at}");
        }
        server.shutdown().await;
    }
}

#[test]
fn a_quarter_of_a_million_names_are_a_zone_like_any_other() {
    let mut snapshot = Snapshot::default();
    for number in 0..250 {
        namespace(&mut snapshot, &format!("ns-{number}"));
    }
    for number in 0..250_000_u32 {
        let key = shunt_model::ObjectKey::new(format!("ns-{}", number % 250), format!("service-{number}"));
        let [_, a, b, c] = number.to_be_bytes();
        service(&mut snapshot, &key, &format!("10.{a}.{b}.{c}"), "http:tcp:80");
    }
    let zone = Zone::new(Arc::new(zone_config()), Arc::new(snapshot.clone()), 1);
    let asked = |zone: &Zone, text: &str, rtype| match zone.answer(&name(text), rtype) {
        Answer::Records(records) => records.answers[0].data.to_string(),
        other @ (Answer::Alias { .. } | Answer::NoData { .. } | Answer::NxDomain { .. })
        | other @ (Answer::UnknownAddress { .. } | Answer::NotOurs) => other.reason(),
    };
    let absent = "the namespace has no such service (DNS-3.1)";
    for number in (0..250_000_u32).step_by(9973) {
        let text = format!("service-{number}.ns-{}.svc.cluster.local.", number % 250);
        let [_, a, b, c] = number.to_be_bytes();
        assert_eq!(asked(&zone, &text, RecordType::A), format!("10.{a}.{b}.{c}"), "{text}");
        assert_eq!(asked(&zone, &format!("{c}.{b}.{a}.10.in-addr.arpa."), RecordType::PTR), text);
        assert_eq!(asked(&zone, &format!("x{text}"), RecordType::A), absent, "{text}");
    }
    // A change is a change, however large the rest is.
    snapshot.services.remove(&shunt_model::ObjectKey::new("ns-0", "service-0"));
    let next = zone.next(Arc::new(snapshot), 2);
    assert_eq!(asked(&next, "service-0.ns-0.svc.cluster.local.", RecordType::A), absent);
    assert_eq!(asked(&next, "service-250.ns-0.svc.cluster.local.", RecordType::A), "10.0.0.250");
    assert_eq!((zone.serial(), next.serial()), (1, 2));
}
