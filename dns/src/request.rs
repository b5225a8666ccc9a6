//! A query as it was received: read and checked, or refused (DNS-9.4…9.6).
//!
//! Read are the header, the question, and of the rest what somebody here acts on; records and options of other kinds
//! are passed over.

use std::net::SocketAddr;
use std::time::Instant;

use hickory_proto::op::{Header, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use hickory_proto::serialize::binary::{BinDecodable as _, BinDecoder};

use crate::wire::frame::{self, Frame, HEADER, u16_at, u32_at};

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
    /// When it was read.
    pub(crate) received: Instant,
}

/// What a client says in its OPT record (RFC 6891). Its options are not read: nothing here acts on any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edns {
    /// The longest datagram that it takes, in octets.
    pub(crate) payload: u16,
    pub(crate) version: u8,
    /// It wants DNSSEC's records (DO).
    pub(crate) dnssec_ok: bool,
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
        let (query, mut at) = question(wire).ok_or_else(malformed)?;
        let (mut edns, mut serial) = (None, None);
        let before = counts.answers + counts.authorities;
        for number in 0..before + counts.additionals {
            let frame = Frame::read(wire, at).ok_or_else(malformed)?;
            at = frame.end();
            #[expect(clippy::wildcard_enum_match_arm, reason = "nobody here acts on other records of a query")]
            match RecordType::from(frame.rtype) {
                // It has its place, and one is enough (RFC 6891 section 6.1.1).
                RecordType::OPT if number < before => {}
                RecordType::OPT if edns.is_some() => return Err(malformed()),
                RecordType::OPT => edns = Some(Edns::read(wire, &frame).ok_or_else(malformed)?),
                RecordType::SOA => serial = serial_of(wire, &frame),
                _ => {}
            }
        }
        Ok(Self { metadata, query, edns, serial, client, transport, length: wire.len(), received: Instant::now() })
    }

    pub(crate) fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }
}

/// The question, and where it ends.
fn question(wire: &[u8]) -> Option<(Query, usize)> {
    let (name, end) = frame::name(wire, HEADER, wire.len())?;
    let mut query = Query::query(name, u16_at(wire, end)?.into());
    query.set_query_class(DNSClass::from(u16_at(wire, end + 2)?));
    Some((query, end + 4))
}

impl Edns {
    /// `None` if the record is not at the root, or its options do not fill it.
    fn read(wire: &[u8], frame: &Frame) -> Option<Self> {
        if wire.get(frame.owner) != Some(&0) {
            return None;
        }
        let mut at = frame.data.start;
        while at < frame.data.end {
            at = at + 4 + usize::from(u16_at(wire, at + 2)?);
        }
        let [_, version, flags, _] = frame.ttl.to_be_bytes();
        (at == frame.data.end).then_some(Self { payload: frame.class, version, dnssec_ok: flags & 0x80 != 0 })
    }
}

/// The serial of an SOA: the first number after its two names.
fn serial_of(wire: &[u8], frame: &Frame) -> Option<u32> {
    let numbers = frame::past_name(wire, frame::past_name(wire, frame.data.start)?)?;
    u32_at(wire, numbers).filter(|_| numbers + 20 == frame.data.end)
}
