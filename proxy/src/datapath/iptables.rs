//! The iptables data path for packets: chains with our names in the tables nat and filter, of both families.
//!
//! Flow: plan → [`image::Image`] (pure) → [`change::Changes`] (pure) → `iptables-restore` (thin). What is installed is
//! read back at the start, after a failure, and when another program has changed the tables.

mod change;
mod dump;
mod family;
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
pub(super) mod watch;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use imbl::ordmap::DiffItem;
use shunt_model::Family;
use tokio::sync::{Notify, watch as channel};
use tracing::{info, warn};

use self::change::Changes;
use self::dump::Dump;
use self::family::{FamilyState, Pen, Tally, Written};
pub(super) use self::probe::probe;
use self::programs::{Programs, RunError};
pub(super) use self::programs::{Variant, in_path};
use self::rule::Table;
use super::{Datapath, Looking, OpenedPart, Options, PacketOptions, RemoveError, Removed, Report, SyncError, Synced};
use crate::plan::Plan;

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
    tally: Tally,
    reports: channel::Sender<Report>,
    /// The last plan, until one has session affinity.
    without_affinity: Option<Plan>,
}

/// Adopts what an earlier daemon left.
pub(super) fn open(options: &Options, _disturbed: &Arc<Notify>) -> Result<OpenedPart, IptablesOpenError> {
    let found: Vec<Programs> = Variant::BOTH.into_iter().filter_map(Programs::find).collect();
    let (programs, why) = programs::choose(&found).ok_or(IptablesOpenError::Programs)?;
    let programs = programs.clone();
    let other = found.iter().find(|other| other.variant != programs.variant).cloned();
    info!(variant = %programs.variant, version = programs.version, "using iptables: {why}");
    let (reports, report) = channel::channel(Report { checked: true, ..Report::default() });
    let served = served(&programs, options.packets.masquerade_mark);
    let mut chains = 0_usize;
    for family in served.iter().copied().filter(|family| programs.variant.is_in_kernel(*family)) {
        let read = |source| IptablesOpenError::Read { variant: programs.variant, source };
        let text = programs.save_used(family).map_err(read)?;
        chains = chains.saturating_add(Dump::parse(&text).chains());
    }
    let adopted = format!("{chains} chains of iptables ({})", programs.variant);
    let path = Iptables {
        programs,
        options: options.packets,
        families: served.into_iter().map(FamilyState::new).collect(),
        other,
        tally: Tally::default(),
        reports,
        without_affinity: Some(Plan::default()),
    };
    Ok(OpenedPart {
        path: Box::new(path),
        adopted,
        reports: vec![report],
        looking: Looking::default(),
        beside: Vec::new(),
    })
}

/// The families of which the kernel takes the rules; those that this host has if that cannot be tried.
fn served(programs: &Programs, mark: u32) -> Vec<Family> {
    match probe::tried(programs, mark) {
        Ok(tried) => {
            if let Some(why) = tried.without_v6() {
                warn!("IPv6 is not served: the kernel refuses {why}");
            }
            tried.families()
        }
        Err(why) => {
            info!(why, "the matches and targets of the kernel are not tried; both families are taken to be served");
            families().collect()
        }
    }
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
        let Self { programs, options, families, tally, .. } = self;
        let before = watch::look(programs.variant, Family::V4).ok();
        let mut written = Written::default();
        let mut outcome = Ok(());
        for state in families.iter_mut() {
            let commits = written.commits;
            let mut pen = Pen { programs, options: *options, tally };
            // A family that fails keeps the other from nothing.
            let brought = state.bring(plan, &mut pen, &mut written);
            outcome = outcome.and(brought);
            if written.commits > commits {
                state.seen = None;
            }
        }
        let after = watch::look(programs.variant, Family::V4).ok();
        if keeper::follows(before, written.commits, after) {
            families.iter_mut().for_each(|state| state.seen = after);
        }
        self.tell_numbers();
        outcome?;
        let elapsed = started.elapsed();
        self.remove_other_variant();
        let refused = self.families.iter().flat_map(|state| &state.refused);
        let refused = refused.map(|(key, why)| (key.clone(), why.clone())).collect();
        Ok(Synced { writes: written.lines, refused, elapsed, ..Synced::default() })
    }

    /// Only sockets notice when the node's own DNS closes.
    fn mark_own_dns(&mut self, _sockets: &[OwnedFd]) -> Result<(), SyncError> {
        Ok(())
    }

    fn audit(&mut self) -> Result<u64, SyncError> {
        self.keep()
    }
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

    fn tell_numbers(&self) {
        self.reports.send_modify(|report| report.numbers = self.tally.numbers());
    }

    /// Once: how many clients an endpoint remembers.
    fn tell_of_affinity(&mut self, plan: &Plan) {
        let Some(looked_at) = self.without_affinity.as_mut() else { return };
        let before = std::mem::replace(looked_at, plan.clone());
        let found = before.ports.diff(&plan.ports).any(|item| match item {
            DiffItem::Add(_, port) | DiffItem::Update { old: _, new: (_, port) } => port.affinity.is_some(),
            DiffItem::Remove(_, _) => false,
        });
        if !found {
            return;
        }
        self.without_affinity = None;
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
        programs.restore(family, &changes.script(programs.pieces()))?;
        let count = nat.chains().saturating_add(filter.chains());
        let family = if family == Family::V4 { "iptables" } else { "ip6tables" };
        removed.push(Removed { count, what: "chains", place: format!("of {family} ({})", programs.variant) });
    }
    Ok(removed)
}
