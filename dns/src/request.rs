//! A query as it was received: parsed and checked, or refused (DNS-9.4…9.6).

use std::net::SocketAddr;

use hickory_proto::op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::RData;
use hickory_proto::serialize::binary::{BinDecodable as _, BinDecoder};

/// Shorter than this there is not even a header.
const HEADER: usize = 12;

/// How a query came, and its reply goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// One datagram each.
    Udp,
    /// A stream of messages.
    Tcp,
}

/// One question of one client.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) metadata: Metadata,
    pub(crate) query: Query,
    pub(crate) edns: Option<Edns>,
    /// The serial that the client has, if it asks for a transfer of changes (RFC 1995).
    pub(crate) serial: Option<u32>,
    pub(crate) client: SocketAddr,
    pub(crate) transport: Transport,
    /// Octets of the message.
    pub(crate) length: usize,
}

/// Why a message is not a question that can be answered.
#[derive(Debug)]
pub(crate) enum NoQuestion {
    /// Gets no reply: a fragment, or a reply, since two servers would otherwise answer each other for ever.
    Silent,
    /// Gets a reply of this code that is a header only.
    Refused(Metadata, ResponseCode),
}

impl Request {
    pub(crate) fn read(wire: &[u8], client: SocketAddr, transport: Transport) -> Result<Self, NoQuestion> {
        let header = if wire.len() < HEADER { None } else { Header::read(&mut BinDecoder::new(wire)).ok() };
        let Some(Header { metadata, counts }) = header else { return Err(NoQuestion::Silent) };
        if metadata.message_type == MessageType::Response {
            return Err(NoQuestion::Silent);
        }
        if metadata.op_code != OpCode::Query {
            return Err(NoQuestion::Refused(metadata, ResponseCode::NotImp));
        }
        let malformed = || NoQuestion::Refused(metadata, ResponseCode::FormErr);
        if counts.queries != 1 || counts.answers > 1 || counts.authorities > 1 || counts.additionals > 2 {
            return Err(malformed());
        }
        let message = Message::from_vec(wire).map_err(|_unreadable| malformed())?;
        let query = message.queries.into_iter().next().ok_or_else(malformed)?;
        let serial = message.authorities.iter().find_map(|record| {
            let RData::SOA(soa) = &record.data else { return None };
            Some(soa.serial)
        });
        let (metadata, edns, length) = (message.metadata, message.edns, wire.len());
        Ok(Self { metadata, query, edns, serial, client, transport, length })
    }

    pub(crate) fn dnssec_ok(&self) -> bool {
        self.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok)
    }
}
