//! Two nodes whose packets are served by programs at network devices, and Services on them, for the integration tests.
#![expect(unreachable_pub, dead_code, reason = "each test file uses its own part of this")]
#![expect(clippy::indexing_slicing, reason = "a test that cannot go on has failed, its helpers included")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::manifests::{self, PodState, Port};
use lab::peer::{Attempt, Mode};
use lab::{Client, Daemon, DaemonOptions, Lab, Manifests, Node, Place, Pod, Process};
use serde_json::{Value, json};

use crate::support;

pub const SERVER: u16 = 7000;
/// Where pods send or receive many bytes.
pub const BULK: u16 = 7001;
/// Only an event that never comes takes so long.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const MODES: [Mode; 3] = [Mode::Tcp, Mode::Udp, Mode::UdpUnconnected];
pub const OFF: &str = "--socket-lb=off";

/// A Service before all pods. It has a node port for each of its ports: the one here, and the next for many bytes.
#[derive(Clone, Copy)]
pub struct Service {
    pub name: &'static str,
    pub policy: &'static str,
    pub cluster_ips: [&'static str; 2],
    /// External IPs, or those of a load balancer.
    pub vips: [&'static str; 2],
    pub node_port: u16,
}

/// External IPs, and an address of the node stands for clients outside.
pub const WEB: Service = Service {
    name: "web",
    policy: "Cluster",
    cluster_ips: ["10.96.1.1", "fd00:10:96::101"],
    vips: ["203.0.113.1", "2001:db8:203::1"],
    node_port: 30_080,
};

/// A load balancer's addresses, and clients outside keep theirs.
pub const LOCAL: Service = Service {
    name: "local",
    policy: "Local",
    cluster_ips: ["10.96.1.2", "fd00:10:96::102"],
    vips: ["203.0.113.2", "2001:db8:203::2"],
    node_port: 30_082,
};

impl Service {
    fn object(&self) -> Value {
        let port = |name: &str, protocol: &str, port: u16, target: u16| {
            let node_port = self.node_port + port - 80;
            json!({"name": name, "protocol": protocol, "port": port, "targetPort": target, "nodePort": node_port})
        };
        let (kind, external_ips, ingress): (&str, &[&str], &[&str]) = match self.policy {
            "Local" => ("LoadBalancer", &[], &self.vips),
            _ => ("NodePort", &self.vips, &[]),
        };
        let ingress: Vec<Value> = ingress.iter().map(|ip| json!({"ip": ip})).collect();
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": self.name, "namespace": "shop"},
            "status": {"loadBalancer": {"ingress": ingress}},
            "spec": {
                "type": kind, "clusterIP": self.cluster_ips[0], "clusterIPs": self.cluster_ips,
                "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
                "externalIPs": external_ips, "externalTrafficPolicy": self.policy, "selector": {"app": "web"},
                "ports": [
                    port("tcp", "TCP", 80, SERVER), port("udp", "UDP", 80, SERVER), port("bulk", "TCP", 81, BULK),
                ],
            },
        })
    }

    /// Its cluster IPs, for pods.
    pub fn inside(&self) -> [SocketAddr; 2] {
        at(self.cluster_ips)
    }

    /// Its external addresses, for clients outside.
    pub fn outside(&self) -> [SocketAddr; 2] {
        at(self.vips)
    }

    /// Its node ports.
    pub fn node_ports(&self, node: &Node) -> [SocketAddr; 2] {
        [(node.ipv4, self.node_port).into(), (node.ipv6, self.node_port).into()]
    }
}

fn at(addresses: [&str; 2]) -> [SocketAddr; 2] {
    addresses.map(|ip| SocketAddr::new(ip.parse().unwrap(), 80))
}

/// Two nodes with daemons; the first has a client pod. Fields are dropped in this order.
pub struct World {
    pub daemons: Vec<Daemon>,
    servers: Vec<Process>,
    pods: Vec<Pod>,
    pub client: Pod,
    manifests: Manifests,
    pub nodes: Vec<Node>,
    pub lab: Lab,
}

impl World {
    /// Each node has one endpoint. `sockets`: the flag that says whether programs serve sockets too.
    pub fn start(name: &str, sockets: &str, make: fn(&Lab, &str) -> Node) -> Option<Self> {
        if support::skipped() {
            return None;
        }
        let lab = Lab::new(name).unwrap();
        let nodes: Vec<Node> = ["n1", "n2"].map(|name| make(&lab, name)).into();
        let client = nodes[0].pod("client").unwrap();
        let manifests = Manifests::new(&lab.directory().join("manifests")).unwrap();
        let mut objects = vec![manifests::namespace("shop"), WEB.object(), LOCAL.object()];
        objects.extend(nodes.iter().map(manifests::node));
        manifests.put("cluster", &objects).unwrap();
        let mut world = Self { daemons: vec![], servers: vec![], pods: vec![], client, manifests, nodes, lab };
        for number in 0..2 {
            world.add_server(number);
        }
        world.put_pods(&["web-0", "web-1"]);
        let mut options = DaemonOptions::new(world.manifests.directory());
        options.extra.extend(["--proxy-mode=ebpf", sockets].map(str::to_owned));
        let daemons = world.nodes.iter().map(|node| node.daemon(options.clone()).unwrap_or_else(|e| panic!("{e:#}")));
        world.daemons = daemons.collect();
        world.lab.balance_to(&world.nodes[0]).unwrap();
        Some(world)
    }

    /// The same with routed pods, sockets left alone, and all served once.
    pub fn routed(name: &str) -> Option<Self> {
        let world = Self::start(name, OFF, |lab, name| lab.node(name).unwrap())?;
        world.wait_until_served();
        Some(world)
    }

    pub fn add_server(&mut self, node: usize) {
        let [port, bulk] = [SERVER, BULK].map(|port| port.to_string());
        let name = format!("web-{}", self.pods.len());
        let pod = self.nodes[node].pod(&name).unwrap();
        let ports = ["--tcp", &port, "--udp", &port, "--bulk", &bulk];
        self.servers.push(pod.serve(&name, &ports).unwrap());
        self.pods.push(pod);
    }

    /// The pod that serves by this number.
    pub fn server(&self, number: usize) -> &Pod {
        &self.pods[number]
    }

    /// Makes these pods the endpoints.
    pub fn put_pods(&self, ready: &[&str]) {
        let ports = [Port::tcp("tcp", 80, SERVER), Port::udp("udp", 80, SERVER), Port::tcp("bulk", 81, BULK)];
        let state = |pod: &Pod| if ready.contains(&pod.name()) { PodState::Ready } else { PodState::Unready };
        let objects = self.pods.iter().map(|pod| manifests::pod("shop", "web", pod, state(pod), &ports));
        self.manifests.put("pods", &objects.collect::<Vec<_>>()).unwrap();
    }

    /// All that clients outside dial to reach a Service.
    pub fn frontends(&self, service: &Service) -> impl Iterator<Item = SocketAddr> + use<> {
        service.node_ports(&self.nodes[0]).into_iter().chain(service.outside())
    }

    /// Polls until all endpoints are behind all frontends.
    pub fn wait_until_served(&self) {
        for to in self.frontends(&WEB).chain(self.frontends(&LOCAL)) {
            self.wait_for(&self.lab.outside, to, Mode::Tcp, &["web-0"]);
        }
        for to in WEB.inside().into_iter().chain(LOCAL.inside()) {
            self.wait_for(&self.client, to, Mode::Tcp, &["web-1"]);
        }
    }

    /// Polls until some server of these answers.
    pub fn wait_for(&self, from: &Place, to: SocketAddr, mode: Mode, servers: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let attempt = from.connect_with(to, mode, &["--count", "1", "--timeout", "500"]).unwrap().remove(0);
            if attempt.server.as_deref().is_some_and(|server| servers.contains(&server)) {
                return;
            }
            assert!(Instant::now() < deadline, "{to} {mode:?} from {}: {attempt:?}\n{}", from.name(), self.lab.logs());
            sleep(Duration::from_millis(2));
        }
    }

    /// Connects often, from each address family, in each way: all succeed, at all servers and no others, which see
    /// `sources` and whose answers come from what was dialled.
    #[track_caller]
    pub fn check(&self, from: &Place, to: SocketAddr, servers: &[&str], sources: &[IpAddr]) {
        for mode in MODES {
            let attempts = from.connect(to, mode, 24).unwrap();
            let failed: Vec<&Attempt> = attempts.iter().filter(|attempt| attempt.error.is_some()).collect();
            assert_eq!(failed, Vec::<&Attempt>::new(), "{to} {mode:?}\n{}", self.lab.logs());
            let met: BTreeSet<&str> = attempts.iter().filter_map(|attempt| attempt.server.as_deref()).collect();
            assert_eq!(met, servers.iter().copied().collect(), "{to} {mode:?}");
            let seen: BTreeSet<IpAddr> = attempts.iter().map(|attempt| attempt.source.unwrap().ip()).collect();
            assert_eq!(seen, sources.iter().copied().filter(|ip| ip.is_ipv4() == to.is_ipv4()).collect(), "{to}");
            assert!(attempts.iter().all(|attempt| attempt.peername == Some(to)), "{to} {mode:?}: {attempts:?}");
        }
    }

    /// All frontends, of clients outside and of a pod. `sources`: what servers see instead of clients outside.
    #[track_caller]
    pub fn check_services(&self, sources: &[IpAddr]) {
        let both = ["web-0", "web-1"];
        for to in self.frontends(&WEB) {
            self.check(&self.lab.outside, to, &both, sources);
        }
        let outside = ["172.19.0.2", "fd00:19::2"].map(|ip| ip.parse().unwrap());
        for to in self.frontends(&LOCAL) {
            self.check(&self.lab.outside, to, &["web-0"], &outside);
        }
        // A pod keeps its address at a cluster IP.
        let pod: [IpAddr; 2] = [self.client.ipv4.into(), self.client.ipv6.into()];
        for to in WEB.inside().into_iter().chain(LOCAL.inside()) {
            self.check(&self.client, to, &both, &pod);
        }
    }

    /// Clients in all ways that connect every 2 ms.
    pub fn dial(&self) -> Vec<(String, Client)> {
        let outside = self.frontends(&WEB).map(|to| (&self.lab.outside, to));
        let pod = WEB.inside().into_iter().map(|to| (&*self.client, to));
        let ways = outside.chain(pod).flat_map(|(from, to)| [Mode::Tcp, Mode::Udp].map(|mode| (from, to, mode)));
        ways.map(|(from, to, mode)| (format!("{to} {mode:?}"), from.connect_loop(to, mode, 2).unwrap())).collect()
    }
}

/// What a shell command in a place prints.
#[track_caller]
pub fn output(place: &Place, command: &str) -> String {
    let process = place.spawn(&["sh", "-c", command]).unwrap();
    let log = process.log().to_owned();
    let finished = process.finish(PATIENCE).unwrap();
    let said = std::fs::read_to_string(log).unwrap_or_default();
    assert!(finished.status.success(), "{command}: {}: {said}", finished.status);
    finished.lines.join("\n")
}
