//! Starts the bundled DNS server on this node's address, and asks it a question to see whether it answers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use hickory_proto::serialize::binary::DecodeError;
use shunt_dns::{
    Corefile, CorefileError, NameError, PodMode, ServeError, Server, ServerConfig, Sockets, TlsError, UpstreamError,
    ZoneConfig, absolute,
};
use shunt_model::Snapshot;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::config::{DNS_PORT, DnsConfig, PodNames};
use crate::host::fd_store::Manager;

/// Loopback answers in microseconds; a server that needs longer than this does not serve.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why DNS does not start.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The domain is no name.
    #[error("--cluster-domain {domain:?} is not a domain name")]
    Domain {
        /// What was given.
        domain: String,
        /// Why.
        #[source]
        source: NameError,
    },
    /// The Corefile cannot be used.
    #[error("--corefile")]
    Corefile(#[from] CorefileError),
    /// The upstreams cannot be used.
    #[error("--dns-upstream")]
    Upstreams(#[source] UpstreamError),
    /// Servers cannot be asked over TLS.
    #[error("--dns-upstream-ca")]
    Tls(#[source] TlsError),
    /// Its sockets cannot be copied.
    #[error("copying the descriptors of the DNS sockets")]
    Sockets(#[source] io::Error),
    /// The server does not start.
    #[error("--dns-bind-address")]
    Serve(#[source] ServeError),
}

/// Starts the server on `listen`, with those of its sockets that are among the descriptors `passed` by the service
/// manager. Until a view is published it answers no cluster name.
pub async fn start(
    config: &DnsConfig,
    listen: Vec<SocketAddr>,
    cluster_dns: &[IpAddr],
    reachable: watch::Receiver<Option<Arc<Snapshot>>>,
    passed: Vec<OwnedFd>,
) -> Result<Started, DnsError> {
    let file = config.corefile.as_deref().map(Corefile::read).transpose()?;
    let idle = file.as_ref().map(without_effect).unwrap_or_default();
    if !idle.is_empty() {
        let idle = idle.join(" and ");
        warn!("of the Corefile, {idle} have no effect here: DNS of this daemon listens where --dns-bind-address says");
    }
    let server = match &file {
        None => ServerConfig::usual(listen, zone_config(config, cluster_dns)?, config.forward.clone()),
        Some(file) => file.server_config(listen, file.zone(cluster_dns.to_vec())),
    };
    let failed = |error| match error {
        ServeError::Upstreams(error) => DnsError::Upstreams(error),
        ServeError::Tls(error) => DnsError::Tls(error),
        error @ (ServeError::NoAddress | ServeError::Bind { .. }) => DnsError::Serve(error),
    };
    // A socket that is kept serves on with the queries that wait in it.
    let manager = Manager::of_environment();
    let sockets = Sockets::open(&server.listen, manager.kept(passed)).map_err(failed)?;
    match manager.keep(&sockets.all().collect::<Vec<_>>()) {
        Ok(true) => info!("the service manager keeps the sockets of DNS while no daemon runs"),
        Ok(false) => {}
        Err(error) => warn!(%error, "the service manager cannot be asked to keep the sockets of DNS"),
    }
    let copies = sockets.all().map(|socket| socket.try_clone_to_owned()).collect::<Result<_, _>>();
    let copies = copies.map_err(DnsError::Sockets)?;
    let server = shunt_dns::serve_on(sockets, server, reachable).await.map_err(failed)?;
    Ok(Started { sockets: copies, server: Arc::new(server), corefile: config.corefile.clone().zip(file) })
}

/// What a Corefile says about where to listen, unless that is usual.
fn without_effect(file: &Corefile) -> Vec<String> {
    let binds = file.bind.iter().map(|address| format!("bind {address}"));
    binds.chain((file.port != DNS_PORT).then(|| format!("port {}", file.port))).collect()
}

/// A server, and the Corefile that it is to follow.
pub struct Started {
    /// The server.
    pub server: Arc<Server>,
    /// Its sockets, to be marked; while they are here they do not close with the server.
    pub sockets: Vec<OwnedFd>,
    corefile: Option<(PathBuf, Corefile)>,
}

impl Started {
    /// Follows the Corefile for ever, if there is one with the directive to do so.
    pub fn follow(&mut self, cluster_dns: &[IpAddr]) -> Option<impl Future<Output = ()> + use<>> {
        let (path, file) = self.corefile.take()?;
        let every = file.reload?;
        Some(shunt_dns::corefile::follow(path, file, Arc::downgrade(&self.server), cluster_dns.to_vec(), every))
    }
}

/// What the zone is made with.
pub fn zone_config(config: &DnsConfig, cluster_dns: &[IpAddr]) -> Result<ZoneConfig, DnsError> {
    let invalid = |source| DnsError::Domain { domain: config.domain.clone(), source };
    let cluster_domain = absolute(&config.domain).map_err(invalid)?;
    let pods = match config.pods {
        PodNames::Disabled => PodMode::Disabled,
        PodNames::Insecure => PodMode::Insecure,
        PodNames::Verified => PodMode::Verified,
    };
    let dns_addresses = cluster_dns.to_vec();
    Ok(ZoneConfig { ttl: config.ttl, pods, dns_addresses, ..ZoneConfig::usual(cluster_domain) })
}

/// Why a server counts as not answering.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The question cannot be sent, or no answer comes.
    #[error("asking {server}")]
    Io {
        /// The server.
        server: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The answer is no reply to our question.
    #[error("{server} sends something that is no reply")]
    NotAReply {
        /// The server.
        server: SocketAddr,
    },
    /// No DNS message.
    #[error("a message of {server} cannot be read")]
    Message {
        /// The server.
        server: SocketAddr,
        /// Why.
        #[source]
        source: DecodeError,
    },
    /// It answers with an error.
    #[error("{server} answers {rcode} for {domain}")]
    Rcode {
        /// The server.
        server: SocketAddr,
        /// The error.
        rcode: ResponseCode,
        /// The question.
        domain: Name,
    },
}

/// Asks `server` for the SOA of the cluster domain, as any client would.
pub async fn probe(server: SocketAddr, domain: &Name) -> Result<(), ProbeError> {
    let server = reachable_at(server);
    let failed = |source| ProbeError::Io { server, source };
    let unreadable = |source| ProbeError::Message { server, source };
    let mut question = Message::query();
    question.add_query(Query::query(domain.clone(), RecordType::SOA));
    let bytes = question.to_vec().map_err(|error| failed(io::Error::other(error)))?;
    let any = if server.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let socket = UdpSocket::bind((any, 0)).await.map_err(failed)?;
    socket.connect(server).await.map_err(failed)?;
    socket.send(&bytes).await.map_err(failed)?;
    let mut buffer = [0; 1232];
    let length = match tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await {
        Ok(received) => received.map_err(failed)?,
        Err(elapsed) => return Err(failed(io::Error::new(io::ErrorKind::TimedOut, elapsed))),
    };
    let reply = Message::from_vec(buffer.get(..length).unwrap_or_default()).map_err(unreadable)?;
    if reply.metadata.id != question.metadata.id || reply.metadata.message_type != MessageType::Response {
        return Err(ProbeError::NotAReply { server });
    }
    let rcode = reply.metadata.response_code;
    if rcode == ResponseCode::NoError {
        Ok(())
    } else {
        Err(ProbeError::Rcode { server, rcode, domain: domain.clone() })
    }
}

/// A server that listens on every address is asked on loopback.
fn reachable_at(server: SocketAddr) -> SocketAddr {
    let ip = match server.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    SocketAddr::new(ip, server.port())
}
