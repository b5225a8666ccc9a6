//! Unconnected UDP: `sendto()` to a frontend and the answer that `recvfrom()` shows.
//!
//! A socket stays with its endpoint for each frontend while that endpoint serves, whatever joins or leaves beside it
//! (DP-6).

use aya_ebpf::programs::SockAddrContext;
use proxy_abi::lookup::{Family, Meaning, Target, V4, V6, endpoint, meaning};
use proxy_abi::{Address6, DatagramFlows, Flow, Lead, Port, mapped, same, socket::FLOWS};

use crate::client::Socket;
use crate::connect::dialled;
use crate::maps::DATAGRAMS;
use crate::sockaddr::{address4, address6, end, port, protocol, refuse, set4, set6};
use crate::tables::Kernel;
use crate::{PROCEED, overflow};

pub(crate) fn sendmsg4(ctx: &SockAddrContext) -> i32 {
    let Some(protocol) = protocol(ctx) else { return PROCEED };
    let (address, port) = (address4(ctx), port(ctx));
    let frontend = mapped(address);
    if let Some(target) = kept::<V4>(ctx, &frontend, port) {
        set4(ctx, target.address, target.port);
        return PROCEED;
    }
    let lead = match meaning::<V4, _, _>(&Kernel, &Socket(ctx), address, port, protocol) {
        Meaning::Frontend(lead) => lead,
        Meaning::Undefined => return refuse(),
        Meaning::Foreign => return forget(ctx, &frontend, port),
    };
    let target = match endpoint::<V4, _, _>(&Kernel, &Socket(ctx), lead) {
        Ok(target) => target,
        Err(why) => return end(why),
    };
    remember(ctx, &flow(lead, frontend, port, &target, mapped(target.address)));
    set4(ctx, target.address, target.port);
    PROCEED
}

pub(crate) fn sendmsg6(ctx: &SockAddrContext) -> i32 {
    // An IPv4-mapped destination goes through sendmsg4, so there is no such case here.
    let Some(protocol) = protocol(ctx) else { return PROCEED };
    let (address, port) = (address6(ctx), port(ctx));
    if let Some(target) = kept::<V6>(ctx, &address, port) {
        set6(ctx, target.address, target.port);
        return PROCEED;
    }
    let lead = match meaning::<V6, _, _>(&Kernel, &Socket(ctx), address, port, protocol) {
        Meaning::Frontend(lead) => lead,
        Meaning::Undefined => return refuse(),
        Meaning::Foreign => return forget(ctx, &address, port),
    };
    let target = match endpoint::<V6, _, _>(&Kernel, &Socket(ctx), lead) {
        Ok(target) => target,
        Err(why) => return end(why),
    };
    remember(ctx, &flow(lead, address, port, &target, target.address));
    set6(ctx, target.address, target.port);
    PROCEED
}

pub(crate) fn recvmsg4(ctx: &SockAddrContext) -> i32 {
    if let Some((address, port)) = sender(ctx, mapped(address4(ctx)), port(ctx)) {
        let [_, _, _, four]: Address6 = address;
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
fn flow<A>(lead: Lead, frontend: Address6, frontend_port: Port, target: &Target<A>, backend: Address6) -> Flow {
    let Target { address: _, port: backend_port, reference } = *target;
    Flow { frontend, backend, frontend_port, backend_port, reference: reference.0, service: lead.service }
}

/// The socket's flows, if it has ever sent to a frontend.
#[inline(always)]
fn flows<'a>(ctx: &SockAddrContext) -> Option<&'a mut DatagramFlows> {
    // SAFETY: `ctx` is valid; the helper returns null or this socket's own storage.
    let flows = unsafe { DATAGRAMS.get_ptr_mut(ctx) };
    if flows.is_null() {
        return None;
    }
    // SAFETY: not null, as large as a `DatagramFlows`, and alive as long as the program runs; only this socket's calls
    // write here, and a race between two of them costs one entry.
    Some(unsafe { &mut *flows })
}

/// The endpoint that the socket has for a frontend, if that still serves.
#[inline(always)]
fn kept<F: Family>(ctx: &SockAddrContext, address: &Address6, port: Port) -> Option<Target<F::Address>> {
    let flows = flows(ctx)?;
    for flow in &flows.flows {
        if flow.frontend_port == port && same(&flow.frontend, address) {
            return F::alive(&Kernel, flow.reference());
        }
    }
    if flows.next as usize <= FLOWS {
        return None;
    }
    F::alive(&Kernel, overflow::by_frontend(ctx, address, port)?.reference())
}

/// Keeps a flow, in the place of an older one to the same frontend if there is one.
#[inline(always)]
fn remember(ctx: &SockAddrContext, flow: &Flow) {
    // SAFETY: `ctx` is valid; the helper returns null or this socket's own storage.
    let flows = unsafe { DATAGRAMS.get_or_insert_ptr_mut(ctx, None) };
    if flows.is_null() {
        return;
    }
    // SAFETY: as in `flows`.
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
        if old.frontend_port != 0 {
            overflow::keep(ctx, old);
        }
        *old = *flow;
    }
}

/// A datagram sent to an endpoint's own address ends the flow that led there: from now on answers show the endpoint
/// (DP-8).
#[inline(always)]
fn forget(ctx: &SockAddrContext, address: &Address6, port: Port) -> i32 {
    if let Some(flows) = flows(ctx) {
        for flow in &mut flows.flows {
            if flow.backend_port == port && same(&flow.backend, address) {
                *flow = Flow::default();
            }
        }
        if flows.next as usize > FLOWS {
            overflow::forget_backend(ctx, address, port);
        }
    }
    PROCEED
}

/// The frontend that the socket dialled to reach this sender.
#[inline(always)]
fn sender(ctx: &SockAddrContext, address: Address6, port: Port) -> Option<(Address6, Port)> {
    if let Some(flows) = flows(ctx) {
        for flow in &flows.flows {
            if flow.frontend_port != 0 && flow.backend_port == port && same(&flow.backend, &address) {
                return Some((flow.frontend, flow.frontend_port));
            }
        }
        if flows.next as usize > FLOWS
            && let Some(flow) = overflow::by_backend(ctx, &address, port)
        {
            return Some((flow.frontend, flow.frontend_port));
        }
    }
    dialled(ctx, address, port)
}
