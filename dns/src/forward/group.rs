//! Upstreams that can stand in for each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::Message;
use hickory_proto::rr::Name;
use rand::seq::SliceRandom as _;
use tokio_rustls::TlsConnector;

use super::Outgoing;
use super::peer::{Health, Peer};
use crate::upstream::Upstream;

/// Tries, if there are fewer upstreams than this: a datagram may be lost.
const MIN_TRIES: usize = 3;

/// Which upstream is asked first (rule 15.1). Those that failed come after those that answer, whatever the policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The first of the list, as the resolver library does with resolv.conf.
    #[default]
    Sequential,
    /// Each in its turn.
    RoundRobin,
    /// Any.
    Random,
}

/// The upstreams of a domain.
pub(super) struct Group {
    peers: Vec<Arc<Peer>>,
    policy: Policy,
    turn: AtomicUsize,
}

impl Group {
    /// Upstreams that `before` has keep their connections and what is known of their health.
    pub(super) fn new(upstreams: &[Upstream], policy: Policy, tls: &TlsConnector, before: Option<&Self>) -> Self {
        let known = |upstream: &Upstream| before?.peers.iter().find(|peer| peer.upstream() == upstream).cloned();
        let new = |upstream: &Upstream| {
            let peer = Arc::new(Peer::new(upstream.clone(), tls.clone()));
            peer.look_for_loop();
            peer
        };
        let peer = |upstream: &Upstream| known(upstream).unwrap_or_else(|| new(upstream));
        Self { peers: upstreams.iter().map(peer).collect(), policy, turn: AtomicUsize::new(0) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// What the first of them says that says anything.
    pub(super) async fn ask(&self, outgoing: &Outgoing) -> Option<Message> {
        let mut cut = None;
        let order = self.order();
        for peer in order.iter().cycle().take(order.len().max(MIN_TRIES)) {
            let error = match peer.ask(outgoing, &mut cut).await {
                Ok(message) => return Some(message),
                Err(error) => error,
            };
            let (upstream, name) = (peer.upstream(), &outgoing.query.name);
            tracing::debug!(%upstream, %name, error = shunt_model::with_causes(&error), "upstream failed, trying the next");
        }
        cut // better a cut answer, marked as such, than none
    }

    /// Somebody asked us for `name`, which may tell that an upstream leads back here.
    pub(super) fn meet(&self, name: &Name) {
        for peer in &self.peers {
            peer.meet(name);
        }
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
