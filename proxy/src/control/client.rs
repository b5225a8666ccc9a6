//! Asks the daemon behind a control socket.

use std::io::{self, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Reply, Request};

const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No daemon listens.
    #[error("no daemon listens on {}: start one with `shunt run`, or say where it listens with --control-socket", .0.display())]
    NoDaemon(PathBuf),
    /// The socket cannot be used.
    #[error("asking the daemon on {}", .path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The reply cannot be read; most likely the daemon is of another version.
    #[error("the daemon on {} sends a reply that this version cannot read; use the `shunt` of the daemon's version", .path.display())]
    Reply {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// Sends `request` to the daemon on `path` and waits for its reply.
pub fn ask(path: &Path, request: &Request) -> Result<Reply, AskError> {
    let failed = |source: io::Error| AskError::Io { path: path.to_path_buf(), source };
    let mut stream = UnixStream::connect(path)
        .map_err(|error| if is_no_daemon(&error) { AskError::NoDaemon(path.to_path_buf()) } else { failed(error) })?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    stream.write_all(&serde_json::to_vec(request).map_err(|error| failed(error.into()))?).map_err(failed)?;
    stream.shutdown(Shutdown::Write).map_err(failed)?;
    let mut reply = Vec::new();
    BufReader::new(stream).read_to_end(&mut reply).map_err(failed)?;
    serde_json::from_slice(&reply).map_err(|source| AskError::Reply { path: path.to_path_buf(), source })
}

/// No socket there, or one that a dead daemon left behind.
pub(super) fn is_no_daemon(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// Whether a daemon listens on `path`.
#[must_use]
pub fn is_listening(path: &Path) -> bool {
    UnixStream::connect(path).is_ok()
}
