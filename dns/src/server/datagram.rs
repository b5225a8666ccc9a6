//! A UDP socket that answers from the address that was asked, also where it listens on all of them (DNS-9.17).

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;

use nix::cmsg_space;
use nix::libc::{in_pktinfo, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg, setsockopt,
    sockopt,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Longer queries are none: 65,535 is the length field's limit.
const LONGEST: usize = 65_535;
/// Datagrams in one call.
const MOST: usize = 32;

/// The socket of one worker.
pub(super) struct Datagrams {
    socket: UdpSocket,
    /// It listens on every address, so each reply has to say from which one it comes.
    any: bool,
}

/// A reply, and where it goes.
pub(super) type Addressed = (Vec<u8>, ReplyPath);

/// The client that a reply goes to, and the address that it comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReplyPath {
    pub(super) client: SocketAddr,
    asked: Option<Asked>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    V4(in_pktinfo),
    V6(in6_pktinfo),
}

impl Datagrams {
    pub(super) fn new(socket: UdpSocket) -> io::Result<Self> {
        let ip = socket.local_addr()?.ip();
        match ip {
            IpAddr::V4(_) if ip.is_unspecified() => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
            IpAddr::V6(_) if ip.is_unspecified() => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?,
            IpAddr::V4(_) | IpAddr::V6(_) => {}
        }
        Ok(Self { socket, any: ip.is_unspecified() })
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// The next datagrams, as many as there are and fit; [`io::ErrorKind::WouldBlock`] if there are none.
    pub(super) fn try_receive(&self, inbox: &mut Inbox) -> io::Result<()> {
        inbox.received.clear();
        // With few clients most calls get one, and room for more is not free.
        if inbox.wanted == 1 && !self.any {
            let (length, client) = self.socket.try_recv_from(inbox.buffers.get_mut(..LONGEST).unwrap_or_default())?;
            inbox.received.push((length, ReplyPath { client, asked: None }));
        } else {
            self.socket.try_io(Interest::READABLE, || self.receive_several(inbox))?;
        }
        let full = inbox.received.len() == inbox.wanted;
        inbox.wanted = if full { (2 * inbox.wanted).min(MOST) } else { inbox.received.len().max(1) };
        Ok(())
    }

    fn receive_several(&self, inbox: &mut Inbox) -> io::Result<()> {
        let control = self.any.then(|| cmsg_space!(in6_pktinfo));
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(inbox.wanted, control);
        let buffers = inbox.buffers.chunks_mut(LONGEST).take(inbox.wanted);
        let mut slices: Vec<[IoSliceMut<'_>; 1]> = buffers.map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let received =
            recvmmsg(self.socket.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None)?;
        for message in received {
            let client = message.address.as_ref().and_then(inet).ok_or(io::ErrorKind::InvalidData)?;
            let asked = if self.any { message.cmsgs()?.find_map(asked) } else { None };
            inbox.received.push((message.bytes, ReplyPath { client, asked }));
        }
        Ok(())
    }

    /// Sends the first of these replies, as many as one call takes, waiting for room. Returns their number; on an error
    /// none was sent, and the first is at fault.
    pub(super) async fn send(&self, replies: &[Addressed]) -> io::Result<usize> {
        loop {
            match self.try_send(replies) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.socket.writable().await?,
                done => return done,
            }
        }
    }

    fn try_send(&self, replies: &[Addressed]) -> io::Result<usize> {
        match replies {
            [] => Ok(0),
            [(reply, ReplyPath { client, asked: None })] => self.socket.try_send_to(reply, *client).map(|_| 1),
            [(_, ReplyPath { asked, .. }), ..] => {
                // One address of ours for all that go out in one call.
                let count = replies.iter().take_while(|(_, path)| path.asked == *asked).count();
                self.socket.try_io(Interest::WRITABLE, || self.send_several(replies.get(..count).unwrap_or_default()))
            }
        }
    }

    fn send_several(&self, replies: &[Addressed]) -> io::Result<usize> {
        let asked = replies.first().and_then(|(_, path)| path.asked);
        let control: &[ControlMessage<'_>] = match &asked {
            None => &[],
            Some(Asked::V4(info)) => &[ControlMessage::Ipv4PacketInfo(info)],
            Some(Asked::V6(info)) => &[ControlMessage::Ipv6PacketInfo(info)],
        };
        let slices: Vec<[IoSlice<'_>; 1]> = replies.iter().map(|(reply, _)| [IoSlice::new(reply)]).collect();
        let clients: Vec<_> = replies.iter().map(|(_, path)| Some(SockaddrStorage::from(path.client))).collect();
        let space = asked.map(|_| cmsg_space!(in6_pktinfo));
        let mut headers = MultiHeaders::preallocate(slices.len(), space);
        let sent = sendmmsg(self.socket.as_raw_fd(), &mut headers, &slices, clients, control, MsgFlags::MSG_DONTWAIT)?;
        Ok(sent.count())
    }
}

/// Datagrams that came in one call.
pub(super) struct Inbox {
    buffers: Vec<u8>,
    /// Their lengths, and where their replies go.
    received: Vec<(usize, ReplyPath)>,
    /// How many the next call takes.
    wanted: usize,
}

impl Inbox {
    pub(super) fn new() -> Self {
        // Pages that no datagram reaches take no memory.
        Self { buffers: vec![0; MOST * LONGEST], received: Vec::with_capacity(MOST), wanted: 1 }
    }

    pub(super) fn datagrams(&self) -> impl Iterator<Item = (&[u8], ReplyPath)> {
        let all = self.buffers.chunks(LONGEST).zip(&self.received);
        all.map(|(buffer, (length, path))| (buffer.get(..*length).unwrap_or_default(), *path))
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "nothing else is asked of the kernel")]
fn asked(message: ControlMessageOwned) -> Option<Asked> {
    match message {
        // The interface stays open: the reply may have to leave by another one.
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            Some(Asked::V4(in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: info.ipi_addr, ipi_addr: info.ipi_addr }))
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            let link_local = info.ipi6_addr.s6_addr.starts_with(&[0xfe, 0x80]);
            Some(Asked::V6(in6_pktinfo { ipi6_ifindex: if link_local { info.ipi6_ifindex } else { 0 }, ..info }))
        }
        _ => None,
    }
}

fn inet(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::from((v4.ip(), v4.port())));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
}
