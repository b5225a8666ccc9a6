//! Names of others: passed on to small upstreams on loopback, as they answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, SOA};
use hickory_proto::rr::{RData, Record};
use shunt_dns::{BlockConfig, ForwardConfig, Name, RecordType, ServerConfig, Upstreams, serve};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{self, pki_types::PrivateKeyDer};

use crate::client;
use crate::fixture::{cluster, external, key, name, zone_config};

/// Answers by the first label of the name; counts what it is asked.
struct FakeUpstream {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl FakeUpstream {
    async fn start() -> Self {
        Self::at("127.0.0.1:0".parse().unwrap()).await
    }

    async fn at(address: SocketAddr) -> Self {
        let (udp, tcp) = client::sockets(address).await;
        let address = udp.local_addr().unwrap();
        let asked = Arc::<AtomicUsize>::default();
        let mut tasks = JoinSet::new();
        let count = Arc::clone(&asked);
        tasks.spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, client)) = udp.recv_from(&mut buffer).await {
                // Loop detection and health probes are recognised by their types, and not counted.
                let query = &Message::from_vec(&buffer[..length]).unwrap().queries[0];
                let own = [RecordType::HINFO, RecordType::NS].contains(&query.query_type);
                count.fetch_add(usize::from(!own), Ordering::Relaxed);
                let reply = reply(&buffer[..length], false);
                let mut forged = reply.clone();
                forged[0] ^= 255; // a reply with another id comes first and must not be believed
                udp.send_to(&forged, client).await.unwrap();
                udp.send_to(&reply, client).await.unwrap();
            }
        });
        let connections = Arc::<AtomicUsize>::default();
        let accepted = Arc::clone(&connections);
        tasks.spawn(async move {
            while let Ok((stream, _)) = tcp.accept().await {
                accepted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(converse(stream));
            }
        });
        Self { address, asked, connections, _tasks: tasks }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

/// Answers on a connection until the client leaves.
async fn converse(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    while let Ok(length) = stream.read_u16().await {
        let mut wire = vec![0; usize::from(length)];
        stream.read_exact(&mut wire).await.unwrap();
        let reply = reply(&wire, true);
        stream.write_u16(u16::try_from(reply.len()).unwrap()).await.unwrap();
        stream.write_all(&reply).await.unwrap();
        stream.flush().await.unwrap();
    }
}

fn soa() -> Record {
    let (mname, rname) = (name("ns.example.test."), name("admin.example.test."));
    Record::from_rdata(name("example.test."), 60, RData::SOA(SOA::new(mname, rname, 9, 1, 1, 1, 60)))
}

fn address(owner: &Name, last: u8) -> Record {
    Record::from_rdata(owner.clone(), 300, RData::A(A::new(192, 0, 2, last)))
}

fn reply(wire: &[u8], tcp: bool) -> Vec<u8> {
    let mut message = Message::from_vec(wire).unwrap().into_response();
    message.edns = None;
    message.metadata.recursion_available = true;
    let asked = message.queries[0].name.clone();
    let rcode = |message: &mut Message, code| message.metadata.response_code = code;
    match asked.to_ascii().to_ascii_lowercase().split('.').next().unwrap() {
        "absent" => {
            rcode(&mut message, ResponseCode::NXDomain);
            message.add_authority(soa());
        }
        "empty" => drop(message.add_authority(soa())),
        "failing" => rcode(&mut message, ResponseCode::ServFail),
        "refusing" => rcode(&mut message, ResponseCode::Refused),
        "long" if !tcp => message.metadata.truncation = true,
        "long" => {
            message.metadata.authentic_data = true;
            message.answers = (0..100).map(|last| address(&asked, last)).collect();
        }
        "brief" => drop(message.add_answer(Record::from_rdata(asked, 1, RData::A(A::new(192, 0, 2, 7))))),
        "alias" => {
            let target = name("www.example.test.");
            message.add_answer(Record::from_rdata(asked, 300, RData::CNAME(CNAME(target.clone()))));
            message.add_answer(address(&target, 7));
        }
        _ => drop(message.add_answer(address(&asked, 7))),
    }
    message.to_vec().unwrap()
}

async fn ask(server: SocketAddr, text: &str, rtype: RecordType) -> Message {
    let reply = client::udp(server, &client::question(&name(text), rtype)).await;
    assert!(reply.queries[0].name.eq_case(&name(text)));
    reply
}

/// rcode, answers, authorities.
fn shape(message: &Message) -> (ResponseCode, usize, usize) {
    (message.metadata.response_code, message.answers.len(), message.authorities.len())
}

#[tokio::test]
async fn what_the_upstream_says_is_passed_on() {
    let upstream = FakeUpstream::start().await;
    let server = client::start(zone_config(), Some(cluster()), vec![upstream.address]).await;
    let at = server.local_addresses()[0];
    let rows = [
        ("www.example.test.", RecordType::A, (ResponseCode::NoError, 1, 0)),
        ("www.example.test.", RecordType::Unknown(65280), (ResponseCode::NoError, 1, 0)),
        ("alias.example.test.", RecordType::A, (ResponseCode::NoError, 2, 0)),
        ("absent.example.test.", RecordType::A, (ResponseCode::NXDomain, 0, 1)),
        ("empty.example.test.", RecordType::AAAA, (ResponseCode::NoError, 0, 1)),
        ("failing.example.test.", RecordType::A, (ResponseCode::ServFail, 0, 0)),
        ("refusing.example.test.", RecordType::A, (ResponseCode::Refused, 0, 0)),
        ("localhost.", RecordType::A, (ResponseCode::NoError, 1, 0)),
        ("9.9.9.10.in-addr.arpa.", RecordType::PTR, (ResponseCode::NoError, 1, 0)), // DNS-5.5
    ];
    for (text, rtype, wanted) in rows {
        // Twice: the second is from the cache where that is allowed, and looks the same.
        for round in 0..2 {
            let reply = ask(at, text, rtype).await;
            assert_eq!(shape(&reply), wanted, "{text} {rtype}, round {round}");
            assert!(!reply.metadata.authoritative && reply.metadata.recursion_available, "{text}");
        }
    }
    server.shutdown().await;
}

#[tokio::test]
async fn plain_answers_are_kept_and_respelled() {
    let upstream = FakeUpstream::start().await;
    let server = client::start(zone_config(), Some(cluster()), vec![upstream.address]).await;
    let at = server.local_addresses()[0];
    let rows = [("www", 300), ("WWW", 30), ("absent", 300), ("Absent", 30)];
    for (label, ttl) in rows {
        let text = &format!("{label}.example.test.");
        let reply = ask(at, text, RecordType::A).await;
        assert!(reply.answers.iter().all(|record| record.name.eq_case(&name(text))), "{text}"); // DNS-9.3
        assert!(reply.answers.iter().all(|record| record.ttl <= ttl), "{text}");
    }
    assert_eq!((upstream.asked(), server.stats().cache_hits), (2, 2));
    // DNS-14.2: a failure is kept for a moment.
    ask(at, "failing.example.test.", RecordType::A).await;
    ask(at, "failing.example.test.", RecordType::A).await;
    assert_eq!((upstream.asked(), server.stats().forwarded, server.stats().cache_hits), (3, 6, 3));
    server.shutdown().await;
}

#[tokio::test]
async fn cluster_names_never_leave() {
    let upstream = FakeUpstream::start().await;
    for snapshot in [Some(cluster()), None] {
        let server = client::start(zone_config(), snapshot, vec![upstream.address]).await;
        for text in
            ["nothing.shop.svc.cluster.local.", "x.cluster.local.", "cluster.local.", "web.shop.svc.cluster.local."]
        {
            ask(server.local_addresses()[0], text, RecordType::A).await;
        }
        assert_eq!((upstream.asked(), server.stats().forwarded), (0, 0));
        server.shutdown().await;
    }
}

#[tokio::test]
async fn a_cut_answer_is_asked_again_over_tcp() {
    let upstream = FakeUpstream::start().await;
    let server = client::start(zone_config(), Some(cluster()), vec![upstream.address]).await;
    let at = server.local_addresses()[0];
    let cut = ask(at, "long.example.test.", RecordType::A).await;
    assert!(cut.metadata.truncation && (20..100).contains(&cut.answers.len())); // DNS-9.14, for our client's 512
    let mut question = client::question(&name("long.example.test."), RecordType::A);
    question.metadata.authentic_data = true;
    let whole = client::tcp(at, &[question.clone()]).await.remove(0);
    assert_eq!((whole.metadata.truncation, whole.answers.len()), (false, 100));
    assert!(whole.metadata.authentic_data);
    let cut = client::udp(at, &question).await;
    assert!(cut.metadata.truncation && !cut.metadata.authentic_data, "what is left is not what was validated");
    // DNS-10.1: from the cache, too, each client gets others of them.
    let mut first = std::collections::HashSet::new();
    for _ in 0..20 {
        let cut = ask(at, "long.example.test.", RecordType::A).await;
        assert!(cut.metadata.truncation && (20..100).contains(&cut.answers.len()));
        first.insert(cut.answers[0].data.to_string());
    }
    assert!(first.len() > 1, "{first:?}");
    assert_eq!(upstream.asked(), 1);
    server.shutdown().await;
}

#[tokio::test]
async fn a_dead_upstream_gives_way_to_the_next() {
    // Bound and closed again: refuses at once. Bound and mute: costs one try.
    let closed = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mute = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let upstream = FakeUpstream::start().await;
    let upstreams = vec![closed, mute.local_addr().unwrap(), upstream.address];
    let server = client::start(zone_config(), Some(cluster()), upstreams).await;
    let at = server.local_addresses()[0];
    assert_eq!(shape(&ask(at, "www.example.test.", RecordType::A).await), (ResponseCode::NoError, 1, 0));
    // The next query begins with the one that answered.
    assert_eq!(shape(&ask(at, "other.example.test.", RecordType::A).await), (ResponseCode::NoError, 1, 0));
    let mut asked_in_vain = Vec::new();
    let mut buffer = [0; 512];
    while let Ok(length) = mute.try_recv(&mut buffer) {
        let query = Message::from_vec(&buffer[..length]).unwrap().queries.remove(0);
        if query.query_type == RecordType::A {
            asked_in_vain.push(query.name.to_ascii());
        }
    }
    assert_eq!(asked_in_vain, ["www.example.test."]);
    server.shutdown().await;
}

#[tokio::test]
async fn without_an_answer_there_is_an_error() {
    let closed = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let server = client::start(zone_config(), Some(cluster()), vec![closed]).await;
    let at = server.local_addresses()[0];
    assert_eq!(shape(&ask(at, "www.example.test.", RecordType::A).await), (ResponseCode::ServFail, 0, 0)); // DNS-3.8
    assert_eq!(shape(&ask(at, "outer.shop.svc.cluster.local.", RecordType::A).await).0, ResponseCode::ServFail);
    assert_eq!(server.stats().forward_failures, 2);
    server.shutdown().await;
}

#[tokio::test]
async fn an_external_name_is_resolved_upstream() {
    let upstream = FakeUpstream::start().await;
    let server = client::start(zone_config(), Some(cluster()), vec![upstream.address]).await;
    let at = server.local_addresses()[0];
    let reply = ask(at, "Outer.shop.svc.cluster.local.", RecordType::A).await;
    assert_eq!(shape(&reply), (ResponseCode::NoError, 2, 0)); // DNS-2.6.2
    assert!(reply.metadata.authoritative);
    let owners: Vec<String> = reply.answers.iter().map(|record| record.name.to_ascii()).collect();
    assert_eq!(owners, ["Outer.shop.svc.cluster.local.", "www.example.test."]);
    let reply = ask(at, "outer.shop.svc.cluster.local.", RecordType::CNAME).await;
    assert_eq!((shape(&reply).1, upstream.asked()), (1, 1)); // DNS-2.6.3
    let reply = ask(at, "absent.shop.svc.cluster.local.", RecordType::A).await;
    assert_eq!(shape(&reply), (ResponseCode::NoError, 1, 0)); // DNS-2.6.5
    server.shutdown().await;
}

#[tokio::test]
async fn an_external_name_is_resolved_by_the_upstreams_of_its_target() {
    let (general, stub) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let to = |upstream: &FakeUpstream| ForwardConfig::to(Upstreams::Servers(vec![upstream.address.into()]));
    let place = tempfile::tempdir().unwrap();
    let hosts = "stub.test:53 {\n hosts {\n 192.0.2.50 printer.stub.test\n fallthrough\n }\n}\n.:53 {\n}\n";
    std::fs::write(place.path().join("Corefile"), hosts).unwrap();
    let mut blocks = shunt_dns::Corefile::read(&place.path().join("Corefile")).unwrap().blocks;
    blocks[0].forward = to(&stub);
    blocks[1] = BlockConfig::usual(name("cluster.local."), to(&general));
    let mut snapshot = cluster();
    for (service, target) in [("there", "www.stub.test"), ("print", "printer.stub.test"), ("sick", "failing.stub.test")]
    {
        external(&mut snapshot, &key(service), target);
    }
    let listen = vec!["127.0.0.1:0".parse().unwrap()];
    let (_, snapshots) = tokio::sync::watch::channel(Some(Arc::new(snapshot)));
    let zone = zone_config();
    let config = ServerConfig { blocks, ..ServerConfig::usual(listen, zone, to(&general)) };
    let server = serve(config, snapshots).await.unwrap();
    let rows = [
        ("there", (ResponseCode::NoError, 2, 0), [0, 1]),
        ("print", (ResponseCode::NoError, 2, 0), [0, 1]), // hosts knows it
        ("outer", (ResponseCode::NoError, 2, 0), [1, 1]),
        ("sick", (ResponseCode::ServFail, 0, 0), [1, 2]), // else the client believes that there is no address
    ];
    for (service, wanted, asked) in rows {
        let reply =
            ask(server.local_addresses()[0], &format!("{service}.shop.svc.cluster.local."), RecordType::A).await;
        assert_eq!((shape(&reply), [general.asked(), stub.asked()]), (wanted, asked), "{service}");
    }
    server.shutdown().await;
}

#[tokio::test]
async fn a_file_of_upstreams_is_followed_as_it_changes() {
    let (first, second) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("resolv.conf");
    let write = |text: String| std::fs::write(&file, text).unwrap();
    write(format!("nameserver {}\n", first.address));
    let server =
        client::start_with(zone_config(), Some(cluster()), ForwardConfig::to(Upstreams::File(file.clone()))).await;
    let address = server.local_addresses()[0];
    ask(address, "first.example.", RecordType::A).await;
    assert_eq!((first.asked(), second.asked()), (1, 0));
    // A file that is away or empty changes nothing, however often it is looked at.
    std::fs::remove_file(&file).unwrap();
    write("# no server\n".to_owned());
    tokio::time::sleep(std::time::Duration::from_millis(4500)).await;
    assert_eq!(shape(&ask(address, "still.example.", RecordType::A).await).0, ResponseCode::NoError);
    assert_eq!((first.asked(), second.asked()), (2, 0));
    write(format!("# another one\nnameserver {}\nnameserver {address}\n", second.address));
    for number in 0_u32.. {
        ask(address, &format!("next-{number}.example."), RecordType::A).await;
        if second.asked() > 0 {
            break;
        }
        assert!(number < 600, "the second upstream was never asked");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let before = first.asked();
    for name in ["last-1.example.", "last-2.example."] {
        ask(address, name, RecordType::A).await;
    }
    assert_eq!(first.asked(), before);
}

#[tokio::test]
async fn replies_over_tcp_keep_the_order_of_their_questions() {
    let upstream = FakeUpstream::start().await;
    let server = client::start(zone_config(), Some(cluster()), vec![upstream.address]).await;
    // More than are worked on at once; those of the cluster are ready while the others are being asked for.
    let names = (0..40).map(|number| match number % 4 {
        0 => format!("name-{number}.example.test."),
        3 => "many.shop.svc.cluster.local.".to_owned(),
        _ => "web.shop.svc.cluster.local.".to_owned(),
    });
    let questions: Vec<Message> = names.map(|text| client::question(&name(&text), RecordType::A)).collect();
    let replies = client::tcp(server.local_addresses()[0], &questions).await; // which compares ids
    assert_eq!(replies.iter().map(|reply| reply.answers.len()).sum::<usize>(), 10 + 20 + 10 * 120);
    server.shutdown().await;
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let upstream = FakeUpstream::start().await;
    let server = client::start(zone_config(), Some(cluster()), vec![upstream.address]).await;
    for text in ["long.a.test.", "long.b.test.", "long.c.test."] {
        assert!(ask(server.local_addresses()[0], text, RecordType::A).await.metadata.truncation, "{text}");
    }
    let connections = upstream.connections.load(Ordering::Relaxed);
    assert_eq!((upstream.asked(), connections), (3, 1)); // DNS-15.4
    server.shutdown().await;
}

#[tokio::test]
async fn a_domain_of_its_own_is_asked_of_its_own_servers() {
    let (general, corp, lab) = (FakeUpstream::start().await, FakeUpstream::start().await, FakeUpstream::start().await);
    let stub = |domain: &str, upstream: &FakeUpstream| format!("{domain}={}", upstream.address).parse().unwrap();
    let forward = ForwardConfig::to(Upstreams::Servers(vec![general.address.into()]))
        .with_stub_domains([stub("corp.test", &corp), stub("lab.corp.test.", &lab)]);
    let server = client::start_with(zone_config(), Some(cluster()), forward).await;
    let rows = [
        ("www.example.test.", [1, 0, 0]),
        ("Corp.test.", [1, 1, 0]),
        ("www.CORP.test.", [1, 2, 0]),
        ("xcorp.test.", [2, 2, 0]),        // DNS-3.10
        ("www.lab.corp.test.", [2, 2, 1]), // DNS-13.5
        ("nothing.shop.svc.cluster.local.", [2, 2, 1]),
    ];
    for (text, wanted) in rows {
        ask(server.local_addresses()[0], text, RecordType::A).await;
        assert_eq!([general.asked(), corp.asked(), lab.asked()], wanted, "{text}");
    }
    server.shutdown().await;
}

#[tokio::test]
async fn an_old_answer_is_better_than_none() {
    let upstream = FakeUpstream::start().await;
    let server = client::start(zone_config(), Some(cluster()), vec![upstream.address]).await;
    let at = server.local_addresses()[0];
    assert_eq!(ask(at, "brief.example.test.", RecordType::A).await.answers[0].ttl, 1);
    drop(upstream);
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let reply = ask(at, "Brief.example.test.", RecordType::A).await;
    assert_eq!((shape(&reply), reply.answers[0].ttl), ((ResponseCode::NoError, 1, 0), 30)); // RFC 8767
    assert_eq!(shape(&ask(at, "other.example.test.", RecordType::A).await).0, ResponseCode::ServFail);
    assert_eq!(server.stats().cache_stale, 1);
    server.shutdown().await;
}

#[tokio::test]
async fn an_upstream_that_comes_back_is_asked_first_again() {
    let standby = FakeUpstream::start().await;
    // At an address of its own, whose port no other test takes meanwhile.
    let place = UdpSocket::bind("127.0.15.5:0").await.unwrap();
    let address = place.local_addr().unwrap();
    drop(place);
    let server = client::start(zone_config(), Some(cluster()), vec![address, standby.address]).await;
    let at = server.local_addresses()[0];
    ask(at, "one.example.test.", RecordType::A).await;
    assert_eq!(standby.asked(), 1);
    let first = FakeUpstream::at(address).await;
    // DNS-15.5: it is asked in the background whether it is back.
    for number in 0_u32.. {
        ask(at, &format!("name-{number}.example.test."), RecordType::A).await;
        if first.asked() > 0 {
            break;
        }
        assert!(number < 600, "the first upstream is never asked again");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    server.shutdown().await;
}

#[tokio::test]
async fn upstreams_over_tls_must_be_who_they_say() {
    let certified = rcgen::generate_simple_self_signed(vec!["dns.example".to_owned()]).unwrap();
    let place = tempfile::tempdir().unwrap();
    let authorities = place.path().join("ca.pem");
    std::fs::write(&authorities, certified.cert.pem()).unwrap();
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                tokio::spawn(converse(stream));
            }
        }
    });
    let rows = [("dns.example", ResponseCode::NoError), ("other.example", ResponseCode::ServFail)];
    for (named, wanted) in rows {
        let upstreams = format!("tls://{address}%{named}").parse().unwrap();
        let forward = ForwardConfig::to(upstreams).with_authorities(Some(&authorities));
        let server = client::start_with(zone_config(), Some(cluster()), forward).await;
        for text in ["www.example.test.", "long.example.test."] {
            let reply = ask(server.local_addresses()[0], text, RecordType::A).await;
            assert_eq!(shape(&reply).0, wanted, "{named} {text}");
        }
        server.shutdown().await;
    }
}

#[tokio::test]
async fn an_upstream_that_leads_back_here_is_left_out() {
    // It hands on to the server whatever it is asked, as a resolver on the node may do.
    let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let (upstream, at_back) = (FakeUpstream::start().await, back.local_addr().unwrap());
    let relayed = Arc::<AtomicUsize>::default();
    let server = client::start(zone_config(), Some(cluster()), vec![at_back, upstream.address]).await;
    let at = server.local_addresses()[0];
    let count = Arc::clone(&relayed);
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, client)) = back.recv_from(&mut buffer).await {
            let (back, wire) = (Arc::clone(&back), buffer[..length].to_vec());
            count.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move { back.send_to(&client::udp_bytes(at, &wire).await, client).await.unwrap() });
        }
    });
    for number in 0_u32.. {
        let before = relayed.load(Ordering::Relaxed);
        let reply = ask(at, &format!("name-{number}.example.test."), RecordType::A).await;
        if relayed.load(Ordering::Relaxed) == before {
            assert_eq!(shape(&reply), (ResponseCode::NoError, 1, 0));
            break;
        }
        assert!(number < 600, "the upstream that loops is always asked first");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    server.shutdown().await;
}
