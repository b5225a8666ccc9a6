//! What a data path can do on this host, one line for each check of `shunt check`.

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
        self.checks.iter().all(|check| check.state != CheckState::Missing)
    }
}
