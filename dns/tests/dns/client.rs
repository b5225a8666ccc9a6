//! A client over real sockets, and a server on loopback ports to ask.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use shunt_dns::{ForwardConfig, Name, RecordType, Server, ServerConfig, Upstream, Upstreams, ZoneConfig, serve};
use shunt_model::Snapshot;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::timeout;

/// Longer than anything here takes, also on a machine that has much else to do; only a failing test waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Starts a server on free loopback ports of both families.
pub(crate) async fn start(zone: ZoneConfig, snapshot: Option<Snapshot>, upstreams: Vec<SocketAddr>) -> Server {
    let upstreams = upstreams.into_iter().map(Upstream::from).collect();
    start_with(zone, snapshot, ForwardConfig::to(Upstreams::Servers(upstreams))).await
}

/// The same with any kind of forwarding.
pub(crate) async fn start_with(zone: ZoneConfig, snapshot: Option<Snapshot>, forward: ForwardConfig) -> Server {
    let listen = vec!["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()];
    // The sender may go: the last snapshot stays in force.
    let (_, snapshots) = watch::channel(snapshot.map(Arc::new));
    // Nor does anybody wait for the first.
    let config = ServerConfig { startup_timeout: Duration::ZERO, ..ServerConfig::usual(listen, zone, forward) };
    serve(config, snapshots).await.unwrap()
}

/// A port for both transports, as an upstream has. A socket of another test may be in the way for a moment.
pub(crate) async fn sockets(address: SocketAddr) -> (UdpSocket, TcpListener) {
    let mut tries = 0;
    loop {
        if let Ok(udp) = UdpSocket::bind(address).await
            && let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await
        {
            return (udp, tcp);
        }
        tries += 1;
        assert!(tries < 3000, "{address} is never free");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn question(name: &Name, rtype: RecordType) -> Message {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), rtype));
    message
}

pub(crate) fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload).set_version(0).set_dnssec_ok(true);
    message.set_edns(edns);
    message
}

pub(crate) async fn udp_bytes(server: SocketAddr, wire: &[u8]) -> Vec<u8> {
    let any: SocketAddr = if server.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" }.parse().unwrap();
    let socket = UdpSocket::bind(any).await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(wire).await.unwrap();
    let mut reply = vec![0; 65535];
    let length = timeout(PATIENCE, socket.recv(&mut reply)).await.expect("a reply over UDP").unwrap();
    reply.truncate(length);
    reply
}

pub(crate) async fn udp(server: SocketAddr, message: &Message) -> Message {
    let reply = Message::from_vec(&udp_bytes(server, &message.to_vec().unwrap()).await).unwrap();
    assert_eq!(reply.metadata.id, message.metadata.id);
    reply
}

/// The same over UDP and over TCP.
pub(crate) async fn both(server: SocketAddr, message: &Message) -> [Message; 2] {
    [udp(server, message).await, tcp(server, std::slice::from_ref(message)).await.remove(0)]
}

/// A message as it is sent over TCP: in one piece, since the server does not wait long for the rest of one.
pub(crate) fn framed(wire: &[u8]) -> Vec<u8> {
    [u16::try_from(wire.len()).unwrap().to_be_bytes().as_slice(), wire].concat()
}

pub(crate) async fn tcp_bytes(server: SocketAddr, wire: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(server).await.unwrap();
    stream.write_all(&framed(wire)).await.unwrap();
    let length = timeout(PATIENCE, stream.read_u16()).await.expect("a reply over TCP").unwrap();
    let mut reply = vec![0; usize::from(length)];
    stream.read_exact(&mut reply).await.unwrap();
    reply
}

/// Sends all messages at once over one connection; the replies come in order (DNS-9.16).
pub(crate) async fn tcp(server: SocketAddr, messages: &[Message]) -> Vec<Message> {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let wires: Vec<Vec<u8>> = messages.iter().map(|message| framed(&message.to_vec().unwrap())).collect();
    stream.write_all(&wires.concat()).await.unwrap();
    let mut replies = Vec::new();
    for message in messages {
        let length = timeout(PATIENCE, stream.read_u16()).await.expect("a reply over TCP").unwrap();
        let mut wire = vec![0; usize::from(length)];
        stream.read_exact(&mut wire).await.unwrap();
        let reply = Message::from_vec(&wire).unwrap();
        assert_eq!(reply.metadata.id, message.metadata.id);
        replies.push(reply);
    }
    replies
}
