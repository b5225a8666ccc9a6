//! Sockets to listen on.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
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

/// One of any number of sockets of a port for UDP.
pub(crate) fn datagram_socket(address: SocketAddr, only_v6: bool) -> io::Result<std::net::UdpSocket> {
    let socket = socket(address, only_v6, Type::DGRAM, Protocol::UDP)?;
    socket.set_reuse_port(true)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.bind(&address.into())?;
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
