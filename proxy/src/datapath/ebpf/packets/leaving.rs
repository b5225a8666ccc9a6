//! Packet programs that another path replaces: they begin nothing any more, and stay for the connections they know
//! until these end.
//!
//! A rule would give a packet in the middle of a connection to any endpoint. It may do so with a datagram, so the
//! programs leave the next one of a flow to it, and only take back an answer that is on its way. The kernel knows such
//! a flow between client and endpoint: if a rule gave it the same endpoint again, both entries would have the same
//! answers and the packet would be dropped, so its entries end at once.
//!
//! A port of this node that stands for a client must not be given to another flow to the same endpoint, whose answers
//! would be taken for those of the first: the kernel's source NAT is told of it.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};

use proxy_abi::connection::State;
use proxy_abi::maps::packets::CONNECTIONS;
use proxy_abi::packet::Ends;
use proxy_abi::{Address6, Config, Port, maps};
use shunt_model::{Family, Protocol};
use tokio_util::sync::CancellationToken;

use super::super::layout::write::address_of;
use super::super::pins::MapPins;
use super::super::tables::kernel::{Array, TableError};
use super::flows::collect::collect;
use super::flows::{FlowTables, FlowTimeouts, now};
use crate::datapath::HostOptions;
use crate::datapath::packets::conntrack::table::{Flow, Table};

/// So many seconds the kernel's source NAT leaves a port alone, from when it is told. It is told again and again, and
/// what it knows is not renewed.
const OCCUPIED: u32 = 600;

/// The programs cannot be left to their flows.
#[derive(Debug, thiserror::Error)]
pub(in crate::datapath) enum LeaveError {
    /// A table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The kernel refused it.
    #[error("reading and ending the flows that packet programs know")]
    Flows(#[from] io::Error),
}

/// Lets the programs begin nothing any more, and ends the flows that have had no packet for too long. Returns how many
/// go on: without any, all can be removed.
pub(in crate::datapath::ebpf) fn retire(host: &HostOptions, timeouts: &FlowTimeouts) -> Result<u64, LeaveError> {
    let pins = MapPins::below(&host.bpf_root);
    if !pins.of(&CONNECTIONS).exists() {
        return Ok(0);
    }
    let (tables, config) = (FlowTables::open(&pins)?, Array::open(&pins, &maps::CONFIG)?);
    let mut kernel = Table::open()?;
    // Known before the programs leave: until its entry has ended, the packets of a flow are lost.
    let known = entries(&mut kernel, &datagrams(&tables)?)?;
    // Before rules serve what is new, and once more for what has begun since.
    occupy(&mut kernel, &tables)?;
    config.update(0, Config::FLAGS, |flags| flags | Config::LEAVING)?;
    end_all(&mut kernel, &known)?;
    occupy(&mut kernel, &tables)?;
    let rest = entries(&mut kernel, &datagrams(&tables)?)?;
    end_all(&mut kernel, &rest)?;
    collect(&tables, timeouts, now()?, &CancellationToken::new())?;
    let mut left = 0_u64;
    for pair in tables.pairs() {
        pair.read_connections(|piece| {
            left = left.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
            Ok(true)
        })?;
    }
    Ok(left)
}

/// Keeps the kernel's source NAT from the ports that stand for clients.
fn occupy(kernel: &mut Table, tables: &FlowTables) -> io::Result<()> {
    for (source, endpoint) in standing_in(tables)? {
        kernel.occupy(source, endpoint, OCCUPIED)?;
    }
    Ok(())
}

/// The connections of TCP for whose clients this node stands, between this node and endpoint.
fn standing_in(tables: &FlowTables) -> io::Result<Vec<(SocketAddr, SocketAddr)>> {
    let mut found = Vec::new();
    for pair in tables.pairs() {
        pair.read_connections(|piece| {
            let stand_in = piece.iter().filter(|(client, connection)| {
                let goes_on = State::of(connection.state) != State::Closed;
                client.protocol == Protocol::Tcp.number() && connection.source_port != 0 && goes_on
            });
            found.extend(stand_in.map(|(client, connection)| ends(&connection.of_node(client.protocol))));
            Ok(true)
        })?;
    }
    Ok(found)
}

/// The flows of UDP, between client and endpoint.
fn datagrams(tables: &FlowTables) -> io::Result<HashSet<(SocketAddr, SocketAddr)>> {
    let mut found = HashSet::new();
    tables.large.read_connections(|piece| {
        for (client, connection) in piece.iter().filter(|(client, _)| client.protocol == Protocol::Udp.number()) {
            found.insert(ends(&connection.inner(client)));
        }
        Ok(true)
    })?;
    Ok(found)
}

/// The kernel's entries of these flows.
fn entries(kernel: &mut Table, flows: &HashSet<(SocketAddr, SocketAddr)>) -> io::Result<Vec<Flow>> {
    let mut entries = Vec::new();
    if flows.is_empty() {
        return Ok(entries);
    }
    for family in Family::BOTH {
        let ours = |flow: &Flow| flows.contains(&(flow.client, flow.dialled));
        entries.extend(kernel.flows(family, Protocol::Udp, ours)?.entries);
    }
    Ok(entries)
}

fn end_all(kernel: &mut Table, entries: &[Flow]) -> io::Result<()> {
    for entry in entries {
        kernel.end(entry)?;
    }
    Ok(())
}

fn ends(&Ends { from, from_port, to, to_port, .. }: &Ends) -> (SocketAddr, SocketAddr) {
    (end(from, from_port), end(to, to_port))
}

fn end(address: Address6, port: Port) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(address_of(address)).to_canonical(), u16::from_be(port))
}
