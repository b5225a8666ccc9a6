//! What the kernel lets this process have.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one, as every program in Go does at its start. The usual 1,024 is
/// for programs that call `select`, and as many clients over TCP use it up.
pub fn raise_open_files() {
    let files = Resource::RLIMIT_NOFILE;
    let raised =
        getrlimit(files).and_then(|(soft, hard)| if soft < hard { setrlimit(files, hard, hard) } else { Ok(()) });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it was");
    }
}
