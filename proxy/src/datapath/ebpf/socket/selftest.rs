//! Tests that the hooks are in effect for this process, without sending a packet (DP-14).
//!
//! A UDP socket connects to a frontend that leads to loopback; its peer address shows whether the programs ran.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use super::super::SELF_TEST;

/// Why the self-test failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum SelfTestError {
    /// The connect hook did nothing.
    #[error(
        "the connect hook is not in effect for this process (cgroup {cgroup}): a socket that dialled {dialled} was left \
         alone; is --cgroup-root above that cgroup, and the cgroup2 root of the host?"
    )]
    NotTranslated {
        /// Own cgroup.
        cgroup: String,
        /// What was dialled.
        dialled: SocketAddr,
    },
    /// The socket got another peer.
    #[error(
        "a socket that dialled {dialled} ended up at {peer}: another program at the same hook changes addresses too"
    )]
    Elsewhere {
        /// What was dialled.
        dialled: SocketAddr,
        /// What `getpeername` says.
        peer: SocketAddr,
    },
    /// There is no loopback address to test with.
    #[error("no loopback address of this network namespace can be reached: is lo up?")]
    NoLoopback,
    /// The call failed.
    #[error("connecting to {dialled}, which leads to loopback while the programs run")]
    Connect {
        /// What was dialled.
        dialled: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Dials both families, without one that this host does not have.
pub(super) fn probe() -> Result<(), SelfTestError> {
    let mut possible = SELF_TEST.into_iter().filter(has_family).peekable();
    if possible.peek().is_none() {
        return Err(SelfTestError::NoLoopback);
    }
    possible.try_for_each(probe_one)
}

fn socket(like: &SocketAddr) -> io::Result<UdpSocket> {
    match like {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)),
    }
}

/// Whether a socket can reach the loopback address that the frontend leads to.
fn has_family(probe: &SocketAddr) -> bool {
    let loopback = match probe {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, probe.port())),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::LOCALHOST, probe.port())),
    };
    socket(probe).and_then(|socket| socket.connect(loopback)).is_ok()
}

fn probe_one(dialled: SocketAddr) -> Result<(), SelfTestError> {
    let failed = |source| SelfTestError::Connect { dialled, source };
    let left_alone = || SelfTestError::NotTranslated { cgroup: own_cgroup(), dialled };
    let socket = socket(&dialled).map_err(failed)?;
    match socket.connect(dialled) {
        Ok(()) => {}
        // Without the hook this is a route that most hosts lack.
        Err(error) if matches!(error.kind(), io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable) => {
            return Err(left_alone());
        }
        Err(error) => return Err(failed(error)),
    }
    if !socket.local_addr().map_err(failed)?.ip().is_loopback() {
        return Err(left_alone());
    }
    let peer = socket.peer_addr().map_err(failed)?;
    if peer == dialled { Ok(()) } else { Err(SelfTestError::Elsewhere { dialled, peer }) }
}

/// The cgroup v2 path of this process, as the kernel shows it here.
fn own_cgroup() -> String {
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = text.lines().find_map(|line| line.strip_prefix("0::"));
    path.unwrap_or("unknown").to_owned()
}
