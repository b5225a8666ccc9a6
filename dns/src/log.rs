//! A line per query, in CoreDNS's form, for those that are to be logged.

use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::Name;

use crate::server::reply::Reply;
use crate::server::request::{Request, Transport};

/// Which queries are logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Names in these domains.
    pub zones: Vec<Name>,
    /// Replies of these classes.
    pub classes: Vec<Class>,
}

/// What a reply says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Anything.
    All,
    /// There are records.
    Success,
    /// There is nothing, or not for this client.
    Denial,
    /// It went wrong.
    Error,
}

impl Class {
    fn includes(self, reply: &Reply) -> bool {
        let is = |rcodes: &[ResponseCode]| rcodes.contains(&reply.rcode);
        let denial = is(&[ResponseCode::NXDomain]) || (is(&[ResponseCode::NoError]) && reply.answers.is_empty());
        let error = !is(&[ResponseCode::NoError, ResponseCode::NXDomain]);
        match self {
            Self::All => true,
            Self::Success => !denial && !error,
            Self::Denial => denial,
            Self::Error => error,
        }
    }
}

impl LogConfig {
    /// Writes the line, if this is a query to be logged.
    pub(crate) fn log(&self, request: &Request, reply: &Reply, length: usize, took: Duration) {
        let name = &request.query.name;
        if !self.zones.iter().any(|zone| zone.zone_of(name)) || !self.classes.iter().any(|class| class.includes(reply))
        {
            return;
        }
        let transport = match request.transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        };
        tracing::info!(
            target: "shunt_dns::query",
            "{} - {} \"{} IN {name} {transport} {} {} {}\" {} {} {length} {:.9}s",
            request.client,
            request.metadata.id,
            request.query.query_type,
            request.length,
            request.dnssec_ok(),
            request.edns.as_ref().map_or(512, hickory_proto::op::Edns::max_payload),
            crate::stats::rcode_name(reply.rcode),
            flags(request, reply),
            took.as_secs_f64(),
        );
    }
}

/// The set bits of the reply's header, as CoreDNS writes them.
fn flags(request: &Request, reply: &Reply) -> String {
    let metadata = reply.metadata(request);
    let bits = [
        (true, "qr"),
        (metadata.authoritative, "aa"),
        (metadata.truncation, "tc"),
        (metadata.recursion_desired, "rd"),
        (metadata.recursion_available, "ra"),
        (metadata.authentic_data, "ad"),
        (metadata.checking_disabled, "cd"),
    ];
    bits.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect::<Vec<_>>().join(",")
}
