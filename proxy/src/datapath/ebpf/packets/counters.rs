//! What the packet programs have counted, as metrics.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use proxy_abi::{Count, Served, maps};
use shunt_model::with_causes;
use tokio::sync::watch;
use tracing::warn;

use super::super::pins::MapPins;
use super::super::tables::kernel::{TableError, open};
use super::owners::Owned;
use crate::datapath::looking::{Counters, Meter};
use crate::plan::PortKey;
use crate::sys::bpf;

const SERVED_WORDS: usize = size_of::<Served>() / size_of::<u64>();

/// Reads the counters.
#[derive(Debug)]
pub(in crate::datapath::ebpf) struct Counted {
    counters: OwnedFd,
    served: OwnedFd,
    owners: watch::Receiver<Owned>,
    processors: usize,
}

impl Counted {
    pub(in crate::datapath::ebpf) fn open(
        pins: &MapPins,
        owners: watch::Receiver<Owned>,
        processors: usize,
    ) -> Result<Self, TableError> {
        let (counters, served) = (open(pins, &maps::packets::COUNTERS)?, open(pins, &maps::packets::SERVED)?);
        Ok(Self { counters, served, owners, processors })
    }

    /// What was counted, by number.
    pub(super) fn counts(&self) -> io::Result<Vec<u64>> {
        bpf::sums(self.counters.as_fd(), 1, self.processors, Count::ALL.len())
    }

    fn read_all(&self) -> io::Result<Vec<Counters>> {
        let owners = self.owners.borrow().clone();
        let entries = owners.get_max().map_or(0, |(service, _)| *service as usize + 1);
        let served = bpf::sums(self.served.as_fd(), SERVED_WORDS, self.processors, entries)?;
        Ok([of_all(&self.counts()?), of_services(&served, &owners)].concat())
    }
}

impl Meter for Counted {
    fn read(&self) -> Vec<Counters> {
        self.read_all().unwrap_or_else(|error| {
            warn!(reason = with_causes(&error), "the counters of the packet programs cannot be read");
            Vec::new()
        })
    }
}

/// The metric of a count, and the label that tells it from others of the metric.
pub(super) const fn place(count: Count) -> (&'static str, Option<(&'static str, &'static str)>) {
    match count {
        Count::New => (FLOWS, Some(("how", "new"))),
        Count::Reopened => (FLOWS, Some(("how", "reopened"))),
        Count::Rebalanced => (FLOWS, Some(("how", "rebalanced"))),
        Count::Established => ("packet_flows_established", None),
        Count::SourceNat => ("packet_source_nat_flows", None),
        Count::PortChanged => ("packet_client_port_changes", None),
        Count::NoEndpoint => (REJECTS, Some(("reason", "no_endpoint"))),
        Count::UndefinedPort => (REJECTS, Some(("reason", "undefined_port"))),
        Count::NoLocalEndpoint => (DROPS, Some(("reason", "no_local_endpoint"))),
        Count::SourceRange => (DROPS, Some(("reason", "source_range"))),
        Count::NoClientPort => (DROPS, Some(("reason", "no_client_port"))),
        Count::NoSourceAddress => (DROPS, Some(("reason", "no_source_address"))),
        Count::NoSourcePort => (DROPS, Some(("reason", "no_source_port"))),
        Count::UnusedAddress => (DROPS, Some(("reason", "unused_address"))),
        Count::Martian => (DROPS, Some(("reason", "martian"))),
        Count::TableFull => (DROPS, Some(("reason", "table_full"))),
        Count::NotRewritten => (DROPS, Some(("reason", "rewrite_failed"))),
        Count::MessageSent => (MESSAGES, Some(("result", "sent"))),
        Count::MessageHeldBack => (MESSAGES, Some(("result", "rate_limited"))),
        Count::MessageToNobody => (MESSAGES, Some(("result", "no_receiver"))),
        Count::MessageFailed => (MESSAGES, Some(("result", "failed"))),
        Count::ErrorTranslated => ("packet_icmp_errors_translated", None),
        Count::EventLeftOut => ("packet_decisions_untold", None),
    }
}

const FLOWS: &str = "packet_flows";
const REJECTS: &str = "packet_rejects";
const DROPS: &str = "packet_drops";
const MESSAGES: &str = "packet_reject_messages";

fn help(name: &str) -> &'static str {
    match name {
        FLOWS => "Flows of packets that began",
        "packet_flows_established" => "TCP connections whose client sent a second packet",
        "packet_source_nat_flows" => "Flows for whose client an address of this node stands",
        "packet_client_port_changes" => "Flows that got another client port, because two would else have been one",
        REJECTS => "Packets without an endpoint whose sender is refused",
        DROPS => "Packets that were dropped",
        MESSAGES => "ICMP messages about rejects, sent or not",
        "packet_icmp_errors_translated" => "ICMP errors about packets of flows",
        _ => "Decisions that shunt monitor left out",
    }
}

fn of_all(counts: &[u64]) -> Vec<Counters> {
    let mut metrics: BTreeMap<&'static str, Counters> = BTreeMap::new();
    for (count, value) in Count::ALL.into_iter().zip(counts) {
        let (name, label) = place(count);
        let metric = metrics.entry(name).or_insert_with(|| Counters { name, help: help(name), values: Vec::new() });
        metric.values.push((label.map(|(label, value)| (label, value.to_owned())).into_iter().collect(), *value));
    }
    metrics.into_values().collect()
}

/// Only services that packets have met: a node has no packets for most.
fn of_services(served: &[u64], owners: &Owned) -> Vec<Counters> {
    let mut sums: BTreeMap<&PortKey, [u64; SERVED_WORDS]> = BTreeMap::new();
    for (service, owner) in owners {
        let words = served.iter().skip(*service as usize * SERVED_WORDS).take(SERVED_WORDS);
        if words.clone().any(|word| *word != 0) {
            let sum = sums.entry(owner).or_default();
            sum.iter_mut().zip(words).for_each(|(sum, word)| *sum = sum.wrapping_add(*word));
        }
    }
    let values = |at: usize| {
        let value =
            |(owner, sum): (&&PortKey, &[u64; SERVED_WORDS])| (labels(owner), sum.get(at).copied().unwrap_or_default());
        sums.iter().map(value).collect()
    };
    vec![
        Counters { name: "service_packet_flows", help: "Flows of packets that began, by service", values: values(0) },
        Counters {
            name: "service_packet_flows_unserved",
            help: "Packets that began no flow, by service: rejected or dropped",
            values: values(1),
        },
    ]
}

fn labels(owner: &PortKey) -> Vec<(&'static str, String)> {
    let PortKey { service, port, protocol, family } = owner;
    vec![
        ("service_namespace", service.namespace.to_string()),
        ("service_name", service.name.to_string()),
        ("port_name", port.to_string()),
        ("protocol", protocol.to_string()),
        ("ip_family", family.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::{cluster, options, service};
    use crate::plan::plan;

    /// Metrics with their labels and values.
    fn shown(metrics: &[Counters]) -> Vec<String> {
        let values = metrics.iter().flat_map(|metric| {
            metric.values.iter().map(|(labels, value)| {
                let labels: Vec<String> = labels.iter().map(|(label, value)| format!("{label}={value}")).collect();
                format!("{} {} {value}", metric.name, labels.join(" "))
            })
        });
        values.collect()
    }

    #[test]
    fn each_count_is_a_value_of_a_metric_that_the_documentation_names() {
        let counts: Vec<u64> = (100..).take(Count::ALL.len()).collect();
        let metrics = of_all(&counts);
        let shown = shown(&metrics);
        assert_eq!(shown.len(), Count::ALL.len());
        assert!(shown.contains(&"packet_rejects reason=undefined_port 107".to_owned()), "{shown:?}");
        assert!(shown.contains(&"packet_source_nat_flows  104".to_owned()), "{shown:?}");
        let documented = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md")).unwrap();
        for Counters { name, values, .. } in metrics.iter().chain(&of_services(&[], &Owned::new())) {
            assert!(documented.contains(&format!("`shunt_{name}_total`")), "{name}");
            for (label, value) in values.iter().flat_map(|(labels, _)| labels) {
                assert!(
                    documented.contains(&format!("`{label}`")) && documented.contains(&format!("`{value}`")),
                    "{value}"
                );
            }
        }
    }

    #[test]
    fn the_entries_of_a_service_port_are_counted_together_and_idle_ones_not_at_all() {
        let services = [service("idle", "ip=10.96.0.2 port=:80/tcp"), service("web", "ip=10.96.0.1 port=http:80/tcp")];
        let plan = plan(&cluster(services, []), &options()).0;
        let mut keys = plan.ports.keys().cloned();
        let (idle, web) = (keys.next().unwrap(), keys.next().unwrap());
        let owners: Owned = [(0_u32, web.clone()), (1, idle), (3, web)].into_iter().collect();
        // Of the entry without an owner, nothing is said.
        let shown = shown(&of_services(&[1, 2, 0, 0, 70, 70, 3, 4], &owners));
        let of = |name: &str, value: u64| {
            let labels = "service_namespace=default service_name=web port_name=http protocol=tcp ip_family=IPv4";
            format!("{name} {labels} {value}")
        };
        assert_eq!(shown, [of("service_packet_flows", 4), of("service_packet_flows_unserved", 6)]);
    }
}
