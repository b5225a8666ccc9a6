//! One UDP socket that is connected and not connected in turn.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;

use super::print;
use super::probe::Probe;

/// What to do with the socket.
#[derive(Clone, Debug, Args)]
pub struct TurnArguments {
    /// The steps in their order.
    #[arg(required = true)]
    steps: Vec<Step>,
}

/// One thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// `connect=ADDRESS`.
    Connect(SocketAddr),
    /// `disconnect`: connect to no address.
    Disconnect,
    /// `ask`: send to the peer, and receive the answer.
    AskPeer,
    /// `ask=ADDRESS`: send there, and receive the answer.
    Ask(SocketAddr),
}

impl FromStr for Step {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (step, address) = text.split_once('=').unwrap_or((text, ""));
        Ok(match step {
            "connect" => Self::Connect(address.parse().context("reading the address")?),
            "disconnect" => Self::Disconnect,
            "ask" if address.is_empty() => Self::AskPeer,
            "ask" => Self::Ask(address.parse().context("reading the address")?),
            other => bail!("{other} is no step"),
        })
    }
}

/// Does the steps, and prints a line for each question: whence the answer came, as `recvfrom` says.
pub(super) fn take(arguments: &TurnArguments) -> anyhow::Result<()> {
    let four = arguments.steps.iter().any(|step| match step {
        Step::Connect(to) | Step::Ask(to) => to.is_ipv4(),
        Step::Disconnect | Step::AskPeer => false,
    });
    let any: SocketAddr = if four { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).context("making a UDP socket")?;
    socket.set_read_timeout(Some(Duration::from_secs(3))).context("setting the timeout")?;
    for step in &arguments.steps {
        match step {
            Step::Connect(to) => socket.connect(to).with_context(|| format!("connecting to {to}"))?,
            Step::Disconnect => rustix::net::connect_unspec(&socket).context("disconnecting")?,
            Step::AskPeer => {
                socket.send(b"question").context("sending")?;
                answered(&socket, socket.peer_addr().context("asking for the peer")?)?;
            }
            Step::Ask(to) => {
                socket.send_to(b"question", to).with_context(|| format!("sending to {to}"))?;
                answered(&socket, *to)?;
            }
        }
    }
    Ok(())
}

fn answered(socket: &UdpSocket, to: SocketAddr) -> anyhow::Result<()> {
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer).with_context(|| format!("waiting for the answer of {to}"))?;
    let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
    let server = text.split(' ').next().map(str::to_owned);
    print(&Probe { to, peer: Some(from), server, error: None })
}
