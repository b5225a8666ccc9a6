//! The control socket: how the command line asks a running daemon. One JSON request a connection, one JSON reply, or
//! one after the other to who listens.

mod answers;
mod client;
mod dns;
mod flows;
mod monitor;
mod server;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::datapath::{FlowFilter, Flows};
use crate::explain::Explanation;

pub use answers::{Services, services};
pub use client::{AskError, ask, is_listening};
pub use dns::{DnsReply, PodsReply};
pub use flows::render_flows;
pub use monitor::{Monitored, Told, monitor};
pub use server::{Control, ListenError, Listener, Views, remove_stale};

/// The longest request that is read; a name has at most 255 bytes.
const LONGEST_REQUEST: u64 = 4096;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Frontends with their endpoints, as programmed.
    Services,
    /// Where a new flow goes, and why.
    Explain {
        /// The source.
        source: String,
        /// The destination.
        destination: String,
    },
    /// The flows that the packet programs remember.
    Flows(FlowFilter),
    /// What DNS would answer.
    Dns {
        /// The name. Without a final dot it is also completed as pods do.
        name: String,
        /// The type, such as `A`.
        #[serde(rename = "type")]
        rtype: String,
    },
    /// What programs decide from now on.
    Monitor {
        /// Only about this Service, `namespace/name`.
        #[serde(default)]
        service: Option<String>,
        /// Only about packets of this client, an address or a network.
        #[serde(default)]
        client: Option<String>,
    },
}

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// To [`Request::Services`].
    Services(Services),
    /// To [`Request::Explain`].
    Explain(Explanation),
    /// To [`Request::Flows`].
    Flows(Flows),
    /// To [`Request::Dns`].
    Dns(DnsReply),
    /// To [`Request::Monitor`], again and again.
    Told(Told),
    /// The request cannot be answered, and why.
    Error(String),
}
