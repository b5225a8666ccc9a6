//! The node daemon: plan, reconcile, data paths, health, metrics and the control socket.
#![deny(unsafe_code)]

mod columns;
pub mod config;
pub mod control;
pub mod datapath;
pub mod dns;
pub mod events;
pub mod explain;
pub mod host;
pub mod http;
#[cfg(test)]
mod logged;
pub mod made;
pub mod metrics;
pub mod plan;
pub mod reconcile;
mod reload;
pub mod run;
pub mod source;
pub mod status;
pub mod sys;
