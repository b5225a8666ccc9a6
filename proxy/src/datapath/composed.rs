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
    loopback: Loopback,
}

/// Packets from loopback may leave the node, but only while rules guard it (TP-15).
struct Loopback {
    /// Packets are to serve node ports at loopback, if nodes have them there.
    wanted: bool,
    /// What the kernel has been told.
    told: Option<bool>,
    /// It refused, and that is logged.
    failing: bool,
}

/// The parts as one path.
pub(super) fn over(
    sockets: Option<OpenedPart>,
    packets: Option<OpenedPart>,
    options: PacketOptions,
    disturbed: Arc<Notify>,
) -> Opened {
    let wanted = packets.is_some() && options.loopback_node_ports;
    let loopback = Loopback { wanted, told: None, failing: false };
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

impl Loopback {
    fn served(&self, plan: &Plan) -> bool {
        self.wanted && plan.addresses.get(&LOOPBACK).is_some_and(|meaning| meaning.node_ports.is_some())
    }

    /// Tells the kernel if it has not been told; the next sync tries again what it refuses.
    fn tell(&mut self, served: bool) {
        if self.told == Some(served) {
            return;
        }
        let told = if served { sysctls::route_localnet() } else { sysctls::end_route_localnet() };
        match told {
            Ok(told) => {
                told.iter().for_each(Told::log);
                (self.told, self.failing) = (Some(served), false);
            }
            Err(error) => {
                let reason = with_causes(&error);
                match (self.failing, served) {
                    (true, _) => {}
                    (false, true) => warn!(reason, "this node does not reach its node ports at loopback"),
                    (false, false) => warn!(reason, "hosts of the same link may reach servers at 127.0.0.1"),
                }
                self.failing = true;
            }
        }
    }
}

impl Datapath for Composed {
    /// A part that fails does not keep the others from the plan.
    fn sync(&mut self, plan: &Plan) -> Result<Synced, SyncError> {
        let served = self.loopback.served(plan);
        if !served {
            // Before the rules go that guard it.
            self.loopback.tell(served);
        }
        let (mut outcome, mut flow_sweeps) = (Ok(Synced::default()), Vec::new());
        let mut stale_flows = self.stale_flows.as_mut();
        for part in &mut self.parts {
            let synced = part.sync(plan);
            // The first part is the one for packets: what becomes of sockets does not change its rules.
            if let (Ok(_), Some(stale_flows)) = (&synced, stale_flows.take()) {
                flow_sweeps = stale_flows.after_sync(plan);
                if served {
                    self.loopback.tell(served);
                }
            }
            outcome = match (outcome, synced) {
                (Ok(before), Ok(synced)) => Ok(Synced::and(before, synced)),
                (Err(error), _) | (Ok(_), Err(error)) => Err(error),
            };
        }
        Ok(Synced { flow_sweeps, ..outcome? })
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
