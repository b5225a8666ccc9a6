//! Running other programs: shown as they are, or quietly with their last lines kept for the case that they fail.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::ui::Step;

/// How many last lines of a failed command are worth reading.
const LAST_LINES: usize = 25;
/// How long a reader without a spinner waits for a sign of life.
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);

/// Runs a command whose output is the developer's to read; `advice` says what to do when it fails.
pub(crate) fn visible(mut command: Command, doing: &str, advice: &str) -> Result<()> {
    let status = command.status().with_context(|| format!("{doing}: starting {}", line(&command)))?;
    if status.success() {
        return Ok(());
    }
    bail!("{doing}: {} ended with {status}; its output is above\n  {advice}", line(&command))
}

/// Runs a command behind a step; its last lines are shown only when it fails.
pub(crate) fn quiet(mut command: Command, step: &Step, advice: &str) -> Result<()> {
    let shown = line(&command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {shown}"))?;
    let (lines, reader) = mpsc::channel();
    let threads = [
        child.stdout.take().map(|pipe| forward_lines(pipe, lines.clone())),
        child.stderr.take().map(|pipe| forward_lines(pipe, lines.clone())),
    ];
    drop(lines);
    let mut last: VecDeque<String> = VecDeque::with_capacity(LAST_LINES);
    loop {
        match reader.recv_timeout(SIGN_OF_LIFE) {
            Ok(text) => {
                step.note(&text);
                if last.len() == LAST_LINES {
                    last.pop_front();
                }
                last.push_back(text);
            }
            Err(RecvTimeoutError::Timeout) => step.still_alive(last.back().map_or("no output yet", |text| text)),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    for thread in threads.into_iter().flatten() {
        if thread.join().is_err() {
            bail!("reading the output of {shown}");
        }
    }
    let status = child.wait().with_context(|| format!("waiting for {shown}"))?;
    if status.success() {
        return Ok(());
    }
    let last: Vec<String> = last.into_iter().map(|text| format!("    | {text}")).collect();
    bail!("{shown} ended with {status}; its last lines:\n{}\n  {advice}", last.join("\n"))
}

fn forward_lines(pipe: impl Read + Send + 'static, lines: Sender<String>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        // The end of the pipe, a broken line or a gone reader all end this thread; the exit status shows what happened.
        for text in BufReader::new(pipe).lines().map_while(Result::ok) {
            if lines.send(text).is_err() {
                break;
            }
        }
    })
}

/// What a command prints, if it can be started and succeeds; for questions to which "no" is a fine answer.
pub(crate) fn answer(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Where a program is, in PATH or in the directories that only root has there.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// The command as one would type it.
fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failed_quiet_command_shows_its_last_lines_and_the_advice() {
        let step = Step::start("failing", "");
        let error = quiet(shell("seq 100; echo broken >&2; exit 3"), &step, "try harder").unwrap_err().to_string();
        for wanted in ["broken", "| 100", "exit status: 3", "try harder"] {
            assert!(error.contains(wanted), "{wanted} missing in: {error}");
        }
        assert!(!error.contains("| 50\n"), "too much of the output: {error}");
    }

    #[test]
    fn an_answer_is_none_when_the_program_fails_or_is_missing() {
        assert_eq!(answer(&mut shell("echo yes")).as_deref(), Some("yes\n"));
        assert_eq!(answer(&mut shell("echo yes; false")), None);
        assert_eq!(answer(&mut Command::new("no-such-program-here")), None);
    }
}
