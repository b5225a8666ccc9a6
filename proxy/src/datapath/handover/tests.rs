//! The hand-over with paths that write down what is asked of them.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use shunt_model::{Family, ObjectKey, Protocol};

use super::*;
use crate::plan::PortKey;

type Calls = Arc<Mutex<Vec<&'static str>>>;

/// What the next call says: a path that runs out of words succeeds.
struct FakePath {
    says: VecDeque<&'static str>,
    calls: Calls,
}

impl Datapath for FakePath {
    fn sync(&mut self, _: &Plan) -> Result<Synced, SyncError> {
        let says = self.says.pop_front().unwrap_or("sync");
        self.calls.lock().unwrap().push(says);
        let service = ObjectKey::new("shop", "web");
        let key = PortKey { service, port: Arc::from(""), protocol: Protocol::Tcp, family: Family::V4 };
        match says {
            "sync fails" => Err(SyncError::Write { object: "map SERVICES", source: io::Error::other("no memory") }),
            "sync refuses" => Ok(Synced { writes: 1, refused: vec![(key, "full".to_owned())], ..Synced::default() }),
            _ => Ok(Synced::default()),
        }
    }

    fn mark_own_dns(&mut self, _sockets: &[OwnedFd]) -> Result<(), SyncError> {
        Ok(())
    }

    fn audit(&mut self) -> Result<u64, SyncError> {
        self.calls.lock().unwrap().push("audit");
        Ok(7)
    }
}

fn other(says: &[&'static str], calls: &Calls) -> Other {
    let (mut says, calls) = (VecDeque::from(says.to_vec()), Arc::clone(calls));
    let retire = move || {
        let says = says.pop_front().unwrap_or("remove");
        calls.lock().unwrap().push(says);
        match says {
            "remove fails" => Err(RemoveError { what: "tables", source: "busy".into() }),
            "flows go on" => Ok(Retired::Waits(3)),
            _ => Ok(Retired::Gone(vec![Removed { count: 1, what: "tables", place: "here".to_owned() }])),
        }
    };
    Other { part: Part::Sockets, retire: Box::new(retire) }
}

/// Syncs as often as `leftovers` has rows, and compares after each sync what could not be removed so far.
#[track_caller]
fn check(path: &[&'static str], others: &[&[&'static str]], leftovers: &[&[&str]], calls: &[&str]) {
    let made = Calls::default();
    let path = FakePath { says: VecDeque::from(path.to_vec()), calls: Arc::clone(&made) };
    let (reports, report) = watch::channel(Report { checked: true, ..Report::default() });
    let others = others.iter().map(|says| other(says, &made)).collect();
    let mut handover = Handover { pauses: [Duration::ZERO; 2], ..Handover::new(Box::new(path), others, reports) };
    for wanted in leftovers {
        drop(handover.sync(&Plan::default()));
        let found = report.borrow().clone();
        assert_eq!(found, Report { checked: true, leftovers: found.leftovers.clone(), ..Report::default() });
        assert_eq!(found.leftovers, *wanted);
    }
    assert_eq!(*made.lock().unwrap(), calls);
}

const BUSY: &str = "sockets of another data path are still installed too: removing tables: busy";

#[test]
fn what_others_left_is_removed_once_after_the_first_sync() {
    check(&[], &[], &[&[], &[]], &["sync", "sync"]);
    check(&[], &[&[]], &[&[], &[]], &["sync", "remove", "sync"]);
    check(&[], &[&[], &[]], &[&[], &[]], &["sync", "remove", "remove", "sync"]);
}

#[test]
fn nothing_is_removed_before_all_is_served() {
    check(&["sync fails"], &[&[]], &[&[], &[], &[]], &["sync fails", "sync", "remove", "sync"]);
    check(&["sync refuses"], &[&[]], &[&[], &[]], &["sync refuses", "sync", "remove"]);
}

#[test]
fn a_removal_that_fails_is_reported_and_tried_again_after_the_next_sync() {
    let calls = ["sync", "remove fails", "sync fails", "sync", "remove", "sync"];
    check(&["sync", "sync fails"], &[&["remove fails"]], &[&[BUSY], &[BUSY], &[], &[]], &calls);
    check(&[], &[&["remove fails"], &[]], &[&[BUSY], &[]], &["sync", "remove fails", "remove", "sync", "remove"]);
}

#[test]
fn a_removal_that_fails_pauses() {
    let calls = Calls::default();
    let path = FakePath { says: VecDeque::new(), calls: Arc::clone(&calls) };
    let others = vec![other(&["remove fails"], &calls)];
    let mut handover = Handover::new(Box::new(path), others, watch::Sender::new(Report::default()));
    handover.pauses = [Duration::MAX; 2];
    for _ in 0..3 {
        handover.sync(&Plan::default()).unwrap();
    }
    assert_eq!(*calls.lock().unwrap(), ["sync", "remove fails", "sync", "sync"]);
}

#[test]
fn audits_go_to_the_open_path() {
    let calls = Calls::default();
    let path = FakePath { says: VecDeque::new(), calls: Arc::clone(&calls) };
    let mut handover = Handover::new(Box::new(path), vec![other(&[], &calls)], watch::Sender::new(Report::default()));
    assert_eq!(handover.audit().unwrap(), 7);
    assert_eq!(*calls.lock().unwrap(), ["audit"]);
}

#[test]
fn a_part_whose_flows_go_on_is_asked_again_and_is_no_fault() {
    let calls = ["sync", "flows go on", "sync", "flows go on", "sync", "remove", "sync"];
    check(&[], &[&["flows go on", "flows go on"]], &[&[], &[], &[], &[]], &calls);
}

#[test]
fn an_audit_asks_a_part_that_waits() {
    let calls = Calls::default();
    let path = FakePath { says: VecDeque::new(), calls: Arc::clone(&calls) };
    let others = vec![other(&["flows go on"], &calls)];
    let mut handover = Handover::new(Box::new(path), others, watch::Sender::new(Report::default()));
    handover.pauses = [Duration::ZERO; 2];
    handover.sync(&Plan::default()).unwrap();
    for _ in 0..2 {
        assert_eq!(handover.audit().unwrap(), 7);
    }
    assert_eq!(*calls.lock().unwrap(), ["sync", "flows go on", "audit", "remove", "audit"]);
}
