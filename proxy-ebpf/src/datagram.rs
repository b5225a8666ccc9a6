//! Unconnected UDP: `sendto()` to a frontend and the answer that `recvfrom()` shows.
//!
//! A socket stays with its endpoint for each frontend while that endpoint serves, whatever joins or leaves beside it
//! (DP-6).

use aya_ebpf::programs::SockAddrContext;
use proxy_abi::lookup::{Family, Meaning, Target, V4, V6, endpoint, may_go_on, meaning};
use proxy_abi::{Address6, Lead, Port, mapped};

use crate::client::Socket;
use crate::flows::flow;
use crate::sockaddr::{UDP, address4, address6, end, port, protocol, refuse, set4, set6};
use crate::tables::Kernel;
use crate::{PROCEED, flows};

pub(crate) fn sendmsg4(ctx: &SockAddrContext) -> i32 {
    let Some(protocol) = protocol(ctx) else { return PROCEED };
    let (address, port) = (address4(ctx), port(ctx));
    let frontend = mapped(address);
    let lead = match meaning::<V4, _, _>(&Kernel, &Socket(ctx), address, port, protocol) {
        Meaning::Frontend(lead) => lead,
        Meaning::Undefined => return refuse(),
        Meaning::Foreign => return leave(ctx, &frontend, port),
    };
    let (target, is_kept) = match kept::<V4>(ctx, &frontend, port, lead) {
        Some(kept) => kept,
        None => match endpoint::<V4, _, _>(&Kernel, &Socket(ctx), lead) {
            Ok(target) => (target, false),
            Err(why) => return end(why),
        },
    };
    if !is_kept {
        flows::send(ctx, &flow(UDP, frontend, port, &target, mapped(target.address)));
    }
    set4(ctx, target.address, target.port);
    PROCEED
}

pub(crate) fn sendmsg6(ctx: &SockAddrContext) -> i32 {
    // An IPv4-mapped destination goes through sendmsg4, so there is no such case here.
    let Some(protocol) = protocol(ctx) else { return PROCEED };
    let (address, port) = (address6(ctx), port(ctx));
    let lead = match meaning::<V6, _, _>(&Kernel, &Socket(ctx), address, port, protocol) {
        Meaning::Frontend(lead) => lead,
        Meaning::Undefined => return refuse(),
        Meaning::Foreign => return leave(ctx, &address, port),
    };
    let (target, is_kept) = match kept::<V6>(ctx, &address, port, lead) {
        Some(kept) => kept,
        None => match endpoint::<V6, _, _>(&Kernel, &Socket(ctx), lead) {
            Ok(target) => (target, false),
            Err(why) => return end(why),
        },
    };
    if !is_kept {
        flows::send(ctx, &flow(UDP, address, port, &target, target.address));
    }
    set6(ctx, target.address, target.port);
    PROCEED
}

pub(crate) fn recvmsg4(ctx: &SockAddrContext) -> i32 {
    if let Some((address, port)) = flows::sender(ctx, &mapped(address4(ctx)), port(ctx)) {
        let [_, _, _, four]: Address6 = address;
        set4(ctx, four, port);
    }
    PROCEED
}

pub(crate) fn recvmsg6(ctx: &SockAddrContext) -> i32 {
    if let Some((address, port)) = flows::sender(ctx, &address6(ctx), port(ctx)) {
        set6(ctx, address, port);
    }
    PROCEED
}

/// The endpoint that the socket has for a frontend, if it still serves there, and whether it is kept for datagrams.
#[inline(always)]
fn kept<F: Family>(
    ctx: &SockAddrContext,
    address: &Address6,
    port: Port,
    lead: Lead,
) -> Option<(Target<F::Address>, bool)> {
    let (flow, of_datagrams) = flows::to_frontend(ctx, address, port)?;
    let target = may_go_on::<F, _>(&Kernel, lead, flow.reference())?;
    Some((target, of_datagrams))
}

/// The datagram goes to an address that is none of ours.
#[inline(always)]
fn leave(ctx: &SockAddrContext, address: &Address6, port: Port) -> i32 {
    flows::send_directly(ctx, address, port);
    PROCEED
}
