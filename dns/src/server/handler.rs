//! One query: checked, answered from the zone or by an upstream, and sent back.

use std::sync::Arc;

use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use hickory_proto::serialize::binary::BinDecoder;
use hickory_server::net::runtime::Time;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::{MessageResponseBuilder, Queries};
use tokio::sync::watch;

use super::View;
use super::reply::{Origin, Reply, edns_for, udp_limit};
use crate::answer::{Answer, Records};
use crate::forward::{ForwardError, Forwarder, Outgoing};
use crate::stats::Counters;

/// Shared by all sockets.
pub(super) struct Handler {
    views: watch::Receiver<View>,
    forwarder: Arc<Forwarder>,
    counters: Arc<Counters>,
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, response: R) -> ResponseInfo {
        let udp = request.protocol() == Protocol::Udp; // else TCP: no other transport is registered
        let counter = if udp { &self.counters.udp_queries } else { &self.counters.tcp_queries };
        counter.add_one();
        let edns = edns_for(request);
        let mut reply = self.reply(request).await;
        reply.shuffle();
        if udp {
            reply.fit(request, udp_limit(edns.as_ref()), edns.as_ref());
        }
        self.send(request, response, &reply, edns.as_ref()).await
    }
}

impl Handler {
    pub(super) fn new(views: watch::Receiver<View>, forwarder: Arc<Forwarder>, counters: Arc<Counters>) -> Self {
        Self { views, forwarder, counters }
    }

    /// Decides what to say (rules 9.4–9.10 in order).
    async fn reply(&self, request: &Request) -> Reply {
        if request.metadata.op_code != OpCode::Query {
            return Reply::header(ResponseCode::NotImp);
        }
        let (answers, authorities) = (request.answers.len(), request.authorities.len());
        let [query] = request.queries.queries() else {
            self.counters.malformed.add_one();
            return Reply::header(ResponseCode::FormErr);
        };
        if answers > 1 || authorities > 1 || request.additionals.len() > 2 {
            self.counters.malformed.add_one();
            return Reply::header(ResponseCode::FormErr);
        }
        if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return Reply::error(ResponseCode::BADVERS);
        }
        let query = query.original();
        let transfer = [RecordType::AXFR, RecordType::IXFR].contains(&query.query_type);
        if query.query_class != DNSClass::IN || transfer {
            return Reply::error(ResponseCode::Refused); // rules 9.7, 4.5
        }
        if query.query_type == RecordType::HINFO {
            self.forwarder.meet(&query.name);
        }
        let view = self.views.borrow().clone();
        let answer = view.zone.answer(&query.name, query.query_type);
        self.reply_with(request, query, answer, view.snapshot.is_some()).await
    }

    /// Turns the zone's verdict into a reply, with an upstream's help where the verdict asks for it.
    async fn reply_with(&self, request: &Request, query: &Query, answer: Answer, synced: bool) -> Reply {
        let cluster = Reply { origin: Origin::Cluster, ..Reply::default() };
        match answer {
            Answer::Records(Records { answers, authority, additionals }) => {
                Reply { answers, authorities: authority.into_iter().collect(), additionals, ..cluster }
            }
            Answer::NoData { soa } => Reply { authorities: vec![soa], ..cluster },
            Answer::NxDomain { why: _, soa } => Reply { rcode: absence(synced), authorities: vec![soa], ..cluster },
            Answer::Alias { chain, target } => self.beyond(request, query, chain, target).await,
            // Upstreams may know (rule 5.5), even while we do not (rule 11.4).
            Answer::UnknownAddress { soa: _ } if self.forwarder.has_upstreams(&query.name) => {
                self.forwarded(request, query).await
            }
            Answer::UnknownAddress { soa } => Reply { rcode: absence(synced), authorities: vec![soa], ..cluster },
            Answer::NotOurs => self.forwarded(request, query).await,
        }
    }

    async fn forwarded(&self, request: &Request, query: &Query) -> Reply {
        match self.forwarder.resolve(&outgoing(request, query.clone())).await {
            Ok(message) => pass_on(request, message),
            Err(error) => Reply::error(rcode_of(error)),
        }
    }

    /// An ExternalName that leaves the cluster (rules 2.6.2, 2.6.5): whatever the upstream says about the target, the
    /// alias exists. Only if nobody answers the client is told to ask again.
    async fn beyond(&self, request: &Request, query: &Query, mut chain: Vec<Record>, target: Name) -> Reply {
        let alias = Reply { origin: Origin::Cluster, ..Reply::default() };
        match self.forwarder.resolve(&outgoing(request, Query::query(target, query.query_type))).await {
            Ok(mut message) => {
                chain.append(&mut message.answers);
                Reply { answers: chain, truncated: message.metadata.truncation, ..alias } // rule 2.6.6
            }
            Err(ForwardError::NoUpstreams) => Reply { answers: chain, ..alias },
            Err(error @ (ForwardError::Busy | ForwardError::NoAnswer)) => Reply::error(rcode_of(error)),
        }
    }

    async fn send<R: ResponseHandler>(
        &self,
        request: &Request,
        mut response: R,
        reply: &Reply,
        edns: Option<&Edns>,
    ) -> ResponseInfo {
        let none = match Queries::read(&mut BinDecoder::new(&[]), 0) {
            Ok(none) if reply.header_only => Some(none),
            Ok(_) | Err(_) => None,
        };
        let queries = none.as_ref().unwrap_or(&request.queries);
        let metadata = reply.metadata(request);
        let message = MessageResponseBuilder::new(queries, edns.filter(|_| !reply.header_only)).build(
            metadata,
            &reply.answers,
            &reply.authorities,
            [],
            &reply.additionals,
        );
        match response.send_response(message).await {
            Ok(info) => {
                self.counters.replied(reply.rcode);
                info
            }
            Err(error) => {
                self.counters.send_failures.add_one();
                tracing::debug!(%error, client = %request.src(), "sending a DNS reply");
                let counts = hickory_proto::op::HeaderCounts::default();
                hickory_proto::op::Header { metadata, counts }.into()
            }
        }
    }
}

/// Absence is only a fact once the cluster is known (rule 11.3).
fn absence(synced: bool) -> ResponseCode {
    if synced { ResponseCode::NXDomain } else { ResponseCode::ServFail }
}

/// Rules 3.8 and 3.9.
fn rcode_of(error: ForwardError) -> ResponseCode {
    match error {
        ForwardError::NoUpstreams | ForwardError::Busy => ResponseCode::Refused,
        ForwardError::NoAnswer => ResponseCode::ServFail,
    }
}

fn outgoing(request: &Request, query: Query) -> Outgoing {
    Outgoing {
        query,
        recursion_desired: request.metadata.recursion_desired,
        checking_disabled: request.metadata.checking_disabled,
        authentic_data: request.metadata.authentic_data,
        dnssec_ok: request.edns.as_ref().map(|edns| edns.flags().dnssec_ok),
    }
}

/// The upstream's reply as ours. AA stays clear, so that it is the same from the cache; AD is passed on to those who
/// asked for it (RFC 6840 5.8).
fn pass_on(request: &Request, message: Message) -> Reply {
    let wants_ad = request.metadata.authentic_data || request.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
    Reply {
        rcode: message.metadata.response_code,
        origin: Origin::Upstream { authentic: message.metadata.authentic_data && wants_ad },
        truncated: message.metadata.truncation,
        answers: message.answers,
        authorities: message.authorities,
        additionals: message.additionals,
        header_only: false,
    }
}
