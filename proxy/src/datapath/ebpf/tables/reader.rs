//! The tables in the kernel, read element by element by the same lookup that the programs run.
//!
//! By system calls, since to map an array costs as much memory as the array has, and reads are few.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use proxy_abi::lookup::{self, Words};
use proxy_abi::maps::{self, Map};
use proxy_abi::{
    Address6, AffinityKey, AffinityValue, Backend4, Backend6, Config, Directory, FrontendKey4, FrontendKey6, RangeKey,
    RangePrefix, ServicePrefix,
};
use zerocopy::transmute;

use super::super::pins::MapPins;
use super::kernel::{TableError, open};
use crate::sys::bpf;

/// The maps, opened to read.
#[derive(Debug)]
pub(in crate::datapath::ebpf) struct Reader {
    frontends4: OwnedFd,
    frontends6: OwnedFd,
    addresses: OwnedFd,
    ranges: OwnedFd,
    service_ranges: OwnedFd,
    affinity: OwnedFd,
    config: OwnedFd,
    directory: OwnedFd,
    slots: OwnedFd,
    backends4: OwnedFd,
    backends6: OwnedFd,
    failed: Mutex<Option<io::Error>>,
}

/// The words of an element, padded with zeros.
#[derive(Clone, Copy, Debug)]
pub(in crate::datapath::ebpf) struct Element([u64; 4]);

impl Words for Element {
    fn word(self, at: usize) -> u64 {
        self.0.get(at).copied().unwrap_or_default()
    }
}

impl Reader {
    /// Opens the maps pinned in `pins`.
    pub(in crate::datapath::ebpf) fn open(pins: &MapPins) -> Result<Self, TableError> {
        let array = |map: &Map| open(pins, map);
        Ok(Self {
            frontends4: open(pins, &maps::FRONTENDS4)?,
            frontends6: open(pins, &maps::FRONTENDS6)?,
            addresses: open(pins, &maps::ADDRESSES)?,
            ranges: open(pins, &maps::RANGES)?,
            service_ranges: open(pins, &maps::SERVICE_RANGES)?,
            affinity: open(pins, &maps::AFFINITY)?,
            config: array(&maps::CONFIG)?,
            directory: array(&maps::DIRECTORY)?,
            slots: array(&maps::SLOTS)?,
            backends4: array(&maps::BACKENDS4)?,
            backends6: array(&maps::BACKENDS6)?,
            failed: Mutex::default(),
        })
    }

    /// The last read that the kernel refused, if there was one: what it asked for counted as missing.
    pub(in crate::datapath::ebpf) fn take_failure(&self) -> Option<io::Error> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn found<T>(&self, read: io::Result<Option<T>>) -> Option<T> {
        read.unwrap_or_else(|error| {
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).replace(error);
            None
        })
    }

    fn word<const K: usize>(&self, map: &OwnedFd, key: &[u8; K]) -> Option<Element> {
        self.found(bpf::lookup_word(map.as_fd(), key)).map(|word| Element([word, 0, 0, 0]))
    }

    /// An element of an array with values of `V` bytes, which are words.
    fn element<const V: usize>(&self, array: &OwnedFd, index: u32) -> Option<Element> {
        let value: [u8; V] = self.found(bpf::lookup(array.as_fd(), &index.to_ne_bytes()))?;
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(value.as_chunks().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        Some(Element(words))
    }
}

impl lookup::Tables for &Reader {
    type Element = Element;

    fn frontend4(&self, key: &FrontendKey4) -> Option<Element> {
        let key: [u8; size_of::<FrontendKey4>()] = transmute!(*key);
        self.word(&self.frontends4, &key)
    }

    fn frontend6(&self, key: &FrontendKey6) -> Option<Element> {
        let key: [u8; size_of::<FrontendKey6>()] = transmute!(*key);
        self.word(&self.frontends6, &key)
    }

    fn address(&self, address: &Address6) -> Option<Element> {
        let key: [u8; size_of::<Address6>()] = transmute!(*address);
        self.word(&self.addresses, &key)
    }

    fn directory(&self, service: u32) -> Option<Element> {
        self.element::<{ size_of::<Directory>() }>(&self.directory, service)
    }

    fn slot(&self, index: u32) -> Option<Element> {
        self.element::<8>(&self.slots, index)
    }

    fn backend4(&self, index: u32) -> Option<Element> {
        self.element::<{ size_of::<Backend4>() }>(&self.backends4, index)
    }

    fn backend6(&self, index: u32) -> Option<Element> {
        self.element::<{ size_of::<Backend6>() }>(&self.backends6, index)
    }

    fn own_dns_serves(&self) -> bool {
        self.element::<{ size_of::<Config>() }>(&self.config, 0)
            .is_some_and(|config| Config::dns_serves(config.word(Config::FLAGS), config.word(Config::CLOSED)))
    }

    fn in_range(&self, key: &RangeKey) -> bool {
        let prefix = RangePrefix { bits: RangeKey::BITS, key: *key };
        let key: [u8; size_of::<RangePrefix>()] = transmute!(prefix);
        self.found(bpf::lookup::<{ size_of::<RangePrefix>() }, 4>(self.ranges.as_fd(), &key)).is_some()
    }

    fn in_service_range(&self, address: &Address6) -> bool {
        let prefix = ServicePrefix { bits: ServicePrefix::BITS, address: *address };
        let key: [u8; size_of::<ServicePrefix>()] = transmute!(prefix);
        self.found(bpf::lookup::<{ size_of::<ServicePrefix>() }, 4>(self.service_ranges.as_fd(), &key)).is_some()
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Element> {
        let key: [u8; size_of::<AffinityKey>()] = transmute!(*key);
        self.word(&self.affinity, &key)
    }

    /// A reader is no client.
    fn keep_affinity(&self, _: &AffinityKey, _: AffinityValue) {}
}
