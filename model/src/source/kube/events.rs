//! Events: what an operator sees with `kubectl describe`.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};

use super::failure::Failure;
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
#[error("writing an event to the API server: {0}")]
pub struct PostError(String);

impl From<kube::Error> for PostError {
    fn from(error: kube::Error) -> Self {
        if let kube::Error::Api(status) = &error
            && status.code == 403
        {
            let role = "allow create of events in events.k8s.io in the ClusterRole";
            return Self(format!("{}; {role}", status.message));
        }
        Self(Failure::from(error).explain("events", false))
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
    use std::io;

    use super::PostError;

    #[track_caller]
    fn check(error: kube::Error, expected: &str) {
        assert_eq!(PostError::from(error).to_string(), expected);
    }

    fn status(code: u16, message: &str) -> kube::Error {
        let status = kube::core::Status { code, message: message.to_owned(), ..kube::core::Status::default() };
        kube::Error::Api(Box::new(status))
    }

    #[test]
    fn only_who_may_not_write_events_is_told_to_allow_it() {
        check(
            status(403, "events is forbidden"),
            "writing an event to the API server: events is forbidden; allow create of events in events.k8s.io in the ClusterRole",
        );
        check(status(500, "etcd is away"), "writing an event to the API server: etcd is away");
        check(
            kube::Error::Service(Box::new(io::Error::from(io::ErrorKind::ConnectionRefused))),
            "writing an event to the API server: no connection to it: connection refused",
        );
    }
}
