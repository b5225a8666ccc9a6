//! The data of records in a message, in which names may be compressed.

use std::ops::Range;

use hickory_proto::rr::{Name, RecordType};

use super::frame;
use crate::names;
use crate::rdata::{Part, parts};

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
            Part::Target | Part::Name => {
                let (name, end) = frame::name(wire, at, data.end)?;
                pieces.push(Piece::Name(name));
                at = end;
                continue;
            }
            Part::Short => at + 2,
            Part::Long | Part::Seconds => at + 4,
            Part::Octets(count) => at + count,
            Part::Text => at + 1 + usize::from(*wire.get(at)?),
            Part::Texts | Part::Rest => data.end,
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
            Piece::Name(name) => names::append(&mut octets, name),
            Piece::Octets(range) => octets.extend_from_slice(wire.get(range.clone())?),
        }
    }
    Some(octets)
}

/// The first name in data that are written out, such as the target of a DNAME or HTTPS.
pub(crate) fn first_name(rtype: RecordType, octets: &[u8]) -> Option<Name> {
    let pieces = pieces(octets, 0..octets.len(), parts(rtype))?;
    pieces.into_iter().find_map(|piece| match piece {
        Piece::Name(name) => Some(name),
        Piece::Octets(_) => None,
    })
}
