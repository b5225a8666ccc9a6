//! Sockets to listen on.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// Queries that wait in a socket while all processors are busy; the kernel may allow less.
const RECEIVE_BUFFER: usize = 1 << 20;

/// All addresses of this host: that of IPv6 takes IPv4 too, where there is IPv6 at all.
pub(crate) fn any_address() -> IpAddr {
    if Path::new("/proc/net/if_inet6").exists() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
}

/// Both spellings of "all addresses of this host" become one.
pub(crate) fn one_for_all(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() { SocketAddr::new(any_address(), address.port()) } else { address }
}

/// A port for TCP. `[::]` takes IPv4 too, whatever the host's default is, unless `only_v6`.
pub(crate) fn listen(address: SocketAddr, only_v6: bool) -> io::Result<TcpListener> {
    let socket = socket(address, only_v6, Type::STREAM, Protocol::TCP)?;
    socket.set_reuse_address(true)?; // connections of an earlier server may linger
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Which sockets of UDP may have the port before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// Those of this kind: an address that was asked for.
    Some,
    /// None: a port that the kernel chose for TCP may still be one of UDP for a server that ends.
    None,
}

/// One of any number of sockets of a port for UDP.
pub(crate) fn datagram_socket(address: SocketAddr, only_v6: bool, before: Before) -> io::Result<std::net::UdpSocket> {
    let socket = socket(address, only_v6, Type::DGRAM, Protocol::UDP)?;
    socket.set_reuse_port(before == Before::Some)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.bind(&address.into())?;
    socket.set_reuse_port(true)?; // for those that come after it
    Ok(socket.into())
}

fn socket(address: SocketAddr, only_v6: bool, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    Ok(socket)
}

/// Sockets that an earlier process had open and a service manager has kept.
#[derive(Debug, Default)]
pub(crate) struct Kept(Vec<Socket>);

impl Kept {
    pub(crate) fn new(kept: Vec<OwnedFd>) -> Self {
        Self(kept.into_iter().map(Socket::from).collect())
    }

    /// The one that listens for TCP at `address`.
    pub(crate) fn take_listener(&mut self, address: SocketAddr, only_v6: bool) -> Option<std::net::TcpListener> {
        self.take(address, only_v6, Type::STREAM).pop().map(std::net::TcpListener::from)
    }

    /// All of UDP at `address`.
    pub(crate) fn take_datagram(&mut self, address: SocketAddr, only_v6: bool) -> Vec<std::net::UdpSocket> {
        self.take(address, only_v6, Type::DGRAM).into_iter().map(std::net::UdpSocket::from).collect()
    }

    fn take(&mut self, address: SocketAddr, only_v6: bool, kind: Type) -> Vec<Socket> {
        let is_at = |socket: &Socket| socket.local_addr().ok().and_then(|found| found.as_socket()) == Some(address);
        let serves = |socket: &mut Socket| {
            // Bound to one address of IPv6, a socket takes that family alone, whatever was asked for.
            let is_any6 = address.is_ipv6() && address.ip().is_unspecified();
            let same_families = !is_any6 || socket.only_v6().is_ok_and(|found| found == only_v6);
            socket.r#type().is_ok_and(|found| found == kind) && is_at(socket) && same_families
        };
        self.0.extract_if(.., |socket| serves(socket)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_was_kept_is_taken_once_and_only_for_its_own_address() {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let tcp = std::net::TcpListener::bind(any).unwrap();
        let address = tcp.local_addr().unwrap();
        let udp = [(); 2].map(|()| datagram_socket(address, false, Before::Some).unwrap());
        let other = datagram_socket(any, false, Before::None).unwrap();
        let other_address = other.local_addr().unwrap();
        let [first, second] = udp;
        let mut kept = Kept::new(vec![tcp.into(), first.into(), other.into(), second.into()]);
        assert!(kept.take_listener(other_address, false).is_none(), "that one is of UDP");
        assert_eq!(kept.take_listener(address, false).unwrap().local_addr().unwrap(), address);
        assert!(kept.take_listener(address, false).is_none());
        assert_eq!(kept.take_datagram(address, false).len(), 2);
        assert_eq!(kept.take_datagram(address, false).len(), 0);
        assert_eq!(kept.0.len(), 1, "nothing listens there now");
    }

    #[test]
    fn a_socket_may_ask_for_a_port_that_no_other_has() {
        let first = datagram_socket(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), false, Before::None).unwrap();
        let address = first.local_addr().unwrap();
        let second = datagram_socket(address, false, Before::Some).unwrap();
        for _ in 0..2 {
            let refused = datagram_socket(address, false, Before::None).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        }
        drop(first);
        assert!(datagram_socket(address, false, Before::None).is_err(), "the second one still has it");
        drop(second);
    }

    #[test]
    fn a_socket_of_other_families_is_not_taken() {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let both = datagram_socket(any, false, Before::None).unwrap();
        let address = both.local_addr().unwrap();
        let mut kept = Kept::new(vec![both.into()]);
        assert_eq!(kept.take_datagram(address, true).len(), 0);
        assert_eq!(kept.take_datagram(address, false).len(), 1);
        let one = datagram_socket(SocketAddr::from((Ipv6Addr::LOCALHOST, 0)), false, Before::None).unwrap();
        let address = one.local_addr().unwrap();
        assert_eq!(Kept::new(vec![one.into()]).take_datagram(address, false).len(), 1);
    }
}
