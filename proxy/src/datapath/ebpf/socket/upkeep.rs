//! Upkeep beside the tables: follows the namespaces that opt out, destroys sockets that have lost their endpoint, and
//! tests whether the programs are in effect. Each round looks at the present state and depends on no event.

mod rounds;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proxy_abi::{AffinityKey, Namespace as Known, maps};
use shunt_model::with_causes;
use tracing::{debug, info, warn};

use super::super::layout::write::address as words;
use super::super::orders::Orders;
use super::super::pins::Pins;
use super::super::tables::kernel::{TableError, open};
use super::super::tables::node::OptOuts;
use super::foreign::{Foreign, foreign};
use super::programs::FlowLists;
use super::sweep::{SECOND_LOOK, Search, Sweeper, Swept};
use super::{coverage, selftest};
use crate::datapath::SyncError;
use crate::host::netns::{Inventory, Namespace, Scanner};
use crate::sys::bpf;

/// How often the self-test runs and a round does everything.
const CHECKUP: Duration = Duration::from_mins(1);
/// The pause before a self-test that failed runs again.
const RECHECK: Duration = Duration::from_secs(2);
/// How often a round searches for namespaces while something depends on them.
const SCAN: Duration = Duration::from_secs(1);
/// Sweeps take at most a fifth of the time of one core.
const REST: u32 = 4;

/// What the rounds found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::datapath::ebpf) struct Findings {
    /// The reasons why the programs are not in effect.
    pub(in crate::datapath::ebpf) not_in_effect: Vec<String>,
    /// Programs of other tools at our hooks.
    pub(in crate::datapath::ebpf) foreign: Vec<Foreign>,
    /// Network namespaces seen.
    pub(in crate::datapath::ebpf) namespaces: usize,
    /// Of these, how many opted out.
    pub(in crate::datapath::ebpf) opted_out: usize,
    /// Sockets destroyed so far because their endpoint had left or their frontend had changed.
    pub(in crate::datapath::ebpf) destroyed: u64,
    /// Clients that session affinity knows, at the last checkup; clients that come and go meanwhile may count twice or
    /// not at all.
    pub(in crate::datapath::ebpf) clients: usize,
    /// Self-tests run so far.
    pub(in crate::datapath::ebpf) checkups: u64,
    /// Rounds and parts of rounds that failed so far.
    pub(in crate::datapath::ebpf) failures: u64,
}

/// Does the rounds. Writes [`OptOuts`] and only reads all other tables.
#[derive(Debug)]
pub(in crate::datapath::ebpf) struct Upkeep {
    cgroup: PathBuf,
    /// The cgroup should be above all pods of the node.
    covers_all: bool,
    links: PathBuf,
    scanner: Scanner,
    inventory: Inventory,
    opt_outs: OptOuts,
    sweeper: Sweeper,
    affinity: OwnedFd,
    orders: Orders,
    /// What sweeps have followed so far; `None` after a start: endpoints may have left and frontends may have come
    /// while no daemon ran.
    followed: Option<Followed>,
    /// What the present sweeps look for.
    search: Search,
    /// Two sweeps have been made for the last departure.
    looked_twice: bool,
    due: Due,
    findings: Findings,
}

/// The counts of what asks for a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Followed {
    /// As in the orders.
    departed: u64,
    /// As in the orders.
    frontends: u64,
    /// How often programs were attached again that others had detached.
    restored: u64,
}

impl Followed {
    /// What is to be looked for after `before`: departures alone make no socket older than its frontend.
    fn search_after(self, before: Option<Self>) -> Search {
        let nothing_older = |before: Self| (before.frontends, before.restored) == (self.frontends, self.restored);
        if before.is_some_and(nothing_older) { Search::Ended } else { Search::EndedAndOlder }
    }
}

/// A part of a round failed.
#[derive(Debug, thiserror::Error)]
enum UpkeepError {
    /// Reading the state of the host.
    #[error("looking at the host")]
    Host(#[from] io::Error),
    /// Writing for the programs.
    #[error(transparent)]
    Tables(#[from] SyncError),
}

/// When each part of a round is due next.
#[derive(Clone, Copy, Debug)]
struct Due {
    scan: Instant,
    checkup: Instant,
    sweep: Option<Instant>,
    /// No sweep before this.
    rested: Instant,
}

impl Upkeep {
    pub(in crate::datapath::ebpf) fn open(
        cgroup: &Path,
        covers_all: bool,
        pins: &Pins,
        (opt_outs, lists): (OptOuts, FlowLists),
    ) -> Result<Self, TableError> {
        let named = ["/run/netns", "/var/run/netns"].map(PathBuf::from);
        let now = Instant::now();
        Ok(Self {
            cgroup: cgroup.to_owned(),
            covers_all,
            links: pins.links.clone(),
            scanner: Scanner::new(Path::new("/proc"), &named),
            inventory: Inventory::default(),
            opt_outs,
            sweeper: Sweeper::open(pins, lists, cgroup)?,
            affinity: open(&pins.maps, &maps::AFFINITY)?,
            orders: Orders::default(),
            followed: None,
            search: Search::Ended,
            looked_twice: false,
            due: Due { scan: now, checkup: now, sweep: None, rested: now },
            findings: Findings::default(),
        })
    }

    /// Takes new orders: a round is due at once. `restored`: how often programs were attached again that others had
    /// detached.
    fn take(&mut self, orders: Orders, restored: u64) {
        let now = Instant::now();
        let latest = Followed { departed: orders.departed, frontends: orders.frontends, restored };
        let opted_in = self.orders.opted_out.difference(&orders.opted_out).next().is_some();
        if self.followed != Some(latest) || opted_in {
            if opted_in || latest.search_after(self.followed) == Search::EndedAndOlder {
                // What a sweep under way looks for, the next one still does.
                self.search = Search::EndedAndOlder;
            }
            self.followed = Some(latest);
            self.looked_twice = false;
            self.due.sweep = Some(now.max(self.due.rested));
        }
        if (&orders.opted_out, orders.sources) != (&self.orders.opted_out, self.orders.sources) {
            self.due.scan = now;
        }
        self.orders = orders;
    }

    /// When the next round is due.
    fn next(&self) -> Instant {
        let next = self.due.scan.min(self.due.checkup);
        self.due.sweep.map_or(next, |sweep| sweep.min(next))
    }

    /// Does what is due.
    fn round(&mut self) -> &Findings {
        let now = Instant::now();
        let sweep = self.due.sweep.is_some_and(|due| due <= now);
        if self.due.scan <= now || sweep {
            let outcome = self.scan();
            self.note("looking for network namespaces", outcome);
            let needed = self.orders.sources || !self.orders.opted_out.is_empty();
            self.due.scan = now + if needed { SCAN } else { CHECKUP };
        }
        if sweep {
            self.sweep(now);
        }
        if self.due.checkup <= now {
            self.check_up();
            // The programs may be attached again by now.
            self.due.checkup = now + if self.findings.not_in_effect.is_empty() { CHECKUP } else { RECHECK };
        }
        &self.findings
    }

    fn note(&mut self, doing: &'static str, outcome: Result<(), UpkeepError>) {
        if let Err(error) = outcome {
            self.findings.failures = self.findings.failures.saturating_add(1);
            warn!(doing, reason = with_causes(&error), "upkeep is incomplete; the next round retries it");
        }
    }

    /// Writes the namespaces of this node for the programs, and removes those that are gone.
    fn scan(&mut self) -> Result<(), UpkeepError> {
        self.inventory = self.scanner.scan()?;
        let pods = self.inventory.namespaces.iter().filter(|namespace| !namespace.own);
        let wanted: BTreeMap<u64, Known> =
            pods.map(|namespace| (namespace.cookie, known(namespace, &self.orders.opted_out))).collect();
        self.findings.namespaces = self.inventory.namespaces.len();
        self.findings.opted_out = self.opt_outs.apply(&wanted)?;
        Ok(())
    }

    fn sweep(&mut self, began: Instant) {
        let opted_out = |namespace: &Namespace| is_out(namespace, &self.orders.opted_out);
        let swept = self.sweeper.sweep(&self.inventory, &opted_out, self.search);
        let goes_on = goes_on(&swept, self.looked_twice);
        let Swept { ended, pending, destroyed, failed } = swept;
        debug!(
            ended,
            pending,
            destroyed,
            namespaces = self.inventory.namespaces.len(),
            unreadable = self.inventory.unreadable,
            search = ?self.search,
            "looked for sockets of endpoints that left"
        );
        if destroyed > 0 {
            let elapsed = began.elapsed();
            info!(destroyed, ?elapsed, "destroyed sockets of endpoints that left or of frontends that changed");
        }
        self.findings.destroyed = self.findings.destroyed.saturating_add(u64::try_from(destroyed).unwrap_or(u64::MAX));
        let incomplete = !failed.is_empty();
        for (cookie, error) in failed {
            self.findings.failures = self.findings.failures.saturating_add(1);
            warn!(cookie, error, "the sockets of this network namespace cannot be listed or destroyed");
        }
        let now = Instant::now();
        self.due.rested = now + now.duration_since(began) * REST;
        if !goes_on {
            self.search = Search::Ended;
        }
        self.looked_twice = goes_on;
        self.due.sweep = goes_on.then(|| now + if incomplete { SCAN } else { SECOND_LOOK });
    }

    fn count(&mut self) -> Result<(), UpkeepError> {
        self.findings.clients = bpf::read_words::<{ size_of::<AffinityKey>() }>(self.affinity.as_fd())?.len();
        Ok(())
    }

    fn check_up(&mut self) {
        self.findings.checkups = self.findings.checkups.saturating_add(1);
        let mut reasons = Vec::new();
        if let Err(error) = selftest::probe() {
            reasons.push(with_causes(&error));
        }
        match coverage::uncovered(&self.cgroup, &self.inventory) {
            Ok(uncovered) if self.covers_all => reasons.extend(uncovered.first().map(|(process, cgroup)| {
                let count = uncovered.len();
                format!(
                    "{count} processes in network namespaces of this node are outside of the served cgroup {}, the first \
                     is {process} in {cgroup}; attach at the cgroup2 root of the host (--cgroup-root)",
                    self.cgroup.display()
                )
            })),
            Ok(_) => {}
            Err(error) => self.note("comparing cgroups", Err(error.into())),
        }
        for reason in reasons.iter().filter(|reason| !self.findings.not_in_effect.contains(reason)) {
            warn!(reason, "the socket programs are not in effect");
        }
        self.findings.not_in_effect = reasons;
        let counted = self.count();
        self.note("counting the clients of session affinity", counted);
        match foreign(&self.cgroup, &self.links) {
            Ok(found) => {
                for program in found.iter().filter(|program| !self.findings.foreign.contains(program)) {
                    warn!(%program, "a program of another tool is attached to the same hook; it sees and changes the same addresses");
                }
                self.findings.foreign = found;
            }
            Err(error) => self.note("asking which programs are attached", Err(error.into())),
        }
    }
}

/// Sweeps go on until one finds nothing, and there are at least two.
fn goes_on(Swept { ended: _, pending, destroyed, failed }: &Swept, looked_twice: bool) -> bool {
    !looked_twice || *pending > 0 || *destroyed > 0 || !failed.is_empty()
}

fn known(namespace: &Namespace, opted_out: &BTreeSet<IpAddr>) -> Known {
    let out = is_out(namespace, opted_out);
    let four = namespace.addresses.iter().find(|address| address.is_ipv4());
    let six = namespace.addresses.iter().find(|address| address.is_ipv6());
    let [_, _, _, address4] = four.map_or([0; 4], |address| words(*address));
    Known {
        flags: if out { Known::OPTED_OUT } else { 0 },
        address4,
        address6: six.map_or([0; 4], |address| words(*address)),
    }
}

fn is_out(namespace: &Namespace, opted_out: &BTreeSet<IpAddr>) -> bool {
    namespace.addresses.iter().any(|address| opted_out.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_older_than_their_frontend_are_looked_for_when_there_may_be_new_ones() {
        let counts = |[departed, frontends, restored]: [u64; 3]| Followed { departed, frontends, restored };
        let check = |before: Option<[u64; 3]>, latest, wanted| {
            assert_eq!(counts(latest).search_after(before.map(counts)), wanted, "{before:?} to {latest:?}");
        };
        check(None, [0, 0, 0], Search::EndedAndOlder);
        check(Some([1, 2, 3]), [9, 2, 3], Search::Ended);
        check(Some([1, 2, 3]), [1, 9, 3], Search::EndedAndOlder);
        check(Some([1, 2, 3]), [1, 2, 9], Search::EndedAndOlder);
    }

    #[test]
    fn sweeps_go_on_until_no_flow_wants_another_look() {
        let swept = |ended, pending, destroyed| Swept { ended, pending, destroyed, failed: Vec::new() };
        assert!(goes_on(&swept(0, 0, 0), false) && !goes_on(&swept(0, 0, 0), true));
        // Seven flows, of which one is not in the second list.
        assert!(goes_on(&swept(7, 7, 0), false));
        assert!(goes_on(&swept(6, 1, 6), true));
        assert!(goes_on(&swept(1, 0, 1), true));
        // Flows of sockets that may go on are listed for ever.
        assert!(!goes_on(&swept(1, 0, 0), true));
        assert!(goes_on(&Swept { failed: vec![(0, String::new())], ..swept(0, 0, 0) }, true));
    }
}
