//! A client beyond the router, on each data path: many requests while endpoints come and go, the source that pods see,
//! rules that another program removes, and pods whose sockets are left alone.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed, its helpers included"
)]
#![expect(clippy::print_stderr, reason = "figures are printed, not asserted")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use lab::manifests::{self, PodState, Port};
use lab::peer::{LoadLine, Mode};
use lab::{Daemon, DaemonOptions, Lab, Manifests, Node, Place, Pod, Process};
use serde_json::{Value, json};

const SERVER: u16 = 7000;
/// Only an event that never comes takes so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long an endpoint is out of the Service.
const TURN: Duration = Duration::from_millis(20);
/// As often at least the endpoints change under the load, however soon it is done.
const CHANGES: usize = 10;
/// On one connection that is kept.
const KEEP: usize = 50;
const EXTERNAL: [Service; 2] = [
    Service { name: "cluster", policy: "Cluster", node_port: 30_080, vips: ["203.0.113.1", "2001:db8:203::1"] },
    Service { name: "local", policy: "Local", node_port: 30_081, vips: ["203.0.113.2", "2001:db8:203::2"] },
];

/// A Service before all pods, with one external policy.
struct Service {
    name: &'static str,
    policy: &'static str,
    node_port: u16,
    vips: [&'static str; 2],
}

impl Service {
    fn object(&self, number: usize) -> Value {
        let [v4, v6] = [format!("10.96.1.{number}"), format!("fd00:10:96::10{number}")];
        let port = |name: &str, protocol: &str| {
            json!({
                "name": name, "protocol": protocol, "port": 80, "targetPort": SERVER, "nodePort": self.node_port,
            })
        };
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": self.name, "namespace": "shop"},
            "spec": {
                "type": "LoadBalancer", "clusterIP": v4, "clusterIPs": [v4, v6], "ipFamilies": ["IPv4", "IPv6"],
                "ipFamilyPolicy": "RequireDualStack", "externalTrafficPolicy": self.policy,
                "selector": {"app": "web"}, "ports": [port("tcp", "TCP"), port("udp", "UDP")],
            },
            "status": {"loadBalancer": {"ingress": self.vips.map(|ip| json!({"ip": ip}))}},
        })
    }

    /// Its load balancer's addresses, and its node port at this node, in both families.
    fn frontends(&self, node: &Node) -> [SocketAddr; 4] {
        let [v4, v6] = self.vips.map(|ip| SocketAddr::new(ip.parse().unwrap(), 80));
        [v4, v6, (node.ipv4, self.node_port).into(), (node.ipv6, self.node_port).into()]
    }
}

/// What happens to the daemon of the first node, and for which time.
type Disturb = fn(&mut Daemon, usize);

/// Two nodes with two pods each. Fields are dropped in this order.
struct World {
    daemons: Mutex<Vec<Daemon>>,
    _servers: Vec<Process>,
    pods: Vec<Pod>,
    manifests: Manifests,
    nodes: Vec<Node>,
    lab: Lab,
}

impl World {
    fn start(name: &str, arguments: &[&str], prepare: impl Fn(&Node)) -> Option<Self> {
        if support::skipped() {
            return None;
        }
        let lab = Lab::new(name).unwrap();
        let nodes: Vec<Node> = ["n1", "n2"].map(|name| lab.node(name).unwrap()).into();
        let pods: Vec<Pod> = (0..4).map(|number| nodes[number / 2].pod(&format!("web-{number}")).unwrap()).collect();
        let port = SERVER.to_string();
        let servers =
            pods.iter().map(|pod| pod.serve(pod.name(), &["--tcp", &port, "--udp", &port]).unwrap()).collect();
        let manifests = Manifests::new(&lab.directory().join("manifests")).unwrap();
        let mut objects = vec![manifests::namespace("shop")];
        objects.extend(nodes.iter().map(manifests::node));
        objects.extend(EXTERNAL.iter().zip(1..).map(|(service, number)| service.object(number)));
        manifests.put("cluster", &objects).unwrap();
        put_all_but(usize::MAX, &pods, &manifests);
        let mut options = DaemonOptions::new(manifests.directory());
        options.extra.extend(arguments.iter().map(|&argument| argument.to_owned()));
        nodes.iter().for_each(prepare);
        let daemons = nodes.iter().map(|node| node.daemon(options.clone()).unwrap_or_else(|e| panic!("{e:#}")));
        let daemons = Mutex::new(daemons.collect());
        lab.balance_to(&nodes[0]).unwrap();
        let world = Self { daemons, _servers: servers, pods, manifests, nodes, lab };
        for to in world.frontends() {
            world.wait_for(&format!("{to} to be served"), || world.answers(to, Mode::Tcp));
        }
        Some(world)
    }

    fn frontends(&self) -> Vec<SocketAddr> {
        EXTERNAL.iter().flat_map(|service| service.frontends(&self.nodes[0])).collect()
    }

    fn answers(&self, to: SocketAddr, mode: Mode) -> bool {
        let attempts = self.lab.outside.connect_with(to, mode, &["--count", "1", "--timeout", "500"]).unwrap();
        attempts[0].error.is_none()
    }

    /// How many connections each host has reset, to tell who ended one.
    fn resets(&self) -> String {
        let pods = self.pods.iter().map(|pod| &**pod);
        let nodes = self.nodes.iter().map(Node::host);
        let one = |place: &Place| {
            let read = || Ok(fs::read_to_string("/proc/thread-self/net/snmp")?);
            let text = place.in_netns(read).unwrap();
            let mut tcp = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
            let named = tcp.next().unwrap().split(' ').zip(tcp.next().unwrap().split(' '));
            let count = named.filter_map(|(name, count)| (name == "OutRsts").then_some(count)).collect::<String>();
            format!("{} {count}", place.name())
        };
        nodes.chain(pods).chain([&self.lab.outside]).map(one).collect::<Vec<_>>().join(", ")
    }

    fn wait_for(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}\n{}", self.lab.logs());
            sleep(Duration::from_millis(2));
        }
    }

    /// Sends at least so many requests to all frontends while one pod after the other leaves the Services for a moment.
    /// Says how often that happened. `disturb` is done at least so often meanwhile.
    fn load_while_endpoints_churn(&self, requests: usize, disturb: Option<(Disturb, usize)>) -> (Vec<LoadLine>, usize) {
        let (done, changes, to) = (AtomicBool::new(false), AtomicUsize::new(0), self.frontends());
        let disturbed = AtomicUsize::new(0);
        let list = to.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let each = (requests / 2 / to.len()).to_string();
        let (pods, manifests, outside, daemons) = (&self.pods, &self.manifests, &self.lab.outside, &self.daemons);
        let load = |keep: usize| -> Vec<LoadLine> {
            let keep = keep.to_string();
            let arguments = ["load", "--to", &list, "--requests", &each, "--keep", &keep];
            outside.ask(&arguments, Duration::from_secs(600)).unwrap()
        };
        thread::scope(|scope| {
            let churn = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    put_all_but(changes.load(Ordering::Relaxed) % (pods.len() + 1), pods, manifests);
                    changes.fetch_add(1, Ordering::Relaxed);
                    sleep(TURN);
                }
            });
            let disturber = scope.spawn(|| {
                while let Some((disturb, _)) = disturb
                    && !done.load(Ordering::Relaxed)
                {
                    let number = disturbed.load(Ordering::Relaxed);
                    disturb(&mut daemons.lock().unwrap()[0], number);
                    disturbed.fetch_add(1, Ordering::Relaxed);
                }
            });
            let is_enough = || {
                let often = disturb.is_none_or(|(_, often)| disturbed.load(Ordering::Relaxed) >= often);
                let failed = churn.is_finished() || (disturb.is_some() && disturber.is_finished());
                failed || (often && changes.load(Ordering::Relaxed) >= CHANGES)
            };
            let mut lines = Vec::new();
            while lines.is_empty() || !is_enough() {
                let kept = scope.spawn(|| load(KEEP));
                lines.extend(load(1));
                lines.extend(kept.join().unwrap());
            }
            done.store(true, Ordering::Relaxed);
            churn.join().unwrap();
            disturber.join().unwrap();
            (lines, changes.load(Ordering::Relaxed))
        })
    }
}

/// Writes the pods, one of which may not be ready.
fn put_all_but(unready: usize, pods: &[Pod], manifests: &Manifests) {
    let ports = [Port::tcp("tcp", 80, SERVER), Port::udp("udp", 80, SERVER)];
    let state = |number| if number == unready { PodState::Unready } else { PodState::Ready };
    let objects = pods.iter().enumerate();
    let objects: Vec<Value> =
        objects.map(|(number, pod)| manifests::pod("shop", "web", pod, state(number), &ports)).collect();
    manifests.put("pods", &objects).unwrap();
}

fn run(place: &Place, command: &str) {
    let finished = place.spawn(&["sh", "-c", command]).unwrap().finish(PATIENCE).unwrap();
    assert!(finished.status.success(), "{command}: {}", finished.status);
}

/// Requests of each test; the figures of the documentation were measured with 100,000.
fn requests() -> usize {
    std::env::var("SHUNT_REQUESTS").map_or(5_000, |number| number.parse().unwrap())
}

#[track_caller]
fn check_requests(name: &str, arguments: &[&str], prepare: impl Fn(&Node)) {
    check_disturbed(name, arguments, prepare, None);
}

#[track_caller]
fn check_disturbed(name: &str, arguments: &[&str], prepare: impl Fn(&Node), disturb: Option<(Disturb, usize)>) {
    let Some(world) = World::start(name, arguments, prepare) else { return };
    let start = Instant::now();
    let (lines, changes) = world.load_while_endpoints_churn(requests(), disturb);
    let answered: usize = lines.iter().map(|line| line.answered).sum();
    eprintln!("{name}: {answered} requests, {changes} changes of endpoints in {:?}", start.elapsed());
    eprintln!("{name}: resets: {}", world.resets());
    assert!(changes > 5, "too few changes to prove anything: {changes}");
    let (node, outside) = (&world.nodes[0], [IpAddr::from([172, 19, 0, 2]), "fd00:19::2".parse().unwrap()]);
    for line in lines {
        assert_eq!(
            (line.failed, &line.errors),
            (0, &vec![]),
            "{}; resets: {}\n{}",
            line.to,
            world.resets(),
            world.lab.logs()
        );
        let service = EXTERNAL.iter().find(|service| service.frontends(node).contains(&line.to)).unwrap();
        let (addresses, pods): ([IpAddr; 2], &[&str]) = match service.policy {
            "Cluster" => ([node.ipv4.into(), node.ipv6.into()], &["web-0", "web-1", "web-2", "web-3"]),
            _ => (outside, &["web-0", "web-1"]),
        };
        let source = if line.to.is_ipv4() { addresses[0] } else { addresses[1] };
        assert_eq!(line.sources.keys().collect::<Vec<_>>(), [&source], "{} of policy {}", line.to, service.policy);
        let met: BTreeSet<&str> = line.servers.keys().map(String::as_str).collect();
        assert!(met.iter().all(|pod| pods.contains(pod)), "{} was answered by {met:?}", line.to);
    }
}

#[test]
fn through_nftables_no_request_fails_while_endpoints_churn() {
    check_requests("loadnft", &["--proxy-mode=nftables", "--socket-lb=off"], |_| {});
}

#[test]
fn through_iptables_no_request_fails_while_endpoints_churn() {
    check_requests("loadipt", &["--proxy-mode=iptables", "--socket-lb=off"], |_| {});
}

#[test]
fn through_legacy_iptables_no_request_fails_while_endpoints_churn() {
    check_requests("loadlegacy", &["--proxy-mode=iptables", "--socket-lb=off"], use_legacy);
}

#[test]
fn beside_sockets_no_request_fails_while_endpoints_churn() {
    check_requests("loadsockets", &["--proxy-mode=nftables"], |_| {});
    check_requests("loadebpf", &["--proxy-mode=ebpf"], |_| {});
}

#[test]
fn through_programs_no_request_fails_while_endpoints_churn() {
    check_requests("loadprog", &["--proxy-mode=ebpf", "--socket-lb=off"], |_| {});
}

/// Killed, or stopped, and started again.
fn restart(daemon: &mut Daemon, number: usize) {
    if number.is_multiple_of(2) {
        daemon.kill9().unwrap();
    } else {
        assert!(daemon.stop().unwrap().success());
    }
    daemon.restart().unwrap_or_else(|error| panic!("{error:#}"));
}

#[test]
fn through_programs_no_request_fails_while_the_daemon_is_killed_and_started_again() {
    check_disturbed("loadkill", &["--proxy-mode=ebpf", "--socket-lb=off"], |_| {}, Some((restart, 4)));
}

/// What a kubelet leaves that uses the legacy variant: the daemon takes the variant that is in use.
fn use_legacy(node: &Node) {
    run(node, "iptables-legacy -t mangle -N KUBE-KUBELET-CANARY");
}

/// Removes rules as another program would, and polls until clients outside are served again at every frontend.
#[track_caller]
fn check_removal(name: &str, arguments: &[&str], prepare: impl Fn(&Node), removals: &[&str]) {
    let Some(world) = World::start(name, arguments, prepare) else { return };
    for removal in removals {
        let start = Instant::now();
        run(&world.nodes[0], removal);
        let removed = start.elapsed();
        for to in world.frontends() {
            for mode in [Mode::Tcp, Mode::Udp] {
                world.wait_for(&format!("{to} to be served after {removal}"), || world.answers(to, mode));
            }
        }
        eprintln!("{name}: {removal}: took {removed:?}, all served again after {:?}", start.elapsed());
    }
}

#[test]
fn rules_of_nftables_that_others_remove_are_back() {
    let removals = [
        "nft flush ruleset",
        "nft delete table ip shunt; nft delete table ip6 shunt",
        "nft flush table ip shunt; nft flush table ip6 shunt",
    ];
    check_removal("gonenft", &["--proxy-mode=nftables", "--socket-lb=off"], |_| {}, &removals);
}

#[test]
fn rules_of_iptables_that_others_remove_are_back() {
    let removals = [
        "iptables -t nat -F && ip6tables -t nat -F",
        "iptables -t nat -F && iptables -t nat -X && ip6tables -t nat -F && ip6tables -t nat -X",
        "nft flush ruleset",
    ];
    check_removal("goneipt", &["--proxy-mode=iptables", "--socket-lb=off"], |_| {}, &removals);
}

#[test]
fn rules_of_legacy_iptables_that_others_remove_are_back() {
    let removals = [
        "iptables-legacy -t nat -F && ip6tables-legacy -t nat -F",
        "iptables-legacy -t nat -F && iptables-legacy -t nat -X && \
         ip6tables-legacy -t nat -F && ip6tables-legacy -t nat -X",
    ];
    check_removal("gonelegacy", &["--proxy-mode=iptables", "--socket-lb=off"], use_legacy, &removals);
}

#[test]
fn a_pod_whose_sockets_are_left_alone_reaches_services_by_packets() {
    let Some(world) = World::start("optout", &["--proxy-mode=ebpf"], |_| {}) else { return };
    let node = &world.nodes[0];
    let [plain, mesh] = ["plain", "mesh"].map(|name| node.pod(name).unwrap());
    let mut object = manifests::pod("shop", "mesh", &mesh, PodState::Ready, &[]);
    object["metadata"]["annotations"] = json!({"shunt.dev/socket-proxy": "disabled"});
    world.manifests.put("mesh", &[object]).unwrap();
    // At a node port the source tells: packets get the node's address, and a socket keeps its own.
    let sources = |pod: &Pod, to: SocketAddr, mode: Mode| -> BTreeSet<IpAddr> {
        let attempts = pod.connect(to, mode, 4).unwrap();
        let failed = attempts.iter().find(|attempt| attempt.error.is_some() || attempt.peername != Some(to));
        assert_eq!(failed, None, "{} to {to} {mode:?}", pod.name());
        attempts.iter().map(|attempt| attempt.source.unwrap().ip()).collect()
    };
    let [_, _, v4, v6] = EXTERNAL[0].frontends(node);
    world.wait_for("the pod to be left alone", || sources(&mesh, v4, Mode::Tcp) == BTreeSet::from([node.ipv4.into()]));
    let ways: [(SocketAddr, IpAddr, IpAddr); 2] =
        [(v4, node.ipv4.into(), plain.ipv4.into()), (v6, node.ipv6.into(), plain.ipv6.into())];
    for (to, of_node, own) in ways {
        for mode in [Mode::Tcp, Mode::Udp, Mode::UdpUnconnected] {
            assert_eq!(sources(&mesh, to, mode), BTreeSet::from([of_node]), "{to} {mode:?}");
            assert_eq!(sources(&plain, to, mode), BTreeSet::from([own]), "{to} {mode:?}");
        }
    }
    for to in ["10.96.1.1:80", "[fd00:10:96::101]:80", "203.0.113.1:80", "[2001:db8:203::2]:80"] {
        for mode in [Mode::Tcp, Mode::Udp, Mode::UdpUnconnected] {
            sources(&mesh, to.parse().unwrap(), mode);
        }
    }
}
