//! What a socket dialled and got: the one place that keeps it, finds it and forgets it.
//!
//! A connected socket has one flow (`PEER`), an unconnected UDP socket one for each frontend (`DATAGRAMS`, then
//! `FURTHER`). A UDP socket may be connected and unconnected in turn, so the last call decides to which frontend an
//! endpoint belongs.

use core::mem::offset_of;
use core::ptr::read_volatile;

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::programs::SockAddrContext;
use proxy_abi::lookup::Target;
use proxy_abi::socket::{FLOWS, FURTHER_FLOWS};
use proxy_abi::{Address6, DatagramFlows, Flow, FurtherFlows, Port, same};

use crate::maps::{DATAGRAMS, FURTHER, PEER};
use crate::sockaddr::UDP;

/// The flow from a frontend to the endpoint that a call got; `backend` is the endpoint's address as flows hold it.
#[inline(always)]
pub(crate) fn flow<A>(
    protocol: u8,
    frontend: Address6,
    frontend_port: Port,
    target: &Target<A>,
    backend: Address6,
) -> Flow {
    let Target { address: _, port: backend_port, reference } = *target;
    let origin = Flow::origin_of(protocol);
    Flow { frontend, backend, frontend_port, backend_port, reference: reference.0, origin }
}

#[inline(always)]
fn peer<'a>(ctx: &SockAddrContext) -> Option<&'a mut Flow> {
    // SAFETY: `ctx` is valid; the helper returns null or this socket's own storage.
    let flow = unsafe { PEER.get_ptr_mut(ctx) };
    if flow.is_null() {
        return None;
    }
    // SAFETY: not null, as large as a `Flow`, and alive as long as the program runs; only this socket's calls write
    // here, and a race between two of them costs one entry.
    Some(unsafe { &mut *flow })
}

#[inline(always)]
fn datagrams<'a>(ctx: &SockAddrContext) -> Option<&'a mut DatagramFlows> {
    // SAFETY: `ctx` is valid; the helper returns null or this socket's own storage.
    let flows = unsafe { DATAGRAMS.get_ptr_mut(ctx) };
    if flows.is_null() {
        return None;
    }
    // SAFETY: as in `peer`.
    Some(unsafe { &mut *flows })
}

/// The flows beside those in `datagrams`, if there are any.
#[inline(always)]
fn further<'a>(ctx: &SockAddrContext, datagrams: &DatagramFlows) -> Option<&'a mut FurtherFlows> {
    if datagrams.kept() <= FLOWS {
        return None;
    }
    // SAFETY: `ctx` is valid; the helper returns null or this socket's own storage.
    let flows = unsafe { FURTHER.get_ptr_mut(ctx) };
    if flows.is_null() {
        return None;
    }
    // SAFETY: as in `peer`.
    Some(unsafe { &mut *flows })
}

#[inline(always)]
fn is_to(flow: &Flow, address: &Address6, port: Port) -> bool {
    flow.frontend_port == port && same(&flow.frontend, address)
}

#[inline(always)]
fn is_with(flow: &Flow, address: &Address6, port: Port) -> bool {
    flow.frontend_port != 0 && flow.backend_port == port && same(&flow.backend, address)
}

/// The place of the first flow that `is_wanted`. The index is counted, for the verifier follows no pointer.
#[inline(always)]
fn find(flows: &[Flow], is_wanted: impl Fn(&Flow) -> bool) -> Option<usize> {
    let mut at = 0;
    while at < flows.len() {
        if let Some(flow) = flows.get(at)
            && is_wanted(flow)
        {
            return Some(at);
        }
        at += 1;
    }
    None
}

#[inline(always)]
fn first(flows: &[Flow], is_wanted: impl Fn(&Flow) -> bool) -> Option<&Flow> {
    flows.get(find(flows, is_wanted)?)
}

#[inline(always)]
fn put(flows: &mut [Flow], at: usize, flow: Flow) {
    if let Some(place) = flows.get_mut(at) {
        *place = flow;
    }
}

#[inline(always)]
fn clear(flows: &mut [Flow], is_over: impl Fn(&Flow) -> bool) {
    let mut at = 0;
    while at < flows.len() {
        if let Some(flow) = flows.get_mut(at)
            && is_over(flow)
        {
            *flow = Flow::default();
        }
        at += 1;
    }
}

#[inline(always)]
fn socket(ctx: &SockAddrContext) -> *mut bpf_sock {
    // SAFETY: the kernel passes a valid context.
    let address = unsafe { &*ctx.sock_addr };
    // SAFETY: the kernel fills in this field for every hook.
    unsafe { address.__bindgen_anon_1.sk }
}

/// A UDP socket counts as established while it is connected.
#[inline(always)]
fn is_connected(ctx: &SockAddrContext) -> bool {
    const ESTABLISHED: u32 = 1;
    let state = socket(ctx).wrapping_byte_add(offset_of!(bpf_sock, state)).cast::<u32>();
    // SAFETY: the socket is that of the call, and the field has 4 bytes.
    unsafe { read_volatile(state) == ESTABLISHED }
}

/// Keeps what a connecting socket dialled. If the kernel has no memory for it, the connection still works, but
/// `getpeername` shows the endpoint, and the socket is not found when its endpoint leaves.
#[inline(always)]
pub(crate) fn connect(ctx: &SockAddrContext, flow: &Flow) {
    if flow.protocol() == UDP {
        end_datagrams(ctx, |old| {
            is_with(old, &flow.backend, flow.backend_port) || is_to(old, &flow.frontend, flow.frontend_port)
        });
    }
    // SAFETY: `ctx` is valid; the helper returns null or this socket's own storage.
    let kept = unsafe { PEER.get_or_insert_ptr_mut(ctx, None) };
    if !kept.is_null() {
        // SAFETY: not null, and the storage is as large as a `Flow`.
        unsafe { kept.write(*flow) };
    }
}

/// Forgets what leads to an address that the socket connects to itself, and what it was connected to before.
#[inline(always)]
pub(crate) fn connect_directly(ctx: &SockAddrContext, address: &Address6, port: Port) {
    if let Some(flow) = peer(ctx) {
        *flow = Flow::default();
    }
    end_datagrams(ctx, |old| is_with(old, address, port));
}

/// A socket that sent datagrams to frontends connects to an address, and gets none from elsewhere any more but those
/// that wait already. So what it sent to last is looked through, and the rest is given up.
#[inline(always)]
fn end_datagrams(ctx: &SockAddrContext, is_over: impl Fn(&Flow) -> bool) {
    let Some(flows) = datagrams(ctx) else { return };
    clear(&mut flows.flows, is_over);
    if flows.kept() > FLOWS {
        let socket = socket(ctx);
        // SAFETY: `socket` is that of the call; without this storage there is nothing to delete.
        let (Ok(()) | Err(_)) = unsafe { FURTHER.delete(socket) };
    }
}

/// A datagram sent to an endpoint's own address ends the flow that led there: from now on answers show the endpoint
/// (DP-8). A connected socket stays with its peer.
#[inline(always)]
pub(crate) fn send_directly(ctx: &SockAddrContext, address: &Address6, port: Port) {
    if let Some(flow) = peer(ctx)
        && is_with(flow, address, port)
        && !is_connected(ctx)
    {
        *flow = Flow::default();
    }
    let Some(flows) = datagrams(ctx) else { return };
    clear(&mut flows.flows, |old| is_with(old, address, port));
    if let Some(further) = further(ctx, flows) {
        clear(&mut further.flows, |old| is_with(old, address, port));
    }
}

/// The flow of a socket to a frontend, and whether it is one of datagrams. From now on answers of its endpoint show
/// this frontend; a flow of the connection must be kept for that.
#[inline(always)]
pub(crate) fn to_frontend(ctx: &SockAddrContext, address: &Address6, port: Port) -> Option<(Flow, bool)> {
    if let Some(flow) = datagram_to(ctx, address, port) {
        return Some((flow, true));
    }
    // A connected socket whose call names its peer takes no answer from another endpoint.
    let flow = peer(ctx)?;
    if is_to(flow, address, port) { Some((*flow, false)) } else { None }
}

#[inline(always)]
fn datagram_to(ctx: &SockAddrContext, address: &Address6, port: Port) -> Option<Flow> {
    let flows = datagrams(ctx)?;
    let is_wanted = |flow: &Flow| is_to(flow, address, port);
    if let Some(at) = find(&flows.flows, is_wanted) {
        use_now(flows, at);
        return flows.flows.get(at).copied();
    }
    let further = further(ctx, flows)?;
    let at = find(&further.flows, is_wanted)?;
    use_now(flows, FLOWS + at);
    further.flows.get(at).copied()
}

/// Writes only what changes: most sockets talk to one frontend.
#[inline(always)]
fn use_now(flows: &mut DatagramFlows, at: usize) {
    if flows.last() != at {
        flows.use_now(at);
    }
}

/// Keeps a flow of an unconnected socket, in the place of an older one to the same frontend if there is one.
#[inline(always)]
pub(crate) fn send(ctx: &SockAddrContext, flow: &Flow) {
    // SAFETY: `ctx` is valid; the helper returns null or this socket's own storage.
    let flows = unsafe { DATAGRAMS.get_or_insert_ptr_mut(ctx, None) };
    if flows.is_null() {
        return;
    }
    // SAFETY: as in `peer`.
    let flows = unsafe { &mut *flows };
    let is_wanted = |old: &Flow| is_to(old, &flow.frontend, flow.frontend_port);
    if let Some(at) = find(&flows.flows, is_wanted) {
        use_now(flows, at);
        return put(&mut flows.flows, at, *flow);
    }
    if let Some(further) = further(ctx, flows)
        && let Some(at) = find(&further.flows, is_wanted)
    {
        use_now(flows, FLOWS + at);
        return put(&mut further.flows, at, *flow);
    }
    let place = flows.kept() % FLOWS;
    flows.count();
    use_now(flows, place);
    if let Some(old) = flows.flows.get_mut(place) {
        if old.frontend_port != 0 {
            push_further(ctx, old);
        }
        *old = *flow;
    }
}

/// Keeps a flow for which `DATAGRAMS` has no more room. Without memory the next datagram is balanced anew.
#[inline(always)]
fn push_further(ctx: &SockAddrContext, flow: &Flow) {
    // SAFETY: `ctx` is valid; the helper returns null or this socket's own storage.
    let flows = unsafe { FURTHER.get_or_insert_ptr_mut(ctx, None) };
    if flows.is_null() {
        return;
    }
    // SAFETY: as in `peer`.
    let flows = unsafe { &mut *flows };
    let place = flows.next as usize % FURTHER_FLOWS;
    flows.next = flows.next.wrapping_add(1);
    put(&mut flows.flows, place, *flow);
}

/// What the socket dialled, if the peer is the endpoint it got for that.
#[inline(always)]
pub(crate) fn dialled(ctx: &SockAddrContext, address: &Address6, port: Port) -> Option<(Address6, Port)> {
    let flow = peer(ctx)?;
    if is_with(flow, address, port) { Some((flow.frontend, flow.frontend_port)) } else { None }
}

/// The frontend that the socket dialled to reach the sender of a datagram; of several the one used last.
#[inline(always)]
pub(crate) fn sender(ctx: &SockAddrContext, address: &Address6, port: Port) -> Option<(Address6, Port)> {
    let Some(flows) = datagrams(ctx) else { return dialled(ctx, address, port) };
    let is_wanted = |flow: &Flow| is_with(flow, address, port);
    let last = flows.last();
    // Masked, so that the verifier knows the bound.
    if let Some(flow) = flows.flows.get(last & (FLOWS - 1))
        && last < FLOWS
        && is_wanted(flow)
    {
        return Some((flow.frontend, flow.frontend_port));
    }
    if let Some(further) = further(ctx, flows) {
        if let Some(flow) = further.flows.get(last.wrapping_sub(FLOWS) & (FURTHER_FLOWS - 1))
            && last >= FLOWS
            && is_wanted(flow)
        {
            return Some((flow.frontend, flow.frontend_port));
        }
        if let Some(flow) = first(&flows.flows, is_wanted) {
            return Some((flow.frontend, flow.frontend_port));
        }
        if let Some(flow) = first(&further.flows, is_wanted) {
            return Some((flow.frontend, flow.frontend_port));
        }
        return dialled(ctx, address, port);
    }
    match first(&flows.flows, is_wanted) {
        Some(flow) => Some((flow.frontend, flow.frontend_port)),
        None => dialled(ctx, address, port),
    }
}
