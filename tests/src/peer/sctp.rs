//! SCTP by crafted packets: a server that answers an INIT, and a client that sends one.
//!
//! Raw sockets, because not every kernel has those of SCTP; what a packet meets on its way is the same. The handshake
//! ends after its first two packets: they show who answers, at which address, and which source it saw.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use super::socket::{Answered, DialTarget};

const SCTP: i32 = 132;
const HEADER: usize = 12;
const CHECKSUM: Range<usize> = 8..12;
/// Length of an INIT chunk, and of an INIT ACK before its cookie.
const CHUNK: u16 = 20;
/// Type of the parameter that holds the cookie, and length of its head.
const COOKIE: (u16, u16) = (7, 4);

/// The first chunk of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Init = 1,
    InitAck = 2,
}

/// A packet of the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Packet {
    from: u16,
    to: u16,
    /// The tag that its receiver chose; 0 in an INIT.
    tag: u32,
    kind: Kind,
    /// The tag that its sender chose.
    own_tag: u32,
    /// The cookie of an INIT ACK, which here says who answers and to whom.
    cookie: Vec<u8>,
}

/// A socket for [`serve`].
pub(super) fn listen(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = raw_socket(address.is_ipv4())?;
    bind(&socket, address.ip())?;
    Ok(socket)
}

/// Answers each INIT for `port` with the name of the server and the source of the INIT.
pub(super) fn serve(socket: &UdpSocket, port: u16, name: &str) -> anyhow::Result<()> {
    loop {
        let Some((client, packet)) = receive(socket).context("receiving an SCTP packet")? else { continue };
        if packet.kind != Kind::Init || packet.to != port {
            continue;
        }
        let cookie = format!("{name} {}", SocketAddr::new(client, packet.from)).into_bytes();
        let Packet { from, to, own_tag, .. } = packet;
        let answer = Packet { from: to, to: from, tag: own_tag, kind: Kind::InitAck, own_tag: rand::random(), cookie };
        // What happens to one answer is its client's business; the server goes on.
        drop(socket.send_to(&answer.bytes(), (client, 0)));
    }
}

/// Sends an INIT from the port of `bind` and waits for its answer, which only the dialled address can give.
pub(super) fn dial(target: &DialTarget) -> io::Result<Answered> {
    let socket = raw_socket(target.to.is_ipv4())?;
    let source = target.bind.unwrap_or_else(|| SocketAddr::new(unspecified(target.to.is_ipv4()), 0));
    bind(&socket, source.ip())?;
    socket.connect((target.to.ip(), 0))?;
    let own_tag = rand::random::<u32>() | 1;
    let init =
        Packet { from: source.port(), to: target.to.port(), tag: 0, kind: Kind::Init, own_tag, cookie: Vec::new() };
    socket.send(&init.bytes())?;
    let deadline = Instant::now() + target.timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // A timeout of zero would mean none.
        socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match receive(&socket)? {
            Some((peer, packet)) if packet.kind == Kind::InitAck && packet.tag == own_tag => {
                let text = String::from_utf8_lossy(&packet.cookie).into_owned();
                return Answered::of(&text, SocketAddr::new(peer, packet.from));
            }
            Some(_) | None if left.is_zero() => return Err(io::ErrorKind::TimedOut.into()),
            Some(_) | None => {}
        }
    }
}

fn unspecified(ipv4: bool) -> IpAddr {
    if ipv4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

fn bind(socket: &UdpSocket, address: IpAddr) -> io::Result<()> {
    SockRef::from(socket).bind(&SockAddr::from(SocketAddr::new(address, 0)))
}

/// In the type of a UDP socket, which has the calls that take bytes and addresses.
fn raw_socket(ipv4: bool) -> io::Result<UdpSocket> {
    let domain = if ipv4 { Domain::IPV4 } else { Domain::IPV6 };
    Ok(Socket::new(domain, Type::RAW, Some(Protocol::from(SCTP)))?.into())
}

/// The sender and the packet, if it is one of a handshake.
fn receive(socket: &UdpSocket) -> io::Result<Option<(IpAddr, Packet)>> {
    let mut buffer = [0; 2048];
    let (length, sender) = socket.recv_from(&mut buffer)?;
    let received = buffer.get(..length).unwrap_or_default();
    // In IPv4 a raw socket receives the IP header too.
    let header = match (sender.ip(), received.first()) {
        (IpAddr::V4(_), Some(first)) => usize::from(first & 0xf) * 4,
        (IpAddr::V4(_) | IpAddr::V6(_), _) => 0,
    };
    Ok(received.get(header..).and_then(Packet::read).map(|packet| (sender.ip(), packet)))
}

impl Packet {
    /// With its checksum.
    fn bytes(&self) -> Vec<u8> {
        let Self { from, to, tag, kind, own_tag, cookie } = self;
        let (parameter, head) = COOKIE;
        let cookie_length = u16::try_from(cookie.len()).unwrap_or(u16::MAX).saturating_add(head);
        let further = if cookie.is_empty() { 0 } else { cookie_length };
        let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
        bytes.extend(tag.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([*kind as u8, 0]);
        bytes.extend(CHUNK.saturating_add(further).to_be_bytes());
        bytes.extend(own_tag.to_be_bytes());
        // Receive window, streams out and in, first TSN.
        bytes.extend([0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
        if further > 0 {
            bytes.extend([parameter.to_be_bytes(), cookie_length.to_be_bytes()].concat());
            bytes.extend(cookie);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let sum = crc32c(&bytes).to_le_bytes();
        bytes.splice(CHECKSUM, sum);
        bytes
    }

    /// None if it is no packet of the handshake, or its checksum is wrong.
    fn read(bytes: &[u8]) -> Option<Self> {
        let short = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let long = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let mut unsummed = bytes.to_vec();
        unsummed.get_mut(CHECKSUM)?.fill(0);
        let kind = match bytes.get(HEADER)? {
            1 => Kind::Init,
            2 => Kind::InitAck,
            _ => return None,
        };
        if bytes.get(CHECKSUM)? != crc32c(&unsummed).to_le_bytes() {
            return None;
        }
        let at = HEADER + usize::from(CHUNK);
        let cookie = match (short(at), short(at + 2)) {
            (Some(kind), Some(length)) if kind == COOKIE.0 => bytes.get(at + 4..at + usize::from(length))?.to_vec(),
            (_, _) => Vec::new(),
        };
        let (from, to, tag, own_tag) = (short(0)?, short(2)?, long(4)?, long(HEADER + 4)?);
        Some(Self { from, to, tag, kind, own_tag, cookie })
    }
}

/// The checksum of SCTP, CRC-32C. Ten lines in place of a crate, since only these small packets need it.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        // The check value of CRC-32C, and the first example of RFC 3720, B.4.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn what_is_read_is_what_was_written_unless_a_bit_has_changed() {
        for (kind, tag, cookie) in [(Kind::Init, 0, ""), (Kind::InitAck, 7, "a1:7000 10.0.0.1:40000")] {
            let packet = Packet { from: 40_000, to: 80, tag, kind, own_tag: 9, cookie: cookie.as_bytes().to_vec() };
            let bytes = packet.bytes();
            assert_eq!(bytes.len() % 4, 0);
            assert_eq!(Packet::read(&bytes), Some(packet));
            for at in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[at] ^= 1;
                assert_eq!(Packet::read(&changed), None, "byte {at}");
            }
        }
        assert_eq!(Packet::read(b"short"), None);
    }
}
