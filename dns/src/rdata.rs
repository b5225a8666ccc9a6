//! The data of records by parts: where names stand in them, and which of these a client looks up next.

use hickory_proto::rr::rdata::NULL;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecoder, BinEncodable as _, BinEncoder, NameEncoding, Restrict};

use crate::names;

/// A part of the data of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// A name that a client looks up next, never compressed here.
    Target,
    /// Another name: a mailbox, or the name of a zone.
    Name,
    /// A number of two octets.
    Short,
    /// A number of four octets.
    Long,
    /// A time in seconds, four octets.
    Seconds,
    /// A string with its length in front.
    Text,
    /// Such strings up to the end, at least one.
    Texts,
    /// So many octets.
    Octets(usize),
    /// Octets up to the end.
    Rest,
}

/// What is read of an upstream's record has to fit its parts: addresses, names that lead a client on, and names that
/// may be compressed (RFC 1035 section 3.3, RFC 3597 section 4). All other data are octets.
pub(crate) fn is_read(rtype: RecordType) -> bool {
    matches!(u16::from(rtype), 1..=9 | 12 | 14 | 15 | 17 | 18 | 21 | 24 | 26 | 28 | 30 | 33 | 35 | 39 | 64 | 65)
}

/// The parts of a type's data; none for a type whose data are not looked into.
pub(crate) fn parts(rtype: RecordType) -> &'static [Part] {
    use Part::{Long, Name, Octets, Rest, Seconds, Short, Target, Text, Texts};
    match u16::from(rtype) {
        // A, AAAA
        1 => &[Octets(4)],
        28 => &[Octets(16)],
        // NS, MD, MF, CNAME, MB, MG, MR, PTR, DNAME
        2..=5 | 7..=9 | 12 | 39 => &[Target],
        // SOA: the mailbox is no name of a host
        6 => &[Target, Name, Long, Seconds, Seconds, Seconds, Seconds],
        // MINFO, RP
        14 | 17 => &[Name, Name],
        // MX, AFSDB, RT, KX, LP
        15 | 18 | 21 | 36 | 107 => &[Short, Target],
        // TXT, NINFO, SPF, AVC, RESINFO, WALLET
        16 | 56 | 99 | 258 | 261 | 262 => &[Texts],
        // SIG
        24 => &[Octets(18), Name, Rest],
        // PX
        26 => &[Short, Name, Name],
        // NXT
        30 => &[Name, Rest],
        // SRV
        33 => &[Short, Short, Short, Target],
        // NAPTR
        35 => &[Short, Short, Text, Text, Text, Target],
        // TALINK
        58 => &[Name, Name],
        // SVCB, HTTPS
        64 | 65 => &[Short, Target, Rest],
        _ => &[],
    }
}

/// A part with its octets.
pub(crate) type Piece<'a> = (Part, &'a [u8]);

/// Cuts data into their parts; `None` if they are not as their type has them.
pub(crate) fn pieces(rtype: RecordType, mut octets: &[u8]) -> Option<Vec<Piece<'_>>> {
    let mut pieces = Vec::new();
    let mut wanted = parts(rtype).iter().copied();
    let mut next = wanted.next();
    while let Some(part) = next {
        let length = match part {
            Part::Target | Part::Name => name_length(octets)?,
            Part::Short => 2,
            Part::Long | Part::Seconds => 4,
            Part::Text | Part::Texts => usize::from(*octets.first()?) + 1,
            Part::Octets(count) => count,
            Part::Rest => octets.len(),
        };
        let (piece, rest) = octets.split_at_checked(length)?;
        pieces.push((part, piece));
        octets = rest;
        next = if part == Part::Texts && !octets.is_empty() { Some(part) } else { wanted.next() };
    }
    octets.is_empty().then_some(pieces)
}

/// Octets of the name that these begin with, if it is complete and not compressed.
fn name_length(octets: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match usize::from(*octets.get(at)?) {
            0 => return Some(at + 1),
            length @ 1..=63 => at += length + 1,
            _ => return None,
        }
    }
}

/// The name that these octets are.
pub(crate) fn name_of(octets: &[u8]) -> Option<Name> {
    let mut labels = Vec::new();
    let mut rest = octets;
    while let Some((length, after)) = rest.split_first().filter(|(length, _)| **length > 0) {
        let (label, after) = after.split_at_checked(usize::from(*length))?;
        labels.push(label);
        rest = after;
    }
    Name::from_labels(labels).ok()
}

/// The data as octets, names in them without compression.
pub(crate) fn octets_of(data: &RData) -> Option<Vec<u8>> {
    let mut octets = Vec::new();
    let mut encoder = BinEncoder::new(&mut octets);
    encoder.set_name_encoding(NameEncoding::Uncompressed);
    data.emit(&mut encoder).ok()?;
    Some(octets)
}

/// Data of this type. `None` if the octets are not as the type has them, of those types that are looked into elsewhere.
pub(crate) fn data_of(rtype: RecordType, octets: Vec<u8>) -> Option<RData> {
    const LOOKED_INTO: [RecordType; 9] = [
        RecordType::A,
        RecordType::AAAA,
        RecordType::CNAME,
        RecordType::MX,
        RecordType::NS,
        RecordType::PTR,
        RecordType::SOA,
        RecordType::SRV,
        RecordType::TXT,
    ];
    if LOOKED_INTO.contains(&rtype) {
        let length = Restrict::new(u16::try_from(octets.len()).ok()?);
        return RData::read(&mut BinDecoder::new(&octets), rtype, length).ok();
    }
    Some(untyped(rtype, octets))
}

/// Data that nobody looks into.
fn untyped(code: RecordType, octets: Vec<u8>) -> RData {
    let mut rdata = NULL::new(); // `NULL::with` panics without octets
    rdata.anything = octets;
    RData::Unknown { code, rdata }
}

/// Gives each name in the data that a client looks up next to `change`, and puts what that returns in its place. Data
/// that are not as their type has them stay.
pub(crate) fn change_targets(record: &mut Record, mut change: impl FnMut(&Name) -> Option<Name>) {
    let rtype = record.record_type();
    if !parts(rtype).contains(&Part::Target) {
        return;
    }
    let Some(octets) = octets_of(&record.data) else { return };
    let Some(pieces) = pieces(rtype, &octets) else { return };
    let mut changed = false;
    let mut new = Vec::with_capacity(octets.len());
    for (part, piece) in pieces {
        // The root in such a place means that there is no host, or that it is the owner.
        let target = if part == Part::Target && piece != [0] { name_of(piece) } else { None };
        match target.and_then(|name| change(&name)) {
            Some(name) => {
                changed = true;
                names::append(&mut new, &name);
            }
            None => new.extend_from_slice(piece),
        }
    }
    if let Some(data) = data_of(rtype, new).filter(|_| changed) {
        record.data = data;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::absolute;
    use crate::presentation;

    /// The same data as hickory has them and as octets of an upstream.
    #[track_caller]
    fn check(rtype: RecordType, data: &str, wanted: &str) {
        let typed = presentation::data(rtype, data).unwrap();
        let octets = octets_of(&typed).unwrap();
        for data in [typed, untyped(rtype, octets)] {
            let mut record = Record::from_rdata(absolute("owner.test").unwrap(), 60, data);
            change_targets(&mut record, |name| {
                (*name == absolute("from.test").unwrap()).then(|| absolute(r"to\ it.Longer.test").unwrap())
            });
            assert_eq!(presentation::data_text(&record.data), wanted, "{rtype}");
        }
    }

    #[test]
    fn names_that_are_looked_up_next_may_be_changed() {
        for rtype in [RecordType::CNAME, RecordType::NS, RecordType::PTR, RecordType::DNAME] {
            check(rtype, "From.test.", r"to\ it.Longer.test.");
            check(rtype, "x.from.test.", "x.from.test.");
        }
        check(RecordType::MX, "10 from.test.", r"10 to\ it.Longer.test.");
        check(RecordType::MX, "0 .", "0 .");
        check(RecordType::SRV, "1 2 3 from.test.", r"1 2 3 to\ it.Longer.test.");
        check(RecordType::SOA, "from.test. from.test. 1 2 3 4 5", r"to\ it.Longer.test. from.test. 1 2 3 4 5");
        check(RecordType::NAPTR, r#"1 2 "S" "SIP+D2U" "" from.test."#, r#"1 2 "S" "SIP+D2U" "" to\ it.Longer.test."#);
        check(RecordType::from(18), "1 from.test.", r"1 to\ it.Longer.test.");
        check(RecordType::from(17), "from.test. from.test.", "from.test. from.test.");
        check(RecordType::TXT, r#""from.test.""#, r#""from.test.""#);
    }

    #[test]
    fn the_target_of_a_service_may_be_changed_and_its_parameters_stay() {
        let (target, parameters) = (b"\x00\x01\x04from\x04test\x00".as_slice(), b"\x00\x01\x00\x03\x02\xfa\xfa");
        let data = untyped(RecordType::HTTPS, [target, parameters].concat());
        let mut record = Record::from_rdata(Name::root(), 60, data);
        change_targets(&mut record, |_| absolute("to").ok());
        assert_eq!(octets_of(&record.data).unwrap(), [b"\x00\x01\x02to\x00".as_slice(), parameters].concat());
    }

    #[test]
    fn data_that_are_not_as_their_type_has_them_stay() {
        for (rtype, octets) in [
            (RecordType::DNAME, b"".as_slice()),
            (RecordType::DNAME, b"\x04from\x04tes"),
            (RecordType::DNAME, b"\x04from\x04test\x00\x00"),
            (RecordType::DNAME, b"\xc0\x0c"),
            (RecordType::NAPTR, b"\x00\x01\x00\x02\x01"),
            (RecordType::HTTPS, b"\x00"),
            (RecordType::from(65282), b"\x04from\x04test\x00"),
        ] {
            let data = untyped(rtype, octets.to_vec());
            let mut record = Record::from_rdata(Name::root(), 60, data.clone());
            change_targets(&mut record, |_| Some(Name::root()));
            assert_eq!(record.data, data, "{octets:?}");
        }
    }
}
