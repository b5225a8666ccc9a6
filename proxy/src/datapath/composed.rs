//! Programs at sockets over a path for packets: both take every plan.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use shunt_model::with_causes;
use tokio::sync::Notify;
use tracing::warn;

use super::packets::conntrack::StaleFlows;
use super::{Datapath, Opened, OpenedPart, PacketOptions, SyncError, Synced};
use crate::host::sysctls::{self, Told};
use crate::plan::Plan;

/// As a plan has it, for 127.0.0.0/8.
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What serves packets, and what serves sockets before any packet is sent.
struct Composed {
    /// In the order in which they take a plan: sockets first, for they need less than a millisecond.
    parts: Vec<Box<dyn Datapath>>,
    /// With a path for packets, whose flows the kernel remembers.
    stale_flows: Option<StaleFlows>,
    /// Packets from loopback may leave the node, once rules guard it (TP-15).
    loopback: Loopback,
}

/// Whether packets serve node ports at loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loopback {
    /// No, or the kernel has been told.
    Settled,
    /// The kernel must be told when the rules are there.
    Waits,
}

/// The parts as one path.
pub(super) fn over(
    sockets: Option<OpenedPart>,
    packets: Option<OpenedPart>,
    options: PacketOptions,
    disturbed: Arc<Notify>,
) -> Opened {
    let loopback = match packets.is_some() && options.loopback_node_ports {
        true => Loopback::Waits,
        false => Loopback::Settled,
    };
    let (mut parts, mut adopted, mut reports, mut beside) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let stale_flows = packets.is_some().then(StaleFlows::new);
    for part in sockets.into_iter().chain(packets) {
        parts.push(part.path);
        adopted.push(part.adopted);
        reports.push(part.report);
        beside.extend(part.beside);
    }
    let path = Box::new(Composed { parts, stale_flows, loopback });
    Opened { path, adopted: adopted.join("; "), reports, disturbed, beside }
}

impl Composed {
    fn settle_loopback(&mut self, plan: &Plan) {
        let accepts = || plan.addresses.get(&LOOPBACK).is_some_and(|meaning| meaning.node_ports.is_some());
        if self.loopback == Loopback::Settled || !accepts() {
            return;
        }
        self.loopback = Loopback::Settled;
        match sysctls::route_localnet() {
            Ok(told) => told.iter().for_each(Told::log),
            Err(error) => warn!(reason = with_causes(&error), "this node does not reach its node ports at loopback"),
        }
    }
}

impl Datapath for Composed {
    /// A part that fails does not keep the others from the plan.
    fn sync(&mut self, plan: &Plan) -> Result<Synced, SyncError> {
        let mut outcome = Ok(Synced::default());
        for part in &mut self.parts {
            outcome = match (outcome, part.sync(plan)) {
                (Ok(before), Ok(synced)) => Ok(before.and(synced)),
                (Err(error), _) | (Ok(_), Err(error)) => Err(error),
            };
        }
        let mut synced = outcome?;
        if let Some(stale_flows) = &mut self.stale_flows {
            synced.flow_sweeps = stale_flows.after_sync(plan);
        }
        self.settle_loopback(plan);
        Ok(synced)
    }

    fn mark_own_dns(&mut self, sockets: &[OwnedFd]) -> Result<(), SyncError> {
        self.parts.iter_mut().try_for_each(|part| part.mark_own_dns(sockets))
    }

    fn audit(&mut self) -> Result<u64, SyncError> {
        let mut repaired = Ok(0);
        for part in &mut self.parts {
            repaired = match (repaired, part.audit()) {
                (Ok(before), Ok(more)) => Ok(u64::saturating_add(before, more)),
                (Err(error), _) | (Ok(_), Err(error)) => Err(error),
            };
        }
        repaired
    }
}

impl Synced {
    /// What two parts did, one after the other.
    fn and(self, other: Self) -> Self {
        let Self { writes, refused, elapsed, flow_sweeps } = other;
        Self {
            writes: self.writes.saturating_add(writes),
            refused: [self.refused, refused].concat(),
            elapsed: self.elapsed.saturating_add(elapsed),
            flow_sweeps: [self.flow_sweeps, flow_sweeps].concat(),
        }
    }
}
