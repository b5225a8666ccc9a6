//! Compares the tables in the kernel with the layout, a part at a time, and repairs what differs.
//!
//! Only the daemon writes to its maps; a difference comes from another tool or from a bug.

use std::net::IpAddr;

use tracing::warn;

use super::super::layout::{Layout, Write};
use super::addresses::Addresses;
use super::kernel::Tables;
use crate::datapath::SyncError;
use crate::plan::PortKey;

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
        let mut repaired = 0;
        if self.rest.is_empty() {
            repaired += repair(&strangers(layout, tables)?, None, tables)?;
            repair_addresses(addresses, tables)?.into_iter().for_each(|address| {
                warn!(%address, "the entry of an address differed from the plan and was repaired");
            });
            self.rest = layout.services();
            self.rest.reverse();
        }
        let from = self.rest.len().saturating_sub(SLICE);
        for service in self.rest.split_off(from) {
            let mut differ = Vec::new();
            for write in layout.image(service) {
                if !tables.holds(&write)? {
                    differ.push(write);
                }
            }
            repaired += repair(&differ, layout.owner(service), tables)?;
        }
        tables.flush()?;
        Ok(repaired)
    }
}

/// Carries out the writes for elements that differ, those of `owner` or of nobody; returns how many.
fn repair(writes: &[Write], owner: Option<&PortKey>, tables: &mut Tables) -> Result<u64, SyncError> {
    tell(writes, owner);
    for write in writes {
        tables.write(write)?;
    }
    Ok(u64::try_from(writes.len()).unwrap_or(u64::MAX))
}

/// One line for a service port, however many of its elements differ.
fn tell(writes: &[Write], owner: Option<&PortKey>) {
    let Some((first, others)) = writes.split_first() else { return };
    let what = match others.len() {
        0 => first.to_string(),
        more => format!("{first} and {more} more"),
    };
    match owner {
        Some(owner) => warn!(
            service = %owner, what,
            "the tables in the kernel differed from the plan and were repaired; does another program write to them?"
        ),
        None => warn!(what, "the tables in the kernel had what no Service has; does another program write to them?"),
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

#[cfg(test)]
mod tests {
    use shunt_model::{Family, ObjectKey, Protocol};

    use super::super::super::layout::FrontendKey;
    use super::*;
    use crate::logged::logged;

    fn gone(number: u8) -> Write {
        let key = FrontendKey::new([10, 96, 0, number].into(), 53.try_into().unwrap(), Protocol::Udp);
        Write::FrontendGone { key }
    }

    #[test]
    fn a_repair_is_one_line_that_names_the_service_and_the_first_element() {
        let service = ObjectKey::new("kube-system", "kube-dns");
        let owner = PortKey { service, port: "dns".into(), protocol: Protocol::Udp, family: Family::V4 };
        assert_eq!(logged(|| tell(&[], Some(&owner))), [""; 0]);
        assert_eq!(
            logged(|| tell(&[gone(10), gone(11), gone(12)], Some(&owner))),
            ["WARN the tables in the kernel differed from the plan and were repaired; does another program write to \
              them? service=kube-system/kube-dns:dns/udp what=\"removed frontend 10.96.0.10:53/udp and 2 more\""]
        );
        assert_eq!(
            logged(|| tell(&[gone(10)], None)),
            ["WARN the tables in the kernel had what no Service has; does another program write to them? \
              what=\"removed frontend 10.96.0.10:53/udp\""]
        );
    }
}
