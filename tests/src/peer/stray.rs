//! TCP segments from outside of the window of their connection, as a late or looping network delivers them.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::Context as _;
use etherparse::{TcpHeader, TcpHeaderSlice};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use super::say;

/// What is added to the sequence number that the client expects: further back than conntrack allows for, and further
/// ahead than any window is wide. A kernel since 6.1 translates the former all the same.
const OFFSETS: [u32; 2] = [0_u32.wrapping_sub(100_000), 1 << 30];
/// Of each kind.
const SEGMENTS: usize = 5;
const PAYLOAD: &[u8] = b"stray";
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for the next data of any client at `server`, an address of this host, then sends that client a few segments
/// that it acknowledged long ago, as it were, and a few that it has no room for.
pub(super) fn send(server: SocketAddr) -> anyhow::Result<()> {
    let socket = Socket::new(Domain::for_address(server), Type::RAW, Some(Protocol::TCP)).context("a raw socket")?;
    let socket: UdpSocket = socket.into();
    SockRef::from(&socket).bind(&SockAddr::from(SocketAddr::new(server.ip(), 0))).context("binding a raw socket")?;
    socket.set_read_timeout(Some(PATIENCE)).context("limiting the wait")?;
    say("listening")?;
    let (client, last) = loop {
        if let Some(found) = receive(&socket, server.port()).context("waiting for data of a client")? {
            break found;
        }
    };
    for offset in OFFSETS {
        let segment = outside_of_the_window(server, client, &last, offset)?;
        for _ in 0..SEGMENTS {
            socket.send_to(&segment, (client, 0)).context("sending a segment")?;
        }
    }
    say("sent")
}

/// The header of a segment to this port that brings data, its sequence number moved behind them.
fn receive(socket: &UdpSocket, port: u16) -> io::Result<Option<(IpAddr, TcpHeader)>> {
    let mut buffer = [0; 2048];
    let (length, sender) = socket.recv_from(&mut buffer)?;
    let received = buffer.get(..length).unwrap_or_default();
    // In IPv4 a raw socket receives the IP header too.
    let start = match (sender.ip(), received.first()) {
        (IpAddr::V4(_), Some(first)) => usize::from(first & 0xf) * 4,
        (IpAddr::V4(_) | IpAddr::V6(_), _) => 0,
    };
    let segment = received.get(start..).unwrap_or_default();
    let Ok(slice) = TcpHeaderSlice::from_slice(segment) else { return Ok(None) };
    let mut header = slice.to_header();
    let data = segment.len().saturating_sub(header.header_len());
    let data = u32::try_from(data).unwrap_or(u32::MAX);
    header.sequence_number = header.sequence_number.wrapping_add(data);
    Ok((data > 0 && header.destination_port == port).then_some((sender.ip(), header)))
}

/// A host that knows nothing of the connection resets it, and with numbers that its server believes.
fn outside_of_the_window(server: SocketAddr, client: IpAddr, last: &TcpHeader, offset: u32) -> anyhow::Result<Vec<u8>> {
    let sequence = last.acknowledgment_number.wrapping_add(offset);
    let mut header = TcpHeader::new(server.port(), last.source_port, sequence, 1024);
    header.ack = true;
    header.psh = true;
    header.acknowledgment_number = last.sequence_number;
    let checksum = match (server.ip(), client) {
        (IpAddr::V4(from), IpAddr::V4(to)) => header.calc_checksum_ipv4_raw(from.octets(), to.octets(), PAYLOAD),
        (IpAddr::V6(from), IpAddr::V6(to)) => header.calc_checksum_ipv6_raw(from.octets(), to.octets(), PAYLOAD),
        (from, to) => anyhow::bail!("{from} and {to} are of two families"),
    };
    header.checksum = checksum.context("the checksum of a segment")?;
    let mut bytes = Vec::new();
    header.write(&mut bytes).context("writing a segment")?;
    bytes.extend(PAYLOAD);
    Ok(bytes)
}
