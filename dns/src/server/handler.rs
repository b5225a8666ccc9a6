//! One query: read, answered by the block that its name belongs to, counted, and written.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{DNSClass, RecordType};
use tokio::sync::{Semaphore, watch};

use super::first_view::FirstView;
use crate::block::{Block, Blocks, block_of};
use crate::explain::Explainer;
use crate::forward::UDP_PAYLOAD;
use crate::metrics::Metrics;
use crate::plugin::Author;
use crate::reply::{Reply, header_only};
use crate::request::{NoQuestion, Request, Transport};
use crate::stats::Counters;
use crate::types::type_name;
use crate::zone::{View, Zone};

/// Records of a message of a transfer: even the longest then fit what TCP takes.
const TRANSFER_RECORDS: usize = 100;

/// Shared by all sockets.
pub(crate) struct Handler {
    views: watch::Receiver<View>,
    first_view: FirstView,
    blocks: Arc<Blocks>,
    metrics: Arc<Metrics>,
    /// Only one transfer is written at a time; others wait.
    transfers: Arc<Semaphore>,
}

/// How to react to a message.
pub(crate) enum Begun {
    Nothing,
    Reply(Vec<u8>),
    Question(Request),
}

impl Handler {
    /// Questions about the cluster wait for its first view, for `patience` from now.
    pub(super) fn new(views: watch::Receiver<View>, patience: Duration, metrics: Arc<Metrics>) -> Self {
        let first_view = FirstView::new(views.clone(), patience);
        Self { views, first_view, blocks: Arc::default(), metrics, transfers: Arc::new(Semaphore::new(1)) }
    }

    pub(super) fn blocks(&self) -> &Arc<Blocks> {
        &self.blocks
    }

    pub(super) fn explainer(&self) -> Explainer {
        Explainer { blocks: Arc::downgrade(&self.blocks), views: self.views.clone() }
    }

    fn view(&self) -> View {
        self.views.borrow().clone()
    }

    /// Reads a message (DNS-9.4…9.6).
    pub(crate) fn begin(&self, wire: &[u8], client: SocketAddr, transport: Transport) -> Begun {
        let Ok(read) = catch_unwind(|| Request::read(wire, client, transport)) else {
            self.panicked("a message");
            return Begun::Nothing;
        };
        match read {
            Ok(request) => Begun::Question(request),
            Err(NoQuestion::Silent) => Begun::Nothing,
            Err(NoQuestion::Refused(metadata, rcode)) => {
                if rcode == ResponseCode::FormErr {
                    self.metrics.dropped.malformed.add_one();
                }
                Begun::Reply(header_only(&metadata, rcode))
            }
        }
    }

    /// The reply as bytes, if it has to wait for nothing: without a future, which costs more than most replies.
    pub(super) fn at_once(&self, request: &Request) -> Option<Vec<u8>> {
        let work = || {
            let blocks = self.blocks.now();
            let block = block_of(&blocks, &request.query.name).filter(|_| refusal(request).is_none())?;
            let mut reply = block.at_once(request, &self.view())?;
            asked(&block.counters, request);
            Some(self.written(Some(block), request, &mut reply))
        };
        let Ok(wire) = catch_unwind(AssertUnwindSafe(work)) else {
            self.panicked(&asked_for(request));
            return Some(Reply::error(ResponseCode::ServFail).encode(request, UDP_PAYLOAD));
        };
        wire
    }

    /// The reply as bytes.
    pub(crate) async fn answer(&self, request: &Request) -> Vec<u8> {
        let failure = || Reply::error(ResponseCode::ServFail).encode(request, UDP_PAYLOAD);
        self.unbroken(request, self.reply(request)).await.unwrap_or_else(failure)
    }

    /// A panic is a bug of ours and must only fail the query that caused it: the same thread answers other queries.
    ///
    /// No `async fn`, which would hold the work twice.
    fn unbroken<T>(&self, request: &Request, work: impl Future<Output = T>) -> impl Future<Output = Option<T>> {
        AssertUnwindSafe(work).catch_unwind().map(|done| {
            if done.is_err() {
                self.panicked(&asked_for(request));
            }
            done.ok()
        })
    }

    fn panicked(&self, asked: &str) {
        self.metrics.dropped.panics.add_one();
        tracing::error!(asked, "a query made the server panic, which is a bug: please report it");
    }

    async fn reply(&self, request: &Request) -> Vec<u8> {
        let query = &request.query;
        let blocks = self.blocks.now();
        let block = block_of(&blocks, &query.name);
        asked(self.counters(block), request);
        let mut reply = match (refusal(request), block) {
            (Some(rcode), _) => Reply::error(rcode),
            (None, Some(block)) if !is_transfer(query.query_type) => self.ask(block, &blocks, request).await,
            (None, _) => Reply::error(ResponseCode::Refused),
        };
        self.written(block, request, &mut reply)
    }

    fn written(&self, block: Option<&Arc<Block>>, request: &Request, reply: &mut Reply) -> Vec<u8> {
        reply.shuffle();
        let wire = reply.encode(request, block.map_or(UDP_PAYLOAD, |block| block.config.udp_payload()));
        self.replied(block, request, reply, wire.len());
        wire
    }

    /// The replies to a question that an upstream answers with these octets, as [`Block::passed_on`] gives them.
    pub(super) fn passed_on(&self, request: &Request, upstream: &[u8]) -> Vec<Vec<u8>> {
        let blocks = self.blocks.now();
        let Some(block) = block_of(&blocks, &request.query.name) else { return Vec::new() };
        let wire = |mut reply: Reply| {
            reply.shuffle();
            reply.encode(request, block.config.udp_payload())
        };
        block.passed_on(request, &self.view(), upstream).map(wire).into()
    }

    fn counters<'a>(&'a self, block: Option<&'a Arc<Block>>) -> &'a Counters {
        block.map_or(&self.metrics.unmatched, |block| &block.counters)
    }

    /// Counts a reply, and logs it if the block's configuration says so.
    fn replied(&self, block: Option<&Arc<Block>>, request: &Request, reply: &Reply, length: usize) {
        let took = request.received.elapsed();
        self.counters(block).replied(reply.author, reply.rcode, request.transport, length, took);
        if let Some(log) = block.and_then(|block| block.config.log.as_ref()) {
            log.log(request, reply, length, took);
        }
        if let (Some(why), Some(block)) = (&reply.why, block) {
            match &block.errors {
                Some(errors) => errors.tell(&request.query, reply.rcode, why),
                None if why.is_of_configuration() => block.misfit.call_once(|| {
                    tracing::warn!(%why, "a query failed; with `errors` in its server block each such query is logged");
                }),
                None => {}
            }
        }
    }

    async fn ask(&self, block: &Block, blocks: &[Arc<Block>], request: &Request) -> Reply {
        let view = self.view();
        let reply = block.answer(blocks, request, &view).await;
        if !reply.is_ignorant() {
            return reply;
        }
        let again = async {
            let view = self.first_view.wait(request.client.ip()).await?;
            Some(block.answer(blocks, request, &view).await)
        };
        Box::pin(again).await.unwrap_or(reply)
    }

    /// The replies to a question that came over TCP: one, or those of a transfer (DNS-4.5, RFC 5936).
    pub(crate) async fn answers(&self, request: &Request) -> Vec<Vec<u8>> {
        match self.unbroken(request, self.transfer(request)).await.flatten() {
            Some(messages) => messages,
            None => vec![self.answer(request).await],
        }
    }

    async fn transfer(&self, request: &Request) -> Option<Vec<Vec<u8>>> {
        let query = &request.query;
        if !is_transfer(query.query_type) || refusal(request).is_some() {
            return None;
        }
        let blocks = self.blocks.now();
        let block = block_of(&blocks, &query.name)?;
        let view = self.view();
        if view.snapshot.is_none() || !block.transfers_to(request.client.ip(), &query.name) {
            return None;
        }
        asked(&block.counters, request);
        let payload = block.config.udp_payload();
        let soa = vec![view.zone.soa_record()];
        let mut reply = Reply { answers: soa, ..Reply::cluster(Author::Kubernetes) };
        let messages = if query.query_type == RecordType::IXFR && request.serial == Some(view.zone.serial()) {
            vec![reply.encode(request, payload)] // the client has all there is
        } else if let Some(messages) = self.whole(request.clone(), view.zone, payload).await {
            messages
        } else {
            reply = Reply::error(ResponseCode::ServFail);
            vec![reply.encode(request, payload)]
        };
        self.replied(Some(block), request, &reply, messages.iter().map(Vec::len).sum());
        Some(messages)
    }

    /// The messages of a whole zone, written where they keep no other query waiting. `None` at the end of the program,
    /// and after a panic.
    async fn whole(&self, request: Request, zone: Arc<Zone>, payload: u16) -> Option<Vec<Vec<u8>>> {
        let turn = Arc::clone(&self.transfers).acquire_owned().await.ok()?;
        let write = move || {
            let _until_written = turn;
            let soa = zone.soa_record();
            let mut records = std::iter::once(soa.clone()).chain(zone.records()).chain([soa]).peekable();
            let mut messages = Vec::new();
            while records.peek().is_some() {
                let answers = records.by_ref().take(TRANSFER_RECORDS).collect();
                let mut reply = Reply { answers, ..Reply::cluster(Author::Kubernetes) };
                messages.push(reply.encode(&request, payload));
            }
            messages
        };
        let written = tokio::task::spawn_blocking(write).await;
        if written.as_ref().is_err_and(tokio::task::JoinError::is_panic) {
            self.panicked("a transfer");
        }
        written.ok()
    }

    /// A reply could not be sent.
    pub(super) fn unsent(&self, client: SocketAddr, error: &std::io::Error) {
        self.metrics.dropped.send_failures.add_one();
        tracing::debug!(%error, %client, "sending a DNS reply");
    }

    /// A TCP client was rejected or too slow.
    pub(super) fn rejected(&self) {
        self.metrics.dropped.tcp_rejects.add_one();
    }
}

fn asked(counters: &Counters, request: &Request) {
    counters.asked(request.transport, request.client.ip(), request.query.query_type, request.length);
    if request.dnssec_ok() {
        counters.dnssec_requests.add_one();
    }
}

/// The question, for people.
fn asked_for(Request { query, .. }: &Request) -> String {
    format!("{} {}", crate::names::text(&query.name), type_name(query.query_type))
}

/// Served over TCP only, and only to the clients that are allowed (DNS-4.5).
fn is_transfer(rtype: RecordType) -> bool {
    [RecordType::AXFR, RecordType::IXFR].contains(&rtype)
}

/// What is refused whatever the name is (DNS-9.7, DNS-9.10).
fn refusal(request: &Request) -> Option<ResponseCode> {
    if request.edns.is_some_and(|edns| edns.version > 0) {
        Some(ResponseCode::BADVERS)
    } else if request.query.query_class != DNSClass::IN {
        Some(ResponseCode::Refused)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Message, MessageType, OpCode, Query};
    use hickory_proto::rr::Name;

    use super::*;
    use crate::zone::ZoneConfig;

    fn handler() -> Handler {
        let config = Arc::new(ZoneConfig::usual(Name::from_ascii("cluster.local.").unwrap()));
        let zone = Arc::new(Zone::new(config, Arc::default(), 1));
        let (_, views) = watch::channel(View { zone, snapshot: None });
        Handler::new(views, Duration::ZERO, Arc::new(Metrics::new(&[])))
    }

    #[tokio::test]
    async fn a_panic_costs_one_query() {
        let handler = handler();
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii("example.test.").unwrap(), RecordType::A));
        let client = "192.0.2.1:999".parse().unwrap();
        let Begun::Question(request) = handler.begin(&message.to_vec().unwrap(), client, Transport::Udp) else {
            panic!("it is a question");
        };
        assert_eq!(handler.unbroken(&request, async { 5 }).await, Some(5));
        assert_eq!(handler.metrics.dropped.panics.get(), 0);
        let broken: Option<u8> = handler.unbroken(&request, async { panic!("a bug") }).await;
        assert_eq!(broken, None);
        assert_eq!(handler.metrics.dropped.panics.get(), 1);
    }
}
