//! The flow corpus on real sockets: three nodes with a daemon each, servers everywhere, and clients that dial.
//!
//! Which errors count as which outcome is decided in `lab::flows::judge_sockets`. The test prints a matrix, story by
//! data path, with the reason for each flow that a data path cannot show. `FLOWS` chooses stories by their title and
//! `FLOWS_PATHS` data paths.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(clippy::print_stderr, reason = "a reader prints what went wrong and what it left out")]
#![expect(clippy::panic, reason = "a test that cannot go on has failed, its helpers included")]

mod support;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use lab::flows::{
    self, Cast, Destination, Dialled, Expect, Flow, OTHER_PORT, PORT, Protocol, Reader, Report, Role, Scene, Seen,
    Translation,
};
use lab::peer::{Mode, Question};
use lab::{Daemon, DaemonOptions, Dialler, KubeApi, Lab, Manifests, Node, Place, Process};
use serde_json::{Value, json};

/// How often a sole server is asked, and how often for each of several: one is missed once in 10^11 scenes.
const ALONE: u64 = 4;
const EACH: u64 = 25;
/// How long an answer may take, and how long is waited where none is expected.
const PATIENCE: u64 = 3000;
const SILENCE: u64 = 200;

/// A data path: what it is called in the output, and how the daemons are told to use it.
#[derive(Clone, Copy)]
struct DataPath {
    name: &'static str,
    arguments: &'static [&'static str],
    /// Whether the sockets of pods and nodes are translated, or their packets.
    sockets: bool,
    /// Whether programs at network devices translate packets, and no rules of netfilter.
    programs: bool,
    /// Whether the nodes look like those of a kubelet that uses iptables-legacy: the daemon takes the variant in use.
    legacy: bool,
}

const IPTABLES: DataPath = DataPath {
    name: "iptables",
    arguments: &["--proxy-mode=iptables", "--socket-lb=off"],
    sockets: false,
    programs: false,
    legacy: false,
};
const PATHS: [DataPath; 6] = [
    DataPath { name: "sockets", arguments: &["--proxy-mode=nftables"], sockets: true, ..IPTABLES },
    DataPath { name: "ebpf", arguments: &["--proxy-mode=ebpf"], sockets: true, programs: true, legacy: false },
    DataPath { name: "packets", arguments: &["--proxy-mode=ebpf", "--socket-lb=off"], programs: true, ..IPTABLES },
    DataPath { name: "nftables", arguments: &["--proxy-mode=nftables", "--socket-lb=off"], ..IPTABLES },
    IPTABLES,
    DataPath { name: "legacy", legacy: true, ..IPTABLES },
];

#[test]
fn every_story_on_every_data_path() {
    if support::skipped() {
        return;
    }
    let only = std::env::var("FLOWS_PATHS").unwrap_or_default();
    let chosen = PATHS.iter().filter(|path| only.is_empty() || only.split(',').any(|name| name == path.name));
    let reports: Vec<(&str, Report)> = chosen.map(|path| (path.name, play(path, false))).collect();
    eprintln!("{}", flows::matrix(&reports));
    for (name, report) in &reports {
        assert!(!report.stories.is_empty(), "no story was played on {name}");
        assert_eq!(report.wrong(), 0, "{name}: the stories above went wrong");
    }
}

#[test]
fn sockets_of_a_cluster_with_an_api() {
    if !support::skipped() {
        assert_eq!(play(&PATHS[0], true).wrong(), 0, "the stories above went wrong");
    }
}

fn play(path: &DataPath, kube: bool) -> Report {
    let start = Instant::now();
    let book = flows::load().unwrap_or_else(|error| panic!("{error:#}"));
    let only = std::env::var("FLOWS").unwrap_or_default();
    let mut reader = SocketReader::new(&book.cast, path, kube).unwrap_or_else(|error| panic!("{error:#}"));
    let report = flows::play(&book, &only, &mut reader)
        .unwrap_or_else(|error| panic!("{error:#}\nlogs of the lab:\n{}", reader.lab.logs()));
    if path.programs {
        reader.check_that_no_rules_are_there().unwrap_or_else(|error| panic!("{error:#}"));
    }
    let (all, applying, scenes) = (start.elapsed(), reader.applying, reader.scenes);
    eprintln!("{}: {report} in {all:.0?}; {scenes} scenes took {applying:.0?} to be applied", path.name);
    report
}

/// The lab with the cast on it. Fields are dropped in this order.
struct SocketReader {
    daemons: Vec<Daemon>,
    clients: BTreeMap<String, Dialler>,
    _servers: Vec<Process>,
    _api: Option<KubeApi>,
    manifests: Manifests,
    scenes: u32,
    /// How long all daemons together took to apply the scenes.
    applying: Duration,
    path: DataPath,
    nodes: BTreeMap<String, Node>,
    places: BTreeMap<String, Place>,
    lab: Lab,
}

impl SocketReader {
    fn new(cast: &Cast, path: &DataPath, kube: bool) -> anyhow::Result<Self> {
        let lab = Lab::new(&format!("{}{}", path.name, if kube { "api" } else { "" }))?;
        let manifests = Manifests::new(&lab.directory().join("manifests"))?;
        manifests.put("scene", &cast.nodes)?;
        let (mut nodes, mut places) = (BTreeMap::<String, Node>::new(), BTreeMap::<String, Place>::new());
        for member in &cast.members {
            let name = member.name.as_str();
            match &member.role {
                Role::Node { zone: _ } => {
                    let node = lab.node(name)?;
                    places.insert(name.to_owned(), node.host().clone());
                    nodes.insert(name.to_owned(), node);
                }
                Role::Pod { node } => {
                    let last: u8 = name.trim_start_matches(char::is_alphabetic).parse().context(member.name.clone())?;
                    let pod = nodes.get(node).context("a pod before its node")?.pod_with_number(name, 10 + last)?;
                    ensure!((member.ipv4, member.ipv6) == (pod.ipv4.into(), pod.ipv6.into()), "{name} moved");
                    places.insert(name.to_owned(), (*pod).clone());
                }
                Role::Outside => {}
            }
        }
        let [port, other] = [PORT, OTHER_PORT].map(|port| port.to_string());
        let ports = ["--with-port", "--tcp", &port, &other, "--udp", &port, &other, "--sctp-init", &port, &other];
        let servers: anyhow::Result<_> = places.iter().map(|(name, place)| place.serve(name, &ports)).collect();
        places.insert(lab.outside.name().to_owned(), lab.outside.clone());
        let clients: anyhow::Result<_> =
            places.iter().map(|(name, place)| Ok((name.clone(), place.dialler()?))).collect();
        let api = kube.then(|| KubeApi::start(&lab, manifests.directory())).transpose()?;
        let mut options = DaemonOptions::new(manifests.directory());
        options.kubeconfig = api.as_ref().map(|api| api.kubeconfig().to_owned());
        options.extra.extend(path.arguments.iter().map(|&argument| argument.to_owned()));
        if path.legacy {
            for node in nodes.values() {
                let made = node.spawn(&["iptables-legacy", "-t", "mangle", "-N", "KUBE-KUBELET-CANARY"])?;
                ensure!(made.finish(Duration::from_secs(10))?.status.success(), "iptables-legacy does not work here");
            }
        }
        let daemons: anyhow::Result<_> = nodes.values().map(|node| node.daemon(options.clone())).collect();
        let (daemons, clients, servers, path) = (daemons?, clients?, servers?, *path);
        let (_servers, _api, scenes, applying) = (servers, api, 0, Duration::ZERO);
        Ok(Self { daemons, clients, _servers, _api, manifests, scenes, applying, path, nodes, places, lab })
    }

    /// Programs alone have served all that was seen.
    fn check_that_no_rules_are_there(&self) -> anyhow::Result<()> {
        for (name, node) in &self.nodes {
            let list = "nft list ruleset; iptables-legacy-save; ip6tables-legacy-save";
            let rules = node.spawn(&["sh", "-c", list])?.finish(Duration::from_secs(10))?;
            ensure!(rules.status.success(), "the rules of {name} cannot be listed: {}", rules.status);
            ensure!(rules.lines.is_empty(), "{name} has rules of netfilter: {:#?}", rules.lines);
        }
        Ok(())
    }

    /// Puts the objects in force on every node. They are one file with a Service and a slice that mark it, so they are
    /// one change to a daemon that reads the file; an API server sends both marks last. Once the daemon reports that it
    /// serves the one with the endpoint of the other, all of it is in the kernel.
    fn set(&mut self, objects: &[Value]) -> anyhow::Result<()> {
        self.scenes += 1;
        let mark = format!("192.0.2.{}:9", self.scenes % 250 + 1);
        let name = format!("zz-scene-{}", self.scenes);
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "zz"},
            "spec": {"clusterIP": "10.96.255.1", "ports": [{"port": 9}]},
        });
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": name, "namespace": "zz", "labels": {"kubernetes.io/service-name": name}},
            "endpoints": [{"addresses": [format!("192.0.2.{}", self.scenes % 250 + 1)]}],
            "ports": [{"name": "", "port": 9}],
        });
        self.manifests.put("scene", &[objects, &[service, slice]].concat())?;
        let deadline = Instant::now() + Duration::from_secs(10);
        for daemon in &self.daemons {
            while !daemon.services()?.contains(&mark) {
                if Instant::now() > deadline {
                    bail!("{} does not serve {mark} after 10 s", daemon.process().name());
                }
                thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }
}

impl Reader for SocketReader {
    fn read(&mut self, scene: &Scene<'_>) -> anyhow::Result<Vec<Seen>> {
        let start = Instant::now();
        self.set(&scene.objects)?;
        self.applying += start.elapsed();
        let unseen = |flow: &Flow<'_>| unseen(scene.cast, flow, &self.path).map(Seen::Skipped);
        let mut seen: Vec<Option<Seen>> = scene.flows.iter().map(unseen).collect();
        for (round, mut flows) in rounds(scene) {
            flows.retain(|index| seen.get(*index).is_some_and(Option::is_none));
            if let Some(node) = &round.balance_to {
                self.lab.balance_to(self.nodes.get(node).with_context(|| format!("no node {node}"))?)?;
            }
            let played = match &round.lent {
                None => self.play(scene, &flows),
                Some((name, address)) => {
                    let place = self.places.get(name).with_context(|| format!("no place {name}"))?.clone();
                    place.with_address(*address, || self.play(scene, &flows))
                }
            };
            for (index, what) in played? {
                *seen.get_mut(index).context("a flow that was not asked for")? = Some(what);
            }
        }
        seen.into_iter().map(|seen| seen.context("a flow that was not played")).collect()
    }
}

/// Why real sockets cannot show what becomes of this flow on such a data path.
fn unseen(cast: &Cast, flow: &Flow<'_>, path: &DataPath) -> Option<&'static str> {
    let answered = matches!(flow.expect, Expect::To(_) | Expect::OneOf(_));
    let of_node = matches!(flow.client.role, Role::Node { zone: _ });
    let one = |to: &Destination| match Translation::of(cast, flow, to, path.sockets) {
        Translation::ByPackets if path.programs && to.protocol == Protocol::Sctp => {
            Some("the packet programs do not serve SCTP yet")
        }
        Translation::ByPackets if path.programs && of_node && !Translation::is_elsewhere(cast, flow, to) => {
            Some("what a node sends itself comes in by none of its devices: programs serve it at its sockets alone")
        }
        Translation::AtSocket if flow.unusual_source && answered => {
            Some("a socket keeps the address that it is bound to, and the answer is routed to where that address is")
        }
        Translation::ByPackets if is_ipv6_loopback(to.address.ip()) && answered => {
            Some("the kernel routes no packets from ::1 to other hosts: only sockets serve node ports there (TP-16)")
        }
        Translation::AtSocket | Translation::ByPackets => None,
    };
    flow.to.iter().find_map(one)
}

/// Whether this leads a client to its own ::1.
fn is_ipv6_loopback(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_loopback() || v6.is_unspecified())
}

/// Flows that can be played at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Round {
    /// The node to which a load balancer leads the client outside.
    balance_to: Option<String>,
    /// An address that one place has only then.
    lent: Option<(String, IpAddr)>,
}

/// The numbers of the flows of each round: all in one if possible.
fn rounds(scene: &Scene<'_>) -> BTreeMap<Round, Vec<usize>> {
    let mut rounds = BTreeMap::<Round, Vec<usize>>::new();
    for (index, flow) in scene.flows.iter().enumerate() {
        let to_nobody = |to: &Destination| scene.cast.at(to.address.ip().to_canonical()).is_none();
        let balanced = flow.client.role == Role::Outside && flow.to.iter().any(to_nobody);
        let round = Round {
            balance_to: balanced.then(|| flow.node.clone()),
            lent: flow.unusual_source.then(|| (flow.client.name.clone(), flow.source)),
        };
        rounds.entry(round).or_default().push(index);
    }
    // Flows that need nothing go along with those that need one thing.
    if rounds.len() > 1
        && let Some(free) = rounds.remove(&Round::default())
        && let Some(mut first) = rounds.first_entry()
    {
        first.get_mut().extend(free);
    }
    rounds
}

impl SocketReader {
    /// All clients at once, and each asks all its questions at once.
    fn play(&mut self, scene: &Scene<'_>, flows: &[usize]) -> anyhow::Result<Vec<(usize, Seen)>> {
        let sockets = self.path.sockets;
        thread::scope(|scope| {
            let playing: Vec<_> = self
                .clients
                .iter_mut()
                .map(|(name, client)| {
                    let all = flows.iter().filter_map(|index| Some((*index, scene.flows.get(*index)?)));
                    let mine: Vec<(usize, &Flow<'_>)> = all.filter(|(_, flow)| flow.client.name == *name).collect();
                    scope.spawn(move || ask(scene.cast, client, &mine, sockets))
                })
                .collect();
            let mut seen = Vec::new();
            for result in playing.into_iter().map(thread::ScopedJoinHandle::join) {
                seen.extend(result.unwrap_or_else(|_| bail!("a client's thread panicked"))?);
            }
            Ok(seen)
        })
    }
}

fn ask(
    cast: &Cast,
    client: &mut Dialler,
    mine: &[(usize, &Flow<'_>)],
    sockets: bool,
) -> anyhow::Result<Vec<(usize, Seen)>> {
    let mut questions: Vec<Vec<(Dialled, Question)>> =
        mine.iter().map(|(_, flow)| questions(cast, flow, sockets)).collect();
    // netfilter lets each of several first flows of one client choose before any is remembered: one goes ahead.
    let sticky = mine.iter().zip(&mut questions).filter(|((_, flow), _)| matches!(flow.expect, Expect::OneOf(_)));
    for (dialled, question) in sticky.filter_map(|(_, questions)| questions.first_mut()) {
        dialled.attempts = client.dial(&[Question { count: 1, ..*question }])?.into_iter().flatten().collect();
    }
    let all: Vec<Question> = questions.iter().flatten().map(|(_, question)| *question).collect();
    let mut answers = client.dial(&all)?.into_iter();
    let mut seen = Vec::new();
    for ((index, flow), questions) in mine.iter().zip(&mut questions) {
        for ((dialled, _), attempts) in questions.iter_mut().zip(answers.by_ref()) {
            dialled.attempts.extend(attempts);
        }
        let dialled: Vec<Dialled> = questions.drain(..).map(|(dialled, _)| dialled).collect();
        seen.push((*index, flows::judge_sockets(cast, flow, &dialled)));
    }
    Ok(seen)
}

/// What to ask for a flow, with room for the answers.
fn questions(cast: &Cast, flow: &Flow<'_>, sockets: bool) -> Vec<(Dialled, Question)> {
    let count = match flow.expect {
        Expect::To(servers) if servers.len() > 1 => EACH * u64::try_from(servers.len()).unwrap_or(1),
        Expect::To(_) => ALONE,
        Expect::OneOf(_) => 15,
        Expect::Reject | Expect::Drop | Expect::Deny | Expect::Pass => 1,
    };
    let modes = |protocol| match protocol {
        Protocol::Tcp => [Mode::Tcp].as_slice(),
        Protocol::Udp => &[Mode::Udp, Mode::UdpUnconnected],
        Protocol::Sctp => &[Mode::SctpInit],
    };
    let source = flow.unusual_source.then_some(flow.source);
    let each = |to: &Destination| {
        let to = *to;
        let translation = Translation::of(cast, flow, &to, sockets);
        modes(to.protocol).iter().map(move |&mode| {
            let silent = flows::is_silent(cast, flow, &to, mode, translation);
            let timeout = if silent { SILENCE } else { PATIENCE };
            let question = Question { to: to.address, mode, count, timeout, source };
            (Dialled { to, translation, mode, attempts: Vec::new() }, question)
        })
    };
    flow.to.iter().flat_map(each).collect()
}
