//! The one list of what the daemon makes on its host beside its pins. A start that fails takes back what it made and
//! nobody has used yet, and `shunt cleanup` removes all of it.
//!
//! Not in the list, and why: the BPF file system that the daemon mounts where every other tool expects it; the limits
//! and the OOM score of its own process; and the API server's addresses in the state directory, without which a node
//! that has no other proxy could not find the API server again after a cleanup.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use shunt_model::with_causes;
use tracing::{info, warn};

use crate::control;
use crate::datapath::{self, HostOptions, Part, RemoveError};
use crate::dns::addresses::{self, AddressError};

/// A kind of thing that `shunt cleanup` finds by the mark or the place that all of its kind have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Addresses of the bundled DNS on `lo`.
    DnsAddresses,
    /// The control socket of a daemon that was killed; one that ends removes it itself.
    ControlSocket,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::DnsAddresses, Self::ControlSocket];

    /// Removes all things of this kind, in the lifetime of whichever daemon they were made, and returns what they were.
    pub async fn remove(self, control_socket: &Path) -> Result<Vec<String>, MadeError> {
        match self {
            Self::DnsAddresses => {
                let removed = addresses::remove().await.map_err(MadeError::Address)?;
                Ok(removed.iter().map(|address| format!("{address} from lo")).collect())
            }
            Self::ControlSocket => {
                let failed = |source| MadeError::ControlSocket { path: control_socket.to_owned(), source };
                let removed = control::remove_stale(control_socket).map_err(failed)?;
                Ok(removed.then(|| format!("the control socket {}", control_socket.display())).into_iter().collect())
            }
        }
    }
}

/// One thing that a start made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Made {
    /// An address of the bundled DNS on `lo`.
    DnsAddress(IpAddr),
    /// The BPF root, which was missing, so all that is pinned below it is of this start.
    BpfRoot(PathBuf),
}

/// Something cannot be removed.
#[derive(Debug, thiserror::Error)]
pub enum MadeError {
    /// An address.
    #[error("removing the DNS address")]
    Address(#[source] AddressError),
    /// The control socket.
    #[error("removing the control socket {}", .path.display())]
    ControlSocket {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Pins.
    #[error(transparent)]
    Pins(#[from] RemoveError),
}

impl Made {
    async fn remove(&self) -> Result<(), MadeError> {
        match self {
            Self::DnsAddress(address) => addresses::take_back(*address).await.map_err(MadeError::Address),
            Self::BpfRoot(root) => {
                let host = HostOptions { cgroup_root: None, bpf_root: root.clone() };
                datapath::remove(Part::Programs, &host)?;
                datapath::remove(Part::Sockets, &host)?;
                Ok(())
            }
        }
    }
}

impl std::fmt::Display for Made {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::DnsAddress(address) => write!(f, "{address} on lo"),
            Self::BpfRoot(root) => write!(f, "what is pinned below {}", root.display()),
        }
    }
}

/// What this start has made so far.
#[derive(Debug, Default)]
pub struct Ledger(Vec<Made>);

impl Ledger {
    /// Notes a thing that is about to be made, so that it is known also if the start ends while it is made.
    pub fn note(&mut self, made: Made) {
        self.0.push(made);
    }

    /// Removes everything again that is not `in_use`, the last thing first.
    pub async fn take_back(self, in_use: InUse) {
        for made in self.0.iter().rev() {
            if let Some(why) = in_use.why_kept(made) {
                warn!(
                    "{made} was made by this start, which has failed or was stopped, and stays: {why}; shunt cleanup removes it"
                );
                continue;
            }
            match made.remove().await {
                Ok(()) => info!("took back {made}: this start ends before anybody has used it"),
                Err(error) => warn!(
                    reason = with_causes(&error),
                    "{made} was made by this start and cannot be taken back; shunt cleanup removes it"
                ),
            }
        }
    }
}

/// What of a start that did not come to its end is in use all the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InUse {
    /// DNS was asked while the start waited for the cluster (DNS-11.2). Without the address later queries would leave
    /// the node in silence; with it they are refused, or wait in a socket that is kept.
    pub dns: bool,
    /// The data path is still being opened, and what is removed now might be made again.
    pub datapath: bool,
}

impl InUse {
    fn why_kept(self, made: &Made) -> Option<&'static str> {
        match made {
            Made::DnsAddress(_) => self.dns.then_some("DNS was asked there"),
            Made::BpfRoot(_) => self.datapath.then_some("the data path is still being opened"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_is_not_taken_back() {
        let (address, root) = (Made::DnsAddress("169.254.20.10".parse().unwrap()), Made::BpfRoot("/bpf".into()));
        let kept = |dns, datapath| [&address, &root].map(|made| InUse { dns, datapath }.why_kept(made).is_some());
        assert_eq!(kept(false, false), [false, false]);
        assert_eq!(kept(true, false), [true, false]);
        assert_eq!(kept(false, true), [false, true]);
    }
}
