//! The nftables data path for packets: maps from what is dialled to endpoints, in one table for each family.
//!
//! Flow: plan → `image` (pure) → `difference` (pure) → `script` (pure) → `nft` (thin). No chain is per service or
//! endpoint, except with session affinity: `chain` has one for each shape of a frontend.

mod affinity;
mod chain;
mod collection;
mod difference;
mod disturbance;
mod door;
mod hooks;
mod image;
mod installed;
mod keeper;
mod leftovers;
mod nft;
mod probe;
mod script;
#[cfg(test)]
mod tests;
pub(super) mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use shunt_model::Family;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use self::collection::{Collection, word};
use self::difference::{Change, Counts, Image, Named, Wrong};
use self::disturbance::Disturbances;
pub(super) use self::door::{open, probe, remove, retire};
use self::installed::{Client, Installed, Maker};
use self::leftovers::Leftovers;
use self::nft::{Nft, NftError};
use self::script::{Around, Script, TABLE, Unused, moved};
use super::{Datapath, Number, NumberKind, PacketOptions, Report, SyncError, Synced};
use crate::plan::{NodePorts, Plan, PodInterface, PortKey};

/// How many service ports are found at fault, and how many are tried again, in one sync: each costs a transaction.
const AT_A_TIME: usize = 8;

/// For so many lines the kernel's reports, one for each element, cost more than the change.
const LARGE: usize = 2000;

/// What rules depend on beside the service ports.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rendering {
    /// The families that have a table.
    families: BTreeSet<Family>,
    masquerade_mark: u32,
    drop_invalid: bool,
    /// The node reaches its node ports at 127.0.0.0/8.
    loopback_node_ports: bool,
    /// Packets of pods come in here, and not from networks.
    pod_interface: Option<PodInterface>,
}

impl Rendering {
    fn of(plan: &Plan, options: PacketOptions, families: &BTreeSet<Family>) -> Self {
        let PacketOptions { masquerade_mark, drop_invalid, loopback_node_ports } = options;
        let loopback = plan.addresses.get(&IpAddr::V4(Ipv4Addr::LOCALHOST)).and_then(|meaning| meaning.node_ports);
        Self {
            families: families.clone(),
            masquerade_mark,
            drop_invalid,
            loopback_node_ports: loopback_node_ports && loopback == Some(NodePorts::FromNodeOnly),
            pod_interface: plan.pods.interface.clone(),
        }
    }

    /// The rule that asks for source NAT (TP-43).
    fn mark(&self) -> String {
        format!("meta mark set meta mark or {:#x}", self.masquerade_mark)
    }
}

/// The nftables data path of this node.
#[derive(Debug)]
struct Nftables {
    nft: Nft,
    options: PacketOptions,
    families: BTreeSet<Family>,
    /// What the tables hold, without what was refused.
    synced: Plan,
    counts: Counts,
    /// By what the rules were made; `None` if what is installed is not known.
    rendering: Option<Rendering>,
    leftovers: Leftovers,
    refused: BTreeMap<PortKey, String>,
    /// The last one that was tried again.
    retried: Option<PortKey>,
    tally: Tally,
    /// What other programs did to our tables.
    disturbances: Disturbances,
    /// Until then no look at what others did.
    rests_until: Option<Instant>,
    reports: watch::Sender<Report>,
}

/// What is counted for `/metrics`.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    transactions: u64,
    failures: u64,
}

/// A transaction that the kernel or nft did not take.
#[derive(Debug)]
struct Failure {
    error: NftError,
    cause: Cause,
}

/// What a transaction failed for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cause {
    /// It was refused for this service port.
    Port(PortKey),
    /// It was refused.
    Refused,
    /// The command did not end by itself: the kernel may have taken the transaction.
    Command,
}

impl Nftables {
    fn new(
        nft: Nft,
        options: PacketOptions,
        families: BTreeSet<Family>,
        disturbances: Disturbances,
        reports: watch::Sender<Report>,
    ) -> Self {
        Self {
            nft,
            options,
            families,
            synced: Plan::default(),
            counts: Counts::default(),
            rendering: None,
            leftovers: Leftovers::default(),
            refused: BTreeMap::new(),
            retried: None,
            tally: Tally::default(),
            disturbances,
            rests_until: None,
            reports,
        }
    }

    /// What the kernel holds in our tables.
    fn read(&self) -> Result<Installed, SyncError> {
        let mut installed = Installed::default();
        for family in &self.families {
            let ip = word(*family);
            match self.nft.run(&["-j", "list", "table", ip, TABLE], "") {
                Ok(listing) => installed.add(*family, &listing).map_err(|error| read_failed(error.into()))?,
                Err(NftError::Refused { reason, .. }) if is_missing(&reason) => {}
                Err(error) => return Err(read_failed(io::Error::other(error))),
            }
        }
        match installed.tables.iter().find(|(_, maker)| **maker == Maker::Foreign) {
            Some((family, _)) => Err(read_failed(io::Error::other(foreign(*family)))),
            None => Ok(installed),
        }
    }

    /// Leads from what is installed to a plan. What is right is not touched.
    fn write_all(&mut self, plan: &Plan, rendering: &Rendering, installed: Installed) -> Result<(u64, Wrong), Failure> {
        let around = around(&installed, rendering);
        let (image, counts) = Image::of(plan, rendering);
        let around = Around { moved: moved_clients(&installed, &image.clients, around.replaced.clone()), ..around };
        let installed = without(installed, &around.replaced);
        let former = std::mem::take(&mut self.leftovers);
        for other in &installed.others {
            self.leftovers.put(other.clone(), Instant::now());
        }
        let change = Change::from_installed(&installed, image);
        let wrong = change.wrong(&former);
        let writes = self.commit(change, &around)?;
        self.counts = counts;
        Ok((writes, wrong))
    }

    /// Leads from the last plan to a plan.
    fn write_difference(&mut self, plan: &Plan, rendering: &Rendering) -> Result<u64, Failure> {
        let change = Change::between(&self.synced, plan, &mut self.counts, rendering);
        if change.is_empty() {
            self.refused.extend(change.refused);
            return Ok(0);
        }
        let moves = change.clients.iter().filter_map(|(name, step)| Some((name, step.old.and(step.new)?)));
        let moved = moves.map(|(name, timeout)| self.moved(name, timeout).map(|clients| (name.clone(), clients)));
        let around = Around { moved: moved.collect::<Result<_, _>>()?, ..Around::default() };
        self.commit(change, &around)
    }

    /// The clients of a set, with a new time-out.
    fn moved(&self, (family, name): &Named, timeout: u32) -> Result<Vec<Client>, Failure> {
        let listing = self.nft.run(&["-j", "list", "set", word(*family), TABLE, name], "")?;
        let clients = installed::clients(&listing).map_err(|error| NftError::Refused {
            reason: format!("{name} is listed in a way that is not known: {error}"),
            line: None,
        })?;
        Ok(clients.iter().filter_map(|client| moved(client, timeout)).collect())
    }

    /// Writes a change in one transaction.
    fn commit(&mut self, change: Change, around: &Around) -> Result<u64, Failure> {
        let script = Script::of(&change, around);
        self.tally.transactions += 1;
        let outcome = match script.lines() > LARGE {
            true => self.disturbances.unheard(|| self.nft.apply(&script)),
            false => self.nft.apply(&script),
        };
        self.tally.failures += u64::from(outcome.is_err());
        self.tell_numbers();
        outcome.map_err(|error| {
            let cause = match &error {
                NftError::Refused { line, .. } => {
                    line.and_then(|line| script.owner(line)).map_or(Cause::Refused, |key| Cause::Port(key.clone()))
                }
                NftError::Command(_) => Cause::Command,
            };
            Failure { error, cause }
        })?;
        let writes = change.writes();
        self.note_unused(&change);
        self.refused.extend(change.refused);
        Ok(writes)
    }

    /// Chains are deleted in a transaction of their own, later.
    fn note_unused(&mut self, change: &Change) {
        let chains = change.chains.iter().map(|(name, step)| ("chain", name, step.new.is_none()));
        let clients = change.clients.iter().map(|(name, step)| ("set", name, step.new.is_none()));
        let now = Instant::now();
        for (kind, (family, name), gone) in chains.chain(clients) {
            let thing = Unused { family: *family, kind, name: name.clone() };
            match gone {
                true => self.leftovers.put(thing, now),
                false => self.leftovers.remove(&thing),
            }
        }
    }

    fn delete_unused(&mut self, now: Instant) {
        for batch in self.leftovers.take(now) {
            let Err(error) = self.nft.apply(&Script::delete(&batch)) else { continue };
            let is_gone = matches!(&error, NftError::Refused { reason, .. } if is_missing(reason));
            if is_gone && batch.len() == 1 {
                continue;
            }
            let (reason, unused) = (shunt_model::with_causes(&error), batch.len());
            debug!(reason, unused, "chains and sets that nothing uses are not deleted; they do no harm: trying again");
            self.leftovers.put_back(batch, now);
        }
    }

    fn tell_numbers(&self) {
        let Tally { transactions, failures } = self.tally;
        let counter = |name, help, value| Number { name, help, kind: NumberKind::Counter, value };
        let numbers = vec![
            counter("nftables_transactions", "Transactions that were sent to nft", transactions),
            counter("nftables_transaction_failures", "Transactions that nft or the kernel refused", failures),
        ];
        self.reports.send_modify(|report| report.numbers = numbers);
    }

    /// Writes `plan`, without what is refused.
    fn write(&mut self, plan: &Plan, rendering: &Rendering) -> Result<(Plan, u64), SyncError> {
        let mut plan = plan.clone();
        self.refused.retain(|key, _| plan.ports.contains_key(key));
        for key in self.refused.keys() {
            plan.ports.remove(key);
        }
        if self.rendering.as_ref() == Some(rendering) {
            match self.write_difference(&plan, rendering) {
                Ok(writes) => return Ok((plan, writes)),
                Err(Failure { error, .. }) => {
                    let reason = shunt_model::with_causes(&error);
                    warn!(reason, "a change failed: reading back what is installed");
                }
            }
        }
        self.rendering = None;
        let writes = self.write_without_refused(&mut plan, rendering)?;
        Ok((plan, writes))
    }

    /// Leads from what is installed to a plan, without the service ports that are refused. What is installed is read
    /// once: a transaction that is refused changes nothing. Where many seem at fault, it may be the tables.
    fn write_without_refused(&mut self, plan: &mut Plan, rendering: &Rendering) -> Result<u64, SyncError> {
        let mut installed = self.read()?;
        let (mut blamed, mut anew) = (0_usize, false);
        loop {
            let Failure { error, cause } = match self.write_all(plan, rendering, installed.clone()) {
                Ok((writes, _)) => return Ok(writes),
                Err(failure) => failure,
            };
            match cause {
                // The next sync goes on without those that are known by then.
                Cause::Port(key) if blamed < AT_A_TIME && plan.ports.contains_key(&key) => {
                    blamed += 1;
                    plan.ports.remove(&key);
                    self.refused.insert(key, shunt_model::with_causes(&error));
                }
                Cause::Port(_) | Cause::Refused if !anew => {
                    let reason = shunt_model::with_causes(&error);
                    warn!(reason, "the tables cannot be repaired: replacing them whole");
                    anew = true;
                    installed.misplaced = true;
                }
                Cause::Port(_) | Cause::Refused | Cause::Command => return Err(write_failed(error)),
            }
        }
    }

    /// Tries again what was refused before, each alone: it must not keep the others from their plan. A few at a time,
    /// in turn.
    fn retry_refused(&mut self, former: &[PortKey], plan: &Plan, rendering: &Rendering) -> u64 {
        let mut written = 0_u64;
        for key in in_turn(former, self.retried.as_ref()) {
            self.retried = Some(key.clone());
            let Some(port) = plan.ports.get(key) else { continue };
            let Some(before) = self.refused.remove(key) else { continue };
            let mut with = self.synced.clone();
            with.ports.insert(key.clone(), Arc::clone(port));
            match self.write_difference(&with, rendering) {
                Ok(_) if self.refused.contains_key(key) => {}
                Ok(writes) => {
                    written = written.saturating_add(writes);
                    self.synced = with;
                }
                Err(Failure { cause, .. }) => {
                    self.refused.insert(key.clone(), before);
                    if cause == Cause::Command {
                        // The next sync reads back what was done.
                        self.rendering = None;
                        break;
                    }
                    self.counts.undo(&self.synced, &with, rendering);
                }
            }
        }
        written
    }
}

impl Datapath for Nftables {
    fn sync(&mut self, plan: &Plan) -> Result<Synced, SyncError> {
        let started = Instant::now();
        let rendering = Rendering::of(plan, self.options, &self.families);
        let former: Vec<PortKey> = self.refused.keys().cloned().collect();
        let (mut written, writes) = self.write(plan, &rendering)?;
        // Those that the image refused have nothing in the tables.
        for key in self.refused.keys() {
            written.ports.remove(key);
        }
        (self.synced, self.rendering) = (written, Some(rendering.clone()));
        self.tell_installed(None);
        let retried = if former.is_empty() { 0 } else { self.retry_refused(&former, plan, &rendering) };
        let refused = self.refused.iter().map(|(key, reason)| (key.clone(), reason.clone())).collect();
        let writes = writes.saturating_add(retried);
        Ok(Synced { writes, refused, elapsed: started.elapsed(), ..Synced::default() })
    }

    /// Packets reach no socket of the node's own DNS through these tables: sockets of this node do, by their own path.
    fn mark_own_dns(&mut self, _sockets: &[OwnedFd]) -> Result<(), SyncError> {
        Ok(())
    }

    fn audit(&mut self) -> Result<u64, SyncError> {
        if self.rendering.is_none() {
            return Ok(0); // The next sync reads everything back.
        }
        let repaired = self.keep()?;
        self.delete_unused(Instant::now());
        Ok(repaired)
    }
}

impl From<NftError> for Failure {
    fn from(error: NftError) -> Self {
        let cause = match &error {
            NftError::Refused { .. } => Cause::Refused,
            NftError::Command(_) => Cause::Command,
        };
        Self { error, cause }
    }
}

/// The next few of these service ports after the last one.
fn in_turn<'a>(ports: &'a [PortKey], last: Option<&PortKey>) -> impl Iterator<Item = &'a PortKey> + use<'a> {
    let start = ports.partition_point(|key| last.is_some_and(|last| key <= last));
    let (first, next) = ports.split_at_checked(start).unwrap_or_default();
    next.iter().chain(first).take(AT_A_TIME)
}

/// What must be declared before elements and rules are written.
fn around(installed: &Installed, rendering: &Rendering) -> Around {
    let replace =
        |(family, maker): (&Family, &Maker)| (*maker == Maker::OtherVersion || installed.misplaced).then_some(*family);
    let replaced: Vec<Family> = installed.tables.iter().filter_map(replace).collect();
    let families = rendering.families.iter().copied();
    // Also those that are there: to add one again wakes it, if somebody has made it dormant, which no listing says.
    let tables = families.clone().collect();
    let all = families.flat_map(|family| Collection::all().map(move |collection| (family, collection)));
    let is_there =
        |wanted: &(Family, Collection)| installed.collections.contains(wanted) && !replaced.contains(&wanted.0);
    let collections = all.filter(|wanted| !is_there(wanted)).collect();
    if !replaced.is_empty() {
        info!(tables = replaced.len(), "replacing tables of another version, or whose chains were moved");
    }
    Around { replaced, tables, collections, moved: Vec::new() }
}

/// The clients of sets whose time-out is another one now, and of sets whose table is replaced.
fn moved_clients(
    installed: &Installed,
    wanted: &BTreeMap<Named, u32>,
    replaced: Vec<Family>,
) -> Vec<(Named, Vec<Client>)> {
    let moves = |(name, clients): (&Named, &Vec<Client>)| {
        let timeout = *wanted.get(name)?;
        let differs = clients.iter().any(|client| client.timeout != timeout);
        let stays = || clients.iter().filter_map(|client| moved(client, timeout)).collect();
        (differs || replaced.contains(&name.0)).then(|| (name.clone(), stays()))
    };
    installed.clients.iter().filter_map(moves).collect()
}

/// What is installed without the tables that are replaced.
fn without(mut installed: Installed, replaced: &[Family]) -> Installed {
    installed.elements.retain(|place, _| !replaced.contains(&place.family));
    installed.chains.retain(|(family, _), _| !replaced.contains(family));
    installed.clients.retain(|(family, _), _| !replaced.contains(family));
    installed.others.retain(|other| !replaced.contains(&other.family));
    installed
}

/// What to do about a table that is not ours.
fn foreign(family: Family) -> String {
    let ip = word(family);
    format!(
        "the table {ip} {TABLE} was not made by shunt, which needs a table of this name: look at it with `nft list table \
         {ip} {TABLE}`, and rename it or remove it with `nft delete table {ip} {TABLE}`"
    )
}

/// Whether nft says that a thing is not there.
fn is_missing(reason: &str) -> bool {
    reason.contains("No such file or directory")
}

fn read_failed(source: io::Error) -> SyncError {
    SyncError::Read { object: "nftables tables", source }
}

fn write_failed(error: NftError) -> SyncError {
    SyncError::Write { object: "nftables tables", source: io::Error::other(error) }
}
