//! Programs over rules for packets: both take every plan.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use shunt_model::with_causes;
use tokio::sync::Notify;
use tracing::warn;

use super::packets::conntrack::StaleFlows;
use super::{Datapath, Looking, Opened, OpenedPart, PacketOptions, SyncError, Synced};
use crate::host::sysctls::{self, Told};
use crate::plan::Plan;

/// As a plan has it, for 127.0.0.0/8.
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Programs, which serve sockets before any packet is sent, packets as they come in, or both; and rules for packets, if
/// programs do not serve these. Programs take a plan first, for they need less than a millisecond.
struct Composed {
    programs: Option<Box<dyn Datapath>>,
    rules: Option<Rules>,
}

/// A path by rules, with what goes with them, whatever they are made of.
struct Rules {
    path: Box<dyn Datapath>,
    stale_flows: StaleFlows,
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
    programs: Option<OpenedPart>,
    rules: Option<OpenedPart>,
    options: PacketOptions,
    disturbed: Arc<Notify>,
) -> Opened {
    let (mut adopted, mut reports, mut beside) = (Vec::new(), Vec::new(), Vec::new());
    let mut looking = Looking::default();
    let mut take = |part: OpenedPart| {
        adopted.push(part.adopted);
        reports.extend(part.reports);
        beside.extend(part.beside);
        looking = std::mem::take(&mut looking).and(part.looking);
        part.path
    };
    let programs = programs.map(&mut take);
    let rules = rules.map(&mut take).map(|path| {
        let loopback = Loopback { wanted: options.loopback_node_ports, told: None, failing: false };
        Rules { path, stale_flows: StaleFlows::new(), loopback }
    });
    let path = Box::new(Composed { programs, rules });
    Opened { path, adopted: adopted.join("; "), reports, looking, disturbed, beside }
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

impl Rules {
    fn sync(&mut self, plan: &Plan) -> Result<Synced, SyncError> {
        let served = self.loopback.served(plan);
        if !served {
            // Before the rules go that guard it.
            self.loopback.tell(served);
        }
        let synced = self.path.sync(plan)?;
        // Only now: a flow that ends before the rules have changed begins again by the old ones.
        let flow_sweeps = self.stale_flows.after_sync(plan);
        if served {
            self.loopback.tell(served);
        }
        Ok(Synced { flow_sweeps, ..synced })
    }
}

impl Composed {
    fn parts(&mut self) -> impl Iterator<Item = &mut dyn Datapath> {
        let rules = self.rules.as_mut().map(|rules| &mut rules.path);
        self.programs.iter_mut().chain(rules).map(|part| &mut **part as &mut dyn Datapath)
    }
}

impl Datapath for Composed {
    /// A part that fails does not keep the other from the plan.
    fn sync(&mut self, plan: &Plan) -> Result<Synced, SyncError> {
        let programs = self.programs.as_mut().map_or_else(|| Ok(Synced::default()), |programs| programs.sync(plan));
        let rules = self.rules.as_mut().map_or_else(|| Ok(Synced::default()), |rules| rules.sync(plan));
        Ok(programs?.and(rules?))
    }

    fn mark_own_dns(&mut self, sockets: &[OwnedFd]) -> Result<(), SyncError> {
        self.parts().try_for_each(|part| part.mark_own_dns(sockets))
    }

    fn audit(&mut self) -> Result<u64, SyncError> {
        let audited: Vec<Result<u64, SyncError>> = self.parts().map(|part| part.audit()).collect();
        audited.into_iter().try_fold(0, |repaired: u64, audited| Ok(repaired.saturating_add(audited?)))
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
