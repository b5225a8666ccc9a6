//! The tables that programs read: in the kernel, in plain memory, and the comparison of the two.

pub(super) mod addresses;
#[cfg(test)]
mod agreement;
pub(super) mod audit;
pub(super) mod bits;
mod finding;
pub(super) mod kernel;
pub(crate) mod memory;
pub(super) mod node;
pub(super) mod reader;
pub(super) mod service_ranges;
