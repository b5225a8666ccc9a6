//! `connect()` and `getpeername()`.

use aya_ebpf::programs::SockAddrContext;
use proxy_abi::{Address4, Address6, Flow, Port, mapped, unmapped};

use crate::PROCEED;
use crate::maps::PEER;
use crate::pick::{Target, endpoint4, endpoint6, service4, service6};
use crate::sockaddr::{address4, address6, port, protocol, refuse, set4, set6};

pub(crate) fn connect4(ctx: &SockAddrContext) -> i32 {
    let Some(protocol) = protocol(ctx) else { return PROCEED };
    let (address, port) = (address4(ctx), port(ctx));
    let Some(service) = service4(address, port, protocol) else { return PROCEED };
    let Some(target) = endpoint4(service) else { return refuse() };
    remember(ctx, service, mapped(address), port, &through_mapped(&target));
    set4(ctx, target.address, target.port);
    PROCEED
}

pub(crate) fn connect6(ctx: &SockAddrContext) -> i32 {
    let Some(protocol) = protocol(ctx) else { return PROCEED };
    let (address, port) = (address6(ctx), port(ctx));
    if let Some(four) = unmapped(address) {
        return connect_mapped(ctx, four, port, protocol);
    }
    let Some(service) = service6(address, port, protocol) else { return PROCEED };
    let Some(target) = endpoint6(service) else { return refuse() };
    remember(ctx, service, address, port, &target);
    set6(ctx, target.address, target.port);
    PROCEED
}

/// An IPv6 socket that dials an IPv4 service as `::ffff:a.b.c.d`; `connect4` does not see it.
#[inline(always)]
fn connect_mapped(ctx: &SockAddrContext, address: Address4, port: Port, protocol: u8) -> i32 {
    let Some(service) = service4(address, port, protocol) else { return PROCEED };
    let Some(target) = endpoint4(service) else { return refuse() };
    let target = through_mapped(&target);
    remember(ctx, service, mapped(address), port, &target);
    set6(ctx, target.address, target.port);
    PROCEED
}

#[inline(always)]
fn through_mapped(target: &Target<Address4>) -> Target<Address6> {
    Target { address: mapped(target.address), port: target.port, reference: target.reference }
}

/// Keeps what was dialled, for `getpeername` and `recvmsg`. If the kernel has no memory for it the connection works all
/// the same; only the peer's name will be the endpoint's.
#[inline(always)]
fn remember(ctx: &SockAddrContext, service: u32, frontend: Address6, frontend_port: Port, target: &Target<Address6>) {
    // SAFETY: `ctx` is valid; the helper returns null or this socket's own storage.
    let flow = unsafe { PEER.get_or_insert_ptr_mut(ctx, None) };
    if !flow.is_null() {
        let value = Flow {
            frontend,
            backend: target.address,
            frontend_port,
            backend_port: target.port,
            reference: target.reference.0,
            service,
        };
        // SAFETY: not null, and the storage is as large as a `Flow`.
        unsafe { flow.write(value) };
    }
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
    (flow.backend_port == port && same(&flow.backend, &address)).then_some((flow.frontend, flow.frontend_port))
}

/// Word by word: `==` on arrays becomes a call of `memcmp`, which a BPF program cannot make.
#[inline(always)]
pub(crate) fn same(left: &Address6, right: &Address6) -> bool {
    let ([a, b, c, d], [e, f, g, h]) = (*left, *right);
    a == e && b == f && c == g && d == h
}
