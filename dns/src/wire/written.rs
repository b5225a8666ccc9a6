//! A record on its way into a reply: its owner is written as a pointer where it is the name in the question.
//!
//! hickory writes every name in full, looks for it among those before, and takes it back; and it does so for 120 names
//! of a message only, so that 2,000 endpoints would not fit what TCP takes. Here it is known where the name stands.

use hickory_proto::ProtoError;
use hickory_proto::rr::{Name, Record};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

/// A pointer to the name of the question, which follows the header (RFC 1035 section 4.1.4).
const POINTER: u16 = 0xc000 | 12;

/// A record in the reply to a question for `asked`.
pub(crate) struct Written<'a> {
    record: &'a Record,
    asked: &'a Name,
}

impl<'a> Written<'a> {
    pub(crate) fn new(record: &'a Record, asked: &'a Name) -> Self {
        Self { record, asked }
    }

    /// All of a section.
    pub(crate) fn all(records: &'a [Record], asked: &'a Name) -> Vec<Self> {
        records.iter().map(|record| Self::new(record, asked)).collect()
    }
}

impl BinEncodable for Written<'_> {
    fn emit(&self, encoder: &mut BinEncoder<'_>) -> Result<(), ProtoError> {
        let Self { record, asked } = self;
        // The root is shorter than a pointer to it.
        if asked.is_root() || !record.name.eq_case(asked) {
            return record.emit(encoder);
        }
        encoder.emit_u16(POINTER)?;
        record.record_type().emit(encoder)?;
        record.dns_class.emit(encoder)?;
        encoder.emit_u32(record.ttl)?;
        let length = encoder.place::<u16>()?;
        record.data.emit(encoder)?;
        let written = u16::try_from(encoder.len_since_place(&length)).or(Err("data of a record is too long"))?;
        encoder.emit_at(length, written)
    }
}
