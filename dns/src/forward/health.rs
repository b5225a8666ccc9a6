//! What the answers and failures of an upstream say about when it is worth asking.

use std::time::{Duration, Instant};

/// In which order upstreams are worth asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Health {
    /// It answered in time last time, or was never asked.
    Up,
    /// It answers late, or has not answered yet.
    Slow,
    /// It failed just now.
    Doubtful,
    /// It failed and does not answer probes.
    Down,
}

/// Failures in a row that make an upstream [`Health::Down`]: a query's, and more than `max_fails` of probes
/// (DNS-15.5).
const DOWN: u32 = 4;
/// Silence for less is no failure: a query may begin a try when little of its own time is left.
const SHORTEST_SILENCE: Duration = Duration::from_secs(2);

/// How an upstream answered its last tries.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// In a row.
    failures: u32,
    slow: bool,
    /// When it last answered anything,
    answered: Option<Instant>,
    /// and when it last did so in time.
    prompt: Option<Instant>,
}

/// What an event changed, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Little,
    NowDown,
    BackFromDown,
}

impl Standing {
    pub(super) fn health(&self) -> Health {
        match self.failures {
            0 if self.slow => Health::Slow,
            0 => Health::Up,
            1..DOWN => Health::Doubtful,
            _ => Health::Down,
        }
    }

    /// It answered, which is late after more than `patience`. One late answer among others in time is the name's fault.
    pub(super) fn answered(&mut self, sent: Instant, now: Instant, patience: Duration) -> Change {
        let was_down = std::mem::take(&mut self.failures) >= DOWN;
        self.answered = Some(now);
        if now.saturating_duration_since(sent) <= patience {
            self.prompt = Some(now);
            self.slow = false;
        } else if !since(sent, self.prompt) {
            self.slow = true;
        }
        if was_down { Change::BackFromDown } else { Change::Little }
    }

    /// It has not answered in time, and may answer yet.
    pub(super) fn overdue(&mut self, sent: Instant) -> Change {
        if !since(sent, self.prompt) {
            self.slow = true;
        }
        Change::Little
    }

    /// Nobody waits for its answer any longer.
    pub(super) fn silent(&mut self, sent: Instant, now: Instant, patience: Duration) -> Change {
        let silence = now.saturating_duration_since(sent);
        if since(sent, self.answered) || silence < patience.min(SHORTEST_SILENCE) {
            return Change::Little;
        }
        self.failed()
    }

    /// It cannot be reached, or answers nonsense.
    pub(super) fn failed(&mut self) -> Change {
        self.failures = self.failures.saturating_add(1);
        if self.failures == DOWN { Change::NowDown } else { Change::Little }
    }
}

fn since(sent: Instant, event: Option<Instant>) -> bool {
    event.is_some_and(|event| event > sent)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Events as `answer SENT NOW`, `overdue SENT`, `silent SENT NOW` and `fail`, in tenths of a second.
    #[track_caller]
    fn check(events: &str, wanted: Health) {
        let start = Instant::now();
        let patience = Duration::from_secs(2);
        let mut standing = Standing::default();
        for event in events.split(", ").filter(|event| !event.is_empty()) {
            let mut words = event.split(' ');
            let what = words.next().unwrap();
            let mut at = || start + Duration::from_millis(100 * words.next().unwrap().parse::<u64>().unwrap());
            let _change = match what {
                "answer" => standing.answered(at(), at(), patience),
                "silent" => standing.silent(at(), at(), patience),
                "fail" => standing.failed(),
                "overdue" => standing.overdue(at()),
                other => panic!("{other}"),
            };
        }
        assert_eq!(standing.health(), wanted, "{events}");
    }

    #[test]
    fn a_late_answer_is_no_failure() {
        check("", Health::Up);
        check("answer 0 20", Health::Up);
        check("overdue 0", Health::Slow);
        check("overdue 0, answer 0 25", Health::Slow);
        check("overdue 0, answer 0 25, answer 30 35", Health::Up);
        check("answer 0 1, overdue 5, answer 5 30", Health::Slow);
    }

    #[test]
    fn one_slow_name_says_nothing_of_an_upstream_that_answers_others() {
        check("answer 5 10, overdue 0", Health::Up);
        check("overdue 0, answer 21 22, answer 0 30", Health::Up);
        check("overdue 0, answer 21 22, silent 0 50", Health::Up);
        check("overdue 0, answer 0 25, silent 10 50", Health::Slow);
    }

    #[test]
    fn silence_until_the_end_and_errors_are_failures() {
        check("overdue 0, silent 0 50", Health::Doubtful);
        check("silent 40 50", Health::Up);
        check("fail, fail, fail", Health::Doubtful);
        check("fail, fail, fail, fail", Health::Down);
        check("fail, fail, fail, fail, answer 0 30", Health::Slow);
        check("fail, fail, fail, fail, answer 0 3", Health::Up);
        check("silent 0 50, silent 20 50, silent 25 75, silent 40 90", Health::Down);
    }
}
