//! Guests: other kernels under qemu, emulated in software, for what this machine's kernel cannot show.
//!
//! A [`Guest`] is one boot of a [`Kernel`] of Debian with nothing but an initramfs: files of this machine, picked by
//! the test, and `lab-peer` as process 1. It has no disk and no network. `cargo xtask setup --tests` fetches qemu and
//! the kernels.

mod boot;
mod files;
mod image;
mod init;
mod kernel;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use crate::binaries::Binaries;
use files::{BUILT, Files};

pub(crate) use init::init;
pub use kernel::Kernel;

/// Set in guests to the name of the kernel, so that what runs there does not ask for another guest.
const INSIDE: &str = "LAB_INSIDE_GUEST";
/// What a lab runs, beside its own programs.
const LAB_PROGRAMS: [&str; 8] = ["sh", "ip", "nsenter", "unshare", "setpriv", "mount", "cat", "env"];
/// What the daemon runs, as far as this machine has it.
const PACKET_PROGRAMS: [&str; 8] = [
    "nft",
    "conntrack",
    "iptables",
    "iptables-save",
    "iptables-restore",
    "ip6tables",
    "ip6tables-save",
    "ip6tables-restore",
];
const VARIANTS: [&str; 2] = ["iptables", "ip6tables"];
/// Longer than any test of the lab takes under emulation.
const LIMIT: Duration = Duration::from_mins(5);

/// A guest that has not been booted yet.
#[derive(Debug)]
pub struct Guest {
    kernel: Kernel,
    files: Files,
    limit: Duration,
}

/// How a script in a guest ended and what it printed.
#[derive(Debug)]
pub struct GuestOutput {
    /// The exit status of the script, 128 and the signal if one killed it.
    pub status: i32,
    /// The lines of its standard output and standard error.
    pub lines: Vec<String>,
}

impl Guest {
    /// A guest with a shell, which can load the modules of its kernel, and no more.
    pub fn new(kernel: Kernel) -> anyhow::Result<Self> {
        let mut files = Files::new();
        files.program(&Binaries::find()?.peer, init::PATH)?;
        files.found("sh")?;
        kernel.add_to(&mut files)?;
        Ok(Self { kernel, files, limit: LIMIT })
    }

    /// A guest in which a lab can be made, with the daemon and all that it runs.
    pub fn for_labs(kernel: Kernel) -> anyhow::Result<Self> {
        let mut guest = Self::new(kernel)?;
        LAB_PROGRAMS.iter().try_for_each(|name| guest.files.found(name))?;
        let variants = VARIANTS.iter().flat_map(|name| {
            ["nft", "legacy"]
                .into_iter()
                .flat_map(move |variant| ["", "-save", "-restore"].map(|action| format!("{name}-{variant}{action}")))
        });
        let wanted = PACKET_PROGRAMS.map(str::to_owned).into_iter().chain(variants);
        wanted.filter(|name| crate::host::find_tool(name).is_some()).try_for_each(|name| guest.files.found(&name))?;
        guest.files.matches_of_iptables()?;
        let binaries = Binaries::find()?;
        guest.files.program(&binaries.peer, &in_guest("lab-peer"))?;
        guest.files.program(binaries.shunt()?, &in_guest("shunt"))?;
        let flows = Path::new(env!("CARGO_MANIFEST_DIR")).join("flows");
        if flows.is_dir() {
            guest.files.directory(&flows, &flows)?;
        }
        Ok(guest)
    }

    /// Adds a program of this machine with its libraries as `to`.
    pub fn program(mut self, from: &Path, to: &str) -> anyhow::Result<Self> {
        self.files.program(from, to)?;
        Ok(self)
    }

    /// Adds a file as `to`.
    #[must_use]
    pub fn file(mut self, from: &Path, to: &str) -> Self {
        self.files.copy(from, Path::new(to));
        self
    }

    /// Gives up after this time instead of five minutes.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Boots, runs `script` in a shell, and powers off. Each line that it prints is given to `show` at once. A kernel
    /// that cannot boot, panics or exceeds the limit is an error with the end of its console.
    pub fn run(mut self, script: &str, show: impl FnMut(&str)) -> anyhow::Result<GuestOutput> {
        self.files.text(init::SCRIPT, script);
        let files = &self.files;
        let booted = boot::boot(&self.kernel, files, self.limit, show);
        booted.with_context(|| format!("running a guest with the kernel {}", self.kernel.name()))
    }

    /// Runs a test program of the lab in it with these arguments. Where the program asks [`inside`], it is told the
    /// kernel.
    pub fn run_tests(
        self,
        program: &Path,
        arguments: &[impl AsRef<str>],
        show: impl FnMut(&str),
    ) -> anyhow::Result<GuestOutput> {
        let test = in_guest("test");
        let guest = self.program(program, &test)?;
        let arguments: Vec<String> = arguments.iter().map(|argument| quoted(argument.as_ref())).collect();
        // Nodes with a bridge need it, and no program asks the kernel for it.
        let script = format!(
            "modprobe br_netfilter\n\
             export {INSIDE}={} SHUNT_BIN={} LAB_PEER_BIN={}\n\
             exec {test} {}\n",
            guest.kernel.name(),
            in_guest("shunt"),
            in_guest("lab-peer"),
            arguments.join(" "),
        );
        guest.run(&script, show)
    }
}

/// The name of the kernel, if this process runs in a guest.
#[must_use]
pub fn inside() -> Option<String> {
    std::env::var(INSIDE).ok()
}

fn in_guest(name: &str) -> String {
    PathBuf::from(BUILT).join(name).display().to_string()
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_one_word_to_a_shell() {
        for word in ["name", "two words", "it's", "$HOME `id`", ""] {
            let shell = std::process::Command::new("sh").args(["-c", &format!("printf %s {}", quoted(word))]).output();
            assert_eq!(String::from_utf8(shell.unwrap().stdout).unwrap(), word);
        }
    }
}
