//! Access to `bpf_sock_addr` in the form the verifier takes: one plain 4-byte load or store per field at a constant
//! offset. A compiler that merges two of them or moves the pointer gets "dereference of modified ctx ptr", so every
//! access is volatile (spec/datapath.md trap 20).

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::helpers::bpf_set_retval;
use aya_ebpf::programs::SockAddrContext;
use proxy_abi::{Address4, Address6, Port};

const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_SCTP: u32 = 132;

const ECONNREFUSED: i32 = 111;

/// Protocol number of a socket that can be load-balanced. Ping sockets reach these hooks with ICMP and stay as they are.
#[inline(always)]
pub(crate) fn protocol(ctx: &SockAddrContext) -> Option<u8> {
    // SAFETY: the kernel passes a valid context; this reads one of its 4-byte fields.
    match unsafe { read_volatile(addr_of!((*ctx.sock_addr).protocol)) } {
        IPPROTO_TCP => Some(6),
        IPPROTO_UDP => Some(17),
        IPPROTO_SCTP => Some(132),
        _ => None,
    }
}

/// The IPv4 address the call is about.
#[inline(always)]
pub(crate) fn address4(ctx: &SockAddrContext) -> Address4 {
    // SAFETY: as in `protocol`.
    unsafe { read_volatile(addr_of!((*ctx.sock_addr).user_ip4)) }
}

/// The IPv6 address the call is about.
#[inline(always)]
pub(crate) fn address6(ctx: &SockAddrContext) -> Address6 {
    // SAFETY: as in `protocol`.
    let a = unsafe { read_volatile(addr_of!((*ctx.sock_addr).user_ip6[0])) };
    // SAFETY: as in `protocol`.
    let b = unsafe { read_volatile(addr_of!((*ctx.sock_addr).user_ip6[1])) };
    // SAFETY: as in `protocol`.
    let c = unsafe { read_volatile(addr_of!((*ctx.sock_addr).user_ip6[2])) };
    // SAFETY: as in `protocol`.
    let d = unsafe { read_volatile(addr_of!((*ctx.sock_addr).user_ip6[3])) };
    [a, b, c, d]
}

/// The port the call is about.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the kernel keeps a 16-bit port in this 32-bit field")]
pub(crate) fn port(ctx: &SockAddrContext) -> Port {
    // SAFETY: as in `protocol`.
    unsafe { read_volatile(addr_of!((*ctx.sock_addr).user_port)) as Port }
}

/// Replaces IPv4 address and port.
#[inline(always)]
pub(crate) fn set4(ctx: &SockAddrContext, address: Address4, port: Port) {
    // SAFETY: the kernel passes a valid context; this writes a field that these hooks may write.
    unsafe { write_volatile(addr_of_mut!((*ctx.sock_addr).user_ip4), address) };
    set_port(ctx, port);
}

/// Replaces IPv6 address and port.
#[inline(always)]
pub(crate) fn set6(ctx: &SockAddrContext, address: Address6, port: Port) {
    let [a, b, c, d] = address;
    // SAFETY: as in `set4`.
    unsafe { write_volatile(addr_of_mut!((*ctx.sock_addr).user_ip6[0]), a) };
    // SAFETY: as in `set4`.
    unsafe { write_volatile(addr_of_mut!((*ctx.sock_addr).user_ip6[1]), b) };
    // SAFETY: as in `set4`.
    unsafe { write_volatile(addr_of_mut!((*ctx.sock_addr).user_ip6[2]), c) };
    // SAFETY: as in `set4`.
    unsafe { write_volatile(addr_of_mut!((*ctx.sock_addr).user_ip6[3]), d) };
    set_port(ctx, port);
}

#[inline(always)]
fn set_port(ctx: &SockAddrContext, port: Port) {
    // SAFETY: as in `set4`.
    unsafe { write_volatile(addr_of_mut!((*ctx.sock_addr).user_port), port.into()) };
}

/// Makes the call fail with ECONNREFUSED, what a client of kube-proxy sees when nobody serves (spec NE-4). Without it
/// a hook that denies gives EPERM.
#[inline(always)]
pub(crate) fn refuse() -> i32 {
    // SAFETY: the helper takes an errno and touches no memory of ours.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    crate::DENY
}
