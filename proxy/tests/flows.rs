//! The flow corpus read by the plan and by the tables of the socket programs: what every story says must be what
//! [`Plan::verdict`] says, and what a lookup in the tables finds.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(clippy::panic, clippy::print_stderr, reason = "a reader says what went wrong and what it left out")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, ensure};
use lab::Manifests;
use lab::flows::{self, Cast, Outcome, Rules, Scene, SourceSeen};
use shunt_model::source::manifests::{self, ManifestsOptions};
use shunt_proxy::datapath::PacketOptions;
use shunt_proxy::datapath::reading::{
    Caller, IptablesReading, NftablesReading, Outcome as Lookup, PacketOutcome, Reading,
};
use shunt_proxy::plan::{Decision, EmptyLocal, Endpoint, Met, Packet, Plan, PlanOptions, Source, Verdict, plan};

/// Plays the whole corpus, or the stories whose title contains `FLOWS`.
fn read_corpus(rules: impl Rules) {
    let book = flows::load().unwrap_or_else(|error| panic!("{error:#}"));
    let only = std::env::var("FLOWS").unwrap_or_default();
    let report = flows::play(&book, &only, &mut flows::read_rules(rules)).unwrap_or_else(|error| panic!("{error:#}"));
    eprintln!("{report}");
    assert!(!report.stories.is_empty(), "no story's title contains {only:?}");
    assert_eq!(report.wrong(), 0, "the stories above went wrong");
}

#[test]
fn verdict() {
    read_corpus(Verdicts::default());
}

#[test]
fn tables() {
    read_corpus(Readings::default());
}

#[test]
fn iptables() {
    read_corpus(PacketReadings { of: IptablesReading::of, read: IptablesReading::outcome, nodes: BTreeMap::new() });
}

#[test]
fn nftables() {
    read_corpus(PacketReadings { of: NftablesReading::of, read: NftablesReading::outcome, nodes: BTreeMap::new() });
}

/// The rules for packets of all nodes for the scene that is on.
struct PacketReadings<R> {
    of: fn(&Plan, PacketOptions) -> R,
    read: fn(&R, &Packet) -> PacketOutcome,
    nodes: BTreeMap<String, R>,
}

impl<R> Rules for PacketReadings<R> {
    fn load(&mut self, scene: &Scene<'_>) -> anyhow::Result<()> {
        let options = PacketOptions { masquerade_mark: 1 << 14, drop_invalid: true, loopback_node_ports: true };
        let rules = |(node, plan): (String, Plan)| (node, (self.of)(&plan, options));
        self.nodes = plans(scene, EmptyLocal::Refuse)?.into_iter().map(rules).collect();
        Ok(())
    }

    fn meet(&mut self, cast: &Cast, node: &str, packet: &flows::Packet) -> anyhow::Result<Outcome> {
        let rules = self.nodes.get(node).with_context(|| format!("no rules for {node}"))?;
        let destination = match packet.destination.to_canonical() {
            // A socket that dials the unspecified address sends to loopback.
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
            address @ (IpAddr::V4(_) | IpAddr::V6(_)) => address,
        };
        let loopback = destination.is_loopback();
        let packet = Packet { destination, ..planned(packet) };
        Ok(match (packet.source, (self.read)(rules, &packet)) {
            (Source::Node, _) if loopback && destination.is_ipv6() => {
                Outcome::Unseen("packets cannot leave ::1 (TP-16)")
            }
            (Source::Pod, _) if loopback => Outcome::Pass, // They stay inside the pod.
            (_, PacketOutcome::Endpoints { addresses, sticky }) => {
                let by = addresses.into_iter().map(|address| cast.server(address)).collect();
                Outcome::Served { by, sticky, source: None }
            }
            (_, PacketOutcome::Reject) => Outcome::Reject,
            (_, PacketOutcome::Drop) => Outcome::Drop,
            (_, PacketOutcome::Pass) => Outcome::Pass,
        })
    }
}

/// The tables of all nodes for the scene that is on.
#[derive(Default)]
struct Readings {
    nodes: BTreeMap<String, Reading>,
}

impl Rules for Readings {
    fn load(&mut self, scene: &Scene<'_>) -> anyhow::Result<()> {
        let tables = |(node, plan): (String, Plan)| anyhow::Ok((node, Reading::of(&plan)?));
        // So that a lookup tells where packets get no answer from where they are refused.
        self.nodes = plans(scene, EmptyLocal::Pass)?.into_iter().map(tables).collect::<anyhow::Result<_>>()?;
        Ok(())
    }

    fn meet(&mut self, cast: &Cast, node: &str, packet: &flows::Packet) -> anyhow::Result<Outcome> {
        let memory = self.nodes.get(node).with_context(|| format!("no tables for {node}"))?;
        let client = match packet.source {
            flows::Source::Pod => Caller::Pod(packet.source_address),
            flows::Source::Node => Caller::Node,
            flows::Source::Outside => return Ok(Outcome::Unseen("packets from outside meet no socket of this node")),
        };
        let (to, protocol) = (SocketAddr::new(packet.destination, packet.port), planned(packet).protocol);
        Ok(match memory.outcome(client, to, protocol) {
            Lookup::Endpoints { addresses, sticky } => {
                let by = addresses.into_iter().map(|address| cast.server(address)).collect();
                Outcome::Served { by, sticky, source: None }
            }
            Lookup::Refused => Outcome::Reject,
            Lookup::KeepsDestination | Lookup::Denied => Outcome::Drop,
            Lookup::Foreign => Outcome::Pass,
        })
    }
}

/// The plans of all nodes for the scene that is on.
#[derive(Default)]
struct Verdicts {
    plans: BTreeMap<String, Plan>,
}

impl Rules for Verdicts {
    fn load(&mut self, scene: &Scene<'_>) -> anyhow::Result<()> {
        self.plans = plans(scene, EmptyLocal::Refuse)?;
        Ok(())
    }

    fn meet(&mut self, cast: &Cast, node: &str, packet: &flows::Packet) -> anyhow::Result<Outcome> {
        let plan = self.plans.get(node).with_context(|| format!("no plan for {node}"))?;
        Ok(outcome(cast, &plan.decide(&planned(packet)), packet.source_address))
    }
}

/// What every node plans, read from the objects as the daemon reads them.
fn plans(scene: &Scene<'_>, empty_local: EmptyLocal) -> anyhow::Result<BTreeMap<String, Plan>> {
    let folder = tempfile::tempdir().context("making a folder")?;
    Manifests::new(folder.path())?.put("scene", &scene.objects)?;
    let options = ManifestsOptions { dir: folder.path().to_owned(), ..ManifestsOptions::default() };
    let (snapshot, _) = manifests::read(&options).context("reading the scene")?;
    let services = scene.objects.iter().filter(|object| object["kind"] == "Service").count();
    ensure!(snapshot.services.len() == services, "{} of {services} Services were read", snapshot.services.len());
    let nodes = scene.cast.members.iter().filter(|member| matches!(member.role, flows::Role::Node { zone: _ }));
    Ok(nodes
        .map(|node| {
            let options = PlanOptions { node: node.name.as_str().into(), empty_local, ..PlanOptions::default() };
            (node.name.clone(), plan(&snapshot, &options).0)
        })
        .collect())
}

/// A packet of the corpus as the plan knows it.
fn planned(packet: &flows::Packet) -> Packet {
    Packet {
        source: match packet.source {
            flows::Source::Pod => Source::Pod,
            flows::Source::Node => Source::Node,
            flows::Source::Outside => Source::Outside,
        },
        source_address: Some(packet.source_address),
        destination: packet.destination,
        port: packet.port,
        protocol: match packet.protocol {
            flows::Protocol::Tcp => shunt_model::Protocol::Tcp,
            flows::Protocol::Udp => shunt_model::Protocol::Udp,
            flows::Protocol::Sctp => shunt_model::Protocol::Sctp,
        },
    }
}

/// A decision of the plan in the words of the corpus.
fn outcome(cast: &Cast, decision: &Decision<'_>, source: IpAddr) -> Outcome {
    match decision.verdict {
        Verdict::NotOurs => Outcome::Pass,
        Verdict::Reject => Outcome::Reject,
        Verdict::Drop => Outcome::Drop,
        Verdict::Forward { endpoints, .. } => {
            let met = decision.reason.and_then(|reason| reason.met());
            Outcome::Served {
                by: endpoints.iter().map(|endpoint| cast.server(endpoint.address)).collect(),
                sticky: met.is_some_and(|met| met.port.affinity.is_some()),
                source: met.and_then(|met| seen_source(&met, endpoints, source)),
            }
        }
    }
}

/// Whose address those endpoints see that are not the client itself.
fn seen_source(met: &Met<'_>, endpoints: &[Endpoint], source: IpAddr) -> Option<SourceSeen> {
    let others = endpoints.iter().filter(|endpoint| endpoint.address.ip() != source);
    let masquerade: BTreeSet<bool> = others.map(|endpoint| met.rule.masquerades(source, endpoint)).collect();
    match masquerade.iter().collect::<Vec<_>>().as_slice() {
        [true] => Some(SourceSeen::Node),
        [false] => Some(SourceSeen::Kept),
        _ => None,
    }
}
