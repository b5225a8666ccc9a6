//! The one place of this crate with unsafe code: BPF calls that aya lacks, memory shared with array maps, and socket
//! options that nix lacks. Every function here is safe to call; what must hold is checked inside.
#![expect(unsafe_code, reason = "raw syscalls and memory shared with the kernel; see each SAFETY line")]

pub mod bpf;
mod heap;
pub mod mapped;
mod netns;
mod passed;
#[cfg(test)]
pub mod run;
mod xtables;

pub use heap::trim;
pub use netns::netns_cookie;
pub use passed::passed_descriptors;
pub use xtables::{TableInfo, table_info};
