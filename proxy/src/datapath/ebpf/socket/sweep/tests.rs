//! With sockets in namespaces made for the test, on threads of its own, and with maps pinned for the test; these need
//! root.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
use proxy_abi::{BackendRef, SourceNat, Standing, Terms};
use shunt_model::{Family, Protocol};
use zerocopy::IntoBytes as _;

use super::super::super::layout::Write;
use super::super::super::layout::write::{FrontendKey, backend};
use super::super::super::tables::kernel::Tables;
use super::super::super::{OBJECT, pins};
use super::super::programs::Loaded;
use super::*;
use crate::host::netns::inventory;
use crate::host::netns::tests::is_root;

/// What the sockets dialled.
const FRONTEND: &str = "10.96.0.10:53";
/// Where it leads.
const SERVICE: u32 = 3;
/// Sockets with this reference lost their backend.
const GONE: BackendRef = BackendRef::new(5, 1);
const ALIVE: BackendRef = BackendRef::new(6, 1);
/// Serves another service port.
const OTHER: BackendRef = BackendRef::new(7, 1);

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

/// Pinned maps with the programs that list flows; nothing is attached.
struct Kernel {
    root: PathBuf,
    sweeper: Sweeper,
    tables: Tables,
}

impl Kernel {
    #[expect(clippy::print_stderr, reason = "a skipped test must be seen")]
    fn create(test: &str) -> Option<Self> {
        if OBJECT.is_empty() {
            eprintln!("SKIPPED {test}: built without BPF programs (cargo xtask build)");
            return None;
        }
        if !is_root(test) {
            return None;
        }
        let root = PathBuf::from(format!("/sys/fs/bpf/shunt-unit-{}-{test}", std::process::id()));
        let pins = Pins::create(&root).unwrap();
        let mut loaded = Loaded::load(OBJECT, &pins).unwrap();
        let lists = loaded.flow_lists().unwrap();
        // The root of the tree: sockets of all cgroups are served.
        let cgroup = crate::host::cgroup::discover().unwrap().path;
        let sweeper = Sweeper::open(&pins, lists, &cgroup).unwrap();
        let mut kernel = Self { root, sweeper, tables: Tables::open(&pins.maps).unwrap() };
        for (reference, service) in [(ALIVE, SERVICE), (OTHER, SERVICE + 1)] {
            for (family, ip) in [(Family::V4, "127.0.0.1:9"), (Family::V6, "[::1]:9")] {
                let standing = Standing::new(reference.generation(), service, true, true);
                kernel.write(&backend(family, ip.parse().unwrap(), reference, standing));
            }
            kernel.write(&Write::Terms { service, terms: Terms::new(service, 0, false, false) });
        }
        Some(kernel)
    }

    fn write(&mut self, write: &Write) {
        self.tables.write(write).unwrap();
        self.tables.flush().unwrap();
    }

    /// Makes a frontend lead to a service port with one endpoint.
    fn point(&mut self, frontend: &str, service: u32) {
        let to: SocketAddr = frontend.parse().unwrap();
        let key = FrontendKey::new(to.ip(), to.port().try_into().unwrap(), Protocol::Udp);
        self.write(&Write::Extent { service, extent: Extent::new(0, 1, 0) });
        self.write(&Write::Frontend {
            key,
            lead: Lead { service, local: false, filtered: false, falls_back: false, source_nat: SourceNat::default() },
        });
    }

    /// What the programs write at `connect()`.
    fn remember(&self, socket: &impl AsRawFd, protocol: u8, backend: &str, reference: BackendRef) {
        let (frontend, backend): (SocketAddr, SocketAddr) = (FRONTEND.parse().unwrap(), backend.parse().unwrap());
        let flow = Flow {
            frontend: address(frontend.ip()),
            backend: address(backend.ip()),
            frontend_port: frontend.port().to_be(),
            backend_port: backend.port().to_be(),
            reference: reference.0,
            origin: Flow::origin_of(protocol),
        };
        let bytes: [u8; size_of::<Flow>()] = flow.as_bytes().try_into().unwrap();
        bpf::update(self.sweeper.peers.as_fd(), &socket.as_raw_fd().to_ne_bytes(), &bytes).unwrap();
    }

    #[track_caller]
    fn check(&mut self, search: Search, ended: usize, destroyed: usize) {
        self.check_with(0, search, ended, destroyed);
    }

    /// So many namespaces of the node cannot be read.
    #[track_caller]
    fn check_with(&mut self, unreadable: usize, search: Search, ended: usize, destroyed: usize) {
        let proc = tempfile::tempdir().unwrap();
        let here = Inventory { unreadable, ..inventory(proc.path(), &[]).unwrap() };
        let swept = self.sweeper.sweep(&here, &|_| false, search);
        assert_eq!((swept.ended, swept.destroyed, swept.failed), (ended, destroyed, Vec::new()));
    }
}

impl Kernel {
    /// All flows so far were listed a moment earlier.
    fn let_time_pass(&mut self) {
        for looked in self.sweeper.looked.values_mut() {
            looked.since -= SECOND_LOOK;
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        pins::remove(&self.root, pins::Owner::Sockets).unwrap();
    }
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
fn sockets_whose_flow_has_ended_are_destroyed_and_no_others() {
    const TEST: &str = "ended";
    let Some(mut kernel) = Kernel::create(TEST) else { return };
    in_a_namespace(TEST, || {
        let socket = |local: &str, peer: &str, protocol: u8, backend: &str, reference: BackendRef| {
            let socket = udp(local, peer);
            kernel.remember(&socket, protocol, backend, reference);
            socket
        };
        let four = socket("127.0.0.1:0", "127.0.0.1:9", UDP, "127.0.0.1:9", GONE);
        let six = socket("[::1]:0", "[::1]:9", UDP, "[::1]:9", GONE);
        let mapped = socket("[::]:0", "[::ffff:127.0.0.1]:9", UDP, "127.0.0.1:9", GONE);
        let before_protocols_were_kept = socket("127.0.0.1:0", "127.0.0.1:9", 0, "127.0.0.1:9", GONE);
        let served = socket("127.0.0.1:0", "127.0.0.1:9", UDP, "127.0.0.1:9", ALIVE);
        let elsewhere = socket("127.0.0.1:0", "127.0.0.1:7", UDP, "127.0.0.1:9", GONE);
        let direct = udp("127.0.0.1:0", "127.0.0.1:9");
        let (opening, opening_served) = (waiting("10.9.0.2:80"), waiting("10.9.0.2:80"));
        kernel.remember(&opening, TCP, "10.9.0.2:80", GONE);
        kernel.remember(&opening_served, TCP, "10.9.0.2:80", ALIVE);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let established = TcpStream::connect(server).unwrap();
        kernel.remember(&established, TCP, &server.to_string(), GONE);

        // The answer of an endpoint that leaves may be on its way: whoever waits for it has until the second look,
        // however soon others come.
        kernel.check(Search::Ended, 7, 0);
        kernel.check(Search::Ended, 7, 0);
        check_ended(&four, false);
        assert!(opening.take_error().unwrap().is_none());
        kernel.let_time_pass();
        kernel.check(Search::Ended, 7, 5);
        for ended in [&four, &six, &mapped, &before_protocols_were_kept] {
            check_ended(ended, true);
        }
        assert_eq!(opening.take_error().unwrap().unwrap().kind(), ErrorKind::ConnectionAborted);
        for untouched in [&served, &elsewhere, &direct] {
            check_ended(untouched, false);
        }
        assert!(opening_served.take_error().unwrap().is_none());
        assert!(established.take_error().unwrap().is_none());
        // After a second look none of them is looked for again.
        kernel.check(Search::Ended, 0, 0);
    });
}

/// The kernel may leave a flow out of a list while other sockets come and go.
#[test]
fn a_flow_that_one_list_leaves_out_is_ended_at_the_next() {
    const TEST: &str = "leftout";
    let Some(mut kernel) = Kernel::create(TEST) else { return };
    in_a_namespace(TEST, || {
        let (socket, closed) = (udp("127.0.0.1:0", "127.0.0.1:9"), udp("127.0.0.1:0", "127.0.0.1:9"));
        let proc = tempfile::tempdir().unwrap();
        let here = inventory(proc.path(), &[]).unwrap();
        let check = |kernel: &mut Kernel, ended, pending, destroyed| {
            kernel.let_time_pass();
            let swept = kernel.sweeper.sweep(&here, &|_| false, Search::Ended);
            assert_eq!(swept, Swept { ended, pending, destroyed, failed: Vec::new() });
        };
        let leave_out = |kernel: &Kernel, socket: &UdpSocket| {
            bpf::delete(kernel.sweeper.peers.as_fd(), &socket.as_raw_fd().to_ne_bytes()).unwrap();
        };
        for socket in [&socket, &closed] {
            kernel.remember(socket, UDP, "127.0.0.1:9", GONE);
        }
        check(&mut kernel, 2, 2, 0);
        leave_out(&kernel, &socket);
        leave_out(&kernel, &closed);
        drop(closed);
        check(&mut kernel, 0, 2, 0);
        kernel.remember(&socket, UDP, "127.0.0.1:9", GONE);
        check(&mut kernel, 1, 0, 1);
        check_ended(&socket, true);
        // It is closed, which no further sweep waits for.
        leave_out(&kernel, &socket);
        check(&mut kernel, 0, 0, 0);
    });
}

#[test]
fn a_flow_ends_when_its_frontend_leads_to_another_service_port() {
    const TEST: &str = "moved";
    let Some(mut kernel) = Kernel::create(TEST) else { return };
    in_a_namespace(TEST, || {
        let socket = udp("127.0.0.1:0", "127.0.0.1:9");
        kernel.remember(&socket, UDP, "127.0.0.1:9", ALIVE);
        kernel.check(Search::Ended, 0, 0);
        kernel.point(FRONTEND, SERVICE);
        kernel.check(Search::EndedAndOlder, 0, 0);
        kernel.point(FRONTEND, SERVICE + 1);
        kernel.check(Search::Ended, 1, 0);
        kernel.let_time_pass();
        kernel.check(Search::Ended, 1, 1);
        check_ended(&socket, true);
    });
}

#[test]
fn a_namespace_that_cannot_be_read_costs_the_sockets_of_others_nothing() {
    const TEST: &str = "unreadable";
    let Some(mut kernel) = Kernel::create(TEST) else { return };
    in_a_namespace(TEST, || {
        let (socket, opening) = (udp("127.0.0.1:0", "127.0.0.1:9"), waiting("10.9.0.2:80"));
        kernel.remember(&socket, UDP, "127.0.0.1:9", GONE);
        kernel.remember(&opening, TCP, "10.9.0.2:80", GONE);
        kernel.check_with(1, Search::Ended, 2, 0);
        kernel.let_time_pass();
        kernel.check_with(1, Search::Ended, 2, 2);
        check_ended(&socket, true);
        assert_eq!(opening.take_error().unwrap().unwrap().kind(), ErrorKind::ConnectionAborted);
        // They may be in that namespace, for all that is known.
        kernel.check_with(1, Search::Ended, 2, 0);
    });
}

#[test]
fn a_socket_older_than_its_frontend_is_destroyed_when_that_has_an_endpoint() {
    const TEST: &str = "older";
    let Some(mut kernel) = Kernel::create(TEST) else { return };
    in_a_namespace(TEST, || {
        let older = udp("10.9.0.1:0", "10.9.0.2:53");
        let another_port = udp("10.9.0.1:0", "10.9.0.2:54");
        // Its endpoint happens to be a frontend as well.
        let with_flow = udp("10.9.0.1:0", "10.9.0.2:53");
        kernel.remember(&with_flow, UDP, "10.9.0.2:53", ALIVE);
        kernel.check(Search::EndedAndOlder, 0, 0);
        kernel.point("10.9.0.2:53", SERVICE);
        kernel.check(Search::Ended, 0, 0);
        kernel.write(&Write::Extent { service: SERVICE, extent: Extent::EMPTY });
        kernel.check(Search::EndedAndOlder, 0, 0);
        kernel.point("10.9.0.2:53", SERVICE);
        kernel.check(Search::EndedAndOlder, 0, 1);
        check_ended(&older, true);
        check_ended(&another_port, false);
        check_ended(&with_flow, false);
    });
}

#[test]
fn sockets_of_namespaces_that_opted_out_are_left_alone() {
    const TEST: &str = "optedout";
    let Some(mut kernel) = Kernel::create(TEST) else { return };
    in_a_namespace(TEST, || {
        let older = udp("10.9.0.1:0", "10.9.0.2:53");
        kernel.point("10.9.0.2:53", SERVICE);
        let proc = tempfile::tempdir().unwrap();
        let here = inventory(proc.path(), &[]).unwrap();
        assert_eq!(kernel.sweeper.sweep(&here, &|_| true, Search::EndedAndOlder), Swept::default());
        check_ended(&older, false);
    });
}

#[test]
fn a_namespace_that_vanished_is_no_failure() {
    const TEST: &str = "vanished";
    let Some(mut kernel) = Kernel::create(TEST) else { return };
    let proc = tempfile::tempdir().unwrap();
    let Some(gone) = in_a_namespace(TEST, || inventory(proc.path(), &[]).unwrap()) else { return };
    assert_eq!(kernel.sweeper.sweep(&gone, &|_| false, Search::EndedAndOlder), Swept::default());
}
