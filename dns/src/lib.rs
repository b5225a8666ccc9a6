//! Cluster DNS: a pure zone over the model, a forwarder, and the server that joins them.
//!
//! `server` gives a query to the block that its name belongs to, which asks its templates and hosts, then [`Zone::answer`];
//! what is not the cluster's goes to the forwarder. The zone has no clock, no I/O and no randomness, and what it answers
//! never comes from a cache.
#![forbid(unsafe_code)]

pub mod answer;
pub mod autopath;
mod block;
mod cache;
pub mod corefile;
mod errors;
mod explain;
mod forward;
mod hosts;
pub mod http;
mod log;
pub mod metrics;
mod question;
mod records;
mod reply;
mod request;
pub mod rewrite;
pub mod server;
mod sockets;
pub mod stats;
pub mod template;
pub mod upstream;
pub mod zone;

pub use answer::{Absence, Answer, Records};
pub use block::{BlockConfig, Kubernetes, Transfer};
pub use cache::{Bounds, CacheConfig, Prefetch};
pub use corefile::{Corefile, CorefileError, KubernetesSettings};
pub use errors::{Consolidation, ErrorsConfig, Level};
pub use explain::{Explainer, Explanation};
pub use forward::{ForwardConfig, Policy, Route, StubDomain, TlsError};
pub use hosts::HostsConfig;
pub use log::{Class, LogConfig};
pub use records::absolute;
pub use server::{Answerer, ServeError, Server, ServerConfig, serve};
pub use stats::Stats;
pub use upstream::{ResolvConf, Upstream, UpstreamError, Upstreams, upstreams_from_resolv_conf};
pub use zone::{PodMode, View, Zone, ZoneConfig};

/// The DNS vocabulary of this crate's interface.
pub use hickory_proto::rr::{Name, Record, RecordType};
