//! A DNS client that asks one server one question.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, Record, RecordType};
use serde::{Deserialize, Serialize};

const TIMEOUT: Duration = Duration::from_secs(3);

/// What to ask whom.
#[derive(Clone, Debug, Args)]
pub struct ResolveArguments {
    /// The name; always taken as complete.
    name: String,
    /// The type.
    #[arg(default_value = "A")]
    record_type: String,
    /// The server: an address, or address and port.
    #[arg(long, value_parser = server)]
    server: SocketAddr,
    /// Ask over TCP.
    #[arg(long)]
    tcp: bool,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolution {
    /// The response code: `NoError`, `NXDomain`.
    pub rcode: String,
    /// Whether the server speaks for the name.
    pub authoritative: bool,
    /// Whether the answer was cut to fit.
    pub truncated: bool,
    /// The answers.
    pub answers: Vec<DnsRecord>,
    /// The authority section.
    pub authority: Vec<DnsRecord>,
    /// The additional section.
    pub additional: Vec<DnsRecord>,
    /// Where the reply came from.
    pub from: SocketAddr,
    /// How long it took, in microseconds.
    pub us: u64,
}

/// A record, its data in the usual text form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsRecord {
    /// Its owner.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub record_type: String,
    /// Its time to live.
    pub ttl: u32,
    /// Its data.
    pub data: String,
}

impl ResolveArguments {
    /// A question over UDP, or over TCP.
    #[must_use]
    pub fn new(name: &str, record_type: &str, server: SocketAddr, tcp: bool) -> Self {
        Self { name: name.to_owned(), record_type: record_type.to_owned(), server, tcp }
    }
}

impl Resolution {
    /// The data of the answers, sorted.
    #[must_use]
    pub fn data(&self) -> Vec<&str> {
        let mut data: Vec<&str> = self.answers.iter().map(|record| record.data.as_str()).collect();
        data.sort_unstable();
        data
    }
}

fn server(text: &str) -> Result<SocketAddr, String> {
    let whole = text.parse::<SocketAddr>();
    whole
        .or_else(|_| text.parse::<IpAddr>().map(|address| SocketAddr::new(address, 53)))
        .map_err(|error| format!("{error}; give an address, or address:port"))
}

/// Asks and waits for the answer.
pub fn resolve(arguments: &ResolveArguments) -> anyhow::Result<Resolution> {
    let name = Name::from_ascii(format!("{}.", arguments.name.trim_end_matches('.'))).context("reading the name")?;
    let record_type = record_type(&arguments.record_type.to_uppercase())?;
    let id = u16::try_from(super::now() % 65_536).context("choosing an id")?;
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, record_type));
    let question = message.to_vec().context("encoding the question")?;
    let start = Instant::now();
    let (bytes, from) = if arguments.tcp { over_tcp(arguments, &question) } else { over_udp(arguments, &question) }
        .with_context(|| format!("asking {}", arguments.server))?;
    let us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    let answer = Message::from_vec(&bytes).context("decoding the answer")?;
    ensure!(answer.metadata.id == id, "the answer has id {}, not {id}", answer.metadata.id);
    Ok(Resolution {
        rcode: format!("{:?}", answer.metadata.response_code),
        authoritative: answer.metadata.authoritative,
        truncated: answer.metadata.truncation,
        answers: records(&answer.answers),
        authority: records(&answer.authorities),
        additional: records(&answer.additionals),
        from,
        us,
    })
}

/// A type by its name, or as RFC 3597 writes those without one.
fn record_type(text: &str) -> anyhow::Result<RecordType> {
    match text.strip_prefix("TYPE").and_then(|number| number.parse::<u16>().ok()) {
        Some(number) => Ok(RecordType::from(number)),
        None => text.parse().context("reading the type"),
    }
}

fn records(records: &[Record]) -> Vec<DnsRecord> {
    let text = |record: &Record| DnsRecord {
        name: record.name.to_string(),
        record_type: record.record_type().to_string(),
        ttl: record.ttl,
        data: record.data.to_string(),
    };
    records.iter().map(text).collect()
}

/// Not connected, so that a reply from a wrong address is seen and not dropped by the kernel.
fn over_udp(arguments: &ResolveArguments, question: &[u8]) -> anyhow::Result<(Vec<u8>, SocketAddr)> {
    let any = if arguments.server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let socket = UdpSocket::bind((any, 0)).context("making a socket")?;
    socket.set_read_timeout(Some(TIMEOUT)).context("setting the timeout")?;
    socket.send_to(question, arguments.server).context("sending")?;
    let mut buffer = vec![0; 65_536];
    let (length, from) = socket.recv_from(&mut buffer).context("receiving")?;
    buffer.truncate(length);
    Ok((buffer, from))
}

fn over_tcp(arguments: &ResolveArguments, question: &[u8]) -> anyhow::Result<(Vec<u8>, SocketAddr)> {
    let mut stream = TcpStream::connect_timeout(&arguments.server, TIMEOUT).context("connecting")?;
    stream.set_read_timeout(Some(TIMEOUT)).context("setting the timeout")?;
    let length = u16::try_from(question.len()).context("the question is too long")?;
    stream.write_all(&[&length.to_be_bytes(), question].concat()).context("sending")?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).context("receiving")?;
    let mut buffer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut buffer).context("receiving")?;
    Ok((buffer, stream.peer_addr().context("asking who answered")?))
}
