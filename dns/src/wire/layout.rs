//! Where names stand in the data of records: those that may be compressed, and those that lead a client on.

use std::ops::Range;

use hickory_proto::rr::{Name, RecordType};

use super::frame;

/// A part of a record's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// A name.
    Name,
    /// So many octets.
    Octets(usize),
    /// A length in one octet, and so many octets.
    Text,
    /// Whatever follows, if anything.
    Rest,
}

/// The parts of the data of types whose names may be compressed (RFC 1035 section 3.3, RFC 3597 section 4), and of
/// those that lead a client on and must not be (RFC 6672, RFC 9460). `None` for all others: their data are octets.
pub(crate) fn layout(rtype: RecordType) -> Option<&'static [Part]> {
    use Part::{Name, Octets, Rest, Text};
    Some(match u16::from(rtype) {
        // A, AAAA
        1 => &[Octets(4)],
        28 => &[Octets(16)],
        // NS, MD, MF, CNAME, MB, MG, MR, PTR, DNAME
        2..=5 | 7..=9 | 12 | 39 => &[Name],
        // SOA
        6 => &[Name, Name, Octets(20)],
        // MINFO, RP
        14 | 17 => &[Name, Name],
        // MX, AFSDB, RT
        15 | 18 | 21 => &[Octets(2), Name],
        // SIG
        24 => &[Octets(18), Name, Rest],
        // PX
        26 => &[Octets(2), Name, Name],
        // NXT
        30 => &[Name, Rest],
        // SRV
        33 => &[Octets(6), Name],
        // NAPTR
        35 => &[Octets(4), Text, Text, Text, Name],
        // SVCB, HTTPS
        64 | 65 => &[Octets(2), Name, Rest],
        _ => return None,
    })
}

/// A part of some data, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// A name, written out.
    Name(Name),
    /// Octets, a text's length included.
    Octets(Range<usize>),
}

/// The pieces of data at this place of a message; `None` if they do not fit their layout.
pub(crate) fn pieces(wire: &[u8], data: Range<usize>, parts: &[Part]) -> Option<Vec<Piece>> {
    let mut at = data.start;
    let mut pieces = Vec::with_capacity(parts.len());
    for part in parts {
        let end = match part {
            Part::Name => {
                let (name, end) = frame::name(wire, at, data.end)?;
                pieces.push(Piece::Name(name));
                at = end;
                continue;
            }
            Part::Octets(count) => at + count,
            Part::Text => at + 1 + usize::from(*wire.get(at)?),
            Part::Rest => data.end,
        };
        pieces.push(Piece::Octets(at..end));
        if end > data.end {
            return None;
        }
        at = end;
    }
    (at == data.end).then_some(pieces)
}

/// Data with all names written out.
pub(crate) fn written_out(wire: &[u8], pieces: &[Piece]) -> Option<Vec<u8>> {
    let mut octets = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Name(name) => append(&mut octets, name),
            Piece::Octets(range) => octets.extend_from_slice(wire.get(range.clone())?),
        }
    }
    Some(octets)
}

/// Appends a name, not compressed.
pub(crate) fn append(octets: &mut Vec<u8>, name: &Name) {
    for label in name.iter() {
        // No label has more than 63 octets.
        octets.push(u8::try_from(label.len()).unwrap_or_default());
        octets.extend_from_slice(label);
    }
    octets.push(0);
}

/// The first name in data that are written out, such as the target of a DNAME or HTTPS.
pub(crate) fn first_name(rtype: RecordType, octets: &[u8]) -> Option<Name> {
    let pieces = pieces(octets, 0..octets.len(), layout(rtype)?)?;
    pieces.into_iter().find_map(|piece| match piece {
        Piece::Name(name) => Some(name),
        Piece::Octets(_) => None,
    })
}
