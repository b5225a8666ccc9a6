//! Upstreams that can stand in for each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use hickory_proto::rr::Name;
use rand::seq::SliceRandom as _;
use tokio::time::timeout;

use super::health::Health;
use super::peer::Peer;
use super::{OVERALL, Outgoing};
use crate::stats::Counters;
use crate::upstream::Upstream;
use crate::wire::Received;

/// Tries, if there are fewer upstreams than this: a datagram may be lost.
const MIN_TRIES: usize = 3;

/// Which upstream is asked first (DNS-15.1). Those that are slow come after those that answer, and those that failed at
/// last, whatever the policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Policy {
    /// The first of the list, as the resolver library does with resolv.conf.
    #[default]
    Sequential,
    /// Each in its turn.
    RoundRobin,
    /// Any.
    Random,
}

/// The upstreams of a route.
#[derive(Default)]
pub(super) struct Group {
    peers: Vec<Arc<Peer>>,
    policy: Policy,
    turn: AtomicUsize,
}

impl Group {
    /// The next group; upstreams that this one has stay as they are, others are made by `new`.
    pub(super) fn with(&self, upstreams: &[Upstream], policy: Policy, new: impl Fn(&Upstream) -> Arc<Peer>) -> Self {
        let known = |upstream: &Upstream| self.peers.iter().find(|peer| peer.upstream() == upstream).cloned();
        let peer = |upstream: &Upstream| known(upstream).unwrap_or_else(|| new(upstream));
        Self { peers: upstreams.iter().map(peer).collect(), policy, turn: AtomicUsize::new(0) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    pub(super) fn peers(&self) -> &[Arc<Peer>] {
        &self.peers
    }

    /// All of them failed and do not answer probes, or lead back here.
    pub(super) fn is_down(&self) -> bool {
        self.peers.iter().all(|peer| peer.loops() || peer.health() == Health::Down)
    }

    /// The answer that comes first; `last` is the upstream that failed last, and why.
    pub(super) async fn ask(
        &self,
        outgoing: &Outgoing,
        counters: &Counters,
        last: &mut Option<String>,
    ) -> Option<Received> {
        let order = self.order();
        if !order.is_empty() && order.iter().all(|peer| peer.health() == Health::Down) {
            counters.all_upstreams_down.add_one();
        }
        let give_up = Instant::now() + OVERALL;
        let mut turns = order.iter().cycle().take(order.len().max(MIN_TRIES));
        let mut tries = FuturesUnordered::new();
        // The next try begins when this one is late or any has failed; those that are late go on.
        while Instant::now() < give_up
            && let Some(peer) = turns.next()
        {
            let sent = Instant::now();
            tries.push(try_peer(peer, outgoing, give_up));
            match timeout(peer.patience(), tries.next()).await {
                Ok(Some(Ok(message))) => return Some(message),
                Ok(Some(Err(failed))) => *last = Some(failed),
                Ok(None) => {}
                // The try itself may notice it later, and ends if the next one is answered by then.
                Err(_elapsed) => peer.overdue(sent),
            }
        }
        while let Some(outcome) = tries.next().await {
            match outcome {
                Ok(message) => return Some(message),
                Err(failed) => *last = Some(failed),
            }
        }
        None
    }

    /// A client asked us for `name`. Returns whether that is the token of an upstream, which therefore leads back here.
    pub(super) fn meet(&self, name: &Name) -> bool {
        self.peers.iter().any(|peer| peer.meet(name))
    }

    fn order(&self) -> Vec<Arc<Peer>> {
        let mut order: Vec<Arc<Peer>> = self.peers.iter().filter(|peer| !peer.loops()).cloned().collect();
        match self.policy {
            Policy::Sequential => {}
            Policy::RoundRobin if order.is_empty() => {}
            Policy::RoundRobin => {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed) % order.len();
                order.rotate_left(turn);
            }
            Policy::Random => order.shuffle(&mut rand::rng()),
        }
        order.sort_by_cached_key(|peer| -> Health { peer.health() });
        order
    }
}

/// One try; its failure as text.
async fn try_peer(peer: &Arc<Peer>, outgoing: &Outgoing, give_up: Instant) -> Result<Received, String> {
    let error = match peer.ask(outgoing, give_up).await {
        Ok(message) => return Ok(message),
        Err(error) => error,
    };
    let failed = format!("{}: {}", peer.upstream(), shunt_model::with_causes(&error));
    tracing::debug!(name = crate::names::text(&outgoing.query.name), failed, "upstream failed, trying the next");
    Err(failed)
}
