//! Connections to the API server: how a dead peer is noticed, how TLS is checked, and the edge at which a panic of a
//! library becomes an error.
//!
//! Not kube's own client: it neither sets options of sockets nor takes another verifier of certificates.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::header::{AUTHORIZATION, HeaderValue};
use http::{Request, Response};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{AuthError, Body, ConfigExt as _};
use kube::config::ExecConfig;
use kube::{Client, Config};
use rustls::crypto::ring;
use rustls::pki_types::{InvalidDnsNameError, ServerName};
use tower::util::option_layer;
use tower::{BoxError, Layer as _, Service, ServiceExt as _};

use super::verifier::{AuthorityError, verifier};

/// For TCP and TLS; kube's own 30 s would hide an API server that is away for that long.
const CONNECT: Duration = Duration::from_secs(5);
/// For TCP alone, shared among the addresses of a name: one that is dead must not take the time of the others.
const DIAL: Duration = Duration::from_secs(4);
/// A connection that is silent for this long is probed, then every `PROBE_INTERVAL`.
const PROBE_AFTER: Duration = Duration::from_secs(10);
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// A peer that acknowledges nothing for this long is dead: data as well as probes. With the next connection that fails
/// within `CONNECT` a silent death is known within 25 s.
const DEAD_AFTER: Duration = Duration::from_secs(20);
/// Only the pages of one list share a connection: an older one may be dead already, and a request on it would wait for
/// `DEAD_AFTER` once more.
const IDLE: Duration = Duration::from_secs(2);
/// Service account tokens are replaced long before they expire.
const TOKEN_AGE: Duration = Duration::from_secs(30);

/// Characters of what a credential plug-in complains.
const LINE: usize = 200;

/// Why no connection can be made with these credentials.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The authorities of the kubeconfig or of the host.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// Certificates, keys and headers of the user.
    #[error("check the certificates and keys of the kubeconfig's user")]
    Credentials(#[source] Box<kube::Error>),
    /// The program that gives the credentials is not there.
    #[error(
        "the credential plug-in {command:?} cannot be run; install it, or name it with its full path under \
         exec.command of the kubeconfig{hint}"
    )]
    NoPlugin {
        /// As the kubeconfig names it.
        command: String,
        /// What the kubeconfig says about installing it.
        hint: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The program that gives the credentials failed. What it wrote may be a secret.
    #[error("the credential plug-in {command:?} ended with {status}; run it by hand to see why")]
    Plugin {
        /// As the kubeconfig names it, without its arguments.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it complained, for the log alone.
        complaint: String,
    },
    /// The program that gives the credentials gave something else.
    #[error(
        "the credential plug-in {command:?} did not give an ExecCredential; run it by hand: it must write one as JSON to \
         stdout, and nothing else"
    )]
    PluginAnswer {
        /// As the kubeconfig names it, without its arguments.
        command: String,
    },
    /// The token's file.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// A name that no certificate can have.
    #[error("tls-server-name {0:?} is neither a host name nor an IP address; correct it, or leave it out")]
    ServerName(String),
    /// A library failed.
    #[error("a library panicked: {0}")]
    Panicked(String),
}

/// A token that cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("the token file {} cannot be read; check tokenFile", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file has none.
    #[error("the token file {} holds no token; write one into it", .0.display())]
    Empty(PathBuf),
    /// The file has something else.
    #[error("the token file {} holds characters that a token cannot have; write the token alone into it", .0.display())]
    Characters(PathBuf),
}

/// A library panicked in a request.
#[derive(Debug, thiserror::Error)]
#[error("a library panicked: {0}")]
pub(super) struct Panicked(pub(super) String);

/// A client of the API server of `config`.
pub(super) fn client(mut config: Config) -> Result<Client, TransportError> {
    match catch_unwind(AssertUnwindSafe(|| build(&mut config))) {
        Ok(outcome) => outcome,
        Err(panic) => Err(TransportError::Panicked(panic_text(panic.as_ref()))),
    }
}

fn build(config: &mut Config) -> Result<Client, TransportError> {
    let token = token_file(config)?;
    let boxed = |error: kube::Error| TransportError::Credentials(Box::new(error));
    let auth = config.auth_layer().map_err(|error| of_plugin(error, config.auth_info.exec.as_ref()))?;
    if auth.is_some() {
        // It has given a token, so it has no certificate for TLS: a plug-in need not run again.
        config.auth_info.exec = None;
    }
    let mut connector = TimeoutConnector::new(https(config)?);
    connector.set_connect_timeout(Some(CONNECT));
    let mut builder = hyper_util::client::legacy::Builder::new(TokioExecutor::new());
    builder.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE);
    let service = builder.build::<_, Body>(connector).map_err(BoxError::from);
    let service = config.extra_headers_layer().map_err(boxed)?.layer(service);
    let service = option_layer(auth).layer(service);
    let service = config.base_uri_layer().layer(service);
    Ok(Client::new(Edge { inner: service, token }, config.default_namespace.clone()))
}

#[expect(clippy::wildcard_enum_match_arm, reason = "only what a plug-in does wrong is said anew")]
fn of_plugin(error: kube::Error, plugin: Option<&ExecConfig>) -> TransportError {
    let command = || plugin.and_then(|plugin| plugin.command.clone()).unwrap_or_default();
    match error {
        kube::Error::Auth(AuthError::AuthExecStart(source)) => {
            let hint = plugin.and_then(|plugin| plugin.install_hint.as_deref()).map(str::trim).unwrap_or_default();
            let hint = if hint.is_empty() { String::new() } else { format!(" ({hint})") };
            TransportError::NoPlugin { command: command(), hint, source }
        }
        kube::Error::Auth(AuthError::AuthExecRun { cmd: _, out }) => {
            TransportError::Plugin { command: command(), status: out.status, complaint: first_line(&out.stderr) }
        }
        kube::Error::Auth(AuthError::AuthExecParse(_) | AuthError::ExecPluginFailed) => {
            TransportError::PluginAnswer { command: command() }
        }
        other => TransportError::Credentials(Box::new(other)),
    }
}

/// What a program says first, short enough for a line of the log.
fn first_line(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    line.chars().filter(|letter| !letter.is_control()).take(LINE).collect()
}

fn https(config: &Config) -> Result<HttpsConnector<HttpConnector>, TransportError> {
    let provider = Arc::new(ring::default_provider());
    let mut tls = {
        // The verifier is replaced below; without an authority kube would load those of the host.
        let mut config = config.clone();
        config.root_cert = Some(Vec::new());
        config.rustls_client_config().map_err(|error| TransportError::Credentials(Box::new(error)))?
    };
    // With the file of a service account kube's verifier follows the file.
    if !config.accept_invalid_certs && config.root_cert_file.is_none() && is_https(config) {
        let verifier = verifier(config.root_cert.as_deref(), &provider)?;
        tls.dangerous().set_certificate_verifier(Arc::new(verifier));
    }
    let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    let builder = match &config.tls_server_name {
        None => builder,
        Some(name) => {
            let server = ServerName::try_from(name.clone());
            let server = server.map_err(|_invalid: InvalidDnsNameError| TransportError::ServerName(name.clone()));
            builder.with_server_name_resolver(FixedServerNameResolver::new(server?))
        }
    };
    Ok(builder.enable_http1().wrap_connector(tcp()))
}

pub(super) fn is_https(config: &Config) -> bool {
    config.cluster_url.scheme_str() == Some("https")
}

/// TCP that notices a peer which dies in silence.
fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(DIAL));
    tcp.set_keepalive(Some(PROBE_AFTER));
    tcp.set_keepalive_interval(Some(PROBE_INTERVAL));
    // With TCP_USER_TIMEOUT the kernel no longer counts probes: it ends the connection by time (tcp(7)).
    tcp.set_tcp_user_timeout(Some(DEAD_AFTER));
    tcp
}

/// Takes the token's file out of `config`: kube would send its last line end too. kubectl prefers it to a token in the
/// kubeconfig, and takes that one if the file is not there.
fn token_file(config: &mut Config) -> Result<Option<TokenFile>, TransportError> {
    let user = &mut config.auth_info;
    if user.auth_provider.is_some() || (user.username.is_some() && user.password.is_some()) {
        return Ok(None);
    }
    let Some(path) = user.token_file.take() else { return Ok(None) };
    match TokenFile::read(path.into()) {
        Ok(file) => {
            user.token = None;
            user.exec = None;
            Ok(Some(file))
        }
        Err(_) if user.token.is_some() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A token that is read again as its file changes.
struct TokenFile {
    path: PathBuf,
    header: HeaderValue,
    read: Instant,
}

impl TokenFile {
    fn read(path: PathBuf) -> Result<Self, TokenError> {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source) => return Err(TokenError::Read { path, source }),
        };
        let token = text.trim();
        if token.is_empty() {
            return Err(TokenError::Empty(path));
        }
        match HeaderValue::try_from(format!("Bearer {token}")) {
            Ok(mut header) => {
                header.set_sensitive(true);
                Ok(Self { path, header, read: Instant::now() })
            }
            Err(_) => Err(TokenError::Characters(path)),
        }
    }

    /// If the file cannot be read any more the last token stays in use: the server says whether it still counts.
    fn header(&mut self) -> HeaderValue {
        if self.read.elapsed() >= TOKEN_AGE {
            match Self::read(self.path.clone()) {
                Ok(fresh) => *self = fresh,
                Err(error) => {
                    self.read = Instant::now();
                    tracing::debug!(reason = crate::with_causes(&error), "the last token stays in use");
                }
            }
        }
        self.header.clone()
    }
}

/// What every request passes first.
struct Edge<S> {
    inner: S,
    token: Option<TokenFile>,
}

impl<S, B> Service<Request<Body>> for Edge<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<B>, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(token) = &mut self.token {
            request.headers_mut().insert(AUTHORIZATION, token.header());
        }
        match catch_unwind(AssertUnwindSafe(|| self.inner.call(request))) {
            Ok(answer) => Box::pin(async {
                match AssertUnwindSafe(answer).catch_unwind().await {
                    Ok(answer) => answer.map_err(Into::into),
                    Err(panic) => Err(Panicked(panic_text(panic.as_ref())).into()),
                }
            }),
            Err(panic) => {
                let panicked = Panicked(panic_text(panic.as_ref()));
                Box::pin(async { Err(panicked.into()) })
            }
        }
    }
}

/// What a panic says.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Panics {
        at_once: bool,
    }

    impl Service<Request<Body>> for Panics {
        type Response = Response<Body>;
        type Error = BoxError;
        type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

        fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _request: Request<Body>) -> Self::Future {
            assert!(!self.at_once, "at the call");
            async { panic!("in the answer") }.boxed()
        }
    }

    #[tokio::test]
    async fn a_panic_of_a_library_is_an_error_of_the_request() {
        for (at_once, expected) in [(true, "at the call"), (false, "in the answer")] {
            let mut edge = Edge { inner: Panics { at_once }, token: None };
            let outcome = edge.call(Request::new(Body::empty())).await;
            assert_eq!(outcome.err().unwrap().to_string(), format!("a library panicked: {expected}"));
        }
    }

    #[test]
    fn the_log_gets_one_short_line_of_a_program() {
        assert_eq!(first_line(b""), "");
        assert_eq!(first_line(b"\n  no login\x1b[0m \nTraceback\n"), "no login[0m");
        assert_eq!(first_line("é".repeat(999).as_bytes()), "é".repeat(LINE));
    }

    #[test]
    fn a_token_file_is_read_without_its_line_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let header = TokenFile::read(path.clone()).map(|file| file.header.to_str().unwrap().to_owned());
            header.map_err(|error| error.to_string().replace(&path.display().to_string(), "F"))
        };
        for text in ["abc", "abc\n", "\nabc\r\n", "  abc "] {
            assert_eq!(read(text), Ok("Bearer abc".to_owned()), "{text:?}");
        }
        assert_eq!(read(" \n"), Err("the token file F holds no token; write one into it".to_owned()));
        let two = "the token file F holds characters that a token cannot have; write the token alone into it";
        assert_eq!(read("abc\ndef"), Err(two.to_owned()));
    }
}
