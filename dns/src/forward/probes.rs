//! Questions of our own to an upstream, in the background: whether it answers again, and whether it leads back here.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use hickory_proto::op::Query;
use hickory_proto::rr::{Name, RecordType};
use tokio::time::{sleep, timeout};

use super::health::Health;
use super::peer::Peer;
use super::{OVERALL, Outgoing};
use crate::request::Transport;

/// How long after an answer the next probe is sent, and how long after a probe without one beside it (DNS-15.5).
const PROBE_EVERY: Duration = Duration::from_millis(500);
const PROBE_WAITS: Duration = Duration::from_secs(1);
/// How often an upstream that leads back here is asked whether it still does.
const LOOP_AGAIN: Duration = Duration::from_secs(30);
/// How often it is asked at the start if it does not answer, and how long after each try; CoreDNS tries for 30 s too.
const LOOP_TRIES: usize = 15;
const LOOP_RETRY: Duration = Duration::from_secs(2);

/// Probes until the upstream answers in time, or is no longer configured. As with queries, an answer counts as long as
/// a client would wait, so that a slow upstream is not taken for a dead one.
pub(super) async fn probe(peer: Weak<Peer>) {
    let mut waiting = FuturesUnordered::new();
    loop {
        sleep(PROBE_EVERY).await;
        let Some(peer) = peer.upgrade() else { return };
        if peer.is_back() {
            return;
        }
        // One that only is slow has no second probe beside the first.
        let before_next = if peer.health() == Health::Slow { OVERALL } else { PROBE_WAITS };
        waiting.push(probe_once(peer));
        drop(timeout(before_next, waiting.next()).await);
    }
}

/// Any answer to any question will do (DNS-15.5).
async fn probe_once(peer: Arc<Peer>) {
    let sent = Instant::now();
    let question = question(Name::root(), RecordType::NS);
    if let Err(error) = peer.try_once(&question, sent + OVERALL).await {
        peer.missed_probe(&error, sent);
    }
}

/// Sends the token until the upstream answers, and then repeatedly as long as the token comes back.
pub(super) async fn look_for_loop(peer: Weak<Peer>) {
    let mut tries = 0;
    while let Some(peer) = peer.upgrade() {
        let question = question(peer.token().clone(), RecordType::HINFO);
        let answered = peer.try_once(&question, Instant::now() + OVERALL).await.is_ok();
        let loops = peer.judge();
        tries += 1;
        if !loops && (answered || tries >= LOOP_TRIES) {
            return;
        }
        drop(peer);
        sleep(if loops { LOOP_AGAIN } else { LOOP_RETRY }).await;
    }
}

fn question(name: Name, rtype: RecordType) -> Outgoing {
    Outgoing {
        query: Query::query(name, rtype),
        recursion_desired: true,
        checking_disabled: false,
        dnssec_ok: None,
        client: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        transport: Transport::Udp,
    }
}
