//! One upstream as the forwarder knows it: its health, and the connections to it that may be used again.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use hickory_proto::op::Query;
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpSocket;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use super::Outgoing;
use super::exchange::{Exchange, TryError};
use crate::stats::PeerCounters;
use crate::upstream::Upstream;
use crate::wire::{Extent, Received};

/// How long one upstream may take over one transport (DNS-15.2).
const PER_TRY: Duration = Duration::from_secs(2);
/// A connection that rested longer is closed (DNS-15.4).
const REST: Duration = Duration::from_secs(10);
/// How long one that rested may be silent: a middlebox may have forgotten it, and the try has to end in time.
const MUTE: Duration = Duration::from_secs(1);
/// Connections that rest at once.
const MOST_RESTING: usize = 32;
/// How often an upstream that failed is asked whether it is back, and how long it may take (DNS-15.5).
const PROBE_EVERY: Duration = Duration::from_millis(500);
const PROBE_WAITS: Duration = Duration::from_secs(1);
/// How often an upstream that leads back here is asked whether it still does.
const LOOP_AGAIN: Duration = Duration::from_secs(30);
/// How often it is asked at the start, if it does not answer; CoreDNS tries for 30 s too.
const LOOP_TRIES: usize = 15;

/// In which order upstreams are worth asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Health {
    /// It answered last time, or was never asked.
    Up,
    /// It failed just now.
    Doubtful,
    /// It failed and does not answer probes.
    Down,
}

/// Failures in a row that make an upstream [`Health::Down`]: a query's, and more than `max_fails` of probes
/// (DNS-15.5).
const DOWN: u32 = 4;

/// An upstream.
pub(crate) struct Peer {
    upstream: Upstream,
    tls: Option<TlsConnector>,
    force_tcp: bool,
    metrics: Arc<PeerCounters>,
    state: Mutex<State>,
    resting: Mutex<Vec<Resting>>,
    /// A name that we ask only this upstream for: if a client asks us for it, the upstream leads back here.
    token: Name,
    /// We were asked for the token since we last sent it.
    met: AtomicBool,
    /// The upstream forwards our questions back to us.
    loops: AtomicBool,
}

#[derive(Default)]
struct State {
    /// In a row.
    failures: u32,
    /// A task probes whether it answers again.
    probed: bool,
}

struct Resting {
    stream: Stream,
    since: Instant,
}

/// TCP or TLS.
type Stream = Box<dyn Duplex>;

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

impl Peer {
    /// An upstream in unknown state. Whether questions to it come back here is checked in the background
    /// (DNS-16.1).
    pub(super) fn start(
        upstream: Upstream,
        tls: Option<TlsConnector>,
        force_tcp: bool,
        domain: &Name,
        metrics: Arc<PeerCounters>,
    ) -> Arc<Self> {
        let peer = Arc::new(Self {
            upstream,
            tls,
            force_tcp,
            metrics,
            state: Mutex::default(),
            resting: Mutex::new(Vec::new()),
            token: token(domain),
            met: AtomicBool::new(false),
            loops: AtomicBool::new(false),
        });
        tokio::spawn(look_for_loop(Arc::downgrade(&peer)));
        peer
    }

    pub(crate) fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// A client asked us for `name`. Returns whether that is this upstream's token.
    pub(super) fn meet(&self, name: &Name) -> bool {
        let met = *name == self.token;
        if met {
            self.met.store(true, Ordering::Relaxed);
        }
        met
    }

    /// Its state, as text behind its name.
    pub(super) fn standing(&self) -> &'static str {
        match self.health() {
            _ if self.loops() => " (left out: it leads back here)",
            Health::Up => "",
            Health::Doubtful => " (failed just now)",
            Health::Down => " (down)",
        }
    }

    pub(super) fn loops(&self) -> bool {
        self.loops.load(Ordering::Relaxed)
    }

    /// Stores, logs on a change, and returns whether the token came back.
    fn judge(&self) -> bool {
        let met = self.met.swap(false, Ordering::Relaxed);
        let before = self.loops.swap(met, Ordering::Relaxed);
        let upstream = &self.upstream;
        if met && !before {
            tracing::error!(
                %upstream,
                "the upstream sends our questions back to us, so it is left out; name one that leads elsewhere (it may be \
                 a resolver on this node, such as systemd-resolved, that has this server as its own upstream)"
            );
        } else if before && !met {
            tracing::info!(%upstream, "the upstream leads elsewhere now and is asked again");
        }
        met
    }

    pub(super) fn health(&self) -> Health {
        let failures = lock(&self.state).failures;
        match failures {
            0 => Health::Up,
            1..DOWN => Health::Doubtful,
            _ => Health::Down,
        }
    }

    /// One try. After a failure the upstream is asked again and again in the background until it answers.
    pub(super) async fn ask(self: &Arc<Self>, outgoing: &Outgoing) -> Result<Received, TryError> {
        let start = Instant::now();
        let answer = self.try_once(outgoing).await;
        match &answer {
            Ok(received) => {
                self.metrics.answered(received.rcode, start.elapsed());
                self.answered();
            }
            Err(error) if error.is_the_upstreams() => {
                self.failed(error);
                if !std::mem::replace(&mut lock(&self.state).probed, true) {
                    tokio::spawn(probe(Arc::downgrade(self)));
                }
            }
            Err(_) => {}
        }
        answer
    }

    async fn try_once(&self, outgoing: &Outgoing) -> Result<Received, TryError> {
        let exchange = Exchange::new(outgoing)?;
        let over_stream = within(PER_TRY, self.over_stream(&exchange));
        if self.upstream.tls.is_some() || self.force_tcp {
            return over_stream.await;
        }
        match within(PER_TRY, exchange.over_udp(self.upstream.address)).await {
            // Better a cut answer, marked as such, than none: TCP may be blocked on the way.
            Ok(cut) if cut.extent != Extent::Whole => Ok(over_stream.await.unwrap_or(cut)),
            // It may have been longer than our buffer.
            Err(TryError::Unreadable) => over_stream.await.or(Err(TryError::Unreadable)),
            answered => answered,
        }
    }

    /// Over a connection that rested, or if it was closed meanwhile or is silent, over a new one (DNS-15.4).
    async fn over_stream(&self, exchange: &Exchange) -> Result<Received, TryError> {
        if let Some(mut stream) = self.rested() {
            if let Ok(answer) = within(MUTE, exchange.over(&mut stream)).await {
                self.metrics.connections_used_again.add_one();
                self.rest(stream);
                return Ok(answer);
            }
            // What rests beside it may be as dead, and there is no time to try them all.
            lock(&self.resting).clear();
        }
        self.metrics.connections_made.add_one();
        let mut stream = self.connect().await?;
        let answer = exchange.over(&mut stream).await?;
        self.rest(stream);
        Ok(answer)
    }

    async fn connect(&self) -> Result<Stream, TryError> {
        let address = self.upstream.address;
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let tcp = socket.map_err(TryError::Local)?.connect(address).await?;
        tcp.set_nodelay(true)?;
        let Some(name) = &self.upstream.tls else { return Ok(Box::new(tcp)) };
        let Some(tls) = &self.tls else {
            return Err(TryError::Local(io::Error::other("TLS is not set up, which is a bug of shunt")));
        };
        Ok(Box::new(tls.connect(name.clone(), tcp).await?))
    }

    fn rested(&self) -> Option<Stream> {
        let mut resting = lock(&self.resting);
        resting.retain(|connection| connection.since.elapsed() < REST);
        resting.pop().map(|connection| connection.stream)
    }

    fn rest(&self, stream: Stream) {
        let mut resting = lock(&self.resting);
        if resting.len() < MOST_RESTING {
            resting.push(Resting { stream, since: Instant::now() });
        }
    }

    fn answered(&self) {
        let failures = std::mem::take(&mut lock(&self.state).failures);
        if failures >= DOWN {
            tracing::info!(upstream = %self.upstream, "the upstream answers again");
        }
    }

    fn failed(&self, error: &TryError) {
        let mut state = lock(&self.state);
        state.failures = state.failures.saturating_add(1);
        let failures = state.failures;
        drop(state);
        if failures == DOWN {
            let error = shunt_model::with_causes(error);
            tracing::warn!(upstream = %self.upstream, error, "the upstream does not answer; others are asked first");
        }
    }

    fn missed_probe(&self, error: &TryError) {
        self.metrics.failed_probes.add_one();
        self.failed(error);
    }

    /// No probe is needed any more, since a probe or a query was answered.
    fn is_back(&self) -> bool {
        let mut state = lock(&self.state);
        state.probed = state.failures > 0;
        !state.probed
    }
}

/// Probes until the upstream answers anything at all (DNS-15.5), or is no longer configured.
async fn probe(peer: Weak<Peer>) {
    let outgoing = question(Name::root(), RecordType::NS);
    loop {
        sleep(PROBE_EVERY).await;
        let Some(peer) = peer.upgrade() else { return };
        if peer.is_back() {
            return;
        }
        match timeout(PROBE_WAITS, peer.try_once(&outgoing)).await {
            Ok(Ok(_)) => peer.answered(),
            Ok(Err(error)) => peer.missed_probe(&error),
            Err(_elapsed) => peer.missed_probe(&TryError::Timeout),
        }
    }
}

/// Sends the token until the upstream answers, and then repeatedly as long as the token comes back.
async fn look_for_loop(peer: Weak<Peer>) {
    let mut tries = 0;
    while let Some(peer) = peer.upgrade() {
        let question = question(peer.token.clone(), RecordType::HINFO);
        let answered = peer.try_once(&question).await.is_ok();
        let loops = peer.judge();
        tries += 1;
        if !loops && (answered || tries >= LOOP_TRIES) {
            return;
        }
        drop(peer);
        sleep(if loops { LOOP_AGAIN } else { PER_TRY }).await;
    }
}

/// Two numbers below a domain, as CoreDNS's loop detection asks for.
fn token(domain: &Name) -> Name {
    let [a, b]: [u64; 2] = rand::random();
    let numbers = [a.to_string(), b.to_string()];
    let name = Name::from_labels(numbers.iter().map(String::as_bytes)).unwrap_or_default();
    // A domain that leaves no room for them is not searched.
    name.append_domain(domain).unwrap_or_default()
}

fn question(name: Name, rtype: RecordType) -> Outgoing {
    Outgoing {
        query: Query::query(name, rtype),
        recursion_desired: true,
        checking_disabled: false,
        dnssec_ok: None,
        client: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, TryError>>) -> Result<T, TryError> {
    timeout(limit, work).await.or(Err(TryError::Timeout))?
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
