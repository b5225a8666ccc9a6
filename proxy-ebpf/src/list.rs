//! Lists the flows of connected sockets, in all network namespaces at once: the daemon reads what these programs write.
//!
//! The kernel runs them for each element of `PEER`. They have no macro of their own in aya.

use aya_ebpf::bindings::seq_file;
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_seq_write};
use proxy_abi::lookup::{V4, V6, has_ended, lead};
use proxy_abi::{Flow, ListedFlow, unmapped};

use crate::sockaddr::UDP;
use crate::tables::Kernel;

/// `struct bpf_iter__bpf_sk_storage_map` of the kernel, of which every field has 8 bytes.
#[repr(C)]
pub(crate) struct Element {
    meta: *const Meta,
    map: *const c_void,
    socket: *mut c_void,
    value: *const Flow,
}

/// The beginning of `struct bpf_iter_meta` of the kernel.
#[repr(C)]
struct Meta {
    output: *mut seq_file,
}

#[expect(clippy::cast_possible_truncation, reason = "the size of one small type")]
const LISTED: u32 = size_of::<ListedFlow>() as u32;

/// The element goes to the output, or needs not to.
const DONE: i32 = 0;

/// Writes the flows whose endpoint has the address of a frontend itself: their sockets look like ones that no program
/// has seen. There are next to none, so the daemon gets them in one read; between two reads of a longer list the kernel
/// may pass over some.
#[inline(always)]
pub(crate) fn to_frontends(element: *const Element) -> i32 {
    write(element, |flow| match unmapped(flow.backend) {
        Some(four) => lead::<V4, _>(&Kernel, four, flow.backend_port, UDP).is_some(),
        None => lead::<V6, _>(&Kernel, flow.backend, flow.backend_port, UDP).is_some(),
    })
}

/// Writes the flows that have ended although their socket is open. The daemon looks at UDP sockets and at TCP sockets
/// that are still connecting; an established TCP connection goes on, whatever becomes of its frontend (CT-6).
#[inline(always)]
pub(crate) fn ended(element: *const Element) -> i32 {
    write(element, |flow| {
        // A TCP socket that connects to an endpoint which serves will be connected.
        let protocol = if flow.protocol() == UDP { UDP } else { 0 };
        match unmapped(flow.frontend) {
            Some(four) => has_ended::<V4, _>(&Kernel, four, flow.frontend_port, protocol, flow.reference()),
            None => has_ended::<V6, _>(&Kernel, flow.frontend, flow.frontend_port, protocol, flow.reference()),
        }
    })
}

#[inline(always)]
fn write(element: *const Element, is_wanted: impl Fn(&Flow) -> bool) -> i32 {
    // By value: through a reference the compiler reads a field again where it uses it, and the verifier of 6.1 does not
    // know of the second read that it is not null.
    // SAFETY: the kernel passes a valid context.
    let Element { meta, map: _, socket, value } = unsafe { element.read() };
    // After the last element it calls once more, without one.
    if socket.is_null() || value.is_null() {
        return DONE;
    }
    // SAFETY: not null, and the value is as large as a `Flow`; a socket that changes it this instant shows the daemon a
    // flow that it does not find among the sockets.
    let flow = unsafe { *value };
    if flow.frontend_port == 0 || !is_wanted(&flow) {
        return DONE;
    }
    // SAFETY: the kernel passes a socket that lives as long as the program runs.
    let cookie = unsafe { bpf_get_socket_cookie(socket) };
    let listed = ListedFlow { cookie, flow, padding: 0 };
    // SAFETY: the kernel passes a valid `meta`.
    let Meta { output } = unsafe { &*meta };
    let bytes = (&raw const listed).cast();
    // SAFETY: `bytes` are as many as stated. If the output is full, the kernel runs the program again for this element.
    unsafe { bpf_seq_write(*output, bytes, LISTED) };
    DONE
}
