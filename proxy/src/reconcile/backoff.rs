//! How long to wait before the next attempt.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
/// As long as kube-proxy waits after a failed sync (SY-3).
const LONGEST: Duration = Duration::from_secs(30);

/// Doubles from attempt to attempt.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Backoff {
    pub(super) fn next_delay(&mut self) -> Duration {
        let delay = self.0;
        self.0 = (delay * 2).min(LONGEST);
        delay
    }

    pub(super) fn reset(&mut self) {
        self.0 = FIRST;
    }
}
