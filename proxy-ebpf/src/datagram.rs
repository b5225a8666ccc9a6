//! Unconnected UDP: `sendto()` to a frontend and the answer that `recvfrom()` shows.
//!
//! A socket stays with its endpoint for each frontend while that endpoint serves, whatever joins or leaves beside it
//! (spec/datapath.md 3.1 trap 6).

use aya_ebpf::programs::SockAddrContext;
use proxy_abi::{Address4, Address6, DatagramFlows, Flow, Port, mapped, socket::FLOWS};

use crate::PROCEED;
use crate::connect::{dialled, same};
use crate::maps::DATAGRAMS;
use crate::pick::{Target, alive4, alive6, endpoint4, endpoint6, service4, service6};
use crate::sockaddr::{address4, address6, port, protocol, refuse, set4, set6};

pub(crate) fn sendmsg4(ctx: &SockAddrContext) -> i32 {
    let Some(protocol) = protocol(ctx) else { return PROCEED };
    let (address, port) = (address4(ctx), port(ctx));
    let Some(service) = service4(address, port, protocol) else {
        forget(ctx, &mapped(address), port);
        return PROCEED;
    };
    let flows = storage(ctx);
    let kept = known(flows, &mapped(address), port, service).and_then(|flow| alive4(flow.reference()));
    if let Some(target) = kept {
        set4(ctx, target.address, target.port);
        return PROCEED;
    }
    let Some(Target { address: backend, port: backend_port, reference }) = endpoint4(service) else { return refuse() };
    let (frontend, backend6) = (mapped(address), mapped(backend));
    let flow = Flow { frontend, backend: backend6, frontend_port: port, backend_port, reference: reference.0, service };
    remember(flows, &flow);
    set4(ctx, backend, backend_port);
    PROCEED
}

pub(crate) fn sendmsg6(ctx: &SockAddrContext) -> i32 {
    // An IPv4-mapped destination goes through sendmsg4, so there is no such case here.
    let Some(protocol) = protocol(ctx) else { return PROCEED };
    let (address, port) = (address6(ctx), port(ctx));
    let Some(service) = service6(address, port, protocol) else {
        forget(ctx, &address, port);
        return PROCEED;
    };
    let flows = storage(ctx);
    let kept = known(flows, &address, port, service).and_then(|flow| alive6(flow.reference()));
    if let Some(target) = kept {
        set6(ctx, target.address, target.port);
        return PROCEED;
    }
    let Some(Target { address: backend, port: backend_port, reference }) = endpoint6(service) else { return refuse() };
    let flow = Flow { frontend: address, backend, frontend_port: port, backend_port, reference: reference.0, service };
    remember(flows, &flow);
    set6(ctx, backend, backend_port);
    PROCEED
}

pub(crate) fn recvmsg4(ctx: &SockAddrContext) -> i32 {
    if let Some((address, port)) = sender(ctx, mapped(address4(ctx)), port(ctx)) {
        let [_, _, _, four]: Address6 = address;
        let four: Address4 = four;
        set4(ctx, four, port);
    }
    PROCEED
}

pub(crate) fn recvmsg6(ctx: &SockAddrContext) -> i32 {
    if let Some((address, port)) = sender(ctx, address6(ctx), port(ctx)) {
        set6(ctx, address, port);
    }
    PROCEED
}

#[inline(always)]
fn storage(ctx: &SockAddrContext) -> *mut DatagramFlows {
    // SAFETY: `ctx` is valid; the helper returns null or this socket's own storage.
    unsafe { DATAGRAMS.get_or_insert_ptr_mut(ctx, None) }
}

/// The flow to a frontend, if the socket has one for the service that owns the frontend now.
#[inline(always)]
fn known<'a>(flows: *mut DatagramFlows, address: &Address6, port: Port, service: u32) -> Option<&'a Flow> {
    if flows.is_null() {
        return None;
    }
    // SAFETY: not null, and the storage is as large as a `DatagramFlows` and lives as long as the program runs.
    let flows = unsafe { &(*flows).flows };
    flows.iter().find(|flow| flow.frontend_port == port && flow.service == service && same(&flow.frontend, address))
}

/// Keeps a flow, in the place of an older one to the same frontend if there is one.
#[inline(always)]
fn remember(flows: *mut DatagramFlows, flow: &Flow) {
    if flows.is_null() {
        return;
    }
    // SAFETY: as in `known`; only this socket's calls write here, and a lost race costs one entry.
    let flows = unsafe { &mut *flows };
    for old in &mut flows.flows {
        if old.frontend_port == flow.frontend_port && same(&old.frontend, &flow.frontend) {
            *old = *flow;
            return;
        }
    }
    let place = flows.next as usize % FLOWS;
    flows.next = flows.next.wrapping_add(1);
    if let Some(old) = flows.flows.get_mut(place) {
        *old = *flow;
    }
}

/// A datagram sent to an endpoint's own address ends the flow that led there: answers are the endpoint's now
/// (spec/datapath.md 3.1 trap 8).
#[inline(always)]
fn forget(ctx: &SockAddrContext, address: &Address6, port: Port) {
    // SAFETY: `ctx` is valid; the helper returns null or this socket's own storage.
    let flows = unsafe { DATAGRAMS.get_ptr_mut(ctx) };
    if flows.is_null() {
        return;
    }
    // SAFETY: as in `remember`.
    for flow in unsafe { &mut (*flows).flows } {
        if flow.backend_port == port && same(&flow.backend, address) {
            *flow = Flow::default();
        }
    }
}

/// The frontend that the socket dialled to reach this sender.
#[inline(always)]
fn sender(ctx: &SockAddrContext, address: Address6, port: Port) -> Option<(Address6, Port)> {
    // SAFETY: `ctx` is valid; the helper returns null or this socket's own storage.
    let flows = unsafe { DATAGRAMS.get_ptr_mut(ctx) };
    if !flows.is_null() {
        // SAFETY: as in `known`.
        for flow in unsafe { &(*flows).flows } {
            if flow.frontend_port != 0 && flow.backend_port == port && same(&flow.backend, &address) {
                return Some((flow.frontend, flow.frontend_port));
            }
        }
    }
    dialled(ctx, address, port)
}
