//! Ends flows that have been without a packet for too long.
//!
//! No connection of TCP or SCTP is lost to a packet that comes meanwhile: without it, packets in the middle of one
//! might not be served. The kernel takes it out in one step, and only one that is still as it was read stays out; one
//! that a packet has touched is put back with all that leads back to it. A program that had found it before that step
//! still carries its packet, and the next packet begins the flow anew by its digest.
//!
//! All else goes many elements by one call, which does not say how the kernel found them. A datagram that comes in the
//! instant between the reading of its flow and that call, after all the time without one, does not keep the flow: the
//! next one begins it anew by its digest, as if both had come an instant later.
//!
//! What leads back to a flow that has ended goes in the same round, so that others may have its ports, and what leads
//! to none goes once it has not been used for a while. What a packet has used since the round began stays. In the same
//! instant, a flow that begins anew may lose what leads back to it, and an answer misses its client. The client sends
//! again, and in another second its packet makes what leads back again from the connection, as after a full table.

use std::io;
use std::time::{Duration, Instant};

use nohash_hasher::IntSet;
use proxy_abi::connection::{Connection, Translation};
use proxy_abi::packet::{Ends, protocol};
use shunt_model::with_causes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::earlier::EarlierFlows;
use super::timeouts::{is_left_over, seconds_since};
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
    /// Elements that led back to them, or to no connection.
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
    let mut round = Round { now, stop, ended: Digests::default(), collected: Collected::default() };
    // In this order: see `FlowTables::pairs`.
    let opening = round.end_flows(&tables.opening, timeouts)?;
    let mut used = round.end_flows(&tables.large, timeouts)?;
    round.remove_translations(&tables.opening, &opening)?;
    // What leads back to a flow that opens again may be in the large tables still.
    used.extend(opening);
    round.remove_translations(&tables.large, &used)?;
    Ok(round.collected)
}

/// Digests of elements that lead back to flows.
type Digests = IntSet<u64>;

/// One look at all tables.
struct Round<'a> {
    /// When it began: whatever has been used since has this time, or a later one.
    now: u32,
    stop: &'a CancellationToken,
    /// What leads back to flows that have ended in this round: [`element`].
    ended: Digests,
    collected: Collected,
}

impl Round<'_> {
    /// Ends the flows of a pair that have been without a packet for too long. Returns the digests of the keys that lead
    /// back to the others.
    fn end_flows(&mut self, pair: &Pair, timeouts: &FlowTimeouts) -> io::Result<Digests> {
        let mut used = Digests::default();
        pair.read_connections(|found| {
            let mut datagrams = Vec::new();
            for (client, connection) in &found {
                let goes_on = match client.protocol {
                    _ if !timeouts.has_ended(connection, client.protocol, self.now) => Some(*connection),
                    number if protocol::connects(number) => end_flow(pair, client, connection)?,
                    _ => {
                        datagrams.push(*client);
                        None
                    }
                };
                if let Some(goes_on) = goes_on {
                    used.extend(leading_back(client, &goes_on).map(|(key, _)| digest(&key)));
                    self.collected.kept = self.collected.kept.saturating_add(1);
                } else {
                    self.ended.extend(leading_back(client, connection).map(|(key, value)| element(&key, &value)));
                    self.collected.ended = self.collected.ended.saturating_add(1);
                }
            }
            pair.remove_connections(&datagrams)?;
            Ok(!self.stop.is_cancelled())
        })?;
        Ok(used)
    }

    /// Removes what leads back to flows that have ended, and what leads to no connection and has not been used for a
    /// while: the connection has been forgotten, the flow has begun anew with another endpoint, or it has passed to the
    /// other tables.
    fn remove_translations(&mut self, pair: &Pair, used: &Digests) -> io::Result<()> {
        if self.stop.is_cancelled() {
            // Then not all that is in use has been read.
            return Ok(());
        }
        pair.read_translations(|found| {
            let goes = |(key, value): &(Ends, Translation)| {
                (is_left_over(value, self.now) || self.has_ended(key, value)) && !used.contains(&digest(key))
            };
            let gone: Vec<Ends> = found.iter().filter(|found| goes(found)).map(|(key, _)| *key).collect();
            pair.remove_translations(&gone)?;
            let removed = u64::try_from(gone.len()).unwrap_or(u64::MAX);
            self.collected.left_over = self.collected.left_over.saturating_add(removed);
            Ok(!self.stop.is_cancelled())
        })
    }

    /// Whether an element leads to a flow that has ended in this round and has not begun anew since. The same key may
    /// lead to another flow by now, which has taken the port of the former one.
    fn has_ended(&self, key: &Ends, value: &Translation) -> bool {
        seconds_since(value.seen, self.now) > 0 && self.ended.contains(&element(key, value))
    }
}

fn digest(key: &Ends) -> u64 {
    u64::from(key.digest(0)) << 32 | u64::from(key.digest(1))
}

/// The digest of a key and of what it leads to.
fn element(key: &Ends, value: &Translation) -> u64 {
    let &Translation { address, port, client_port, .. } = value;
    digest(key) ^ digest(&Ends { from: address, from_port: port, to_port: client_port, ..*key })
}

/// Takes out a connection. Returns it if a packet has come since it was read as `ended`: then everything is as it was.
pub(in super::super) fn end_flow(pair: &Pair, client: &Ends, ended: &Connection) -> io::Result<Option<Connection>> {
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
