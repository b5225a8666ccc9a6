//! Upstreams that are silent, mute, lying, or lead back here: what they cost their clients.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME};
use hickory_proto::rr::{RData, Record};
use shunt_dns::{BlockConfig, ForwardConfig, Name, RecordType, Server, ServerConfig, Upstreams, serve};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::client;
use crate::fixture::{cluster, name, zone_config};

/// A reply to a query, or silence.
type Script = fn(Message) -> Option<Vec<u8>>;

/// How TCP connections are handled.
#[derive(Clone, Copy)]
enum Tcp {
    /// They are accepted, and nothing is ever said.
    Mute,
    /// The first so many are served once and then mute, later ones are served.
    MuteAfter(usize),
}

/// Stops with its last owner.
struct Scripted {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Scripted {
    async fn start(script: Script, tcp: Tcp) -> Self {
        let (udp, listener) = client::sockets("127.0.0.1:0".parse().unwrap()).await;
        let address = udp.local_addr().unwrap();
        let asked = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&asked);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, client)) = udp.recv_from(&mut buffer).await {
                let query = Message::from_vec(&buffer[..length]).unwrap();
                // Loop detection and health probes are recognised by their types, and not counted.
                let own = [RecordType::HINFO, RecordType::NS].contains(&query.queries[0].query_type);
                count.fetch_add(usize::from(!own), Ordering::Relaxed);
                if let Some(reply) = script(query) {
                    udp.send_to(&reply, client).await.unwrap();
                }
            }
        });
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            for number in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let served = match tcp {
                    Tcp::Mute => 0,
                    Tcp::MuteAfter(mute) if number < mute => 1,
                    Tcp::MuteAfter(_) => usize::MAX,
                };
                connections.spawn(converse(stream, script, served));
            }
        });
        Self { address, asked, _tasks: tasks }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

/// Answers so many queries of a connection, and keeps it open.
async fn converse(mut stream: TcpStream, script: Script, served: usize) {
    for _ in 0..served {
        let Ok(length) = stream.read_u16().await else { return };
        let mut wire = vec![0; usize::from(length)];
        stream.read_exact(&mut wire).await.unwrap();
        let Some(reply) = script(Message::from_vec(&wire).unwrap()) else { break };
        stream.write_u16(u16::try_from(reply.len()).unwrap()).await.unwrap();
        stream.write_all(&reply).await.unwrap();
    }
    std::future::pending::<()>().await;
}

fn address(owner: &Name) -> Record {
    Record::from_rdata(owner.clone(), 300, RData::A(A::new(192, 0, 2, 7)))
}

fn answer_with(query: Message, change: impl Fn(&mut Message)) -> Option<Vec<u8>> {
    let mut message = query.into_response();
    message.edns = None;
    change(&mut message);
    Some(message.to_vec().unwrap())
}

fn plain(query: Message) -> Option<Vec<u8>> {
    answer_with(query, |message| {
        message.answers = vec![address(&message.queries[0].name.clone())];
    })
}

/// A cut answer with one record.
fn cut(query: Message) -> Option<Vec<u8>> {
    answer_with(query, |message| {
        message.metadata.truncation = true;
        message.answers = vec![address(&message.queries[0].name.clone())];
    })
}

/// An answer for the question, whose record ends too early.
fn unreadable(query: Message) -> Option<Vec<u8>> {
    let mut wire = plain(query)?;
    wire.pop();
    Some(wire)
}

/// Names that were not asked for, before the right one and after it.
fn lies(query: Message) -> Option<Vec<u8>> {
    answer_with(query, |message| {
        let asked = message.queries[0].name.clone();
        let target = name("target.example.test.");
        message.answers = vec![
            address(&name("www.bank.test.")),
            Record::from_rdata(asked, 300, RData::CNAME(CNAME(target.clone()))),
            address(&target),
        ];
        message.authorities = vec![address(&name("ns.bank.test."))];
        message.additionals = vec![address(&name("web.shop.svc.cluster.local."))];
    })
}

/// An answer to another question, with the right id.
fn another_question(mut query: Message) -> Option<Vec<u8>> {
    query.queries[0].name = name("www.bank.test.");
    plain(query)
}

async fn start(upstreams: &[SocketAddr]) -> Server {
    client::start(zone_config(), Some(cluster()), upstreams.to_vec()).await
}

async fn ask(server: &Server, text: &str) -> Message {
    client::udp(server.local_addresses()[0], &client::question(&name(text), RecordType::A)).await
}

/// Does something that must be done before a client gives up: while a server waits for an upstream that says nothing at
/// all, which it does for as long as a resolver library waits (5 s is glibc's default).
async fn in_time<T>(work: impl Future<Output = T>) -> T {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let server = start(&[silent.local_addr().unwrap()]).await;
    tokio::select! {
        biased;
        done = work => done,
        reply = ask(&server, "www.silent.test.") => panic!("the client has given up: {reply:?}"),
    }
}

/// rcode, cut, answers.
fn shape(message: &Message) -> (ResponseCode, bool, usize) {
    (message.metadata.response_code, message.metadata.truncation, message.answers.len())
}

#[tokio::test]
async fn an_old_answer_is_given_in_time_when_the_upstream_is_silent() {
    let place = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = place.local_addr().unwrap();
    let server = start(&[at]).await;
    let serving = tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (length, client) = place.recv_from(&mut buffer).await.unwrap();
            let query = Message::from_vec(&buffer[..length]).unwrap();
            if query.queries[0].query_type != RecordType::A {
                continue;
            }
            let reply = answer_with(query, |message| {
                let asked = message.queries[0].name.clone();
                message.answers = vec![Record::from_rdata(asked, 1, RData::A(A::new(192, 0, 2, 7)))];
            });
            place.send_to(&reply.unwrap(), client).await.unwrap();
            return place; // and nothing more
        }
    });
    assert_eq!(shape(&ask(&server, "brief.test.").await), (ResponseCode::NoError, false, 1));
    let _place = serving.await.unwrap();
    // Longer than it may be kept.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    for round in 0..3 {
        let reply = in_time(ask(&server, "brief.test.")).await;
        assert_eq!((shape(&reply), reply.answers[0].ttl), ((ResponseCode::NoError, false, 1), 30), "round {round}");
    }
    assert_eq!(server.stats().cache_stale, 3);
    server.shutdown().await;
}

#[tokio::test]
async fn a_cut_answer_is_better_than_none_when_tcp_is_blocked() {
    let upstream = Scripted::start(cut, Tcp::Mute).await;
    let server = start(&[upstream.address]).await;
    assert_eq!(shape(&in_time(ask(&server, "long.test.")).await), (ResponseCode::NoError, true, 1));
    server.shutdown().await;
}

#[tokio::test]
async fn an_answer_that_cannot_be_parsed_is_no_fault_of_the_upstream() {
    let (upstream, other) =
        (Scripted::start(unreadable, Tcp::MuteAfter(0)).await, Scripted::start(plain, Tcp::Mute).await);
    let server = start(&[upstream.address, other.address]).await;
    // The next may be able to say it better, and the first is asked first again.
    for number in 1..=3 {
        let text = format!("name-{number}.test.");
        assert_eq!(shape(&ask(&server, &text).await), (ResponseCode::NoError, false, 1));
        assert_eq!([upstream.asked(), other.asked()], [number, number]);
    }
    server.shutdown().await;
    let server = start(&[upstream.address]).await;
    assert_eq!(shape(&in_time(ask(&server, "name.test.")).await), (ResponseCode::ServFail, false, 0));
    server.shutdown().await;
}

#[tokio::test]
async fn records_that_were_not_asked_for_are_not_passed_on() {
    let upstream = Scripted::start(lies, Tcp::Mute).await;
    let server = start(&[upstream.address]).await;
    for _cached in [false, true] {
        let reply = ask(&server, "www.example.test.").await;
        let owners: Vec<String> = reply.answers.iter().map(|record| record.name.to_ascii()).collect();
        assert_eq!(owners, ["www.example.test.", "target.example.test."]);
        assert_eq!((reply.authorities.len(), reply.additionals.len()), (0, 0));
    }
    server.shutdown().await;
}

#[tokio::test]
async fn an_answer_to_another_question_is_not_believed() {
    let (liar, honest) = (Scripted::start(another_question, Tcp::Mute).await, Scripted::start(plain, Tcp::Mute).await);
    let server = start(&[liar.address, honest.address]).await;
    let reply = ask(&server, "www.example.test.").await;
    assert_eq!(reply.answers[0].name, name("www.example.test."));
    assert_eq!([liar.asked(), honest.asked()], [1, 1]);
    server.shutdown().await;
}

#[tokio::test]
async fn connections_that_went_mute_are_given_up_for_a_new_one() {
    let upstream = Scripted::start(plain, Tcp::MuteAfter(4)).await;
    let mut forward = ForwardConfig::to(Upstreams::Servers(vec![upstream.address.into()]));
    forward.routes[0].force_tcp = true;
    let server = client::start_with(zone_config(), Some(cluster()), forward).await;
    // Several at once, so that several connections rest.
    let first: Vec<_> = ["a.test.", "b.test.", "c.test."].into_iter().map(|text| ask(&server, text)).collect();
    for reply in futures::future::join_all(first).await {
        assert_eq!(shape(&reply), (ResponseCode::NoError, false, 1));
    }
    for text in ["d.test.", "e.test."] {
        assert_eq!(shape(&ask(&server, text).await), (ResponseCode::NoError, false, 1), "{text}");
    }
    assert_eq!(upstream.asked(), 0, "nothing goes over UDP");
    server.shutdown().await;
}

/// Hands whatever it is asked to `at`, as a resolver does that has it as upstream; counts.
async fn relay(place: UdpSocket, at: SocketAddr, relayed: Arc<AtomicUsize>) {
    let place = Arc::new(place);
    let mut buffer = [0; 4096];
    while let Ok((length, client)) = place.recv_from(&mut buffer).await {
        let (place, wire) = (Arc::clone(&place), buffer[..length].to_vec());
        relayed.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move { place.send_to(&client::udp_bytes(at, &wire).await, client).await });
    }
}

#[tokio::test]
async fn loops_through_a_domain_of_its_own_are_found() {
    let (place, upstream) = (UdpSocket::bind("127.0.0.1:0").await.unwrap(), Scripted::start(plain, Tcp::Mute).await);
    let at_place = place.local_addr().unwrap();
    let to = |address: SocketAddr| ForwardConfig::to(Upstreams::Servers(vec![address.into()]));
    let mut corp = BlockConfig::new(name("corp.test."));
    corp.forward = to(at_place);
    let by_block = vec![BlockConfig::usual(name("cluster.local."), to(upstream.address)), corp];
    let by_route = vec![BlockConfig::usual(
        name("cluster.local."),
        to(upstream.address).with_stub_domains([format!("corp.test={at_place}").parse().unwrap()]),
    )];
    let relayed = Arc::<AtomicUsize>::default();
    let mut relays = JoinSet::new();
    let place = place.into_std().unwrap();
    for blocks in [by_block, by_route] {
        let listen = vec!["127.0.0.1:0".parse().unwrap()];
        let (_, snapshots) = watch::channel(Some(Arc::new(cluster())));
        let server =
            serve(ServerConfig { listen, zone: zone_config(), blocks, startup_timeout: Duration::ZERO }, snapshots)
                .await
                .unwrap();
        let place = UdpSocket::from_std(place.try_clone().unwrap()).unwrap();
        relays.spawn(relay(place, server.local_addresses()[0], Arc::clone(&relayed)));
        for number in 0_u32.. {
            let before = relayed.load(Ordering::Relaxed);
            let reply = ask(&server, &format!("name-{number}.corp.test.")).await;
            if relayed.load(Ordering::Relaxed) == before {
                assert_eq!(shape(&reply), (ResponseCode::ServFail, false, 0));
                break;
            }
            assert!(number < 600, "the upstream that loops is always asked");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(shape(&ask(&server, "www.example.test.").await), (ResponseCode::NoError, false, 1));
        relays.shutdown().await;
        server.shutdown().await;
    }
}
