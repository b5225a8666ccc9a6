//! The lab: nodes and pods as network namespaces and cgroup directories, real processes in them, and the demo.
//!
//! A [`Lab`] makes a router namespace, and the namespace of a client outside of the cluster beyond it; [`Lab::node`]
//! joins nodes to the router, [`Node::pod`] joins pods to a node. Everything is named after one prefix and removed when
//! the last handle is dropped, when the process dies (a small guard process then removes it), or at the latest when the
//! next lab starts. Nothing in a lab has a route out of it.
#![forbid(unsafe_code)]

pub mod api;
mod binaries;
mod clients;
mod daemon;
pub mod demo;
pub mod flows;
pub mod guest;
mod host;
mod http;
mod kube_api;
pub mod kube_proxy_rules;
mod leftovers;
mod lifetime;
pub mod manifests;
mod network;
mod node;
pub mod peer;
mod place;
mod process;
mod signals;
mod topology;

pub use binaries::Binaries;
pub use clients::{Client, Dialler};
pub use daemon::{Daemon, DaemonOptions};
pub use host::{is_root, missing};
pub use http::{HttpResponse, http_get};
pub use kube_api::KubeApi;
pub use leftovers::{remove, remove_leftovers};
pub use manifests::Manifests;
pub use node::{Node, Pod};
pub use place::Place;
pub use process::{Finished, Process};
pub use signals::{interrupted, stop_on_signals};
pub use topology::Lab;
