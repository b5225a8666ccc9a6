//! The embedded source: a folder of ordinary Kubernetes manifests.
//!
//! `folder` reads files, `parse` turns their text into Kubernetes objects, `object` into the model's, `assemble` joins
//! all files' objects into a snapshot (with `allocate` for cluster IPs and `derive` for endpoints), and `watch` keeps
//! it up to date. All but `folder` and `watch` are pure.

mod allocate;
mod assemble;
mod derive;
mod folder;
mod object;
mod parse;
mod watch;

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use crate::key::Family;
use crate::snapshot::Snapshot;
use crate::source::{Problem, Source};

/// What to read, and how to fill in what an API server would.
#[derive(Clone, Debug, Default)]
pub struct ManifestsOptions {
    /// The folder; `*.yaml`, `*.yml` and `*.json` directly in it are read.
    pub dir: PathBuf,
    /// Where cluster IPs are taken from, at most one network of each family; the first one's family is the default.
    pub service_cidrs: Vec<IpNet>,
    /// Addresses never handed out to a Service that does not ask for them by name, such as that of the cluster DNS.
    pub reserved: Vec<IpAddr>,
    /// Which annotations of Pods to keep, by key.
    pub pod_annotations: Vec<String>,
}

/// Why the folder cannot be a source at all.
#[derive(Debug, thiserror::Error)]
pub enum ManifestsError {
    /// It is missing, no folder, or unreadable.
    #[error("cannot read the manifests folder {}; create it, or name another with --manifests", .dir.display())]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Two networks of one family.
    #[error("--service-cidr names two {family} networks, {first} and {second}; give at most one of each family")]
    Networks {
        /// Their family.
        family: Family,
        /// The first one.
        first: IpNet,
        /// The second one.
        second: IpNet,
    },
    /// The kernel refuses to watch.
    #[error("cannot watch {}; raising fs.inotify.max_user_watches and max_user_instances usually helps", .dir.display())]
    Watch {
        /// The folder.
        dir: PathBuf,
        /// What the system says.
        #[source]
        source: notify::Error,
    },
    /// No thread to watch from.
    #[error("cannot start the thread that reads the manifests")]
    Thread {
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The thread ended before its first view.
    #[error("the thread that reads the manifests ended early; this is a bug of shunt")]
    Ended {
        /// Its channel closed.
        #[source]
        source: tokio::sync::oneshot::error::RecvError,
    },
}

/// Reads the folder once, for a look at it without a daemon.
pub fn read(options: &ManifestsOptions) -> Result<(Snapshot, Vec<Problem>), ManifestsError> {
    check(options)?;
    let mut folder = folder::Folder::new(options);
    folder.load().map_err(|source| ManifestsError::Folder { dir: options.dir.clone(), source })?;
    Ok((folder.assembly.settle(), folder.assembly.problems()))
}

/// Reads the folder and keeps watching it; returns with the first complete view.
pub async fn start(options: ManifestsOptions) -> Result<Source, ManifestsError> {
    check(&options)?;
    watch::start(options).await
}

fn check(options: &ManifestsOptions) -> Result<(), ManifestsError> {
    for family in Family::BOTH {
        let mut networks = options.service_cidrs.iter().filter(|network| Family::of(&network.addr()) == family);
        if let (Some(first), Some(second)) = (networks.next(), networks.next()) {
            return Err(ManifestsError::Networks { family, first: *first, second: *second });
        }
    }
    Ok(())
}
