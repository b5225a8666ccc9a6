//! The packet programs: at ingress the destination of a packet is translated, at egress its source, in both directions
//! of a flow. In between, routing and filters see client and endpoint.
//!
//! Kernel: 5.18. Rules: spec of services 2 to 6. Everything that is not read in full goes on untouched.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(unsafe_code, reason = "a BPF program is made of raw pointers into kernel memory that the verifier checks")]

mod decisions;
mod direct;
mod egress;
mod errors;
mod flows;
mod fragments;
mod ingress;
#[path = "../maps.rs"]
mod maps;
#[path = "../object.rs"]
mod object;
mod quoted;
mod refuse;
mod rewrite;
mod sctp;
mod sender;
mod skb;
#[path = "../tables.rs"]
mod tables;
mod tracked;

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use self::skb::Skb;

/// The next program decides, and after the last one the kernel goes on: never an end to what others do.
const NEXT: i32 = -1;
/// The packet is dropped.
const DROP: i32 = 2;
/// Length of an Ethernet header.
const ETHERNET: u32 = 14;

#[classifier]
fn shunt_ingress(ctx: TcContext) -> i32 {
    ingress::run::<ETHERNET>(&Skb::of(&ctx))
}

#[classifier]
fn shunt_egress(ctx: TcContext) -> i32 {
    egress::run::<ETHERNET>(&Skb::of(&ctx))
}

/// For devices without an Ethernet header.
#[classifier]
fn shunt_ingress_ip(ctx: TcContext) -> i32 {
    ingress::run::<0>(&Skb::of(&ctx))
}

/// For devices without an Ethernet header.
#[classifier]
fn shunt_egress_ip(ctx: TcContext) -> i32 {
    egress::run::<0>(&Skb::of(&ctx))
}

/// The crate is checked and linted on the host too; there is nothing to run there.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
