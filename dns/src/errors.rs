//! Logs queries that failed: one line each, or one line for many (DNS-13.6, DNS-16.3).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Query, ResponseCode};
use regex::Regex;
use shunt_model::GoDuration;
use tokio::task::JoinSet;

use crate::failure::Failure;
use crate::forward::ForwardError;
use crate::types::type_name;

const TARGET: &str = "plugin/errors";

/// How failures are logged: one line each, except for these.
#[derive(Clone, Debug, Default)]
pub(crate) struct ErrorsConfig {
    /// The first that matches a failure applies.
    pub(crate) consolidate: Vec<Consolidation>,
}

/// Failures that are counted and logged in one line.
#[derive(Clone, Debug)]
pub(crate) struct Consolidation {
    /// How long they are counted.
    pub(crate) every: Duration,
    /// Those whose text matches, in our words or in CoreDNS's.
    pub(crate) pattern: Regex,
    /// The level of that line.
    pub(crate) level: Level,
}

/// A level of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// Something is wrong.
    Error,
    /// Something may be wrong.
    Warning,
    /// Nothing is wrong.
    Info,
    /// For debugging.
    Debug,
}

/// Failures as they come.
pub(crate) struct Errors {
    sums: Vec<Arc<Sum>>,
    /// Dropping this ends the tasks; each logs its remaining count first.
    tellers: Mutex<JoinSet<()>>,
}

struct Sum {
    config: Consolidation,
    count: AtomicU64,
}

impl Errors {
    pub(crate) fn new(config: ErrorsConfig) -> Self {
        let sum = |config| Arc::new(Sum { config, count: AtomicU64::new(0) });
        Self { sums: config.consolidate.into_iter().map(sum).collect(), tellers: Mutex::default() }
    }

    /// In CoreDNS's format and under its target, because saved searches of logs look for them.
    pub(crate) fn tell(&self, query: &Query, rcode: ResponseCode, why: &Failure) {
        let Some(sum) = self.sums.iter().find(|sum| sum.config.fits(why)) else {
            let (rcode, name) = (u16::from(rcode), crate::names::text(&query.name).to_ascii_lowercase());
            tracing::error!(target: TARGET, "{rcode} {name} {}: {why}", type_name(query.query_type));
            return;
        };
        if sum.count.fetch_add(1, Ordering::Relaxed) > 0 {
            return; // a task already waits to log this sum
        }
        let sum = Arc::clone(sum);
        let mut tellers = self.tellers.lock().unwrap_or_else(PoisonError::into_inner);
        while tellers.try_join_next().is_some() {}
        tellers.spawn(async move {
            tokio::time::sleep(sum.config.every).await;
            sum.tell();
        });
    }
}

impl Consolidation {
    fn fits(&self, why: &Failure) -> bool {
        // Patterns are written for what CoreDNS says of the same.
        let theirs: &[&str] = match why {
            Failure::Forward(ForwardError::NoAnswer(_)) => &["read udp: i/o timeout", "no healthy upstreams"],
            Failure::Forward(ForwardError::Busy) => &["concurrent queries exceeded maximum"],
            Failure::Forward(ForwardError::NoUpstreams) | Failure::Rewrite(_) | Failure::Template(_) => &[],
        };
        self.pattern.is_match(&why.to_string()) || theirs.iter().any(|text| self.pattern.is_match(text))
    }
}

impl Sum {
    /// As CoreDNS words it.
    fn tell(&self) {
        let (count, every) = (self.count.swap(0, Ordering::Relaxed), GoDuration(self.config.every));
        if count == 0 {
            return;
        }
        let text = format!("{count} errors like '{}' occurred in last {every}", self.config.pattern);
        match self.config.level {
            Level::Error => tracing::error!(target: TARGET, "{text}"),
            Level::Warning => tracing::warn!(target: TARGET, "{text}"),
            Level::Info => tracing::info!(target: TARGET, "{text}"),
            Level::Debug => tracing::debug!(target: TARGET, "{text}"),
        }
    }
}

impl Drop for Sum {
    fn drop(&mut self) {
        self.tell();
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::{Name, RecordType};

    use super::*;

    /// What is written about three timeouts and one refusal for lack of places, with a pattern.
    fn written(pattern: &str, every: Duration, wait: bool) -> String {
        let consolidation = Consolidation { every, pattern: Regex::new(pattern).unwrap(), level: Level::Error };
        crate::log::written(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                let errors = Errors::new(ErrorsConfig { consolidate: vec![consolidation] });
                let query = Query::query(Name::root(), RecordType::NS);
                let unanswered = ForwardError::NoAnswer(Some("192.0.2.1:53: no answer in time".into()));
                let (unanswered, busy) = (Failure::from(unanswered), Failure::from(ForwardError::Busy));
                for why in [&unanswered, &unanswered, &busy, &unanswered] {
                    errors.tell(&query, ResponseCode::ServFail, why);
                }
                while wait && errors.sums[0].count.load(Ordering::Relaxed) > 0 {
                    tokio::task::yield_now().await;
                }
                errors.tell(&query, ResponseCode::ServFail, &unanswered);
            });
        })
    }

    #[track_caller]
    fn check(written: &str, wanted: &[&str]) {
        let lines: Vec<&str> =
            written.lines().filter_map(|line| line.split_once("plugin/errors: ")).map(|at| at.1).collect();
        assert_eq!(lines, wanted);
    }

    #[test]
    fn failures_that_a_pattern_fits_are_counted_and_told_of_once() {
        let (busy, hour) = ("2 . NS: too many queries are waiting for upstreams already", Duration::from_secs(3600));
        let timeouts = ".* i/o timeout$";
        // At the end of the interval, and at the end of all.
        let short = Duration::from_millis(20);
        check(
            &written(timeouts, short, true),
            &[
                busy,
                "3 errors like '.* i/o timeout$' occurred in last 20ms",
                "1 errors like '.* i/o timeout$' occurred in last 20ms",
            ],
        );
        check(&written(timeouts, hour, false), &[busy, "4 errors like '.* i/o timeout$' occurred in last 1h0m0s"]);
        check(&written("^no upstream", hour, false), &[busy, "4 errors like '^no upstream' occurred in last 1h0m0s"]);
        let all = written("^Failed to .+", hour, false);
        let unanswered = "2 . NS: no upstream answered; the last was 192.0.2.1:53: no answer in time";
        check(&all, &[unanswered, unanswered, busy, unanswered, unanswered]);
    }
}
