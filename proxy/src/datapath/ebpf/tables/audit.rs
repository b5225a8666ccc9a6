//! Compares the tables in the kernel with the layout, a part at a time, and repairs what differs.
//!
//! Only the daemon writes to its maps; a difference comes from another tool or from a bug.

use std::net::IpAddr;

use tracing::warn;

use super::super::layout::{Layout, Write};
use super::addresses::Addresses;
use super::kernel::Tables;
use crate::datapath::SyncError;

/// How many service ports one step compares: about a millisecond at ten endpoints each.
const SLICE: usize = 256;

/// The progress of the audit.
#[derive(Debug, Default)]
pub(in crate::datapath::ebpf) struct Audit {
    /// The service ports of this round that are not compared yet, last first.
    rest: Vec<u32>,
}

impl Audit {
    /// Compares the next service ports; at the end of a round, for frontends without an owner.
    pub(in crate::datapath::ebpf) fn step(
        &mut self,
        layout: &Layout,
        addresses: &Addresses,
        tables: &mut Tables,
    ) -> Result<u64, SyncError> {
        let mut repaired = Vec::new();
        if self.rest.is_empty() {
            repaired.extend(strangers(layout, tables)?);
            repair_addresses(addresses, tables)?.into_iter().for_each(|address| {
                warn!(%address, "the entry of an address differed from the plan and was repaired");
            });
            self.rest = layout.services();
            self.rest.reverse();
        }
        let from = self.rest.len().saturating_sub(SLICE);
        for service in self.rest.split_off(from) {
            for write in layout.image(service) {
                if !tables.holds(&write)? {
                    repaired.push(write);
                }
            }
        }
        for write in &repaired {
            warn!(?write, "an element in the kernel differed from the layout and was repaired");
            tables.write(write)?;
        }
        tables.flush()?;
        Ok(u64::try_from(repaired.len()).unwrap_or(u64::MAX))
    }
}

/// The writes that remove frontends which the layout does not have.
fn strangers(layout: &Layout, tables: &Tables) -> Result<Vec<Write>, SyncError> {
    let found = tables.frontends()?.into_iter().map(|(key, _)| key);
    Ok(found.filter(|key| !layout.has_frontend(key)).map(|key| Write::FrontendGone { key }).collect())
}

fn repair_addresses(addresses: &Addresses, tables: &mut Tables) -> Result<Vec<IpAddr>, SyncError> {
    let found = tables.addresses()?;
    let mut missing = addresses.held().clone();
    let mut repaired = Vec::new();
    for (address, meaning) in found {
        if missing.remove(&address) != Some(meaning) {
            tables.set_address(address, addresses.held().get(&address).copied())?;
            repaired.push(address);
        }
    }
    for (address, meaning) in missing {
        tables.set_address(address, Some(meaning))?;
        repaired.push(address);
    }
    Ok(repaired)
}
