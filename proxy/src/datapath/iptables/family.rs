//! One family: writes what leads to a plan, and leaves out the service ports of which the kernel refuses a rule.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use shunt_model::Family;

use super::change::{Changes, Script};
use super::dump::{self, Dump, Found};
use super::image::Image;
use super::programs::{Programs, RunError};
use super::rule::Table;
use super::watch::Seen;
use crate::datapath::{Number, NumberKind, PacketOptions, SyncError};
use crate::plan::{Plan, PortKey};

/// How many refused service ports of a family one sync tries again; the next sync goes on with the others.
const RETRIES: usize = 16;
/// What a sync writes.
const RULES: &str = "the iptables rules";

/// What is known of one family.
#[derive(Debug)]
pub(super) struct FamilyState {
    pub(super) family: Family,
    /// What is installed; unknown at the start and after a failure.
    pub(super) image: Option<Image>,
    /// How the tables looked after it was written.
    pub(super) seen: Option<Seen>,
    /// The tables are not compared before.
    pub(super) rests_until: Option<Instant>,
    /// What the kernel does not take, with what it says.
    pub(super) refused: BTreeMap<PortKey, String>,
    /// The one that was tried again last.
    tried: Option<PortKey>,
}

/// How tables are written.
pub(super) struct Pen<'a> {
    pub(super) programs: &'a Programs,
    pub(super) options: PacketOptions,
    pub(super) tally: &'a mut Tally,
}

/// What is counted for `/metrics`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    restores: u64,
    failures: u64,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Written {
    pub(super) lines: u64,
    pub(super) commits: u32,
}

impl Tally {
    pub(super) fn count(&mut self, outcome: &Result<(), RunError>) {
        self.restores = self.restores.saturating_add(1);
        self.failures = self.failures.saturating_add(u64::from(outcome.is_err()));
    }

    pub(super) fn numbers(self) -> Vec<Number> {
        let counter = |name, help, value| Number { name, help, kind: NumberKind::Counter, value };
        vec![
            counter("iptables_restores", "Runs of iptables-restore that write rules", self.restores),
            counter("iptables_restore_failures", "Those that failed", self.failures),
        ]
    }
}

impl Pen<'_> {
    fn write(&mut self, family: Family, script: &Script, written: &mut Written) -> Result<(), RunError> {
        if script.is_empty() {
            return Ok(());
        }
        let outcome = self.programs.restore(family, script);
        self.tally.count(&outcome);
        let (lines, commits) = match &outcome {
            Ok(()) => (script.writes(), script.commits()),
            Err(RunError::Refused { lines, .. }) => {
                (0, lines.iter().min().map_or(0, |line| script.commits_before(*line)))
            }
            Err(RunError::Command(_) | RunError::Locked { .. }) => (0, 0),
        };
        written.lines = written.lines.saturating_add(lines);
        written.commits = written.commits.saturating_add(commits);
        outcome
    }
}

impl FamilyState {
    pub(super) fn new(family: Family) -> Self {
        Self { family, image: None, seen: None, rests_until: None, refused: BTreeMap::new(), tried: None }
    }

    /// Writes what leads to the plan, whatever the kernel refuses of single service ports.
    pub(super) fn bring(&mut self, plan: &Plan, pen: &mut Pen<'_>, written: &mut Written) -> Result<(), SyncError> {
        self.refused.retain(|key, _| plan.ports.contains_key(key));
        let before = self.refused.clone();
        let (mut image, culprits) = match self.write_others(plan, pen, written) {
            Ok(written) => written,
            Err(error) => {
                // None of them was at fault.
                self.refused = before;
                return Err(error);
            }
        };
        self.retry(&mut image, &culprits, plan, pen, written)?;
        self.image = Some(image);
        Ok(())
    }

    /// Writes all but what is refused. Each failure leaves out at least one service port more. Returns those that
    /// were named alone, too.
    fn write_others(
        &mut self,
        plan: &Plan,
        pen: &mut Pen<'_>,
        written: &mut Written,
    ) -> Result<(Image, Vec<PortKey>), SyncError> {
        let wanted = without(plan, &self.refused);
        let (mut image, mut changes) = match self.image.take() {
            Some(mut image) => {
                let changes = image.update(&wanted);
                (image, changes)
            }
            None => {
                let image = Image::of(&wanted, self.family, pen.options);
                let (changes, _) = read_back(pen.programs, &image)?;
                (image, changes)
            }
        };
        let mut culprits = Vec::new();
        loop {
            let script = changes.script(pen.programs.pieces());
            let Err(error) = pen.write(self.family, &script, written) else { break };
            let reason = error.to_string();
            let named = at_fault(error, &script, &image)?;
            if let [culprit] = named.as_slice() {
                culprits.push(culprit.clone());
            }
            self.refused.extend(named.into_iter().map(|key| (key, reason.clone())));
            image.update(&without(plan, &self.refused));
            // A part of it may have been written.
            (changes, _) = read_back(pen.programs, &image)?;
        }
        Ok((image, culprits))
    }

    /// Tries again what was refused, each alone: it must not keep the others from their plan.
    fn retry(
        &mut self,
        image: &mut Image,
        culprits: &[PortKey],
        plan: &Plan,
        pen: &mut Pen<'_>,
        written: &mut Written,
    ) -> Result<(), SyncError> {
        let mut wanted = without(plan, &self.refused);
        for key in self.next_to_try(culprits) {
            let Some(port) = plan.ports.get(&key) else { continue };
            wanted.ports.insert(key.clone(), Arc::clone(port));
            let changes = image.update(&wanted);
            let commits = written.commits;
            match pen.write(self.family, &changes.script(pen.programs.pieces()), written) {
                Ok(()) => drop(self.refused.remove(&key)),
                Err(error @ RunError::Refused { .. }) => {
                    wanted.ports.remove(&key);
                    let back = image.update(&wanted);
                    let nothing_written = error.names_lines() && written.commits == commits;
                    if !nothing_written {
                        // Whatever part of it was written, this leads back.
                        let undone = pen.write(self.family, &back.script(pen.programs.pieces()), written);
                        undone.map_err(|error| failed(io::Error::other(error)))?;
                    }
                    self.refused.insert(key.clone(), error.to_string());
                }
                Err(error @ (RunError::Command(_) | RunError::Locked { .. })) => {
                    return Err(failed(io::Error::other(error)));
                }
            }
            self.tried = Some(key);
        }
        Ok(())
    }

    fn next_to_try(&self, culprits: &[PortKey]) -> Vec<PortKey> {
        let comes_later = |key: &&PortKey| self.tried.as_ref().is_none_or(|tried| *key > tried);
        let later = self.refused.keys().filter(comes_later);
        let others = later.chain(self.refused.keys().filter(|key| !comes_later(key)));
        others.filter(|key| !culprits.contains(key)).take(RETRIES).cloned().collect()
    }
}

pub(super) fn failed(source: io::Error) -> SyncError {
    SyncError::Write { object: RULES, source }
}

fn without(plan: &Plan, refused: &BTreeMap<PortKey, String>) -> Plan {
    let mut plan = plan.clone();
    for key in refused.keys() {
        plan.ports.remove(key);
    }
    plan
}

/// The service ports of the rules that were refused; fails if there is none.
pub(super) fn at_fault(error: RunError, script: &Script, image: &Image) -> Result<Vec<PortKey>, SyncError> {
    let RunError::Refused { lines, .. } = &error else { return Err(failed(io::Error::other(error))) };
    let owners = image.owners();
    let mut keys: Vec<PortKey> = lines
        .iter()
        .filter_map(|line| script.owner(*line))
        .filter_map(|chain| owners.get(chain).map(|key| (*key).clone()))
        .collect();
    keys.sort();
    keys.dedup();
    if keys.is_empty() { Err(failed(io::Error::other(error))) } else { Ok(keys) }
}

/// What the kernel has, and what leads from there to the image.
pub(super) fn read_back(programs: &Programs, image: &Image) -> Result<(Changes, Found), SyncError> {
    let save = |table| {
        let text = programs.save(image.family(), table);
        text.map_err(|error| SyncError::Read { object: RULES, source: io::Error::other(error) })
    };
    let (nat, filter) = (save(Table::Nat)?, save(Table::Filter)?);
    Ok(dump::compare(image, Dump::parse(&nat), Dump::parse(&filter)))
}
