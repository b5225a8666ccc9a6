//! The programs at sockets, and what must be seen to beside the tables while they run.

mod coverage;
mod foreign;
pub mod programs;
mod selftest;
mod sweep;
pub(super) mod upkeep;
