//! The node daemon: plan, reconcile, data paths, and the surfaces through which it is watched.
#![deny(unsafe_code)]

pub mod config;
pub mod datapath;
pub mod plan;
pub mod sys;
