//! The only code that writes to the kernel. Every data path takes the whole plan and writes the difference.

pub mod ebpf;
pub mod reading;

use crate::plan::{Plan, PortKey};

/// A way to carry out a [`Plan`].
pub trait Datapath: Send {
    /// The word for logs, metrics and `/proxyMode`.
    fn mode(&self) -> &'static str;

    /// Makes the kernel do what `plan` says, writing only what differs from what it does already. Idempotent: a second
    /// call with an equal plan writes nothing. After an error the next call reads the kernel back first.
    fn sync(&mut self, plan: &Plan) -> Result<Synced, SyncError>;

    /// Compares a small part of the kernel with what the last sync left there and repairs what differs; the next call
    /// looks at the next part. Returns how many elements were repaired.
    fn audit(&mut self) -> Result<u64, SyncError>;
}

/// What one [`Datapath::sync`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// Map elements or rules written, removals included.
    pub writes: u64,
    /// Service ports that could not be programmed (all others are), with the reason. They are tried again at every sync.
    pub refused: Vec<(PortKey, String)>,
    /// How many endpoints were told to be gone: sockets may still hang on them.
    pub departed: u64,
}

/// Why a sync failed as a whole; the former state stays in force for whatever was not reached.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The kernel refused a write.
    #[error("writing {object}")]
    Write {
        /// The map or table.
        object: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The kernel refused to give back what is installed.
    #[error("reading back {object}")]
    Read {
        /// The map or table.
        object: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}
