//! What each data path can do on this host, one line for each check of `shunt check`, and which of them is to serve.

#[cfg(test)]
mod tests;

use super::Mode;

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
    /// Needed, but missing.
    Missing,
}

/// What a data path found on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Which path.
    pub mode: Mode,
    /// Its checks.
    pub checks: Vec<Check>,
}

impl Offer {
    /// Whether the path can work here.
    #[must_use]
    pub fn possible(&self) -> bool {
        self.missing().next().is_none()
    }

    fn missing(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| check.state == CheckState::Missing)
    }

    /// `ebpf (cgroup v2: not mounted)`
    fn refusal(&self) -> String {
        let missing: Vec<String> =
            self.missing().map(|Check { name, detail, .. }| format!("{name}: {detail}")).collect();
        format!("{} ({})", self.mode, missing.join("; "))
    }
}

/// Which data path the operator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requested {
    /// The first that can work here.
    Auto,
    /// This one or none.
    Only(Mode),
}

/// Why no data path can serve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChooseError {
    /// The one that was asked for cannot work here; the operator wants no other.
    #[error("the data path asked for cannot work here: {0}; shunt check lists what this host offers")]
    NotPossible(String),
    /// None can work here.
    #[error("no data path can work here: {}; shunt check lists what this host offers", .0.join(", "))]
    NonePossible(Vec<String>),
}

/// The data path that serves: with `auto` the first possible one in the order of `offers`, else the one asked for.
pub fn choose(requested: Requested, offers: &[Offer]) -> Result<Mode, ChooseError> {
    let asked = |offer: &&Offer| match requested {
        Requested::Auto => true,
        Requested::Only(mode) => offer.mode == mode,
    };
    let mut asked_for = offers.iter().filter(asked);
    if let Some(offer) = asked_for.clone().find(|offer| offer.possible()) {
        return Ok(offer.mode);
    }
    Err(match requested {
        Requested::Auto => ChooseError::NonePossible(asked_for.map(Offer::refusal).collect()),
        Requested::Only(mode) => {
            ChooseError::NotPossible(asked_for.next().map_or_else(|| mode.to_string(), Offer::refusal))
        }
    })
}
