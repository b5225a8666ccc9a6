//! A reply before it is bytes: its sections, the order of its addresses, and what fits a datagram.

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Header, HeaderCounts, Metadata, ResponseCode, emit_message_parts};
use hickory_proto::rr::{RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable as _, BinEncoder};
use rand::seq::SliceRandom;

use crate::cache::Kept;
use crate::failure::Failure;
use crate::plugin::Author;
use crate::request::{Request, Transport};
use crate::wire::{self, Sections, Written};

/// A datagram that every client takes (RFC 1035).
const SMALLEST_PAYLOAD: u16 = 512;
/// Root name, type, class, TTL, length: an OPT record without options.
const OPT_LENGTH: u16 = 11;

/// Everything of a reply but its id and its question.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    pub(crate) rcode: ResponseCode,
    pub(crate) origin: Origin,
    pub(crate) author: Author,
    /// Why there is no better one, for the log.
    pub(crate) why: Option<Failure>,
    /// For explanations: the upstreams that would be asked.
    pub(crate) asks: Option<String>,
    pub(crate) truncated: bool,
    /// The records as octets; those below are none then.
    pub(crate) kept: Option<Kept>,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
}

/// Where the answer comes from, which decides the AA and AD bits (DNS-9.1, DNS-9.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The server itself: an error.
    #[default]
    Server,
    /// Cluster data.
    Cluster,
    /// An upstream.
    Upstream {
        /// It has validated the data, and the client asked for that.
        authentic: bool,
    },
}

impl Reply {
    pub(crate) fn error(rcode: ResponseCode) -> Self {
        Self { rcode, ..Self::default() }
    }

    /// Cluster data, or hosts and templates, which count as such.
    pub(crate) fn cluster(author: Author) -> Self {
        Self { origin: Origin::Cluster, author, ..Self::default() }
    }

    /// The same with these records.
    pub(crate) fn with(self, Sections { answers, authorities, additionals }: Sections) -> Self {
        Self { kept: None, answers, authorities, additionals, ..self }
    }

    /// It is no longer what an upstream has validated.
    pub(crate) fn clear_authentic(&mut self) {
        if let Origin::Upstream { authentic } = &mut self.origin {
            *authentic = false;
        }
    }

    pub(crate) fn has_answers(&self) -> bool {
        self.kept.as_ref().map_or(!self.answers.is_empty(), |kept| kept.packed().has_answers())
    }

    /// It only reports that there is no view of the cluster yet (DNS-11.3).
    pub(crate) fn is_ignorant(&self) -> bool {
        self.rcode == ResponseCode::ServFail && self.author == Author::Kubernetes
    }

    /// The header of this reply to `request`.
    pub(crate) fn metadata(&self, request: &Request) -> Metadata {
        let mut metadata = Metadata::response_from_request(&request.metadata);
        // What needs OPT cannot be told without.
        let told = self.rcode.high() == 0 || request.edns.is_some();
        metadata.response_code = if told { self.rcode } else { ResponseCode::ServFail };
        metadata.authoritative = self.origin == Origin::Cluster;
        metadata.truncation = self.truncated;
        metadata.authentic_data = self.origin == Origin::Upstream { authentic: true };
        metadata.recursion_available = true; // kinder to tools than clearing it on cluster answers (DNS-9.2)
        metadata
    }

    /// Shuffles addresses and mail servers for each client (DNS-10.1); all other records keep their place.
    pub(crate) fn shuffle(&mut self) {
        if self.answers.len() < 2 && self.additionals.len() < 2 {
            return;
        }
        for section in [&mut self.answers, &mut self.additionals] {
            shuffle_types(section, &[RecordType::A, RecordType::AAAA]);
            shuffle_types(section, &[RecordType::MX]);
        }
    }

    /// As bytes; over UDP no longer than the client takes.
    pub(crate) fn encode(&mut self, request: &Request, payload: u16) -> Vec<u8> {
        let edns = edns_for(request, payload);
        let limit = match request.transport {
            Transport::Udp => edns.as_ref().map_or(SMALLEST_PAYLOAD, Edns::max_payload), // DNS-9.13
            Transport::Tcp => u16::MAX,
        };
        let room = limit - edns.as_ref().map_or(0, |_| OPT_LENGTH);
        if let Some(kept) = &self.kept {
            if kept.packed().reply_size(&request.query) <= usize::from(room)
                && let Some(wire) = self.copy(kept, request, edns.as_ref())
            {
                return wire;
            }
            let sections = kept.sections(&request.query);
            *self = std::mem::take(self).with(sections);
            self.shuffle(); // each client gets others of those that do not all fit
        }
        self.fit(request, room);
        let mut wire = Vec::with_capacity(usize::from(SMALLEST_PAYLOAD));
        match self.emit(request, edns.as_ref(), u16::MAX, &mut wire) {
            Ok(_) => wire,
            // Names that cannot be written, from an upstream; the client may ask again.
            Err(error) => {
                tracing::debug!(%error, name = crate::names::text(&request.query.name), "a reply cannot be written");
                header_only(&request.metadata, ResponseCode::ServFail)
            }
        }
    }

    /// As bytes, copied from the cache.
    fn copy(&self, kept: &Kept, request: &Request, edns: Option<&Edns>) -> Option<Vec<u8>> {
        let packed = kept.packed();
        let mut wire = Vec::with_capacity(packed.reply_size(&request.query) + usize::from(OPT_LENGTH));
        let [answers, authorities, additionals] = packed.counts();
        let additionals = additionals.checked_add(u16::from(edns.is_some()))?;
        wire.extend(header(&self.metadata(request), [1, answers, authorities, additionals]));
        wire::append_question(&mut wire, &request.query);
        packed.append_to(&mut wire, kept.age());
        if let Some(edns) = edns {
            // Root, type, payload, upper bits of the rcode and version, flags, no options (RFC 6891 section 6.1.2).
            let [payload, flags] = [edns.max_payload(), u16::from(edns.flags().dnssec_ok) << 15].map(u16::to_be_bytes);
            wire.extend([0, 0, 41]);
            wire.extend(payload);
            wire.extend([self.rcode.high(), 0]);
            wire.extend(flags);
            wire.extend([0, 0]);
        }
        Some(wire)
    }

    /// Drops records from the end until the reply leaves room for its OPT, which hickory writes last and would lose
    /// (DNS-9.14, DNS-9.18).
    fn fit(&mut self, request: &Request, room: u16) {
        if self.at_most(request) <= usize::from(room) {
            return;
        }
        let mut scratch = Vec::with_capacity(usize::from(room));
        let Ok(header) = self.emit(request, None, room, &mut scratch) else {
            return; // encoding it for the client meets the same error
        };
        if header.metadata.truncation {
            self.truncated = true;
            self.clear_authentic(); // what is left is not what was validated
        }
        let answers = usize::from(header.counts.answers);
        let whole = answers == self.answers.len();
        self.answers.truncate(answers);
        self.authorities.truncate(if whole { header.counts.authorities.into() } else { 0 });
        self.additionals.truncate(if whole { header.counts.additionals.into() } else { 0 });
    }

    fn emit(
        &self,
        request: &Request,
        edns: Option<&Edns>,
        limit: u16,
        wire: &mut Vec<u8>,
    ) -> Result<Header, ProtoError> {
        let mut encoder = BinEncoder::new(wire);
        encoder.set_max_size(limit);
        let [answers, authorities, additionals] =
            [&self.answers, &self.authorities, &self.additionals].map(|all| Written::all(all, &request.query.name));
        emit_message_parts(
            &self.metadata(request),
            &mut std::iter::once(&request.query),
            &mut answers.iter(),
            &mut authorities.iter(),
            &mut additionals.iter(),
            edns,
            None,
            &mut encoder,
        )
    }

    /// An upper bound of the size without OPT, cheap enough for every reply.
    fn at_most(&self, request: &Request) -> usize {
        let records = self.answers.iter().chain(&self.authorities).chain(&self.additionals);
        12 + request.query.name.len() + 5 + records.map(record_at_most).sum::<usize>()
    }
}

/// Puts the records of these types in a random order; all others keep their places.
fn shuffle_types(section: &mut [Record], types: &[RecordType]) {
    let is_one = |(_, record): &(usize, &Record)| types.contains(&record.record_type());
    let places: Vec<usize> = section.iter().enumerate().filter(is_one).map(|(place, _)| place).collect();
    let mut order = places.clone();
    order.shuffle(&mut rand::rng());
    let shuffled: Vec<Record> = order.iter().filter_map(|place| section.get(*place).cloned()).collect();
    for (place, record) in places.into_iter().zip(shuffled) {
        if let Some(slot) = section.get_mut(place) {
            *slot = record;
        }
    }
}

/// A reply to a message that could not be parsed, so it does not repeat the question (DNS-9.4, DNS-9.6).
pub(crate) fn header_only(asked: &Metadata, rcode: ResponseCode) -> Vec<u8> {
    let mut metadata = Metadata::response_from_request(asked);
    metadata.response_code = rcode;
    metadata.recursion_available = true;
    let mut wire = Vec::new();
    // A header alone can always be written.
    let written = Header { metadata, counts: HeaderCounts::default() }.emit(&mut BinEncoder::new(&mut wire));
    written.map_or_else(|_| Vec::new(), |()| wire)
}

/// The size of a record without compression; those of rare types count as too large, which costs an encoding only.
fn record_at_most(record: &Record) -> usize {
    #[expect(clippy::wildcard_enum_match_arm, reason = "a bound for whatever else an upstream may send")]
    let data = match &record.data {
        RData::A(_) => 4,
        RData::AAAA(_) => 16,
        RData::CNAME(name) => name.len() + 1,
        RData::PTR(name) => name.len() + 1,
        RData::SRV(srv) => 7 + srv.target.len(),
        RData::SOA(soa) => 22 + soa.mname.len() + soa.rname.len(),
        _ => usize::from(u16::MAX),
    };
    record.name.len() + 11 + data
}

/// A header as octets, for the copy of a kept reply.
fn header(metadata: &Metadata, counts: [u16; 4]) -> [u8; 12] {
    let bit = |set: bool, place: u16| u16::from(set) << place;
    let flags = bit(true, 15)
        | u16::from(u8::from(metadata.op_code)) << 11
        | bit(metadata.authoritative, 10)
        | bit(metadata.truncation, 9)
        | bit(metadata.recursion_desired, 8)
        | bit(metadata.recursion_available, 7)
        | bit(metadata.authentic_data, 5)
        | bit(metadata.checking_disabled, 4)
        | u16::from(metadata.response_code.low());
    let [queries, answers, authorities, additionals] = counts;
    let mut octets = [0; 12];
    let fields = [metadata.id, flags, queries, answers, authorities, additionals];
    octets.iter_mut().zip(fields.into_iter().flat_map(u16::to_be_bytes)).for_each(|(octet, value)| *octet = value);
    octets
}

/// The OPT of the reply, if the query had one (DNS-9.9).
fn edns_for(request: &Request, payload: u16) -> Option<Edns> {
    let asked = request.edns?;
    let mut edns = Edns::new();
    edns.set_version(0)
        .set_max_payload(asked.payload.min(payload).max(SMALLEST_PAYLOAD))
        .set_dnssec_ok(asked.dnssec_ok);
    Some(edns)
}
