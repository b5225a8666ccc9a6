//! Logs each problem once when it appears and once when it is gone.

use std::collections::BTreeSet;

use crate::source::{Problem, SourceHealth};

/// Why a source cannot be read.
pub(crate) struct Unreachable {
    pub(crate) reason: String,
    /// The log says so already, in other words.
    pub(crate) is_told: bool,
}

/// Updates `health`, logs what is new, and returns whether anything changed.
pub(crate) fn update(health: &mut SourceHealth, unreachable: Option<Unreachable>, problems: Vec<Problem>) -> bool {
    let reason = unreachable.as_ref().map(|Unreachable { reason, is_told: _ }| reason.clone());
    if health.unreachable == reason && health.problems == problems {
        return false;
    }
    match (&health.unreachable, &unreachable) {
        (before, Some(Unreachable { reason, is_told })) if before.as_ref() != Some(reason) => {
            if *is_told {
                tracing::debug!("{reason}");
            } else {
                *health.counts.entry("source").or_default() += 1;
                tracing::warn!("{reason}");
            }
        }
        (Some(_), None) => tracing::info!("the source can be read again"),
        (_, _) => {}
    }
    let before: BTreeSet<&Problem> = health.problems.iter().collect();
    let now: BTreeSet<&Problem> = problems.iter().collect();
    for problem in now.difference(&before) {
        *health.counts.entry(problem.kind).or_default() += 1;
        tracing::warn!(kind = problem.kind, "{problem}");
    }
    for problem in before.difference(&now) {
        tracing::info!(kind = problem.kind, "no longer: {problem}");
    }
    health.unreachable = reason;
    health.problems = problems;
    true
}

/// The same for this node's name.
pub(crate) fn update_node(health: &mut SourceHealth, unknown_node: Option<String>) -> bool {
    match (&health.unknown_node, &unknown_node) {
        (None, Some(reason)) => tracing::warn!("{reason}"),
        (Some(_), None) => tracing::info!("the cluster has a Node of this name now"),
        (Some(_), Some(_)) | (None, None) => {}
    }
    let changed = health.unknown_node != unknown_node;
    health.unknown_node = unknown_node;
    changed
}
