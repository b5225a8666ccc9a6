//! Events about objects of the cluster: logged always, and written to the API where there is one.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use shunt_model::ObjectKey;
use shunt_model::source::kube::{Events, NewEvent};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::plan::PortKey;
use crate::status::Status;

/// Events beyond this many at once are dropped.
const QUEUE: usize = 256;

/// Takes events; never waits.
#[derive(Clone, Debug)]
pub struct Recorder {
    outbox: mpsc::Sender<NewEvent>,
    dropped: Arc<AtomicU64>,
}

/// The recorded events, for the task that writes them.
pub struct Recorded {
    inbox: mpsc::Receiver<NewEvent>,
}

/// A recorder, and the receiver of its events.
#[must_use]
pub fn recorder() -> (Recorder, Recorded) {
    let (outbox, inbox) = mpsc::channel(QUEUE);
    (Recorder { outbox, dropped: Arc::default() }, Recorded { inbox })
}

impl Recorder {
    /// This node's proxy starts (HM-24).
    pub fn starting(&self, node: &str) {
        self.record(NewEvent {
            kind: "Node",
            namespace: String::new(),
            name: node.to_owned(),
            warning: false,
            reason: "Starting".to_owned(),
            action: "StartKubeProxy".to_owned(),
            note: String::new(),
        });
    }

    /// Something about this node went wrong.
    pub fn node_warning(&self, node: &str, reason: &str, action: &str, note: String) {
        self.record(NewEvent {
            kind: "Node",
            namespace: String::new(),
            name: node.to_owned(),
            warning: true,
            reason: reason.to_owned(),
            action: action.to_owned(),
            note,
        });
    }

    /// Something about a Service went wrong.
    pub fn service_warning(&self, service: &ObjectKey, reason: &str, action: &str, note: String) {
        self.record(NewEvent {
            kind: "Service",
            namespace: service.namespace.to_string(),
            name: service.name.to_string(),
            warning: true,
            reason: reason.to_owned(),
            action: action.to_owned(),
            note,
        });
    }

    /// Events that found the queue full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn record(&self, event: NewEvent) {
        let NewEvent { kind, namespace, name, warning, reason, action: _, note } = &event;
        if *warning {
            warn!(kind, namespace, name, reason, "{note}");
        } else {
            info!(kind, namespace, name, reason, "event");
        }
        if self.outbox.try_send(event).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Recorded {
    /// The next event that waits.
    #[cfg(test)]
    pub(crate) fn next(&mut self) -> Option<NewEvent> {
        self.inbox.try_recv().ok()
    }

    /// Writes events as they come. If the API refuses an event, this is logged and the event is not retried.
    pub async fn write(mut self, events: Option<Events>) {
        while let Some(event) = self.inbox.recv().await {
            let Some(events) = &events else { continue };
            let reason = event.reason.clone();
            if let Err(error) = events.post(event).await {
                warn!(reason, error = shunt_model::with_causes(&error), "the event is not written");
            }
        }
    }
}

/// Follows the status and records an event for each service port that the data path begins to refuse, until the status
/// ends.
pub async fn tell_refusals(recorder: Recorder, mut status: watch::Receiver<Status>) {
    let mut known = Vec::new();
    loop {
        let refused = status.borrow_and_update().refused.clone();
        for (port, reason) in new_refusals(&known, &refused) {
            error!(service = %port.service, port = %port, reason, "service port is not served");
            let note = format!("port {port} is not served on this node: {reason}");
            recorder.service_warning(&port.service, "FailedToProgramService", "Sync", note);
        }
        known = refused;
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// The refusals that were not there before.
fn new_refusals<'a>(
    old: &'a [(PortKey, String)],
    new: &'a [(PortKey, String)],
) -> impl Iterator<Item = &'a (PortKey, String)> {
    let known: HashSet<_> = old.iter().collect();
    new.iter().filter(move |refusal| !known.contains(refusal))
}
