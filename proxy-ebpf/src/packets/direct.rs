//! Connections of pods to an endpoint itself. No program sees them, but the kernel of this node knows their sockets: a
//! flow of the same pod to the same endpoint must not get their port.

use aya_ebpf::bindings::{
    bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
};
use aya_ebpf::helpers::{bpf_sk_release, bpf_skc_lookup_tcp};
use proxy_abi::packet::Ends;

use crate::rewrite::bytes;
use crate::skb::Skb;

/// `TCP_LISTEN`
const LISTEN: u32 = 10;

/// Whether a socket of a pod has a connection with these ends, the pod's first. Not inlined: it has a stack of its own.
#[inline(never)]
pub(crate) fn is_connected(skb: Skb, ends: &Ends, ipv4: bool, pod: u32) -> bool {
    // As an answer has them.
    let (sport, dport) = (ends.to_port, ends.from_port);
    let place = if ipv4 {
        let ([_, _, _, saddr], [_, _, _, daddr]) = (ends.to, ends.from);
        let ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 { saddr, daddr, sport, dport };
        find(skb, bpf_sock_tuple__bindgen_ty_1 { ipv4 }, bytes::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1>(), pod)
    } else {
        let ipv6 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 { saddr: ends.to, daddr: ends.from, sport, dport };
        find(skb, bpf_sock_tuple__bindgen_ty_1 { ipv6 }, bytes::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2>(), pod)
    };
    if place.is_null() {
        return false;
    }
    // SAFETY: the helper returns a socket or null, and the program holds it.
    let state = unsafe { (*place).state };
    // SAFETY: as above; from here on nothing reads it.
    unsafe { bpf_sk_release(place.cast()) };
    state != LISTEN
}

/// The socket that would get a packet with these ends, in the network namespace of a pod.
#[inline(always)]
fn find(skb: Skb, ends: bpf_sock_tuple__bindgen_ty_1, length: u32, pod: u32) -> *mut bpf_sock {
    let mut tuple = bpf_sock_tuple { __bindgen_anon_1: ends };
    let namespace = u64::from(pod - 1);
    // SAFETY: the context is valid, and the tuple has so many bytes.
    unsafe { bpf_skc_lookup_tcp(skb.0.cast(), &raw mut tuple, length, namespace, 0) }
}
