//! What this host offers to the iptables data path, found out by trying in a network namespace that goes at once.

use nix::sched::{CloneFlags, unshare};
use shunt_model::{Family, Protocol, with_causes};

use super::change::Changes;
use super::programs::{self, Programs, RunError, Variant};
use super::rule::{Match, Rule, State, Table, Target};
use crate::datapath::{Check, CheckState, Options};
use crate::host::privileges::{self, Capability};

/// The first version with both variants and all options that are used.
const OLDEST: (u32, u32) = (1, 8);
const INSTALL: &str = "install the package iptables";

/// Checks everything that [`super::open`] needs.
pub(in crate::datapath) fn probe(options: &Options) -> Vec<Check> {
    let found: Vec<Programs> = Variant::BOTH.into_iter().filter_map(Programs::find).collect();
    let Some((programs, why)) = programs::choose(&found) else {
        let detail = format!("neither iptables-nft-restore nor iptables-legacy-restore is in PATH; {INSTALL}");
        return vec![Check { name: "iptables", state: CheckState::Missing, detail }];
    };
    let (state, detail) = match version(&programs.version) {
        Some(found) if found < OLDEST => {
            let (major, minor) = OLDEST;
            (
                CheckState::Missing,
                format!("{} is older than {major}.{minor}; {INSTALL} of a newer release", programs.version),
            )
        }
        Some(_) | None => (CheckState::Ok, format!("{}, variant {}: {why}", programs.version, programs.variant)),
    };
    let mut checks = vec![Check { name: "iptables", state, detail }];
    if let Ok(Some(Capability { name, purpose, .. })) = privileges::missing_for_iptables() {
        let detail = format!("{name} is missing, which {purpose}");
        checks.push(Check { name: "iptables", state: CheckState::Missing, detail });
    } else if state == CheckState::Ok {
        checks.push(kernel(programs, options.packets.masquerade_mark));
    }
    checks
}

/// `iptables v1.8.9 (nf_tables)`
fn version(text: &str) -> Option<(u32, u32)> {
    let number = text.split_whitespace().find_map(|word| word.strip_prefix('v'))?;
    let mut numbers = number.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn kernel(programs: &Programs, mark: u32) -> Check {
    let (state, detail) = match tried(programs, mark) {
        Ok(tried) => tried.in_words(),
        Err(why) => (CheckState::Note, format!("not tried: {why}")),
    };
    Check { name: "iptables in the kernel", state, detail }
}

/// What the kernel refuses of each family that this host has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tried(Vec<(Family, Vec<String>)>);

impl Tried {
    /// The families that are served. The path does not open without IPv4, whatever is tried.
    pub(super) fn families(&self) -> Vec<Family> {
        let Self(tried) = self;
        let served = tried.iter().filter(|(family, refused)| *family == Family::V4 || refused.is_empty());
        served.map(|(family, _)| *family).collect()
    }

    /// Why there is no IPv6, on a host that has it.
    pub(super) fn without_v6(&self) -> Option<String> {
        self.refused(Family::V6)
    }

    fn refused(&self, of: Family) -> Option<String> {
        let Self(tried) = self;
        let (_, refused) = tried.iter().find(|(family, refused)| *family == of && !refused.is_empty())?;
        Some(refused.join("; "))
    }

    fn in_words(&self) -> (CheckState, String) {
        match (self.refused(Family::V4), self.without_v6()) {
            (None, None) => (CheckState::Ok, "has all matches and targets".to_owned()),
            (None, Some(why)) => (
                CheckState::Ok,
                format!("has all matches and targets for IPv4; serves no IPv6, since it refuses {why}"),
            ),
            (Some(why), _) => (CheckState::Missing, format!("the kernel refuses {why}")),
        }
    }
}

/// Tries all matches and targets in a network namespace that goes at once.
pub(super) fn tried(programs: &Programs, mark: u32) -> Result<Tried, String> {
    std::thread::scope(|scope| {
        let trial = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|error| format!("no network namespace to try in: {error}"))?;
            let lacking = |family| lacking(programs, family, mark).map(|lacking| (family, lacking));
            super::families().map(lacking).collect::<Result<_, _>>().map(Tried).map_err(|error| with_causes(&error))
        });
        trial.join().unwrap_or_else(|_| Err("the trial ended by itself".to_owned()))
    })
}

/// What a family does not have, with what the kernel says.
fn lacking(programs: &Programs, family: Family, mark: u32) -> Result<Vec<String>, RunError> {
    let samples = samples(family, mark);
    let all: Vec<&(&str, Table, Rule)> = samples.iter().collect();
    if attempt(programs, family, &all).is_ok() {
        return Ok(Vec::new());
    }
    let mut lacking = Vec::new();
    for sample in &samples {
        match attempt(programs, family, &[sample]) {
            Ok(()) => {}
            Err(error @ RunError::Refused { .. }) => {
                lacking.push(format!("{} ({family}): {}", sample.0, with_causes(&error)));
            }
            // A lock that is held says nothing about the kernel.
            Err(error @ (RunError::Command(_) | RunError::Locked { .. })) => return Err(error),
        }
    }
    Ok(lacking)
}

fn attempt(programs: &Programs, family: Family, samples: &[&(&str, Table, Rule)]) -> Result<(), RunError> {
    let mut changes = Changes::default();
    for (index, (_, table, rule)) in samples.iter().enumerate() {
        changes.table(*table).write(format!("SHUNT-TRY-{index}").into(), vec![rule.clone()]);
    }
    programs.restore(family, &changes.script(programs.pieces()))
}

/// Each match and target that rules use.
fn samples(family: Family, mark: u32) -> Vec<(&'static str, Table, Rule)> {
    let clients = if family == Family::V6 { "SHUNT-6-TRY" } else { "SHUNT-4-TRY" };
    let mut samples = Vec::new();
    let mut add = |what, table, rule| samples.push((what, table, rule));
    let back = || Rule::all(Target::Return);
    add("the match addrtype", Table::Nat, back().when(Match::SourceIsLocal));
    add("the match conntrack", Table::Filter, back().when(Match::State(State::New)));
    add("the match mark", Table::Nat, back().when(Match::Marked(mark)));
    add("the match statistic", Table::Nat, back().when(Match::OnceIn(2)));
    add("the match recent", Table::Nat, back().when(Match::Remember(clients.into())));
    for (what, protocol) in
        [("the match tcp", Protocol::Tcp), ("the match udp", Protocol::Udp), ("the match sctp", Protocol::Sctp)]
    {
        add(what, Table::Nat, back().of(protocol).when(Match::Ports(1, 1)));
    }
    let to = match family {
        Family::V4 => std::net::SocketAddr::from(([192, 0, 2, 1], 1)),
        Family::V6 => std::net::SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 1)),
    };
    add("the target DNAT", Table::Nat, Rule::all(Target::To(to)).of(Protocol::Tcp));
    add("the target MARK", Table::Nat, Rule::all(Target::Mark(mark)));
    add("the target MASQUERADE", Table::Nat, Rule::all(Target::Masquerade));
    add("the target REJECT", Table::Filter, Rule::all(Target::Reject(family)));
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(v4: &[&str], v6: Option<&[&str]>, served: &[Family], state: CheckState, words: &str) {
        let refused = |refused: &[&str]| refused.iter().map(ToString::to_string).collect::<Vec<_>>();
        let v6 = v6.map(|v6| (Family::V6, refused(v6)));
        let tried = Tried([(Family::V4, refused(v4))].into_iter().chain(v6).collect());
        assert_eq!(tried.families(), served);
        assert_eq!(tried.in_words(), (state, words.to_owned()));
    }

    #[test]
    fn without_ipv6_in_the_kernel_ipv4_is_served() {
        use Family::{V4, V6};
        check(&[], Some(&[]), &[V4, V6], CheckState::Ok, "has all matches and targets");
        check(&[], None, &[V4], CheckState::Ok, "has all matches and targets");
        let words =
            "has all matches and targets for IPv4; serves no IPv6, since it refuses the target DNAT (IPv6): no; b";
        check(&[], Some(&["the target DNAT (IPv6): no", "b"]), &[V4], CheckState::Ok, words);
        check(&["a"], Some(&[]), &[V4, V6], CheckState::Missing, "the kernel refuses a");
    }
}
