//! Rounds of upkeep beside the syncs: when orders come, when something is due, until the daemon stops.

use std::time::Instant;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::super::super::orders::Orders;
use super::{Findings, Upkeep};
use crate::datapath::{Installed, Number, NumberKind, Report};

impl Upkeep {
    /// Works on `orders` and publishes what it finds. Reads and writes block, so this wants a thread of its own.
    pub(in crate::datapath::ebpf) async fn run(
        mut self,
        mut orders: watch::Receiver<Option<Orders>>,
        reports: watch::Sender<Report>,
        stop: CancellationToken,
    ) {
        publish(&reports, &self.findings);
        // Nothing is in the tables before the first sync.
        let mut ordered = tokio::select! {
            () = stop.cancelled() => return,
            ordered = orders.wait_for(Option::is_some) => ordered.map(drop),
        };
        while ordered.is_ok() && !stop.is_cancelled() {
            let newest = orders.borrow_and_update().clone();
            self.take(newest.unwrap_or_default());
            while self.next() <= Instant::now() {
                publish(&reports, self.round());
            }
            ordered = tokio::select! {
                () = stop.cancelled() => return,
                changed = orders.changed() => changed,
                () = tokio::time::sleep_until(self.next().into()) => Ok(()),
            };
        }
        // The channel of orders closed: no sync will follow, and the daemon stops for another reason.
        stop.cancelled().await;
    }
}

fn publish(reports: &watch::Sender<Report>, findings: &Findings) {
    reports.send_if_modified(|known| {
        let (leftovers, installed) = (known.leftovers.clone(), known.installed.clone());
        let report = Report { leftovers, installed, ..report(findings) };
        let modified = *known != report;
        *known = report;
        modified
    });
}

fn report(findings: &Findings) -> Report {
    let Findings { not_in_effect, foreign, namespaces, opted_out, destroyed, flows, clients, checkups, failures } =
        findings;
    let counter = |name, help, value: u64| Number { name, help, kind: NumberKind::Counter, value };
    let gauge = |name, help, value: usize| {
        let value = u64::try_from(value).unwrap_or(u64::MAX);
        Number { name, help, kind: NumberKind::Gauge, value }
    };
    let faults = not_in_effect.len();
    Report {
        checked: *checkups > 0,
        faults: not_in_effect.clone(),
        foreign: foreign.iter().map(ToString::to_string).collect(),
        numbers: vec![
            counter(
                "sockets_destroyed",
                "Sockets destroyed as their endpoint had left or their frontend had changed",
                *destroyed,
            ),
            counter("self_tests", "Self-tests of the socket programs", *checkups),
            counter("upkeep_failures", "Rounds of upkeep that were incomplete", *failures),
            gauge("self_test_faults", "Reasons why the socket programs are not in effect", faults),
            gauge("foreign_programs", "Programs of other tools at the same hooks", foreign.len()),
            gauge("socket_flows", "Connected sockets that have an endpoint of a Service", *flows),
            gauge("affinity_clients", "Clients that session affinity knows, of at most 65,536", *clients),
            gauge("network_namespaces", "Network namespaces of this node", *namespaces),
            gauge("opted_out_namespaces", "Network namespaces that are left alone", *opted_out),
        ],
        leftovers: Vec::new(),
        installed: Installed::default(),
    }
}
