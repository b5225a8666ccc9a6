//! Ends flows that have been without a packet for too long.
//!
//! No flow is lost to a packet that comes meanwhile. The kernel takes a connection out in one step, and only one that
//! is still as it was read stays out; one that a packet has touched is put back with all that leads back to it. A
//! program that had found the connection before that step still carries its packet, and the next packet begins the flow
//! anew by its digest. What leads back to a connection stays for a while: a flow of the same ends may begin at any
//! moment, and it takes over what is there. What leads to none and has not been used is taken out in one step too, and
//! put back if a flow has come by then.

use std::collections::HashSet;
use std::io;
use std::time::{Duration, Instant};

use proxy_abi::connection::{Connection, Key, Translation};
use proxy_abi::packet::Ends;
use shunt_model::with_causes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::earlier::EarlierFlows;
use super::timeouts::is_left_over;
use super::{FlowTables, FlowTimeouts, Pair, leading_back, now};
use crate::datapath::report::{Number, NumberKind, Report};

/// The shortest time-out of a flow.
const EVERY: Duration = Duration::from_secs(10);
/// A round takes at most this part of a processor.
const REST: u32 = 100;

/// What one round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::datapath::ebpf) struct Collected {
    /// Flows that go on.
    pub(in super::super) kept: u64,
    /// Flows that have ended.
    pub(in super::super) ended: u64,
    /// Elements that led back to no connection.
    pub(in super::super) left_over: u64,
}

/// Looks after the tables of flows until the daemon stops.
#[derive(Debug)]
pub(in crate::datapath::ebpf) struct Collector {
    tables: FlowTables,
    timeouts: FlowTimeouts,
    earlier: EarlierFlows,
    /// Ended since the start.
    ended: u64,
    failing: bool,
}

impl Collector {
    pub(in crate::datapath::ebpf) fn new(tables: FlowTables, timeouts: FlowTimeouts, earlier: EarlierFlows) -> Self {
        Self { tables, timeouts, earlier, ended: 0, failing: false }
    }

    /// Looks again and again until stopped. What it calls blocks, so this wants a thread of its own.
    pub(in crate::datapath::ebpf) async fn run(mut self, reports: watch::Sender<Report>, stop: CancellationToken) {
        let mut pause = EVERY;
        while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            let begun = Instant::now();
            let collected = now().and_then(|now| collect(&self.tables, &self.timeouts, now, &stop));
            pause = EVERY.max(begun.elapsed().saturating_mul(REST));
            match &collected {
                Ok(collected) => self.publish(*collected, &reports),
                Err(error) if !self.failing => warn!(
                    error = with_causes(error),
                    "flows that have ended are not removed; the tables of flows fill and then forget the longest unused; \
                     the daemon retries it"
                ),
                Err(_) => {}
            }
            self.failing = collected.is_err();
            self.earlier.look(&self.tables);
        }
    }

    fn publish(&mut self, collected: Collected, reports: &watch::Sender<Report>) {
        let Collected { kept, ended, left_over } = collected;
        debug!(kept, ended, left_over, "removed flows that have ended");
        self.ended = self.ended.saturating_add(ended);
        let numbers = vec![
            Number {
                name: "packet_flows",
                help: "flows that the packet programs remember, counted every ten seconds",
                kind: NumberKind::Gauge,
                value: kept,
            },
            Number {
                name: "packet_flows_ended",
                help: "flows that the daemon has removed since they had no packet for too long",
                kind: NumberKind::Counter,
                value: self.ended,
            },
        ];
        reports.send_if_modified(|report| {
            let modified = report.numbers != numbers;
            report.numbers = numbers;
            modified
        });
    }
}

/// Removes what has ended, in all tables. It stops between two pieces if told so.
pub(in super::super) fn collect(
    tables: &FlowTables,
    timeouts: &FlowTimeouts,
    now: u32,
    stop: &CancellationToken,
) -> io::Result<Collected> {
    let (mut collected, mut used) = (Collected::default(), Used::new());
    for pair in tables.pairs() {
        // What leads back to a flow that opens again may be in the large tables still.
        used.extend(end_flows(pair, timeouts, now, stop, &mut collected)?);
        if stop.is_cancelled() {
            break;
        }
        remove_left_over(tables, pair, &used, now, stop, &mut collected)?;
    }
    Ok(collected)
}

/// Digests of keys that lead back to a flow. Two keys with one digest only keep an element for longer.
type Used = HashSet<u64>;

fn digest(key: &Ends) -> u64 {
    u64::from(key.digest(0)) << 32 | u64::from(key.digest(1))
}

/// Ends the flows of a pair that have been without a packet for too long. Returns what leads back to the others.
fn end_flows(
    pair: &Pair,
    timeouts: &FlowTimeouts,
    now: u32,
    stop: &CancellationToken,
    collected: &mut Collected,
) -> io::Result<Used> {
    let mut used = Used::new();
    let mut keep = |client: &Ends, connection: &Connection, collected: &mut Collected| {
        used.extend(leading_back(client, connection).map(|(key, _)| digest(&key)));
        collected.kept = collected.kept.saturating_add(1);
    };
    pair.read_connections(|found| {
        let (ended, kept): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|(client, connection)| timeouts.has_ended(connection, client.protocol, now));
        for (client, connection) in &kept {
            keep(client, connection, collected);
        }
        for (client, connection) in &ended {
            match end_flow(pair, client, connection)? {
                None => collected.ended = collected.ended.saturating_add(1),
                Some(goes_on) => keep(client, &goes_on, collected),
            }
        }
        Ok(!stop.is_cancelled())
    })?;
    Ok(used)
}

/// Takes out a connection. Returns it if a packet has come since it was read as `ended`:
/// then everything is as it was.
pub(in super::super) fn end_flow(pair: &Pair, client: &Ends, ended: &Connection) -> io::Result<Option<Connection>> {
    // A packet may have come since then, and the next one must not meet a gap.
    if let Some(goes_on) = pair.connection(client)?.filter(|now| now.seen != ended.seen) {
        return Ok(Some(goes_on));
    }
    let Some(taken) = pair.take_connection(client)? else { return Ok(None) };
    if taken.seen == ended.seen {
        return Ok(None);
    }
    // A program that has begun the flow anew meanwhile has written more than this.
    pair.add_connection(client, &taken)?;
    for (key, translation) in leading_back(client, &taken) {
        pair.add_translation(&key, &translation)?;
    }
    Ok(Some(taken))
}

/// Removes what leads back to no connection and has not been used for a while. The connection has been forgotten, the
/// flow has begun anew with another endpoint, or it has passed to the other tables.
fn remove_left_over(
    tables: &FlowTables,
    pair: &Pair,
    used: &Used,
    now: u32,
    stop: &CancellationToken,
    collected: &mut Collected,
) -> io::Result<()> {
    pair.read_translations(|found| {
        let left_over = found
            .into_iter()
            .filter(|(key, translation)| is_left_over(translation, now) && !used.contains(&digest(key)));
        for (key, translation) in left_over {
            if remove_translation(tables, pair, &key, &translation)? {
                collected.left_over = collected.left_over.saturating_add(1);
            }
        }
        Ok(!stop.is_cancelled())
    })
}

/// Takes out what was read as `left_over`. False if it is back in its place: it has been used since, or its flow has
/// begun again.
fn remove_translation(tables: &FlowTables, pair: &Pair, key: &Ends, left_over: &Translation) -> io::Result<bool> {
    let in_large = std::ptr::eq(pair, &tables.large);
    let is_left_over = |found: &Translation| -> io::Result<bool> {
        let leads = leads_to_a_flow(pair, pair, key, found)?
            || (in_large && leads_to_a_flow(pair, &tables.opening, key, found)?);
        Ok(found.seen == left_over.seen && !leads)
    };
    // As above. And again once it is out: a program that begins the flow from then on makes what leads back to it.
    match pair.translation(key)? {
        Some(found) if is_left_over(&found)? => {}
        Some(_) | None => return Ok(false),
    }
    let Some(taken) = pair.take_translation(key)? else { return Ok(false) };
    if is_left_over(&taken)? {
        return Ok(true);
    }
    pair.add_translation(key, &taken)?;
    Ok(false)
}

/// Whether a translation of `pair` leads to a connection in `place`.
fn leads_to_a_flow(pair: &Pair, place: &Pair, key: &Ends, translation: &Translation) -> io::Result<bool> {
    let to_client = if translation.flags & Translation::OF_NODE == 0 {
        Some((*key, *translation))
    } else {
        // By the endpoint and the client it leads to the other one.
        let endpoint = if translation.flags & Translation::CLIENT_FIRST == 0 { *key } else { key.reversed() };
        let between = Ends { to: translation.address, to_port: translation.port, ..endpoint };
        let key = Key::of(&between).ends;
        pair.translation(&key)?.map(|found| (key, found))
    };
    let Some((between, found)) = to_client else { return Ok(false) };
    let client = if found.flags & Translation::CLIENT_FIRST == 0 { between.to } else { between.from };
    let client = found.dialled(client, key.protocol);
    let Some(connection) = place.connection(&client)? else { return Ok(false) };
    Ok(leading_back(&client, &connection).any(|(leading, _)| leading == *key))
}
