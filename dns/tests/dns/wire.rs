//! Headers, EDNS, truncation and messages that are no ordinary question.

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::DNSClass;
use hickory_proto::rr::rdata::opt::EdnsOption;
use shunt_dns::{ForwardConfig, Name, RecordType, ServeError, ServerConfig, Upstreams, serve};
use tokio::net::UdpSocket;
use tokio::sync::watch;

use crate::fixture::{self, cluster, name, zone_config};
use crate::{client, corefile};

fn web() -> Message {
    client::question(&name("web.shop.svc.cluster.local."), RecordType::A)
}

fn many(rtype: RecordType) -> Message {
    let text = if rtype == RecordType::SRV { "_http._tcp.many" } else { "many" };
    client::question(&name(&format!("{text}.shop.svc.cluster.local.")), rtype)
}

#[tokio::test]
async fn long_replies_are_cut_over_udp_and_whole_over_tcp() {
    let server = client::start(zone_config(), Some(cluster()), vec![]).await;
    let address = server.local_addresses()[0];
    // DNS-9.13, DNS-9.14: the limit, and the OPT survives.
    for (payload, limit) in [(None, 512), (Some(100), 512), (Some(700), 700), (Some(4096), 1232)] {
        for rtype in [RecordType::A, RecordType::SRV] {
            let message = payload.map_or_else(|| many(rtype), |payload| client::with_edns(many(rtype), payload));
            let wire = client::udp_bytes(address, &message.to_vec().unwrap()).await;
            let reply = Message::from_vec(&wire).unwrap();
            assert!(wire.len() <= limit, "{payload:?}: {} octets", wire.len());
            assert!(reply.metadata.truncation && reply.metadata.authoritative);
            assert!((5..120).contains(&reply.answers.len()), "{payload:?}: {} answers", reply.answers.len());
            assert_eq!(reply.edns.is_some(), payload.is_some(), "{payload:?}");
            let whole = client::tcp(address, &[message]).await.remove(0);
            assert_eq!((whole.answers.len(), whole.metadata.truncation), (120, false));
        }
    }
    server.shutdown().await;
}

/// A headless Service of so many endpoints, asked for its addresses.
async fn ask_for_endpoints(count: u32, payload: Option<u16>) -> [Vec<u8>; 2] {
    let mut snapshot = cluster();
    let addresses: Vec<String> = (0..count).map(|n| format!("10.3.{}.{}", n / 250, n % 250)).collect();
    fixture::service(&mut snapshot, &fixture::key("all"), "None", "http:tcp:80");
    fixture::slice(&mut snapshot, &fixture::key("all"), "all-1", "http:tcp:80", &addresses.join(" "));
    let server = client::start(zone_config(), Some(snapshot), vec![]).await;
    let question = client::question(&name("all.shop.svc.cluster.local."), RecordType::A);
    let question = payload.map_or_else(|| question.clone(), |payload| client::with_edns(question.clone(), payload));
    let at = server.local_addresses()[0];
    let over_udp = client::udp_bytes(at, &question.to_vec().unwrap()).await;
    let over_tcp = client::tcp_bytes(at, &question.to_vec().unwrap()).await;
    server.shutdown().await;
    [over_udp, over_tcp]
}

#[tokio::test]
async fn every_octet_of_the_limit_is_used_and_none_beyond() {
    // Header 12, question 32, OPT 11, and 16 for each address.
    let rows = [
        (29, None, 29, 29),
        (30, None, 29, 30),
        (28, Some(512), 28, 28),
        (29, Some(512), 28, 29),
        (74, Some(1232), 73, 74),
        (4000, Some(1232), 73, 4000),
        (4092, Some(1232), 73, 4092),
        (4093, Some(1232), 73, 4092), // what TCP takes is full
        (4093, None, 29, 4093),
    ];
    for (count, payload, over_udp, over_tcp) in rows {
        for (wire, wanted) in ask_for_endpoints(count, payload).await.iter().zip([over_udp, over_tcp]) {
            let reply = Message::from_vec(wire).unwrap();
            let told = (reply.answers.len(), reply.metadata.truncation, reply.edns.is_some());
            let wanted = (usize::try_from(wanted).unwrap(), wanted < count, payload.is_some());
            assert_eq!(told, wanted, "{count} endpoints, {payload:?}, {} octets", wire.len());
        }
    }
}

#[tokio::test]
async fn flags_and_edns_are_copied() {
    let server = client::start(zone_config(), Some(cluster()), vec![]).await;
    let address = server.local_addresses()[0];
    let mut message = client::with_edns(web(), 4096);
    message.metadata.checking_disabled = true;
    message.metadata.authentic_data = true;
    message.metadata.recursion_desired = false;
    let reply = client::udp(address, &message).await;
    let (meta, edns) = (reply.metadata, reply.edns.unwrap());
    assert!(meta.authoritative && meta.recursion_available && meta.checking_disabled); // DNS-9.1, DNS-9.2
    assert!(!meta.recursion_desired && !meta.authentic_data);
    assert_eq!((edns.version(), edns.flags().dnssec_ok, edns.max_payload()), (0, true, 1232)); // DNS-9.9
    assert!(client::udp(address, &web()).await.edns.is_none());

    message.edns.as_mut().unwrap().set_version(1);
    let reply = client::udp(address, &message).await;
    assert_eq!(u16::from(reply.metadata.response_code), u16::from(ResponseCode::BADVERS)); // DNS-9.10
    assert_eq!((reply.queries.len(), reply.answers.len()), (1, 0));
    assert_eq!(reply.edns.unwrap().version(), 0);
    server.shutdown().await;
}

#[tokio::test]
async fn other_messages_are_refused_by_kind() {
    let server = client::start(zone_config(), Some(cluster()), vec![]).await;
    let address = server.local_addresses()[0];
    let mut chaos = web();
    chaos.queries[0].query_class = DNSClass::CH;
    assert_eq!(client::udp(address, &chaos).await.metadata.response_code, ResponseCode::Refused); // DNS-9.7
    for opcode in [OpCode::Notify, OpCode::Status, OpCode::Update] {
        let mut other = web();
        other.metadata.op_code = opcode;
        let reply = client::udp(address, &other).await;
        // DNS-9.6
        assert_eq!((reply.metadata.response_code, reply.queries.len()), (ResponseCode::NotImp, 0), "{opcode:?}");
    }
    for rtype in [RecordType::AXFR, RecordType::IXFR] {
        let transfer = client::question(&name("cluster.local."), rtype);
        let reply = client::tcp(address, &[transfer]).await.remove(0);
        assert_eq!(reply.metadata.response_code, ResponseCode::Refused); // DNS-4.5
    }
    let mut two = web();
    two.add_query(two.queries[0].clone());
    let mut none = web();
    none.queries.clear();
    for message in [two, none] {
        let wire = client::udp_bytes(address, &message.to_vec().unwrap()).await;
        assert_eq!((wire.len(), wire[3] & 15), (12, 1)); // DNS-9.4
    }
    assert_eq!(server.stats().malformed, 2);
    server.shutdown().await;
}

#[tokio::test]
async fn replies_and_scraps_are_met_with_silence_and_garbage_with_formerr() {
    let server = client::start(zone_config(), Some(cluster()), vec![]).await;
    let address = server.local_addresses()[0];
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(address).await.unwrap();
    let mut reply = web();
    reply.metadata.message_type = MessageType::Response;
    socket.send(&reply.to_vec().unwrap()).await.unwrap();
    socket.send(&[1, 2, 3]).await.unwrap();
    let mut cut = web().to_vec().unwrap();
    cut.truncate(20);
    socket.send(&cut).await.unwrap();
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).await.unwrap(); // to the third only, 9.5
    assert_eq!((&buffer[..2], buffer[3] & 15, length), (&cut[..2], 1, 12));
    let after = web();
    let whole = after.to_vec().unwrap();
    socket.send(&whole).await.unwrap();
    let length = socket.recv(&mut buffer).await.unwrap();
    assert_eq!(Message::from_vec(&buffer[..length]).unwrap().metadata.id, after.metadata.id);
    server.shutdown().await;
}

#[tokio::test]
async fn the_first_address_varies() {
    let server = client::start(zone_config(), Some(cluster()), vec![]).await;
    let address = server.local_addresses()[0];
    let mut first = std::collections::BTreeSet::new();
    for _ in 0..200 {
        let reply = client::udp(address, &client::question(&name("db.shop.svc.cluster.local."), RecordType::A)).await;
        first.insert(reply.answers[0].data.to_string());
    }
    assert_eq!(first.len(), 2); // DNS-10.1
    server.shutdown().await;
}

#[tokio::test]
async fn the_first_mail_server_varies_and_the_soa_is_that_of_the_range() {
    let text = ".:53 {
    template IN MX mail.test {
        answer \"{{ .Name }} 60 IN MX 10 a.mail.test.\"
        answer \"{{ .Name }} 60 IN MX 10 b.mail.test.\"
        answer \"{{ .Name }} 60 IN TXT still-last\"
    }
    kubernetes cluster.local 10.96.0.0/16
}";
    let place = tempfile::tempdir().unwrap();
    let (server, _) = corefile::start(text, place.path(), Some(cluster())).await;
    let address = server.local_addresses()[0];
    let mut first = std::collections::BTreeSet::new();
    for _ in 0..200 {
        let reply = client::udp(address, &client::question(&name("mail.test."), RecordType::MX)).await;
        assert_eq!((reply.answers.len(), reply.answers[2].record_type()), (3, RecordType::TXT));
        first.insert(reply.answers[0].data.to_string());
    }
    assert_eq!(first.len(), 2); // DNS-10.1
    let reply = client::udp(address, &client::question(&name("9.9.96.10.in-addr.arpa."), RecordType::PTR)).await;
    let owner = reply.authorities[0].name.to_ascii();
    // DNS-5.5
    assert_eq!((reply.metadata.response_code, owner.as_str()), (ResponseCode::NXDomain, "96.10.in-addr.arpa."));
    let reply = client::udp(address, &client::question(&name("96.10.in-addr.arpa."), RecordType::SOA)).await;
    assert_eq!((reply.metadata.authoritative, reply.answers.len()), (true, 1));
}

#[tokio::test]
async fn labels_that_no_object_has_do_not_exist() {
    let server = client::start(zone_config(), Some(cluster()), vec![]).await;
    let zone = ["svc", "cluster", "local"].map(str::as_bytes);
    let below: [&[&[u8]]; 8] = [
        &[b"we.b", b"shop"], // one label with a dot
        &[b"web.shop"],
        &[b"web\0", b"shop"],
        &[b"web", b"shop\0"],
        &[b"w\xc3\xa9b", b"shop"],
        &[b"\xff\xfe", b"shop"],
        &[b"10.1.0.1", b"web", b"shop"],
        &[b"_http", b"_t\0cp", b"web", b"shop"],
    ];
    for labels in below {
        let asked = Name::from_labels(labels.iter().copied().chain(zone)).unwrap();
        for rtype in [RecordType::A, RecordType::SRV] {
            for reply in client::both(server.local_addresses()[0], &client::question(&asked, rtype)).await {
                let told = (reply.metadata.response_code, reply.authorities.len());
                assert_eq!(told, (ResponseCode::NXDomain, 1), "{asked} {rtype}"); // DNS-1.9
                assert!(reply.queries[0].name.eq_case(&asked), "{asked}");
            }
        }
    }
    server.shutdown().await;
}

#[tokio::test]
async fn the_soa_of_the_zone_is_an_answer_at_the_apex_only() {
    let server = client::start(zone_config(), Some(cluster()), vec![]).await;
    let soa = |text: &str| client::question(&name(text), RecordType::SOA);
    for reply in client::both(server.local_addresses()[0], &soa("Cluster.local.")).await {
        let told: Vec<String> = reply.answers.iter().map(|record| record.name.to_ascii()).collect();
        assert_eq!((told, reply.authorities.len()), (vec!["Cluster.local.".to_owned()], 0)); // DNS-4.1
    }
    for reply in client::both(server.local_addresses()[0], &soa("web.shop.svc.cluster.local.")).await {
        assert_eq!((reply.answers.len(), reply.authorities.len()), (0, 1));
    }
    server.shutdown().await;
}

#[tokio::test]
async fn options_of_edns_are_left_out_of_the_reply() {
    let server = client::start(zone_config(), Some(cluster()), vec![]).await;
    let mut message = client::with_edns(web(), 1232);
    for (code, data) in [(3, vec![]), (10, vec![7; 8]), (8, vec![0, 1, 24, 0, 10, 1, 0]), (12, vec![0; 20])] {
        message.edns.as_mut().unwrap().options_mut().insert(EdnsOption::Unknown(code, data));
    }
    for reply in client::both(server.local_addresses()[0], &message).await {
        let edns = reply.edns.unwrap();
        assert_eq!((reply.answers.len(), edns.version(), edns.options().as_ref().len()), (1, 0, 0)); // DNS-9.9
    }
    server.shutdown().await;
}

#[tokio::test]
async fn a_taken_address_is_named_with_advice() {
    let server = client::start(zone_config(), Some(cluster()), vec![]).await;
    let listen = vec![server.local_addresses()[0]];
    let (_, snapshots) = watch::channel(None);
    let no_upstreams = ForwardConfig::to(Upstreams::Servers(vec![]));
    let config = ServerConfig::usual(listen.clone(), zone_config(), no_upstreams.clone());
    let error = serve(config, snapshots.clone()).await.err().unwrap().to_string();
    assert!(error.contains(&listen[0].to_string()) && error.contains("another DNS server"), "{error}");
    let config = ServerConfig::usual(vec![], zone_config(), no_upstreams);
    assert!(matches!(serve(config, snapshots).await, Err(ServeError::NoAddress)));
    let listen = server.local_addresses().to_vec();
    server.shutdown().await;
    let socket = UdpSocket::bind(listen[0]).await;
    assert!(socket.is_ok(), "{socket:?}"); // shut down means closed
}
