//! A Kubernetes API server of our own: enough of lists, watches, pagination, bookmarks and errors to test a client
//! with, over TLS, with faults on demand.
//!
//! It keeps objects as JSON and knows nothing of shunt's model. It can follow a folder of manifests, and then does what
//! a cluster's controllers would: it hands out cluster IPs and writes EndpointSlices for selectors.

mod controllers;
pub mod faults;
mod folder;
mod selector;
mod serve;
mod store;
mod tls;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Runtime;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

pub use faults::{Action, Fault, Faults, Match, Verb};
pub use tls::Signer;

use serve::{Shared, locked};
use store::Store;
use tls::Credentials;

/// The token that is accepted at first.
pub const TOKEN: &str = "t0ken";

/// What the server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// Namespaces.
    Namespace,
    /// Nodes.
    Node,
    /// ServiceCIDRs.
    ServiceCidr,
    /// Pods.
    Pod,
    /// Services.
    Service,
    /// EndpointSlices.
    EndpointSlice,
    /// Events, which can only be created.
    Event,
}

impl Resource {
    const ALL: [Self; 7] =
        [Self::Service, Self::EndpointSlice, Self::Pod, Self::Node, Self::Namespace, Self::ServiceCidr, Self::Event];

    fn kind(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Pod => "Pod",
            Self::Node => "Node",
            Self::Namespace => "Namespace",
            Self::ServiceCidr => "ServiceCIDR",
            Self::Event => "Event",
        }
    }

    fn plural(self) -> &'static str {
        match self {
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
            Self::Pod => "pods",
            Self::Node => "nodes",
            Self::Namespace => "namespaces",
            Self::ServiceCidr => "servicecidrs",
            Self::Event => "events",
        }
    }

    fn group_name(self) -> &'static str {
        match self {
            Self::Service | Self::Pod | Self::Node | Self::Namespace => "",
            Self::EndpointSlice => "discovery.k8s.io",
            Self::ServiceCidr => "networking.k8s.io",
            Self::Event => "events.k8s.io",
        }
    }

    fn serves(self, group: &str) -> bool {
        group == self.group_name() || (self == Self::Event && group.is_empty())
    }

    fn api_version(self) -> String {
        let group = self.group_name();
        if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") }
    }

    fn is_namespaced(self) -> bool {
        match self {
            Self::Service | Self::EndpointSlice | Self::Pod | Self::Event => true,
            Self::Node | Self::Namespace | Self::ServiceCidr => false,
        }
    }

    fn of_kind(kind: &str) -> anyhow::Result<Self> {
        let found = Self::ALL.into_iter().find(|resource| resource.kind() == kind);
        found.with_context(|| format!("the server has no kind {kind:?}"))
    }
}

/// A request that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The resource.
    pub resource: Resource,
    /// The verb.
    pub verb: Verb,
    /// The query, as it came.
    pub query: String,
}

/// How clients of a kubeconfig prove who they are.
#[derive(Clone, Copy, Debug)]
pub enum Auth<'a> {
    /// A token in the file itself.
    Token(&'a str),
    /// A token in another file.
    TokenFile(&'a Path),
    /// A certificate that the server's authority signed.
    Certificate,
    /// A program that prints a token.
    Exec(&'a Path),
    /// Not at all.
    Nothing,
}

/// The server. Dropping it ends it.
#[derive(Debug)]
pub struct FakeApi {
    shared: Arc<Shared>,
    acceptor: TlsAcceptorShown,
    credentials: Credentials,
    address: SocketAddr,
    /// Keeps the port also while the server does not listen, so that no other program gets it.
    _port: TcpSocket,
    serving: Mutex<Option<JoinHandle<()>>>,
    folders: Mutex<Vec<folder::Follower>>,
    /// None only while it is dropped.
    runtime: Option<Runtime>,
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        // A test that is a task of another runtime may not wait for this one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[derive(Clone)]
struct TlsAcceptorShown(TlsAcceptor);

impl std::fmt::Debug for TlsAcceptorShown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsAcceptor")
    }
}

impl FakeApi {
    /// An empty cluster on a port of loopback.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_at(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0))
    }

    /// An empty cluster at this address.
    pub fn start_at(listen: SocketAddr) -> anyhow::Result<Self> {
        Self::start_signed(listen, Signer::Authority)
    }

    /// The same with a certificate that `signer` signed.
    pub fn start_signed(listen: SocketAddr, signer: Signer) -> anyhow::Result<Self> {
        let (acceptor, credentials) = tls::make(listen.ip(), signer)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let (changed, _) = tokio::sync::watch::channel(serve::Nudge::default());
        let shared = Arc::new(Shared {
            store: Mutex::new(Store::default()),
            faults: Faults::default(),
            requests: Mutex::default(),
            events: Mutex::default(),
            tokens: Mutex::new(vec![TOKEN.to_owned()]),
            denied: Mutex::default(),
            changed,
        });
        let port = take_port(listen).with_context(|| format!("taking {listen}"))?;
        let address = port.local_addr()?;
        let listener = std::net::TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
        let listener = into_tokio(&runtime, listener)?;
        let acceptor = TlsAcceptorShown(acceptor);
        let serving = runtime.spawn(accept(Arc::clone(&shared), acceptor.0.clone(), listener));
        let (serving, folders) = (Mutex::new(Some(serving)), Mutex::default());
        Ok(Self { shared, acceptor, credentials, address, _port: port, serving, folders, runtime: Some(runtime) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A kubeconfig with the first token.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        self.kubeconfig_with(Auth::Token(TOKEN))
    }

    /// A kubeconfig for clients that prove themselves in this way.
    #[must_use]
    pub fn kubeconfig_with(&self, auth: Auth<'_>) -> String {
        let user = match auth {
            Auth::Token(token) => json!({"token": token}),
            Auth::TokenFile(path) => json!({"tokenFile": path}),
            Auth::Certificate => json!({
                "client-certificate-data": base64(self.credentials.certificate.as_bytes()),
                "client-key-data": base64(self.credentials.key.as_bytes()),
            }),
            Auth::Exec(path) => json!({"exec": {
                "apiVersion": "client.authentication.k8s.io/v1", "command": path, "interactiveMode": "Never",
            }}),
            Auth::Nothing => json!({}),
        };
        let cluster = json!({
            "server": format!("https://{}", self.address),
            "certificate-authority-data": base64(self.credentials.ca.as_bytes()),
        });
        // JSON is YAML.
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": cluster}],
            "users": [{"name": "lab", "user": user}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        })
        .to_string()
    }

    /// The authority's certificate.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.credentials.ca
    }

    /// Creates or replaces the objects of a YAML or JSON text, lists of them too.
    pub fn apply(&self, text: &str) -> anyhow::Result<()> {
        for object in folder::objects(text)? {
            self.apply_object(object)?;
        }
        Ok(())
    }

    /// Creates or replaces one object.
    pub fn apply_object(&self, object: Value) -> anyhow::Result<()> {
        let resource = Resource::of_kind(object.get("kind").and_then(Value::as_str).unwrap_or_default())?;
        self.shared.store().apply(resource, object)?;
        self.shared.nudge();
        Ok(())
    }

    /// Stores something as it is, whether or not it is an object.
    pub fn apply_raw(&self, resource: Resource, namespace: &str, name: &str, object: Value) {
        self.shared.store().put(resource, (namespace.to_owned(), name.to_owned()), object);
        self.shared.nudge();
    }

    /// Deletes an object; false if there is none.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> bool {
        let deleted = self.shared.store().delete(resource, &(namespace.to_owned(), name.to_owned()));
        self.shared.nudge();
        deleted
    }

    /// The faults that the server makes.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Every request so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        locked(&self.shared.requests).clone()
    }

    /// Every Event that was written.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        locked(&self.shared.events).clone()
    }

    /// Forgets the history: a watch that begins at an older version gets the error 410.
    pub fn compact(&self) {
        self.shared.store().compact();
    }

    /// Sends a bookmark on every watch that takes them.
    pub fn bookmark(&self) {
        self.shared.changed.send_modify(|nudge| nudge.bookmarks += 1);
    }

    /// Breaks every open watch.
    pub fn drop_watches(&self) {
        self.shared.changed.send_modify(|nudge| nudge.dropped += 1);
    }

    /// Refuses connections, and breaks those that are open. The objects stay.
    pub fn stop_listening(&self) {
        let serving = locked(&self.serving).take();
        if let Some(serving) = serving {
            serving.abort();
            // The server no longer listens once the task has ended.
            while !serving.is_finished() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        self.drop_watches();
    }

    /// Listens again.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.listen_at(self.address)
    }

    /// Ends listening where it did, and listens at another port of its address.
    pub fn move_to(&self, address: SocketAddr) -> anyhow::Result<()> {
        self.stop_listening();
        self.listen_at(address)
    }

    fn listen_at(&self, address: SocketAddr) -> anyhow::Result<()> {
        let runtime = self.runtime.as_ref().context("the server has ended")?;
        let listener = std::net::TcpListener::bind(address).with_context(|| format!("listening at {address}"))?;
        let listener = into_tokio(runtime, listener)?;
        let serving = runtime.spawn(accept(Arc::clone(&self.shared), self.acceptor.0.clone(), listener));
        *locked(&self.serving) = Some(serving);
        Ok(())
    }

    /// From now on these tokens are accepted and no others.
    pub fn set_tokens(&self, tokens: &[&str]) {
        *locked(&self.shared.tokens) = tokens.iter().map(|token| (*token).to_owned()).collect();
        self.drop_watches();
    }

    /// From now on every client is forbidden these resources, and no others.
    pub fn deny(&self, resources: &[Resource]) {
        *locked(&self.shared.denied) = resources.to_vec();
    }

    /// Serves the objects of a folder of manifests from now on, and does for them what controllers do.
    pub fn follow(&self, folder: &Path) -> anyhow::Result<()> {
        let follower = folder::follow(Arc::clone(&self.shared), folder)?;
        locked(&self.folders).push(follower);
        Ok(())
    }
}

/// A socket that has the port and does not listen: connections are refused. Another one with the same option, as all
/// listeners of the standard library have it, can listen beside it.
fn take_port(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

fn into_tokio(runtime: &Runtime, listener: std::net::TcpListener) -> anyhow::Result<TcpListener> {
    let _entered = runtime.enter();
    listener.set_nonblocking(true)?;
    Ok(TcpListener::from_std(listener)?)
}

async fn accept(shared: Arc<Shared>, acceptor: TlsAcceptor, listener: TcpListener) {
    // Ended with this task.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (shared, acceptor) = (Arc::clone(&shared), acceptor.clone());
        connections.spawn(async move {
            // Answers are small and many.
            if stream.set_nodelay(true).is_err() {
                return;
            }
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let certified = stream.get_ref().1.peer_certificates().is_some();
            let service =
                hyper::service::service_fn(move |request| serve::answer(Arc::clone(&shared), request, certified));
            // A client that goes away is no failure here.
            drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
