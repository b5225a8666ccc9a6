//! `SERVICE_RANGES`: the ranges in which the addresses of Services lie, of which packets to an address that nothing has
//! get silence (NE-12).

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};

use ipnet::IpNet;
use proxy_abi::{ServicePrefix, maps};
use zerocopy::transmute;

use super::super::layout::write::address;
use super::super::pins::MapPins;
use super::kernel::{TableError, open};
use crate::datapath::SyncError;
use crate::sys::bpf;

type Key = [u8; size_of::<ServicePrefix>()];

/// The map, and what it holds.
#[derive(Debug)]
pub(in crate::datapath::ebpf) struct ServiceRanges {
    map: OwnedFd,
    held: BTreeSet<Key>,
}

impl ServiceRanges {
    pub(in crate::datapath::ebpf) fn open(pins: &MapPins) -> Result<Self, TableError> {
        let map = open(pins, &maps::SERVICE_RANGES)?;
        let held = held(&map).map_err(|source| TableError::Open { path: pins.of(&maps::SERVICE_RANGES), source })?;
        Ok(Self { map, held })
    }

    /// Reads what the map holds, after a failure.
    pub(in crate::datapath::ebpf) fn read_back(&mut self) -> Result<(), SyncError> {
        let failed = |source| SyncError::Read { object: maps::SERVICE_RANGES.name, source };
        self.held = held(&self.map).map_err(failed)?;
        Ok(())
    }

    /// Makes the map hold exactly these. Returns how many elements it wrote.
    pub(in crate::datapath::ebpf) fn apply(&mut self, ranges: &[IpNet]) -> Result<u64, SyncError> {
        let failed = |source| SyncError::Write { object: maps::SERVICE_RANGES.name, source };
        let wanted: BTreeSet<Key> = ranges.iter().map(key).collect();
        let (mut fresh, mut gone) = (wanted.clone(), self.held.clone());
        fresh.retain(|key| !self.held.contains(key));
        gone.retain(|key| !wanted.contains(key));
        for key in &fresh {
            bpf::update(self.map.as_fd(), key, &1_u32.to_ne_bytes()).map_err(failed)?;
            self.held.insert(*key);
        }
        for key in &gone {
            bpf::delete(self.map.as_fd(), key).map_err(failed)?;
            self.held.remove(key);
        }
        Ok(u64::try_from(fresh.len().saturating_add(gone.len())).unwrap_or(u64::MAX))
    }
}

fn held(map: &OwnedFd) -> io::Result<BTreeSet<Key>> {
    Ok(bpf::keys(map.as_fd())?.into_iter().collect())
}

fn key(range: &IpNet) -> Key {
    let before = match range.addr() {
        IpAddr::V4(_) => 96_u32,
        IpAddr::V6(_) => 0,
    };
    let bits = before.saturating_add(u32::from(range.prefix_len()));
    transmute!(ServicePrefix { bits, address: address(range.network()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_counts_the_bits_before_an_ipv4_address() {
        let [four, six] = ["10.96.3.4/12", "fd00:96::5/108"].map(|range| key(&range.parse().unwrap()));
        assert_eq!(four, [108, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 96, 0, 0]);
        assert_eq!(six[..8], [108, 0, 0, 0, 0xfd, 0, 0, 0x96]);
        assert!(six[8..].iter().all(|byte| *byte == 0));
    }
}
