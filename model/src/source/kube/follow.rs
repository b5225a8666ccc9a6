//! Runs the reflectors, and publishes the view that results from their messages.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::client::Api;
use super::reflector::{Message, Reflector};
use super::view::View;
use super::wire;
use super::{Kind, KubeOptions};
use crate::snapshot::Snapshot;
use crate::source::SourceHealth;
use crate::source::report;

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
    api: Api,
    options: KubeOptions,
) -> (Tasks, oneshot::Receiver<watch::Receiver<Arc<Snapshot>>>, watch::Receiver<SourceHealth>) {
    let mut tasks = JoinSet::new();
    let (outbox, inbox) = mpsc::channel(QUEUE);
    let wanted = Kind::ALL.into_iter().filter(|kind| kind.is_wanted(&options));
    for kind in wanted {
        let (api, options, outbox) = (api.clone(), options.clone(), outbox.clone());
        match kind {
            Kind::Service => tasks.spawn(Reflector::<wire::WireService>::new(api, options, outbox).run()),
            Kind::Slice => tasks.spawn(Reflector::<wire::WireSlice>::new(api, options, outbox).run()),
            Kind::Node => tasks.spawn(Reflector::<wire::WireNode>::new(api, options, outbox).run()),
            Kind::Pod => tasks.spawn(Reflector::<wire::WirePod>::new(api, options, outbox).run()),
            Kind::Namespace => tasks.spawn(Reflector::<wire::WireNamespace>::new(api, options, outbox).run()),
            Kind::ServiceCidr => tasks.spawn(Reflector::<wire::WireServiceCidr>::new(api, options, outbox).run()),
        };
    }
    let (ready, first) = oneshot::channel();
    let (health, shown) = watch::channel(SourceHealth::default());
    let follower =
        Follower { view: View::new(&options), ready: Some(ready), snapshots: watch::Sender::default(), health };
    tasks.spawn(follower.run(inbox));
    (tasks, first, shown)
}

struct Follower {
    view: View,
    ready: Option<First>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    health: watch::Sender<SourceHealth>,
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
        if self.view.take_reported() {
            let (unreachable, problems) = (self.view.unreachable(), self.view.problems());
            self.health.send_if_modified(|health| report::update(health, unreachable, problems));
        }
    }
}
