//! One question and its answer, over a datagram or a stream.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UdpSocket;

use super::Outgoing;

/// What we can take in one datagram (DNS flag day 2020).
pub(crate) const UDP_PAYLOAD: u16 = 1232;

/// Why one try failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum TryError {
    #[error("no answer in time")]
    Timeout,
    #[error("talking to the upstream")]
    Io(#[from] io::Error),
    #[error("the message is too long for TCP")]
    TooLong,
    #[error("the upstream's answer does not fit the question or does not parse")]
    Nonsense,
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
        request.metadata.authentic_data = outgoing.authentic_data;
        request.add_query(outgoing.query.clone());
        if let Some(dnssec_ok) = outgoing.dnssec_ok {
            let mut edns = Edns::new();
            edns.set_version(0).set_max_payload(UDP_PAYLOAD).set_dnssec_ok(dnssec_ok);
            request.set_edns(edns);
        }
        let wire = request.to_vec().or(Err(TryError::TooLong))?;
        Ok(Self { request, wire })
    }

    /// Over UDP. A socket per query: a random port besides the random id makes a forged reply hard to hit (RFC 5452), and
    /// connecting it turns ICMP errors into immediate ones.
    pub(super) async fn over_udp(&self, upstream: SocketAddr) -> Result<Message, TryError> {
        let any = match upstream {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(upstream).await?;
        socket.send(&self.wire).await?;
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            let length = socket.recv(&mut buffer).await?;
            // Whatever does not belong to the question is dropped, and the wait for the real reply goes on.
            if let Some(answer) = buffer.get(..length).and_then(|wire| self.answer(wire)) {
                return Ok(answer);
            }
        }
    }

    /// Over a stream that nobody else uses meanwhile, each message after its length (RFC 1035 section 4.2.2).
    pub(super) async fn over(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<Message, TryError> {
        let length = u16::try_from(self.wire.len()).or(Err(TryError::TooLong))?;
        stream.write_all(&[length.to_be_bytes().as_slice(), &self.wire].concat()).await?;
        stream.flush().await?;
        let length = stream.read_u16().await?;
        let mut reply = vec![0; usize::from(length)];
        stream.read_exact(&mut reply).await?;
        self.answer(&reply).ok_or(TryError::Nonsense)
    }

    /// The message in `wire` if it answers this question.
    fn answer(&self, wire: &[u8]) -> Option<Message> {
        let answer = Message::from_vec(wire).ok()?;
        let meta = answer.metadata;
        if meta.id != self.request.metadata.id || meta.message_type != MessageType::Response {
            return None;
        }
        // Servers that understood nothing send the error without the question.
        let bare_error = answer.queries.is_empty()
            && [ResponseCode::FormErr, ResponseCode::NotImp, ResponseCode::Refused, ResponseCode::ServFail]
                .contains(&meta.response_code);
        (answer.queries == self.request.queries || bare_error).then_some(answer)
    }
}
