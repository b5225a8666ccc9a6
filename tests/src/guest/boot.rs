//! One run of qemu: from the files of a guest to how its script ended.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::files::Files;
use super::init::{Ending, PATH};
use super::kernel::Kernel;
use super::{GuestOutput, image};
use crate::process::{Process, log_tail};
use crate::signals;

/// Enough for the archive, the same again unpacked, and a lab.
const MEMORY: &str = "2G";
const CONSOLE_LINES: usize = 100;
/// How often a wait looks whether it may go on.
const LOOK: Duration = Duration::from_millis(100);

/// Boots a kernel with these files and waits until it is off.
pub(super) fn boot(
    kernel: &Kernel,
    files: &Files,
    limit: Duration,
    mut show: impl FnMut(&str),
) -> anyhow::Result<GuestOutput> {
    let directory = tempfile::Builder::new().prefix("shunt-guest-").tempdir().context("making a folder for a guest")?;
    let (archive, console) = (directory.path().join("initramfs"), directory.path().join("console"));
    image::write(files, &archive)?;
    let command = qemu(kernel, &archive, &console);
    let process = Process::start(format!("qemu with {}", kernel.name()), command, directory.path().join("qemu.log"))?;
    let guest = Running { process, console, deadline: Instant::now() + limit };
    let mut lines = Vec::new();
    let ending = loop {
        let line = guest.next_line().with_context(|| said(&lines))?;
        match Ending::parse(&line) {
            Some(ending) => break ending,
            None => {
                show(&line);
                lines.push(line);
            }
        }
    };
    match ending {
        Ending::Exited(status) => Ok(GuestOutput { status, lines }),
        Ending::Failed(why) => bail!("the guest could not run its script: {why}"),
    }
}

/// A guest that has not said yet how its script ended. Dropping it ends qemu: nothing of it is kept anyway.
struct Running {
    process: Process,
    console: PathBuf,
    deadline: Instant,
}

impl Running {
    fn next_line(&self) -> anyhow::Result<String> {
        loop {
            signals::check()?;
            if Instant::now() > self.deadline {
                bail!("the guest is not done within its time; its console ends with:\n{}", self.tail());
            }
            match self.process.next_line(LOOK) {
                Ok(Some(line)) => return Ok(line),
                Ok(None) => {}
                Err(error) => {
                    let what = "the guest ended before its script did; its console ends with";
                    return Err(error).with_context(|| format!("{what}:\n{}", self.tail()));
                }
            }
        }
    }

    fn tail(&self) -> String {
        log_tail(&self.console, CONSOLE_LINES)
    }
}

fn said(lines: &[String]) -> String {
    let last = lines.get(lines.len().saturating_sub(10)..).unwrap_or_default();
    format!("the script's last lines: {last:?}")
}

/// Without an HPET, whose timer may be lost under emulation: a kernel that had just switched to it never went on. The
/// first serial line is the kernel's console, the second one what the script prints. A panic reboots, and a reboot
/// ends qemu.
fn qemu(kernel: &Kernel, archive: &Path, console: &Path) -> Command {
    let mut command = Command::new("setpriv");
    // Killed with the thread that waits for it, however that ends.
    command.args(["--pdeathsig", "KILL"]).arg(kernel.qemu());
    // One thread runs both processors: with one for each, a processor may run what the other has just patched, and the
    // kernel patches its own code where it switches hooks on.
    command.args(["-machine", "pc,hpet=off", "-cpu", "max", "-smp", "2", "-m", MEMORY, "-accel", "tcg,thread=single"]);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    command.arg("-serial").arg(format!("file:{}", console.display())).args(["-serial", "stdio"]);
    command.arg("-kernel").arg(kernel.image()).arg("-initrd").arg(archive);
    // Mitigations cost much under emulation and protect nothing here.
    command.arg("-append");
    command.arg(format!("console=ttyS0 panic=-1 oops=panic mitigations=off rdinit={PATH} -- guest-init"));
    command
}
