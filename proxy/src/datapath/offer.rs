//! What a data path can do on this host, in lines for `shunt check`.

use super::Mode;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is looked at.
    pub name: &'static str,
    /// How it is.
    pub state: CheckState,
    /// What was found, and what to do if it will not do.
    pub detail: String,
}

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckState {
    /// As needed.
    Ok,
    /// Worth knowing; nothing depends on it.
    Note,
    /// Needed, and not there.
    Missing,
}

/// What a data path found on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Which path.
    pub mode: Mode,
    /// What it looked at.
    pub checks: Vec<Check>,
}

impl Offer {
    /// Whether the path can work here.
    #[must_use]
    pub fn possible(&self) -> bool {
        self.checks.iter().all(|check| check.state != CheckState::Missing)
    }
}
