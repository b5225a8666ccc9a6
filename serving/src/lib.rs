//! What both long-running binaries need and neither owns: HTTP with bounded connections, fair shares of places, metrics
//! of the process, the text that Prometheus reads, and the limit of open files.
#![forbid(unsafe_code)]

pub mod admission;
pub mod http;
pub mod limits;
pub mod metrics;
