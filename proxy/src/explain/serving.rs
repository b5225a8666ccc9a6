//! Which part of the data path serves a flow on this node, and how the one for packets finds its endpoint.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use shunt_model::Protocol;

use crate::datapath::reading::{Clients, EndpointChoice, KnownAddress, PacketFindings, Reading, ReadingError};
use crate::datapath::{Chosen, Part};
use crate::plan::{Packet, Plan, Source};

/// What serves a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Serving {
    /// `sockets`, `programs`, `nftables` or `iptables`; `None` if nothing does.
    pub part: Option<String>,
    /// The same for people.
    pub by: String,
    /// How programs for packets find the endpoint, in order.
    pub steps: Vec<String>,
}

/// What serves the flow of a packet where `chosen` serves.
pub(super) fn serving(
    plan: &Plan,
    packet: &Packet,
    left_alone: bool,
    chosen: &Chosen,
) -> Result<Serving, ReadingError> {
    let dials_at_socket = packet.source != Source::Outside && !left_alone && packet.protocol != Protocol::Sctp;
    let part = match chosen.packets {
        _ if chosen.sockets && dials_at_socket => Part::Sockets,
        Some(path) => path.part(),
        None => {
            return Ok(Serving {
                part: None,
                by: "nothing: this node has no path for packets".into(),
                steps: Vec::new(),
            });
        }
    };
    let part_of = |by: String, steps| Serving { part: Some(part.to_string()), by, steps };
    Ok(match (part, packet.source) {
        (Part::Sockets | Part::Nftables | Part::Iptables, _) => part_of(part.description().into(), Vec::new()),
        (Part::Programs, Source::Node) => {
            let unseen = "which do not see what this node sends itself: it keeps its destination";
            part_of(format!("{}, {unseen}", part.description()), Vec::new())
        }
        (Part::Programs, Source::Pod | Source::Outside) => part_of(part.description().into(), steps(plan, packet)?),
    })
}

fn steps(plan: &Plan, packet: &Packet) -> Result<Vec<String>, ReadingError> {
    let unknown = if packet.destination.is_ipv4() { IpAddr::from([0_u8; 4]) } else { IpAddr::from([0_u8; 16]) };
    let from = packet.source_address.unwrap_or(unknown);
    let to = SocketAddr::new(packet.destination, packet.port);
    let outside = packet.source == Source::Outside;
    let reading = Reading::of(&plan.around(packet.destination))?;
    Ok(in_words(&reading.findings(outside, from, to, packet.protocol), to))
}

fn in_words(findings: &PacketFindings, to: SocketAddr) -> Vec<String> {
    let PacketFindings { address, clients, endpoint } = findings;
    let ip = to.ip();
    let mut steps = vec![match address {
        KnownAddress::No => return vec![format!("ADDRESSES does not have {ip}: the packet goes on untouched")],
        KnownAddress::OfService => format!("ADDRESSES has {ip} as an address of a Service"),
        KnownAddress::TakesNodePorts => format!("ADDRESSES has {ip} as an address of this node that takes node ports"),
    }];
    steps.extend(clients.map(|clients| {
        match clients {
            Clients::All => "the frontend has one element, for all clients (scope ANY)",
            Clients::Outside => "the frontend has an element for clients outside of the cluster (scope OUTSIDE)",
        }
        .to_owned()
    }));
    if let Some(EndpointChoice { sticky, source_nat }) = endpoint {
        let by_digest = "the digest of the flow's addresses and ports chooses the endpoint, the same again if the flow is \
                         forgotten";
        let by_client = "session affinity: the endpoint that the client had last, else one by the digest of the client";
        steps.push((if *sticky { by_client } else { by_digest }).to_owned());
        let translated = "at egress an address of this node becomes the source, and a port from 1024 to 29999";
        let kept = "the client keeps its address, unless it is the endpoint itself";
        steps.push((if *source_nat { translated } else { kept }).to_owned());
    }
    steps
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Explanation, explain_served, render};
    use super::*;
    use crate::datapath::{Mode, PacketPath};
    use crate::plan::fixture::{NODE, cluster, options, pod, service, set_node, slice};
    use crate::plan::plan;
    use crate::plan::properties::NODE_ADDRESSES;

    fn served(sockets: bool, packets: Option<PacketPath>, words: &str, source: &str, to: &str) -> Explanation {
        let mut snapshot = cluster([service("web", words)], [slice("web", "a", "http:80/tcp sig:90/sctp", "e1:R")]);
        let here = pod("here", "10.1.0.9", NODE, "");
        snapshot.pods.insert(here.key.clone(), Arc::new(here));
        set_node(&mut snapshot, None, &NODE_ADDRESSES);
        let plan = plan(&snapshot, &options()).0;
        let chosen = Chosen { mode: Mode::Ebpf, sockets, packets, without: Vec::new() };
        explain_served(&snapshot, &plan, NODE, (source, to), Some(&chosen)).unwrap()
    }

    #[track_caller]
    fn check(sockets: bool, packets: Option<PacketPath>, source: &str, to: &str, wanted: &str) {
        let words = "ip=10.96.0.1 port=http:80/tcp np=30080 port=sig:90/sctp eTP";
        let explanation = served(sockets, packets, words, source, to);
        let [flow] = &explanation.flows[..] else { panic!("{explanation:?}") };
        let Serving { part, by, steps } = flow.served_by.clone().unwrap();
        assert_eq!(part.unwrap_or_default(), wanted, "{by} {steps:?}");
        assert!(render(&explanation).contains(&format!("served by {by}")));
    }

    #[test]
    fn sockets_serve_before_packets_are_sent_and_packets_serve_the_rest() {
        let (programs, rules) = (Some(PacketPath::Programs), Some(PacketPath::Nftables));
        check(true, programs, "default/here", "10.96.0.1:80", "sockets");
        check(true, rules, "node", "10.96.0.1:80", "sockets");
        check(true, programs, "default/here", "10.96.0.1:90/sctp", "programs");
        check(true, rules, "outside", "10.96.0.1:80", "nftables");
        check(false, Some(PacketPath::Iptables), "node", "10.96.0.1:80", "iptables");
        check(false, programs, "node", "10.96.0.1:80", "programs");
        check(true, None, "outside", "10.96.0.1:80", "");
    }

    #[test]
    fn programs_for_packets_say_how_they_find_the_endpoint() {
        let [own, _] = NODE_ADDRESSES;
        let steps = |words: &str, source: &str, to: &str| {
            let explanation = served(false, Some(PacketPath::Programs), words, source, to);
            explanation.flows[0].served_by.clone().unwrap().steps
        };
        let node_port = format!("{own}:30080");
        let words = "ip=10.96.0.1 port=http:80/tcp np=30080";
        let found = steps(words, "203.0.113.9", &node_port);
        assert_eq!(found[0], format!("ADDRESSES has {own} as an address of this node that takes node ports"));
        assert!(found[1].contains("scope ANY") && found[2].contains("digest of the flow"), "{found:?}");
        assert!(found[3].contains("an address of this node becomes the source"), "{found:?}");
        let local = steps(&format!("{words} eTP"), "203.0.113.9", &node_port);
        assert!(local[1].contains("scope OUTSIDE"), "{local:?}");
        assert_eq!(local.len(), 2, "no endpoint is on this node: {local:?}");
        let sticky = steps(&format!("{words} aff=10800"), "default/here", "10.96.0.1:80");
        assert_eq!(sticky[0], "ADDRESSES has 10.96.0.1 as an address of a Service");
        assert!(sticky[2].contains("session affinity") && sticky[3].contains("keeps its address"), "{sticky:?}");
        let foreign = steps(words, "203.0.113.9", "198.51.100.7:80");
        assert_eq!(foreign, ["ADDRESSES does not have 198.51.100.7: the packet goes on untouched"]);
    }
}
