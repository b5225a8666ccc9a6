//! The kernel's list of sockets (`sock_diag`) of one network namespace, and the end of one of them.
//!
//! Written by hand because the crate for this protocol does not know the cgroup of a socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::host::netlink::{Netlink, attribute};

const NETLINK_SOCK_DIAG: isize = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// In `enum` of linux/inet_diag.h. Kernel: 5.8.
const INET_DIAG_CGROUP_ID: u16 = 21;

/// Bit of a state in `idiag_states`; a connected UDP socket counts as established.
const ESTABLISHED: u32 = 1 << 1;
const SYN_SENT: u32 = 1 << 2;

/// `struct inet_diag_sockid`: ports, addresses, interface, cookie.
const ID: usize = 48;
/// `struct inet_diag_msg` up to its attributes.
const MESSAGE: usize = 72;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const ADDRESS_FAMILIES: [u8; 2] = [AF_INET, AF_INET6];
const UDP: u8 = 17;
const TCP: u8 = 6;

/// A connected UDP socket, or a TCP socket that is still connecting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Socket {
    family: u8,
    protocol: u8,
    id: [u8; ID],
    /// The cgroup in which it was made, if the kernel says so.
    pub(super) cgroup: Option<u64>,
}

impl Socket {
    /// What the kernel calls it, never used again.
    pub(super) fn cookie(&self) -> u64 {
        self.id.last_chunk().copied().map_or(0, u64::from_ne_bytes)
    }

    pub(super) fn is_udp(&self) -> bool {
        self.protocol == UDP
    }

    /// What its packets have as destination; an IPv4-mapped address is the IPv4 one.
    pub(super) fn destination(&self) -> SocketAddr {
        let port = self.id.get(2..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_be_bytes);
        // Ports 2 + 2 and the source address 16 come before it.
        let address: [u8; 16] = self.id.get(20..36).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
        let [a, b, c, d, ..] = address;
        let ip = match self.family {
            AF_INET => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            _ => IpAddr::V6(Ipv6Addr::from(address)).to_canonical(),
        };
        SocketAddr::new(ip, port)
    }
}

/// The list of the network namespace in which it was opened.
#[derive(Debug)]
pub(super) struct Diag(Netlink);

impl Diag {
    pub(super) fn open() -> io::Result<Self> {
        Netlink::open(NETLINK_SOCK_DIAG).map(Self)
    }

    /// The connected UDP sockets.
    pub(super) fn connected(&mut self) -> io::Result<Vec<Socket>> {
        self.list(UDP, ESTABLISHED)
    }

    /// The TCP sockets that are still connecting.
    pub(super) fn connecting(&mut self) -> io::Result<Vec<Socket>> {
        self.list(TCP, SYN_SENT)
    }

    fn list(&mut self, protocol: u8, states: u32) -> io::Result<Vec<Socket>> {
        let mut found = Vec::new();
        for family in ADDRESS_FAMILIES {
            let question = request(family, protocol, states, &[0; ID]);
            found.extend(self.0.dump(SOCK_DIAG_BY_FAMILY, &question, |entry| Ok(read(entry, family, protocol)))?);
        }
        Ok(found)
    }

    /// Ends a socket: its owner gets ECONNABORTED. False if it is gone already. Kernel: 4.9 with INET_DIAG_DESTROY.
    pub(super) fn destroy(&mut self, socket: &Socket) -> io::Result<bool> {
        let states = ESTABLISHED | SYN_SENT;
        match self.0.order(SOCK_DESTROY, &request(socket.family, socket.protocol, states, &socket.id)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, protocol: u8, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let mut bytes = vec![family, protocol, 0, 0];
    bytes.extend(states.to_ne_bytes());
    bytes.extend(id);
    bytes
}

/// What an entry of the list says, if it is whole.
fn read(entry: &[u8], family: u8, protocol: u8) -> Option<Socket> {
    let id = entry.get(4..4 + ID)?.try_into().ok()?;
    let cgroup = attribute(entry.get(MESSAGE..)?, INET_DIAG_CGROUP_ID).and_then(|value| value.try_into().ok());
    Some(Socket { family, protocol, id, cgroup: cgroup.map(u64::from_ne_bytes) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Linux 6.18 lists for a socket that is connected to port 80 of 10.9.0.2.
    const ENTRY: &str = "02020100a7e400500a0900010000000000000000000000000a0900020000000000000000000000000000000041c40400\
         00000000e403000000000000010000000000000088c02300050008000000000008000f00000000000c00150001000000\
         000000000600160052000000";

    fn entry() -> Vec<u8> {
        (0..ENTRY.len()).step_by(2).map(|at| u8::from_str_radix(&ENTRY[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn a_socket_is_listed_with_its_destination_and_its_cgroup() {
        let found = read(&entry(), AF_INET, TCP).unwrap();
        assert_eq!((found.cookie(), found.destination()), (0x4_c441, "10.9.0.2:80".parse().unwrap()));
        assert_eq!(found.cgroup, Some(1));
        for length in 0..MESSAGE {
            assert_eq!(read(&entry()[..length], AF_INET, TCP), None, "cut at {length}");
        }
    }

    #[test]
    fn an_ipv6_socket_has_an_ipv4_destination_in_mapped_form() {
        let mut id = [0; ID];
        id[2..4].copy_from_slice(&8080_u16.to_be_bytes());
        id[30..36].copy_from_slice(&[0xff, 0xff, 10, 1, 0, 7]);
        let mut socket = Socket { family: AF_INET6, protocol: UDP, id, cgroup: None };
        assert_eq!(socket.destination(), "10.1.0.7:8080".parse().unwrap());
        socket.id[20] = 0xfd;
        assert_eq!(socket.destination(), "[fd00::ffff:a01:7]:8080".parse().unwrap());
    }

    #[test]
    fn a_question_has_the_kernels_layout() {
        let question = request(2, 17, ESTABLISHED, &[1; ID]);
        assert_eq!((question.len(), &question[..8]), (56, &[2, 17, 0, 0, 2, 0, 0, 0][..]));
    }
}
