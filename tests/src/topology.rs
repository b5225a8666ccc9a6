//! A lab: the router that joins its nodes, and the life of everything that carries its prefix.

use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, thread};

use anyhow::{Context as _, ensure};

use crate::binaries::Binaries;
use crate::leftovers::{prefix, remove, remove_leftovers};
use crate::node::Node;
use crate::place::Place;
use crate::{host, network};

/// A router with nodes around it. Clones of its handles keep it alive; the last one removes everything.
#[derive(Debug)]
pub struct Lab {
    /// The router namespace, which is also the client outside of the cluster. Its processes are in no node's cgroup.
    pub outside: Place,
    core: Arc<Core>,
}

/// What all handles of a lab share.
#[derive(Debug)]
pub(crate) struct Core {
    prefix: String,
    pub(crate) binaries: Binaries,
    cgroup: PathBuf,
    bpf: PathBuf,
    directory: PathBuf,
    logs: AtomicU32,
    nodes: AtomicU32,
    guard: Guard,
}

impl Lab {
    /// A lab with the programs found next to this executable. `name`: lower-case letters and digits.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        Self::with_binaries(name, Binaries::find()?)
    }

    /// A lab with these programs.
    pub fn with_binaries(name: &str, binaries: Binaries) -> anyhow::Result<Self> {
        if let Some(missing) = host::missing() {
            anyhow::bail!(missing);
        }
        ensure!(
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()),
            "a lab's name is of lower-case letters and digits, not {name:?}"
        );
        remove_leftovers().context("removing what dead labs left")?;
        let core = Arc::new(Core::new(prefix(name), binaries)?);
        let outside = Place::new(&core, "router", core.cgroup.join("router"))?;
        network::make_router(&outside)?;
        Ok(Self { outside, core })
    }

    /// Adds a node: a namespace on the router's bridge and a cgroup directory.
    pub fn node(&self, name: &str) -> anyhow::Result<Node> {
        let number = self.core.nodes.fetch_add(1, Ordering::Relaxed) + 1;
        // Node addresses begin at .11.
        let number =
            u8::try_from(number).ok().filter(|number| *number < 240).context("a lab has room for 239 nodes")?;
        Node::new(&self.core, &self.outside, name, number)
    }

    /// The prefix of everything this lab made.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.core.prefix
    }

    /// Where its logs and sockets are, and where manifests may be put.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.core.directory
    }

    /// The end of every log, for a failed test.
    #[must_use]
    pub fn logs(&self) -> String {
        let entries = fs::read_dir(&self.core.directory).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut logs: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
        logs.sort();
        logs.iter()
            .map(|log| (log, crate::process::log_tail(log, 30)))
            .filter(|(_, tail)| !tail.is_empty())
            .map(|(log, tail)| format!("  {}\n{tail}", log.display()))
            .collect()
    }
}

impl Core {
    fn new(prefix: String, binaries: Binaries) -> anyhow::Result<Self> {
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
