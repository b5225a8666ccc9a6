//! Whether the tables changed since they were looked at: asked of the kernel, which costs a few system calls.

use std::io;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use shunt_model::Family;

use super::programs::Variant;
use super::rule::Table;
use crate::host::netlink::{Netlink, attribute};
use crate::sys::{TableInfo, table_info};

/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_GETGEN`
const GET_GENERATION: u16 = 10 << 8 | 16;
/// `struct nfgenmsg`, of no family.
const REQUEST: [u8; 4] = [0; 4];

/// What differs after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// The shape of both tables: another number of rules, or of bytes, or other jumps. A rule that is replaced by one
    /// of the same size is not noticed.
    Legacy([TableInfo; 2]),
    /// The number of changes of nftables in this network namespace.
    Nft(u32),
}

/// Looks.
pub(super) fn look(variant: Variant, family: Family) -> io::Result<Seen> {
    match variant {
        Variant::Legacy => {
            let info = |table: Table| table_info(family == Family::V6, table.as_str());
            let [nat, filter] = Table::BOTH;
            Ok(Seen::Legacy([info(nat)?, info(filter)?]))
        }
        Variant::Nft => nftables_generation().map(Seen::Nft),
    }
}

/// The number of changes of nftables in this network namespace.
pub(in crate::datapath) fn nftables_generation() -> io::Result<u32> {
    let generation = Netlink::open(NETLINK_NETFILTER)?.get(GET_GENERATION, &REQUEST, generation)?;
    generation.ok_or_else(|| io::Error::other("no generation of nftables was given"))
}

/// `NFTA_GEN_ID` in the answer.
fn generation(answer: &[u8]) -> io::Result<u32> {
    const NFTA_GEN_ID: u16 = 1;
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer about nftables is cut short");
    let value = answer.get(REQUEST.len()..).and_then(|answer| attribute(answer, NFTA_GEN_ID));
    let number = value.and_then(<[u8]>::first_chunk).ok_or_else(malformed)?;
    Ok(u32::from_be_bytes(*number))
}
