//! Takes over from a kube-proxy that ran before: the new rules serve, then its rules go.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use shunt_model::with_causes;
use tokio::sync::watch;
use tracing::{info, warn};

use super::process;
use crate::datapath::{Datapath, RemoveError, Removed, Report, SyncError, Synced};
use crate::plan::Plan;

/// kube-proxy may have stopped meanwhile.
const AGAIN: Duration = Duration::from_secs(5);

/// What can be done about kube-proxy.
struct Predecessor {
    /// Its processes on this node.
    running: Box<dyn FnMut() -> Vec<u32> + Send>,
    remove: Box<dyn FnMut() -> Result<Vec<Removed>, RemoveError> + Send>,
    /// How long after an attempt the next one follows.
    again: Duration,
}

/// A path for packets that serves all Services. After its first complete sync it removes what kube-proxy left, as soon
/// as none runs.
pub(in crate::datapath) struct Retiring {
    path: Box<dyn Datapath>,
    /// None when nothing is left of it.
    predecessor: Option<Predecessor>,
    /// A sync has been complete, and when the last attempt was.
    serves: bool,
    tried: Option<Instant>,
    reports: watch::Sender<Report>,
}

impl Retiring {
    /// `reports` gets what cannot be removed.
    pub(in crate::datapath) fn new(path: Box<dyn Datapath>, reports: watch::Sender<Report>) -> Self {
        let predecessor =
            Predecessor { running: Box::new(process::running), remove: Box::new(super::remove), again: AGAIN };
        Self::over(path, predecessor, reports)
    }

    fn over(path: Box<dyn Datapath>, predecessor: Predecessor, reports: watch::Sender<Report>) -> Self {
        Self { path, predecessor: Some(predecessor), serves: false, tried: None, reports }
    }

    fn retire(&mut self) {
        let Some(Predecessor { running, remove, again }) = self.predecessor.as_mut().filter(|_| self.serves) else {
            return;
        };
        if self.tried.is_some_and(|tried| tried.elapsed() < *again) {
            return;
        }
        self.tried = Some(Instant::now());
        let reason = match running().as_slice() {
            [] => match remove() {
                Ok(removed) => {
                    for removed in removed {
                        info!("removed {removed}: this daemon serves now");
                    }
                    self.predecessor = None;
                    None
                }
                Err(error) => Some(with_causes(&error)),
            },
            [first, ..] => Some(format!(
                "kube-proxy still runs (process {first}): its rules stay, since it would put them back; take it off \
                 this node, and they are removed then"
            )),
        };
        self.tell(reason);
    }

    fn tell(&self, reason: Option<String>) {
        let foreign: Vec<String> = reason.into_iter().collect();
        self.reports.send_if_modified(|report| {
            let modified = report.foreign != foreign;
            if modified {
                foreign.iter().for_each(|reason| warn!("{reason}"));
                report.foreign = foreign;
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
    use std::sync::{Arc, Mutex};

    use super::*;
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
    fn check(steps: &[(&str, &'static str)], expected: &[(&str, &str)]) {
        let syncs = steps.iter().filter(|(step, _)| *step != "audit");
        let path = FakePath(syncs.map(|(step, _)| if *step == "refuses" { "refuses" } else { "sync" }).collect());
        let (now, done) = (Arc::new(Mutex::new("")), Arc::new(Mutex::new("")));
        let (found, finds, does) = (Arc::clone(&now), Arc::clone(&now), Arc::clone(&done));
        let predecessor = Predecessor {
            running: Box::new(move || if *found.lock().unwrap() == "runs" { vec![42, 43] } else { Vec::new() }),
            remove: Box::new(move || {
                *does.lock().unwrap() = "tried";
                match *finds.lock().unwrap() {
                    "fails" => Err(RemoveError { what: "what kube-proxy left", source: "busy".into() }),
                    _ => Ok(vec![Removed { count: 1, what: "table", place: "here".to_owned() }]),
                }
            }),
            again: Duration::ZERO,
        };
        let (reports, report) = watch::channel(Report::default());
        let mut path = Retiring::over(Box::new(path), predecessor, reports);
        for ((step, finds), (tried, foreign)) in steps.iter().zip(expected) {
            *now.lock().unwrap() = finds;
            *done.lock().unwrap() = "";
            match *step {
                "audit" => drop(path.audit().unwrap()),
                _ => drop(path.sync(&Plan::default()).unwrap()),
            }
            assert_eq!(*done.lock().unwrap(), *tried);
            let said = report.borrow().foreign.join(" ");
            assert!(said.contains(foreign) && said.is_empty() == foreign.is_empty(), "{said:?}, not {foreign:?}");
        }
    }

    #[test]
    fn its_rules_go_once_after_a_complete_sync() {
        check(
            &[("audit", ""), ("refuses", ""), ("sync", ""), ("sync", "")],
            &[("", ""), ("", ""), ("tried", ""), ("", "")],
        );
    }

    #[test]
    fn the_rules_of_one_that_runs_stay_until_it_stops() {
        let running = "kube-proxy still runs (process 42)";
        check(&[("sync", "runs"), ("audit", "runs"), ("audit", "")], &[("", running), ("", running), ("tried", "")]);
    }

    #[test]
    fn what_could_not_be_removed_is_tried_again() {
        check(&[("sync", "fails"), ("audit", ""), ("audit", "")], &[("tried", "busy"), ("tried", ""), ("", "")]);
    }
}
