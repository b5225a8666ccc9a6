//! Runs the commands that read and change rules.

use std::fmt;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};
use std::thread;

/// Why what kube-proxy left is still there.
#[derive(Debug, thiserror::Error)]
pub(super) enum ToolError {
    /// It did not run to its end.
    #[error("running {program}")]
    Run {
        program: String,
        #[source]
        source: io::Error,
    },
    /// It failed.
    #[error("{program} {arguments}: {said}")]
    Failed { program: String, arguments: String, said: String },
    /// The kernel refused.
    #[error("removing the interface kube-ipvs0")]
    Interface {
        #[source]
        source: io::Error,
    },
}

/// What other programs hold the lock of iptables for: seconds.
const LOCK: &str = "5";

/// One of the two kinds of iptables, which do not see each other's rules, for one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Variant(String);

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The kinds of iptables that are installed. Without a suffix it is the one or the other.
pub(super) fn variants(family: &str) -> Vec<Variant> {
    let installed = |name: &String| matches!(run(&format!("{name}-save"), &["--version"], ""), Ok(Some(_)));
    let named: Vec<Variant> =
        ["nft", "legacy"].map(|kind| format!("{family}-{kind}")).into_iter().filter(installed).map(Variant).collect();
    if named.is_empty() { Some(family.to_owned()).filter(installed).map(Variant).into_iter().collect() } else { named }
}

impl Variant {
    /// All rules that there are. It makes no table that is not there yet.
    pub(super) fn save(&self) -> Result<String, ToolError> {
        Ok(run(&format!("{self}-save"), &[], "")?.unwrap_or_default())
    }

    /// Changes rules: table by table, each at once or not at all.
    pub(super) fn restore(&self, script: &str) -> Result<(), ToolError> {
        run(&format!("{self}-restore"), &["--noflush", "--wait", LOCK], script).map(drop)
    }
}

/// What the program prints; `None` if it is not installed.
pub(super) fn run(program: &str, arguments: &[&str], input: &str) -> Result<Option<String>, ToolError> {
    let failed = |source| ToolError::Run { program: program.to_owned(), source };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let stdin = child.stdin.take();
    let output = thread::scope(|scope| {
        // A program that fails early does not read to the end; what it says counts.
        scope.spawn(|| stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
        child.wait_with_output()
    });
    let output = output.map_err(failed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
        return Err(ToolError::Failed { program: program.to_owned(), arguments: arguments.join(" "), said });
    }
    Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
}
