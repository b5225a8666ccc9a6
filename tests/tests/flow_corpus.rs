//! The flow corpus on real sockets: three nodes with a daemon each, servers everywhere, and clients that dial.
//!
//! Which errors count as which outcome is decided in `lab::flows::judge_sockets`. Flows that need a packet path are
//! skipped and counted.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(clippy::print_stderr, reason = "a reader prints what went wrong and what it left out")]
#![expect(clippy::panic, reason = "a test that cannot go on has failed, its helpers included")]

mod support;

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use lab::flows::{
    self, Cast, Destination, Dialled, Expect, Flow, OTHER_PORT, PORT, Protocol, Reader, Role, Scene, Seen,
};
use lab::peer::{Mode, Question};
use lab::{Daemon, DaemonOptions, Dialler, KubeApi, Lab, Manifests, Node, Place, Process};
use serde_json::{Value, json};

/// How often a sole server is asked, and how often for each of several: one is missed once in 10^11 scenes.
const ALONE: u64 = 4;
const EACH: u64 = 25;
/// How long an answer may take, and how long is waited where none is expected.
const PATIENCE: u64 = 3000;
const SILENCE: u64 = 400;

#[test]
fn sockets() {
    play(false);
}

#[test]
fn sockets_of_a_cluster_with_an_api() {
    play(true);
}

fn play(kube: bool) {
    if support::skipped() {
        return;
    }
    let start = Instant::now();
    let book = flows::load().unwrap_or_else(|error| panic!("{error:#}"));
    let only = std::env::var("FLOWS").unwrap_or_default();
    let mut reader = SocketReader::new(&book.cast, kube).unwrap_or_else(|error| panic!("{error:#}"));
    let report = flows::play(&book, &only, &mut reader)
        .unwrap_or_else(|error| panic!("{error:#}\nlogs of the lab:\n{}", reader.lab.logs()));
    eprintln!("{report} in {:?}", start.elapsed());
    assert!(report.stories > 0, "no story's title contains {only:?}");
    assert!(report.wrong.is_empty(), "the stories above went wrong");
}

/// The lab with the cast on it. Fields are dropped in this order.
struct SocketReader {
    daemons: Vec<Daemon>,
    clients: BTreeMap<String, Dialler>,
    _servers: Vec<Process>,
    _api: Option<KubeApi>,
    manifests: Manifests,
    scenes: u32,
    lab: Lab,
}

impl SocketReader {
    fn new(cast: &Cast, kube: bool) -> anyhow::Result<Self> {
        let lab = Lab::new(if kube { "flowsapi" } else { "flows" })?;
        let manifests = Manifests::new(&lab.directory().join("manifests"))?;
        manifests.put("scene", &cast.nodes)?;
        let (mut nodes, mut places) = (BTreeMap::<&str, Node>::new(), Vec::<Place>::new());
        for member in &cast.members {
            let name = member.name.as_str();
            match &member.role {
                Role::Node { zone: _ } => {
                    let node = lab.node(name)?;
                    places.push(node.host().clone());
                    nodes.insert(name, node);
                }
                Role::Pod { node } => {
                    let last: u8 = name.trim_start_matches(char::is_alphabetic).parse().context(member.name.clone())?;
                    let pod =
                        nodes.get(node.as_str()).context("a pod before its node")?.pod_with_number(name, 10 + last)?;
                    ensure!((member.ipv4, member.ipv6) == (pod.ipv4.into(), pod.ipv6.into()), "{name} moved");
                    places.push((*pod).clone());
                }
                Role::Outside => {}
            }
        }
        let [port, other] = [PORT, OTHER_PORT].map(|port| port.to_string());
        let ports = ["--with-port", "--tcp", &port, &other, "--udp", &port, &other];
        let servers: anyhow::Result<_> = places.iter().map(|place| place.serve(place.name(), &ports)).collect();
        let clients: anyhow::Result<_> =
            places.iter().map(|place| Ok((place.name().to_owned(), place.dialler()?))).collect();
        let api = kube.then(|| KubeApi::start(&lab, manifests.directory())).transpose()?;
        let mut options = DaemonOptions::new(manifests.directory());
        options.kubeconfig = api.as_ref().map(|api| api.kubeconfig().to_owned());
        let daemons: anyhow::Result<_> = nodes.values().map(|node| node.daemon(options.clone())).collect();
        Ok(Self { daemons: daemons?, clients: clients?, _servers: servers?, _api: api, manifests, scenes: 0, lab })
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
        self.set(&scene.objects)?;
        let mut seen: Vec<Seen> =
            scene.flows.iter().map(|flow| unseen(scene.cast, flow).map_or(Seen::Right, Seen::Skipped)).collect();
        // All clients at once, and each asks all its questions at once.
        let results: Vec<anyhow::Result<Vec<(usize, Seen)>>> = thread::scope(|scope| {
            let playing: Vec<_> = self
                .clients
                .iter_mut()
                .map(|(name, client)| {
                    let mine: Vec<(usize, &Flow<'_>)> = scene
                        .flows
                        .iter()
                        .enumerate()
                        .zip(&seen)
                        .filter(|((_, flow), seen)| flow.client.name == *name && **seen == Seen::Right)
                        .map(|(numbered, _)| numbered)
                        .collect();
                    scope.spawn(move || ask(scene.cast, client, &mine))
                })
                .collect();
            let joined = playing.into_iter().map(thread::ScopedJoinHandle::join);
            joined.map(|result| result.unwrap_or_else(|_| bail!("a client's thread panicked"))).collect()
        });
        for result in results {
            for (index, what) in result? {
                if let Some(place) = seen.get_mut(index) {
                    *place = what;
                }
            }
        }
        Ok(seen)
    }
}

/// Why a socket cannot show what becomes of this flow.
fn unseen(cast: &Cast, flow: &Flow<'_>) -> Option<&'static str> {
    let elsewhere = |to: &Destination| {
        let node = cast.at(to.address.ip()).filter(|member| matches!(member.role, Role::Node { zone: _ }));
        node.is_some_and(|node| node.name != flow.node)
    };
    if flow.client.role == Role::Outside {
        Some("the client is outside: needs a packet path")
    } else if flow.unusual_source {
        Some("the source address is not the client's: needs crafted packets")
    } else if flow.to.iter().any(|to| to.protocol == Protocol::Sctp) {
        Some("SCTP: the lab has no such sockets")
    } else if *flow.expect != Expect::Pass && flow.to.iter().any(elsewhere) {
        Some("another node is dialled: needs its packet path")
    } else {
        None
    }
}

fn ask(cast: &Cast, client: &mut Dialler, mine: &[(usize, &Flow<'_>)]) -> anyhow::Result<Vec<(usize, Seen)>> {
    let questions: Vec<Vec<(Destination, Question)>> = mine.iter().map(|(_, flow)| questions(flow)).collect();
    let all: Vec<Question> = questions.iter().flatten().map(|(_, question)| *question).collect();
    let mut answers = client.dial(&all)?.into_iter();
    let mut seen = Vec::new();
    for ((index, flow), questions) in mine.iter().zip(questions) {
        let dialled: Vec<Dialled> = questions
            .into_iter()
            .zip(answers.by_ref())
            .map(|((to, question), attempts)| Dialled { to, mode: question.mode, attempts })
            .collect();
        seen.push((*index, flows::judge_sockets(cast, flow, &dialled)));
    }
    Ok(seen)
}

fn questions(flow: &Flow<'_>) -> Vec<(Destination, Question)> {
    let (count, timeout) = match flow.expect {
        Expect::To(servers) if servers.len() > 1 => (EACH * u64::try_from(servers.len()).unwrap_or(1), PATIENCE),
        Expect::To(_) => (ALONE, PATIENCE),
        Expect::OneOf(_) => (15, PATIENCE),
        Expect::Reject | Expect::Drop | Expect::Deny | Expect::Pass => (1, SILENCE),
    };
    let modes = |protocol| match protocol {
        Protocol::Tcp => [Mode::Tcp].as_slice(),
        Protocol::Udp => &[Mode::Udp, Mode::UdpUnconnected],
        Protocol::Sctp => &[],
    };
    let each = |to: &Destination| {
        let (to, address) = (*to, to.address);
        modes(to.protocol).iter().map(move |mode| (to, Question { to: address, mode: *mode, count, timeout }))
    };
    flow.to.iter().flat_map(each).collect()
}
