//! Takes over from a kube-proxy that ran before: the new rules serve, then its rules go.

use std::os::fd::OwnedFd;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use shunt_model::with_causes;
use tokio::sync::watch;
use tracing::{info, warn};

use super::Retired;
use super::process;
use crate::datapath::{Datapath, RemoveError, Report, SyncError, Synced};
use crate::plan::Plan;

/// kube-proxy may have stopped meanwhile.
const AGAIN: Duration = Duration::from_secs(5);
/// It may have been started again.
const LOOK: Duration = Duration::from_secs(60);

/// What can be done about kube-proxy.
#[derive(Clone)]
struct Predecessor {
    /// Its processes on this node.
    running: Arc<dyn Fn() -> Vec<u32> + Send + Sync>,
    remove: Arc<dyn Fn() -> Result<Retired, RemoveError> + Send + Sync>,
    /// How long after an attempt the next one follows, and the next look once nothing is left.
    again: Duration,
    look: Duration,
}

/// A path for packets that serves all Services. After its first complete sync it removes what kube-proxy left, as soon
/// as none runs. That has a thread of its own: the rules of a large cluster take their time, and changes must not wait.
pub(in crate::datapath) struct Retiring {
    path: Box<dyn Datapath>,
    predecessor: Predecessor,
    /// A sync has been complete.
    serves: bool,
    /// Nothing is left of it, as long as none runs.
    removed: bool,
    /// When the last attempt began.
    tried: Option<Instant>,
    attempt: Option<JoinHandle<Attempt>>,
    reports: watch::Sender<Report>,
}

/// What an attempt came to.
#[derive(Debug)]
enum Attempt {
    Removed(Retired),
    Failed(RemoveError),
    /// A process of kube-proxy.
    Runs(u32),
}

impl Predecessor {
    fn attempt(&self, removed: bool) -> Attempt {
        match (self.running)().first() {
            Some(process) => Attempt::Runs(*process),
            None if removed => Attempt::Removed(Retired::default()),
            None => (self.remove)().map_or_else(Attempt::Failed, Attempt::Removed),
        }
    }
}

impl Retiring {
    /// `reports` gets what cannot be removed.
    pub(in crate::datapath) fn new(path: Box<dyn Datapath>, reports: watch::Sender<Report>) -> Self {
        let (running, remove) = (Arc::new(process::running), Arc::new(super::remove));
        let predecessor = Predecessor { running, remove, again: AGAIN, look: LOOK };
        Self::over(path, predecessor, reports)
    }

    fn over(path: Box<dyn Datapath>, predecessor: Predecessor, reports: watch::Sender<Report>) -> Self {
        Self { path, predecessor, serves: false, removed: false, tried: None, attempt: None, reports }
    }

    fn retire(&mut self) {
        self.end_attempt();
        let pause = if self.removed { self.predecessor.look } else { self.predecessor.again };
        let waits = self.tried.is_some_and(|tried| tried.elapsed() < pause);
        if !self.serves || self.attempt.is_some() || waits {
            return;
        }
        self.tried = Some(Instant::now());
        let (predecessor, removed) = (self.predecessor.clone(), self.removed);
        match thread::Builder::new().name("kube-proxy".to_owned()).spawn(move || predecessor.attempt(removed)) {
            Ok(attempt) => self.attempt = Some(attempt),
            Err(error) => self.tell(None, Some(format!("looking for what kube-proxy left: {error}"))),
        }
    }

    /// Takes in an attempt that has ended.
    fn end_attempt(&mut self) {
        let Some(attempt) = self.attempt.take_if(|attempt| attempt.is_finished()) else { return };
        let attempt = attempt.join().unwrap_or_else(|panic| resume_unwind(panic));
        self.removed = matches!(attempt, Attempt::Removed(_));
        match attempt {
            Attempt::Removed(Retired { removed, kept }) => {
                removed.iter().for_each(|removed| info!("removed {removed}: this daemon serves now"));
                kept.iter().for_each(|kept| warn!("{kept}"));
                self.tell(None, None);
            }
            Attempt::Failed(error) => self.tell(None, Some(with_causes(&error))),
            Attempt::Runs(process) => {
                let runs = format!(
                    "kube-proxy still runs (process {process}): its rules stay, since it would put them back; take it \
                     off this node, and they are removed then"
                );
                self.tell(Some(runs), None);
            }
        }
    }

    /// One that runs is worth a warning, since both serve; what cannot be removed is a fault.
    fn tell(&self, foreign: Option<String>, leftover: Option<String>) {
        let (foreign, leftovers) = (Vec::from_iter(foreign), Vec::from_iter(leftover));
        self.reports.send_if_modified(|report| {
            let modified = report.foreign != foreign || report.leftovers != leftovers;
            if modified {
                foreign.iter().chain(&leftovers).for_each(|reason| warn!("{reason}"));
                (report.foreign, report.leftovers) = (foreign, leftovers);
            }
            modified
        });
    }
}

impl Datapath for Retiring {
    fn sync(&mut self, plan: &Plan) -> Result<Synced, SyncError> {
        let synced = self.path.sync(plan)?;
        // Its rules may serve a service port that this path refuses.
        self.serves |= synced.refused.is_empty();
        self.retire();
        Ok(synced)
    }

    fn mark_own_dns(&mut self, sockets: &[OwnedFd]) -> Result<(), SyncError> {
        self.path.mark_own_dns(sockets)
    }

    fn audit(&mut self) -> Result<u64, SyncError> {
        let repaired = self.path.audit();
        self.retire();
        repaired
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use super::*;
    use crate::datapath::Removed;
    use crate::plan::PortKey;
    use shunt_model::{Family, ObjectKey, Protocol};

    /// Each sync takes one word: whether a service port is refused.
    struct FakePath(VecDeque<&'static str>);

    impl Datapath for FakePath {
        fn sync(&mut self, _: &Plan) -> Result<Synced, SyncError> {
            let service = ObjectKey::new("shop", "web");
            let key = PortKey { service, port: Arc::from(""), protocol: Protocol::Tcp, family: Family::V4 };
            let refused = match self.0.pop_front() {
                Some("refuses") => vec![(key, "full".to_owned())],
                _ => Vec::new(),
            };
            Ok(Synced { refused, ..Synced::default() })
        }

        fn mark_own_dns(&mut self, _: &[OwnedFd]) -> Result<(), SyncError> {
            Ok(())
        }

        fn audit(&mut self) -> Result<u64, SyncError> {
            Ok(0)
        }
    }

    /// After each step, what was tried and what the report says: a step is a sync that is complete or not, or an audit;
    /// beside it stands what is found then.
    #[track_caller]
    fn check(steps: &[(&str, &'static str)], expected: &[(&str, [&str; 2])]) {
        let syncs = steps.iter().filter(|(step, _)| *step != "audit");
        let path = FakePath(syncs.map(|(step, _)| if *step == "refuses" { "refuses" } else { "sync" }).collect());
        let (now, done) = (Arc::new(Mutex::new("")), Arc::new(Mutex::new("")));
        let (found, finds, does) = (Arc::clone(&now), Arc::clone(&now), Arc::clone(&done));
        let predecessor = Predecessor {
            running: Arc::new(move || if *found.lock().unwrap() == "runs" { vec![42, 43] } else { Vec::new() }),
            remove: Arc::new(move || {
                *does.lock().unwrap() = "tried";
                match *finds.lock().unwrap() {
                    "fails" => Err(RemoveError { what: "what kube-proxy left", source: "busy".into() }),
                    _ => Ok(Retired {
                        removed: vec![Removed { count: 1, what: "table", place: "here".to_owned() }],
                        kept: Vec::new(),
                    }),
                }
            }),
            again: Duration::ZERO,
            look: Duration::ZERO,
        };
        let (reports, report) = watch::channel(Report::default());
        let mut path = Retiring::over(Box::new(path), predecessor, reports);
        for ((step, finds), (tried, reasons)) in steps.iter().zip(expected) {
            *now.lock().unwrap() = finds;
            *done.lock().unwrap() = "";
            match *step {
                "audit" => drop(path.audit().unwrap()),
                _ => drop(path.sync(&Plan::default()).unwrap()),
            }
            while path.attempt.is_some() {
                path.end_attempt();
                thread::yield_now();
            }
            assert_eq!(*done.lock().unwrap(), *tried);
            let said = [report.borrow().foreign.join(" "), report.borrow().leftovers.join(" ")];
            for (said, reason) in said.iter().zip(reasons) {
                assert!(said.contains(reason) && said.is_empty() == reason.is_empty(), "{said:?}, not {reason:?}");
            }
        }
    }

    const FINE: [&str; 2] = ["", ""];
    const RUNS: [&str; 2] = ["kube-proxy still runs (process 42)", ""];

    #[test]
    fn its_rules_go_once_after_a_complete_sync() {
        check(
            &[("audit", ""), ("refuses", ""), ("sync", ""), ("sync", "")],
            &[("", FINE), ("", FINE), ("tried", FINE), ("", FINE)],
        );
    }

    #[test]
    fn the_rules_of_one_that_runs_stay_until_it_stops() {
        check(&[("sync", "runs"), ("audit", "runs"), ("audit", "")], &[("", RUNS), ("", RUNS), ("tried", FINE)]);
    }

    #[test]
    fn one_that_is_started_later_is_seen_too() {
        check(
            &[("sync", ""), ("audit", "runs"), ("audit", ""), ("audit", "")],
            &[("tried", FINE), ("", RUNS), ("tried", FINE), ("", FINE)],
        );
    }

    #[test]
    fn what_could_not_be_removed_is_tried_again() {
        let busy = ["", "busy"];
        check(&[("sync", "fails"), ("audit", ""), ("audit", "")], &[("tried", busy), ("tried", FINE), ("", FINE)]);
    }
}
