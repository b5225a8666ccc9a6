//! The node daemon: plan, reconcile, data paths, and the surfaces through which it is watched.
#![deny(unsafe_code)]

pub mod addresses;
pub mod config;
pub mod control;
pub mod datapath;
pub mod dns_service;
pub mod dns_watch;
pub mod events;
pub mod explain;
pub mod health;
pub mod health_checks;
pub mod host_addresses;
pub mod metrics;
mod netlink;
pub mod netns;
pub mod plan;
pub mod privileges;
pub mod reconcile;
mod reload;
pub mod run;
pub mod source;
pub mod status;
pub mod sys;
