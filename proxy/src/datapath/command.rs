//! Runs a command of the host that reads its orders from its input, within a limit of time.
//!
//! The input is a file in memory and not a pipe: if this process is killed, the command still reads all of it or
//! nothing, and never the first half.

use std::fs::File;
use std::io::{self, Read, Seek as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// Reading a large rule set takes seconds. What takes longer hangs.
const LIMIT: Duration = Duration::from_secs(120);
/// So much of an input, about 400 services, gets another second, also on a slow host.
const SECOND: usize = 64 << 10;
/// Where commands of administrators are, also where PATH does not say so.
const ALSO: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];

/// What a command said.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: String,
}

/// Why a command said nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    /// It cannot be started.
    #[error("starting {}", .0.display())]
    Start(PathBuf, #[source] io::Error),
    /// It did not end in time, and was killed.
    #[error("{} did not end within {limit:?} and was killed", .file.display())]
    Late {
        /// Its file.
        file: PathBuf,
        /// How long it had.
        limit: Duration,
    },
    /// Its output cannot be read.
    #[error("talking to {}", .0.display())]
    Talk(PathBuf, #[source] io::Error),
}

/// The file of a command, by its name.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(ALSO.iter().map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(file).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// How long a command for rules may take for its input.
pub(super) fn limit(input: &str) -> Duration {
    LIMIT.saturating_add(Duration::from_secs(u64::try_from(input.len() / SECOND).unwrap_or(u64::MAX)))
}

/// Runs `file` to its end with `input`. `started` gets the number of its process as soon as it has one.
pub(super) fn run(
    file: &Path,
    arguments: &[&str],
    input: &[u8],
    limit: Duration,
    started: impl FnOnce(u32),
) -> Result<Said, CommandError> {
    let mut command = Command::new(file);
    // Its words are parsed.
    command.args(arguments).env("LC_ALL", "C");
    let input = in_memory(input).map_err(|error| CommandError::Talk(file.to_owned(), error))?;
    command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A wrapper may start the command as a child: all of them end together.
    command.process_group(0);
    let mut child = command.spawn().map_err(|error| CommandError::Start(file.to_owned(), error))?;
    started(child.id());
    let talked = talk(&mut child, limit);
    let status = child.wait().map_err(|error| CommandError::Talk(file.to_owned(), error))?;
    match talked {
        Ok(Some((stdout, stderr))) => Ok(Said { status, stdout, stderr }),
        Ok(None) => Err(CommandError::Late { file: file.to_owned(), limit }),
        Err(error) => Err(CommandError::Talk(file.to_owned(), error)),
    }
}

/// A file that holds `input` and has no name.
fn in_memory(input: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"input", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(input)?;
    file.rewind()?;
    Ok(file)
}

/// What it writes until it ends; `None` if it had to be killed.
fn talk(child: &mut Child, limit: Duration) -> io::Result<Option<(Vec<u8>, String)>> {
    let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        let (ended, end) = mpsc::channel::<()>();
        let watchdog = scope.spawn(move || match end.recv_timeout(limit) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => false,
            // The process is not reaped before this thread has ended, so the number is still its own.
            Err(RecvTimeoutError::Timeout) => killpg(pid, Signal::SIGKILL).is_ok(),
        });
        let said = scope.spawn(move || read(stdout));
        let complained = scope.spawn(move || read(stderr));
        let exited = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        drop(ended);
        let killed = watchdog.join().unwrap_or_default();
        exited?;
        let lost = || io::Error::other("a thread that reads its output panicked");
        let stdout = said.join().map_err(|_panic| lost())??;
        let stderr = complained.join().map_err(|_panic| lost())??;
        Ok((!killed).then(|| (stdout, String::from_utf8_lossy(&stderr).into_owned())))
    })
}

fn read(from: Option<impl Read>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        from.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, input: &str, limit: Duration) -> Result<Said, CommandError> {
        run(Path::new("/bin/sh"), &["-c", script], input.as_bytes(), limit, |_| {})
    }

    #[test]
    fn a_command_reads_its_input_and_says_how_it_ended() {
        let long = "line\n".repeat(100_000);
        let said = sh("cat; echo complaint >&2; exit 3", &long, Duration::from_secs(60)).unwrap();
        assert_eq!((said.stdout, said.stderr.as_str()), (long.clone().into_bytes(), "complaint\n"));
        assert_eq!(said.status.code(), Some(3));
        // It need not read all of it.
        assert!(sh("exit 0", &long, Duration::from_secs(60)).unwrap().status.success());
    }

    #[test]
    fn a_command_that_hangs_is_killed() {
        for script in ["exec sleep 1000", "sleep 1000; echo of a child"] {
            let error = sh(script, "", Duration::from_millis(50)).unwrap_err();
            assert_eq!(error.to_string(), "/bin/sh did not end within 50ms and was killed");
        }
    }

    #[test]
    fn a_long_input_gets_more_time() {
        let seconds = |bytes| limit(&" ".repeat(bytes)).as_secs();
        assert_eq!([0, 1000, 1 << 20, 16 << 20].map(seconds), [120, 120, 136, 376]);
    }

    #[test]
    fn commands_are_found_by_name() {
        assert!(find("sh").is_some_and(|file| file.ends_with("sh")));
        assert_eq!(find("no-such-command"), None);
    }
}
