//! The life of a lab: what all its handles share, and the removal of everything that carries its prefix.

use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, thread};

use anyhow::Context as _;

use crate::binaries::Binaries;
use crate::host;
use crate::leftovers::remove;

/// What all handles of a lab share.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) prefix: String,
    pub(crate) binaries: Binaries,
    pub(crate) cgroup: PathBuf,
    bpf: PathBuf,
    pub(crate) directory: PathBuf,
    logs: AtomicU32,
    pub(crate) nodes: AtomicU32,
    guard: Guard,
}

impl Core {
    pub(crate) fn new(prefix: String, binaries: Binaries) -> anyhow::Result<Self> {
        let cgroup = host::cgroup2_root()?.join(&prefix);
        let bpf = host::bpffs_root()?.join(&prefix);
        let directory = env::temp_dir().join(&prefix);
        // The guard first: everything made after this point is removed even if this process is killed.
        let guard = Guard::start(&binaries.peer, &prefix)?;
        let core =
            Self { prefix, binaries, cgroup, bpf, directory, logs: AtomicU32::new(0), nodes: AtomicU32::new(0), guard };
        for made in [&core.cgroup, &core.bpf, &core.directory] {
            fs::create_dir(made).with_context(|| format!("creating {}; is the lab's name in use?", made.display()))?;
        }
        Ok(core)
    }

    /// The namespace of a node or pod.
    pub(crate) fn netns(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    pub(crate) fn node_cgroup(&self, node: &str) -> PathBuf {
        self.cgroup.join(node)
    }

    pub(crate) fn bpf_root(&self, node: &str) -> PathBuf {
        self.bpf.join(node)
    }

    pub(crate) fn control_socket(&self, node: &str) -> PathBuf {
        self.directory.join(format!("{node}.sock"))
    }

    pub(crate) fn state_dir(&self, node: &str) -> PathBuf {
        self.directory.join(format!("{node}.state"))
    }

    /// A log file to which no other process writes.
    pub(crate) fn new_log(&self, stem: &str) -> PathBuf {
        let number = self.logs.fetch_add(1, Ordering::Relaxed);
        self.directory.join(format!("{number:03}-{stem}.log"))
    }
}

impl Drop for Core {
    #[expect(
        clippy::print_stderr,
        reason = "what cannot be removed must be seen, and Drop has no other way to report it"
    )]
    fn drop(&mut self) {
        if let Err(error) = remove(&self.prefix) {
            if !thread::panicking() {
                eprintln!("lab {}: {error:#}", self.prefix);
            }
            return;
        }
        self.guard.end();
    }
}

/// A process that waits until this one ends, in any way, and then removes the lab.
///
/// A parent-death signal would not do: it follows the thread that started the child, and test threads come and go.
#[derive(Debug)]
struct Guard {
    child: Child,
    alive: Option<ChildStdin>,
}

impl Guard {
    fn start(peer: &Path, prefix: &str) -> anyhow::Result<Self> {
        let mut command = Command::new(peer);
        command.args(["guard", prefix]).stdin(Stdio::piped()).stdout(Stdio::null());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().with_context(|| format!("starting {}", peer.display()))?;
        let alive = child.stdin.take();
        Ok(Self { child, alive })
    }

    fn end(&mut self) {
        drop(self.alive.take());
        // Its exit code adds nothing: the removal has just succeeded.
        drop(self.child.wait());
    }
}
