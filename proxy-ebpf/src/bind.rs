//! `bind()`: a process of the node cannot take a port that is a node port, where it would wait for connections that
//! never come (TP-7, DP-12).

use core::mem::offset_of;
use core::ptr::read_volatile;

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_set_retval};
use aya_ebpf::programs::SockContext;
use proxy_abi::lookup::{Family, V4, V6};
use proxy_abi::{Config, Port};

use crate::client::host_cookie;
use crate::tables::{Kernel, config};
use crate::{DENY, PROCEED};

const EADDRINUSE: i32 = 98;

#[inline(always)]
fn load(ctx: &SockContext, offset: usize) -> u32 {
    let field: *const u32 = ctx.sock.wrapping_byte_add(offset).cast();
    // SAFETY: the kernel passes a valid context, and `offset` is that of one of its 4-byte fields.
    unsafe { read_volatile(field) }
}

/// Protocol and port, if this bind must be checked; the port is in network order.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the kernel keeps 8 and 16 bits in these 32-bit fields")]
fn bound(ctx: &SockContext) -> Option<(u8, u16)> {
    // SAFETY: `ctx` is valid; the helper only reads.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.sock.cast()) };
    if cookie != host_cookie() || config(Config::FLAGS) & Config::BIND_PROTECTION == 0 {
        return None;
    }
    let port = load(ctx, offset_of!(bpf_sock, src_port)) as u16;
    Some((load(ctx, offset_of!(bpf_sock, protocol)) as u8, port.to_be()))
}

#[inline(always)]
fn in_use() -> i32 {
    // SAFETY: the helper takes an errno and touches no memory of ours.
    unsafe { bpf_set_retval(-EADDRINUSE) };
    DENY
}

pub(crate) fn post_bind4(ctx: &SockContext) -> i32 {
    let Some((protocol, port)) = bound(ctx) else { return PROCEED };
    if is_node_port::<V4>(port, protocol) { in_use() } else { PROCEED }
}

pub(crate) fn post_bind6(ctx: &SockContext) -> i32 {
    let Some((protocol, port)) = bound(ctx) else { return PROCEED };
    // A socket bound to [::] usually takes IPv4 as well.
    if is_node_port::<V6>(port, protocol) || is_node_port::<V4>(port, protocol) { in_use() } else { PROCEED }
}

#[inline(always)]
fn is_node_port<F: Family>(port: Port, protocol: u8) -> bool {
    F::lead(&Kernel, None, port, protocol).is_some()
}
