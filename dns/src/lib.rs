//! Cluster DNS: a pure zone over the model, a forwarder, and the server that joins them.
//!
//! `server` gives a query to the block that its name belongs to. The block asks its templates and hosts, then
//! [`Zone::answer`]; names outside of the cluster go to the forwarder. The zone has no clock, no I/O and no randomness,
//! and its answers never come from a cache.
#![forbid(unsafe_code)]

mod answer;
mod autopath;
mod block;
mod cache;
pub mod corefile;
mod errors;
mod explain;
mod failure;
mod forward;
mod hosts;
pub mod http;
mod log;
mod metrics;
mod names;
mod plugin;
mod presentation;
mod question;
mod rdata;
mod records;
mod reply;
mod request;
mod rewrite;
mod search;
mod server;
mod sockets;
mod stats;
mod template;
mod types;
mod upstream;
mod wire;
mod zone;

pub use answer::{Absence, Answer, Records};
pub use block::{BlockConfig, Transfer};
pub use cache::CacheConfig;
pub use corefile::{Corefile, CorefileError, KubernetesSettings};
pub use explain::{AskedByPods, Explainer, Explanation};
pub use forward::{ForwardConfig, Route, StubDomain, TlsError};
pub use metrics::Exporter;
pub use names::{NameError, absolute, text as name_text};
pub use presentation::record_text;
pub use request::Transport;
pub use server::{Answerer, ServeError, Server, ServerConfig, Sockets, serve, serve_on};
pub use stats::Stats;
pub use types::{record_type, type_name};
pub use upstream::{Upstream, UpstreamError, Upstreams};
pub use zone::{PodMode, View, Zone, ZoneConfig};

/// The DNS vocabulary of this crate's interface.
pub use hickory_proto::rr::{Name, Record, RecordType};
