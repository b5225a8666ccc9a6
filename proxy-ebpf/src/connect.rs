//! `connect()` and `getpeername()`.

use aya_ebpf::helpers::bpf_get_socket_cookie;
use aya_ebpf::programs::SockAddrContext;
use proxy_abi::lookup::{Meaning, Target, V4, V6, endpoint, meaning};
use proxy_abi::{Address4, Address6, Flow, Lead, Port, mapped, same, unmapped};

use crate::PROCEED;
use crate::client::Socket;
use crate::maps::{CONNECTED, PEER};
use crate::sockaddr::{UDP, address4, address6, end, port, protocol, refuse, set4, set6};
use crate::tables::Kernel;

pub(crate) fn connect4(ctx: &SockAddrContext) -> i32 {
    let Some(protocol) = protocol(ctx) else { return PROCEED };
    let (address, port) = (address4(ctx), port(ctx));
    let lead = match meaning::<V4, _, _>(&Kernel, &Socket(ctx), address, port, protocol) {
        Meaning::Frontend(lead) => lead,
        Meaning::Undefined => return refuse(),
        Meaning::Foreign => return forget(ctx),
    };
    let target = match endpoint::<V4, _, _>(&Kernel, &Socket(ctx), lead) {
        Ok(target) => target,
        Err(why) => return end(why),
    };
    remember(ctx, protocol, &flow(lead, mapped(address), port, &through_mapped(&target)));
    set4(ctx, target.address, target.port);
    PROCEED
}

pub(crate) fn connect6(ctx: &SockAddrContext) -> i32 {
    let Some(protocol) = protocol(ctx) else { return PROCEED };
    let (address, port) = (address6(ctx), port(ctx));
    if let Some(four) = unmapped(address) {
        return connect_mapped(ctx, four, port, protocol);
    }
    let lead = match meaning::<V6, _, _>(&Kernel, &Socket(ctx), address, port, protocol) {
        Meaning::Frontend(lead) => lead,
        Meaning::Undefined => return refuse(),
        Meaning::Foreign => return forget(ctx),
    };
    let target = match endpoint::<V6, _, _>(&Kernel, &Socket(ctx), lead) {
        Ok(target) => target,
        Err(why) => return end(why),
    };
    remember(ctx, protocol, &flow(lead, address, port, &target));
    set6(ctx, target.address, target.port);
    PROCEED
}

/// An IPv6 socket that dials an IPv4 service as `::ffff:a.b.c.d`; `connect4` does not see it.
#[inline(always)]
fn connect_mapped(ctx: &SockAddrContext, address: Address4, port: Port, protocol: u8) -> i32 {
    let lead = match meaning::<V4, _, _>(&Kernel, &Socket(ctx), address, port, protocol) {
        Meaning::Frontend(lead) => lead,
        Meaning::Undefined => return refuse(),
        Meaning::Foreign => return forget(ctx),
    };
    let target = match endpoint::<V4, _, _>(&Kernel, &Socket(ctx), lead) {
        Ok(target) => through_mapped(&target),
        Err(why) => return end(why),
    };
    remember(ctx, protocol, &flow(lead, mapped(address), port, &target));
    set6(ctx, target.address, target.port);
    PROCEED
}

#[inline(always)]
fn through_mapped(target: &Target<Address4>) -> Target<Address6> {
    Target { address: mapped(target.address), port: target.port, reference: target.reference }
}

#[inline(always)]
fn flow(lead: Lead, frontend: Address6, frontend_port: Port, target: &Target<Address6>) -> Flow {
    let Target { address: backend, port: backend_port, reference } = *target;
    Flow { frontend, backend, frontend_port, backend_port, reference: reference.0, service: lead.service }
}

/// Keeps what was dialled, for `getpeername` and `recvmsg`. If the kernel has no memory for it, the connection still
/// works, but `getpeername` shows the endpoint.
#[inline(always)]
fn remember(ctx: &SockAddrContext, protocol: u8, flow: &Flow) {
    // SAFETY: `ctx` is valid; the helper returns null or this socket's own storage.
    let kept = unsafe { PEER.get_or_insert_ptr_mut(ctx, None) };
    if !kept.is_null() {
        // SAFETY: not null, and the storage is as large as a `Flow`.
        unsafe { kept.write(*flow) };
    }
    if protocol == UDP {
        // SAFETY: `ctx` is valid; the helper only reads.
        let cookie = unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) };
        // Without room the socket is not found when its endpoint leaves.
        let (Ok(()) | Err(_)) = CONNECTED.insert(cookie, flow, 0);
    }
}

/// Forgets what the socket dialled before, since it connects to another address now.
#[inline(always)]
fn forget(ctx: &SockAddrContext) -> i32 {
    // SAFETY: `ctx` is valid; the helper returns null or this socket's own storage.
    let flow = unsafe { PEER.get_ptr_mut(ctx) };
    if !flow.is_null() {
        // SAFETY: not null, and the storage is as large as a `Flow`.
        unsafe { flow.write(Flow::default()) };
    }
    PROCEED
}

pub(crate) fn getpeername4(ctx: &SockAddrContext) -> i32 {
    if let Some((address, port)) = dialled(ctx, mapped(address4(ctx)), port(ctx)) {
        let [_, _, _, four] = address;
        set4(ctx, four, port);
    }
    PROCEED
}

pub(crate) fn getpeername6(ctx: &SockAddrContext) -> i32 {
    if let Some((address, port)) = dialled(ctx, address6(ctx), port(ctx)) {
        set6(ctx, address, port);
    }
    PROCEED
}

/// What the socket dialled, if the peer is the endpoint it got for that.
#[inline(always)]
pub(crate) fn dialled(ctx: &SockAddrContext, address: Address6, port: Port) -> Option<(Address6, Port)> {
    // SAFETY: `ctx` is valid; the helper returns null or this socket's own storage.
    let flow = unsafe { PEER.get_ptr_mut(ctx) };
    if flow.is_null() {
        return None;
    }
    // SAFETY: not null, and the storage is as large as a `Flow`.
    let flow = unsafe { &*flow };
    let is_peer = flow.frontend_port != 0 && flow.backend_port == port && same(&flow.backend, &address);
    is_peer.then_some((flow.frontend, flow.frontend_port))
}
