//! What the log says of syncs: one line a minute for all of them, since a busy cluster has many a second.

use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

/// How long syncs are added up before the log has a line about them.
const EVERY: Duration = Duration::from_mins(1);

/// The syncs that wrote something and are not in the log yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Untold {
    since: Instant,
    syncs: u64,
    writes: u64,
    longest: Duration,
}

/// Adds up syncs.
#[derive(Debug, Default)]
pub(super) struct Summary(Option<Untold>);

impl Summary {
    /// Notes a sync that wrote something.
    pub(super) fn add(&mut self, now: Instant, writes: u64, elapsed: Duration) {
        let untold = self.0.get_or_insert(Untold { since: now, syncs: 0, writes: 0, longest: Duration::ZERO });
        untold.syncs = untold.syncs.saturating_add(1);
        untold.writes = untold.writes.saturating_add(writes);
        untold.longest = untold.longest.max(elapsed);
    }

    /// Writes the line if a minute has passed since the first sync that is not in the log.
    pub(super) fn tell_if_due(&mut self, now: Instant, ports: usize) {
        if let Some(untold) = self.0.take_if(|untold| now.duration_since(untold.since) >= EVERY) {
            tell(untold, ports);
        }
    }

    /// Writes the line for what is left, at the end.
    pub(super) fn tell_rest(&mut self, ports: usize) {
        if let Some(untold) = self.0.take() {
            tell(untold, ports);
        }
    }
}

fn tell(Untold { since: _, syncs, writes, longest }: Untold, ports: usize) {
    info!(syncs, writes, ports, ?longest, "synced since the last such line; -v 4 logs each sync");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_minute_of_syncs_is_one_line() {
        let mut summary = Summary::default();
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        summary.tell_if_due(at(600), 1);
        assert_eq!(summary.0, None, "nothing was synced");
        for (second, writes, millis) in [(600, 2, 5), (601, 3, 9), (655, 1, 1)] {
            summary.add(at(second), writes, Duration::from_millis(millis));
            summary.tell_if_due(at(second), 1);
        }
        let wanted = Untold { since: at(600), syncs: 3, writes: 6, longest: Duration::from_millis(9) };
        assert_eq!(summary.0, Some(wanted));
        summary.tell_if_due(at(660), 1);
        assert_eq!(summary.0, None, "it is in the log");
        summary.add(at(661), 1, Duration::ZERO);
        summary.tell_rest(1);
        assert_eq!(summary.0, None, "the end tells the rest");
    }
}
