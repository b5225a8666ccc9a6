//! Why a request to the API failed, in words for the operator who has to fix it.

use std::error::Error;
use std::io;
use std::time::Duration;

use kube::client::AuthError;
use rustls::{CertificateError, Error as TlsError};

use super::client::Origin;
use super::transport::Panicked;
use crate::with_causes;

/// After a panic of a library: retrying at once would only repeat it.
const AFTER_PANIC: Duration = Duration::from_secs(60);

/// One request that failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the request could not be made")]
    Request(#[source] kube::core::request::Error),
    #[error("the request failed")]
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
    #[error("following it panicked: {0}; this is a bug of shunt, please report it")]
    Panicked(String),
}

/// What kind of trouble a failure is. An outage is logged once for each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    /// No API server that is up.
    Away,
    /// TLS: certificates of the server or of this client.
    Certificate,
    /// The server does not accept who we are, or no credentials could be got.
    Credentials,
    /// The server refuses this resource, or has none.
    Denied,
    /// A bug, of ours or of a library.
    Bug,
}

impl Cause {
    /// It is no matter of one resource alone.
    pub(super) fn is_of_server(self) -> bool {
        match self {
            Self::Away | Self::Certificate | Self::Credentials | Self::Bug => true,
            Self::Denied => false,
        }
    }
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

    /// The server answered something: another address of it would do no better.
    pub(super) fn is_answer(&self) -> bool {
        match self {
            Self::Api(_) => self.status().is_some(),
            Self::Silent(_) => false,
            Self::Request(_)
            | Self::NotAList { .. }
            | Self::Garbled(_)
            | Self::NoVersion
            | Self::Stale { .. }
            | Self::Panicked(_) => true,
        }
    }

    /// Another address may do better. A server that answers that it has a fault is left too if it is a remembered
    /// endpoint; the configured address may lead each connection to another server by itself.
    pub(super) fn leads_elsewhere(&self, at_endpoint: bool) -> bool {
        !self.is_answer() || (at_endpoint && self.code().is_some_and(|code| code >= 500))
    }

    pub(super) fn cause(&self) -> Cause {
        match self.code() {
            Some(401) => return Cause::Credentials,
            Some(403 | 404) => return Cause::Denied,
            Some(_) => return Cause::Away,
            None => {}
        }
        match self {
            Self::Request(_) | Self::Panicked(_) => Cause::Bug,
            Self::Api(error) if found::<Panicked>(error.as_ref()).is_some() => Cause::Bug,
            Self::Api(error) if found::<TlsError>(error.as_ref()).is_some() => Cause::Certificate,
            Self::Api(error) if found::<AuthError>(error.as_ref()).is_some() => Cause::Credentials,
            Self::Api(_)
            | Self::Silent(_)
            | Self::NotAList { .. }
            | Self::Garbled(_)
            | Self::NoVersion
            | Self::Stale { .. } => Cause::Away,
        }
    }

    /// How long the API server wants us to wait.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        if self.cause() == Cause::Bug {
            return Some(AFTER_PANIC);
        }
        let seconds = self.status()?.details.as_ref()?.retry_after_seconds;
        (seconds > 0).then(|| Duration::from_secs(u64::from(seconds)))
    }

    /// With all causes and what to do, on one line. `restarting`: the API server was away a moment ago.
    pub(super) fn explain(&self, resource: &str, origin: Origin, restarting: bool) -> String {
        let Some(status) = self.status() else { return self.explain_silence(origin) };
        let reason = if status.message.is_empty() {
            format!("the API server answers {} {}", status.code, status.reason)
        } else {
            status.message.clone()
        };
        match status.code {
            401 => format!(
                "{reason}: the credentials are not accepted; they may have expired, so renew the token or certificate"
            ),
            403 if restarting => format!(
                "{reason}; an API server that has just started refuses at first what it allows, so this is retried"
            ),
            403 => format!("{reason}; allow get, list and watch of {resource} in the ClusterRole"),
            404 => format!("{reason}: this API server has no {resource}"),
            _ => reason,
        }
    }

    /// There is no answer that says why.
    fn explain_silence(&self, origin: Origin) -> String {
        let Self::Api(error) = self else { return with_causes(self) };
        if let Some(tls) = found::<TlsError>(error.as_ref()) {
            return explain_tls(tls, origin);
        }
        if let Some(auth) = found::<AuthError>(error.as_ref()) {
            return explain_auth(auth);
        }
        if let Some(panicked) = found::<Panicked>(error.as_ref()) {
            return format!("{panicked}; this is a bug, please report it");
        }
        match found::<io::Error>(error.as_ref()) {
            Some(io) if io.kind() == io::ErrorKind::TimedOut => {
                format!(
                    "no answer from this address, and no refusal either ({io}); is it up and reachable from this node?"
                )
            }
            Some(io) => format!("no connection to it: {io}"),
            None => format!("it did not answer: {}", with_causes(error.as_ref())),
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "all errors of TLS that say no more than their text")]
fn explain_tls(error: &TlsError, origin: Origin) -> String {
    match error {
        TlsError::InvalidCertificate(certificate) => explain_certificate(certificate, origin),
        TlsError::AlertReceived(alert) => format!(
            "the API server ends TLS with the alert {alert:?}; if it does not accept the client certificate, renew that"
        ),
        other => format!("TLS with the API server fails: {other}; is this an https port of an API server?"),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the library has many that no operator meets")]
fn explain_certificate(error: &CertificateError, origin: Origin) -> String {
    let (authority, itself, names) = match origin {
        Origin::Kubeconfig => (
            "give that authority's certificate as certificate-authority in the kubeconfig",
            "give this very certificate as certificate-authority in the kubeconfig, or one to the API server that an \
             authority signed",
            "use one of those as the server, or set tls-server-name in the kubeconfig to one of them",
        ),
        // Its ca.crt comes from kube-controller-manager.
        Origin::ServiceAccount => (
            "pods get the authority in the ConfigMap kube-root-ca.crt, so give that authority's certificate to \
             kube-controller-manager with --root-ca-file",
            "give the API server a certificate that the authority in the ConfigMap kube-root-ca.crt signed",
            "set KUBERNETES_SERVICE_HOST of the daemon to one of those, or add this address to the certificate",
        ),
    };
    let (what, todo) = match error {
        CertificateError::UnknownIssuer => ("an authority signed it that is not known here", authority),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            ("it is for other names and addresses", names)
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            ("it has expired", "renew it, or set the clock of this node")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            ("it is not valid yet", "set the clock of this node, or wait")
        }
        CertificateError::Other(_) => ("it is an authority's own, or cannot be checked", itself),
        _ => ("it cannot be checked", "give the API server a certificate that an authority signed"),
    };
    format!("the certificate of the API server is not accepted, because {what} ({error}); {todo}")
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the others say enough themselves")]
fn explain_auth(error: &AuthError) -> String {
    match error {
        // The command with its arguments, and what the program wrote, may be secrets.
        AuthError::AuthExecRun { cmd: _, out } => {
            format!("the credential plug-in of the kubeconfig ended with {}; run it by hand to see why", out.status)
        }
        AuthError::AuthExecParse(_) | AuthError::ExecPluginFailed => {
            "the credential plug-in of the kubeconfig did not give an ExecCredential; run it \
             by hand: it must write one as JSON to stdout, and nothing else"
                .to_owned()
        }
        AuthError::AuthExecStart(source) => format!("the credential plug-in of the kubeconfig cannot be run: {source}"),
        AuthError::InvalidBearerToken(_) => "the token has characters that a token cannot have".to_owned(),
        other => format!("no credentials for the API server could be got: {}", with_causes(other)),
    }
}

/// The first cause of this type.
fn found<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        // An I/O error's source is its content's source, not its content.
        let content = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match content {
            Some(content) => Some(content),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    use super::*;

    fn in_the_service(error: impl Into<Box<dyn Error + Send + Sync>>) -> Failure {
        kube::Error::Service(error.into()).into()
    }

    fn status(code: u16, message: &str) -> Failure {
        let status = kube::core::Status { code, message: message.to_owned(), ..kube::core::Status::default() };
        kube::Error::Api(Box::new(status)).into()
    }

    #[track_caller]
    fn check(failure: &Failure, cause: Cause, expected: &str) {
        assert_eq!((failure.cause(), failure.explain("pods", Origin::Kubeconfig, false)), (cause, expected.to_owned()));
    }

    #[test]
    fn a_failure_says_what_it_is_and_what_to_do() {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        check(&in_the_service(refused), Cause::Away, "no connection to it: connection refused");
        check(
            &in_the_service(io::Error::from(io::ErrorKind::TimedOut)),
            Cause::Away,
            "no answer from this address, and no refusal either (timed out); is it up and reachable from this node?",
        );
        check(&Failure::Silent(Duration::from_secs(60)), Cause::Away, "no answer within 60s");
        let issuer = TlsError::InvalidCertificate(CertificateError::UnknownIssuer);
        check(
            &in_the_service(io::Error::other(issuer)),
            Cause::Certificate,
            "the certificate of the API server is not accepted, because an authority signed it that is not known here \
             (UnknownIssuer); give that authority's certificate as certificate-authority in the kubeconfig",
        );
        let name = TlsError::InvalidCertificate(CertificateError::NotValidForName);
        check(
            &in_the_service(io::Error::other(name)),
            Cause::Certificate,
            "the certificate of the API server is not accepted, because it is for other names and addresses \
             (NotValidForName); use one of those as the server, or set tls-server-name in the kubeconfig to one of them",
        );
        let expired = TlsError::InvalidCertificate(CertificateError::Expired);
        check(
            &in_the_service(io::Error::other(expired)),
            Cause::Certificate,
            "the certificate of the API server is not accepted, because it has expired (Expired); renew it, or set the \
             clock of this node",
        );
        check(
            &in_the_service(Panicked("Valid URI".to_owned())),
            Cause::Bug,
            "a library panicked: Valid URI; this is a bug, please report it",
        );
        check(&status(500, "etcd is away"), Cause::Away, "etcd is away");
        check(
            &status(401, "Unauthorized"),
            Cause::Credentials,
            "Unauthorized: the credentials are not accepted; they may have expired, so renew the token or certificate",
        );
        let advice = "pods is forbidden; allow get, list and watch of pods in the ClusterRole";
        check(&status(403, "pods is forbidden"), Cause::Denied, advice);
        check(&status(404, "not found"), Cause::Denied, "not found: this API server has no pods");
    }

    #[test]
    fn neither_arguments_nor_output_of_a_plug_in_are_shown() {
        check(
            &in_the_service(AuthError::AuthExecStart(io::Error::from(io::ErrorKind::NotFound))),
            Cause::Credentials,
            "the credential plug-in of the kubeconfig cannot be run: entity not found",
        );
        let out = std::process::Output {
            status: ExitStatus::from_raw(3 << 8),
            stdout: b"s3cret".to_vec(),
            stderr: b"s3cret".to_vec(),
        };
        check(
            &in_the_service(AuthError::AuthExecRun { cmd: "\"get\" \"s3cret\"".to_owned(), out: Box::new(out) }),
            Cause::Credentials,
            "the credential plug-in of the kubeconfig ended with exit status: 3; run it by hand to see why",
        );
        let garbage = serde_saphyr::from_str::<u16>("token: s3cret").unwrap_err();
        check(
            &in_the_service(AuthError::AuthExecParse(Box::new(garbage))),
            Cause::Credentials,
            "the credential plug-in of the kubeconfig did not give an ExecCredential; run it by hand: it must write one \
             as JSON to stdout, and nothing else",
        );
    }

    #[test]
    fn in_a_pod_no_kubeconfig_is_to_be_corrected() {
        let begin = "the certificate of the API server is not accepted, because";
        for (error, expected) in [
            (
                CertificateError::UnknownIssuer,
                "an authority signed it that is not known here (UnknownIssuer); pods get the authority in the ConfigMap \
                 kube-root-ca.crt, so give that authority's certificate to kube-controller-manager with --root-ca-file",
            ),
            (
                CertificateError::NotValidForName,
                "it is for other names and addresses (NotValidForName); set KUBERNETES_SERVICE_HOST of the daemon to one \
                 of those, or add this address to the certificate",
            ),
        ] {
            let failure = in_the_service(io::Error::other(TlsError::InvalidCertificate(error)));
            assert_eq!(failure.explain("pods", Origin::ServiceAccount, false), format!("{begin} {expected}"));
        }
    }

    #[test]
    fn a_remembered_endpoint_that_has_a_fault_is_left() {
        let silent = || Failure::Silent(Duration::from_secs(60));
        for (failure, configured, endpoint) in [
            (silent(), true, true),
            (in_the_service(io::Error::from(io::ErrorKind::ConnectionRefused)), true, true),
            (status(500, ""), false, true),
            (status(503, ""), false, true),
            (status(403, ""), false, false),
            (status(429, ""), false, false),
        ] {
            let found = (failure.leads_elsewhere(false), failure.leads_elsewhere(true));
            assert_eq!(found, (configured, endpoint), "{failure:?}");
        }
    }

    #[test]
    fn a_refusal_after_a_restart_is_no_reason_to_change_a_role() {
        assert_eq!(
            status(403, "pods is forbidden").explain("pods", Origin::ServiceAccount, true),
            "pods is forbidden; an API server that has just started refuses at first what it allows, so this is retried"
        );
    }

    #[test]
    fn a_panic_is_not_repeated_at_once() {
        assert_eq!(in_the_service(Panicked(String::new())).retry_after(), Some(AFTER_PANIC));
        assert_eq!(in_the_service(io::Error::from(io::ErrorKind::TimedOut)).retry_after(), None);
    }
}
