//! The daemon's end of the control socket.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net as std_unix;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use shunt_dns::Explainer;
use shunt_model::{Snapshot, with_causes};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::client::is_no_daemon;
use super::monitor::{self, Filter};
use super::{DnsReply, LONGEST_REQUEST, Reply, Request, answers};
use crate::datapath::{self, FlowFilter, Flows, HostOptions, OpenPath};
use crate::explain::{Explanation, explain_served};
use crate::status::Status;

/// How long a client may take to send its request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the control socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another daemon runs.
    #[error("another daemon listens on {}: stop it, or give this one its own --control-socket", .0.display())]
    InUse(PathBuf),
    /// The path exists and is no socket.
    #[error("{} exists and is no socket: choose another --control-socket", .0.display())]
    NotASocket(PathBuf),
    /// The file system refuses.
    #[error("{what} {} for --control-socket", .path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// An open control socket; the file goes with it.
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

/// What requests are answered from.
#[derive(Clone)]
pub struct Views {
    /// Own node name.
    pub node: Arc<str>,
    /// The reconcile loop's status.
    pub status: watch::Receiver<Status>,
    /// Whether the data path is in effect.
    pub path: OpenPath,
    /// Where its tables are.
    pub host: HostOptions,
    /// Explains DNS answers, if DNS runs.
    pub dns: Option<Explainer>,
}

/// Serves a [`Listener`].
pub struct Control {
    listener: Listener,
    views: Views,
}

impl Listener {
    /// Opens the socket for root alone. Replaces the socket of a dead daemon; fails if a daemon listens.
    pub fn open(path: &Path) -> Result<Self, ListenError> {
        let failed = |what: &'static str, path: &Path| move_into(what, path.to_path_buf());
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(failed("creating", parent))?;
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => return Err(ListenError::NotASocket(path.to_path_buf())),
            Ok(_) | Err(_) => {}
        }
        if !remove_stale(path).map_err(failed("removing the stale", path))? && path.exists() {
            return Err(ListenError::InUse(path.to_path_buf()));
        }
        let listener = UnixListener::bind(path).map_err(failed("creating", path))?;
        let listener = Self { listener, path: path.to_path_buf() };
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed("protecting", path))?;
        Ok(listener)
    }
}

fn move_into(what: &'static str, path: PathBuf) -> impl FnOnce(io::Error) -> ListenError {
    move |source| ListenError::Io { what, path, source }
}

/// Removes the socket of a daemon that was killed. True if there was one; a socket at which a daemon listens stays, and
/// so does what is no socket.
pub fn remove_stale(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => return Ok(false),
        Ok(_) => {}
    }
    match std_unix::UnixStream::connect(path) {
        Ok(_) => Ok(false),
        Err(error) if is_no_daemon(&error) => fs::remove_file(path).map(|()| true),
        Err(error) => Err(error),
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            debug!(path = %self.path.display(), %error, "the control socket was gone already");
        }
    }
}

impl Control {
    /// A server that does not accept yet.
    #[must_use]
    pub fn new(listener: Listener, views: Views) -> Self {
        Self { listener, views }
    }

    /// Answers until stopped.
    pub async fn run(self, stop: CancellationToken) {
        let mut clients = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return clients.shutdown().await,
                accepted = self.listener.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        clients.spawn(answer(stream, self.views.clone()));
                    }
                    // Most likely there are no file descriptors left; pause, so that waiting clients do not keep this
                    // loop busy.
                    Err(error) => {
                        warn!(%error, "accepting on the control socket");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(ended) = clients.join_next() => log_end(ended),
            }
        }
    }
}

fn log_end(ended: Result<io::Result<()>, tokio::task::JoinError>) {
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a client of the control socket went away"),
        Err(error) => warn!(%error, "answering on the control socket"),
    }
}

async fn answer(mut stream: UnixStream, views: Views) -> io::Result<()> {
    let mut request = Vec::new();
    let (reader, mut writer) = stream.split();
    // A request has no line break inside.
    let mut reader = BufReader::new(reader.take(LONGEST_REQUEST));
    match tokio::time::timeout(PATIENCE, reader.read_until(b'\n', &mut request)).await {
        Ok(read) => read?,
        Err(elapsed) => return Err(io::Error::new(io::ErrorKind::TimedOut, elapsed)),
    };
    let reply = match serde_json::from_slice(&request) {
        Ok(Request::Monitor { service, client }) => match Filter::of(service.as_deref(), client.as_deref()) {
            Ok(filter) => return monitor::serve(&views.path, &filter, reader, writer).await,
            Err(reason) => Reply::Error(reason),
        },
        Ok(request) => views.reply(&request).await,
        Err(error) => Reply::Error(format!("request not understood: {error}")),
    };
    writer.write_all(&serde_json::to_vec(&reply)?).await?;
    writer.shutdown().await
}

impl Views {
    async fn reply(&self, request: &Request) -> Reply {
        match request {
            Request::Services => self.in_force().map_or_else(Reply::Error, |(status, _)| {
                let services = answers::services(&status, &self.path);
                services.map_or_else(|error| Reply::Error(error.to_string()), Reply::Services)
            }),
            Request::Explain { source, destination } => {
                self.in_force().map_or_else(Reply::Error, |(status, snapshot)| {
                    let flow = (source.as_str(), destination.as_str());
                    let serves = self.path.chosen();
                    let explained = explain_served(&snapshot, &status.programmed, &self.node, flow, serves);
                    let warnings = status.source.unknown_node.iter().cloned().collect();
                    explained.map_or_else(
                        |error| Reply::Error(error.to_string()),
                        |explained| Reply::Explain(Explanation { warnings, ..explained }),
                    )
                })
            }
            Request::Flows(filter) => self.flows(filter.clone()).await.map_or_else(Reply::Error, Reply::Flows),
            Request::Dns { name, rtype } => self.dns(name, rtype).await.map_or_else(Reply::Error, Reply::Dns),
            Request::Monitor { .. } => Reply::Error("decisions are told one after the other".to_owned()),
        }
    }

    /// Reading large tables takes its time.
    async fn flows(&self, filter: FlowFilter) -> Result<Flows, String> {
        let (host, plan) = (self.host.clone(), self.status.borrow().programmed.clone());
        let read = tokio::task::spawn_blocking(move || datapath::flows(&host, &plan, &filter));
        let read = read.await.map_err(|error| error.to_string())?;
        read.map_err(|error| with_causes(&error))
    }

    async fn dns(&self, name: &str, rtype: &str) -> Result<DnsReply, String> {
        let Some(explainer) = &self.dns else {
            return Err("this daemon runs without DNS (--dns=false)".to_owned());
        };
        DnsReply::of(explainer, name, rtype).await?.ok_or_else(|| self.unknown())
    }

    /// The plan that this daemon has applied and the view that led to it; an error before its first sync.
    fn in_force(&self) -> Result<(Status, Arc<Snapshot>), String> {
        let status = self.status.borrow().clone();
        match status.snapshot.clone() {
            Some(snapshot) => Ok((status, snapshot)),
            None => Err(self.unknown()),
        }
    }

    fn unknown(&self) -> String {
        let reasons = self.status.borrow().not_ready().join("; ");
        format!("this daemon has applied nothing yet: {reasons}")
    }
}
