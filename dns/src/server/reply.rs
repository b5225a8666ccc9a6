//! A reply before it is bytes: its sections, the order of its addresses, and what fits a datagram.

use hickory_proto::op::{Edns, Metadata, ResponseCode, emit_message_parts};
use hickory_proto::rr::{RData, Record, RecordType};
use hickory_proto::serialize::binary::BinEncoder;
use hickory_server::server::Request;
use rand::seq::SliceRandom;

use crate::forward::UDP_PAYLOAD;

/// A datagram that every client takes (RFC 1035).
const SMALLEST_PAYLOAD: u16 = 512;
/// Root name, type, class, TTL, length: an OPT record without options.
const OPT_LENGTH: u16 = 11;

/// Everything of a reply but its id and its question.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) rcode: ResponseCode,
    pub(super) origin: Origin,
    pub(super) truncated: bool,
    pub(super) answers: Vec<Record>,
    pub(super) authorities: Vec<Record>,
    pub(super) additionals: Vec<Record>,
    /// The question is not repeated: it could not be read as one (rules 9.4, 9.6).
    pub(super) header_only: bool,
}

/// Who says so, which decides the AA and AD bits (rules 9.1, 9.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Origin {
    /// The server itself: an error.
    #[default]
    Server,
    /// Cluster data.
    Cluster,
    /// An upstream.
    Upstream {
        /// It has checked the data, and the client wants to know.
        authentic: bool,
    },
}

impl Reply {
    pub(super) fn error(rcode: ResponseCode) -> Self {
        Self { rcode, ..Self::default() }
    }

    pub(super) fn header(rcode: ResponseCode) -> Self {
        Self { header_only: true, ..Self::error(rcode) }
    }

    /// The header of this reply to `request`.
    pub(super) fn metadata(&self, request: &Request) -> Metadata {
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = self.rcode;
        metadata.authoritative = self.origin == Origin::Cluster;
        metadata.truncation = self.truncated;
        metadata.authentic_data = self.origin == Origin::Upstream { authentic: true };
        metadata.recursion_available = true; // kinder to tools than clearing it on cluster answers (rule 9.2)
        metadata
    }

    /// Every client shall meet the addresses in another order (rule 10.1); all else keeps its place.
    pub(super) fn shuffle(&mut self) {
        for section in [&mut self.answers, &mut self.additionals] {
            let places: Vec<usize> = section
                .iter()
                .enumerate()
                .filter(|(_, record)| [RecordType::A, RecordType::AAAA].contains(&record.record_type()))
                .map(|(place, _)| place)
                .collect();
            let mut order = places.clone();
            order.shuffle(&mut rand::rng());
            let shuffled: Vec<Record> = order.iter().filter_map(|place| section.get(*place).cloned()).collect();
            for (place, record) in places.into_iter().zip(shuffled) {
                if let Some(slot) = section.get_mut(place) {
                    *slot = record;
                }
            }
        }
    }

    /// Drops records from the end until the reply fits `limit` with its OPT, which hickory writes last and would lose
    /// (rules 9.14, 9.18).
    pub(super) fn fit(&mut self, request: &Request, limit: u16, edns: Option<&Edns>) {
        let room = limit - edns.map_or(0, |_| OPT_LENGTH);
        if self.at_most(request) <= usize::from(room) {
            return;
        }
        let mut scratch = Vec::with_capacity(usize::from(room));
        let mut encoder = BinEncoder::new(&mut scratch);
        encoder.set_max_size(room);
        let written = emit_message_parts(
            &self.metadata(request),
            &mut request.queries.queries().iter(),
            &mut self.answers.iter(),
            &mut self.authorities.iter(),
            &mut self.additionals.iter(),
            None,
            None,
            &mut encoder,
        );
        let Ok(header) = written else {
            return; // not even the question fits: hickory meets the same error, logs it and says SERVFAIL
        };
        self.truncated |= header.metadata.truncation;
        let answers = usize::from(header.counts.answers);
        let whole = answers == self.answers.len();
        self.answers.truncate(answers);
        self.authorities.truncate(if whole { header.counts.authorities.into() } else { 0 });
        self.additionals.truncate(if whole { header.counts.additionals.into() } else { 0 });
    }

    /// An upper bound of the size without OPT, cheap enough for every reply.
    fn at_most(&self, request: &Request) -> usize {
        let records = self.answers.iter().chain(&self.authorities).chain(&self.additionals);
        12 + request.queries.as_bytes().len() + records.map(record_at_most).sum::<usize>()
    }
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

/// The OPT of the reply, if the query had one (rule 9.9); its payload size is also the limit hickory applies.
pub(super) fn edns_for(request: &Request) -> Option<Edns> {
    let asked = request.edns.as_ref()?;
    let mut edns = Edns::new();
    edns.set_version(0)
        .set_max_payload(asked.max_payload().clamp(SMALLEST_PAYLOAD, UDP_PAYLOAD))
        .set_dnssec_ok(asked.flags().dnssec_ok);
    Some(edns)
}

/// The most a reply may have over UDP (rule 9.13).
pub(super) fn udp_limit(edns: Option<&Edns>) -> u16 {
    edns.map_or(SMALLEST_PAYLOAD, Edns::max_payload)
}
