//! Access to `bpf_sock_addr` in the form the verifier takes: one plain 4-byte load or store per field at a constant
//! offset. A compiler that merges two of them or moves the pointer gets "dereference of modified ctx ptr", so every
//! access is volatile (DP-20).

use core::mem::offset_of;
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::bpf_set_retval;
use aya_ebpf::programs::SockAddrContext;
use proxy_abi::lookup::{NoEndpoint, reached4, reached6};
use proxy_abi::{Address4, Address6, Port};

use crate::{DENY, PROCEED};

const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_SCTP: u32 = 132;

/// Protocol number of UDP in an IP header.
pub(crate) const UDP: u8 = 17;

const ECONNREFUSED: i32 = 111;

const PROTOCOL: usize = offset_of!(bpf_sock_addr, protocol);
const ADDRESS4: usize = offset_of!(bpf_sock_addr, user_ip4);
const ADDRESS6: usize = offset_of!(bpf_sock_addr, user_ip6);
const PORT: usize = offset_of!(bpf_sock_addr, user_port);

#[inline(always)]
fn field(ctx: &SockAddrContext, offset: usize) -> *mut u32 {
    ctx.sock_addr.wrapping_byte_add(offset).cast()
}

#[inline(always)]
fn load(ctx: &SockAddrContext, offset: usize) -> u32 {
    // SAFETY: the kernel passes a valid context, and `offset` is that of one of its 4-byte fields.
    unsafe { read_volatile(field(ctx, offset)) }
}

#[inline(always)]
fn store(ctx: &SockAddrContext, offset: usize, value: u32) {
    // SAFETY: as in `load`; the field is one that these hooks may write, or the verifier refuses the program.
    unsafe { write_volatile(field(ctx, offset), value) };
}

/// Protocol number of a socket that can be load-balanced. Ping sockets reach these hooks with ICMP; their address is
/// kept.
#[inline(always)]
pub(crate) fn protocol(ctx: &SockAddrContext) -> Option<u8> {
    match load(ctx, PROTOCOL) {
        IPPROTO_TCP => Some(6),
        IPPROTO_UDP => Some(UDP),
        IPPROTO_SCTP => Some(132),
        _ => None,
    }
}

/// The IPv4 address the call is about. What the program remembers of it is what the kernel would show.
#[inline(always)]
pub(crate) fn address4(ctx: &SockAddrContext) -> Address4 {
    reached4(load(ctx, ADDRESS4))
}

/// The IPv6 address the call is about, as [`address4`].
#[inline(always)]
pub(crate) fn address6(ctx: &SockAddrContext) -> Address6 {
    reached6(bound6(ctx))
}

/// The IPv4 address that a `bind()` names; the unspecified one means all.
#[inline(always)]
pub(crate) fn bound4(ctx: &SockAddrContext) -> Address4 {
    load(ctx, ADDRESS4)
}

/// The IPv6 address that a `bind()` names; the unspecified one means all.
#[inline(always)]
pub(crate) fn bound6(ctx: &SockAddrContext) -> Address6 {
    [load(ctx, ADDRESS6), load(ctx, ADDRESS6 + 4), load(ctx, ADDRESS6 + 8), load(ctx, ADDRESS6 + 12)]
}

/// The port the call is about.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the kernel keeps a 16-bit port in this 32-bit field")]
pub(crate) fn port(ctx: &SockAddrContext) -> Port {
    load(ctx, PORT) as Port
}

/// Replaces IPv4 address and port.
#[inline(always)]
pub(crate) fn set4(ctx: &SockAddrContext, address: Address4, port: Port) {
    store(ctx, ADDRESS4, address);
    store(ctx, PORT, port.into());
}

/// Replaces IPv6 address and port.
#[inline(always)]
pub(crate) fn set6(ctx: &SockAddrContext, address: Address6, port: Port) {
    let [a, b, c, d] = address;
    store(ctx, ADDRESS6, a);
    store(ctx, ADDRESS6 + 4, b);
    store(ctx, ADDRESS6 + 8, c);
    store(ctx, ADDRESS6 + 12, d);
    store(ctx, PORT, port.into());
}

/// Makes the call fail with ECONNREFUSED, which a client of kube-proxy sees when there is no endpoint (NE-4). Without
/// it a hook that denies gives EPERM.
#[inline(always)]
pub(crate) fn refuse() -> i32 {
    // SAFETY: the helper takes an errno and touches no memory of ours.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    DENY
}

/// Ends a call that has no endpoint, or lets it keep its address.
#[inline(always)]
pub(crate) fn end(why: NoEndpoint) -> i32 {
    match why {
        NoEndpoint::NotHere(terms) if terms.keeps_destination() => PROCEED,
        NoEndpoint::NotHere(_) | NoEndpoint::Nowhere => refuse(),
        // A hook that denies gives EPERM, as does a firewall on the node.
        NoEndpoint::Denied => DENY,
    }
}
