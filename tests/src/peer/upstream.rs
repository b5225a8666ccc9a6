//! A DNS server for the lab that knows a few names and nothing else.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::Context as _;
use clap::Args;
use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::{SERVING, say};

/// Where to listen and what to know.
#[derive(Clone, Debug, Args)]
pub struct UpstreamArguments {
    /// Address and port.
    #[arg(long)]
    listen: SocketAddr,
    /// A name and its address: `name=ip`.
    #[arg(long, value_parser = answer)]
    answer: Vec<(String, IpAddr)>,
}

fn answer(text: &str) -> Result<(String, IpAddr), String> {
    let (name, address) = text.split_once('=').ok_or("give name=ip")?;
    let address = address.parse().map_err(|error| format!("{address}: {error}"))?;
    Ok((format!("{}.", name.trim_end_matches('.').to_lowercase()), address))
}

/// Serves until killed; each question is also printed, so that a test sees what was forwarded.
pub(super) fn serve(arguments: &UpstreamArguments) -> anyhow::Result<()> {
    let mut known: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for (name, address) in &arguments.answer {
        known.entry(name.clone()).or_default().push(*address);
    }
    let socket = UdpSocket::bind(arguments.listen).with_context(|| format!("binding {}", arguments.listen))?;
    say(SERVING)?;
    let mut buffer = vec![0; 65_536];
    loop {
        let (length, client) = socket.recv_from(&mut buffer).context("receiving")?;
        let Ok(question) = Message::from_vec(buffer.get(..length).unwrap_or_default()) else { continue };
        let reply = reply(&question, &known)?;
        socket.send_to(&reply, client).context("answering")?;
    }
}

fn reply(question: &Message, known: &BTreeMap<String, Vec<IpAddr>>) -> anyhow::Result<Vec<u8>> {
    let mut message = Message::response(question.metadata.id, OpCode::Query);
    message.metadata.recursion_desired = question.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    for query in &question.queries {
        message.add_query(query.clone());
        let name = query.name().to_string().to_lowercase();
        say(&format!("{name} {}", query.query_type()))?;
        match known.get(&name) {
            Some(addresses) => {
                message.add_answers(
                    addresses.iter().filter_map(|address| record(query.name(), query.query_type(), *address)),
                );
            }
            None => message.metadata.response_code = ResponseCode::NXDomain,
        }
    }
    message.to_vec().context("encoding the answer")
}

fn record(name: &Name, record_type: RecordType, address: IpAddr) -> Option<Record> {
    let data = match address {
        IpAddr::V4(address) if record_type == RecordType::A => RData::A(address.into()),
        IpAddr::V6(address) if record_type == RecordType::AAAA => RData::AAAA(address.into()),
        IpAddr::V4(_) | IpAddr::V6(_) => return None,
    };
    Some(Record::from_rdata(name.clone(), 30, data))
}
