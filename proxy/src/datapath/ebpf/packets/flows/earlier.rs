//! Flows that the kernel translates for an earlier path, by rules that are gone or will be.
//!
//! A connection of TCP stays with the kernel, whose translation needs no rules: packets in the middle of one pass the
//! programs, and the port with which the kernel stands for its client is none that the programs take. Flows of
//! datagrams are taken over, for a datagram does not say whether it is the first. Their entries of the kernel must go
//! then: what the programs make of a client's packet would have the same answers as the entry, and the kernel drops
//! such a packet.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use proxy_abi::connection::{Connection, Key, SOURCE_PORTS, State, Translation};
use proxy_abi::lookup::{V4, V6, lead};
use proxy_abi::maps;
use proxy_abi::packet::Ends;
use proxy_abi::{BackendRef, Config};
use shunt_model::{Family, Protocol, with_causes};
use tokio::sync::watch;
use tracing::{info, warn};

use super::super::super::layout::write::{address, address4};
use super::super::super::layout::{FrontendKey, Layout};
use super::super::super::orders::Orders;
use super::super::super::pins::MapPins;
use super::super::super::tables::kernel::{Array, TableError};
use super::super::super::tables::reader::Reader;
use super::{FlowTables, Pair, leading_back, now};
use crate::datapath::packets::conntrack::table::{Flow, Table};
use crate::host::netlink::Dump;
use crate::host::netlink::addresses;

/// How often connections of TCP are looked at: each look lists all that the kernel knows.
const EVERY: Duration = Duration::from_secs(60);
/// How often a list is read that changes while the kernel gives it.
const LISTS: usize = 4;

/// Flows of datagrams that the programs know by now, and whose entries of the kernel must go.
#[derive(Debug)]
pub(in crate::datapath::ebpf) struct EarlierDatagrams {
    table: Table,
    entries: Vec<Flow>,
    taken: usize,
}

impl EarlierDatagrams {
    /// Writes the flows of datagrams that the kernel has translated from frontends of `layout` to endpoints that still
    /// serve. To be called just before the programs begin to serve.
    pub(in crate::datapath::ebpf) fn write(tables: &FlowTables, layout: &Layout) -> io::Result<Self> {
        let (mut table, own) = (Table::open()?, own_addresses()?);
        leave_ports(tables, &mut table)?;
        let (mut found, mut taken) = (Vec::new(), 0_usize);
        for protocol in [Protocol::Udp, Protocol::Sctp] {
            for family in Family::BOTH {
                let backend = |flow: &Flow| backend_behind(layout, flow).filter(|_| !own.contains(&flow.client.ip()));
                for _ in 0..LISTS {
                    let wanted = |flow: &Flow| flow.is_translated() && backend(flow).is_some();
                    let Dump { entries, whole } = table.flows(family, protocol, wanted)?;
                    for flow in entries {
                        let Some(backend) = backend(&flow) else { continue };
                        let (client, connection) = remembered(&flow, backend, now()?);
                        taken = taken.saturating_add(usize::from(remember(&tables.large, &client, &connection)?));
                        found.push(flow);
                    }
                    if whole {
                        break;
                    }
                }
            }
        }
        Ok(Self { table, entries: found, taken })
    }

    /// Ends the entries of the kernel, once the programs serve: until then it translates what is on its way, and from
    /// then on each datagram of the client's is lost while its entry is there. So nothing comes in between. Returns how
    /// many flows were new to the programs.
    pub(in crate::datapath::ebpf) fn end(mut self) -> io::Result<usize> {
        for flow in &self.entries {
            self.table.end(flow)?;
        }
        Ok(self.taken)
    }
}

/// Keeps the programs from the ports with which the kernel stands for clients of connections.
fn leave_ports(tables: &FlowTables, table: &mut Table) -> io::Result<()> {
    let (first, last) = SOURCE_PORTS;
    let masqueraded = |flow: &Flow| {
        let stands_in = flow.answered_to.ip() != flow.client.ip();
        flow.is_translated() && stands_in && (first..=last).contains(&flow.answered_to.port())
    };
    for family in Family::BOTH {
        for flow in table.flows(family, Protocol::Tcp, masqueraded)?.entries {
            let between = ends(flow.answered_to, flow.answered_by, flow.protocol);
            tables.large.set_taken(&Key::of(&between).ends, &Translation::taken(between.from_port, now()?))?;
        }
    }
    Ok(())
}

fn ends(from: SocketAddr, to: SocketAddr, protocol: Protocol) -> Ends {
    Ends {
        from: address(from.ip()),
        to: address(to.ip()),
        from_port: from.port().to_be(),
        to_port: to.port().to_be(),
        protocol: protocol.number(),
        padding: [0; 3],
    }
}

/// What this node sends itself does not come in.
fn own_addresses() -> io::Result<HashSet<IpAddr>> {
    Ok(addresses::list()?.into_iter().map(|found| found.address).collect())
}

/// The directory entry and the backend of a flow's endpoint, if it goes from a frontend to one that serves.
fn backend_behind(layout: &Layout, flow: &Flow) -> Option<(u32, BackendRef)> {
    let Flow { dialled, protocol, answered_by, .. } = flow;
    let port = dialled.port().try_into().ok()?;
    let named = FrontendKey::new(dialled.ip(), port, *protocol);
    let node_port = FrontendKey::node_port(Family::of(&dialled.ip()), port, *protocol);
    let keys = [named.outside(), named, node_port.outside(), node_port];
    keys.iter().find_map(|key| layout.backend_behind(key, *answered_by))
}

/// What the programs know of such a flow: the ends of its client's packets, and the connection.
fn remembered(flow: &Flow, (service, reference): (u32, BackendRef), now: u32) -> (Ends, Connection) {
    let Flow { protocol, client, dialled, answered_by, answered_to, answered, .. } = flow;
    let of_node = client.ip() != answered_to.ip();
    let connection = Connection {
        endpoint: address(answered_by.ip()),
        endpoint_port: answered_by.port().to_be(),
        // The kernel gives a client another port too, where two of its flows would else be one.
        client_port: if of_node { client.port() } else { answered_to.port() }.to_be(),
        source: if of_node { address(answered_to.ip()) } else { [0; 4] },
        source_port: if of_node { answered_to.port().to_be() } else { 0 },
        state: if *answered { State::Open } else { State::Opening } as u8,
        flags: if of_node { Connection::SOURCE_NAT } else { 0 },
        reference: reference.0,
        service,
        seen: now,
        begun: now,
    };
    (ends(*client, *dialled, *protocol), connection)
}

/// Writes a flow, what leads back to it first. False if it is there already, or if its answers would be another flow's.
fn remember(pair: &Pair, client: &Ends, connection: &Connection) -> io::Result<bool> {
    for (key, translation) in leading_back(client, connection) {
        if !pair.add_translation(&key, &translation)?
            && pair.translation(&key)?.is_some_and(|found| !found.leads_as(&translation))
        {
            return Ok(false);
        }
    }
    pair.add_connection(client, connection)
}

/// Whether the kernel may still translate connections of TCP. Writes [`Config::OWN_FLOWS`].
#[derive(Debug)]
pub(in crate::datapath::ebpf) struct EarlierFlows {
    tables: Reader,
    config: Array,
    /// Before the first sync the tables do not say what a frontend is.
    orders: watch::Receiver<Option<Orders>>,
    next: Instant,
    failing: bool,
}

impl EarlierFlows {
    pub(in crate::datapath::ebpf) fn open(
        pins: &MapPins,
        orders: watch::Receiver<Option<Orders>>,
    ) -> Result<Self, TableError> {
        let (tables, config) = (Reader::open(pins)?, Array::open(pins, &maps::CONFIG)?);
        Ok(Self { tables, config, orders, next: Instant::now(), failing: false })
    }

    /// Looks for such connections, once in a while until there are none. From then on all packets of TCP that come to a
    /// frontend are the programs'.
    pub(in super::super) fn look(&mut self, flows: &FlowTables) {
        let known = self.config.load(0, Config::FLAGS).is_none_or(|flags| flags & Config::OWN_FLOWS != 0);
        if known || self.orders.borrow().is_none() || Instant::now() < self.next {
            return;
        }
        match self.are_left(flows) {
            Ok(false) => {
                info!("the kernel translates no connection of an earlier data path");
                let told = self.config.update(0, Config::FLAGS, |flags| flags | Config::OWN_FLOWS);
                self.failing = told.is_err();
            }
            Ok(true) => self.failing = false,
            Err(error) => {
                if !self.failing {
                    warn!(
                        error = with_causes(&error),
                        "the connections of the kernel cannot be listed (CONFIG_NF_CT_NETLINK); a connection of TCP that \
                         the packet programs forget since their tables are full is not served any more"
                    );
                }
                self.failing = true;
            }
        }
        self.next = Instant::now().checked_add(EVERY).unwrap_or(self.next);
    }

    fn are_left(&self, flows: &FlowTables) -> io::Result<bool> {
        let (mut table, own) = (Table::open()?, own_addresses()?);
        leave_ports(flows, &mut table)?;
        // Of connections that this node opens, what comes in are answers. They count if they come to a frontend.
        let earlier = |flow: &Flow| {
            let translated = flow.is_translated() && !own.contains(&flow.client.ip());
            let masqueraded = flow.answered_to != flow.client;
            translated && self.is_frontend(flow.dialled) || masqueraded && self.is_frontend(flow.answered_to)
        };
        for family in Family::BOTH {
            let Dump { entries, whole } = table.flows(family, Protocol::Tcp, earlier)?;
            if !entries.is_empty() || !whole {
                return Ok(true);
            }
        }
        self.tables.take_failure().map_or(Ok(false), Err)
    }

    fn is_frontend(&self, at: SocketAddr) -> bool {
        let (port, protocol) = (at.port().to_be(), Protocol::Tcp.number());
        match at.ip() {
            IpAddr::V4(ip) => lead::<V4, _>(&&self.tables, address4(ip), port, protocol).is_some(),
            IpAddr::V6(ip) => lead::<V6, _>(&&self.tables, address(ip.into()), port, protocol).is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(client: &str, answered_to: &str) -> Flow {
        let [client, answered_to] = [client, answered_to].map(|end| end.parse().unwrap());
        let mut flow = Flow::between("192.0.2.1:30053".parse().unwrap(), "10.1.0.1:5353".parse().unwrap());
        (flow.client, flow.answered_to) = (client, answered_to);
        flow
    }

    /// The port that stands for the client's at the endpoint, and what the node stands for it with.
    #[track_caller]
    fn check(client: &str, answered_to: &str, client_port: u16, source: Option<&str>) {
        let backend = (7, BackendRef::new(3, 2));
        let (ends, connection) = remembered(&flow(client, answered_to), backend, 1000);
        assert_eq!(ends.to_port, 30_053_u16.to_be());
        assert_eq!((connection.service, connection.reference()), backend);
        assert_eq!(u16::from_be(connection.client_port), client_port);
        let wanted = source.map(|source| source.parse::<SocketAddr>().unwrap());
        assert_eq!(connection.source_port, wanted.map_or(0, |source| source.port().to_be()));
        assert_eq!(connection.source, wanted.map_or([0; 4], |source| address(source.ip())));
        assert_eq!(connection.flags, if wanted.is_some() { Connection::SOURCE_NAT } else { 0 });
        assert_eq!(leading_back(&ends, &connection).count(), 1 + usize::from(wanted.is_some()));
    }

    #[test]
    fn a_flow_keeps_the_ports_that_the_kernel_gave_it() {
        check("203.0.113.9:40000", "203.0.113.9:40000", 40_000, None);
        check("203.0.113.9:40000", "203.0.113.9:61007", 61_007, None);
        check("203.0.113.9:40000", "192.0.2.1:1503", 40_000, Some("192.0.2.1:1503"));
    }
}
