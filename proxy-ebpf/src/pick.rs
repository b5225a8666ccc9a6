//! From what a client dials to the endpoint it gets.

use core::ptr::read_volatile;

use aya_ebpf::helpers::bpf_get_prandom_u32;
use proxy_abi::{
    Address4, Address6, Backend4, Backend6, BackendRef, Extent, FrontendKey4, FrontendKey6, FrontendValue, Port, Slot,
};

use crate::maps::{BACKENDS4, BACKENDS6, DIRECTORY, FRONTENDS4, FRONTENDS6, SLOTS};

/// A removed backend dies only after its slot is out of sight, so a reader that meets a dead one has read an old
/// extent and finds a living one at its next try. More than two changes during one pick do not happen.
const TRIES: u32 = 4;

/// An endpoint to send to.
pub(crate) struct Target<A> {
    pub(crate) address: A,
    pub(crate) port: Port,
    pub(crate) reference: BackendRef,
}

/// The service behind an IPv4 frontend.
#[inline(always)]
pub(crate) fn service4(address: Address4, port: Port, protocol: u8) -> Option<u32> {
    let key = FrontendKey4 { address, port, protocol, scope: 0 };
    // SAFETY: the element may be recycled while we look; the fingerprint below tells.
    let value = unsafe { FRONTENDS4.get(key) }?;
    service(value, key.fingerprint())
}

/// The service behind an IPv6 frontend.
#[inline(always)]
pub(crate) fn service6(address: Address6, port: Port, protocol: u8) -> Option<u32> {
    let key = FrontendKey6 { address, port, protocol, scope: 0 };
    // SAFETY: as in `service4`.
    let value = unsafe { FRONTENDS6.get(key) }?;
    service(value, key.fingerprint())
}

#[inline(always)]
fn service(value: *const u64, fingerprint: u32) -> Option<u32> {
    let value = FrontendValue(word(value, 0));
    (value.fingerprint() == fingerprint).then_some(value.service())
}

/// A random endpoint of an IPv4 service; `None` if it has none.
#[inline(always)]
pub(crate) fn endpoint4(service: u32) -> Option<Target<Address4>> {
    for _ in 0..TRIES {
        let reference = choose(service)?;
        if let Some(target) = alive4(reference) {
            return Some(target);
        }
    }
    None
}

/// A random endpoint of an IPv6 service; `None` if it has none.
#[inline(always)]
pub(crate) fn endpoint6(service: u32) -> Option<Target<Address6>> {
    for _ in 0..TRIES {
        let reference = choose(service)?;
        if let Some(target) = alive6(reference) {
            return Some(target);
        }
    }
    None
}

#[inline(always)]
fn choose(service: u32) -> Option<BackendRef> {
    let entry = DIRECTORY.get_ptr(service)?;
    let extent = Extent(word(entry.cast(), 0));
    if extent.all() == 0 {
        return None;
    }
    let slot = SLOTS.get_ptr(extent.base() + below(extent.all()))?;
    Some(Slot(word(slot, 0)).backend())
}

/// One aligned word of a map element, read once: the daemon may write it at any moment.
#[inline(always)]
fn word(element: *const u64, at: usize) -> u64 {
    // SAFETY: callers pass an element of a map that has this word; it stays readable until the program ends.
    unsafe { read_volatile(element.wrapping_add(at)) }
}

/// A random number below `count`, by multiplication: as even as a modulo and without the division.
#[inline(always)]
fn below(count: u32) -> u32 {
    // SAFETY: the helper takes and touches nothing.
    let random = unsafe { bpf_get_prandom_u32() };
    ((u64::from(random) * u64::from(count)) >> 32) as u32
}

/// The endpoint behind a reference, unless it has left.
#[inline(always)]
pub(crate) fn alive4(reference: BackendRef) -> Option<Target<Address4>> {
    let backend: *const Backend4 = BACKENDS4.get_ptr(reference.index())?;
    let life = word(backend.cast(), 0);
    (Backend4::generation(life) == reference.generation()).then_some(Target {
        address: Backend4::address(life),
        port: Backend4::port(life),
        reference,
    })
}

/// The endpoint behind a reference, unless it has left.
#[inline(always)]
pub(crate) fn alive6(reference: BackendRef) -> Option<Target<Address6>> {
    let backend: *const Backend6 = BACKENDS6.get_ptr(reference.index())?;
    let life = word(backend.cast(), Backend6::LIFE);
    let (first, second) = (word(backend.cast(), 0), word(backend.cast(), 1));
    (Backend6::generation(life) == reference.generation()).then_some(Target {
        address: Backend6::address(first, second),
        port: Backend6::port(life),
        reference,
    })
}
