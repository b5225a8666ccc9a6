//! What a destination means: a frontend of a Service, an address that refuses, or nothing of ours.

use aya_ebpf::programs::SockAddrContext;
use proxy_abi::{Address4, Address6, AddressValue, FrontendKey4, FrontendKey6, FrontendValue, Lead, Port, mapped};

use crate::maps::{ADDRESSES, FRONTENDS4, FRONTENDS6};
use crate::node::{is_left_alone, is_of_node};
use crate::pick::word;

/// See the module.
pub(crate) enum Meaning {
    /// A frontend.
    Frontend(Lead),
    /// A Service's own address at a port that it does not define (spec NE-11).
    Undefined,
    /// Not ours; the call goes on as it is.
    Foreign,
}

const LOOPBACK4: Address4 = u32::from_ne_bytes([127, 0, 0, 1]);
const LOOPBACK6: Address6 = [0, 0, 0, 1_u32.to_be()];

/// What an IPv4 destination means to the socket of `ctx`.
#[inline(always)]
pub(crate) fn meaning4(ctx: &SockAddrContext, address: Address4, port: Port, protocol: u8) -> Meaning {
    if let Some(lead) = frontend4(address, port, protocol) {
        return unless_left_alone(ctx, Meaning::Frontend(lead));
    }
    let [first, ..] = address.to_ne_bytes();
    // All of 127.0.0.0/8 is the node itself, if it is the node that asks: a pod means its own loopback.
    let known = match first {
        127 if is_of_node(ctx) => mapped(LOOPBACK4),
        127 => return Meaning::Foreign,
        _ => mapped(address),
    };
    let value = value(&known);
    match value.node().then(|| frontend4(0, port, protocol)) {
        Some(Some(lead)) => unless_left_alone(ctx, Meaning::Frontend(lead)),
        _ => undefined(ctx, value, port),
    }
}

/// What an IPv6 destination means to the socket of `ctx`; IPv4-mapped ones are for [`meaning4`].
#[inline(always)]
pub(crate) fn meaning6(ctx: &SockAddrContext, address: Address6, port: Port, protocol: u8) -> Meaning {
    if let Some(lead) = frontend6(address, port, protocol) {
        return unless_left_alone(ctx, Meaning::Frontend(lead));
    }
    if crate::connect::same(&address, &LOOPBACK6) && !is_of_node(ctx) {
        return Meaning::Foreign;
    }
    let value = value(&address);
    match value.node().then(|| frontend6([0; 4], port, protocol)) {
        Some(Some(lead)) => unless_left_alone(ctx, Meaning::Frontend(lead)),
        _ => undefined(ctx, value, port),
    }
}

/// Port 0 is how resolvers ask for the route to an address, and no service port.
#[inline(always)]
fn undefined(ctx: &SockAddrContext, value: AddressValue, port: Port) -> Meaning {
    if value.cluster() && port != 0 { unless_left_alone(ctx, Meaning::Undefined) } else { Meaning::Foreign }
}

#[inline(always)]
fn unless_left_alone(ctx: &SockAddrContext, meaning: Meaning) -> Meaning {
    if is_left_alone(ctx) { Meaning::Foreign } else { meaning }
}

#[inline(always)]
fn frontend4(address: Address4, port: Port, protocol: u8) -> Option<Lead> {
    let key = FrontendKey4 { address, port, protocol, scope: 0 };
    lead(FRONTENDS4.get_ptr(key)?, key.fingerprint())
}

#[inline(always)]
fn frontend6(address: Address6, port: Port, protocol: u8) -> Option<Lead> {
    let key = FrontendKey6 { address, port, protocol, scope: 0 };
    lead(FRONTENDS6.get_ptr(key)?, key.fingerprint())
}

/// The element may be recycled while we look; the fingerprint tells.
#[inline(always)]
fn lead(value: *const u64, fingerprint: u32) -> Option<Lead> {
    let value = FrontendValue(word(value, 0));
    (value.fingerprint() == fingerprint).then_some(value.lead())
}

/// What `ADDRESSES` says; as for frontends, a recycled element does not count.
#[inline(always)]
fn value(address: &Address6) -> AddressValue {
    let Some(value) = ADDRESSES.get_ptr(address) else { return AddressValue::default() };
    let value = AddressValue(word(value, 0));
    if value.is_of(address) { value } else { AddressValue::default() }
}
