//! The socket programs: a connect or a datagram to a frontend leaves the socket with the address of an endpoint, so no
//! packet is translated. Attached to the root of the pods' cgroup v2 tree.
//!
//! Kernel: 5.18 (cgroup programs with `bpf_set_retval`, socket storage). Rules: DP-1…21, TB-1…3.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(unsafe_code, reason = "a BPF program is made of raw pointers into kernel memory that the verifier checks")]

mod bind;
mod client;
mod connect;
mod datagram;
mod flows;
mod list;
mod maps;
mod object;
mod release;
mod sockaddr;
mod tables;

use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr};
use aya_ebpf::programs::{SockAddrContext, SockContext};

/// The hook lets the call go on.
const PROCEED: i32 = 1;
/// The hook ends the call with the value given to `bpf_set_retval`.
const DENY: i32 = 0;

#[cgroup_sock_addr(connect4)]
fn shunt_connect4(ctx: SockAddrContext) -> i32 {
    connect::connect4(&ctx)
}

#[cgroup_sock_addr(connect6)]
fn shunt_connect6(ctx: SockAddrContext) -> i32 {
    connect::connect6(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
fn shunt_getpeer4(ctx: SockAddrContext) -> i32 {
    connect::getpeername4(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
fn shunt_getpeer6(ctx: SockAddrContext) -> i32 {
    connect::getpeername6(&ctx)
}

#[cgroup_sock_addr(sendmsg4)]
fn shunt_sendmsg4(ctx: SockAddrContext) -> i32 {
    datagram::sendmsg4(&ctx)
}

#[cgroup_sock_addr(sendmsg6)]
fn shunt_sendmsg6(ctx: SockAddrContext) -> i32 {
    datagram::sendmsg6(&ctx)
}

#[cgroup_sock_addr(recvmsg4)]
fn shunt_recvmsg4(ctx: SockAddrContext) -> i32 {
    datagram::recvmsg4(&ctx)
}

#[cgroup_sock_addr(recvmsg6)]
fn shunt_recvmsg6(ctx: SockAddrContext) -> i32 {
    datagram::recvmsg6(&ctx)
}

#[cgroup_sock_addr(bind4)]
fn shunt_bind4(ctx: SockAddrContext) -> i32 {
    bind::bind4(&ctx)
}

#[cgroup_sock_addr(bind6)]
fn shunt_bind6(ctx: SockAddrContext) -> i32 {
    bind::bind6(&ctx)
}

// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
extern "C" fn shunt_flows_to(element: *const list::Element) -> i32 {
    list::to_frontends(element)
}

// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
extern "C" fn shunt_flows_end(element: *const list::Element) -> i32 {
    list::ended(element)
}

#[cgroup_sock(sock_release)]
fn shunt_release(ctx: SockContext) -> i32 {
    release::release(&ctx)
}

/// The crate is checked and linted on the host too; there is nothing to run there.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
