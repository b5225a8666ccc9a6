//! A client that connects again and again and says who answered.

use std::io::{self, BufRead as _, BufReader};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::{Mode, error_name, now, print};

/// Where to connect and how often.
#[derive(Clone, Debug, Args)]
pub struct ConnectArguments {
    /// The server.
    #[arg(long)]
    to: SocketAddr,
    /// How.
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// Stop after so many attempts.
    #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
    count: u64,
    /// Milliseconds from one attempt to the next.
    #[arg(long, default_value_t = 0)]
    interval: u64,
    /// Stop after so many seconds.
    #[arg(long, default_value_t = 60)]
    duration: u64,
    /// Milliseconds until an attempt counts as failed.
    #[arg(long, default_value_t = 3000)]
    timeout: u64,
    /// Keep one UDP socket for all attempts.
    #[arg(long)]
    same_socket: bool,
}

/// What one attempt came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// When it was answered or failed, in nanoseconds since 1970.
    pub t: u64,
    /// When it began.
    pub began: u64,
    /// The name the server gave.
    pub server: Option<String>,
    /// Who the client believes to talk to: `getpeername`, or where the datagram came from.
    pub peername: Option<SocketAddr>,
    /// The kernel's name of the error.
    pub error: Option<String>,
    /// How long it took, in microseconds.
    pub us: u64,
}

/// Connects as asked, one line per attempt.
pub(super) fn connect(arguments: &ConnectArguments) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(arguments.duration);
    let interval = Duration::from_millis(arguments.interval);
    let mut next = Instant::now();
    let mut kept = arguments.same_socket.then(|| udp_socket(arguments)).transpose().context("making a UDP socket")?;
    for number in 0..arguments.count {
        let (start, began) = (Instant::now(), now());
        let result = attempt(arguments, number, kept.as_mut());
        let us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        let (server, peername, error) = match result {
            Ok((server, peername)) => (Some(server), Some(peername), None),
            Err(error) => (None, None, Some(error_name(&error))),
        };
        print(&Attempt { t: now(), began, server, peername, error, us })?;
        next += interval;
        if Instant::now().max(next) >= end {
            break;
        }
        sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

fn attempt(
    arguments: &ConnectArguments,
    number: u64,
    kept: Option<&mut UdpSocket>,
) -> io::Result<(String, SocketAddr)> {
    match (arguments.mode, kept) {
        (Mode::Tcp, _) => tcp(arguments),
        (Mode::Http, _) => http(arguments),
        (Mode::Udp | Mode::UdpUnconnected, Some(socket)) => datagram(arguments, socket, number),
        (Mode::Udp | Mode::UdpUnconnected, None) => datagram(arguments, &udp_socket(arguments)?, number),
    }
}

fn tcp(arguments: &ConnectArguments) -> io::Result<(String, SocketAddr)> {
    let stream = open(arguments)?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    let name = line.split(' ').next().filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "closed without a greeting"))?;
    Ok((name.to_owned(), stream.peer_addr()?))
}

fn http(arguments: &ConnectArguments) -> io::Result<(String, SocketAddr)> {
    let mut stream = open(arguments)?;
    let peername = stream.peer_addr()?;
    let response = crate::http::fetch(&mut stream, "/").map_err(io::Error::other)?;
    let name = response.body.split_whitespace().next().unwrap_or_default();
    if response.status != 200 || name.is_empty() {
        return Err(io::Error::other(format!("HTTP status {}", response.status)));
    }
    Ok((name.to_owned(), peername))
}

fn open(arguments: &ConnectArguments) -> io::Result<TcpStream> {
    let timeout = Duration::from_millis(arguments.timeout);
    let stream = TcpStream::connect_timeout(&arguments.to, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    Ok(stream)
}

fn udp_socket(arguments: &ConnectArguments) -> io::Result<UdpSocket> {
    let socket = if arguments.to.is_ipv4() {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?
    } else {
        UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?
    };
    socket.set_read_timeout(Some(Duration::from_millis(arguments.timeout)))?;
    if arguments.mode == Mode::Udp {
        socket.connect(arguments.to)?;
    }
    Ok(socket)
}

fn datagram(arguments: &ConnectArguments, socket: &UdpSocket, number: u64) -> io::Result<(String, SocketAddr)> {
    let question = format!("question {number}");
    let mut buffer = [0; 2048];
    let (length, peername) = if arguments.mode == Mode::Udp {
        socket.send(question.as_bytes())?;
        (socket.recv(&mut buffer)?, socket.peer_addr()?)
    } else {
        socket.send_to(question.as_bytes(), arguments.to)?;
        socket.recv_from(&mut buffer)?
    };
    let answer = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
    // A late answer to an earlier question must not count for this one.
    match answer.split_once(' ') {
        Some((name, echo)) if echo == question => Ok((name.to_owned(), peername)),
        Some(_) | None => Err(io::Error::other(format!("answer to another question: {answer}"))),
    }
}
