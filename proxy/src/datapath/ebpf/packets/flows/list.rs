//! The flows that the packet programs remember, for `shunt flows`: read from the pinned tables, in words of the door.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use ipnet::IpNet;
use proxy_abi::connection::{Connection, State};
use proxy_abi::maps::packets::CONNECTIONS;
use proxy_abi::packet::Ends;
use proxy_abi::{Address6, Port};
use serde::{Deserialize, Serialize};
use shunt_model::Protocol;

use super::super::super::layout::write::address_of;
use super::super::super::pins::MapPins;
use super::timeouts::seconds_since;
use super::{FlowTables, now};
use crate::datapath::packets::sites::Sites;
use crate::plan::Plan;

/// Which flows are asked for: those that match every field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FlowFilter {
    /// The client is inside.
    pub client: Option<IpNet>,
    /// The endpoint is inside.
    pub endpoint: Option<IpNet>,
    /// The Service, as `NAMESPACE/NAME`.
    pub service: Option<String>,
    /// The protocol by its name, such as `tcp`.
    pub protocol: Option<String>,
    /// How far it is.
    pub state: Option<FlowState>,
    /// At most so many: those that had a packet last.
    pub most: usize,
}

/// How far a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum FlowState {
    /// Its client has sent one packet, and there was no answer.
    Opening,
    /// Packets go both ways, or the client has sent more than one.
    Open,
    /// Its client has closed its direction.
    ClientClosed,
    /// Its endpoint has closed its direction.
    EndpointClosed,
    /// Both have, or one has reset it.
    Closed,
}

/// The flows that match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flows {
    /// Those that had a packet last come first.
    pub flows: Vec<KnownFlow>,
    /// How many match; `flows` has no more than was asked for.
    pub matching: u64,
    /// How many are known.
    pub known: u64,
}

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KnownFlow {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Who sends the packets.
    pub client: SocketAddr,
    /// What it dialled.
    pub frontend: SocketAddr,
    /// The service port of the plan that has this frontend; none if it is gone.
    pub service: Option<String>,
    /// Where the packets go.
    pub endpoint: SocketAddr,
    /// What the endpoint sees in the client's place: an address of this node, or another port.
    pub source: Option<SocketAddr>,
    /// How far it is.
    pub state: FlowState,
    /// Seconds since its first packet.
    pub age: u32,
    /// Seconds since its last packet.
    pub idle: u32,
}

/// The flows cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FlowsError {
    /// There are no tables.
    #[error(
        "no packet programs serve here, so there is no table of flows; flows through rules are in the kernel's: conntrack \
         -L"
    )]
    NoPrograms,
    /// A table cannot be opened.
    #[error("opening the tables of flows")]
    Table(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A table cannot be read.
    #[error("reading the tables of flows")]
    Read(#[from] io::Error),
}

impl From<State> for FlowState {
    fn from(state: State) -> Self {
        match state {
            State::Opening => Self::Opening,
            State::Open => Self::Open,
            State::ClientClosed => Self::ClientClosed,
            State::EndpointClosed => Self::EndpointClosed,
            State::Closed => Self::Closed,
        }
    }
}

/// The flows pinned below `root` that match. Those of a Service are known by the frontends of `plan`.
pub(in crate::datapath) fn list(root: &Path, plan: &Plan, filter: &FlowFilter) -> Result<Flows, FlowsError> {
    let pins = MapPins::below(root);
    if !pins.of(&CONNECTIONS).exists() {
        return Err(FlowsError::NoPrograms);
    }
    let tables = FlowTables::open(&pins).map_err(|error| FlowsError::Table(error.into()))?;
    let (sites, now) = (Sites::of(plan), now()?);
    let mut found = Flows::default();
    for pair in tables.pairs() {
        pair.read_connections(|piece| {
            for (client, connection) in piece.iter().filter(|(_, flow)| flow.flags & Connection::FOREIGN == 0) {
                found.known = found.known.saturating_add(1);
                if let Some(flow) = known(client, connection, &sites, now).filter(|flow| filter.takes(flow)) {
                    found.matching = found.matching.saturating_add(1);
                    found.flows.push(flow);
                }
            }
            if found.flows.len() > filter.most.saturating_mul(2) {
                found.keep_latest(filter.most);
            }
            Ok(true)
        })?;
    }
    found.keep_latest(filter.most);
    Ok(found)
}

impl Flows {
    fn keep_latest(&mut self, most: usize) {
        self.flows.sort_by_key(|flow| (flow.idle, flow.client, flow.frontend));
        self.flows.truncate(most);
    }
}

impl FlowFilter {
    fn takes(&self, flow: &KnownFlow) -> bool {
        let Self { client, endpoint, service, protocol, state, most: _ } = self;
        let is_inside = |range: &Option<IpNet>, ip: IpAddr| range.is_none_or(|range| range.contains(&ip));
        let of_service = |name: &String| {
            let rest = flow.service.as_ref().and_then(|known| known.strip_prefix(name.as_str()));
            rest.is_some_and(|rest| rest.starts_with([':', '/']))
        };
        is_inside(client, flow.client.ip())
            && is_inside(endpoint, flow.endpoint.ip())
            && service.as_ref().is_none_or(of_service)
            && protocol.as_ref().is_none_or(|protocol| protocol.eq_ignore_ascii_case(&flow.protocol))
            && state.is_none_or(|state| state == flow.state)
    }
}

/// A flow in words; `None` for a protocol that no Service has.
fn known(client: &Ends, connection: &Connection, sites: &Sites<'_>, now: u32) -> Option<KnownFlow> {
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let protocol = protocol.into_iter().find(|known| known.number() == client.protocol)?;
    let frontend = end(client.to, client.to_port);
    let dialling = end(client.from, client.from_port);
    let source = if connection.source_port != 0 {
        end(connection.source, connection.source_port)
    } else {
        end(client.from, connection.client_port)
    };
    Some(KnownFlow {
        protocol: protocol.name().to_ascii_uppercase(),
        client: dialling,
        frontend,
        service: sites.port(protocol, frontend).map(|port| port.key.to_string()),
        endpoint: end(connection.endpoint, connection.endpoint_port),
        source: (source != dialling).then_some(source),
        state: State::of(connection.state).into(),
        age: seconds_since(connection.begun, now),
        idle: seconds_since(connection.seen, now),
    })
}

fn end(address: Address6, port: Port) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(address_of(address)).to_canonical(), u16::from_be(port))
}
