//! The DNS server: sockets, the zone that follows the snapshots, and one handler for every query.

mod handler;
mod reply;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hickory_server::Server as HickoryServer;
use shunt_model::Snapshot;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::forward::{ForwardConfig, Forwarder, TlsError};
use crate::stats::{Counters, Stats};
use crate::upstream::{ResolvConf, Upstream, UpstreamError, Upstreams};
use crate::zone::{Zone, ZoneConfig};
use handler::Handler;

/// A TCP connection without a query is closed after this (rule 9.16).
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Replies waiting for one TCP client to read them.
const TCP_REPLIES: usize = 32;
/// How often a file of upstreams is read.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How often a port that the kernel chose for UDP is found taken for TCP before we give up.
const PORT_TRIES: usize = 16;

/// What to serve, where.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Addresses to listen on, each over UDP and TCP; port 0 takes one free port for both.
    pub listen: Vec<SocketAddr>,
    /// What happens with other names.
    pub forward: ForwardConfig,
    /// The cluster's part.
    pub zone: ZoneConfig,
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No address to listen on.
    #[error("no address to serve DNS on (give at least one)")]
    NoAddress,
    /// The file of upstreams cannot be read.
    #[error(transparent)]
    Upstreams(#[from] UpstreamError),
    /// Upstreams cannot be asked over TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An address cannot be used.
    #[error("listening for DNS on {address} over {protocol} ({})", advice(.source))]
    Bind {
        /// The address.
        address: SocketAddr,
        /// `UDP` or `TCP`.
        protocol: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn advice(error: &io::Error) -> &'static str {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the other kinds have no advice of their own")]
    match error.kind() {
        io::ErrorKind::AddrInUse => "another DNS server holds it: stop that one or choose another address",
        io::ErrorKind::AddrNotAvailable => "no interface has this address: add it to lo first or choose another",
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need CAP_NET_BIND_SERVICE: run as root or choose a higher port"
        }
        _ => "check the address and port",
    }
}

/// What the server answers from at the moment.
#[derive(Clone, Debug)]
pub struct View {
    /// The zone; without data until `synced`.
    pub zone: Arc<Zone>,
    /// The snapshot of `zone`, absent until the first complete one: until then a cluster name that is not found is
    /// SERVFAIL, because nobody can say that it does not exist (rule 11.3).
    pub snapshot: Option<Arc<Snapshot>>,
}

/// A running server. Dropping it stops it at once; [`Server::shutdown`] also waits.
pub struct Server {
    addresses: Vec<SocketAddr>,
    counters: Arc<Counters>,
    forwarder: Arc<Forwarder>,
    views: watch::Receiver<View>,
    sockets: HickoryServer<Handler>,
    /// What keeps view and upstreams in step; ends with this.
    tasks: JoinSet<()>,
}

/// Starts serving. All sockets are bound, and what `snapshots` holds is being answered, when this returns.
///
/// `None` means that no complete snapshot exists yet.
pub async fn serve(
    config: ServerConfig,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
) -> Result<Server, ServeError> {
    if config.listen.is_empty() {
        return Err(ServeError::NoAddress);
    }
    let mut bound = Vec::new();
    for address in &config.listen {
        bound.push(bind(*address).await?);
    }
    let addresses: Vec<SocketAddr> = bound.iter().map(|(address, _, _)| *address).collect();
    let counters = Arc::<Counters>::default();
    let ours = Ours { listen: addresses.clone(), service: config.zone.dns_addresses.clone() };
    let upstreams = config.forward.upstreams.clone();
    let conf = upstreams.read()?;
    let mut forward = config.forward;
    for stub in &mut forward.stub_domains {
        stub.upstreams = ours.without(std::mem::take(&mut stub.upstreams));
    }
    let forwarder = Arc::new(Forwarder::new(forward, &ours.of(&conf), Arc::clone(&counters))?);
    let (views, follower) = follow(config.zone, snapshots);
    let mut tasks = JoinSet::new();
    tasks.spawn(follower);
    if let Upstreams::File(_) = upstreams {
        tasks.spawn(follow_file(upstreams, conf, ours, Arc::clone(&forwarder)));
    }
    let handler = Handler::new(views.clone(), Arc::clone(&forwarder), Arc::clone(&counters));
    let mut sockets = HickoryServer::new(handler);
    for (_, udp, tcp) in bound {
        sockets.register_socket(udp);
        sockets.register_listener(tcp, TCP_IDLE, TCP_REPLIES);
    }
    Ok(Server { addresses, counters, forwarder, views, sockets, tasks })
}

impl Server {
    /// Where it listens, in the order of the configuration, ports filled in.
    #[must_use]
    pub fn local_addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The counters now.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.counters.read(self.forwarder.cached())
    }

    /// What is being answered; a change is in it before the first query sees the change.
    #[must_use]
    pub fn views(&self) -> watch::Receiver<View> {
        self.views.clone()
    }

    /// Closes the sockets and waits until nothing runs any more. Queries in progress are dropped.
    pub async fn shutdown(mut self) {
        self.tasks.abort_all();
        if let Err(error) = self.sockets.shutdown_gracefully().await {
            tracing::warn!(%error, "a DNS socket had failed before the server was stopped");
        }
    }
}

/// Binds UDP and TCP to one address and port.
async fn bind(address: SocketAddr) -> Result<(SocketAddr, UdpSocket, TcpListener), ServeError> {
    let mut tries = 0;
    loop {
        let udp = UdpSocket::bind(address).await.map_err(|source| bind_error(address, "UDP", source))?;
        let chosen = udp.local_addr().map_err(|source| bind_error(address, "UDP", source))?;
        match TcpListener::bind(chosen).await {
            Ok(tcp) => return Ok((chosen, udp, tcp)),
            Err(error) if address.port() == 0 && error.kind() == io::ErrorKind::AddrInUse && tries < PORT_TRIES => {
                tries += 1;
            }
            Err(source) => return Err(bind_error(chosen, "TCP", source)),
        }
    }
}

fn bind_error(address: SocketAddr, protocol: &'static str, source: io::Error) -> ServeError {
    ServeError::Bind { address, protocol, source }
}

/// Addresses at which a question would come back to this server, for ever.
struct Ours {
    listen: Vec<SocketAddr>,
    service: Vec<IpAddr>,
}

impl Ours {
    /// What is left of the servers in a file; the rest is told of.
    fn of(&self, conf: &ResolvConf) -> Vec<Upstream> {
        for line in &conf.ignored {
            tracing::warn!(line, "ignoring a nameserver that is not an address");
        }
        self.without(conf.upstreams.clone())
    }

    fn without(&self, upstreams: Vec<Upstream>) -> Vec<Upstream> {
        let is_ours = |upstream: &Upstream| {
            self.listen.contains(&upstream.address) || self.service.contains(&upstream.address.ip())
        };
        let (loops, upstreams): (Vec<Upstream>, _) = upstreams.into_iter().partition(is_ours);
        for upstream in loops {
            tracing::warn!(%upstream, "ignoring an upstream that leads back to this server");
        }
        upstreams
    }
}

/// Reads the file again and again: it may be a mount that tells of no changes. The last servers stay while it cannot be
/// read.
async fn follow_file(file: Upstreams, first: ResolvConf, ours: Ours, forwarder: Arc<Forwarder>) {
    let mut before = Some(first);
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        let now = match file.read() {
            Ok(now) => Some(now),
            Err(error) if before.is_some() => {
                tracing::warn!(%error, "the last upstreams stay in force");
                None
            }
            Err(_) => None,
        };
        if now == before {
            continue;
        }
        if let Some(conf) = &now {
            let known = ours.of(conf);
            let names: Vec<String> = known.iter().map(ToString::to_string).collect();
            tracing::info!(upstreams = names.join(" "), "the upstreams have changed");
            forwarder.set_general(&known);
        }
        before = now;
    }
}

/// A view, and what keeps it in step with the snapshots.
fn follow(
    config: ZoneConfig,
    mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
) -> (watch::Receiver<View>, impl Future<Output = ()>) {
    let snapshot = snapshots.borrow_and_update().clone();
    let zone = Zone::new(Arc::new(config), snapshot.clone().unwrap_or_default(), now());
    let (sender, receiver) = watch::channel(View { zone: Arc::new(zone), snapshot });
    let follower = async move {
        // Ends when the source is gone; the last view stays in force (rule 11.5).
        while snapshots.changed().await.is_ok() {
            let Some(snapshot) = snapshots.borrow_and_update().clone() else {
                continue; // what was once complete is not forgotten
            };
            let zone = Arc::new(sender.borrow().zone.next(Arc::clone(&snapshot), now()));
            sender.send_replace(View { zone, snapshot: Some(snapshot) });
        }
    };
    (receiver, follower)
}

/// Seconds since 1970, for the SOA serial.
fn now() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}
