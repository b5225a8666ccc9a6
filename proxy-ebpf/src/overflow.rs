//! Flows of a UDP socket with more destinations than its own storage holds.

use aya_ebpf::helpers::bpf_get_socket_cookie;
use aya_ebpf::programs::SockAddrContext;
use proxy_abi::{Address6, Flow, OverflowKey, Port};

use crate::maps::OVERFLOW;

#[inline(always)]
fn key(ctx: &SockAddrContext, address: &Address6, port: Port, side: u16) -> OverflowKey {
    // SAFETY: `ctx` is valid; the helper only reads.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) };
    OverflowKey { cookie, address: *address, port, side, padding: 0 }
}

#[inline(always)]
fn find(key: &OverflowKey) -> Option<Flow> {
    // SAFETY: an element that is recycled this instant is that of a flow long unused.
    unsafe { OVERFLOW.get(key) }.copied()
}

/// The flow to a frontend.
#[inline(always)]
pub(crate) fn by_frontend(ctx: &SockAddrContext, address: &Address6, port: Port) -> Option<Flow> {
    find(&key(ctx, address, port, OverflowKey::DIALLED))
}

/// The flow to a backend.
#[inline(always)]
pub(crate) fn by_backend(ctx: &SockAddrContext, address: &Address6, port: Port) -> Option<Flow> {
    find(&key(ctx, address, port, OverflowKey::GOT))
}

/// Keeps a flow, so that the socket stays with its endpoint and answers are known. Without room the next datagram is
/// balanced anew.
#[inline(always)]
pub(crate) fn keep(ctx: &SockAddrContext, flow: &Flow) {
    let (Ok(()) | Err(_)) =
        OVERFLOW.insert(key(ctx, &flow.frontend, flow.frontend_port, OverflowKey::DIALLED), flow, 0);
    let (Ok(()) | Err(_)) = OVERFLOW.insert(key(ctx, &flow.backend, flow.backend_port, OverflowKey::GOT), flow, 0);
}

/// Removes the flow to a backend: its answers show the backend itself from now on.
#[inline(always)]
pub(crate) fn forget_backend(ctx: &SockAddrContext, address: &Address6, port: Port) {
    let (Ok(()) | Err(_)) = OVERFLOW.remove(key(ctx, address, port, OverflowKey::GOT));
}
