//! The nftables data path for packets.

use std::convert::Infallible;
use std::sync::Arc;

use tokio::sync::Notify;

use super::{Check, CheckState, OpenedPart, Options, RemoveError, Removed};

/// Checks everything that [`open`] needs.
pub(super) fn probe(_options: &Options) -> Vec<Check> {
    vec![Check { name: "nftables", state: CheckState::Missing, detail: "not in this version".to_owned() }]
}

/// Adopts what an earlier daemon left, with upkeep to run beside it.
pub(super) fn open(_options: &Options, _disturbed: &Arc<Notify>) -> Result<OpenedPart, Infallible> {
    todo!()
}

/// Removes all that this path has installed.
pub(super) fn remove() -> Result<Vec<Removed>, RemoveError> {
    Ok(Vec::new())
}
