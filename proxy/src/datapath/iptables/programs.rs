//! The programs of iptables on this host: which there are, and running them. The only place that does.

use std::fmt;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use shunt_model::Family;

use super::change::{Pieces, Script};
use super::rule::{OURS, Table};
use super::watch;
use crate::datapath::command::{self, CommandError, Said};

/// How long `iptables-restore` waits while another program holds the lock.
const PATIENCE: &str = if cfg!(test) { "1" } else { "5" };
/// Where that lock is, unless the environment says otherwise.
const LOCK: &str = "/run/xtables.lock";
/// So many lines of a message are looked at: one bad rule may be named with all that come after it.
const LINES: usize = 16;
/// The exit status of all these programs if the kernel or the lock had no room for them.
const BUSY: i32 = 4;

/// The two ways in which the kernel keeps such rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::datapath) enum Variant {
    /// As rules of nftables.
    Nft,
    /// As tables of their own, each of which is replaced as a whole.
    Legacy,
}

impl Variant {
    pub(in crate::datapath) const BOTH: [Self; 2] = [Self::Nft, Self::Legacy];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }

    /// Whether the kernel can have rules of this variant now. Asking makes none.
    pub(in crate::datapath) fn is_in_kernel(self, family: Family) -> bool {
        match (self, family) {
            (Self::Nft, _) => watch::look(self, family).is_ok(),
            (Self::Legacy, Family::V4) => Path::new("/proc/net/ip_tables_names").exists(),
            (Self::Legacy, Family::V6) => Path::new("/proc/net/ip6_tables_names").exists(),
        }
    }

    /// As the programs call it in their version.
    const fn in_version(self) -> &'static str {
        match self {
            Self::Nft => "(nf_tables)",
            Self::Legacy => "(legacy)",
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The programs of one variant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Programs {
    pub(super) variant: Variant,
    /// Of each family: what restores and what saves.
    paths: [(PathBuf, PathBuf); 2],
    /// As they say it themselves.
    pub(super) version: String,
}

/// Why a program failed.
#[derive(Debug, thiserror::Error)]
pub(in crate::datapath) enum RunError {
    /// It does not run.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// Another program holds the lock.
    #[error(
        "another program has held the lock {lock} for {PATIENCE} s; `fuser -v {lock}` names it; nothing changes until \
         it lets go"
    )]
    Locked { lock: String },
    /// It refuses.
    #[error("{program}: {said}")]
    Refused {
        program: String,
        said: String,
        /// The lines of its input that it names.
        lines: Vec<usize>,
    },
}

impl RunError {
    /// Whether it is known which lines of the input are at fault; the tables that end before them are written.
    pub(super) fn names_lines(&self) -> bool {
        match self {
            Self::Refused { lines, .. } => !lines.is_empty(),
            Self::Command(_) | Self::Locked { .. } => false,
        }
    }
}

impl Programs {
    /// Those in PATH.
    pub(super) fn find(variant: Variant) -> Option<Self> {
        let of = |family: &str| Some((in_path(variant, family, "restore")?, in_path(variant, family, "save")?));
        let paths = [of("iptables")?, of("ip6tables")?];
        let version = version_of(&paths.first()?.0)?;
        version.contains(variant.in_version()).then_some(Self { variant, paths, version })
    }

    /// How they write tables at the least cost.
    pub(super) fn pieces(&self) -> Pieces {
        match self.variant {
            Variant::Nft => Pieces::Many,
            Variant::Legacy => Pieces::One,
        }
    }

    fn of(&self, family: Family) -> &(PathBuf, PathBuf) {
        let [v4, v6] = &self.paths;
        match family {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }

    /// What is in a table.
    pub(super) fn save(&self, family: Family, table: Table) -> Result<String, RunError> {
        self.saved(family, &["-t", table.as_str()])
    }

    /// What is in the tables that are in use; makes none.
    pub(super) fn save_used(&self, family: Family) -> Result<String, RunError> {
        self.saved(family, &[])
    }

    fn saved(&self, family: Family, arguments: &[&str]) -> Result<String, RunError> {
        let (_, program) = self.of(family);
        let output = run(program, arguments, "")?;
        if !output.status.success() {
            return Err(refused(program, &output));
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        match hidden(&text) {
            Some(line) => {
                let said =
                    format!("{line} Only nft can have made those rules: remove them, or use --proxy-mode nftables");
                Err(RunError::Refused { program: program.display().to_string(), said, lines: Vec::new() })
            }
            None => Ok(text),
        }
    }

    /// Writes to the kernel; what the script does not name stays.
    pub(super) fn restore(&self, family: Family, script: &Script) -> Result<(), RunError> {
        let (program, _) = self.of(family);
        let output = run(program, &["--noflush", "--counters", "-w", PATIENCE], &script.text)?;
        match output.status.code() {
            Some(0) => Ok(()),
            Some(BUSY) if lock_is_held() => Err(RunError::Locked { lock: lock() }),
            Some(_) | None => Err(refused(program, &output)),
        }
    }
}

/// What iptables prints in place of a table that it cannot show; it calls that a success.
fn hidden(text: &str) -> Option<&str> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("# "));
    lines.into_iter().find(|line| line.ends_with("is incompatible, use 'nft' tool."))
}

/// `iptables-nft-restore`, or `iptables-restore` where that is the same variant.
pub(in crate::datapath) fn in_path(variant: Variant, family: &str, what: &str) -> Option<PathBuf> {
    command::find(&format!("{family}-{variant}-{what}")).or_else(|| {
        let plain = command::find(&format!("{family}-{what}"))?;
        version_of(&plain)?.contains(variant.in_version()).then_some(plain)
    })
}

/// `iptables v1.8.9 (nf_tables)`
fn version_of(program: &Path) -> Option<String> {
    let output = run(program, &["--version"], "").ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let first = text.lines().next()?.trim().to_owned();
    // The oldest ones do not say which variant they are: there was only one.
    Some(if first.contains('(') { first } else { format!("{first} {}", Variant::Legacy.in_version()) })
}

fn run(program: &Path, arguments: &[&str], input: &str) -> Result<Said, RunError> {
    Ok(command::run(program, arguments, input.as_bytes(), command::limit(input), |_| {})?)
}

fn refused(program: &Path, said: &Said) -> RunError {
    let kept: Vec<&str> = said.stderr.lines().map(str::trim).filter(|line| !line.is_empty()).take(5).collect();
    let program = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let words = match kept.is_empty() {
        true => said.status.to_string(),
        false => kept.join("; "),
    };
    RunError::Refused { program, said: words, lines: lines_named(&said.stderr) }
}

/// The numbers of the lines of the input that a message names: `line 31: RULE_APPEND failed …`, `Error occurred at
/// line: 7`.
fn lines_named(said: &str) -> Vec<usize> {
    let after = said.split("line").skip(1).map(|rest| rest.trim_start_matches([':', ' ']));
    let numbers = after.filter_map(|rest| rest.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok());
    numbers.take(LINES).collect()
}

fn lock() -> String {
    std::env::var("XTABLES_LOCKFILE").unwrap_or_else(|_| LOCK.to_owned())
}

fn lock_is_held() -> bool {
    let Ok(file) = File::open(lock()) else { return false };
    matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

/// The variant that others use on this host, as kube-proxy's own image finds it out: by the hint that the kubelet
/// leaves, else by the number of rules.
pub(super) fn choose(found: &[Programs]) -> Option<(&Programs, String)> {
    let works = found.iter().any(|programs| programs.variant.is_in_kernel(Family::V4));
    let usable = found.iter().filter(|programs| !works || programs.variant.is_in_kernel(Family::V4));
    let rated = usable.map(|programs| (programs, rules_of_others(programs)));
    let rated: Vec<(&Programs, Others)> = rated.collect();
    // Of equal ones the first: nft is what new hosts use.
    let best = rated.iter().rev().max_by_key(|(_, others)| (others.kubelet, others.rules))?;
    let (programs, others) = best;
    let why = match (others.kubelet, others.rules) {
        (true, _) => "the kubelet uses it".to_owned(),
        (false, 0) => "no other program has rules in either variant".to_owned(),
        (false, rules) => format!("other programs have {rules} rules in it"),
    };
    Some((programs, why))
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Others {
    kubelet: bool,
    rules: usize,
}

fn rules_of_others(programs: &Programs) -> Others {
    let mut others = Others::default();
    for family in Family::BOTH {
        let Ok(text) = programs.save_used(family) else { continue };
        others.kubelet |= text.contains(":KUBE-IPTABLES-HINT ") || text.contains(":KUBE-KUBELET-CANARY ");
        let rules = text.lines().filter(|line| line.starts_with("-A") && !line.contains(OURS)).count();
        others.rules = others.rules.saturating_add(rules);
    }
    others
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_in_what_programs_say() {
        let nft = "iptables-nft-restore v1.8.9 (nf_tables): \nline 31: RULE_INSERT failed (Invalid argument): rule in \
                   chain POSTROUTING\nline 32: RULE_APPEND failed (Invalid argument): rule in chain SHUNT-B";
        assert_eq!(lines_named(nft), [31, 32]);
        assert_eq!(lines_named("Error occurred at line: 7\nTry `iptables-restore -h' for more information."), [7]);
        assert_eq!(lines_named("iptables-restore: line 33 failed"), [33]);
        assert!(lines_named("iptables-restore: invalid option").is_empty());
    }
}
