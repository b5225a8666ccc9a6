//! A flood of SYNs, each from another address and port that nobody has.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::Args;
use etherparse::PacketBuilder;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::print;

/// Addresses for measurements: 198.18.0.0/15.
const SOURCES: u32 = 0xc612_0000;
const COUNT: u32 = 1 << 17;
/// The source ports begin here.
const PORTS: u32 = 1024;

/// What to send.
#[derive(Clone, Debug, Args)]
pub struct FloodArguments {
    /// Where to.
    #[arg(long)]
    to: SocketAddr,
    /// So many.
    #[arg(long)]
    count: u32,
}

/// What was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloodLine {
    /// So many packets.
    pub sent: u32,
    /// In this time.
    pub milliseconds: u128,
}

/// Sends them as fast as the kernel takes them, and prints one line.
pub(super) fn flood(arguments: &FloodArguments) -> anyhow::Result<()> {
    let IpAddr::V4(to) = arguments.to.ip() else { bail!("a flood is of IPv4") };
    let to = SocketAddrV4::new(to, arguments.to.port());
    let socket =
        Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(nix::libc::IPPROTO_RAW))).context("a raw socket")?;
    socket.set_header_included_v4(true).context("asking for headers of our own")?;
    let address = SockAddr::from(SocketAddrV4::new(*to.ip(), 0));
    let template = Template::new(to)?;
    let start = Instant::now();
    for number in 0..arguments.count {
        let packet = template.from(SOURCES + number % COUNT, PORTS + number / COUNT);
        while let Err(error) = socket.send_to(&packet, &address) {
            // The queue of the device is full: it is a flood after all.
            if error.kind() != io::ErrorKind::WouldBlock && error.raw_os_error() != Some(nix::libc::ENOBUFS) {
                return Err(error).context("sending a SYN");
            }
        }
    }
    print(&FloodLine { sent: arguments.count, milliseconds: start.elapsed().as_millis() })
}

/// A SYN from nowhere, of which each packet is made.
struct Template {
    packet: Vec<u8>,
}

impl Template {
    fn new(to: SocketAddrV4) -> anyhow::Result<Self> {
        let builder = PacketBuilder::ipv4(Ipv4Addr::UNSPECIFIED.octets(), to.ip().octets(), 64);
        let mut packet = Vec::new();
        builder.tcp(0, to.port(), 1, 64_240).syn().write(&mut packet, &[]).context("writing a SYN")?;
        Ok(Self { packet })
    }

    /// The kernel fills in the checksum of the IP header.
    fn from(&self, address: u32, port: u32) -> Vec<u8> {
        let mut packet = self.packet.clone();
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(place) = packet.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        };
        put(12, &address.to_be_bytes());
        let port = port & 0xffff;
        put(20, &u16::try_from(port).unwrap_or_default().to_be_bytes());
        let old = self.packet.get(36..38).and_then(|old| Some(u16::from_be_bytes(old.try_into().ok()?)));
        // RFC 1624: of the words that take the place of zeroes.
        let sum = u32::from(!old.unwrap_or_default()) + (address >> 16) + (address & 0xffff) + port;
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        put(36, &(!u16::try_from(sum & 0xffff).unwrap_or_default()).to_be_bytes());
        packet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_syn_has_a_right_checksum() {
        let to = SocketAddrV4::new(Ipv4Addr::new(172, 18, 0, 11), 30_080);
        let template = Template::new(to).unwrap();
        for (address, port) in [(SOURCES, 1024), (SOURCES + 77_777, 1031), (0xffff_ffff, 65_535), (0, 0)] {
            let packet = template.from(address, port);
            let headers = etherparse::PacketHeaders::from_ip_slice(&packet).unwrap();
            let Some(etherparse::TransportHeader::Tcp(tcp)) = headers.transport else { panic!("{headers:?}") };
            assert_eq!((u32::from(tcp.source_port), tcp.destination_port, tcp.syn), (port, 30_080, true));
            let right = tcp.calc_checksum_ipv4_raw(address.to_be_bytes(), to.ip().octets(), &[]).unwrap();
            assert_eq!(tcp.checksum, right, "from {address:x}");
        }
    }
}
