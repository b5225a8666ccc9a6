//! A place where processes of the lab run: a network namespace and a cgroup directory.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use nix::sched::{CloneFlags, setns};
use serde::de::DeserializeOwned;

use crate::lifetime::Core;
use crate::network::{self, AddressChange};
use crate::process::Process;

/// A network namespace with a cgroup directory.
#[derive(Clone, Debug)]
pub struct Place {
    pub(crate) core: Arc<Core>,
    pub(crate) name: String,
    pub(crate) netns: String,
    pub(crate) cgroup: PathBuf,
}

impl Place {
    pub(crate) fn new(core: &Arc<Core>, name: &str, cgroup: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(&cgroup).with_context(|| format!("creating cgroup {}", cgroup.display()))?;
        Ok(Self { core: Arc::clone(core), name: name.to_owned(), netns: core.netns(name), cgroup })
    }

    /// Its name in the lab.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of its network namespace, as `ip netns` knows it.
    #[must_use]
    pub fn netns(&self) -> &str {
        &self.netns
    }

    /// Its cgroup2 directory.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Starts a program here.
    pub fn spawn(&self, arguments: &[impl AsRef<OsStr>]) -> anyhow::Result<Process> {
        let program = arguments.first().context("no program to run")?;
        let program = Path::new(program.as_ref()).file_name().unwrap_or_default().to_string_lossy();
        let name = format!("{program} in {}", self.name);
        let log = self.core.new_log(&format!("{}-{program}", self.name));
        Process::start(name, self.command(arguments), log)
    }

    /// Starts `lab-peer` here.
    pub fn peer(&self, arguments: &[impl AsRef<OsStr>]) -> anyhow::Result<Process> {
        let mut all = vec![self.core.binaries.peer.as_os_str()];
        all.extend(arguments.iter().map(AsRef::as_ref));
        self.spawn(&all)
    }

    /// Starts a `lab-peer` here that reads its orders from its standard input.
    pub fn listening_peer(&self, role: &str, arguments: &[&str]) -> anyhow::Result<Process> {
        let log = self.core.new_log(&format!("{}-{role}", self.name));
        let mut all = vec![self.core.binaries.peer.as_os_str(), OsStr::new(role)];
        all.extend(arguments.iter().map(OsStr::new));
        let command = self.command(&all);
        Process::start_listening(format!("lab-peer {role} in {}", self.name), command, log)
    }

    /// Runs `lab-peer` here to its end and reads each line it prints as a `T`.
    pub fn ask<T: DeserializeOwned>(
        &self,
        arguments: &[impl AsRef<OsStr>],
        timeout: Duration,
    ) -> anyhow::Result<Vec<T>> {
        let process = self.peer(arguments)?;
        let log = process.log().to_owned();
        let finished = process.finish(timeout)?;
        if !finished.status.success() {
            let tail = crate::process::log_tail(&log, 20);
            bail!("lab-peer in {} ended with {}:\n{tail}", self.name, finished.status);
        }
        finished.lines.iter().map(|line| parse(line)).collect()
    }

    /// Kills every process in its cgroup. Kernel: 5.14.
    pub fn kill_all(&self) -> anyhow::Result<()> {
        fs::write(self.cgroup.join("cgroup.kill"), "1")
            .with_context(|| format!("killing the processes of {}", self.name))
    }

    /// Does `work` while this place has one more address. Other hosts reach a pod, a node or the outside at it only if
    /// it is of their own network.
    pub fn with_address<T>(&self, address: IpAddr, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        network::change_address(self, address, AddressChange::Add)?;
        let done = work();
        network::change_address(self, address, AddressChange::Remove)?;
        done
    }

    /// A command that enters the namespace and the cgroup before it becomes the program; all of it is one process.
    pub(crate) fn command(&self, arguments: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new("nsenter");
        // Not `ip netns exec`: it remounts /sys and hides the cgroup2 mount.
        command.arg(format!("--net=/run/netns/{}", self.netns));
        command.args(["sh", "-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(self.cgroup.join("cgroup.procs"));
        command.args(arguments);
        // Ctrl-C on the terminal is for this process, which then ends its children in order.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command
    }

    /// Runs `work` in this network namespace, on a thread of its own: a thread that changed namespace is not reused.
    pub fn in_netns<T: Send>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        let path = Path::new("/run/netns").join(&self.netns);
        let enter = || {
            let netns = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
            setns(netns, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {}", path.display()))?;
            work()
        };
        std::thread::scope(|scope| scope.spawn(enter).join())
            .map_err(|panic| anyhow!("the thread panicked: {panic:?}"))?
    }
}

/// Reads one line that `lab-peer` printed.
pub(crate) fn parse<T: DeserializeOwned>(line: &str) -> anyhow::Result<T> {
    serde_json::from_str(line).with_context(|| format!("reading what lab-peer printed: {line}"))
}
