//! Logs each problem once when it appears and once when it is gone.

use std::collections::BTreeSet;

use crate::source::{Problem, SourceHealth};

/// Updates `health`, logs what is new, and returns whether anything changed.
pub(crate) fn update(health: &mut SourceHealth, unreachable: Option<String>, problems: Vec<Problem>) -> bool {
    if health.unreachable == unreachable && health.problems == problems {
        return false;
    }
    match (&health.unreachable, &unreachable) {
        (before, Some(reason)) if before.as_ref() != Some(reason) => {
            *health.counts.entry("source").or_default() += 1;
            tracing::warn!("{reason}");
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
    health.unreachable = unreachable;
    health.problems = problems;
    true
}
