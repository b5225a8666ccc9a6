//! Upstreams that are slow or half broken: which of their answers count, and in which order they are asked then.
//!
//! No row measures time. An upstream here answers a try when the test has seen a later event, such as the next try.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record};
use shunt_dns::{ForwardConfig, RecordType, Server, Upstream, Upstreams};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use crate::client;
use crate::fixture::{cluster, name, zone_config};

/// Long enough for a prompt answer on a busy machine, short enough that a test can wait for it.
const SOON: Duration = Duration::from_millis(300);

/// An upstream that answers when the test says so.
struct Played {
    address: SocketAddr,
    asked: mpsc::UnboundedReceiver<Asked>,
    _tasks: JoinSet<()>,
}

/// A query that waits for its answer.
struct Asked {
    query: Message,
    back: Back,
}

enum Back {
    Datagram(Arc<UdpSocket>, SocketAddr),
    Stream(OwnedWriteHalf),
}

impl Played {
    async fn start() -> Self {
        let (udp, tcp) = client::sockets("127.0.0.1:0".parse().unwrap()).await;
        let (udp, address) = (Arc::new(udp), tcp.local_addr().unwrap());
        let (tell, asked) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        let told = tell.clone();
        tasks.spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, client)) = udp.recv_from(&mut buffer).await {
                let query = Message::from_vec(&buffer[..length]).unwrap();
                told.send(Asked { query, back: Back::Datagram(Arc::clone(&udp), client) }).unwrap();
            }
        });
        tasks.spawn(async move {
            while let Ok((stream, _)) = tcp.accept().await {
                let (mut read, write) = stream.into_split();
                let length = read.read_u16().await.unwrap();
                let mut wire = vec![0; usize::from(length)];
                read.read_exact(&mut wire).await.unwrap();
                let query = Message::from_vec(&wire).unwrap();
                tell.send(Asked { query, back: Back::Stream(write) }).unwrap();
                tokio::spawn(async move { read.read_u8().await }); // so that the connection stays open
            }
        });
        Self { address, asked, _tasks: tasks }
    }

    async fn recv(&mut self) -> Asked {
        self.asked.recv().await.unwrap()
    }

    /// The next query of this type; loop detection and health probes have their own.
    async fn next(&mut self, rtype: RecordType) -> Asked {
        loop {
            let asked = self.recv().await;
            if asked.query.queries[0].query_type == rtype {
                return asked;
            }
        }
    }
}

impl Asked {
    /// Answers with an address that ends in `last`.
    async fn answer(self, last: u8) {
        let mut message = self.query.clone().into_response();
        message.edns = None;
        let asked = message.queries[0].name.clone();
        message.add_answer(Record::from_rdata(asked, 300, RData::A(A::new(192, 0, 2, last))));
        self.reply(&message.to_vec().unwrap()).await;
    }

    async fn reply(self, wire: &[u8]) {
        match self.back {
            Back::Datagram(socket, client) => drop(socket.send_to(wire, client).await.unwrap()),
            Back::Stream(mut stream) => stream.write_all(&client::framed(wire)).await.unwrap(),
        }
    }
}

/// With so many milliseconds for each try, or the usual.
async fn start(upstreams: &[SocketAddr], read_timeout: Option<Duration>, force_tcp: bool) -> Arc<Server> {
    let upstreams = upstreams.iter().copied().map(Upstream::from).collect();
    let mut forward = ForwardConfig::to(Upstreams::Servers(upstreams));
    let route = &mut forward.routes[0];
    route.force_tcp = force_tcp;
    route.read_timeout = read_timeout.unwrap_or(route.read_timeout);
    Arc::new(client::start_with(zone_config(), Some(cluster()), forward).await)
}

fn ask(server: &Arc<Server>, text: &str) -> JoinHandle<Message> {
    let (at, question) = (server.local_addresses()[0], client::question(&name(text), RecordType::A));
    tokio::spawn(async move { client::udp(at, &question).await })
}

/// The reply's code, and the last octet of its address.
fn shape(reply: &Message) -> (ResponseCode, Option<u8>) {
    let last = reply.answers.first().map(|record| {
        let RData::A(address) = &record.data else { panic!("{record:?}") };
        address.octets()[3]
    });
    (reply.metadata.response_code, last)
}

/// The upstreams in the order of the configuration, each with what is wrong with it.
async fn standing(server: &Server) -> String {
    let explained = server.explainer().explain(name("www.example.test."), RecordType::A).await.unwrap();
    explained.reason.split_once("asked of ").unwrap().1.to_owned()
}

#[tokio::test]
async fn a_late_answer_to_an_earlier_try_counts() {
    // (over TCP only, the time of a try, the try that is answered once the next one is seen)
    let rows =
        [(false, None, 1), (true, None, 1), (false, Some(SOON), 1), (false, Some(SOON), 2), (true, Some(SOON), 2)];
    for (force_tcp, read_timeout, answered) in rows {
        let mut upstream = Played::start().await;
        let server = start(&[upstream.address], read_timeout, force_tcp).await;
        let client = ask(&server, "www.example.test.");
        let mut tries = Vec::new();
        for _ in 0..=answered {
            tries.push(upstream.next(RecordType::A).await);
        }
        let unanswered = tries.split_off(answered);
        tries.pop().unwrap().answer(7).await;
        let row = format!("{force_tcp} {read_timeout:?} {answered}");
        assert_eq!(shape(&client.await.unwrap()), (ResponseCode::NoError, Some(7)), "{row}");
        assert_eq!(standing(&server).await, format!("{} (slow)", upstream.address), "{row}");
        assert_eq!((server.stats().forward_failures, unanswered.len()), (0, 1), "{row}");
    }
}

#[tokio::test]
async fn the_first_upstream_may_answer_after_the_second_was_asked() {
    let (mut first, mut second) = (Played::start().await, Played::start().await);
    let server = start(&[first.address, second.address], None, false).await;
    let client = ask(&server, "www.example.test.");
    let waits = first.next(RecordType::A).await;
    let _silent = second.next(RecordType::A).await;
    waits.answer(1).await;
    assert_eq!(shape(&client.await.unwrap()), (ResponseCode::NoError, Some(1)));
    assert_eq!(standing(&server).await, format!("{} (slow), {}", first.address, second.address));
}

#[tokio::test]
async fn a_slow_upstream_comes_after_others_until_it_answers_in_time() {
    let (mut first, mut second) = (Played::start().await, Played::start().await);
    let server = start(&[first.address, second.address], None, false).await;
    let client = ask(&server, "one.example.test.");
    let _silent = first.next(RecordType::A).await;
    second.next(RecordType::A).await.answer(2).await;
    assert_eq!(shape(&client.await.unwrap()), (ResponseCode::NoError, Some(2)));
    // Nothing says that it failed: it has three more seconds to answer.
    assert_eq!(standing(&server).await, format!("{} (slow), {}", first.address, second.address));
    let client = ask(&server, "two.example.test.");
    second.next(RecordType::A).await.answer(2).await;
    assert_eq!(shape(&client.await.unwrap()), (ResponseCode::NoError, Some(2)));
    // It is not asked again before it has answered a probe.
    let mut probed = false;
    let mut client = ask(&server, "three.example.test.");
    for number in 0.. {
        tokio::select! {
            asked = first.recv() => {
                let rtype = asked.query.queries[0].query_type;
                asked.answer(1).await;
                if rtype == RecordType::A {
                    break;
                }
                probed = true;
            }
            asked = second.next(RecordType::A) => {
                asked.answer(2).await;
                assert_eq!(shape(&client.await.unwrap()), (ResponseCode::NoError, Some(2)));
                client = ask(&server, &format!("name-{number}.example.test."));
            }
        }
    }
    assert_eq!(shape(&client.await.unwrap()), (ResponseCode::NoError, Some(1)));
    assert_eq!((standing(&server).await, probed), (format!("{}, {}", first.address, second.address), true));
}

#[tokio::test]
async fn an_upstream_that_never_answers_has_failed() {
    let upstream = Played::start().await;
    let server = start(&[upstream.address], None, false).await;
    assert_eq!(shape(&ask(&server, "www.example.test.").await.unwrap()), (ResponseCode::ServFail, None));
    assert_eq!(standing(&server).await, format!("{} (failed just now)", upstream.address));
}

#[tokio::test]
async fn a_connection_that_rested_is_listened_to_while_a_new_one_is_tried() {
    let (listener, server) = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = start(&[listener.local_addr().unwrap()], None, true).await;
        (listener, server)
    };
    let (tell, mut asked) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        for connection in 0.. {
            let (mut read, write) = listener.accept().await.unwrap().0.into_split();
            let (tell, write) = (tell.clone(), Arc::new(tokio::sync::Mutex::new(write)));
            tokio::spawn(async move {
                while let Ok(length) = read.read_u16().await {
                    let mut wire = vec![0; usize::from(length)];
                    read.read_exact(&mut wire).await.unwrap();
                    let query = Message::from_vec(&wire).unwrap();
                    tell.send((connection, query, Arc::clone(&write))).unwrap();
                }
            });
        }
    });
    let mut next = async || {
        loop {
            let (connection, query, write) = asked.recv().await.unwrap();
            if query.queries[0].query_type == RecordType::A {
                break (connection, query, write);
            }
        }
    };
    let answer = async |query: Message, write: Arc<tokio::sync::Mutex<OwnedWriteHalf>>| {
        let mut message = query.into_response();
        let asked = message.queries[0].name.clone();
        message.add_answer(Record::from_rdata(asked, 300, RData::A(A::new(192, 0, 2, 7))));
        write.lock().await.write_all(&client::framed(&message.to_vec().unwrap())).await.unwrap();
    };
    let client = ask(&server, "one.example.test.");
    let (rested, query, write) = next().await;
    answer(query, write).await;
    assert_eq!(shape(&client.await.unwrap()), (ResponseCode::NoError, Some(7)));
    let client = ask(&server, "two.example.test.");
    let (again, query, write) = next().await;
    let (new, _unanswered, _open) = next().await;
    assert!(again == rested && new != rested);
    answer(query, write).await;
    assert_eq!(shape(&client.await.unwrap()), (ResponseCode::NoError, Some(7)));
}

/// What a half-broken upstream does with TCP.
#[derive(Clone, Copy, Debug)]
enum Tcp {
    Refused,
    Silent,
    ClosesEarly,
    ClosesMidway,
    Garbage,
    AnotherQuestion,
    Fails,
}

/// How its answers over UDP are cut.
#[derive(Clone, Copy, Debug)]
enum Cut {
    BetweenRecords,
    InARecord,
    ByOurBuffer,
}

fn cut_reply(query: Message, cut: Cut) -> Vec<u8> {
    let mut message = query.into_response();
    message.edns = None;
    let asked = message.queries[0].name.clone();
    let records = match cut {
        Cut::BetweenRecords | Cut::InARecord => 1,
        Cut::ByOurBuffer => 200,
    };
    for last in 0..records {
        message.add_answer(Record::from_rdata(asked.clone(), 300, RData::A(A::new(192, 0, 2, last))));
    }
    message.metadata.truncation = !matches!(cut, Cut::ByOurBuffer);
    let mut wire = message.to_vec().unwrap();
    match cut {
        Cut::BetweenRecords => {}
        Cut::InARecord => drop(wire.pop()),
        // More than anybody asked for; the octets after the records are only there to fill it.
        Cut::ByOurBuffer => wire.resize(5000, 0),
    }
    wire
}

async fn half_broken(tcp: Tcp, cut: Cut) -> (SocketAddr, JoinSet<()>) {
    let (udp, listener) = client::sockets("127.0.0.1:0".parse().unwrap()).await;
    let address = udp.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, client)) = udp.recv_from(&mut buffer).await {
            let query = Message::from_vec(&buffer[..length]).unwrap();
            udp.send_to(&cut_reply(query, cut), client).await.unwrap();
        }
    });
    if matches!(tcp, Tcp::Refused) {
        return (address, tasks);
    }
    tasks.spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let length = stream.read_u16().await.unwrap();
            let mut wire = vec![0; usize::from(length)];
            stream.read_exact(&mut wire).await.unwrap();
            let mut reply = Message::from_vec(&wire).unwrap().into_response();
            let bytes = match tcp {
                Tcp::Refused | Tcp::ClosesEarly => continue,
                Tcp::Silent => {
                    open.push(stream);
                    continue;
                }
                Tcp::ClosesMidway => vec![0, 200, 1, 2, 3],
                Tcp::Garbage => client::framed(&[0xff; 40]),
                Tcp::AnotherQuestion => {
                    reply.queries[0].name = name("www.bank.test.");
                    client::framed(&reply.to_vec().unwrap())
                }
                Tcp::Fails => {
                    reply.metadata.response_code = ResponseCode::ServFail;
                    client::framed(&reply.to_vec().unwrap())
                }
            };
            stream.write_all(&bytes).await.unwrap();
        }
    });
    (address, tasks)
}

#[tokio::test]
async fn a_cut_answer_is_given_when_tcp_does_not_work() {
    let broken = [
        Tcp::Refused,
        Tcp::Silent,
        Tcp::ClosesEarly,
        Tcp::ClosesMidway,
        Tcp::Garbage,
        Tcp::AnotherQuestion,
        Tcp::Fails,
    ];
    for tcp in broken {
        for cut in [Cut::BetweenRecords, Cut::InARecord, Cut::ByOurBuffer] {
            let (address, _tasks) = half_broken(tcp, cut).await;
            let server = start(&[address], Some(SOON), false).await;
            let reply = ask(&server, "long.example.test.").await.unwrap();
            let row = format!("{tcp:?} {cut:?}: {reply:?}");
            assert_eq!(
                (reply.metadata.response_code, reply.metadata.truncation),
                (ResponseCode::NoError, true),
                "{row}"
            );
            if matches!(cut, Cut::BetweenRecords) {
                assert_eq!(reply.answers.len(), 1, "{row}");
            }
            // It did answer, so nothing is wrong with it.
            assert_eq!(standing(&server).await, address.to_string(), "{row}");
        }
    }
}

#[tokio::test]
async fn a_cut_answer_is_not_lost_when_time_runs_out_while_tcp_is_tried() {
    let mut upstream = Played::start().await;
    let server = start(&[upstream.address], None, false).await;
    let client = ask(&server, "long.example.test.");
    // The third try begins a second before the client is told something, which is less than TCP may take.
    let (_first, _second) = (upstream.next(RecordType::A).await, upstream.next(RecordType::A).await);
    let third = upstream.next(RecordType::A).await;
    let wire = cut_reply(third.query.clone(), Cut::BetweenRecords);
    third.reply(&wire).await;
    let _over_tcp = upstream.next(RecordType::A).await;
    let reply = client.await.unwrap();
    assert_eq!((shape(&reply), reply.metadata.truncation), ((ResponseCode::NoError, Some(0)), true));
}

#[tokio::test]
async fn a_client_over_tcp_waits_for_the_whole_answer() {
    let mut upstream = Played::start().await;
    let server = start(&[upstream.address], Some(SOON), false).await;
    let (at, question) = (server.local_addresses()[0], client::question(&name("long.example.test."), RecordType::A));
    let client = tokio::spawn(async move { client::tcp(at, &[question]).await.remove(0) });
    let first = upstream.next(RecordType::A).await;
    let wire = cut_reply(first.query.clone(), Cut::BetweenRecords);
    first.reply(&wire).await;
    let over_tcp = upstream.next(RecordType::A).await;
    assert!(matches!(over_tcp.back, Back::Stream(_)));
    // TCP took as long as a try may, and still may answer.
    let _second = upstream.next(RecordType::A).await;
    over_tcp.answer(7).await;
    let reply = client.await.unwrap();
    assert_eq!((shape(&reply), reply.metadata.truncation), ((ResponseCode::NoError, Some(7)), false));
}

/// Says this to each query with EDNS, and answers those without.
async fn without_edns(rcode: ResponseCode, echoes_opt: bool, knows: bool) -> (SocketAddr, JoinSet<()>) {
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = udp.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, client)) = udp.recv_from(&mut buffer).await {
            let mut message = Message::from_vec(&buffer[..length]).unwrap().into_response();
            let asked = message.queries[0].name.clone();
            if message.edns.is_some() || !knows {
                message.metadata.response_code = rcode;
                message.edns = echoes_opt.then(Edns::new);
            } else {
                message.add_answer(Record::from_rdata(asked, 300, RData::A(A::new(192, 0, 2, 7))));
            }
            udp.send_to(&message.to_vec().unwrap(), client).await.unwrap();
        }
    });
    (address, tasks)
}

#[tokio::test]
async fn an_upstream_without_edns_is_asked_again_without() {
    // (what it says to EDNS, with an OPT, whether it answers without, what clients get)
    let rows = [
        (ResponseCode::FormErr, false, true, (ResponseCode::NoError, Some(7))),
        (ResponseCode::FormErr, true, true, (ResponseCode::NoError, Some(7))),
        (ResponseCode::NotImp, false, true, (ResponseCode::NoError, Some(7))),
        (ResponseCode::BADVERS, true, true, (ResponseCode::NoError, Some(7))),
        (ResponseCode::FormErr, false, false, (ResponseCode::FormErr, None)),
        (ResponseCode::NotImp, false, false, (ResponseCode::NotImp, None)),
        (ResponseCode::Refused, false, true, (ResponseCode::Refused, None)),
    ];
    for (rcode, echoes_opt, knows, wanted) in rows {
        let (address, _tasks) = without_edns(rcode, echoes_opt, knows).await;
        let server = start(&[address], None, false).await;
        let (at, plain) = (server.local_addresses()[0], client::question(&name("www.example.test."), RecordType::A));
        let with_edns = client::with_edns(plain.clone(), 1232);
        let row = format!("{rcode} {echoes_opt} {knows}");
        assert_eq!(shape(&client::udp(at, &with_edns).await), wanted, "{row}");
        if rcode != ResponseCode::Refused {
            assert_eq!(shape(&client::udp(at, &plain).await), wanted, "{row}");
        }
    }
}
