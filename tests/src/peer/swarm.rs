//! Many flows of UDP from one host to one server, each from a port of its own: whose answers come back to whom?

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::print;

/// So many are open at once.
const BATCH: usize = 100;
/// For the answers of a batch.
const PATIENCE: Duration = Duration::from_millis(300);
/// The first source port.
const FIRST: usize = 1024;

/// What to send.
#[derive(Clone, Debug, Args)]
pub struct SwarmArguments {
    /// The server.
    #[arg(long)]
    to: SocketAddr,
    /// How many flows.
    #[arg(long)]
    count: usize,
    /// How long a datagram is at least.
    #[arg(long, default_value_t = 0)]
    bytes: usize,
}

/// What came of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwarmLine {
    /// Flows that got their answers.
    pub answered: usize,
    /// Flows that got none.
    pub silent: usize,
    /// Flows that got another one's, or an answer from elsewhere.
    pub mixed_up: usize,
}

/// Sends one datagram in each flow, and prints one line.
pub(super) fn swarm(arguments: &SwarmArguments) -> anyhow::Result<()> {
    let ports: Vec<usize> = (FIRST..FIRST.saturating_add(arguments.count)).collect();
    let mut line = SwarmLine::default();
    for batch in ports.chunks(BATCH) {
        let open = batch.iter().map(|port| ask(*port, arguments));
        let sockets = open.collect::<anyhow::Result<Vec<_>>>()?;
        let deadline = Instant::now() + PATIENCE;
        for (port, socket) in batch.iter().zip(sockets) {
            match hear(&socket, deadline, arguments.to, &said(*port, arguments.bytes)).context("receiving")? {
                None => line.silent += 1,
                Some(true) => line.answered += 1,
                Some(false) => line.mixed_up += 1,
            }
        }
    }
    print(&line)
}

/// What a port says.
fn said(port: usize, bytes: usize) -> String {
    format!(" {port:a>bytes$}")
}

/// Says from a port which one it is.
fn ask(port: usize, arguments: &SwarmArguments) -> anyhow::Result<UdpSocket> {
    let SwarmArguments { to, bytes, .. } = *arguments;
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let own = u16::try_from(port).context("there are not so many ports")?;
    let socket = UdpSocket::bind(SocketAddr::new(any, own)).with_context(|| format!("binding port {port}"))?;
    socket.send_to(said(port, bytes).as_bytes(), to).context("sending")?;
    Ok(socket)
}

/// Whether the answer is to what this port said; `None` without one.
fn hear(socket: &UdpSocket, deadline: Instant, to: SocketAddr, said: &str) -> io::Result<Option<bool>> {
    let left = deadline.saturating_duration_since(Instant::now());
    // A timeout of zero would mean none.
    socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
    let mut buffer = vec![0; 65_536];
    match socket.recv_from(&mut buffer) {
        Ok((length, from)) => {
            let heard = buffer.get(..length).unwrap_or_default();
            Ok(Some(from == to && heard.ends_with(said.as_bytes())))
        }
        Err(error) if [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut].contains(&error.kind()) => Ok(None),
        Err(error) => Err(error),
    }
}
