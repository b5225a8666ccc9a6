//! The kernel's list of sockets (`sock_diag`), with the storage of one map beside each.
//!
//! Written by hand because the crate for this protocol cannot ask for storage.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use proxy_abi::Flow;
use zerocopy::FromBytes;

use super::Maps;
use crate::host::netlink::Netlink;
use crate::sys::bpf;

const NETLINK_SOCK_DIAG: isize = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// In `enum` of linux/inet_diag.h and linux/sock_diag.h.
const INET_DIAG_REQ_SK_BPF_STORAGES: u16 = 2;
const SK_DIAG_BPF_STORAGE_REQ_MAP_FD: u16 = 1;
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
const SK_DIAG_BPF_STORAGE: u16 = 1;
const SK_DIAG_BPF_STORAGE_MAP_VALUE: u16 = 3;
/// Upper bits of an attribute's type are flags.
const TYPE: u16 = 0x3fff;

/// Bit of a state in `idiag_states`; a connected UDP socket counts as established.
const ESTABLISHED: u32 = 1 << 1;
const SYN_SENT: u32 = 1 << 2;

/// `struct inet_diag_sockid`: ports, addresses, interface, cookie.
const ID: usize = 48;
/// `struct inet_diag_msg` up to its attributes.
const MESSAGE: usize = 72;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
pub(super) const ADDRESS_FAMILIES: [u8; 2] = [AF_INET, AF_INET6];
const UDP: u8 = 17;
const TCP: u8 = 6;

/// A socket with a flow of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Connected {
    family: u8,
    protocol: u8,
    id: [u8; ID],
    /// What it dialled and got.
    pub(super) flow: Flow,
}

/// The list of the network namespace in which it was opened.
#[derive(Debug)]
pub(super) struct Diag(Netlink);

impl Diag {
    pub(super) fn open() -> io::Result<Self> {
        Netlink::open(NETLINK_SOCK_DIAG).map(Self)
    }

    /// The connected UDP sockets and the connecting TCP sockets with a flow of ours. Kernel: 5.7.
    pub(super) fn connected(&mut self, maps: Maps<'_>) -> io::Result<Vec<Connected>> {
        let mut found = Vec::new();
        for family in ADDRESS_FAMILIES {
            for id in self.connected_udp(family)? {
                let flow = bpf::lookup::<8, { size_of::<Flow>() }>(maps.by_cookie, &cookie(&id))?;
                let flow =
                    flow.and_then(|bytes| Flow::read_from_bytes(&bytes).ok()).filter(|flow| is_peer(flow, family, &id));
                found.extend(flow.map(|flow| Connected { family, protocol: UDP, id, flow }));
            }
            let mut question = request(family, TCP, SYN_SENT, &[0; ID]);
            question.extend(storage_request(maps.storage));
            found.extend(self.0.dump(SOCK_DIAG_BY_FAMILY, &question, |entry| Ok(read(entry, family)))?);
        }
        Ok(found)
    }

    pub(super) fn connected_udp(&mut self, family: u8) -> io::Result<Vec<[u8; ID]>> {
        let question = request(family, UDP, ESTABLISHED, &[0; ID]);
        self.0.dump(SOCK_DIAG_BY_FAMILY, &question, |entry| Ok(id(entry)))
    }

    /// Ends a socket: its owner gets ECONNABORTED. False if it is gone already. Kernel: 4.9 with INET_DIAG_DESTROY.
    pub(super) fn destroy(&mut self, socket: &Connected) -> io::Result<bool> {
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

fn storage_request(storage: BorrowedFd<'_>) -> Vec<u8> {
    let fd = storage.as_raw_fd().unsigned_abs().to_ne_bytes();
    attribute(INET_DIAG_REQ_SK_BPF_STORAGES, &attribute(SK_DIAG_BPF_STORAGE_REQ_MAP_FD, &fd))
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len().saturating_add(4)).unwrap_or(u16::MAX);
    let mut bytes = Vec::from(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes
}

/// The attributes in `bytes`, as far as they are well-formed.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk::<2>()?;
        let (kind, _) = rest.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes(*kind) & TYPE, value))
    })
}

fn inside(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

fn id(entry: &[u8]) -> Option<[u8; ID]> {
    entry.get(4..4 + ID)?.try_into().ok()
}

/// A socket's cookie, the last of its id.
pub(super) fn cookie(id: &[u8; ID]) -> [u8; 8] {
    id.last_chunk::<8>().copied().unwrap_or_default()
}

/// Whether the socket is still connected to the endpoint that it got: it may have connected again since.
fn is_peer(flow: &Flow, family: u8, id: &[u8; ID]) -> bool {
    let Flow { backend: [a, b, c, d], backend_port, .. } = *flow;
    let words: &[u32] = if family == AF_INET { &[d] } else { &[a, b, c, d] };
    let address: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    // Ports 2 + 2 and the source address 16 come before the destination.
    id.get(2..4) == Some(&backend_port.to_ne_bytes()[..]) && id.get(20..20 + address.len()) == Some(&address[..])
}

/// What an entry of the list of TCP sockets says, if it has a flow of ours.
fn read(entry: &[u8], family: u8) -> Option<Connected> {
    let id = id(entry)?;
    let storages = inside(entry.get(MESSAGE..)?, INET_DIAG_SK_BPF_STORAGES)?;
    let storage = inside(storages, SK_DIAG_BPF_STORAGE)?;
    let flow = Flow::read_from_bytes(inside(storage, SK_DIAG_BPF_STORAGE_MAP_VALUE)?).ok()?;
    let ours = flow.frontend_port != 0 && is_peer(&flow, family, &id);
    ours.then_some(Connected { family, protocol: TCP, id, flow })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Linux 6.18 lists for a socket that dialled port 53 of 10.96.0.10 and got port 80 of 10.9.0.2, in three parts: what
    /// comes before the storage, the storage with its map's id, and the value.
    const ENTRY: [&str; 3] = [
        "02020100a7e400500a0900010000000000000000000000000a0900020000000000000000000000000000000041c40400\
         00000000e403000000000000010000000000000088c02300050008000000000008000f00000000000c00150001000000\
         000000000600160052000000",
        "400014803c00018008000200ef0c000030000300",
        "00000000000000000000ffff0a60000a00000000000000000000ffff0a090002003500500500100000000000",
    ];

    fn entry(value: &str) -> Vec<u8> {
        let hex = [ENTRY[0], ENTRY[1], value].concat();
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn a_socket_is_listed_with_its_flow() {
        let found = read(&entry(ENTRY[2]), AF_INET).unwrap();
        assert_eq!((found.family, found.protocol, cookie(&found.id)), (2, 6, 0x4_c441_u64.to_ne_bytes()));
        let mapped = |ip: [u8; 4]| proxy_abi::mapped(u32::from_ne_bytes(ip));
        let flow = Flow {
            frontend: mapped([10, 96, 0, 10]),
            backend: mapped([10, 9, 0, 2]),
            frontend_port: 53_u16.to_be(),
            backend_port: 80_u16.to_be(),
            reference: proxy_abi::BackendRef::new(5, 1).0,
            service: 0,
        };
        assert_eq!(found.flow, flow);
    }

    #[test]
    fn sockets_without_a_flow_and_broken_entries_are_left_out() {
        let whole = entry(ENTRY[2]);
        for length in 0..whole.len() {
            assert_eq!(read(&whole[..length], AF_INET), None, "cut at {length}");
        }
        assert_eq!(read(&entry(&ENTRY[2].replace("00350050", "00000050")), AF_INET), None, "unused");
        assert_eq!(read(&entry(&ENTRY[2].replace("00350050", "00350051")), AF_INET), None, "connected elsewhere");
    }

    #[test]
    fn a_udp_socket_is_ours_while_it_is_connected_to_what_it_got() {
        let mut id = [0; ID];
        id[2..4].copy_from_slice(&8080_u16.to_be_bytes());
        id[20..24].copy_from_slice(&[10, 1, 0, 7]);
        id[40..].copy_from_slice(&77_u64.to_ne_bytes());
        let backend = proxy_abi::mapped(u32::from_ne_bytes([10, 1, 0, 7]));
        let flow = Flow { backend, backend_port: 8080_u16.to_be(), frontend_port: 80, ..Flow::default() };
        assert!(is_peer(&flow, AF_INET, &id));
        assert!(!is_peer(&Flow { backend_port: 80, ..flow }, AF_INET, &id));
        assert!(!is_peer(&flow, AF_INET6, &id), "an IPv6 socket has the mapped address");
        assert_eq!(u64::from_ne_bytes(cookie(&id)), 77);
    }

    #[test]
    fn a_question_has_the_kernels_layout() {
        let question = request(2, 17, ESTABLISHED, &[1; ID]);
        assert_eq!((question.len(), &question[..8]), (56, &[2, 17, 0, 0, 2, 0, 0, 0][..]));
        assert_eq!(attribute(2, &attribute(1, &[4, 0, 0, 0])), [12, 0, 2, 0, 8, 0, 1, 0, 4, 0, 0, 0]);
    }
}
