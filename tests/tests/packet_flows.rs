//! Flows in the tables of the packet programs: `shunt flows`, and flows of rules that go on through programs.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed, its helpers included")]
#![expect(clippy::indexing_slicing, reason = "a test that cannot go on has failed, its helpers included")]

mod support;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::manifests::{self, PodState, Port};
use lab::peer::Mode;
use lab::{Client, Daemon, DaemonOptions, Lab, Manifests, Node, Place, Pod, Process};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);
const PORT: u16 = 80;
const TARGET: u16 = 7000;
const NODE_PORT: u16 = 30_080;
const CLUSTER_IPS: [&str; 2] = ["10.96.1.1", "fd00:10:96::101"];
const PROGRAMS: [&str; 3] = ["--proxy-mode=ebpf", "--socket-lb", "off"];

/// A node with three pods that serve TCP and UDP. Fields are dropped in this order.
struct Site {
    daemon: Daemon,
    _servers: Vec<Process>,
    client: Pod,
    pods: Vec<Pod>,
    node: Node,
    _manifests: Manifests,
    lab: Lab,
}

impl Site {
    fn start(name: &str, path: &[&str]) -> Self {
        let lab = Lab::new(name).unwrap();
        let node = lab.node("n1").unwrap();
        let client = node.pod("client").unwrap();
        let pods: Vec<Pod> = ["web-0", "web-1", "web-2"].map(|name| node.pod(name).unwrap()).into();
        let target = TARGET.to_string();
        let serve = |pod: &Pod| pod.serve(pod.name(), &["--tcp", &target, "--udp", &target]).unwrap();
        let servers = pods.iter().map(serve).collect();
        let manifests = Manifests::new(&lab.directory().join("manifests")).unwrap();
        manifests.put("cluster", &[manifests::namespace("test"), manifests::node(&node)]).unwrap();
        let ports = [Port::tcp("tcp", PORT, TARGET), Port::udp("udp", PORT, TARGET)];
        let mut service = manifests::service("test", "web", Some("web"), &cluster_ips(), &ports);
        service["spec"]["type"] = json!("NodePort");
        for port in 0..2 {
            service["spec"]["ports"][port]["nodePort"] = json!(NODE_PORT);
        }
        let pod = |pod| manifests::pod("test", "web", pod, PodState::Ready, &ports);
        manifests.put("web", &std::iter::once(service).chain(pods.iter().map(pod)).collect::<Vec<_>>()).unwrap();
        let mut options = DaemonOptions::new(manifests.directory());
        options.extra = path.iter().copied().map(str::to_owned).collect();
        let daemon = node.daemon(options).unwrap_or_else(|error| panic!("{error:#}\n{}", lab.logs()));
        Self { daemon, _servers: servers, client, pods, node, _manifests: manifests, lab }
    }

    /// Where clients outside and pods dial the Service.
    fn dials(&self) -> Vec<(&Place, SocketAddr)> {
        let node_ports: [SocketAddr; 2] = [(self.node.ipv4, NODE_PORT).into(), (self.node.ipv6, NODE_PORT).into()];
        let outside = node_ports.map(|to| (&self.lab.outside, to));
        let inside = cluster_ips().map(|ip| (&*self.client, SocketAddr::new(ip, PORT)));
        outside.into_iter().chain(inside).collect()
    }

    /// Clients that ask again and again from one socket of UDP.
    fn askers(&self) -> Vec<Client> {
        let further = ["--same-socket", "--interval", "5", "--timeout", "2000", "--duration", "300"];
        let dials = self.dials().into_iter();
        dials.map(|(place, to)| place.connect_in_background(to, Mode::Udp, &further).unwrap()).collect()
    }

    /// Connections that stay.
    fn connections(&self) -> Vec<Process> {
        self.dials().into_iter().map(hold).collect()
    }

    fn switch_to(&mut self, path: &[&str]) {
        self.daemon.stop().unwrap();
        self.daemon.options().extra = path.iter().copied().map(str::to_owned).collect();
        self.daemon.restart().unwrap_or_else(|error| panic!("{path:?}: {error:#}\n{}", self.lab.logs()));
    }

    fn flows(&self, filter: &[&str]) -> Value {
        let said = self.daemon.command(&[&["flows", "-o", "json"], filter].concat()).unwrap();
        serde_json::from_str(&said).unwrap()
    }

    /// What a shell command on the node prints.
    fn output(&self, command: &str) -> String {
        let finished = self.node.spawn(&["sh", "-c", command]).unwrap().finish(PATIENCE).unwrap();
        assert!(finished.status.success(), "{command}: {}", finished.status);
        finished.lines.join("\n")
    }

    fn wait_for(&self, what: &str, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}\n{}", self.lab.logs());
            sleep(Duration::from_millis(20));
        }
    }
}

fn cluster_ips() -> [IpAddr; 2] {
    CLUSTER_IPS.map(|ip| ip.parse().unwrap())
}

fn hold((place, to): (&Place, SocketAddr)) -> Process {
    let mut process = place.listening_peer("hold", &[&to.to_string()]).unwrap();
    process.wait_for_line(PATIENCE, |line| line.starts_with("web-")).unwrap();
    talk(&mut process);
    process
}

/// A line goes to the server and comes back.
fn talk(connection: &mut Process) {
    connection.say("still there").unwrap();
    connection.wait_for_line(PATIENCE, |line| line.contains("still there")).unwrap();
}

/// The servers that a client has met.
fn met(client: &mut Client) -> BTreeSet<String> {
    client.attempts().unwrap().iter().filter_map(|attempt| attempt.server.clone()).collect()
}

#[test]
fn flows_of_rules_go_on_through_programs() {
    if support::skipped() {
        return;
    }
    let mut site = Site::start("flowsrules", &["--proxy-mode", "nftables", "--socket-lb", "off"]);
    let (mut askers, mut connections) = (site.askers(), site.connections());
    for asker in &mut askers {
        asker.wait_for_attempts(0, 20).unwrap();
        assert_eq!(met(asker).len(), 1, "one flow has one server");
    }
    site.switch_to(&PROGRAMS);
    // One chain stays for the kernel's own connections.
    let rules = || site.output("nft list ruleset | grep -E 'map|set|jump|drop|reject' || true");
    site.wait_for("the end of the rules", || rules().is_empty());
    for asker in &mut askers {
        let now = asker.attempts().unwrap().last().map_or(0, |attempt| attempt.t);
        asker.wait_for_attempts(now, 50).unwrap();
        assert_eq!(asker.failures().unwrap(), [], "{}", site.lab.logs());
    }
    connections.iter_mut().for_each(talk);
    assert!(site.daemon.log().unwrap().contains("took over UDP and SCTP flows"), "{}", site.lab.logs());
    // The kernel does not translate the datagrams any more, and it still does the connections.
    let kernel = |protocol: &str| site.output(&format!("conntrack -L -p {protocol} 2>/dev/null"));
    assert!(!kernel("udp").contains(&format!("dport={NODE_PORT}")), "{}", kernel("udp"));
    assert!(kernel("tcp").contains(&format!("dport={NODE_PORT}")), "{}", kernel("tcp"));
    let known = site.flows(&["--protocol", "udp", "--state", "open", "--service", "test/web"]);
    assert_eq!(known["matching"], 4, "{known}");
}

#[test]
fn flows_are_listed_with_what_stands_for_their_clients() {
    if support::skipped() {
        return;
    }
    let site = Site::start("flowslist", &PROGRAMS);
    let _connections = site.connections();
    let outside = site.flows(&["--service", "test/web", "--client", "203.0.113.0/24"]);
    assert_eq!(outside["matching"], 0, "{outside}");
    let node_port = format!("{}:{NODE_PORT}", site.node.ipv4);
    let of = |flows: &Value, frontend: &str| {
        let found = flows["flows"].as_array().unwrap().iter().find(|flow| flow["frontend"] == frontend).cloned();
        found.unwrap_or_else(|| panic!("{frontend}: {flows}"))
    };
    let all = site.flows(&["--protocol", "tcp", "--state", "open"]);
    assert_eq!(all["matching"], 4, "{all}");
    let flow = of(&all, &node_port);
    assert_eq!((&flow["service"], &flow["protocol"]), (&json!("test/web:tcp/tcp"), &json!("TCP")));
    let source: SocketAddr = flow["source"].as_str().unwrap().parse().unwrap();
    assert_eq!(source.ip(), IpAddr::from(site.node.ipv4));
    let pod = of(&all, &format!("{}:{PORT}", CLUSTER_IPS[0]));
    assert_eq!(pod["source"], Value::Null, "the endpoint sees the pod");
    let one = site.flows(&["--client", &site.client.ipv4.to_string(), "--limit", "1"]);
    assert_eq!((&one["matching"], &one["flows"][0]), (&json!(1), &pod));
    let table = site.daemon.command(&["flows", "--limit", "2"]).unwrap();
    assert!(table.starts_with("PROTOCOL") && table.contains("; --limit shows more"), "{table}");
}

#[test]
fn connections_to_a_service_and_to_its_endpoints_may_have_one_port() {
    if support::skipped() {
        return;
    }
    let site = Site::start("oneport", &PROGRAMS);
    let one_port = ["sysctl", "-q", "-w", "net.ipv4.ip_local_port_range=40000 40000"];
    assert!(site.client.spawn(&one_port).unwrap().finish(PATIENCE).unwrap().status.success());
    let addresses = site.pods.iter().flat_map(|pod| [IpAddr::from(pod.ipv4), pod.ipv6.into()]);
    let endpoints: Vec<SocketAddr> = addresses.map(|ip| SocketAddr::new(ip, TARGET)).collect();
    let services = cluster_ips().map(|ip| SocketAddr::new(ip, PORT));
    let dials = endpoints.iter().chain(&services).map(|to| (&*site.client, *to));
    let mut connections: Vec<Process> = dials.map(hold).collect();
    connections.iter_mut().for_each(talk);
    let known = site.flows(&["--protocol", "tcp", "--service", "test/web"]);
    assert_eq!(known["matching"], 2, "{known}");
}
