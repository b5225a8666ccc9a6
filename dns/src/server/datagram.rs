//! A UDP socket that answers from the address that was asked, also where it listens on all of them (DNS-9.17).

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;

use nix::cmsg_space;
use nix::libc::{in_pktinfo, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// The socket of one worker.
pub(super) struct Datagrams {
    socket: UdpSocket,
    /// It listens on every address, so each reply has to say from which one it comes.
    any: bool,
}

/// The client that a reply goes to, and the address that it comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReplyPath {
    pub(super) client: SocketAddr,
    asked: Option<Asked>,
}

#[derive(Clone, Copy, Debug)]
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

    /// The next datagram if there is one; else [`io::ErrorKind::WouldBlock`].
    pub(super) fn try_receive(&self, buffer: &mut [u8]) -> io::Result<(usize, ReplyPath)> {
        if !self.any {
            let (length, client) = self.socket.try_recv_from(buffer)?;
            return Ok((length, ReplyPath { client, asked: None }));
        }
        self.socket.try_io(Interest::READABLE, || {
            let mut control = cmsg_space!(in6_pktinfo);
            let mut parts = [IoSliceMut::new(buffer)];
            let received =
                recvmsg::<SockaddrStorage>(self.socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty())?;
            let client = received.address.as_ref().and_then(inet).ok_or(io::ErrorKind::InvalidData)?;
            let asked = received.cmsgs()?.find_map(asked);
            Ok((received.bytes, ReplyPath { client, asked }))
        })
    }

    /// Sends a reply, waiting for room.
    pub(super) async fn send(&self, reply: &[u8], to: ReplyPath) -> io::Result<()> {
        loop {
            match self.try_send(reply, to) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.socket.writable().await?,
                done => return done,
            }
        }
    }

    fn try_send(&self, reply: &[u8], to: ReplyPath) -> io::Result<()> {
        let Some(asked) = to.asked else { return self.socket.try_send_to(reply, to.client).map(drop) };
        self.socket.try_io(Interest::WRITABLE, || {
            let client = SockaddrStorage::from(to.client);
            let parts = [IoSlice::new(reply)];
            let fd = self.socket.as_raw_fd();
            match asked {
                // The interface stays open: the reply may have to leave by another one.
                Asked::V4(info) => {
                    let info = in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: info.ipi_addr, ipi_addr: info.ipi_addr };
                    let control = [ControlMessage::Ipv4PacketInfo(&info)];
                    sendmsg(fd, &parts, &control, MsgFlags::empty(), Some(&client))?;
                }
                Asked::V6(info) => {
                    let link_local = info.ipi6_addr.s6_addr.starts_with(&[0xfe, 0x80]);
                    let index = if link_local { info.ipi6_ifindex } else { 0 };
                    let info = in6_pktinfo { ipi6_ifindex: index, ..info };
                    let control = [ControlMessage::Ipv6PacketInfo(&info)];
                    sendmsg(fd, &parts, &control, MsgFlags::empty(), Some(&client))?;
                }
            }
            Ok(())
        })
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "nothing else is asked of the kernel")]
fn asked(message: ControlMessageOwned) -> Option<Asked> {
    match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some(Asked::V4(info)),
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(Asked::V6(info)),
        _ => None,
    }
}

fn inet(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::from((v4.ip(), v4.port())));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
}
