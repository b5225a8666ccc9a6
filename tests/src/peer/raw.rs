//! Packets as given, byte for byte behind the IP header.

use std::net::{IpAddr, SocketAddr};

use anyhow::Context as _;
use clap::Args;
use data_encoding::HEXLOWER_PERMISSIVE;
use socket2::{Domain, Protocol, Socket, Type};

/// What to send.
#[derive(Debug, Args)]
pub struct RawArguments {
    /// Where to.
    to: IpAddr,
    /// The number of the protocol.
    protocol: i32,
    /// What is behind the IP header, in hexadecimal digits. Its checksums are sent as they are.
    packet: String,
}

pub(super) fn send(arguments: &RawArguments) -> anyhow::Result<()> {
    let packet = HEXLOWER_PERMISSIVE.decode(arguments.packet.as_bytes()).context("reading the packet")?;
    let to = SocketAddr::new(arguments.to, 0);
    let protocol = Protocol::from(arguments.protocol);
    let socket = Socket::new(Domain::for_address(to), Type::RAW, Some(protocol)).context("a raw socket")?;
    socket.send_to(&packet, &to.into()).with_context(|| format!("sending a packet to {}", arguments.to))?;
    Ok(())
}
