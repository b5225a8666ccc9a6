//! The one list of what the daemon makes on its host beside its pins. A start that fails takes back what it made, and
//! `shunt cleanup` removes all of it.
//!
//! Not in the list, and why: the BPF file system that the daemon mounts where every other tool expects it; the limits and
//! the OOM score of its own process; and the API server's addresses in the state directory, without which a node that
//! has no other proxy could not find the API server again after a cleanup.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use shunt_model::with_causes;
use tracing::{info, warn};

use crate::control;
use crate::datapath::{self, HostOptions, Mode, RemoveError};
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
                for mode in Mode::ALL {
                    datapath::remove(mode, &host)?;
                }
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

    /// Removes everything again, the last thing first: the start did not come so far that anything of it serves.
    pub async fn take_back(self) {
        for made in self.0.iter().rev() {
            match made.remove().await {
                Ok(()) => info!("took back {made}: this start ends before anything serves"),
                Err(error) => warn!(
                    reason = with_causes(&error),
                    "{made} was made by this start and cannot be taken back; shunt cleanup removes it"
                ),
            }
        }
    }
}
