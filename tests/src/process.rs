//! A process of the lab: its output as lines, its errors in a file, killed when dropped.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::signals;

/// How often a wait looks again.
pub(crate) const POLL: Duration = Duration::from_millis(5);

/// A running process of the lab.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    log: PathBuf,
}

/// How a process ended and what it printed.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// The lines of its standard output that had not been read.
    pub lines: Vec<String>,
}

impl Process {
    /// Starts `command`; its standard error goes to `log`.
    pub(crate) fn start(name: String, command: Command, log: PathBuf) -> anyhow::Result<Self> {
        Self::start_with(name, command, log, Stdio::null())
    }

    /// As [`start`](Self::start), with a standard input for [`say`](Self::say).
    pub(crate) fn start_listening(name: String, command: Command, log: PathBuf) -> anyhow::Result<Self> {
        Self::start_with(name, command, log, Stdio::piped())
    }

    fn start_with(name: String, mut command: Command, log: PathBuf, stdin: Stdio) -> anyhow::Result<Self> {
        let errors = File::options().create(true).append(true).open(&log);
        let errors = errors.with_context(|| format!("creating {}", log.display()))?;
        let mut child = command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("stdout was not piped")?;
        let (sender, lines) = channel();
        // The thread ends with the process, or with the receiver: whichever goes first.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { name, child, stdin, lines, log })
    }

    /// Writes a line to its standard input.
    pub fn say(&mut self, line: &str) -> anyhow::Result<()> {
        let stdin = self.stdin.as_mut().with_context(|| format!("{} has no standard input", self.name))?;
        writeln!(stdin, "{line}").with_context(|| format!("writing to {}", self.name))
    }

    /// What it is called in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id: the program itself, not a shell around it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file its standard error goes to.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait().with_context(|| format!("waiting for {}", self.name))?.is_none())
    }

    /// The next line of its output; `None` when nothing came in time.
    pub fn next_line(&self, timeout: Duration) -> anyhow::Result<Option<String>> {
        match self.lines.recv_timeout(timeout) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(self.failure("ended")),
        }
    }

    /// The lines printed since the last look; never waits.
    pub fn pending_lines(&self) -> Vec<String> {
        self.lines.try_iter().collect()
    }

    /// Waits for a line that `wanted` accepts and returns it.
    pub fn wait_for_line(&self, timeout: Duration, wanted: impl Fn(&str) -> bool) -> anyhow::Result<String> {
        let deadline = Instant::now() + timeout;
        loop {
            signals::check()?;
            match self.next_line(Duration::from_millis(100))? {
                Some(line) if wanted(&line) => return Ok(line),
                Some(_) | None if Instant::now() < deadline => {}
                Some(_) | None => return Err(self.failure("did not print what was waited for")),
            }
        }
    }

    /// Waits until it ends by itself.
    pub fn finish(mut self, timeout: Duration) -> anyhow::Result<Finished> {
        let deadline = Instant::now() + timeout;
        // Read while waiting: a full pipe would keep the process from ending.
        let mut lines = Vec::new();
        let status = loop {
            match self.lines.recv_timeout(POLL) {
                Ok(line) => lines.push(line),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => thread::sleep(POLL),
            }
            if let Some(status) = self.child.try_wait().with_context(|| format!("waiting for {}", self.name))? {
                break status;
            }
            signals::check()?;
            if Instant::now() > deadline {
                return Err(self.failure("did not end in time"));
            }
        };
        lines.extend(self.lines.iter());
        Ok(Finished { status, lines })
    }

    /// Asks it to end with SIGTERM and waits.
    pub fn stop(&mut self, timeout: Duration) -> anyhow::Result<ExitStatus> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).context("process id")?);
        if let Some(status) = self.child.try_wait().context("waiting")? {
            bail!("{} had ended already with {status}\n{}", self.name, self.log_tail(20));
        }
        kill(pid, Signal::SIGTERM).with_context(|| format!("stopping {}", self.name))?;
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait().context("waiting")? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(self.failure("does not react to SIGTERM"));
            }
            thread::sleep(POLL);
        }
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub fn kill9(&mut self) -> anyhow::Result<()> {
        self.child.kill().with_context(|| format!("killing {}", self.name))?;
        self.child.wait().with_context(|| format!("waiting for {}", self.name))?;
        Ok(())
    }

    /// Stops it where it is until [`resume`](Self::resume).
    pub fn pause(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child.id()).context("the number of a process")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("sending {signal} to {}", self.name))
    }

    /// The last lines of its standard error.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        log_tail(&self.log, lines)
    }

    /// An error that names the process and shows the end of its log.
    pub(crate) fn failure(&self, what: &str) -> anyhow::Error {
        anyhow!("{} {what}; its log ends with:\n{}", self.name, self.log_tail(20))
    }
}

/// The last lines of a log file.
pub(crate) fn log_tail(log: &Path, lines: usize) -> String {
    let text = match fs::read(log) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => return format!("    ({} cannot be read: {error})", log.display()),
    };
    let all: Vec<&str> = text.lines().collect();
    let tail = all.get(all.len().saturating_sub(lines)..).unwrap_or_default();
    tail.iter().map(|line| format!("    {line}\n")).collect()
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means it is gone already, which is what we want; `wait` only collects the zombie.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
