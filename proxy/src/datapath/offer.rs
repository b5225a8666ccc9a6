//! What each data path can do on this host, one line for each check of `shunt check`, and which of them is to serve.

#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Mode, Part};

/// One check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    /// Its result.
    pub state: CheckState,
    /// What was found, and what to do if it does not suffice.
    pub detail: String,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckState {
    /// As needed.
    Ok,
    /// Worth knowing; nothing depends on it.
    Note,
    /// The part works, but would leave something unserved that another one serves: it serves if asked for by name.
    Partial,
    /// Needed, but missing.
    Missing,
}

/// What a part found on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Which part.
    pub part: Part,
    /// Its checks.
    pub checks: Vec<Check>,
}

impl Offer {
    /// Whether the part can work here.
    #[must_use]
    pub fn possible(&self) -> bool {
        self.missing().next().is_none()
    }

    fn missing(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| check.state == CheckState::Missing)
    }

    /// What speaks against the part where nobody asked for it by name.
    fn lacking(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| matches!(check.state, CheckState::Missing | CheckState::Partial))
    }

    /// `sockets (cgroup v2: not mounted)`, `nftables (no command nft)`
    fn refusal<'a>(&self, lacking: impl Iterator<Item = &'a Check>) -> String {
        let part = self.part.to_string();
        let lacking = lacking.map(|Check { name, detail, .. }| match *name == part {
            true => detail.clone(),
            false => format!("{name}: {detail}"),
        });
        format!("{part} ({})", lacking.collect::<Vec<_>>().join("; "))
    }
}

/// What the operator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requested {
    /// `--proxy-mode`; none is `auto`.
    pub mode: Option<Mode>,
    /// `--socket-lb`.
    pub sockets: Wanted,
}

impl Requested {
    /// Whether what a part can do here matters for the choice.
    pub(super) fn concerns(self, part: Part) -> bool {
        match part {
            Part::Sockets => self.sockets != Wanted::Off,
            // Programs for packets serve nothing that the node itself sends.
            Part::Programs if self.mode.is_none() => self.sockets != Wanted::Off,
            Part::Programs | Part::Nftables | Part::Iptables => {
                self.mode.is_none_or(|mode| PacketPath::of(mode).part() == part)
            }
        }
    }
}

/// Whether the operator wants a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Wherever it works.
    Auto,
    /// In any case: without it nothing starts.
    On,
    /// Not at all.
    Off,
}

/// A path for packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PacketPath {
    /// eBPF programs at network devices.
    Programs,
    /// nftables rules.
    Nftables,
    /// iptables rules.
    Iptables,
}

impl PacketPath {
    /// The part that it is.
    #[must_use]
    pub const fn part(self) -> Part {
        match self {
            Self::Programs => Part::Programs,
            Self::Nftables => Part::Nftables,
            Self::Iptables => Part::Iptables,
        }
    }

    const fn of(mode: Mode) -> Self {
        match mode {
            Mode::Ebpf => Self::Programs,
            Mode::Nftables => Self::Nftables,
            Mode::Iptables => Self::Iptables,
        }
    }

    const fn mode(self) -> Mode {
        match self {
            Self::Programs => Mode::Ebpf,
            Self::Nftables => Mode::Nftables,
            Self::Iptables => Mode::Iptables,
        }
    }
}

/// A path for packets that is made of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RulePath {
    Nftables,
    Iptables,
}

/// What serves; at least one part. Its JSON is part of that of `shunt services`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// Its name.
    pub mode: Mode,
    /// Programs at sockets serve the connections of this node.
    pub sockets: bool,
    /// What serves packets, if anything can.
    pub packets: Option<PacketPath>,
    /// Why a part that was welcome does not serve: what it lacks.
    pub without: Vec<String>,
}

impl Chosen {
    /// Whether it has this part.
    #[must_use]
    pub fn has(&self, part: Part) -> bool {
        match part {
            Part::Sockets => self.sockets,
            Part::Programs | Part::Nftables | Part::Iptables => self.packets.is_some_and(|path| path.part() == part),
        }
    }

    /// The first part that is made of eBPF programs, if one is.
    pub(super) fn programs(&self) -> Option<Part> {
        [Part::Sockets, Part::Programs].into_iter().find(|part| self.has(*part))
    }

    /// What the rules for packets are made of, if rules serve them.
    pub(super) fn rules(&self) -> Option<RulePath> {
        match self.packets? {
            PacketPath::Programs => None,
            PacketPath::Nftables => Some(RulePath::Nftables),
            PacketPath::Iptables => Some(RulePath::Iptables),
        }
    }
}

impl fmt::Display for Chosen {
    /// `eBPF programs at sockets and nftables rules for packets`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = Part::ALL.into_iter().filter(|part| self.has(*part)).map(Part::description);
        f.write_str(&parts.collect::<Vec<_>>().join(" and "))
    }
}

/// Why no data path can serve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChooseError {
    /// What was asked for cannot work here; the operator wants no other.
    #[error("{asked} was asked for and cannot work here: {refusal}; shunt check lists what this host offers")]
    NotPossible {
        /// The flag.
        asked: String,
        /// What it lacks.
        refusal: String,
    },
    /// None can work here.
    #[error("no data path can work here: {}; shunt check lists what this host offers", .0.join(", "))]
    NonePossible(Vec<String>),
}

/// What serves: what was asked for by name, or it is an error; else sockets wherever they work, over the first path for
/// packets that works. Programs are among those only where others serve at sockets, and where they leave nothing
/// unserved.
pub fn choose(requested: Requested, offers: &[Offer]) -> Result<Chosen, ChooseError> {
    let Requested { mode, sockets: wanted } = requested;
    let sockets = match wanted {
        Wanted::Off => Err(None),
        Wanted::On | Wanted::Auto => possible(Part::Sockets, offers).map_err(Some),
    };
    match (&sockets, wanted, mode) {
        (Err(Some(refusal)), Wanted::On, _) => return Err(not_possible("--socket-lb on", refusal)),
        (Err(Some(refusal)), _, Some(Mode::Ebpf)) => return Err(not_possible("--proxy-mode ebpf", refusal)),
        _ => {}
    }
    let named = mode.map(PacketPath::of);
    let (packets, mut without) = match named {
        Some(path) => match possible(path.part(), offers) {
            Ok(()) => (Some(path), Vec::new()),
            Err(refusal) => return Err(not_possible(&format!("--proxy-mode {}", path.mode()), &refusal)),
        },
        None => first_of(if sockets.is_ok() { &UNNAMED } else { &RULES }, offers),
    };
    without.extend(sockets.as_ref().err().cloned().flatten());
    let mode = match (&sockets, named, packets) {
        (_, Some(path), _) | (Err(_), None, Some(path)) => path.mode(),
        (Ok(()), None, _) => Mode::Ebpf,
        (Err(_), None, None) => return Err(ChooseError::NonePossible(without)),
    };
    Ok(Chosen { mode, sockets: sockets.is_ok(), packets, without })
}

/// The paths for packets, the best first.
const UNNAMED: [PacketPath; 3] = [PacketPath::Programs, PacketPath::Nftables, PacketPath::Iptables];
/// Those that also serve what this node sends itself.
const RULES: [PacketPath; 2] = [PacketPath::Nftables, PacketPath::Iptables];

fn not_possible(asked: &str, refusal: &str) -> ChooseError {
    ChooseError::NotPossible { asked: asked.to_owned(), refusal: refusal.to_owned() }
}

/// The first of these that can work and leaves nothing unserved, or else the first that can work; and what the others
/// before it lack.
fn first_of(paths: &[PacketPath], offers: &[Offer]) -> (Option<PacketPath>, Vec<String>) {
    let mut without = Vec::new();
    for &path in paths {
        let offer = offers.iter().find(|offer| offer.part == path.part());
        match offer.map(|offer| (offer, offer.lacking().next().is_some())) {
            Some((_, false)) => return (Some(path), without),
            Some((offer, true)) => without.push(offer.refusal(offer.lacking())),
            None => without.push(path.part().to_string()),
        }
    }
    let partial = paths.iter().find(|path| possible(path.part(), offers).is_ok());
    (partial.copied(), without)
}

/// Whether a part can work; if not, why.
fn possible(part: Part, offers: &[Offer]) -> Result<(), String> {
    match offers.iter().find(|offer| offer.part == part) {
        Some(offer) if offer.possible() => Ok(()),
        Some(offer) => Err(offer.refusal(offer.missing())),
        None => Err(part.to_string()),
    }
}
