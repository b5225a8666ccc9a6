//! The endpoints of the API server, kept on disk: after a reboot nothing translates the Service address that a pod's
//! service account names, until this daemon has read the cluster.
//!
//! The file has addresses only, no credentials. It is of use only together with them, since the certificate of a server
//! must be the configured one's.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::key::{ObjectKey, Protocol};
use crate::snapshot::Snapshot;
use crate::with_causes;

/// The name in the state directory.
const FILE: &str = "api-servers.json";
/// How many endpoints are kept. Those that are gone come after those of today: an API server may come back to where it
/// once was.
const MOST: usize = 16;
/// After a write that failed: the disk may be full, or not mounted yet.
const RETRY: Duration = Duration::from_secs(60);

/// What is known of the API server's Service, `default/kubernetes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Known {
    /// Its cluster IPs.
    service: BTreeSet<IpAddr>,
    /// Where it is served, those of today first.
    endpoints: Vec<SocketAddr>,
}

/// Why the file cannot be used or written.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("{} cannot be read", .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is not what a daemon wrote, so it is ignored; the next view of the cluster replaces it", .path.display())]
    Content { path: PathBuf, source: serde_json::Error },
    #[error("{} cannot be written; make the directory writable, or name another with --state-dir", .path.display())]
    Write { path: PathBuf, source: std::io::Error },
}

/// What is known, in memory and on disk.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    file: Option<PathBuf>,
    known: Mutex<Known>,
    /// What is known is not on disk: writing it failed.
    unwritten: AtomicBool,
}

impl Remembered {
    /// Reads what is in `directory`; nothing without one.
    pub(super) fn load(directory: Option<&Path>) -> Self {
        let Some(directory) = directory else { return Self::default() };
        let file = directory.join(FILE);
        let known = read(&file).unwrap_or_else(|error| {
            tracing::warn!("{}", with_causes(&error));
            Known::default()
        });
        Self { file: Some(file), known: Mutex::new(known), unwritten: AtomicBool::new(false) }
    }

    /// Where else the API server may be found that is configured as `host`: nowhere unless that is the Service's
    /// address or name. Any other address was chosen by the operator.
    pub(super) fn endpoints_behind(&self, host: &str) -> Vec<SocketAddr> {
        let known = self.known();
        let is_service = match host.parse::<IpAddr>() {
            Ok(address) => known.service.contains(&address),
            Err(_) => is_service_name(host),
        };
        if is_service { known.endpoints.clone() } else { Vec::new() }
    }

    /// Follows the views of the cluster for ever.
    pub(super) async fn follow(self: Arc<Self>, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
        if self.file.is_none() {
            return;
        }
        loop {
            let news = self.news(&snapshots.borrow_and_update());
            if let Some(next) = news {
                let this = Arc::clone(&self);
                // A disk may take its time.
                if let Err(error) = tokio::task::spawn_blocking(move || this.take(next)).await {
                    tracing::error!(%error, "remembering the API server's endpoints failed; this is a bug of shunt");
                }
            }
            let changed = snapshots.changed();
            let changed = match self.unwritten.load(Ordering::Relaxed) {
                true => timeout(RETRY, changed).await.unwrap_or(Ok(())),
                false => changed.await,
            };
            if changed.is_err() {
                return;
            }
        }
    }

    /// What is known after this view, if it is another thing than before or not on disk.
    fn news(&self, snapshot: &Snapshot) -> Option<Known> {
        let now = seen(snapshot)?;
        let known = self.known();
        Some(known.followed_by(now)).filter(|next| *next != *known || self.unwritten.load(Ordering::Relaxed))
    }

    fn take(&self, next: Known) {
        let written = self.file.as_ref().map_or(Ok(()), |file| write(file, &next));
        *self.known() = next;
        let failed_before = self.unwritten.swap(written.is_err(), Ordering::Relaxed);
        match written {
            Err(error) if !failed_before => {
                let error = with_causes(&error);
                tracing::warn!("{error}; until it is, a reboot must find the API server without it; this is retried");
            }
            Err(error) => tracing::debug!("{}", with_causes(&error)),
            Ok(()) if failed_before => tracing::info!("the API server's endpoints are written to the disk again"),
            Ok(()) => {}
        }
    }

    /// Both, for tests.
    #[cfg(test)]
    pub(super) fn learn(&self, snapshot: &Snapshot) {
        if let Some(next) = self.news(snapshot) {
            self.take(next);
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// What is known after `now` was seen.
    fn followed_by(&self, now: Self) -> Self {
        let mut endpoints = now.endpoints;
        for former in &self.endpoints {
            if !endpoints.contains(former) {
                endpoints.push(*former);
            }
        }
        endpoints.truncate(MOST);
        Self { service: now.service, endpoints }
    }
}

/// `None` if this view does not say where the API server is.
fn seen(snapshot: &Snapshot) -> Option<Known> {
    let key = ObjectKey::new("default", "kubernetes");
    let service = snapshot.services.get(&key)?;
    let service: BTreeSet<IpAddr> = service.cluster_ips.addresses().iter().copied().collect();
    let mut endpoints = BTreeSet::new();
    for slice in snapshot.slices_of(&key) {
        let tcp = slice.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
        let ports: Vec<u16> = tcp.map(|port| port.port.get()).collect();
        for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.ready) {
            let addresses = endpoint.addresses.iter();
            endpoints.extend(addresses.flat_map(|address| ports.iter().map(|port| SocketAddr::new(*address, *port))));
        }
    }
    // Without an endpoint the last ones are the best guess.
    (!service.is_empty() && !endpoints.is_empty())
        .then(|| Known { service, endpoints: endpoints.into_iter().collect() })
}

/// `kubernetes.default.svc` and its shorter and longer forms.
fn is_service_name(host: &str) -> bool {
    let mut labels = host.trim_end_matches('.').split('.');
    labels.next() == Some("kubernetes")
        && labels.next().is_none_or(|label| label == "default")
        && labels.next().is_none_or(|label| label == "svc")
}

fn read(file: &Path) -> Result<Known, FileError> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Known::default()),
        Err(source) => return Err(FileError::Read { path: file.to_owned(), source }),
    };
    serde_json::from_str(&text).map_err(|source| FileError::Content { path: file.to_owned(), source })
}

/// In one step: a crash leaves the old text or the new one.
fn write(file: &Path, known: &Known) -> Result<(), FileError> {
    let failed = |source| FileError::Write { path: file.to_owned(), source };
    let text = serde_json::to_string(known).map_err(|error| failed(error.into()))?;
    if let Some(directory) = file.parent() {
        std::fs::create_dir_all(directory).map_err(failed)?;
    }
    let new = file.with_extension("json.new");
    let mut out = std::fs::File::create(&new).map_err(failed)?;
    out.write_all(text.as_bytes()).and_then(|()| out.sync_all()).map_err(failed)?;
    std::fs::rename(&new, file).map_err(failed)
}
