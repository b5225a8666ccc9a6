//! Messages as octets: what is read of a query and of an upstream's reply, and replies that are kept as octets.
//!
//! Own code, since hickory reads every record into its type or fails the message: what has no type there, or is
//! spelled in a way that it does not know, would be lost (RFC 3597). Names are read by hickory.

pub(crate) mod frame;
pub(crate) mod layout;
mod packed;
mod received;
mod written;

pub(crate) use packed::{Age, Packed, append_question};
pub(crate) use received::{Extent, Received, Sections, chain};
pub(crate) use written::Written;
