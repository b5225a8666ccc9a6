//! The one place that runs `nft`.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::script::Script;
use crate::datapath::command::{self, CommandError, Said};

/// How many of our processes are remembered: the kernel tells of a change soon after its process has made it.
const REMEMBERED: usize = 256;

/// The command, and which of its processes were ours.
#[derive(Clone, Debug)]
pub(super) struct Nft {
    file: PathBuf,
    ours: Ours,
}

/// The numbers of our latest processes.
#[derive(Clone, Debug, Default)]
pub(super) struct Ours(Arc<Mutex<VecDeque<u32>>>);

/// Why nft did not do something.
#[derive(Debug, thiserror::Error)]
pub(in crate::datapath) enum NftError {
    /// It did not run.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// It or the kernel refused; the kernel has what it had before.
    #[error("nft: {reason}")]
    Refused {
        /// In its own words.
        reason: String,
        /// The first line of the script that it names.
        line: Option<usize>,
    },
}

impl Ours {
    pub(super) fn add(&self, process: u32) {
        let mut ours = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ours.push_back(process);
        if ours.len() > REMEMBERED {
            ours.pop_front();
        }
    }

    /// Whether this process was one of ours.
    pub(super) fn contain(&self, process: u32) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&process)
    }
}

impl Nft {
    /// The command of this host; `None` if it is not installed.
    pub(super) fn find() -> Option<Self> {
        Some(Self { file: command::find("nft")?, ours: Ours::default() })
    }

    pub(super) fn ours(&self) -> Ours {
        self.ours.clone()
    }

    pub(super) fn file(&self) -> &std::path::Path {
        &self.file
    }

    /// Applies a script: all of it or nothing.
    pub(super) fn apply(&self, script: &Script) -> Result<(), NftError> {
        self.run(&["-f", "-"], &script.text).map(|_| ())
    }

    /// Asks the kernel whether it would take a script. Nothing changes.
    pub(super) fn check(&self, script: &str) -> Result<(), NftError> {
        self.run(&["-c", "-f", "-"], script).map(|_| ())
    }

    /// What nft prints with these arguments.
    pub(super) fn run(&self, arguments: &[&str], input: &str) -> Result<Vec<u8>, NftError> {
        let (limit, input) = (command::limit(input), input.as_bytes());
        let said = command::run(&self.file, arguments, input, limit, |process| self.ours.add(process))?;
        let Said { status, stdout, stderr } = said;
        if status.success() { Ok(stdout) } else { Err(refusal(&stderr)) }
    }
}

/// `/dev/stdin:3:34-53: Error: Could not process rule: File exists`, and below it the line with the place underlined.
fn refusal(said: &str) -> NftError {
    let first = said.lines().find(|line| line.contains("Error: ")).or_else(|| said.lines().next()).unwrap_or_default();
    let (place, reason) = first.split_once("Error: ").unwrap_or(("", first));
    let line = place.split(':').nth(1).and_then(|number| number.parse().ok());
    let reason = if reason.is_empty() { "it failed and did not say why" } else { reason };
    NftError::Refused { reason: reason.to_owned(), line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(said: &str, reason: &str, line: Option<usize>) {
        match refusal(said) {
            NftError::Refused { reason: found, line: at } => assert_eq!((found.as_str(), at), (reason, line)),
            NftError::Command(error) => panic!("{error}"),
        }
    }

    #[test]
    fn an_error_says_which_line_and_why() {
        let said = "/dev/stdin:3:34-53: Error: Could not process rule: File exists\n\
                    add element ip shunt frontends { 10.96.0.1 . tcp . 80 : drop,\n          ^^^^\n";
        check(said, "Could not process rule: File exists", Some(3));
        check(
            "-:12:1-3: Error: syntax error, unexpected string\nfoo\n^^^\n",
            "syntax error, unexpected string",
            Some(12),
        );
        check("Error: No such file or directory\nlist table ip shunt\n", "No such file or directory", None);
        check("netlink: cannot open\n", "netlink: cannot open", None);
        check("", "it failed and did not say why", None);
    }
}
