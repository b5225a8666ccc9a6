//! Events: what an operator sees with `kubectl describe`.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};

use super::session::Session;

/// Who reports, as dashboards and filters know it.
const CONTROLLER: &str = "kube-proxy";

/// Writes events.
#[derive(Clone)]
pub struct Events {
    session: Arc<Session>,
    node: String,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEvent {
    /// `Service` or `Node`.
    pub kind: &'static str,
    /// The object's namespace, empty for a Node.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// Something went wrong.
    pub warning: bool,
    /// One word in CamelCase.
    pub reason: String,
    /// What was attempted, in CamelCase.
    pub action: String,
    /// What happened, in words.
    pub note: String,
}

/// An event that was not written.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// The API server refuses it.
    #[error("writing an event; allow create of events in events.k8s.io in the ClusterRole")]
    Denied(#[source] Box<kube::Error>),
    /// Anything else, such as an API server that is away.
    #[error("writing an event")]
    Failed(#[source] Box<kube::Error>),
}

impl From<kube::Error> for PostError {
    fn from(error: kube::Error) -> Self {
        let denied = matches!(&error, kube::Error::Api(status) if status.code == 403);
        let error = Box::new(error);
        if denied { Self::Denied(error) } else { Self::Failed(error) }
    }
}

impl Events {
    pub(super) fn new(session: Arc<Session>, node: &str) -> Self {
        Self { session, node: node.to_owned() }
    }

    /// Writes one. Events of objects without a namespace are kept in `default`, as everywhere.
    pub async fn post(&self, event: NewEvent) -> Result<(), PostError> {
        let now = Timestamp::now();
        let namespace = if event.namespace.is_empty() { "default".to_owned() } else { event.namespace.clone() };
        let object = Event {
            metadata: ObjectMeta {
                // Unique enough, and sorted by time.
                name: Some(format!("{}.{:x}", event.name, now.as_nanosecond())),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            action: Some(event.action),
            event_time: Some(MicroTime(now)),
            note: Some(shortened(event.note)),
            reason: Some(event.reason),
            regarding: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some(event.kind.to_owned()),
                namespace: Some(event.namespace).filter(|namespace| !namespace.is_empty()),
                // The Node's events are found by its name, as the kubelet writes them too.
                uid: (event.kind == "Node").then(|| event.name.clone()),
                name: Some(event.name),
                ..ObjectReference::default()
            }),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(format!("{CONTROLLER}-{}", self.node)),
            type_: Some(if event.warning { "Warning" } else { "Normal" }.to_owned()),
            ..Event::default()
        };
        let events: Api<Event> = Api::namespaced(self.session.api().client, &namespace);
        events.create(&PostParams::default(), &object).await?;
        Ok(())
    }
}

/// The API takes no more than 1,024 bytes.
fn shortened(mut note: String) -> String {
    while note.len() > 1024 {
        note.pop();
    }
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refusal_is_a_reason_to_change_a_role() {
        let answer = |code| {
            let status = kube::core::Status { code, ..kube::core::Status::default() };
            PostError::from(kube::Error::Api(Box::new(status))).to_string()
        };
        assert_eq!(answer(403), "writing an event; allow create of events in events.k8s.io in the ClusterRole");
        assert_eq!(answer(503), "writing an event");
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert_eq!(PostError::from(kube::Error::Service(refused.into())).to_string(), "writing an event");
    }
}
