//! Where things stand in a message, found without reading them.

use std::ops::Range;

use hickory_proto::rr::Name;
use hickory_proto::serialize::binary::{BinDecodable as _, BinDecoder};

/// The length of a header (RFC 1035 section 4.1.1).
pub(crate) const HEADER: usize = 12;
/// What follows the owner of a record before its data: type, class, TTL and length.
const FIXED: usize = 10;

/// A record's places in a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Where its owner begins.
    pub(crate) owner: usize,
    /// The number of its type.
    pub(crate) rtype: u16,
    /// The number of its class.
    pub(crate) class: u16,
    /// Where its TTL begins.
    pub(crate) ttl_at: usize,
    /// Its TTL in seconds, as it stands there.
    pub(crate) ttl: u32,
    /// Its data.
    pub(crate) data: Range<usize>,
}

impl Frame {
    /// The record that begins at `owner`; `None` if the message ends before it does.
    pub(crate) fn read(wire: &[u8], owner: usize) -> Option<Self> {
        let fixed = past_name(wire, owner)?;
        let data = fixed + FIXED;
        let length = usize::from(u16_at(wire, fixed + 8)?);
        wire.get(data..data + length)?;
        let ttl_at = fixed + 4;
        let (rtype, class, ttl) = (u16_at(wire, fixed)?, u16_at(wire, fixed + 2)?, u32_at(wire, ttl_at)?);
        Some(Self { owner, rtype, class, ttl_at, ttl, data: data..data + length })
    }

    /// Where the next record begins.
    pub(crate) fn end(&self) -> usize {
        self.data.end
    }
}

/// Where the name that begins at `at` ends in place; what a pointer points to is not looked at. `None` if the message
/// ends before, or a label is of an unknown kind.
pub(crate) fn past_name(wire: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = *wire.get(at)?;
        match length >> 6 {
            0 if length == 0 => return Some(at + 1),
            0 => at += 1 + usize::from(length),
            3 => return wire.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
    }
}

/// The name that begins at `at`, and where it ends in place, which must not be after `end`.
pub(crate) fn name(wire: &[u8], at: usize, end: usize) -> Option<(Name, usize)> {
    let after = past_name(wire, at).filter(|after| *after <= end)?;
    // No pointer leads forward, so nothing after `end` is read.
    let mut decoder = BinDecoder::new(wire.get(..end)?).clone(u16::try_from(at).ok()?);
    Some((Name::read(&mut decoder).ok()?, after))
}

pub(crate) fn u16_at(wire: &[u8], at: usize) -> Option<u16> {
    wire.get(at..)?.first_chunk().map(|octets| u16::from_be_bytes(*octets))
}

pub(crate) fn u32_at(wire: &[u8], at: usize) -> Option<u32> {
    wire.get(at..)?.first_chunk().map(|octets| u32::from_be_bytes(*octets))
}
