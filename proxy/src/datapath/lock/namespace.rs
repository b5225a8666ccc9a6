//! The lock on the rules for packets of a network namespace: one daemon at a time writes them.
//!
//! It is a listening socket with an abstract name: such names belong to a network namespace as rules do, need no file
//! system, and the kernel frees them with the process, also after SIGKILL.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::Holder;

const NAME: &str = "shunt/packets";

/// The lock, held until it is dropped.
#[derive(Debug)]
pub(super) struct NamespaceLock {
    _listener: UnixListener,
}

/// Why the lock cannot be had.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Another process has it.
    Held(Holder),
    /// What the kernel said.
    Failed(io::Error),
}

impl NamespaceLock {
    /// Takes the lock of the network namespace of this thread.
    pub(super) fn take() -> Result<Self, Refusal> {
        let address = SocketAddr::from_abstract_name(NAME).map_err(Refusal::Failed)?;
        match UnixListener::bind_addr(&address) {
            Ok(listener) => Ok(Self { _listener: listener }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(Refusal::Held(holder(&address))),
            Err(error) => Err(Refusal::Failed(error)),
        }
    }
}

/// The process that listens there; its id is 0 if it is in a PID namespace that this process does not see.
fn holder(address: &SocketAddr) -> Holder {
    let credentials = UnixStream::connect_addr(address).ok().and_then(|s| getsockopt(&s, PeerCredentials).ok());
    Holder(credentials.and_then(|credentials| u32::try_from(credentials.pid()).ok()).filter(|pid| *pid != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_is_refused_and_names_the_holder_until_the_first_is_gone() {
        // Other tests of this process may want the lock at the same time: whoever has it is this process.
        let first = NamespaceLock::take();
        let Err(Refusal::Held(holder)) = NamespaceLock::take() else { panic!("taken twice") };
        assert_eq!(holder, Holder(Some(std::process::id())));
        drop(first);
    }
}
