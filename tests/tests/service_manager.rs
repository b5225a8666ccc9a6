//! A service manager that keeps the sockets of DNS while no daemon runs, as systemd does with its store.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed, its helpers included"
)]

mod cluster;
mod support;

use std::io::IoSliceMut;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cluster::{CLUSTER_DNS, Cluster, Shop};
use lab::Process;
use lab::manifests::PodState;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

const PATIENCE: Duration = Duration::from_secs(20);
const DNS: &str = "169.254.20.10:53";
/// Where descriptors are moved to first, so that none is overwritten when they are passed from 3 on.
const HIGH: usize = 200;

/// What the daemon has asked to be kept, under a path that takes its messages.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(directory: &Path) -> Self {
        let path = directory.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, path }
    }

    /// The descriptors of the next message that has any. They stay open, and are inherited.
    fn kept(&self) -> Vec<RawFd> {
        loop {
            let mut text = [0; 512];
            let mut space = nix::cmsg_space!([RawFd; 64]);
            let mut into = [IoSliceMut::new(&mut text)];
            let raw = self.socket.as_raw_fd();
            let message = recvmsg::<()>(raw, &mut into, Some(&mut space), MsgFlags::empty()).unwrap();
            let of = |control| if let ControlMessageOwned::ScmRights(fds) = control { fds } else { Vec::new() };
            let fds: Vec<RawFd> = message.cmsgs().unwrap().flat_map(of).collect();
            if !fds.is_empty() {
                return fds;
            }
        }
    }
}

/// Starts the daemon as a service manager does: the descriptors from 3 on. It is told of `missing` more.
fn start(cluster: &Cluster, manager: &Manager, line: &[String], kept: &[RawFd], missing: usize) -> Process {
    let notify = format!("NOTIFY_SOCKET={}", manager.path.display());
    let up = kept.iter().enumerate().map(|(at, fd)| format!("exec {}<&{fd} {fd}<&-; ", HIGH + at));
    let passed = (0..kept.len()).map(|at| format!("exec {}<&{} {}<&-; ", at + 3, HIGH + at, HIGH + at));
    let count = kept.len() + missing;
    let names = vec!["shunt-dns"; count].join(":");
    let script = format!(
        "{}export LISTEN_PID=$$ LISTEN_FDS={count} LISTEN_FDNAMES={names} {notify}; exec \"$@\"",
        up.chain(passed).collect::<String>()
    );
    let before = ["bash", "-c", &script, "bash"].map(str::to_owned);
    cluster.node.spawn(&[before.as_slice(), line].concat()).unwrap()
}

fn wait_ready(cluster: &Cluster, process: &mut Process) {
    cluster.wait_for("the daemon to be ready", || {
        assert!(process.is_running().unwrap(), "{}", std::fs::read_to_string(process.log()).unwrap());
        cluster.daemon().health("/readyz").is_ok_and(|answer| answer.status == 200)
    });
}

/// A question for the address of the Service, as on the wire.
fn question(name: &str) -> Vec<u8> {
    let mut wire = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        wire.push(u8::try_from(label.len()).unwrap());
        wire.extend(label.as_bytes());
    }
    wire.extend([0, 0, 1, 0, 1]);
    wire
}

/// Bytes that wait in the sockets of port 53 in the node's namespace.
fn waiting(cluster: &Cluster) -> u64 {
    let read = || Ok(std::fs::read_to_string("/proc/thread-self/net/udp")?);
    let table = cluster.node.in_netns(read).unwrap();
    let queue = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words[1].ends_with(":0035").then(|| u64::from_str_radix(words[4].split(':').nth(1).unwrap(), 16).unwrap())
    };
    table.lines().skip(1).filter_map(queue).sum()
}

/// The command line of the cluster's daemon, which is stopped.
fn command_line(cluster: &Cluster) -> Vec<String> {
    let line = std::fs::read_to_string(format!("/proc/{}/cmdline", cluster.daemon().process().pid())).unwrap();
    assert!(cluster.daemon().stop().unwrap().success());
    line.split_terminator('\0').map(str::to_owned).collect()
}

#[test]
fn queries_wait_for_the_next_daemon_in_sockets_that_are_kept() {
    let Some(cluster) = Cluster::alone("fdstore") else { return };
    let shop = Shop::open(&cluster, "web", &[PodState::Ready]);
    let line = command_line(&cluster);
    let manager = Manager::new(cluster.manifests.directory().parent().unwrap());
    let mut first = start(&cluster, &manager, &line, &[], 0);
    let kept = manager.kept();
    wait_ready(&cluster, &mut first);
    first.kill9().unwrap();

    let to: SocketAddr = DNS.parse().unwrap();
    let client = cluster.node.in_netns(|| Ok(UdpSocket::bind("0.0.0.0:0")?)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.connect(to).unwrap();
    client.send(&question("web.test.svc.cluster.local")).unwrap();
    cluster.wait_for("the query to wait in a socket", || waiting(&cluster) > 0);
    let mut second = start(&cluster, &manager, &line, &kept, 20);
    let mut reply = [0; 512];
    let length = client.recv(&mut reply).unwrap();
    let address: Vec<u8> = shop.addresses()[0].ip().to_string().split('.').map(|part| part.parse().unwrap()).collect();
    assert!(reply[..length].ends_with(&address), "{:x?}", &reply[..length]);
    wait_ready(&cluster, &mut second);
    assert_eq!(manager.kept().len(), kept.len(), "they are kept for the next one, and no others");
    // It took nothing of its own for what was announced and not passed, such as the lock.
    let third = cluster.node.spawn(&line).unwrap().finish(PATIENCE).unwrap();
    assert_eq!(third.status.code(), Some(1));
    assert!(second.is_running().unwrap());
}

#[test]
fn sockets_that_only_an_earlier_daemon_used_may_close_at_any_time() {
    let Some(cluster) = Cluster::alone("surplus") else { return };
    let shop = Shop::open(&cluster, "web", &[PodState::Ready]);
    let _old = cluster.old_dns();
    let line = command_line(&cluster);
    let manager = Manager::new(cluster.manifests.directory().parent().unwrap());
    let mut first = start(&cluster, &manager, &line, &[], 0);
    let kept = manager.kept();
    wait_ready(&cluster, &mut first);
    first.kill9().unwrap();

    let mut fewer = line;
    let bind = fewer.iter_mut().find(|word| word.starts_with("--dns-bind-address=")).unwrap();
    "--dns-bind-address=169.254.20.10".clone_into(bind);
    let mut second = start(&cluster, &manager, &fewer, &kept, 0);
    assert!(manager.kept().len() < kept.len());
    wait_ready(&cluster, &mut second);
    let ours = shop.addresses()[0].ip().to_string();
    let asked = || shop.client.resolve("web.test.svc.cluster.local", "A", CLUSTER_DNS);
    let answer = || asked().map(|answer| answer.data().join(" ")).unwrap_or_default();
    cluster.wait_for("the second daemon to answer", || answer() == ours);
    // As systemd does, which was asked to forget them.
    kept.into_iter().for_each(|fd| nix::unistd::close(fd).unwrap());
    for _ in 0..20 {
        assert_eq!(answer(), ours, "clients are led to the cluster's own DNS though ours serves");
    }
}
