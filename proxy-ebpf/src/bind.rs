//! `bind()`: a process of the node cannot take a port that is a node port, where it would wait for connections that
//! never come (TP-7, DP-12).
//!
//! Before the bind, because only then the program sees whether a port was asked for. A port that the kernel chooses is
//! left alone: an error would break a client that does not care about its port.

use core::mem::offset_of;
use core::ptr::read_volatile;

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_set_retval, bpf_skc_to_tcp6_sock, bpf_skc_to_udp6_sock};
use aya_ebpf::programs::SockAddrContext;
use proxy_abi::bind::{is_node_port, is_node_port_of_ipv6_socket};
use proxy_abi::lookup::V4;
use proxy_abi::{Config, Port};

use crate::client::host_cookie;
use crate::sockaddr::{UDP, bound4, bound6, port, protocol};
use crate::tables::{Kernel, config};
use crate::{DENY, PROCEED};

const EADDRINUSE: i32 = 98;

/// Where the context has its pointer to the socket, `sk`.
const SOCK: usize = offset_of!(bpf_sock_addr, __bindgen_anon_1);

pub(crate) fn bind4(ctx: &SockAddrContext) -> i32 {
    let Some((protocol, port)) = wanted(ctx) else { return PROCEED };
    if is_node_port::<V4, _>(&Kernel, bound4(ctx), port, protocol) { in_use() } else { PROCEED }
}

pub(crate) fn bind6(ctx: &SockAddrContext) -> i32 {
    let Some((protocol, port)) = wanted(ctx) else { return PROCEED };
    let v6only = || is_v6only(ctx, protocol);
    if is_node_port_of_ipv6_socket(&Kernel, bound6(ctx), v6only, port, protocol) { in_use() } else { PROCEED }
}

/// Protocol and port, if this bind must be checked.
#[inline(always)]
fn wanted(ctx: &SockAddrContext) -> Option<(u8, Port)> {
    let (protocol, port) = (protocol(ctx)?, port(ctx));
    if port == 0 || config(Config::FLAGS) & Config::BIND_PROTECTION == 0 {
        return None;
    }
    // SAFETY: `ctx` is valid; the helper only reads.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
    if cookie == host_cookie() { Some((protocol, port)) } else { None }
}

#[inline(always)]
fn in_use() -> i32 {
    // SAFETY: the helper takes an errno and touches no memory of ours.
    unsafe { bpf_set_retval(-EADDRINUSE) };
    DENY
}

/// Whether the socket has the option `IPV6_V6ONLY`, as far as the daemon knows where this kernel keeps it.
#[inline(always)]
fn is_v6only(ctx: &SockAddrContext, protocol: u8) -> bool {
    if config(Config::FLAGS) & Config::KNOWS_V6ONLY == 0 {
        return false;
    }
    let field: *const *mut bpf_sock = ctx.sock_addr.wrapping_byte_add(SOCK).cast();
    // SAFETY: the kernel passes a valid context, whose field at this offset is a pointer of 8 bytes that is never null.
    let sock = unsafe { read_volatile(field) };
    let common: *const u8 = if protocol == UDP {
        // SAFETY: the helper returns null or the socket as the kernel's own type.
        unsafe { bpf_skc_to_udp6_sock(sock.cast()) }.cast()
    } else {
        // SAFETY: as above.
        unsafe { bpf_skc_to_tcp6_sock(sock.cast()) }.cast()
    };
    if common.is_null() {
        return false;
    }
    // SAFETY: every kind of socket begins with a `sock_common`, and the verifier checks that it has this byte.
    let byte = unsafe { read_volatile(common.wrapping_add((Config::V6ONLY_BIT / 8) as usize)) };
    byte & (1 << (Config::V6ONLY_BIT % 8)) != 0
}
