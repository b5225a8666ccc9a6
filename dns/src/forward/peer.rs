//! One upstream as the forwarder knows it: how it is asked, how it has answered, and whether it leads back here.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::Name;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::Outgoing;
use super::connections::Connections;
use super::exchange::{Exchange, TryError};
use super::health::{Change, Health, Standing};
use super::probes::{look_for_loop, probe};
use crate::request::Transport;
use crate::stats::PeerCounters;
use crate::upstream::Upstream;
use crate::wire::{Extent, Received};

/// An upstream.
pub(crate) struct Peer {
    upstream: Upstream,
    force_tcp: bool,
    /// How long an answer may take to be in time.
    patience: Duration,
    metrics: Arc<PeerCounters>,
    state: Mutex<State>,
    connections: Connections,
    /// A name that we ask only this upstream for: if a client asks us for it, the upstream leads back here.
    token: Name,
    /// We were asked for the token since we last sent it.
    met: AtomicBool,
    /// The upstream forwards our questions back to us.
    loops: AtomicBool,
}

#[derive(Default)]
struct State {
    standing: Standing,
    /// A task probes whether it answers in time again.
    probed: bool,
}

impl Peer {
    /// An upstream in unknown state. Whether questions to it come back here is checked in the background
    /// (DNS-16.1).
    pub(super) fn start(
        upstream: Upstream,
        tls: Option<TlsConnector>,
        force_tcp: bool,
        patience: Duration,
        domain: &Name,
        metrics: Arc<PeerCounters>,
    ) -> Arc<Self> {
        let peer = Arc::new(Self {
            connections: Connections::new(upstream.clone(), tls, Arc::clone(&metrics)),
            upstream,
            force_tcp,
            patience,
            metrics,
            state: Mutex::default(),
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

    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    pub(super) fn token(&self) -> &Name {
        &self.token
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
            Health::Slow => " (slow)",
            Health::Doubtful => " (failed just now)",
            Health::Down => " (down)",
        }
    }

    pub(super) fn loops(&self) -> bool {
        self.loops.load(Ordering::Relaxed)
    }

    /// Stores, logs on a change, and returns whether the token came back.
    pub(super) fn judge(&self) -> bool {
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
        lock(&self.state).standing.health()
    }

    /// One try, until `give_up`. It may be late, so that another one is worth a try, and be answered yet.
    pub(super) async fn ask(self: &Arc<Self>, outgoing: &Outgoing, give_up: Instant) -> Result<Received, TryError> {
        let sent = Instant::now();
        let mut answer = pin!(self.try_once(outgoing, give_up));
        let answer = match timeout(self.patience, &mut answer).await {
            Ok(answer) => answer,
            Err(_elapsed) => {
                self.overdue(sent);
                answer.await
            }
        };
        match &answer {
            Ok(received) => self.metrics.answered(received.rcode, sent.elapsed()),
            Err(error) => self.blame(error, sent),
        }
        answer
    }

    /// The same for questions of our own too: failures are not noted.
    pub(super) async fn try_once(
        self: &Arc<Self>,
        outgoing: &Outgoing,
        give_up: Instant,
    ) -> Result<Received, TryError> {
        // A cut answer is of no use to a client over TCP.
        let for_whole = match outgoing.transport {
            Transport::Udp => self.patience,
            Transport::Tcp => Duration::MAX,
        };
        let exchange = Exchange::new(outgoing)?;
        let answer = self.exchange(&exchange, for_whole, give_up).await?;
        if !exchange.may_blame_edns(&answer) {
            return Ok(answer);
        }
        // Nor may what it says to EDNS be kept for clients without, so the second answer is the only one.
        self.exchange(&exchange.without_edns()?, for_whole, give_up).await
    }

    /// Over UDP first, unless it must not be. A cut answer is asked for again over TCP, which may take `for_whole`.
    async fn exchange(
        self: &Arc<Self>,
        exchange: &Exchange,
        for_whole: Duration,
        give_up: Instant,
    ) -> Result<Received, TryError> {
        let sent = Instant::now();
        let left = || give_up.saturating_duration_since(Instant::now());
        if self.upstream.tls.is_some() || self.force_tcp {
            let answer = within(left(), self.connections.ask(exchange)).await;
            self.hear(&answer, sent);
            return answer;
        }
        let answer = within(left(), exchange.over_udp(self.upstream.address)).await;
        self.hear(&answer, sent);
        let is_whole = match &answer {
            Ok(received) => received.extent == Extent::Whole,
            // It may have been longer than our buffer.
            Err(TryError::Unreadable) => false,
            Err(_) => true,
        };
        if is_whole {
            return answer;
        }
        match (within(left().min(for_whole), self.connections.ask(exchange)).await, answer) {
            // Better a cut answer, marked as such, than none: TCP may be blocked on the way, or not served.
            (Err(_), cut) => cut,
            (Ok(whole), Ok(cut)) if is_error(&whole) && !is_error(&cut) => Ok(cut),
            (Ok(whole), _) => Ok(whole),
        }
    }

    /// Notes that a try has not been answered in time.
    pub(super) fn overdue(self: &Arc<Self>, sent: Instant) {
        self.note(|standing| standing.overdue(sent));
    }

    /// Notes that it answered, if it did, however well.
    fn hear(self: &Arc<Self>, answer: &Result<Received, TryError>, sent: Instant) {
        match answer {
            // An upstream that passes on what others broke, such as the records of some domain, is as good as its
            // alternatives.
            Ok(_) | Err(TryError::Unreadable) => {}
            Err(TryError::Timeout | TryError::Local(_) | TryError::Io(_) | TryError::TooLong | TryError::Nonsense) => {
                return;
            }
        }
        let change = self.note(|standing| standing.answered(sent, Instant::now(), self.patience));
        if change == Change::BackFromDown {
            tracing::info!(upstream = %self.upstream, "the upstream answers again");
        }
    }

    /// Notes that a try failed, if that is the upstream's fault.
    fn blame(self: &Arc<Self>, error: &TryError, sent: Instant) {
        let change = match error {
            TryError::Timeout => self.note(|standing| standing.silent(sent, Instant::now(), self.patience)),
            TryError::Io(_) | TryError::Nonsense => self.note(Standing::failed),
            TryError::Local(_) | TryError::TooLong | TryError::Unreadable => return,
        };
        if change == Change::NowDown {
            let error = shunt_model::with_causes(error);
            tracing::warn!(upstream = %self.upstream, error, "the upstream does not answer; others are asked first");
        }
    }

    pub(super) fn missed_probe(self: &Arc<Self>, error: &TryError, sent: Instant) {
        self.metrics.failed_probes.add_one();
        self.blame(error, sent);
    }

    /// Unless all is well then, a task asks in the background until it is.
    fn note(self: &Arc<Self>, event: impl FnOnce(&mut Standing) -> Change) -> Change {
        let mut state = lock(&self.state);
        let change = event(&mut state.standing);
        let probe_now = state.standing.health() != Health::Up && !std::mem::replace(&mut state.probed, true);
        drop(state);
        if probe_now {
            tokio::spawn(probe(Arc::downgrade(self)));
        }
        change
    }

    /// No probe is needed any more, since a probe or a query was answered in time.
    pub(super) fn is_back(&self) -> bool {
        let mut state = lock(&self.state);
        state.probed = state.standing.health() != Health::Up;
        !state.probed
    }
}

/// An answer that says neither what there is nor that there is nothing.
fn is_error(answer: &Received) -> bool {
    ![ResponseCode::NoError, ResponseCode::NXDomain].contains(&answer.rcode)
}

/// Two numbers below a domain, as CoreDNS's loop detection asks for.
fn token(domain: &Name) -> Name {
    let [a, b]: [u64; 2] = rand::random();
    let numbers = [a.to_string(), b.to_string()];
    let name = Name::from_labels(numbers.iter().map(String::as_bytes)).unwrap_or_default();
    // A domain that leaves no room for them is not searched.
    name.append_domain(domain).unwrap_or_default()
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, TryError>>) -> Result<T, TryError> {
    timeout(limit, work).await.or(Err(TryError::Timeout))?
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
