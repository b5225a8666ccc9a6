//! `connect()` and `getpeername()`.

use aya_ebpf::programs::SockAddrContext;
use proxy_abi::lookup::{Meaning, NoEndpoint, V4, V6, endpoint, meaning};
use proxy_abi::{Address4, Address6, Port, mapped, unmapped};

use crate::client::Socket;
use crate::flows::flow;
use crate::sockaddr::{address4, address6, end, port, protocol, refuse, set4, set6};
use crate::tables::Kernel;
use crate::{PROCEED, flows};

pub(crate) fn connect4(ctx: &SockAddrContext) -> i32 {
    let Some(protocol) = protocol(ctx) else { return PROCEED };
    let (address, port) = (address4(ctx), port(ctx));
    let lead = match meaning::<V4, _, _>(&Kernel, &Socket(ctx), address, port, protocol) {
        Meaning::Frontend(lead) => lead,
        Meaning::Undefined => return refuse(),
        Meaning::Foreign => return leave(ctx, &mapped(address), port),
    };
    let target = match endpoint::<V4, _, _>(&Kernel, &Socket(ctx), lead) {
        Ok(target) => target,
        Err(why) => return end_connect(ctx, why, &mapped(address), port),
    };
    flows::connect(ctx, &flow(protocol, mapped(address), port, &target, mapped(target.address)));
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
        Meaning::Foreign => return leave(ctx, &address, port),
    };
    let target = match endpoint::<V6, _, _>(&Kernel, &Socket(ctx), lead) {
        Ok(target) => target,
        Err(why) => return end_connect(ctx, why, &address, port),
    };
    flows::connect(ctx, &flow(protocol, address, port, &target, target.address));
    set6(ctx, target.address, target.port);
    PROCEED
}

/// An IPv6 socket that dials an IPv4 service as `::ffff:a.b.c.d`; `connect4` does not see it.
#[inline(always)]
fn connect_mapped(ctx: &SockAddrContext, address: Address4, port: Port, protocol: u8) -> i32 {
    let lead = match meaning::<V4, _, _>(&Kernel, &Socket(ctx), address, port, protocol) {
        Meaning::Frontend(lead) => lead,
        Meaning::Undefined => return refuse(),
        Meaning::Foreign => return leave(ctx, &mapped(address), port),
    };
    let target = match endpoint::<V4, _, _>(&Kernel, &Socket(ctx), lead) {
        Ok(target) => target,
        Err(why) => return end_connect(ctx, why, &mapped(address), port),
    };
    let backend = mapped(target.address);
    flows::connect(ctx, &flow(protocol, mapped(address), port, &target, backend));
    set6(ctx, backend, target.port);
    PROCEED
}

/// A call that has no endpoint ends, or connects to the frontend itself.
#[inline(always)]
fn end_connect(ctx: &SockAddrContext, why: NoEndpoint, address: &Address6, port: Port) -> i32 {
    match why {
        NoEndpoint::NotHere(terms) if terms.keeps_destination() => leave(ctx, address, port),
        NoEndpoint::NotHere(_) | NoEndpoint::Nowhere | NoEndpoint::Denied => end(why),
    }
}

/// The socket connects to an address that is none of ours.
#[inline(always)]
fn leave(ctx: &SockAddrContext, address: &Address6, port: Port) -> i32 {
    flows::connect_directly(ctx, address, port);
    PROCEED
}

pub(crate) fn getpeername4(ctx: &SockAddrContext) -> i32 {
    if let Some((address, port)) = flows::dialled(ctx, &mapped(address4(ctx)), port(ctx)) {
        let [_, _, _, four] = address;
        set4(ctx, four, port);
    }
    PROCEED
}

pub(crate) fn getpeername6(ctx: &SockAddrContext) -> i32 {
    if let Some((address, port)) = flows::dialled(ctx, &address6(ctx), port(ctx)) {
        set6(ctx, address, port);
    }
    PROCEED
}
