//! One question and its answer, over a datagram or a stream.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_proto::op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::serialize::binary::{BinDecodable as _, BinDecoder};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UdpSocket;

use super::Outgoing;
use crate::wire::{Extent, Received};

/// What we can take in one datagram (DNS flag day 2020).
pub(crate) const UDP_PAYLOAD: u16 = 1232;

/// Room for a reply: servers that send more than they are allowed to are few, and whatever is cut off is asked for
/// again over TCP.
const REPLY_ROOM: usize = 4096;

/// The code that hickory calls BADSIG too.
const BAD_VERSION: u16 = 16;

/// Why one try failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum TryError {
    #[error("no answer in time")]
    Timeout,
    #[error("making a socket for the upstream")]
    Local(#[source] io::Error),
    #[error("talking to the upstream")]
    Io(#[from] io::Error),
    #[error("the message is too long for TCP")]
    TooLong,
    #[error("the upstream's answer does not parse")]
    Unreadable,
    #[error("the upstream's answer does not fit the question")]
    Nonsense,
}

/// How a received message relates to the question.
enum Arrival {
    Answer(Box<Received>),
    /// It is for the question, but what cannot be read in it may be the answer; with its header.
    Unreadable(Metadata),
    /// It is not for the question.
    Foreign,
}

/// A question as it is sent once.
pub(super) struct Exchange {
    request: Message,
    wire: Vec<u8>,
}

impl Exchange {
    /// A fresh id for every try, so that a late reply to an earlier one is not taken for this one's.
    pub(super) fn new(outgoing: &Outgoing) -> Result<Self, TryError> {
        let mut request = Message::new(rand::random(), MessageType::Query, OpCode::Query);
        request.metadata.recursion_desired = outgoing.recursion_desired;
        request.metadata.checking_disabled = outgoing.checking_disabled;
        request.metadata.authentic_data = true; // what it validated is kept for all clients (RFC 6840 section 5.7)
        request.add_query(outgoing.query.clone());
        if let Some(dnssec_ok) = outgoing.dnssec_ok {
            let mut edns = Edns::new();
            edns.set_version(0).set_max_payload(UDP_PAYLOAD).set_dnssec_ok(dnssec_ok);
            request.set_edns(edns);
        }
        Self::of(request)
    }

    /// Whether the upstream may say this only because it does not know EDNS, or no version of it (RFC 6891 sections
    /// 6.1.3 and 7). Such servers send the OPT back or not.
    pub(super) fn may_blame_edns(&self, Received { rcode, .. }: &Received) -> bool {
        let refuses = [ResponseCode::FormErr, ResponseCode::NotImp].contains(rcode) || u16::from(*rcode) == BAD_VERSION;
        self.request.edns.is_some() && refuses
    }

    /// The same question without EDNS.
    pub(super) fn without_edns(&self) -> Result<Self, TryError> {
        let mut request = self.request.clone();
        request.metadata.id = rand::random();
        request.edns = None;
        Self::of(request)
    }

    fn of(request: Message) -> Result<Self, TryError> {
        let wire = request.to_vec().or(Err(TryError::TooLong))?;
        Ok(Self { request, wire })
    }

    /// Over UDP. A socket per query: a random port besides the random id makes a forged reply hard to hit (RFC 5452),
    /// and connecting it turns ICMP errors into immediate ones.
    pub(super) async fn over_udp(&self, upstream: SocketAddr) -> Result<Received, TryError> {
        let any = match upstream {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = UdpSocket::bind(any).await.map_err(TryError::Local)?;
        socket.connect(upstream).await?;
        socket.send(&self.wire).await?;
        let mut buffer = vec![0; REPLY_ROOM];
        loop {
            let length = socket.recv(&mut buffer).await?;
            match self.arrival(buffer.get(..length).unwrap_or_default()) {
                Arrival::Answer(answer) => return Ok(*answer),
                // What is missing was cut off by the upstream, or by our buffer.
                Arrival::Unreadable(metadata) if metadata.truncation || length == buffer.len() => {
                    return Ok(Received {
                        rcode: metadata.response_code,
                        extent: Extent::Truncated,
                        ..Received::default()
                    });
                }
                Arrival::Unreadable(_) => return Err(TryError::Unreadable),
                // It is dropped, and the wait for the real reply goes on.
                Arrival::Foreign => {}
            }
        }
    }

    /// Over a stream that no other question uses meanwhile, each message after its length (RFC 1035 section 4.2.2).
    pub(super) async fn over(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<Received, TryError> {
        let length = u16::try_from(self.wire.len()).or(Err(TryError::TooLong))?;
        stream.write_all(&[length.to_be_bytes().as_slice(), &self.wire].concat()).await?;
        stream.flush().await?;
        let length = stream.read_u16().await?;
        let mut reply = vec![0; usize::from(length)];
        stream.read_exact(&mut reply).await?;
        match self.arrival(&reply) {
            Arrival::Answer(answer) => Ok(*answer),
            Arrival::Unreadable(_) => Err(TryError::Unreadable),
            Arrival::Foreign => Err(TryError::Nonsense),
        }
    }

    /// The answer in `wire`, whatever id that has.
    pub(super) fn read(&self, wire: &[u8]) -> Option<Received> {
        let wire = [self.wire.get(..2)?, wire.get(2..)?].concat();
        match self.arrival(&wire) {
            Arrival::Answer(answer) => Some(*answer),
            Arrival::Unreadable(_) | Arrival::Foreign => None,
        }
    }

    /// How `wire` relates to this question. We chose the id, the question and the port, so all of them must match.
    fn arrival(&self, wire: &[u8]) -> Arrival {
        let mut decoder = BinDecoder::new(wire);
        let Ok(Header { metadata, counts }) = Header::read(&mut decoder) else { return Arrival::Foreign };
        if metadata.id != self.request.metadata.id || metadata.message_type != MessageType::Response {
            return Arrival::Foreign;
        }
        let question = (counts.queries == 1).then(|| Query::read(&mut decoder).ok()).flatten();
        // Servers that cannot parse the query send an error without the question.
        let bare_error = counts.queries == 0
            && [ResponseCode::FormErr, ResponseCode::NotImp, ResponseCode::Refused, ResponseCode::ServFail]
                .contains(&metadata.response_code);
        if question.as_ref() != self.request.queries.first() && !bare_error {
            return Arrival::Foreign;
        }
        let received = self.request.queries.first().and_then(|query| Received::read(wire, query));
        received.map_or(Arrival::Unreadable(metadata), |received| Arrival::Answer(Box::new(received)))
    }
}
