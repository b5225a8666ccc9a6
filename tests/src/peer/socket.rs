//! One attempt to reach a server, by each kind of socket.

use std::io::{self, BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{Ipv4RecvErr, Ipv6RecvErr, TcpFastOpenConnect};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{Mode, sctp};

/// Where to connect and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct DialTarget {
    pub(super) to: SocketAddr,
    pub(super) mode: Mode,
    pub(super) timeout: Duration,
    pub(super) bind: Option<SocketAddr>,
}

/// What an attempt came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answered {
    /// The name of the server.
    pub(super) server: String,
    /// The address of the peer as the client sees it.
    pub(super) peername: SocketAddr,
    /// The address of the client as the server sees it, if it says so.
    pub(super) source: Option<SocketAddr>,
}

impl Answered {
    /// Of the first two words of an answer.
    pub(super) fn of(answer: &str, peername: SocketAddr) -> io::Result<Self> {
        let mut words = answer.split_whitespace();
        let server = words.next();
        let server = server.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "closed without a greeting"))?;
        Ok(Self { server: server.to_owned(), peername, source: words.next().and_then(|word| word.parse().ok()) })
    }
}

/// One attempt.
pub(super) fn attempt(target: &DialTarget, number: u64, kept: Option<&UdpSocket>) -> io::Result<Answered> {
    match (target.mode, kept) {
        (Mode::Tcp | Mode::Mptcp | Mode::Sctp, _) => greeted(&open(target)?),
        (Mode::TcpFastopen, _) => fast_open(target),
        (Mode::Http, _) => http(target),
        (Mode::Udp | Mode::UdpUnconnected, Some(socket)) => datagram(target, socket, number),
        (Mode::Udp | Mode::UdpUnconnected, None) => datagram(target, &udp_socket(target)?, number),
        (Mode::SctpInit, _) => sctp::dial(target),
    }
}

/// A UDP socket for this target, connected if the mode is a connected one.
pub(super) fn udp_socket(target: &DialTarget) -> io::Result<UdpSocket> {
    let any = if target.to.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(target.bind.unwrap_or_else(|| SocketAddr::new(any, 0)))?;
    socket.set_read_timeout(Some(target.timeout))?;
    if target.mode == Mode::Udp {
        socket.connect(target.to)?;
    }
    Ok(socket)
}

fn stream_socket(target: &DialTarget) -> io::Result<Socket> {
    let protocol = match target.mode {
        Mode::Mptcp => Protocol::MPTCP,
        Mode::Sctp => Protocol::SCTP,
        Mode::Tcp | Mode::Http | Mode::TcpFastopen | Mode::Udp | Mode::UdpUnconnected | Mode::SctpInit => Protocol::TCP,
    };
    let socket = Socket::new(Domain::for_address(target.to), Type::STREAM, Some(protocol))?;
    if target.mode == Mode::Sctp {
        hear_of_refusals(&socket, target.to)?;
    }
    if let Some(address) = target.bind {
        socket.set_reuse_address(true)?;
        socket.bind(&SockAddr::from(address))?;
    }
    Ok(socket)
}

/// An SCTP socket goes on trying after an ICMP error unless it asks for such errors; a TCP socket ends by itself.
fn hear_of_refusals(socket: &Socket, to: SocketAddr) -> io::Result<()> {
    let set =
        if to.is_ipv4() { setsockopt(socket, Ipv4RecvErr, &true) } else { setsockopt(socket, Ipv6RecvErr, &true) };
    set.map_err(io::Error::from)
}

fn open(target: &DialTarget) -> io::Result<TcpStream> {
    let socket = stream_socket(target)?;
    socket.connect_timeout(&SockAddr::from(target.to), target.timeout)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(target.timeout))?;
    Ok(stream)
}

/// With `TCP_FASTOPEN_CONNECT` connect() only remembers the address; the first write sends the SYN, with data if the
/// kernel has a cookie of that server. Kernel: 4.11.
fn fast_open(target: &DialTarget) -> io::Result<Answered> {
    let socket = stream_socket(target)?;
    setsockopt(&socket, TcpFastOpenConnect, &true).map_err(io::Error::from)?;
    socket.set_read_timeout(Some(target.timeout))?;
    socket.set_write_timeout(Some(target.timeout))?;
    socket.connect(&SockAddr::from(target.to))?;
    let stream = TcpStream::from(socket);
    io::Write::write_all(&mut &stream, b"ping\n")?;
    greeted(&stream)
}

fn greeted(stream: &TcpStream) -> io::Result<Answered> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Answered::of(&line, stream.peer_addr()?)
}

fn http(target: &DialTarget) -> io::Result<Answered> {
    let mut stream = open(target)?;
    let peername = stream.peer_addr()?;
    let response = crate::http::fetch(&mut stream, "/").map_err(io::Error::other)?;
    if response.status != 200 {
        return Err(io::Error::other(format!("HTTP status {}", response.status)));
    }
    Answered::of(&response.body, peername)
}

fn datagram(target: &DialTarget, socket: &UdpSocket, number: u64) -> io::Result<Answered> {
    let question = format!("question {number}");
    let mut buffer = [0; 2048];
    let (length, peername) = if target.mode == Mode::Udp {
        socket.send(question.as_bytes())?;
        (socket.recv(&mut buffer)?, socket.peer_addr()?)
    } else {
        socket.send_to(question.as_bytes(), target.to)?;
        socket.recv_from(&mut buffer)?
    };
    let answer = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
    // A late answer to an earlier question must not count for this one.
    match answer.strip_suffix(&question) {
        Some(head) => Answered::of(head, peername),
        None => Err(io::Error::other(format!("answer to another question: {answer}"))),
    }
}
