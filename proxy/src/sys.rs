//! The one place of this crate with unsafe code: BPF calls that aya lacks, and memory shared with array maps.
//! Every function here is safe to call; what must hold is checked inside.
#![expect(unsafe_code, reason = "raw syscalls and memory shared with the kernel; see each SAFETY line")]

pub mod bpf;
pub mod mapped;
