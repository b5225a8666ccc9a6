//! An upstream's reply, read: names that matter are checked, all other data are octets (RFC 3597).
//!
//! A record that cannot be read costs its RRset and the AD bit, unless the answer depends on it; a message that ends
//! too early costs what is missing.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Header, Metadata, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, MX, NS, NULL, PTR, SOA, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable as _, BinDecoder};

use super::frame::{self, Frame, HEADER, u16_at, u32_at};
use super::layout::{Piece, pieces, written_out};
use crate::rdata::{is_read, parts};

/// The records of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sections {
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
}

impl Sections {
    pub(crate) fn all(&self) -> impl Iterator<Item = &Record> {
        self.answers.iter().chain(&self.authorities).chain(&self.additionals)
    }

    pub(crate) fn all_mut(&mut self) -> impl Iterator<Item = &mut Record> {
        self.answers.iter_mut().chain(&mut self.authorities).chain(&mut self.additionals)
    }
}

/// How much of an answer there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Extent {
    /// All.
    #[default]
    Whole,
    /// The message ended within the additional section.
    LacksAdditionals,
    /// The upstream says that there is more (TC), or the message ended before that section.
    Truncated,
}

/// What an upstream sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) rcode: ResponseCode,
    /// The upstream has validated it all (AD), and nothing of it was changed or left out.
    pub(crate) authentic: bool,
    pub(crate) extent: Extent,
    pub(crate) sections: Sections,
}

/// Aliases of aliases, in the worst order; resolvers follow no more either.
const LONGEST_CHAIN: usize = 16;

impl Received {
    /// Reads the reply to `query`; `None` if what cannot be read in it could be the answer.
    pub(crate) fn read(wire: &[u8], query: &Query) -> Option<Self> {
        let Header { metadata, counts } = Header::read(&mut BinDecoder::new(wire)).ok()?;
        let mut at = HEADER;
        for _ in 0..counts.queries {
            at = frame::past_name(wire, at)? + 4;
        }
        let mut reading = Reading { wire, at, asked: &query.name, odd: Vec::new(), foreign: false, extended: None };
        let answers = reading.section(counts.answers, Section::Answer);
        let rest = if answers.is_ok() { counts.authorities } else { 0 };
        let authorities = reading.section(rest, Section::Authority);
        let complete = answers.is_ok() && authorities.is_ok();
        let additionals = reading.section(if complete { counts.additionals } else { 0 }, Section::Additional);
        let extent = match (metadata.truncation || !complete, additionals.is_err()) {
            (true, _) => Extent::Truncated,
            (false, true) => Extent::LacksAdditionals,
            (false, false) => Extent::Whole,
        };
        let part = |section: Result<Vec<Record>, Vec<Record>>| section.unwrap_or_else(|part| part);
        let sections =
            Sections { answers: part(answers), authorities: part(authorities), additionals: part(additionals) };
        let Reading { odd, foreign, extended, .. } = reading;
        let lacks = foreign || !complete && !metadata.truncation;
        if lacks && sections.answers.is_empty() && counts.answers > 0 {
            return None; // the answer is in what is missing
        }
        let this = Self {
            rcode: rcode(&metadata, extended),
            authentic: metadata.authentic_data && extent == Extent::Whole && odd.is_empty() && !foreign,
            extent,
            sections,
        };
        this.without(&odd, query)
    }

    /// Leaves out the RRsets of records that cannot be read; `None` if one of them may be the answer.
    fn without(mut self, odd: &[Odd], query: &Query) -> Option<Self> {
        if odd.is_empty() {
            return Some(self);
        }
        let chain = chain(&self.sections.answers, &query.name);
        let decides = |rtype: RecordType| {
            [RecordType::CNAME, query.query_type].contains(&rtype) || query.query_type == RecordType::ANY
        };
        let is_answer = |odd: &Odd| {
            let of_chain = odd.owner.as_ref().is_none_or(|owner| chain.contains(owner));
            odd.in_answer && of_chain && decides(odd.rtype)
        };
        if odd.iter().any(is_answer) {
            return None;
        }
        // The same records beside the answer are no part of it: without its addresses it would say that there are none.
        let stays = |record: &Record, in_answer: bool| {
            let is_its = |odd: &Odd| odd.owner.as_ref() == Some(&record.name) && odd.rtype == record.record_type();
            !odd.iter().any(|odd| odd.in_answer == in_answer && is_its(odd))
        };
        let Sections { answers, authorities, additionals } = &mut self.sections;
        answers.retain(|record| stays(record, true));
        for section in [authorities, additionals] {
            section.retain(|record| stays(record, false));
        }
        Some(self)
    }
}

/// The asked name, and what aliases make of it.
pub(crate) fn chain(answers: &[Record], asked: &Name) -> HashSet<Name> {
    let mut chain = HashSet::from([asked.clone()]);
    // Servers may order aliases as they like; each round finds one more at least.
    for _ in 0..LONGEST_CHAIN {
        let before = chain.len();
        for record in answers {
            #[expect(clippy::wildcard_enum_match_arm, reason = "no other type makes an alias")]
            match &record.data {
                RData::CNAME(target) if chain.contains(&record.name) => drop(chain.insert(target.0.clone())),
                _ => {}
            }
        }
        if chain.len() == before {
            break;
        }
    }
    chain
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Section {
    Answer,
    Authority,
    Additional,
}

/// A record that cannot be read.
struct Odd {
    /// Its owner, if that can be.
    owner: Option<Name>,
    rtype: RecordType,
    in_answer: bool,
}

struct Reading<'a> {
    wire: &'a [u8],
    at: usize,
    asked: &'a Name,
    odd: Vec<Odd>,
    /// There are records of other classes, which belong to no RRset of the answer.
    foreign: bool,
    /// The upper bits of the rcode, from OPT.
    extended: Option<u8>,
}

impl Reading<'_> {
    /// The records of the next section, or as far as they go.
    fn section(&mut self, count: u16, section: Section) -> Result<Vec<Record>, Vec<Record>> {
        let mut records = Vec::new();
        for _ in 0..count {
            let Some(frame) = Frame::read(self.wire, self.at) else { return Err(records) };
            self.at = frame.end();
            records.extend(self.record(&frame, section));
        }
        Ok(records)
    }

    fn record(&mut self, frame: &Frame, section: Section) -> Option<Record> {
        let rtype = RecordType::from(frame.rtype);
        if rtype == RecordType::OPT {
            // It has its place, and one is enough (RFC 6891 section 6.1.1).
            if section == Section::Additional {
                let [extended, ..] = frame.ttl.to_be_bytes();
                self.extended.get_or_insert(extended);
            }
            return None;
        }
        if frame.class != u16::from(DNSClass::IN) {
            self.foreign = true;
            return None;
        }
        let owner = frame::name(self.wire, frame.owner, frame.ttl_at).map(|(name, _)| name);
        // Spelled as it was asked for, however the upstream spells it (DNS-9.3).
        let owner = owner.map(|name| if name == *self.asked { self.asked.clone() } else { name });
        match (owner, data(self.wire, frame)) {
            // The highest bit is no part of a TTL (RFC 2181 section 8).
            (Some(owner), Some(data)) => {
                Some(Record::from_rdata(owner, if frame.ttl >> 31 == 0 { frame.ttl } else { 0 }, data))
            }
            (owner, _) => {
                self.odd.push(Odd { owner, rtype, in_answer: section == Section::Answer });
                None
            }
        }
    }
}

/// The data of a record; `None` if they do not fit its type.
fn data(wire: &[u8], frame: &Frame) -> Option<RData> {
    let rtype = RecordType::from(frame.rtype);
    let octets = |octets: &[u8]| {
        let mut rdata = NULL::new();
        rdata.anything = octets.to_vec();
        RData::Unknown { code: rtype, rdata }
    };
    let whole = wire.get(frame.data.clone())?;
    if !is_read(rtype) {
        return Some(octets(whole));
    }
    let pieces = pieces(wire, frame.data.clone(), parts(rtype))?;
    let start = frame.data.start;
    let u16 = |offset| u16_at(wire, start + offset);
    Some(match (rtype, pieces.as_slice()) {
        (RecordType::A, _) => RData::A(A(Ipv4Addr::from(*whole.first_chunk::<4>()?))),
        (RecordType::AAAA, _) => RData::AAAA(AAAA(Ipv6Addr::from(*whole.first_chunk::<16>()?))),
        (RecordType::CNAME, [Piece::Name(name)]) => RData::CNAME(CNAME(name.clone())),
        (RecordType::NS, [Piece::Name(name)]) => RData::NS(NS(name.clone())),
        (RecordType::PTR, [Piece::Name(name)]) => RData::PTR(PTR(name.clone())),
        (RecordType::MX, [_, Piece::Name(name)]) => RData::MX(MX::new(u16(0)?, name.clone())),
        (RecordType::SRV, [.., Piece::Name(name)]) => RData::SRV(SRV::new(u16(0)?, u16(2)?, u16(4)?, name.clone())),
        (RecordType::SOA, [Piece::Name(mname), Piece::Name(rname), Piece::Octets(numbers), ..]) => {
            let number = |index: usize| u32_at(wire, numbers.start + 4 * index);
            let [serial, refresh, retry, expire, minimum] =
                [number(0)?, number(1)?, number(2)?, number(3)?, number(4)?];
            let [refresh, retry, expire] = [refresh, retry, expire].map(u32::cast_signed);
            RData::SOA(SOA::new(mname.clone(), rname.clone(), serial, refresh, retry, expire, minimum))
        }
        (_, pieces) => octets(&written_out(wire, pieces)?),
    })
}

fn rcode(metadata: &Metadata, extended: Option<u8>) -> ResponseCode {
    ResponseCode::from(extended.unwrap_or_default(), metadata.response_code.low())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names;
    use crate::wire::{Age, Packed, append_question};

    const ASKED: &str = "www.example.";
    /// A pointer to the name of the question.
    const OWNER: [u8; 2] = [0xc0, 12];

    fn query(rtype: RecordType) -> Query {
        Query::query(names::absolute(ASKED).unwrap(), rtype)
    }

    fn record(owner: &[u8], rtype: u16, data: &[u8]) -> Vec<u8> {
        let length = u16::try_from(data.len()).unwrap().to_be_bytes();
        [owner, &rtype.to_be_bytes(), &[0, 1, 0, 0, 0, 60], &length, data].concat()
    }

    /// A reply with AD, and with so many records said to be in each section.
    fn message(rtype: RecordType, counts: [u16; 3], records: &[Vec<u8>]) -> Vec<u8> {
        let mut wire = vec![0, 7, 0x80, 0x20, 0, 1];
        wire.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
        append_question(&mut wire, &query(rtype));
        wire.extend(records.concat());
        wire
    }

    /// The types read in each section, and whether AD stands; `None` if nothing can be made of the reply.
    #[track_caller]
    fn check(rtype: RecordType, counts: [u16; 3], records: &[Vec<u8>], wanted: Option<(&[&[u16]; 3], bool)>) {
        let received = Received::read(&message(rtype, counts, records), &query(rtype));
        let types = |records: &[Record]| records.iter().map(|record| record.record_type().into()).collect::<Vec<u16>>();
        let read = received.map(|Received { authentic, sections, .. }| {
            let Sections { answers, authorities, additionals } = sections;
            ([types(&answers), types(&authorities), types(&additionals)], authentic)
        });
        assert_eq!(read, wanted.map(|(types, authentic)| (types.map(<[u16]>::to_vec), authentic)));
    }

    fn a(owner: &[u8]) -> Vec<u8> {
        record(owner, 1, &[192, 0, 2, 1])
    }

    #[test]
    fn an_odd_record_costs_its_set() {
        let odd_mail = record(&OWNER, 15, &[0]);
        let good_mail = record(&OWNER, 15, &[0, 5, 0]);
        check(RecordType::A, [1, 0, 0], &[a(&OWNER)], Some((&[&[1], &[], &[]], true)));
        check(RecordType::A, [1, 0, 1], &[a(&OWNER), odd_mail.clone()], Some((&[&[1], &[], &[]], false)));
        check(
            RecordType::A,
            [1, 1, 1],
            &[a(&OWNER), good_mail.clone(), odd_mail.clone()],
            Some((&[&[1], &[], &[]], false)),
        );
        // What the client asked for, or an alias on the way there, is not left out without a word.
        check(RecordType::MX, [2, 0, 0], &[good_mail, odd_mail], None);
        check(RecordType::A, [2, 0, 0], &[record(&OWNER, 5, &[63]), a(b"\x01x\0")], None);
        check(RecordType::A, [1, 0, 0], &[record(&OWNER, 1, &[1, 2, 3])], None);
        check(RecordType::A, [2, 0, 0], &[a(&OWNER), record(b"\xc1\xff", 1, &[1, 2, 3, 4])], None);
        check(RecordType::A, [2, 0, 0], &[a(&OWNER), record(b"\x01x\0", 1, &[1])], Some((&[&[1], &[], &[]], false)));
    }

    #[test]
    fn a_message_that_ends_too_early_costs_what_is_missing() {
        check(RecordType::A, [3, 0, 0], &[a(&OWNER)], Some((&[&[1], &[], &[]], false)));
        check(RecordType::A, [1, 0, 2], &[a(&OWNER), a(&OWNER)], Some((&[&[1], &[], &[1]], false)));
        check(RecordType::A, [1, 0, 0], &[], None);
        check(RecordType::A, [1, 0, 0], &[vec![0x40]], None);
        let cut =
            |counts| Received::read(&message(RecordType::A, counts, &[a(&OWNER)]), &query(RecordType::A)).unwrap();
        assert_eq!(
            [[2, 0, 0], [1, 1, 0], [1, 0, 1]].map(|counts| cut(counts).extent),
            [Extent::Truncated, Extent::Truncated, Extent::LacksAdditionals]
        );
    }

    #[test]
    fn what_has_no_name_that_matters_stays_as_it_is() {
        for (rtype, data) in [
            (65_282, b"".as_slice()),
            (16, b""),
            (65, b"\0\x01\0\0\x01\0\x06\x02\xfa\xfa\x02h2"),
            (65, b"\0\x01\0\0\x03\0\x04\0\0\x01\xbb"),
            (13, b"\xff"),
            (46, b"\xc0\x0c"),
        ] {
            let wire = message(rtype.into(), [1, 0, 0], &[record(&OWNER, rtype, data)]);
            let sections = Received::read(&wire, &query(rtype.into())).unwrap().sections;
            let RData::Unknown { code, rdata } = &sections.answers[0].data else { panic!("octets") };
            assert_eq!((u16::from(*code), rdata.anything.as_slice()), (rtype, data));
        }
        // RP, a pointer in each of its names.
        let wire = message(17.into(), [1, 0, 0], &[record(&OWNER, 17, b"\x01a\xc0\x0c\xc0\x10")]);
        let sections = Received::read(&wire, &query(17.into())).unwrap().sections;
        let RData::Unknown { rdata, .. } = &sections.answers[0].data else { panic!("octets") };
        assert_eq!(rdata.anything, b"\x01a\x03www\x07example\0\x07example\0");
    }

    #[test]
    fn the_asked_name_is_spelled_as_it_was_asked_for() {
        let records = [record(b"\x03WWW\x07eXample\0", 5, b"\x03Www\x04Real\0"), a(b"\x03WWW\x04real\0")];
        let wire = message(RecordType::A, [2, 0, 0], &records);
        let sections = Received::read(&wire, &query(RecordType::A)).unwrap().sections;
        let owners: Vec<String> = sections.answers.iter().map(|record| names::text(&record.name)).collect();
        assert_eq!(owners, ["www.example.", "WWW.real."]);
        let packed = Packed::new(&sections, &query(RecordType::A)).unwrap();
        let other = Query::query(names::absolute("wWw.eXAMPLE.").unwrap(), RecordType::A);
        let out = packed.sections(&other, Age::Seconds(0));
        let owners: Vec<String> = out.answers.iter().map(|record| names::text(&record.name)).collect();
        assert_eq!(owners, ["wWw.eXAMPLE.", "WWW.real."]);
    }

    #[test]
    fn the_highest_bit_is_no_time() {
        let mut high = a(&OWNER);
        high[6] = 0x80;
        let wire = message(RecordType::A, [1, 0, 0], &[high]);
        assert_eq!(Received::read(&wire, &query(RecordType::A)).unwrap().sections.answers[0].ttl, 0);
    }

    #[test]
    fn packed_records_come_out_as_they_went_in_but_for_the_asked_name() {
        let records = [
            record(&OWNER, 5, b"\x04real\xc0\x10"),
            a(b"\x04real\xc0\x10"),
            record(b"\x04real\xc0\x10", 1, &[192, 0, 2, 2]),
        ];
        let wire = message(RecordType::A, [3, 0, 0], &records);
        let sections = Received::read(&wire, &query(RecordType::A)).unwrap().sections;
        let packed = Packed::new(&sections, &query(RecordType::A)).unwrap();
        let other = Query::query(names::absolute("WWW.EXAMPLE.").unwrap(), RecordType::A);
        let out = packed.sections(&other, Age::Seconds(20));
        let texts: Vec<String> =
            out.answers.iter().map(|record| format!("{} {}", names::text(&record.name), record.ttl)).collect();
        assert_eq!(texts, ["WWW.EXAMPLE. 40", "real.example. 40", "real.example. 40"]);
        assert!(matches!(&out.answers[0].data, RData::CNAME(name) if names::text(name) == "real.example."));
        assert_eq!(packed.reply_size(&other), 12 + 17 + (12 + 14) + (12 + 4) * 2);
    }
}
