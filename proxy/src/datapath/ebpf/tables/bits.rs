//! `ADDRESS_BITS`: by which the packet programs tell most packets that are to none of the addresses in `ADDRESSES`.

use std::net::IpAddr;

use proxy_abi::{AddressBit, maps};

use super::super::layout::write::address;
use super::super::pins::MapPins;
use super::kernel::{Array, TableError};
use crate::datapath::SyncError;

/// The array. A bit too many costs a look-up, a missing one costs packets: bits are set before their addresses are in
/// the map, and cleared after.
#[derive(Debug)]
pub(in crate::datapath::ebpf) struct AddressBits(Array);

impl AddressBits {
    pub(in crate::datapath::ebpf) fn open(pins: &MapPins) -> Result<Self, TableError> {
        Array::open(pins, &maps::packets::ADDRESS_BITS).map(Self)
    }

    /// Sets the bits of these addresses.
    pub(in crate::datapath::ebpf) fn set(&self, addresses: impl Iterator<Item = IpAddr>) -> Result<(), SyncError> {
        for AddressBit { index, mask } in addresses.map(bit) {
            self.store(index, self.load(index) | mask)?;
        }
        Ok(())
    }

    /// Clears all bits but those of these addresses, and sets these.
    pub(in crate::datapath::ebpf) fn keep(&self, addresses: impl Iterator<Item = IpAddr>) -> Result<(), SyncError> {
        let mut wanted = vec![0; maps::packets::ADDRESS_BITS.capacity as usize];
        for AddressBit { index, mask } in addresses.map(bit) {
            if let Some(word) = wanted.get_mut(index as usize) {
                *word |= mask;
            }
        }
        for (index, word) in (0..).zip(wanted) {
            if self.load(index) != word {
                self.store(index, word)?;
            }
        }
        Ok(())
    }

    fn load(&self, index: u32) -> u64 {
        self.0.load(index, 0).unwrap_or_default()
    }

    fn store(&self, index: u32, word: u64) -> Result<(), SyncError> {
        self.0.store(index, &[(0, word)])
    }
}

fn bit(ip: IpAddr) -> AddressBit {
    AddressBit::of(&address(ip))
}
