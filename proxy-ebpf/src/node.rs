//! What the daemon told of the node: which network namespace is its own, and which are left alone.

use core::mem::offset_of;

use aya_ebpf::helpers::bpf_get_netns_cookie;
use aya_ebpf::programs::SockAddrContext;
use proxy_abi::{Config, Namespace};

use crate::maps::{CONFIG, NAMESPACES};
use crate::pick::word;

/// Cookie of the network namespace of the socket.
#[inline(always)]
pub(crate) fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: `ctx` is valid; the helper only reads.
    unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) }
}

#[inline(always)]
fn config(offset: usize) -> u64 {
    match CONFIG.get_ptr(0) {
        Some(config) => word(config.cast(), offset / 8),
        None => 0,
    }
}

/// Cookie of the node's own network namespace.
#[inline(always)]
pub(crate) fn host_cookie() -> u64 {
    config(offset_of!(Config, host_cookie))
}

/// Whether a flag of [`Config`] is set.
#[inline(always)]
pub(crate) fn flag(flag: u64) -> bool {
    config(offset_of!(Config, flags)) & flag != 0
}

/// The socket is in the node's own namespace, and not in a pod's.
#[inline(always)]
pub(crate) fn is_of_node(ctx: &SockAddrContext) -> bool {
    cookie(ctx) == host_cookie()
}

/// The socket's pod has opted out.
#[inline(always)]
pub(crate) fn is_left_alone(ctx: &SockAddrContext) -> bool {
    flag(Config::OPT_OUTS)
        && namespace(cookie(ctx)).is_some_and(|namespace| namespace.flags & Namespace::OPTED_OUT != 0)
}

/// What the daemon knows of a namespace.
#[inline(always)]
pub(crate) fn namespace(cookie: u64) -> Option<Namespace> {
    // SAFETY: an element is replaced and not rewritten; one recycled this instant belonged to a namespace that is gone.
    unsafe { NAMESPACES.get(cookie) }.copied()
}
