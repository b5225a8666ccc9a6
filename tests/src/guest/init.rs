//! Process 1 of a guest: mounts what a Linux system has, runs the script of the guest, says how it ended, powers off.

use std::fmt;
use std::fs::{self, File};
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;

/// Where `lab-peer` is in a guest.
pub(super) const PATH: &str = "/init";
/// What it runs.
pub(super) const SCRIPT: &str = "/script";
/// The serial line for what the script prints; the first one is the kernel's.
const OUTPUT: &str = "/dev/ttyS1";
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What is mounted where, in this order.
const MOUNTS: [(&str, &str); 7] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
];

/// How the script of a guest ended: the last line on its serial line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// With this exit status.
    Exited(i32),
    /// It could not be run, and why.
    Failed(String),
}

/// What the line of an ending begins with. Scripts print text, so they do not print this control character.
const EXITED: &str = "\u{1e}exited ";
const FAILED: &str = "\u{1e}failed ";

impl Ending {
    /// The ending that a line tells, if it is such a line.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let failed = || line.strip_prefix(FAILED).map(|why| Self::Failed(why.to_owned()));
        let exited = line.strip_prefix(EXITED).and_then(|status| status.parse().ok().map(Self::Exited));
        exited.or_else(failed)
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "{EXITED}{status}"),
            Self::Failed(why) => write!(f, "{FAILED}{}", why.replace('\n', "; ")),
        }
    }
}

/// Is process 1 until the guest is off.
pub(crate) fn init() -> anyhow::Result<()> {
    if std::process::id() != 1 {
        bail!("this is process 1 of a guest; it would power this machine off");
    }
    MOUNTS.iter().try_for_each(|(kind, at)| mounted(kind, at))?;
    let output = serial_line()?;
    let ending = match run(&output) {
        Ok(status) => Ending::Exited(status),
        Err(error) => Ending::Failed(format!("{error:#}")),
    };
    writeln!(&output, "{ending}").context("writing the end of the script")?;
    nix::sys::termios::tcdrain(&output).context("writing the end of the script")?;
    // Never returns.
    reboot(RebootMode::RB_POWER_OFF).map(|_| ()).context("powering off")
}

fn mounted(kind: &str, at: &str) -> anyhow::Result<()> {
    fs::create_dir_all(at).with_context(|| format!("creating {at}"))?;
    match mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>) {
        // The kernel may have mounted /dev already.
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("mounting {kind} on {at}")),
    }
}

/// Bytes go through as they are: no line feed becomes two characters.
fn serial_line() -> anyhow::Result<File> {
    let line = File::options().read(true).write(true).open(OUTPUT).with_context(|| format!("opening {OUTPUT}"))?;
    let mut settings = tcgetattr(&line).with_context(|| format!("reading the settings of {OUTPUT}"))?;
    cfmakeraw(&mut settings);
    tcsetattr(&line, SetArg::TCSANOW, &settings).with_context(|| format!("setting {OUTPUT} up"))?;
    Ok(line)
}

/// Runs the script; 128 and the signal if one killed it. Orphans are waited for on the way: nobody else does.
fn run(output: &File) -> anyhow::Result<i32> {
    let clone = || output.try_clone().context("sharing the serial line");
    let mut command = Command::new("/bin/sh");
    command.arg(SCRIPT).env_clear().env("PATH", SEARCH_PATH).env("HOME", "/root");
    command.stdin(Stdio::null()).stdout(clone()?).stderr(clone()?);
    let child = command.spawn().context("starting /bin/sh")?;
    let script = Pid::from_raw(i32::try_from(child.id()).context("the number of a process")?);
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, status)) if pid == script => return Ok(status),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == script => return Ok(128 + signal as i32),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for the script"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, wanted: Option<Ending>) {
        assert_eq!(Ending::parse(line), wanted, "{line:?}");
    }

    #[test]
    fn an_ending_is_read_as_it_was_written() {
        for ending in [Ending::Exited(0), Ending::Exited(139), Ending::Failed("no shell".to_owned())] {
            check(&ending.to_string(), Some(ending));
        }
        assert_eq!(Ending::Failed("one\ntwo".to_owned()).to_string().lines().count(), 1);
        check("exited 0", None);
        check("\u{1e}exited soon", None);
        check("", None);
    }
}
