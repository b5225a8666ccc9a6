//! Packets served by programs at network devices alone, with no rules of netfilter: clients outside, pods, a daemon
//! that is killed and started again, and a cleanup.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed, its helpers included"
)]

mod support;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::manifests::{self, PodState, Port};
use lab::peer::{Attempt, Mode, now};
use lab::{Client, Daemon, DaemonOptions, Lab, Manifests, Node, Place, Pod, Process};
use serde_json::{Value, json};

const SERVER: u16 = 7000;
/// Only an event that never comes takes so long.
const PATIENCE: Duration = Duration::from_secs(60);
const MODES: [Mode; 3] = [Mode::Tcp, Mode::Udp, Mode::UdpUnconnected];
/// The cluster IPs and external IPs of the Service, in both families, and its node port.
const CLUSTER: [&str; 2] = ["10.96.1.1", "fd00:10:96::101"];
const EXTERNAL: [&str; 2] = ["203.0.113.1", "2001:db8:203::1"];
const NODE_PORT: u16 = 30_080;
const OFF: &str = "--socket-lb=off";

/// Two nodes with daemons; the first has a client pod. Fields are dropped in this order.
struct World {
    daemons: Vec<Daemon>,
    servers: Vec<Process>,
    pods: Vec<Pod>,
    client: Pod,
    manifests: Manifests,
    nodes: Vec<Node>,
    lab: Lab,
}

impl World {
    /// Each node has one endpoint. `sockets`: the flag that says whether programs serve sockets too.
    fn start(name: &str, sockets: &str, make: fn(&Lab, &str) -> Node) -> Option<Self> {
        if support::skipped() {
            return None;
        }
        let lab = Lab::new(name).unwrap();
        let nodes: Vec<Node> = ["n1", "n2"].map(|name| make(&lab, name)).into();
        let client = nodes[0].pod("client").unwrap();
        let manifests = Manifests::new(&lab.directory().join("manifests")).unwrap();
        let mut objects = vec![manifests::namespace("shop"), service()];
        objects.extend(nodes.iter().map(manifests::node));
        manifests.put("cluster", &objects).unwrap();
        let mut world = Self { daemons: vec![], servers: vec![], pods: vec![], client, manifests, nodes, lab };
        for number in 0..2 {
            world.add_server(number);
        }
        world.put_pods(&["web-0", "web-1"]);
        let mut options = DaemonOptions::new(world.manifests.directory());
        options.extra.extend(["--packet-programs", sockets].map(str::to_owned));
        let daemons = world.nodes.iter().map(|node| node.daemon(options.clone()).unwrap_or_else(|e| panic!("{e:#}")));
        world.daemons = daemons.collect();
        world.lab.balance_to(&world.nodes[0]).unwrap();
        Some(world)
    }

    fn add_server(&mut self, node: usize) {
        let port = SERVER.to_string();
        let name = format!("web-{}", self.pods.len());
        let pod = self.nodes[node].pod(&name).unwrap();
        self.servers.push(pod.serve(&name, &["--tcp", &port, "--udp", &port]).unwrap());
        self.pods.push(pod);
    }

    /// Makes these pods the endpoints.
    fn put_pods(&self, ready: &[&str]) {
        let ports = [Port::tcp("tcp", 80, SERVER), Port::udp("udp", 80, SERVER)];
        let state = |pod: &Pod| if ready.contains(&pod.name()) { PodState::Ready } else { PodState::Unready };
        let objects = self.pods.iter().map(|pod| manifests::pod("shop", "web", pod, state(pod), &ports));
        self.manifests.put("pods", &objects.collect::<Vec<_>>()).unwrap();
    }

    fn node_ports(&self) -> [SocketAddr; 2] {
        [(self.nodes[0].ipv4, NODE_PORT).into(), (self.nodes[0].ipv6, NODE_PORT).into()]
    }

    /// Polls until some server of these answers.
    fn wait_for(&self, from: &Place, to: SocketAddr, mode: Mode, servers: &[&str]) {
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
    fn check(&self, from: &Place, to: SocketAddr, servers: &[&str], sources: &[IpAddr]) {
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

    /// Clients in all ways that connect every 2 ms.
    fn dial(&self) -> Vec<(String, Client)> {
        let outside = self.node_ports().into_iter().chain(at(EXTERNAL)).map(|to| (&self.lab.outside, to));
        let pod = at(CLUSTER).into_iter().map(|to| (&*self.client, to));
        let ways = outside.chain(pod).flat_map(|(from, to)| [Mode::Tcp, Mode::Udp].map(|mode| (from, to, mode)));
        ways.map(|(from, to, mode)| (format!("{to} {mode:?}"), from.connect_loop(to, mode, 2).unwrap())).collect()
    }
}

fn service() -> Value {
    let port = |name: &str, protocol: &str| {
        json!({
            "name": name, "protocol": protocol, "port": 80, "targetPort": SERVER, "nodePort": NODE_PORT,
        })
    };
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "type": "NodePort", "clusterIP": CLUSTER[0], "clusterIPs": CLUSTER, "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack", "externalIPs": EXTERNAL,
            "selector": {"app": "web"}, "ports": [port("tcp", "TCP"), port("udp", "UDP")],
        },
    })
}

fn at(addresses: [&str; 2]) -> [SocketAddr; 2] {
    addresses.map(|ip| SocketAddr::new(ip.parse().unwrap(), 80))
}

/// What a shell command in a place prints.
fn output(place: &Place, command: &str) -> String {
    let finished = place.spawn(&["sh", "-c", command]).unwrap().finish(PATIENCE).unwrap();
    assert!(finished.status.success(), "{command}: {}", finished.status);
    finished.lines.join("\n")
}

/// `sources`: what servers see instead of clients outside.
fn check_service(world: &World, sources: &[IpAddr]) {
    let both = ["web-0", "web-1"];
    for to in world.node_ports().into_iter().chain(at(EXTERNAL)).chain(at(CLUSTER)) {
        world.wait_for(&world.client, to, Mode::Tcp, &both);
    }
    for to in world.node_ports().into_iter().chain(at(EXTERNAL)) {
        world.check(&world.lab.outside, to, &both, sources);
    }
    // A pod keeps its address at a cluster IP.
    let pod: [IpAddr; 2] = [world.client.ipv4.into(), world.client.ipv6.into()];
    for to in at(CLUSTER) {
        world.check(&world.client, to, &both, &pod);
    }
    assert_eq!(output(&world.nodes[0], "nft list ruleset"), "", "no rules of netfilter");
    let services = world.daemons[0].command(&["services"]).unwrap();
    assert!(services.contains("eBPF programs for packets"), "{services}");
}

#[test]
fn programs_alone_serve_clients_outside_and_pods() {
    let Some(world) = World::start("packets", OFF, |lab, name| lab.node(name).unwrap()) else { return };
    check_service(&world, &[world.nodes[0].ipv4.into(), world.nodes[0].ipv6.into()]);
}

#[test]
fn programs_serve_sockets_and_packets_by_the_same_tables() {
    let Some(world) = World::start("packetboth", "--socket-lb=on", |lab, name| lab.node(name).unwrap()) else { return };
    check_service(&world, &[world.nodes[0].ipv4.into(), world.nodes[0].ipv6.into()]);
    let services = world.daemons[0].command(&["services"]).unwrap();
    assert!(services.contains("eBPF programs at sockets and eBPF programs for packets"), "{services}");
}

#[test]
fn programs_at_the_ports_of_a_bridge_serve_its_pods() {
    let Some(world) = World::start("packetbridge", OFF, |lab, name| lab.bridged_node(name).unwrap()) else { return };
    // By the bridge, as with source NAT of the kernel, its own addresses stand for clients.
    let of_bridge = ["10.244.1.1", "fd00:10:244:1::1"].map(|ip| ip.parse::<IpAddr>().unwrap());
    let of_node: [IpAddr; 2] = [world.nodes[0].ipv4.into(), world.nodes[0].ipv6.into()];
    check_service(&world, &[of_node, of_bridge].concat());
}

#[test]
fn a_pod_that_comes_later_is_served_and_one_that_goes_fails_nothing() {
    let Some(mut world) = World::start("packetpods", OFF, |lab, name| lab.node(name).unwrap()) else { return };
    world.add_server(0);
    world.put_pods(&["web-2"]);
    let [to, _] = at(CLUSTER);
    world.wait_for(&world.client, to, Mode::Tcp, &["web-2"]);
    let late = world.nodes[0].pod("late").unwrap();
    world.wait_for(&late, to, Mode::Udp, &["web-2"]);
    // Its device goes while it sends.
    let mut client = world.lab.outside.connect_loop(world.node_ports()[0], Mode::Tcp, 2).unwrap();
    let _gone = late.connect_loop(to, Mode::Udp, 1).unwrap();
    client.wait_for_attempts(0, 5).unwrap();
    output(&late, "ip link del eth0");
    client.wait_for_attempts(now(), 20).unwrap();
    assert_eq!(client.failures().unwrap(), []);
    let log = world.daemons[0].log().unwrap();
    assert!(!log.contains("not all network devices"), "{log}");
}

/// Waits until a process has written this to stderr.
fn wait_said(process: &Process, words: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !std::fs::read_to_string(process.log()).unwrap().contains(words) {
        assert!(Instant::now() < deadline, "{}: no {words:?} in {}", process.name(), process.log_tail(20));
        sleep(Duration::from_millis(2));
    }
}

/// The next decision that `shunt monitor` prints about this destination.
fn decision(monitor: &Process, to: SocketAddr) -> Value {
    let is_of = |line: &str| line.contains(&format!("\"destination\":\"{to}\""));
    serde_json::from_str(&monitor.wait_for_line(PATIENCE, is_of).unwrap()).unwrap()
}

#[test]
fn decisions_are_told_to_who_listens_and_counted() {
    let Some(mut world) = World::start("packetlook", OFF, |lab, name| lab.node(name).unwrap()) else { return };
    let [node_port, _] = world.node_ports();
    world.wait_for(&world.lab.outside, node_port, Mode::Tcp, &["web-0", "web-1"]);
    let mut monitor = world.daemons[0].start_command(&["monitor", "-o", "json"]).unwrap();
    let of_pod = world.client.ipv4.to_string();
    let filtered = world.daemons[0].start_command(&["monitor", "--client", &of_pod, "--service", "shop/web"]).unwrap();
    for process in [&monitor, &filtered] {
        wait_said(process, "listening to the eBPF programs for packets");
    }
    let served = world.lab.outside.connect(node_port, Mode::Tcp, 1).unwrap().remove(0);
    assert_eq!(served.error, None);
    let told = decision(&monitor, node_port);
    let client: SocketAddr = told["client"].as_str().unwrap().parse().unwrap();
    assert!(client.ip() != IpAddr::from(world.nodes[0].ipv4), "as it came in: {told}");
    assert_eq!((&told["verdict"], &told["reason"], &told["protocol"]), (&json!("forward"), &json!("new"), &json!("tcp")));
    assert_eq!((&told["service"], &told["port"]), (&json!("shop/web"), &json!("tcp")));
    let endpoints: Vec<String> = world.pods.iter().map(|pod| SocketAddr::new(pod.ipv4.into(), SERVER).to_string()).collect();
    assert!(endpoints.iter().any(|endpoint| told["endpoint"] == **endpoint), "{told}");
    // A port that the Service does not define.
    let undefined = SocketAddr::new(CLUSTER[0].parse().unwrap(), 81);
    let refused = world.client.connect_with(undefined, Mode::Tcp, &["--count", "1"]).unwrap().remove(0);
    assert!(refused.error.is_some(), "{refused:?}");
    let told = decision(&monitor, undefined);
    assert_eq!((&told["verdict"], &told["reason"]), (&json!("reject"), &json!("undefined_port")));
    assert_eq!((&told["service"], &told["endpoint"]), (&Value::Null, &Value::Null));
    // Of all these decisions, the other one is told of this alone.
    let cluster_ip = SocketAddr::new(CLUSTER[0].parse().unwrap(), 80);
    world.wait_for(&world.client, cluster_ip, Mode::Tcp, &["web-0", "web-1"]);
    let line = filtered.next_line(PATIENCE).unwrap().unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_, "forward", "new", "tcp", client, ">", to, "shop/web:tcp", ">", _, _] = words[..] else { panic!("{line}") };
    assert!(client.starts_with(&of_pod) && to == cluster_ip.to_string(), "{line}");

    let page = world.daemons[0].metrics("/metrics").unwrap().body;
    let of_service = "service_namespace=\"shop\",service_name=\"web\",port_name=\"tcp\",protocol=\"tcp\",ip_family=\"IPv4\"";
    for metric in [
        "shunt_packet_flows_total{how=\"new\"}",
        "shunt_packet_flows_established_total",
        "shunt_packet_source_nat_flows_total",
        "shunt_packet_rejects_total{reason=\"undefined_port\"}",
        "shunt_packet_reject_messages_total{result=\"sent\"}",
        &format!("shunt_service_packet_flows_total{{{of_service}}}"),
    ] {
        let line = page.lines().find(|line| line.strip_prefix(metric).is_some_and(|rest| rest.starts_with(' ')));
        let value: u64 = line.unwrap_or_else(|| panic!("no {metric}:\n{page}")).rsplit(' ').next().unwrap().parse().unwrap();
        assert!(value > 0, "{metric}");
    }
    assert!(page.contains("shunt_packet_drops_total{reason=\"no_source_port\"} 0"), "{page}");

    assert!(monitor.stop(PATIENCE).unwrap().success(), "SIGTERM is no failure");
    assert!(world.daemons[0].stop().unwrap().success());
    wait_said(&filtered, "has ended");
    assert!(!filtered.finish(PATIENCE).unwrap().status.success());
    let failed = world.daemons[0].command(&["monitor"]).unwrap_err().to_string();
    assert!(failed.contains("no daemon listens"), "{failed}");
}

#[test]
fn a_killed_daemon_fails_no_connection_and_a_cleanup_removes_everything() {
    let Some(mut world) = World::start("packetkill", OFF, |lab, name| lab.node(name).unwrap()) else { return };
    for to in world.node_ports().into_iter().chain(at(EXTERNAL)) {
        world.wait_for(&world.lab.outside, to, Mode::Tcp, &["web-0", "web-1"]);
    }
    for to in at(CLUSTER) {
        world.wait_for(&world.client, to, Mode::Tcp, &["web-0", "web-1"]);
    }
    let mut clients = world.dial();
    for (_, client) in &mut clients {
        client.wait_for_attempts(0, 10).unwrap();
    }
    for _ in 0..3 {
        let killed = now();
        world.daemons[0].kill9().unwrap();
        for (_, client) in &mut clients {
            client.wait_for_attempts(killed, 20).unwrap();
        }
        world.daemons[0].restart().unwrap();
    }
    let log = world.daemons[0].log().unwrap();
    assert!(log.contains("programs kept, 0 replaced, 0 attached"), "the links are kept: {log}");
    // The new daemon writes to the tables that the programs read.
    let changed = now();
    world.put_pods(&["web-1"]);
    for (way, client) in &mut clients {
        client.wait_for(changed, "the other server", |attempt| attempt.server.as_deref() == Some("web-1")).unwrap();
        assert_eq!(client.failures().unwrap(), [], "{way}\n{}", world.lab.logs());
    }
    drop(clients);
    assert!(world.daemons[0].stop().unwrap().success());
    let root = world.daemons[0].bpf_root();
    let socket = world.daemons[0].control_socket();
    let places = ["--bpf-root", root.to_str().unwrap(), "--control-socket", socket.to_str().unwrap()];
    world.daemons[0].said(&[&["cleanup"], &places[..]].concat()).unwrap();
    assert!(!root.exists(), "{} is still there", root.display());
    let left = output(&world.nodes[0], "bpftool net show | grep shunt || true");
    assert_eq!(left, "", "programs are still attached");
    let [to, _] = world.node_ports();
    let attempts = world.lab.outside.connect_with(to, Mode::Tcp, &["--count", "1", "--timeout", "500"]).unwrap();
    assert!(attempts[0].error.is_some(), "{attempts:?}");
}
