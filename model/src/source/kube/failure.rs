//! Why a request to the API failed, in words for the operator who has to fix it.

use std::time::Duration;

use super::client::ConnectError;
use crate::with_causes;

/// One request that failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the request could not be made")]
    Request(#[source] kube::core::request::Error),
    #[error("the API server did not answer")]
    Api(#[source] Box<kube::Error>),
    #[error("no answer within {0:?}")]
    Silent(Duration),
    #[error("the answer is no {wanted} but a {found:?}")]
    NotAList { wanted: String, found: String },
    #[error("an event cannot be read")]
    Garbled(#[source] serde_json::Error),
    #[error("the list has no resourceVersion")]
    NoVersion,
    #[error("the list is of version {found}, older than version {seen} that was seen already")]
    Stale { found: String, seen: String },
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

impl Failure {
    fn status(&self) -> Option<&kube::core::Status> {
        if let Self::Api(error) = self
            && let kube::Error::Api(status) = error.as_ref()
        {
            return Some(status);
        }
        None
    }

    fn code(&self) -> Option<u16> {
        self.status().map(|status| status.code)
    }

    /// The API server no longer has the requested history, so the list must be read again.
    pub(super) fn is_gone(&self) -> bool {
        self.code() == Some(410)
    }

    /// The API server knows us and refuses, or has no such resource: an early retry is useless.
    pub(super) fn is_denial(&self) -> bool {
        matches!(self.code(), Some(403 | 404))
    }

    /// How long the API server wants us to wait.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let seconds = self.status()?.details.as_ref()?.retry_after_seconds;
        (seconds > 0).then(|| Duration::from_secs(u64::from(seconds)))
    }

    /// With all causes and what to do, on one line.
    pub(super) fn explain(&self, resource: &str) -> String {
        let reason = match self.status() {
            Some(status) if !status.message.is_empty() => status.message.clone(),
            Some(status) => format!("the API server answers {} {}", status.code, status.reason),
            None => with_causes(self),
        };
        match self.code() {
            Some(401) => format!(
                "{reason}: the credentials are not accepted; they may have expired, so renew the token or certificate"
            ),
            Some(403) => format!("{reason}; allow get, list and watch of {resource} in the ClusterRole"),
            Some(404) => format!("{reason}: this API server has no {resource}"),
            _ => reason,
        }
    }
}
