//! With sockets in namespaces made for the test, on threads of its own; these need root.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::Command;
use std::thread;
use std::time::Duration;

use aya::EbpfLoader;
use aya::maps::{Map, MapData};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};

use super::super::super::OBJECT;
use super::diag::{ADDRESS_FAMILIES, cookie};
use super::*;
use crate::host::netns::inventory;
use crate::host::netns::tests::is_root;
use crate::sys::bpf;

const FRONTEND: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 96, 0, 10];
/// Sockets with this reference lost their backend.
const GONE: BackendRef = BackendRef::new(5, 1);
const ALIVE: BackendRef = BackendRef::new(6, 1);

/// Loopback, and an interface whose other end hears nothing that is sent to 10.9.0.2.
const LINKS: [&str; 6] = [
    "link set lo up",
    "link add here type veth peer name there",
    "address add 10.9.0.1/24 dev here",
    "link set here up",
    "link set there up",
    "neighbour add 10.9.0.2 lladdr 02:00:00:00:00:02 dev here nud permanent",
];

fn in_a_namespace<T: Send>(test: &str, work: impl FnOnce() -> T + Send) -> Option<T> {
    if !is_root(test) {
        return None;
    }
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        for arguments in LINKS {
            let status = Command::new("ip").args(arguments.split(' ')).status();
            assert!(status.unwrap().success(), "ip {arguments}");
        }
        work()
    };
    Some(thread::scope(|scope| scope.spawn(inside).join().unwrap()))
}

/// The maps in which the programs keep flows; nothing is attached.
struct Kept {
    storage: MapData,
    by_cookie: MapData,
}

impl Kept {
    #[expect(clippy::print_stderr, reason = "a skipped test must be seen")]
    fn create(test: &str) -> Option<Self> {
        if OBJECT.is_empty() {
            eprintln!("SKIPPED {test}: built without BPF programs (cargo xtask build)");
            return None;
        }
        let mut ebpf = EbpfLoader::new().load(OBJECT).unwrap();
        let (Some(Map::SkStorage(storage)), Some(Map::LruHashMap(by_cookie))) =
            (ebpf.take_map("PEER"), ebpf.take_map("CONNECTED"))
        else {
            panic!("the object has other maps")
        };
        Some(Self { storage, by_cookie })
    }

    fn maps(&self) -> Maps<'_> {
        Maps { storage: self.storage.fd().as_fd(), by_cookie: self.by_cookie.fd().as_fd() }
    }

    /// What the programs write at `connect()`.
    fn remember_tcp(&self, socket: &TcpStream, backend: &str, reference: BackendRef) {
        bpf::update(self.maps().storage, &socket.as_raw_fd().to_ne_bytes(), &flow(backend, reference)).unwrap();
    }

    fn remember_udp(&self, socket: &UdpSocket, backend: &str, reference: BackendRef) {
        let port = socket.local_addr().unwrap().port().to_be_bytes();
        let mut diag = diag::Diag::open().unwrap();
        let all: Vec<_> = ADDRESS_FAMILIES.into_iter().flat_map(|family| diag.connected_udp(family).unwrap()).collect();
        let id = all.iter().find(|id| id[..2] == port).unwrap();
        bpf::update(self.maps().by_cookie, &cookie(id), &flow(backend, reference)).unwrap();
    }
}

fn flow(backend: &str, reference: BackendRef) -> [u8; 44] {
    let backend: SocketAddr = backend.parse().unwrap();
    let ip = match backend.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut bytes = [0; 44];
    bytes[..16].copy_from_slice(&FRONTEND);
    bytes[16..32].copy_from_slice(&ip.octets());
    bytes[32..34].copy_from_slice(&53_u16.to_be_bytes());
    bytes[34..36].copy_from_slice(&backend.port().to_be_bytes());
    bytes[36..40].copy_from_slice(&reference.0.to_ne_bytes());
    bytes
}

fn udp(local: &str, peer: &str) -> UdpSocket {
    let socket = UdpSocket::bind(local).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    socket.connect(peer).unwrap();
    socket
}

/// A TCP socket whose first segment is lost.
fn waiting(peer: &str) -> TcpStream {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).unwrap();
    let peer = SockaddrStorage::from(peer.parse::<SocketAddr>().unwrap());
    assert_eq!(connect(socket.as_raw_fd(), &peer), Err(Errno::EINPROGRESS));
    TcpStream::from(socket)
}

#[track_caller]
fn check_ended(socket: &UdpSocket, ended: bool) {
    let kind = socket.recv(&mut [0]).unwrap_err().kind();
    assert_eq!(kind, if ended { ErrorKind::ConnectionAborted } else { ErrorKind::WouldBlock });
}

#[test]
fn sockets_whose_backend_left_are_destroyed_and_no_others() {
    const TEST: &str = "sockets_whose_backend_left_are_destroyed_and_no_others";
    let Some(kept) = Kept::create(TEST).filter(|_| is_root(TEST)) else { return };
    in_a_namespace(TEST, || {
        let socket = |local: &str, peer: &str, backend: &str, reference: BackendRef| {
            let socket = udp(local, peer);
            kept.remember_udp(&socket, backend, reference);
            socket
        };
        let four = socket("127.0.0.1:0", "127.0.0.1:9", "127.0.0.1:9", GONE);
        let six = socket("[::1]:0", "[::1]:9", "[::1]:9", GONE);
        let mapped = socket("[::]:0", "[::ffff:127.0.0.1]:9", "127.0.0.1:9", GONE);
        let served = socket("127.0.0.1:0", "127.0.0.1:9", "127.0.0.1:9", ALIVE);
        let elsewhere = socket("127.0.0.1:0", "127.0.0.1:7", "127.0.0.1:9", GONE);
        let direct = udp("127.0.0.1:0", "127.0.0.1:9");
        let (opening, opening_served) = (waiting("10.9.0.2:80"), waiting("10.9.0.2:80"));
        kept.remember_tcp(&opening, "10.9.0.2:80", GONE);
        kept.remember_tcp(&opening_served, "10.9.0.2:80", ALIVE);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let established = TcpStream::connect(server).unwrap();
        kept.remember_tcp(&established, &server.to_string(), GONE);

        let proc = tempfile::tempdir().unwrap();
        let here = inventory(proc.path(), &[]).unwrap().namespaces;
        // References of both families are the same numbers.
        let swept = sweep(&here, kept.maps(), &|family, reference| reference != GONE || family == Family::V6);
        assert_eq!(swept, Swept { examined: 6, destroyed: 3, failed: Vec::new() });
        check_ended(&four, true);
        check_ended(&mapped, true);
        for untouched in [&six, &served, &elsewhere, &direct] {
            check_ended(untouched, false);
        }
        assert_eq!(opening.take_error().unwrap().unwrap().kind(), ErrorKind::ConnectionAborted);
        assert!(opening_served.take_error().unwrap().is_none());
        assert!(established.take_error().unwrap().is_none());

        let swept = sweep(&here, kept.maps(), &|_, reference| reference != GONE);
        assert_eq!(swept, Swept { examined: 3, destroyed: 1, failed: Vec::new() });
        check_ended(&six, true);
    });
}

#[test]
fn a_namespace_that_vanished_is_no_failure_and_one_that_cannot_be_listed_is() {
    const TEST: &str = "a_namespace_that_vanished_is_no_failure_and_one_that_cannot_be_listed_is";
    let proc = tempfile::tempdir().unwrap();
    let not_a_map = std::fs::File::open(proc.path()).unwrap();
    let maps = Maps { storage: not_a_map.as_fd(), by_cookie: not_a_map.as_fd() };
    let found = in_a_namespace(TEST, || {
        let here = inventory(proc.path(), &[]).unwrap().namespaces;
        let swept = sweep(&here, maps, &|_, _| true);
        assert_eq!(swept.failed.first().map(|(cookie, _)| *cookie), Some(here[0].cookie));
        assert!(swept.failed[0].1.starts_with("listing its sockets"), "{swept:?}");
        here
    });
    let Some(gone) = found else { return };
    assert_eq!(sweep(&gone, maps, &|_, _| true), Swept::default());
}
