//! Measures other packet programs: the kernel's test-run gives one program the same packet again and again, and one
//! that was translated once is none of its flow any more. This one makes it what it was, and hands it on.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(unsafe_code, reason = "a BPF program is made of raw pointers into kernel memory that the verifier checks")]

mod object;

use aya_ebpf::btf_maps::{Array, ProgramArray};
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;
use proxy_abi::Replayed;

/// The program that is measured.
#[btf_map]
static MEASURED: ProgramArray<1> = ProgramArray::new();

/// The packet.
#[btf_map]
static REPLAYED: Array<Replayed, 1> = Array::new();

/// The next program decides.
const NEXT: i32 = -1;

/// What is measured if the packet alone is to be told from the rest.
#[classifier]
fn nothing(_ctx: TcContext) -> i32 {
    NEXT
}

#[classifier]
fn replay(ctx: TcContext) -> i32 {
    let Some(replayed) = REPLAYED.get_ptr_mut(0) else { return 0 };
    // SAFETY: one processor at a time runs this program.
    let replayed = unsafe { &mut *replayed };
    replayed.turn();
    if ctx.store(0, &replayed.frame, 0).is_err() {
        return 0;
    }
    // SAFETY: the map has programs of this kind alone.
    unsafe { MEASURED.tail_call(&ctx, 0) };
    0
}

/// The crate is checked and linted on the host too; there is nothing to run there.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
