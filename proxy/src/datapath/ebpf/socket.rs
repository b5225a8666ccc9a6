//! The programs at sockets, and the upkeep that they need while they run.

mod coverage;
mod foreign;
pub(crate) mod programs;
mod selftest;
mod sweep;
pub(super) mod upkeep;
pub(super) mod v6only;
