//! Runs the reflectors, and publishes the view that results from their messages.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::failure::Cause;
use super::reflector::{Message, Reflector};
use super::session::Session;
use super::view::{Failing, View};
use super::{Kind, wire};
use crate::snapshot::Snapshot;
use crate::source::SourceHealth;
use crate::source::report::{self, Unreachable};

/// The capacity of the channel; a reflector that is ahead of the view waits.
const QUEUE: usize = 1024;
/// A flood of changes is published this often, a single change at once.
const BATCH: Duration = Duration::from_millis(5);
/// How long the first view waits for resources that it can do without (SY-13).
const PATIENCE: Duration = Duration::from_secs(30);

/// Ends the work when dropped.
pub(super) type Tasks = JoinSet<()>;

type First = oneshot::Sender<watch::Receiver<Arc<Snapshot>>>;

pub(super) fn start(
    session: &Arc<Session>,
) -> (Tasks, oneshot::Receiver<watch::Receiver<Arc<Snapshot>>>, watch::Receiver<SourceHealth>) {
    let mut tasks = JoinSet::new();
    let (outbox, inbox) = mpsc::channel(QUEUE);
    let options = session.options();
    let wanted = Kind::ALL.into_iter().filter(|kind| kind.is_wanted(options));
    for kind in wanted {
        let (session, outbox) = (Arc::clone(session), outbox.clone());
        match kind {
            Kind::Service => tasks.spawn(Reflector::<wire::WireService>::new(session, outbox).run()),
            Kind::Slice => tasks.spawn(Reflector::<wire::WireSlice>::new(session, outbox).run()),
            Kind::Node => tasks.spawn(Reflector::<wire::WireNode>::new(session, outbox).run()),
            Kind::Pod => tasks.spawn(Reflector::<wire::WirePod>::new(session, outbox).run()),
            Kind::Namespace => tasks.spawn(Reflector::<wire::WireNamespace>::new(session, outbox).run()),
            Kind::ServiceCidr => tasks.spawn(Reflector::<wire::WireServiceCidr>::new(session, outbox).run()),
        };
    }
    let (ready, first) = oneshot::channel();
    let (health, shown) = watch::channel(SourceHealth::default());
    let (view, snapshots) = (View::new(options), watch::Sender::default());
    let follower = Follower { view, ready: Some(ready), snapshots, health, told: BTreeSet::new() };
    tasks.spawn(session.remembered().follow(follower.snapshots.subscribe()));
    tasks.spawn(follower.run(inbox));
    (tasks, first, shown)
}

struct Follower {
    view: View,
    ready: Option<First>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    health: watch::Sender<SourceHealth>,
    /// What the log has been told of the outage under way.
    told: BTreeSet<Cause>,
}

impl Follower {
    async fn run(mut self, mut inbox: mpsc::Receiver<Message>) {
        let patience = sleep_until(Instant::now() + PATIENCE);
        let mut patience = std::pin::pin!(patience);
        let mut waiting = true;
        loop {
            tokio::select! {
                message = inbox.recv() => match message {
                    Some(message) => self.take(message, &mut inbox),
                    None => return,
                },
                () = &mut patience, if waiting => {
                    waiting = false;
                    self.view.stop_waiting();
                }
            }
            self.publish();
        }
    }

    /// A message, and those that wait behind it.
    fn take(&mut self, message: Message, inbox: &mut mpsc::Receiver<Message>) {
        let begun = Instant::now();
        self.view.take(message);
        while begun.elapsed() < BATCH
            && let Ok(message) = inbox.try_recv()
        {
            self.view.take(message);
        }
    }

    fn publish(&mut self) {
        if self.view.is_complete() {
            let snapshot = self.view.snapshot();
            self.snapshots.send_if_modified(|known| {
                let changed = !known.ptr_eq(&snapshot);
                if changed {
                    *known = Arc::new(snapshot);
                }
                changed
            });
            if let Some(ready) = self.ready.take()
                && ready.send(self.snapshots.subscribe()).is_err()
            {
                tracing::debug!("the first view has no receiver any more");
            }
        }
        // After the view is published: readers need not wait for the report.
        let complete = self.view.is_complete();
        if self.view.take_reported() || complete != self.health.borrow().complete {
            let (unreachable, problems) = (self.view.unreachable(), self.view.problems());
            let is_told = match &unreachable {
                Some(Failing { cause, reason: _ }) => !self.told.insert(*cause),
                None => {
                    self.told.clear();
                    false
                }
            };
            let unreachable = unreachable.map(|Failing { cause: _, reason }| Unreachable { reason, is_told });
            let unknown_node = self.view.unknown_node().filter(|_| complete);
            self.health.send_if_modified(|health| {
                let completed = std::mem::replace(&mut health.complete, complete) != complete;
                let renamed = report::update_node(health, unknown_node);
                report::update(health, unreachable, problems) || renamed || completed
            });
        }
    }
}
