//! The DNS server: sockets, the zone that follows the snapshots, and one handler for every query.

mod datagram;
mod ending;
mod first_view;
mod handler;
mod tcp;
mod udp;
mod worker;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use shunt_model::{Snapshot, with_causes};
use shunt_serving::admission::Admission;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::DropGuard;

use crate::block::{Block, BlockConfig};
use crate::explain::Explainer;
use crate::forward::{ForwardConfig, Forwarder, TlsError};
use crate::hosts::Hosts;
use crate::metrics::{Exporter, Metrics};
use crate::request::Transport;
use crate::sockets::{Before, Kept, datagram_socket, listen};
use crate::stats::Stats;
use crate::upstream::{Ignored, ResolvConf, Upstream, UpstreamError, Upstreams, names_no_server};
use crate::zone::{View, Zone, ZoneConfig};
use ending::Ending;
use handler::{Begun, Handler};
use worker::Worker;

/// How often a file of upstreams is read.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How often to try again when the port that the kernel chose for TCP is in use for UDP.
const PORT_TRIES: usize = 16;

/// What to serve, where.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Addresses to listen on, each over UDP and TCP; port 0 takes one free port for both.
    pub listen: Vec<SocketAddr>,
    /// The cluster's part.
    pub zone: ZoneConfig,
    /// How queries are answered, by the block with the longest domain that the name lies in.
    pub blocks: Vec<BlockConfig>,
    /// How long after the start questions about the cluster wait for its first view (DNS-11.1); then they are
    /// SERVFAIL.
    pub startup_timeout: Duration,
}

/// CoreDNS's `startup_timeout` too.
pub(crate) const STARTUP_TIMEOUT: Duration = Duration::from_secs(5);

impl ServerConfig {
    /// The usual: the cluster's names here, all others elsewhere.
    #[must_use]
    pub fn usual(listen: Vec<SocketAddr>, zone: ZoneConfig, forward: ForwardConfig) -> Self {
        let blocks = vec![BlockConfig::usual(zone.cluster_domain.clone(), forward)];
        Self { listen, zone, blocks, startup_timeout: STARTUP_TIMEOUT }
    }
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

/// A running server. Dropping it stops it at once; [`Server::shutdown`] also waits.
pub struct Server {
    addresses: Vec<SocketAddr>,
    service: Vec<IpAddr>,
    handler: Arc<Handler>,
    metrics: Arc<Metrics>,
    zone: watch::Sender<ZoneConfig>,
    views: watch::Receiver<View>,
    /// The tasks that follow the files of upstreams and hosts.
    followers: Mutex<JoinSet<()>>,
    /// The tasks that accept connections and follow the snapshots; dropping this ends them.
    tasks: JoinSet<()>,
    /// Datagrams.
    workers: Vec<Worker>,
    /// Connections, and queries that wait for others.
    ending: Ending,
    _answering: DropGuard,
}

/// Starts serving. All sockets are bound, and what `snapshots` holds is being answered, when this returns.
///
/// `None` means that no complete snapshot exists yet.
pub async fn serve(
    config: ServerConfig,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
) -> Result<Server, ServeError> {
    let sockets = Sockets::open(&config.listen, Vec::new())?;
    serve_on(sockets, config, snapshots).await
}

/// The same on sockets that are open already.
pub async fn serve_on(
    Sockets(bound): Sockets,
    config: ServerConfig,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
) -> Result<Server, ServeError> {
    let addresses: Vec<SocketAddr> = bound.iter().map(|bound| bound.address).collect();
    let metrics = Arc::new(Metrics::new(&addresses));
    let service = config.zone.dns_addresses.clone();
    let (zone, zones) = watch::channel(config.zone);
    let (views, follower) = follow(zones, snapshots, Arc::clone(&metrics));
    let handler = Arc::new(Handler::new(views.clone(), config.startup_timeout, Arc::clone(&metrics)));
    let mut tasks = JoinSet::new();
    tasks.spawn(follower);
    let followers = Mutex::default();
    let (workers, ending) = (Vec::new(), Ending::default());
    let _answering = ending.guard();
    let mut server =
        Server { addresses, service, handler, metrics, zone, views, followers, tasks, workers, ending, _answering };
    server.set_blocks(config.blocks)?;
    let connections = Admission::new(tcp::CONNECTIONS);
    for Bound { address, udp, tcp } in bound {
        for socket in udp {
            let worker = Worker::start(socket, Arc::clone(&server.handler), server.ending.clone());
            server.workers.push(worker.map_err(|source| bind_error(address, "UDP", source))?);
        }
        let (handler, ending) = (Arc::clone(&server.handler), server.ending.clone());
        server.tasks.spawn(tcp::serve(tcp, handler, Arc::clone(&connections), ending));
    }
    Ok(server)
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
        self.metrics.stats()
    }

    /// The same for Prometheus.
    #[must_use]
    pub fn exporter(&self) -> Exporter {
        Exporter { metrics: Arc::clone(&self.metrics), blocks: Arc::downgrade(self.handler.blocks()) }
    }

    /// Explains the answer to a question.
    #[must_use]
    pub fn explainer(&self) -> Explainer {
        self.handler.explainer()
    }

    /// What is being answered; a change is in it before the first query sees the change.
    #[must_use]
    pub fn views(&self) -> watch::Receiver<View> {
        self.views.clone()
    }

    /// Applies another configuration to all queries from now on, or, on an error, none of it. Queries in progress keep
    /// the old one.
    pub fn reconfigure(&self, zone: ZoneConfig, blocks: Vec<BlockConfig>) -> Result<(), ServeError> {
        self.set_blocks(blocks).inspect_err(|_| self.reload_failed())?;
        self.zone.send_if_modified(|now| std::mem::replace(now, zone.clone()) != zone);
        Ok(())
    }

    /// A configuration could not even be read.
    pub fn reload_failed(&self) {
        self.metrics.failed_reloads.add_one();
    }

    /// Which text of a configuration is in force, for metrics.
    pub(crate) fn runs(&self, version: String) {
        self.metrics.runs(version);
    }

    fn set_blocks(&self, configs: Vec<BlockConfig>) -> Result<(), ServeError> {
        let ours = Arc::new(Ours { listen: self.addresses.clone(), service: self.service.clone() });
        let (mut blocks, mut followers) = (Vec::new(), JoinSet::new());
        for config in configs {
            let counters = self.metrics.counters(&config.domain);
            let block = Arc::new(Block::new(config, counters, Arc::clone(&self.metrics.peers))?);
            follow_upstreams(&block.forwarder, &ours, &mut followers)?;
            if let Some(every) = block.hosts.as_ref().and_then(Hosts::reload) {
                followers.spawn(follow_hosts(Arc::clone(&block), every));
            }
            blocks.push(block);
        }
        self.handler.blocks().set(blocks);
        *self.followers.lock().unwrap_or_else(PoisonError::into_inner) = followers;
        Ok(())
    }

    /// Accepts no new query, waits for the answers in progress, `patience` at most, and shuts down (DNS-11.9).
    pub async fn drain(mut self, patience: Duration) {
        self.tasks.shutdown().await;
        self.ending.begin(patience).await;
        self.shutdown().await;
    }

    /// Closes the sockets and waits until nothing runs any more. Queries in progress are dropped.
    pub async fn shutdown(mut self) {
        self.tasks.shutdown().await;
        self.ending.over().await;
        futures::future::join_all(self.workers.into_iter().map(Worker::join)).await;
        let mut followers = std::mem::take(&mut *self.followers.lock().unwrap_or_else(PoisonError::into_inner));
        followers.shutdown().await;
    }
}

/// A server without sockets: messages in, messages out. It refuses what a server would forward.
pub struct Answerer {
    handler: Arc<Handler>,
}

impl Answerer {
    /// Answers from a snapshot; without one, as before the first view of the cluster. Fails where a server would.
    pub fn new(
        zone: ZoneConfig,
        snapshot: Option<Arc<Snapshot>>,
        blocks: Vec<BlockConfig>,
    ) -> Result<Self, ServeError> {
        let metrics = Arc::new(Metrics::new(&[]));
        let zone = Arc::new(Zone::new(Arc::new(zone), snapshot.clone().unwrap_or_default(), now()));
        // The view stays in force without its sender.
        let (_, views) = watch::channel(View { zone, snapshot });
        let handler = Handler::new(views, Duration::ZERO, Arc::clone(&metrics));
        let block = |config: BlockConfig| {
            let counters = metrics.counters(&config.domain);
            let block = Block::new(config, counters, Arc::clone(&metrics.peers))?;
            block.forwarder.plan()?;
            Ok(Arc::new(block))
        };
        handler.blocks().set(blocks.into_iter().map(block).collect::<Result<_, ServeError>>()?);
        Ok(Self { handler: Arc::new(handler) })
    }

    /// Explains the answer to a question.
    #[must_use]
    pub fn explainer(&self) -> Explainer {
        self.handler.explainer()
    }

    /// The replies to a question that an upstream answers with these octets, whatever id they have: now, and from the
    /// cache after that. For tests of what upstreams may send: none is asked.
    #[doc(hidden)]
    #[must_use]
    pub fn passed_on(&self, wire: &[u8], upstream: &[u8], client: SocketAddr, transport: Transport) -> Vec<Vec<u8>> {
        match self.handler.begin(wire, client, transport) {
            Begun::Nothing => Vec::new(),
            Begun::Reply(reply) => vec![reply],
            Begun::Question(request) => self.handler.passed_on(&request, upstream),
        }
    }

    /// The replies to a message: one, none if it is none to be answered, or several for a transfer.
    pub async fn answer(&self, wire: &[u8], client: SocketAddr, transport: Transport) -> Vec<Vec<u8>> {
        match self.handler.begin(wire, client, transport) {
            Begun::Nothing => Vec::new(),
            Begun::Reply(reply) => vec![reply],
            Begun::Question(request) if transport == Transport::Tcp => self.handler.answers(&request).await,
            Begun::Question(request) => vec![self.handler.answer(&request).await],
        }
    }
}

/// The sockets of an address.
struct Bound {
    address: SocketAddr,
    /// One for each processor: the kernel spreads the clients over them.
    udp: Vec<std::net::UdpSocket>,
    tcp: TcpListener,
}

/// The sockets of a server that does not serve yet.
pub struct Sockets(Vec<Bound>);

impl Sockets {
    /// Binds UDP and TCP to each of `listen`. What an earlier process of this program had open there, and a service
    /// manager has kept, serves on with the queries that wait in it; the rest of `kept` is closed.
    pub fn open(listen: &[SocketAddr], kept: Vec<OwnedFd>) -> Result<Self, ServeError> {
        if listen.is_empty() {
            return Err(ServeError::NoAddress);
        }
        let mut kept = Kept::new(kept);
        let bound = listen.iter().map(|address| bind(*address, listen, &mut kept)).collect::<Result<_, _>>()?;
        Ok(Self(bound))
    }

    /// All of them, for a service manager that keeps them over a restart.
    pub fn all(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().flat_map(|bound| bound.udp.iter().map(AsFd::as_fd).chain([bound.tcp.as_fd()]))
    }
}

/// Binds UDP and TCP to one address and port. TCP comes first: its port cannot be shared, so that two servers never
/// share the one of UDP unnoticed.
fn bind(address: SocketAddr, all: &[SocketAddr], kept: &mut Kept) -> Result<Bound, ServeError> {
    // `[::]` takes IPv4 too, unless that has a socket of its own.
    let only_v6 = all.contains(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let mut tries = 0;
    loop {
        let tcp = kept.take_listener(address, only_v6).map_or_else(|| listen(address, only_v6), TcpListener::from_std);
        let tcp = tcp.map_err(|source| bind_error(address, "TCP", source))?;
        let chosen = tcp.local_addr().map_err(|source| bind_error(address, "TCP", source))?;
        // All that were kept, even if there are fewer processors now: the kernel spreads queries over all that are
        // open.
        let mut before = kept.take_datagram(chosen, only_v6);
        let more = workers.saturating_sub(before.len());
        let alone = |number| if address.port() == 0 && number == 0 { Before::None } else { Before::Some };
        let udp: io::Result<Vec<std::net::UdpSocket>> =
            (0..more).map(|number| datagram_socket(chosen, only_v6, alone(number))).collect();
        let udp = udp.map(|more| {
            before.extend(more);
            before
        });
        match udp {
            Ok(udp) => return Ok(Bound { address: chosen, udp, tcp }),
            Err(error) if address.port() == 0 && error.kind() == io::ErrorKind::AddrInUse && tries < PORT_TRIES => {
                tries += 1;
            }
            Err(source) => return Err(bind_error(chosen, "UDP", source)),
        }
    }
}

fn bind_error(address: SocketAddr, protocol: &'static str, source: io::Error) -> ServeError {
    ServeError::Bind { address, protocol, source }
}

/// Addresses of this server: a question to them would come back for ever.
struct Ours {
    listen: Vec<SocketAddr>,
    service: Vec<IpAddr>,
}

impl Ours {
    /// The servers of a route without those that lead back here. Logs those, and likely mistakes in the file.
    fn of(&self, conf: &ResolvConf, from: &Upstreams) -> Vec<Upstream> {
        for Ignored { line, reason } in &conf.ignored {
            tracing::warn!(line, reason, "ignoring a nameserver that cannot be asked");
        }
        let left = self.without(conf.upstreams.clone());
        let Some(path) = from.file() else { return left };
        let file = path.display();
        if conf.upstreams.is_empty() {
            tracing::warn!("{}", names_no_server(path));
        }
        // On a host a resolver may listen there, such as systemd-resolved.
        let in_a_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        for upstream in left.iter().filter(|upstream| in_a_pod && upstream.address.ip().is_loopback()) {
            tracing::warn!(
                %file, %upstream,
                "the nameserver is a loopback address: in a pod no server listens there; give the pod `dnsPolicy: Default` \
                 and the kubelet a --resolv-conf with real servers, such as /run/systemd/resolve/resolv.conf"
            );
        }
        left
    }

    fn without(&self, upstreams: Vec<Upstream>) -> Vec<Upstream> {
        // Another server on this host has another port.
        let ports: Vec<u16> = self.listen.iter().map(SocketAddr::port).collect();
        let is_ours = |Upstream { address, .. }: &Upstream| {
            self.listen.contains(address) || (self.service.contains(&address.ip()) && ports.contains(&address.port()))
        };
        let (loops, upstreams): (Vec<Upstream>, _) = upstreams.into_iter().partition(is_ours);
        for upstream in loops {
            tracing::warn!(%upstream, "ignoring an upstream that leads back to this server");
        }
        upstreams
    }
}

/// Gives every route its upstreams, and those of files whenever they change.
fn follow_upstreams(
    forwarder: &Arc<Forwarder>,
    ours: &Arc<Ours>,
    followers: &mut JoinSet<()>,
) -> Result<(), UpstreamError> {
    for (route, upstreams) in forwarder.sources().enumerate() {
        let conf = match upstreams.read() {
            Ok(conf) => {
                forwarder.set_upstreams(route, &ours.of(&conf, upstreams));
                conf
            }
            Err(error) if upstreams.may_be_missing() => {
                let reason = with_causes(&error);
                tracing::warn!(reason, "names outside of the cluster are refused until the file is there");
                ResolvConf::default()
            }
            Err(error) => return Err(error),
        };
        if upstreams.file().is_some() {
            followers.spawn(follow_file(upstreams.clone(), conf, Arc::clone(ours), Arc::clone(forwarder), route));
        }
    }
    Ok(())
}

/// Polls the file, since a mount may send no events of changes. While it cannot be read, the last servers stay.
async fn follow_file(file: Upstreams, first: ResolvConf, ours: Arc<Ours>, forwarder: Arc<Forwarder>, route: usize) {
    let mut before = Some(first).filter(|conf| !conf.upstreams.is_empty());
    loop {
        sleep(LOOK_AGAIN).await;
        let now = match file.read() {
            // Hardly meant: the file is being written, or its writer knows no server at the moment.
            Ok(now) if now.upstreams.is_empty() => {
                if before.is_some() {
                    tracing::warn!("the file names no upstream; the last ones stay in force");
                }
                None
            }
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
            let known = ours.of(conf, &file);
            let names: Vec<String> = known.iter().map(ToString::to_string).collect();
            tracing::info!(upstreams = names.join(" "), "the upstreams have changed");
            forwarder.set_upstreams(route, &known);
        }
        before = now;
    }
}

async fn follow_hosts(block: Arc<Block>, every: Duration) {
    loop {
        sleep(every).await;
        let block = Arc::clone(&block);
        let read = tokio::task::spawn_blocking(move || block.hosts.as_ref().map(Hosts::read_again));
        match read.await {
            Ok(_) => {}
            Err(error) if error.is_panic() => {
                tracing::error!(%error, "reading the hosts file panicked, which is a bug of shunt; its last entries stay in force");
            }
            Err(_cancelled) => return, // the program ends
        }
    }
}

/// A view, and what keeps it in step with the snapshots and the configuration.
fn follow(
    mut configs: watch::Receiver<ZoneConfig>,
    mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    metrics: Arc<Metrics>,
) -> (watch::Receiver<View>, impl Future<Output = ()>) {
    let snapshot = snapshots.borrow_and_update().clone();
    let config = Arc::new(configs.borrow_and_update().clone());
    let zone = Zone::new(config, snapshot.clone().unwrap_or_default(), now());
    let (sender, receiver) = watch::channel(View { zone: Arc::new(zone), snapshot });
    let follower = async move {
        loop {
            let before = sender.borrow().clone();
            // A source that is gone leaves its last view in force (DNS-11.5).
            tokio::select! {
                Ok(()) = snapshots.changed() => {
                    let Some(snapshot) = snapshots.borrow_and_update().clone() else {
                        continue; // what was once complete is not forgotten
                    };
                    let zone = Arc::new(before.zone.next(Arc::clone(&snapshot), now()));
                    sender.send_replace(View { zone, snapshot: Some(Arc::clone(&snapshot)) });
                    if let Some(old) = &before.snapshot {
                        metrics.programmed(old, &snapshot);
                    }
                }
                Ok(()) = configs.changed() => {
                    let config = Arc::new(configs.borrow_and_update().clone());
                    let zone = Zone::new(config, before.snapshot.clone().unwrap_or_default(), now().max(before.zone.serial()));
                    sender.send_replace(View { zone: Arc::new(zone), ..before });
                }
                else => return,
            }
        }
    };
    (receiver, follower)
}

/// Seconds since 1970, for the SOA serial.
fn now() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}
