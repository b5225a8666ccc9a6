//! The tables as a program reads them: each word by one volatile load, as the daemon may store at any moment.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::btf_maps::lpm_trie::Key;
use proxy_abi::lookup::{Tables, Words};
use proxy_abi::{Address6, AffinityKey, AffinityValue, Config, FrontendKey4, FrontendKey6, RangeKey, ServicePrefix};

use crate::maps::{
    ADDRESSES, AFFINITY, BACKENDS4, BACKENDS6, CONFIG, DIRECTORY, FRONTENDS4, FRONTENDS6, RANGES, SERVICE_RANGES, SLOTS,
};

/// The maps.
pub(crate) struct Kernel;

/// An element of a map whose value is made of words.
#[derive(Clone, Copy)]
pub(crate) struct Element(*const u64);

impl Words for Element {
    #[inline(always)]
    fn word(self, at: usize) -> u64 {
        // SAFETY: the verifier checks that the value has this word; it stays readable until the program ends.
        unsafe { read_volatile(self.0.wrapping_add(at)) }
    }
}

#[inline(always)]
fn element<V>(found: Option<*const V>) -> Option<Element> {
    let found = found?;
    Some(Element(found.cast()))
}

/// A word of `CONFIG`.
#[inline(always)]
pub(crate) fn config(at: usize) -> u64 {
    match element(CONFIG.get_ptr(0)) {
        Some(config) => config.word(at),
        None => 0,
    }
}

impl Tables for Kernel {
    type Element = Element;

    #[inline(always)]
    fn frontend4(&self, key: &FrontendKey4) -> Option<Element> {
        element(FRONTENDS4.get_ptr(key))
    }

    #[inline(always)]
    fn frontend6(&self, key: &FrontendKey6) -> Option<Element> {
        element(FRONTENDS6.get_ptr(key))
    }

    #[inline(always)]
    fn address(&self, address: &Address6) -> Option<Element> {
        element(ADDRESSES.get_ptr(address))
    }

    #[inline(always)]
    fn directory(&self, service: u32) -> Option<Element> {
        element(DIRECTORY.get_ptr(service))
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<Element> {
        element(SLOTS.get_ptr(index))
    }

    #[inline(always)]
    fn backend4(&self, index: u32) -> Option<Element> {
        element(BACKENDS4.get_ptr(index))
    }

    #[inline(always)]
    fn backend6(&self, index: u32) -> Option<Element> {
        element(BACKENDS6.get_ptr(index))
    }

    #[inline(always)]
    fn own_dns_serves(&self) -> bool {
        Config::dns_serves(config(Config::FLAGS), config(Config::CLOSED))
    }

    #[inline(always)]
    fn in_range(&self, key: &RangeKey) -> bool {
        RANGES.get(&Key::new(RangeKey::BITS, *key)).is_some()
    }

    #[inline(always)]
    fn in_service_range(&self, address: &Address6) -> bool {
        SERVICE_RANGES.get(&Key::new(ServicePrefix::BITS, *address)).is_some()
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<Element> {
        element(AFFINITY.get_ptr(key))
    }

    #[inline(always)]
    fn keep_affinity(&self, key: &AffinityKey, value: AffinityValue) {
        match AFFINITY.get_ptr_mut(key) {
            // SAFETY: not null; an aligned word. If the element is recycled this instant, its new owner finds a backend
            // of another service port and does not follow it.
            Some(record) => unsafe { write_volatile(record, value.0) },
            None => drop(AFFINITY.insert(key, value.0, BPF_ANY.into())),
        }
    }
}
