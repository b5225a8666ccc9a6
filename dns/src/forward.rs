//! Asks the upstreams: one datagram from a fresh port, TCP if the reply was cut, the next upstream if there is none.
//!
//! hickory's resolver is not used for this: it interprets what it gets (localhost, SRV and CNAME chasing, error codes),
//! while a forwarder must hand on what the upstream said.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::cache::Cache;
use crate::stats::Counters;

/// How long one upstream may take over one transport.
const PER_TRY: Duration = Duration::from_secs(2);
/// How long the client waits in all; its own resolver gives up after 5 s.
const OVERALL: Duration = Duration::from_secs(5);
/// Tries, if there are fewer upstreams than this: a datagram may be lost.
const MIN_TRIES: usize = 3;
/// Queries waiting for upstreams at once (the stock Corefile's `max_concurrent`, rule 13.1).
const MAX_CONCURRENT: usize = 1000;
/// What we can take in one datagram (DNS flag day 2020).
pub(crate) const UDP_PAYLOAD: u16 = 1232;

/// A client's query as far as it concerns an upstream.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    pub(crate) query: Query,
    pub(crate) recursion_desired: bool,
    pub(crate) checking_disabled: bool,
    pub(crate) authentic_data: bool,
    /// The DO bit, if the client speaks EDNS.
    pub(crate) dnssec_ok: Option<bool>,
}

/// Why there is no answer to hand on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ForwardError {
    #[error("no upstreams are configured")]
    NoUpstreams,
    #[error("{MAX_CONCURRENT} queries are waiting for upstreams already")]
    Busy,
    #[error("no upstream answered")]
    NoAnswer,
}

/// Why one try failed.
#[derive(Debug, thiserror::Error)]
enum TryError {
    #[error("no answer in time")]
    Timeout,
    #[error("talking to the upstream")]
    Io(#[from] io::Error),
    #[error("the message is too long for TCP")]
    TooLong,
    #[error("the upstream's answer does not fit the question or does not parse")]
    Nonsense,
}

pub(crate) struct Forwarder {
    upstreams: watch::Receiver<Arc<[SocketAddr]>>,
    /// Which upstream to begin with: moves on when one fails, so that a dead first one costs its time once.
    first: AtomicUsize,
    slots: Semaphore,
    cache: Cache,
    counters: Arc<Counters>,
}

impl Forwarder {
    pub(crate) fn new(upstreams: watch::Receiver<Arc<[SocketAddr]>>, counters: Arc<Counters>) -> Self {
        let slots = Semaphore::new(MAX_CONCURRENT);
        Self { upstreams, first: AtomicUsize::new(0), slots, cache: Cache::new(), counters }
    }

    pub(crate) fn has_upstreams(&self) -> bool {
        !self.upstreams.borrow().is_empty()
    }

    /// What an upstream says, or said recently.
    pub(crate) async fn resolve(&self, outgoing: &Outgoing) -> Result<Message, ForwardError> {
        if !self.has_upstreams() {
            return Err(ForwardError::NoUpstreams);
        }
        self.counters.forwarded.add_one();
        // The cache knows no DO, CD or RD: only ordinary questions go through it.
        let plain = outgoing.recursion_desired && !outgoing.checking_disabled && outgoing.dnssec_ok != Some(true);
        if let Some(message) = self.cache.get(&outgoing.query, Instant::now()).filter(|_| plain) {
            self.counters.cache_hits.add_one();
            return Ok(message);
        }
        let Ok(_slot) = self.slots.try_acquire() else {
            self.counters.forward_rejects.add_one();
            return Err(ForwardError::Busy);
        };
        // Cancelling mid-way is safe: every try owns its socket.
        match timeout(OVERALL, self.ask_in_turn(outgoing)).await {
            Ok(Some(message)) => {
                if plain {
                    self.cache.put(&outgoing.query, &message, Instant::now());
                }
                Ok(message)
            }
            Ok(None) | Err(_) => {
                self.counters.forward_failures.add_one();
                Err(ForwardError::NoAnswer)
            }
        }
    }

    async fn ask_in_turn(&self, outgoing: &Outgoing) -> Option<Message> {
        let first = self.first.load(Ordering::Relaxed);
        let known = Arc::clone(&self.upstreams.borrow());
        let upstreams = known.iter().enumerate().cycle().skip(first % known.len().max(1));
        let mut cut = None;
        for (index, upstream) in upstreams.take(known.len().max(MIN_TRIES)) {
            let error = match ask(*upstream, outgoing, &mut cut).await {
                Ok(message) => {
                    self.first.store(index, Ordering::Relaxed);
                    return Some(message);
                }
                Err(error) => error,
            };
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::debug!(%upstream, name = %outgoing.query.name, %error, cause, "upstream failed, trying the next");
            self.first.store(index + 1, Ordering::Relaxed);
        }
        cut // better a cut answer, marked as such, than none
    }
}

/// One try. A cut answer is left in `cut` in case TCP does not work.
async fn ask(upstream: SocketAddr, outgoing: &Outgoing, cut: &mut Option<Message>) -> Result<Message, TryError> {
    let request = request(outgoing);
    let wire = request.to_vec().or(Err(TryError::TooLong))?;
    let answer = timeout(PER_TRY, over_udp(upstream, &request, &wire)).await.or(Err(TryError::Timeout))??;
    if !answer.metadata.truncation {
        return Ok(answer);
    }
    *cut = Some(answer);
    timeout(PER_TRY, over_tcp(upstream, &request, &wire)).await.or(Err(TryError::Timeout))?
}

/// A fresh id for every try, so that a late reply to an earlier one is not taken for this one's.
fn request(outgoing: &Outgoing) -> Message {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = outgoing.recursion_desired;
    message.metadata.checking_disabled = outgoing.checking_disabled;
    message.metadata.authentic_data = outgoing.authentic_data;
    message.add_query(outgoing.query.clone());
    if let Some(dnssec_ok) = outgoing.dnssec_ok {
        let mut edns = Edns::new();
        edns.set_version(0).set_max_payload(UDP_PAYLOAD).set_dnssec_ok(dnssec_ok);
        message.set_edns(edns);
    }
    message
}

async fn over_udp(upstream: SocketAddr, request: &Message, wire: &[u8]) -> Result<Message, TryError> {
    let any = match upstream {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    // A socket per query: a random port besides the random id makes a forged reply hard to hit, and connecting it
    // turns ICMP errors into immediate ones.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    socket.send(wire).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Whatever does not belong to the question is dropped, and the wait for the real reply goes on.
        if let Some(answer) = buffer.get(..length).and_then(|wire| answer_to(request, wire)) {
            return Ok(answer);
        }
    }
}

async fn over_tcp(upstream: SocketAddr, request: &Message, wire: &[u8]) -> Result<Message, TryError> {
    let length = u16::try_from(wire.len()).or(Err(TryError::TooLong))?;
    let mut stream = TcpStream::connect(upstream).await?;
    stream.write_all(&[&length.to_be_bytes(), wire].concat()).await?;
    let length = stream.read_u16().await?;
    let mut reply = vec![0; usize::from(length)];
    stream.read_exact(&mut reply).await?;
    answer_to(request, &reply).ok_or(TryError::Nonsense)
}

/// The message in `wire` if it answers `request`.
fn answer_to(request: &Message, wire: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(wire).ok()?;
    let meta = answer.metadata;
    if meta.id != request.metadata.id || meta.message_type != MessageType::Response {
        return None;
    }
    // Servers that understood nothing send the error without the question.
    let bare_error = answer.queries.is_empty()
        && [ResponseCode::FormErr, ResponseCode::NotImp, ResponseCode::Refused, ResponseCode::ServFail]
            .contains(&meta.response_code);
    (answer.queries == request.queries || bare_error).then_some(answer)
}
