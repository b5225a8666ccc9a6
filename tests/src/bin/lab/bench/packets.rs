//! The data paths for packets side by side, in one lab: each has a node of its own, with a client pod; the servers are
//! on another node. Each follows a folder of its own, so that a change is one data path's alone.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lab::peer::{BenchLine, Mode, ProgramLine, now};
use lab::{Binaries, Daemon, DaemonOptions, Lab, Manifests, Node, Pod, Process, manifests};
use serde_json::{Value, json};

use super::cluster::{BATCH, PATIENCE, filler, metrics, rss_kib};
use super::kube_proxy::{Kind, Rules, Served};

/// As many endpoints as kube-proxy was measured with.
const ENDPOINTS: u32 = 4;
const SINK: u16 = 7000;
const NAMED: u16 = 7001;
const BULK: u16 = 7002;
/// The last of all services: where rules are looked at in order, it comes at their end.
const TARGET: Ipv4Addr = Ipv4Addr::new(10, 96, 250, 1);
const MOVING: Ipv4Addr = Ipv4Addr::new(10, 96, 250, 2);
const NAMED_AT: Ipv4Addr = Ipv4Addr::new(10, 96, 250, 3);
const BULK_AT: Ipv4Addr = Ipv4Addr::new(10, 96, 250, 4);
const NODE_PORT: u16 = 30_700;
/// Of a server that answers.
const ANSWERS: u16 = 30_701;
/// Of a server that sends many bytes.
const POURS: u16 = 30_702;
const ROUNDS: u32 = 5;
const PROGRAMS: &str = "programs";
/// Times that the endpoint moves, on each path.
const MOVES: u32 = 7;

/// What is compared: a daemon with these flags, or the rules of kube-proxy.
const CONTENDERS: [(&str, Contender); 9] = [
    ("sockets over nftables", Contender::Daemon(&["--proxy-mode", "nftables"])),
    ("sockets over programs", Contender::Daemon(&["--proxy-mode", "ebpf"])),
    (PROGRAMS, Contender::Daemon(&["--proxy-mode", "ebpf", "--socket-lb", "off"])),
    ("nftables", Contender::Daemon(&["--proxy-mode", "nftables", "--socket-lb", "off"])),
    ("iptables (nft)", Contender::Daemon(&["--proxy-mode", "iptables", "--socket-lb", "off"])),
    ("iptables (legacy)", Contender::Daemon(&["--proxy-mode", "iptables", "--socket-lb", "off"])),
    ("kube-proxy's rules, nftables", Contender::KubeProxy(Kind::Nftables)),
    ("kube-proxy's rules, iptables (nft)", Contender::KubeProxy(Kind::IptablesNft)),
    ("kube-proxy's rules, iptables (legacy)", Contender::KubeProxy(Kind::IptablesLegacy)),
];

enum Contender {
    Daemon(&'static [&'static str]),
    KubeProxy(Kind),
}

/// What was measured of one data path with so many services.
#[derive(Debug, Default)]
pub(super) struct PathFigures {
    pub(super) name: &'static str,
    pub(super) services: u32,
    /// Medians of connects from a pod of the node: to the server itself, and through the last service.
    pub(super) from_pod: [u64; 2],
    /// From outside, through the node port: to connect, to connect with a request and its answer, a request on a
    /// connection that stays, and 16 MiB by one connection.
    pub(super) from_outside: [u64; 4],
    /// From parsed objects to the kernel, with nothing there.
    pub(super) programming: Duration,
    /// From the change of a file to the first connection that goes the new way.
    pub(super) change: Duration,
    /// Of the daemon; none where there is none.
    pub(super) rss_kib: Option<u64>,
}

struct DataPath {
    name: &'static str,
    node: Node,
    client: Pod,
    serves: Serves,
}

enum Serves {
    Daemon(Manifests, Box<Daemon>),
    KubeProxy(Box<Rules>),
}

/// Dropped in this order: processes before the lab that holds them.
pub(super) struct Paths {
    paths: Vec<DataPath>,
    _servers: Vec<Process>,
    servers: Vec<Pod>,
    services: u32,
    lab: Lab,
}

impl Paths {
    pub(super) fn start(shunt: &Path, peer: &Path) -> Result<Self> {
        let binaries = Binaries { shunt: Some(shunt.to_owned()), peer: peer.to_owned() };
        let lab = Lab::with_binaries("packets", binaries)?;
        let far = lab.node("far")?;
        let servers = vec![far.pod("s0")?, far.pod("s1")?];
        let [sink, named, bulk] = [SINK, NAMED, BULK].map(|port| port.to_string());
        let ports = ["--sink", &sink, "--tcp", &named, "--bulk", &bulk];
        let listening: Result<Vec<Process>> = servers.iter().map(|pod| pod.serve(pod.name(), &ports)).collect();
        let nodes: Result<Vec<Node>> = (0..CONTENDERS.len()).map(|number| lab.node(&format!("n{number}"))).collect();
        let nodes = nodes?;
        let objects: Vec<Value> = nodes.iter().chain([&far]).map(manifests::node).collect();
        let mut paths = Vec::new();
        for (node, (name, contender)) in nodes.into_iter().zip(CONTENDERS) {
            let client = node.pod(&format!("{}-client", node.name()))?;
            let serves = match contender {
                Contender::Daemon(flags) => {
                    if name.contains("legacy") {
                        // What the kubelet of such a node leaves: the daemon takes the variant that is in use.
                        run(&node, &["iptables-legacy", "-t", "mangle", "-N", "KUBE-KUBELET-CANARY"])?;
                    }
                    let folder = Manifests::new(&lab.directory().join(node.name()))?;
                    folder.put("nodes", &objects)?;
                    folder.put("target", &at_node_port("zz-target", TARGET, SINK, NODE_PORT, &servers))?;
                    folder.put("moving", &moving(&servers, 0))?;
                    folder.put("named", &at_node_port("zz-named", NAMED_AT, NAMED, ANSWERS, &servers))?;
                    folder.put("bulk", &at_node_port("zz-bulk", BULK_AT, BULK, POURS, &servers))?;
                    let mut options =
                        DaemonOptions { ready_within: PATIENCE, ..DaemonOptions::new(folder.directory()) };
                    options.extra = flags.iter().map(|flag| (*flag).to_owned()).collect();
                    Serves::Daemon(folder, Box::new(node.daemon(options)?))
                }
                Contender::KubeProxy(kind) => Serves::KubeProxy(Box::new(Rules::new(kind, node.clone(), &lab))),
            };
            paths.push(DataPath { name, client, serves, node });
        }
        Ok(Self { paths, _servers: listening?, servers, services: 4, lab })
    }

    /// Grows to `services` and measures each path.
    pub(super) fn measure(&mut self, services: u32, samples: u32) -> Result<Vec<PathFigures>> {
        let mut figures: Vec<PathFigures> =
            self.paths.iter().map(|path| PathFigures { name: path.name, services, ..PathFigures::default() }).collect();
        self.grow_to(services, &mut figures)?;
        self.connects(samples, &mut figures)?;
        for number in 0..self.paths.len() {
            let figures = figures.get_mut(number).context("figures for each path")?;
            figures.change = self.moves(number)?;
            if let Some((programming, rss)) = self.programming(number)? {
                (figures.programming, figures.rss_kib) = (programming, Some(rss));
            }
        }
        Ok(figures)
    }

    /// What a packet costs in the programs, on the node that has no programs at sockets.
    pub(super) fn program_costs(&self, replay: &Path) -> Result<Vec<ProgramLine>> {
        let path = self.paths.iter().find(|path| path.name == PROGRAMS).context("a path of programs")?;
        let Serves::Daemon(_, daemon) = &path.serves else { bail!("{PROGRAMS} are served by no daemon") };
        let versions = std::fs::read_dir(daemon.bpf_root()).context("reading the directory of pins")?;
        let programs = versions.flatten().map(|version| version.path().join("programs"));
        let pins = programs.into_iter().find(|programs| programs.join("shunt_ingress").exists());
        let pins = pins.context("no packet programs are pinned")?.display().to_string();
        let node_port = format!("{}:{NODE_PORT}", path.node.ipv4);
        let far = self.servers.first().context("a server")?.ipv4.to_string();
        let [client, _] = self.lab.outside_addresses().map(|address| address.to_string());
        let arguments = ["bench-programs", "--pins", &pins, "--device", "eth0", "--node-port", &node_port];
        let replay = replay.display().to_string();
        let further = ["--client", &client, "--other", &far, "--replay", &replay];
        path.node.ask(&[&arguments[..], &further].concat(), PATIENCE)
    }

    fn grow_to(&mut self, services: u32, figures: &mut [PathFigures]) -> Result<()> {
        for start in (self.services..services).step_by(BATCH as usize) {
            let numbers = start..services.min(start.saturating_add(BATCH));
            let objects: Vec<Value> = numbers.flat_map(|number| filler(number, ENDPOINTS)).collect();
            for path in &self.paths {
                if let Serves::Daemon(manifests, _) = &path.serves {
                    manifests.put(&format!("filler-{start}"), &objects)?;
                }
            }
        }
        self.services = services;
        let served = self.served(0)?;
        let deadline = Instant::now() + PATIENCE;
        for (DataPath { name, serves, .. }, figures) in self.paths.iter_mut().zip(figures) {
            match serves {
                Serves::Daemon(_, daemon) => {
                    while metrics(daemon)?.get("shunt_service_ports").is_none_or(|ports| *ports < f64::from(services)) {
                        ensure!(
                            Instant::now() < deadline,
                            "{name} has not taken up {services} services within {PATIENCE:?}"
                        );
                        std::thread::sleep(Duration::from_millis(100));
                    }
                }
                Serves::KubeProxy(rules) => figures.programming = rules.write(services, ENDPOINTS, &served)?,
            }
        }
        Ok(())
    }

    /// The services that are dialled, the second with its endpoint on one server or the other.
    fn served(&self, to: usize) -> Result<[Served; 4]> {
        let server = |number| self.servers.get(number).map(|pod: &Pod| pod.ipv4).context("a server");
        let moving = Served { name: "zz-moving", address: MOVING, port: NAMED, node_port: None, endpoint: server(to)? };
        let target =
            Served { name: "zz-target", address: TARGET, port: SINK, node_port: Some(NODE_PORT), endpoint: server(0)? };
        let (name, node_port) = ("zz-named", Some(ANSWERS));
        let named = Served { name, address: NAMED_AT, port: NAMED, node_port, endpoint: server(0)? };
        let (name, node_port) = ("zz-bulk", Some(POURS));
        let bulk = Served { name, address: BULK_AT, port: BULK, node_port, endpoint: server(0)? };
        Ok([moving, target, named, bulk])
    }

    /// In turns: from the pods of each node, and from outside through all node ports, sample by sample.
    fn connects(&self, samples: u32, figures: &mut [PathFigures]) -> Result<()> {
        let each = (samples / ROUNDS).max(1).to_string();
        let server = self.servers.first().context("a server")?.ipv4;
        let service = format!("{server}:{SINK},{TARGET}:{SINK}");
        let mut pods = vec![[Vec::new(), Vec::new()]; figures.len()];
        // One of them takes as long as many of the others.
        let few = (samples / ROUNDS / 10).max(1).to_string();
        let mut outside = vec![[const { Vec::new() }; FROM_OUTSIDE.len()]; figures.len()];
        for _ in 0..ROUNDS {
            for (path, medians) in self.paths.iter().zip(&mut pods) {
                for (line, medians) in bench(&path.client, "bench-connect", &service, &each)?.iter().zip(medians) {
                    medians.push(line.p50);
                }
            }
            for (kind, (what, port)) in FROM_OUTSIDE.into_iter().enumerate() {
                let node_ports = self.paths.iter().map(|path| format!("{}:{port}", path.node.ipv4));
                let samples = if port == POURS { &few } else { &each };
                let lines = bench(&self.lab.outside, what, &node_ports.collect::<Vec<_>>().join(","), samples)?;
                for (line, medians) in lines.iter().zip(&mut outside) {
                    medians.get_mut(kind).context("as many kinds")?.push(line.p50);
                }
            }
        }
        for ((figures, pods), outside) in figures.iter_mut().zip(pods).zip(outside) {
            figures.from_pod = pods.map(median);
            figures.from_outside = outside.map(median);
        }
        Ok(())
    }

    /// The endpoint of a service moves from one server to the other; a client of the node connects all the time.
    fn moves(&mut self, number: usize) -> Result<Duration> {
        let served = [self.served(0)?, self.served(1)?];
        let path = self.paths.get_mut(number).context("a path")?;
        let to = SocketAddr::new(IpAddr::V4(MOVING), NAMED);
        let mut client = path.client.connect_loop(to, Mode::Tcp, 1)?;
        let mut seen = Vec::new();
        for turn in 1..=MOVES {
            let to = turn as usize % 2;
            let began = now();
            match &mut path.serves {
                Serves::Daemon(manifests, _) => manifests.put("moving", &moving(&self.servers, to))?,
                Serves::KubeProxy(rules) => {
                    rules.change(self.services, ENDPOINTS, served.get(to).context("two places")?)?;
                }
            }
            let name = format!("s{to}");
            let attempt = client.wait_for(began, &name, |attempt| attempt.server.as_deref() == Some(&name))?;
            seen.push(attempt.began.saturating_sub(began));
        }
        if let Some(failed) = client.failures()?.first() {
            bail!("{}: a connection failed while the endpoint moved: {failed:?}", path.name);
        }
        Ok(Duration::from_nanos(median(seen)))
    }

    /// A daemon that starts with nothing of its own there: its time to the kernel, and its memory.
    fn programming(&mut self, number: usize) -> Result<Option<(Duration, u64)>> {
        let path = self.paths.get_mut(number).context("a path")?;
        let Serves::Daemon(_, daemon) = &mut path.serves else { return Ok(None) };
        daemon.stop()?;
        let root = daemon.bpf_root().display().to_string();
        daemon.said(&["cleanup", "--bpf-root", &root])?;
        daemon.restart()?;
        let spent = metrics(daemon)?;
        let seconds = spent.get("shunt_sync_duration_seconds_sum").context("no metric of syncs")?;
        Ok(Some((Duration::from_secs_f64(*seconds), rss_kib(daemon.process())?)))
    }
}

fn run(node: &Node, command: &[&str]) -> Result<()> {
    let finished = node.spawn(command)?.finish(PATIENCE)?;
    ensure!(finished.status.success(), "{} does not work here", command.join(" "));
    Ok(())
}

/// What is measured from outside, at which node port.
const FROM_OUTSIDE: [(&str, u16); 4] =
    [("bench-connect", NODE_PORT), ("bench-rr", ANSWERS), ("bench-exchange", ANSWERS), ("bench-stream", POURS)];

fn bench(from: &lab::Place, what: &str, to: &str, samples: &str) -> Result<Vec<BenchLine>> {
    from.ask(&[what, "--to", to, "--samples", samples, "--rounds", "1"], PATIENCE)
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// A Service with a node port.
fn at_node_port(name: &str, address: Ipv4Addr, port: u16, node_port: u16, servers: &[Pod]) -> [Value; 2] {
    let spec = json!({
        "type": "NodePort", "clusterIP": address, "clusterIPs": [address],
        "ports": [{"name": "", "protocol": "TCP", "port": port, "nodePort": node_port}],
    });
    ["Service", "EndpointSlice"].map(|kind| object(kind, name, &spec, servers.first(), port))
}

fn moving(servers: &[Pod], to: usize) -> [Value; 2] {
    let spec = json!({
        "clusterIP": MOVING, "clusterIPs": [MOVING], "ports": [{"name": "", "protocol": "TCP", "port": NAMED}],
    });
    ["Service", "EndpointSlice"].map(|kind| object(kind, "zz-moving", &spec, servers.get(to), NAMED))
}

fn object(kind: &str, name: &str, spec: &Value, server: Option<&Pod>, port: u16) -> Value {
    if kind == "Service" {
        return json!({
            "apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": "bench"}, "spec": spec,
        });
    }
    let endpoints: Vec<Value> = server.iter().map(|pod| json!({"addresses": [pod.ipv4]})).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": kind, "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "bench", "labels": {"kubernetes.io/service-name": name}},
        "endpoints": endpoints, "ports": [{"name": "", "protocol": "TCP", "port": port}],
    })
}
