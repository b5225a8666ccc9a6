//! Single calls on odd sockets, and what the kernel says to them.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{CallError, print, say};

/// What to call, and with which addresses.
#[derive(Clone, Debug, Args)]
pub struct ProbeArguments {
    /// The call.
    #[arg(long, value_enum)]
    call: Call,
    /// Its addresses.
    #[arg(long, value_delimiter = ',', required = true)]
    to: Vec<SocketAddr>,
}

/// The calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Call {
    /// Connect an ICMP datagram socket.
    Ping,
    /// Connect a raw ICMP socket.
    Raw,
    /// Connect a UDP socket, and send nothing.
    UdpConnect,
    /// Bind and listen with TCP.
    BindTcp,
    /// Bind with UDP.
    BindUdp,
    /// Bind with TCP and `IPV6_V6ONLY`.
    BindTcpV6only,
    /// Bind with UDP and `IPV6_V6ONLY`.
    BindUdpV6only,
    /// Send a datagram from one UDP socket to each address in turn, three times round, and receive each answer.
    Many,
}

/// What came of one address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// The address.
    pub to: SocketAddr,
    /// `getpeername`, or where the answer came from.
    pub peer: Option<SocketAddr>,
    /// The name in the answer.
    pub server: Option<String>,
    /// The kernel's name of the error.
    pub error: Option<CallError>,
}

/// Makes the calls, one line for each.
pub(super) fn probe(arguments: &ProbeArguments) -> anyhow::Result<()> {
    if arguments.call == Call::Many {
        return many(&arguments.to);
    }
    for to in &arguments.to {
        let outcome = match arguments.call {
            Call::Ping => connected(*to, Type::DGRAM, icmp(to)),
            Call::Raw => connected(*to, Type::RAW, icmp(to)),
            Call::UdpConnect => connected(*to, Type::DGRAM, Protocol::UDP),
            Call::BindTcp => TcpListener::bind(to).map(|_| None),
            Call::BindUdp | Call::Many => UdpSocket::bind(to).map(|_| None),
            Call::BindTcpV6only => bound_v6only(*to, Type::STREAM),
            Call::BindUdpV6only => bound_v6only(*to, Type::DGRAM),
        };
        let (peer, error) = match outcome {
            Ok(peer) => (peer, None),
            Err(error) => (None, Some(CallError::from(&error))),
        };
        print(&Probe { to: *to, peer, server: None, error })?;
    }
    Ok(())
}

fn icmp(to: &SocketAddr) -> Protocol {
    if to.is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 }
}

/// The peer that a connected socket names. Towards port 0 it names none.
fn connected(to: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Option<SocketAddr>> {
    let socket = Socket::new(Domain::for_address(to), kind, Some(protocol))?;
    socket.connect(&SockAddr::from(to))?;
    Ok(socket.peer_addr().ok().and_then(|peer| peer.as_socket()))
}

fn bound_v6only(to: SocketAddr, kind: Type) -> io::Result<Option<SocketAddr>> {
    let socket = Socket::new(Domain::IPV6, kind, None)?;
    socket.set_only_v6(true)?;
    socket.bind(&SockAddr::from(to))?;
    Ok(None)
}

fn many(targets: &[SocketAddr]) -> anyhow::Result<()> {
    let any: SocketAddr = if targets.iter().all(SocketAddr::is_ipv4) { "0.0.0.0:0" } else { "[::]:0" }.parse()?;
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    for round in 0..3 {
        for to in targets {
            let question = format!("round {round}");
            let mut buffer = [0; 2048];
            let answer = socket.send_to(question.as_bytes(), to).and_then(|_| socket.recv_from(&mut buffer));
            let probe = match answer {
                Ok((length, from)) => {
                    let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
                    let server = text.split(' ').next().map(str::to_owned);
                    Probe { to: *to, peer: Some(from), server, error: None }
                }
                Err(error) => Probe { to: *to, peer: None, server: None, error: Some(CallError::from(&error)) },
            };
            print(&probe)?;
        }
    }
    Ok(())
}

/// Keeps a TCP connection open: prints who answered, then sends every line of its input and prints what comes back.
pub(super) fn hold(to: SocketAddr) -> anyhow::Result<()> {
    let stream = TcpStream::connect(to).with_context(|| format!("connecting to {to}"))?;
    let mut lines = BufReader::new(&stream).lines();
    let greeting = lines.next().context("closed without a greeting")??;
    say(greeting.split(' ').next().unwrap_or_default())?;
    for line in io::stdin().lines() {
        (&stream).write_all(format!("{}\n", line?).as_bytes())?;
        say(&lines.next().context("closed without an answer")??)?;
    }
    Ok(())
}
