//! The iptables data path for packets: chains with our names in the tables nat and filter, of both families.
//!
//! Flow: plan → [`image::Image`] (pure) → [`change::Changes`] (pure) → `iptables-restore` (thin). What is installed is
//! read back at the start, after a failure, and when another program has changed the tables.

mod change;
mod dump;
mod fixed;
mod image;
mod keeper;
mod names;
mod port;
mod probe;
mod programs;
mod rule;
mod sources;
#[cfg(test)]
mod tests;
mod tree;
pub(super) mod walk;
mod watch;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use shunt_model::Family;
use tokio::sync::{Notify, watch as channel};
use tracing::{info, warn};

use self::change::{Changes, Script};
use self::dump::{Dump, Found};
use self::image::Image;
pub(super) use self::probe::probe;
use self::programs::{Programs, RunError};
pub(super) use self::programs::{Variant, in_path};
use self::rule::Table;
use self::watch::Seen;
use super::{Datapath, OpenedPart, Options, PacketOptions, RemoveError, Removed, Report, SyncError, Synced};
use crate::plan::{Plan, PortKey};

/// In nat: from a frontend's address to what serves it.
const SERVICES: &str = "SHUNT-SERVICES";
/// In nat: from a node port to what serves it.
const NODE_PORTS: &str = "SHUNT-NODEPORTS";
/// In both tables: for packets that leave this node.
const OUTPUT: &str = "SHUNT-OUTPUT";
/// In nat: source NAT.
const POSTROUTING: &str = "SHUNT-POSTROUTING";
/// In nat: marks what leads back to its source.
const HAIRPIN: &str = "SHUNT-HAIRPIN";
/// In nat: sets the mark.
const MARK: &str = "SHUNT-MARK";
/// In nat: clears the mark.
const UNMARK: &str = "SHUNT-UNMARK";
/// In filter: for packets to this node.
const INPUT: &str = "SHUNT-INPUT";
/// In filter: for packets that pass through.
const FORWARD: &str = "SHUNT-FORWARD";
/// In filter: what an address gives to packets that were not translated.
const UNSERVED: &str = "SHUNT-UNSERVED";
/// In filter: what a node port gives to them.
const UNSERVED_NODE_PORTS: &str = "SHUNT-UNSERVED-NP";
/// In filter: refuses all but port 0.
const REFUSE: &str = "SHUNT-REFUSE";
/// In filter: what is no node port is refused.
const REFUSE_OTHERS: &str = "SHUNT-REFUSE-OTHERS";
/// In filter: silence for all but port 0.
const UNUSED: &str = "SHUNT-UNUSED";
/// In filter: accepts health checks.
const HEALTH: &str = "SHUNT-HEALTH";

/// How many service ports one sync may leave out, one after the other.
const REFUSALS: usize = 16;
/// What a sync writes.
const RULES: &str = "the iptables rules";

/// Why the data path cannot start.
#[derive(Debug, thiserror::Error)]
pub(super) enum IptablesOpenError {
    /// No programs.
    #[error("no iptables-restore in PATH; install the package iptables")]
    Programs,
    /// What is installed cannot be read.
    #[error("reading the rules of iptables ({variant})")]
    Read {
        variant: Variant,
        #[source]
        source: RunError,
    },
}

/// The iptables data path of this node.
#[derive(Debug)]
struct Iptables {
    programs: Programs,
    options: PacketOptions,
    families: Vec<FamilyState>,
    /// Those of the other variant, until what they hold of ours is removed.
    other: Option<Programs>,
    refused: BTreeMap<PortKey, String>,
    reports: channel::Sender<Report>,
    told_of_affinity: bool,
}

/// What is known of one family.
#[derive(Debug)]
struct FamilyState {
    family: Family,
    /// What is installed; unknown at the start and after a failure.
    image: Option<Image>,
    /// How the tables looked after it was written.
    seen: Option<Seen>,
    /// The tables are not compared before.
    rests_until: Option<Instant>,
}

/// Adopts what an earlier daemon left.
pub(super) fn open(options: &Options, _disturbed: &Arc<Notify>) -> Result<OpenedPart, IptablesOpenError> {
    let found: Vec<Programs> = Variant::BOTH.into_iter().filter_map(Programs::find).collect();
    let (programs, why) = programs::choose(&found).ok_or(IptablesOpenError::Programs)?;
    let programs = programs.clone();
    let other = found.iter().find(|other| other.variant != programs.variant).cloned();
    info!(variant = %programs.variant, version = programs.version, "using iptables: {why}");
    let (reports, report) = channel::channel(Report { checked: true, ..Report::default() });
    let mut chains = 0_usize;
    for family in families().filter(|family| programs.variant.is_in_kernel(*family)) {
        let read = |source| IptablesOpenError::Read { variant: programs.variant, source };
        let text = programs.save_used(family).map_err(read)?;
        chains = chains.saturating_add(Dump::parse(&text).chains());
    }
    let adopted = format!("{chains} chains of iptables ({})", programs.variant);
    let path = Iptables {
        programs,
        options: options.packets,
        families: families().map(|family| FamilyState { family, image: None, seen: None, rests_until: None }).collect(),
        other,
        refused: BTreeMap::new(),
        reports,
        told_of_affinity: false,
    };
    Ok(OpenedPart { path: Box::new(path), adopted, report, beside: Vec::new() })
}

/// The families that this host has.
fn families() -> impl Iterator<Item = Family> {
    let has = |family: &Family| match family {
        Family::V4 => true,
        Family::V6 => Path::new("/proc/net/if_inet6").exists(),
    };
    Family::BOTH.into_iter().filter(has)
}

impl Datapath for Iptables {
    fn sync(&mut self, plan: &Plan) -> Result<Synced, SyncError> {
        let started = Instant::now();
        self.tell_of_affinity(plan);
        let Self { programs, options, families, refused, .. } = self;
        // Each sync tries them again.
        refused.clear();
        let before = watch::look(programs.variant, Family::V4).ok();
        let (mut writes, mut commits) = (0_u64, 0_u32);
        for state in families.iter_mut() {
            let written = state.bring(plan, programs, *options, refused)?;
            writes = writes.saturating_add(written.lines);
            commits = commits.saturating_add(written.commits);
        }
        let undisturbed = keeper::follows(before, commits, watch::look(programs.variant, Family::V4).ok());
        for state in families.iter_mut() {
            state.seen = watch::look(programs.variant, state.family).ok().filter(|_| undisturbed);
        }
        let elapsed = started.elapsed();
        self.remove_other_variant();
        let refused = self.refused.iter().map(|(key, why)| (key.clone(), why.clone())).collect();
        Ok(Synced { writes, refused, elapsed, ..Synced::default() })
    }

    /// Only sockets notice when the node's own DNS closes.
    fn mark_own_dns(&mut self, _sockets: &[OwnedFd]) -> Result<(), SyncError> {
        Ok(())
    }

    fn audit(&mut self) -> Result<u64, SyncError> {
        self.keep()
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, Default)]
struct Written {
    lines: u64,
    commits: u32,
}

impl FamilyState {
    /// Writes what leads to the plan. A service port of which the kernel refuses a rule is left out.
    fn bring(
        &mut self,
        plan: &Plan,
        programs: &Programs,
        options: PacketOptions,
        refused: &mut BTreeMap<PortKey, String>,
    ) -> Result<Written, SyncError> {
        let mut written = Written::default();
        for _ in 0..=REFUSALS {
            let wanted = without(plan, refused);
            let (image, changes) = match self.image.take() {
                Some(mut image) => {
                    let changes = image.update(&wanted);
                    (image, changes)
                }
                None => {
                    let image = Image::of(&wanted, self.family, options);
                    let (changes, _) = read_back(programs, &image)?;
                    (image, changes)
                }
            };
            let script = changes.script();
            written.commits = written.commits.saturating_add(changes.commits());
            written.lines = written.lines.saturating_add(script.writes());
            match write(programs, self.family, &changes, &script) {
                Ok(()) => {
                    self.image = Some(image);
                    return Ok(written);
                }
                Err(error) => leave_out(error, &script, &image, refused)?,
            }
        }
        Err(failed(io::Error::other("the kernel refuses the rules of too many service ports")))
    }
}

fn failed(source: io::Error) -> SyncError {
    SyncError::Write { object: RULES, source }
}

fn without(plan: &Plan, refused: &BTreeMap<PortKey, String>) -> Plan {
    let mut plan = plan.clone();
    for key in refused.keys() {
        plan.ports.remove(key);
    }
    plan
}

/// Notes the service ports of the rules that were refused; fails if there is none.
fn leave_out(
    error: RunError,
    script: &Script,
    image: &Image,
    refused: &mut BTreeMap<PortKey, String>,
) -> Result<(), SyncError> {
    let RunError::Refused { lines, .. } = &error else { return Err(failed(io::Error::other(error))) };
    let chains = lines.iter().filter_map(|line| script.owner(*line));
    let keys: Vec<PortKey> = chains.filter_map(|(table, name)| Some(image.owner(*table, name)?.key.clone())).collect();
    if keys.is_empty() {
        return Err(failed(io::Error::other(error)));
    }
    refused.extend(keys.into_iter().map(|key| (key, error.to_string())));
    Ok(())
}

fn write(programs: &Programs, family: Family, changes: &Changes, script: &Script) -> Result<(), RunError> {
    if changes.is_empty() { Ok(()) } else { programs.restore(family, script) }
}

/// What the kernel has, and what leads from there to the image.
fn read_back(programs: &Programs, image: &Image) -> Result<(Changes, Found), SyncError> {
    let save = |table| {
        let text = programs.save(image.family(), table);
        text.map_err(|error| SyncError::Read { object: RULES, source: io::Error::other(error) })
    };
    let (nat, filter) = (save(Table::Nat)?, save(Table::Filter)?);
    Ok(dump::compare(image, Dump::parse(&nat), Dump::parse(&filter)))
}

impl Iptables {
    /// The tables of the variant that does not serve: with both in force, each packet would be looked at twice.
    fn remove_other_variant(&mut self) {
        let Some(other) = self.other.take() else { return };
        match clear(&other) {
            Ok(removed) => {
                for removed in removed {
                    info!("removed {removed}: the variant {} serves now", self.programs.variant);
                }
            }
            Err(error) => {
                let reason = shunt_model::with_causes(&error);
                warn!(reason, "rules of the other variant of iptables are not removed; the next sync tries again");
                self.other = Some(other);
            }
        }
    }

    /// Once: how many clients an endpoint remembers.
    fn tell_of_affinity(&mut self, plan: &Plan) {
        if self.told_of_affinity || plan.ports.values().all(|port| port.affinity.is_none()) {
            return;
        }
        self.told_of_affinity = true;
        let limit = std::fs::read_to_string("/sys/module/xt_recent/parameters/ip_list_tot");
        let limit = limit.map_or_else(|_| "100 unless configured otherwise".to_owned(), |text| text.trim().to_owned());
        info!(
            limit,
            "session affinity: the kernel remembers so many clients of an endpoint and forgets the oldest; the \
             parameter ip_list_tot of the module xt_recent raises it"
        );
    }
}

/// Removes all that this path has installed, in both variants. Without programs there is nothing.
pub(super) fn remove() -> Result<Vec<Removed>, RemoveError> {
    let mut removed = Vec::new();
    for programs in Variant::BOTH.into_iter().filter_map(Programs::find) {
        let error = |source: RunError| RemoveError { what: "iptables chains", source: source.into() };
        removed.extend(clear(&programs).map_err(error)?);
    }
    Ok(removed)
}

fn clear(programs: &Programs) -> Result<Vec<Removed>, RunError> {
    let mut removed = Vec::new();
    for family in families().filter(|family| programs.variant.is_in_kernel(*family)) {
        let text = programs.save_used(family)?;
        let table = |table: Table| {
            let start = format!("*{}\n", table.as_str());
            let section = text.split_once(&start).map(|(_, rest)| rest).unwrap_or_default();
            Dump::parse(section.split_once("\nCOMMIT").map_or(section, |(section, _)| section))
        };
        let (nat, filter) = (table(Table::Nat), table(Table::Filter));
        if nat.is_empty() && filter.is_empty() {
            continue;
        }
        let changes = Changes { nat: nat.removal(), filter: filter.removal(), ..Changes::default() };
        programs.restore(family, &changes.script())?;
        let count = nat.chains().saturating_add(filter.chains());
        let family = if family == Family::V4 { "iptables" } else { "ip6tables" };
        removed.push(Removed { count, what: "chains", place: format!("of {family} ({})", programs.variant) });
    }
    Ok(removed)
}
