//! A line per query, in CoreDNS's form, for those that are to be logged.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::Name;

use crate::reply::Reply;
use crate::request::{Request, Transport};

/// Which queries are logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogConfig {
    /// Names in these domains.
    pub(crate) zones: Vec<Name>,
    /// Replies of these classes.
    pub(crate) classes: Vec<Class>,
    /// With the opcode at the end (`{combined}`).
    pub(crate) opcode: bool,
}

/// What a reply says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
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
        let denial = is(&[ResponseCode::NXDomain]) || (is(&[ResponseCode::NoError]) && !reply.has_answers());
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
        let opcode = if self.opcode { r#" "0""# } else { "" }; // nothing else gets as far as here
        tracing::info!(target: "shunt_dns::query", "{}{opcode}", line(request, reply, length, took));
    }
}

fn line(request: &Request, reply: &Reply, length: usize, took: Duration) -> String {
    let transport = match request.transport {
        Transport::Udp => "udp",
        Transport::Tcp => "tcp",
    };
    // A socket for both families writes IPv4 clients as IPv6.
    let client = SocketAddr::new(request.client.ip().to_canonical(), request.client.port());
    format!(
        "{client} - {} \"{} IN {} {transport} {} {} {}\" {} {} {length} {:.9}s",
        request.metadata.id,
        crate::types::type_name(request.query.query_type),
        crate::names::text(&request.query.name).to_ascii_lowercase(),
        request.length,
        request.dnssec_ok(),
        request.edns.map_or(512, |edns| edns.payload),
        crate::stats::rcode_name(reply.rcode),
        flags(request, reply),
        took.as_secs_f64(),
    )
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

/// What is written to the log meanwhile, by this thread.
#[cfg(test)]
pub(crate) fn written(act: impl FnOnce()) -> String {
    use std::io::{Read as _, Seek as _};
    let mut file = tempfile::tempfile().unwrap();
    let writer = std::sync::Mutex::new(file.try_clone().unwrap());
    let subscriber = tracing_subscriber::fmt().with_writer(writer).with_ansi(false).finish();
    tracing::subscriber::with_default(subscriber, act);
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Message, MessageType, OpCode, Query};
    use hickory_proto::rr::RecordType;

    use super::*;
    use crate::plugin::Author;

    #[track_caller]
    fn check(client: &str, wanted: &str) {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii("WEB.example.").unwrap(), RecordType::A));
        let wire = message.to_vec().unwrap();
        let request = Request::read(&wire, client.parse().unwrap(), Transport::Udp).unwrap();
        let reply = Reply::cluster(Author::Kubernetes);
        assert_eq!(line(&request, &reply, 45, Duration::from_millis(1)), wanted);
    }

    #[test]
    fn a_line_is_as_coredns_writes_it() {
        let rest = r#" - 7 "A IN web.example. udp 29 false 512" NOERROR qr,aa,rd,ra 45 0.001000000s"#;
        for (client, written) in [
            ("10.1.0.1:53507", "10.1.0.1:53507"),
            ("[::ffff:10.1.0.1]:53507", "10.1.0.1:53507"),
            ("[fd00::1]:53507", "[fd00::1]:53507"),
        ] {
            check(client, &format!("{written}{rest}"));
        }
    }
}
