//! What serves packets where nobody asked for it by name: programs, unless they would leave something unserved.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed, its helpers included"
)]

mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::manifests::{self, PodState, Port};
use lab::peer::Mode;
use lab::{Binaries, Daemon, DaemonOptions, Lab, Manifests, Node, Process};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);
const CLUSTER_IPS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 96, 1, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x101))];
const TARGET: u16 = 7000;
const NODE_PORT: u16 = 30_080;
/// As a host firewall has them: what the kernel has translated may pass, and what belongs to it.
const FIREWALL: &str = "for i in iptables-nft ip6tables-nft; do $i -P FORWARD DROP; \
                        $i -A FORWARD -m conntrack --ctstate DNAT,ESTABLISHED,RELATED -j ACCEPT; done";

/// A node with a Service of one pod. They end before the lab does.
struct Site {
    _server: Process,
    node: Node,
    manifests: Manifests,
    lab: Lab,
}

impl Site {
    fn new(name: &str) -> Self {
        let lab = Lab::new(name).unwrap();
        let node = lab.node("n1").unwrap();
        let pod = node.pod("web-0").unwrap();
        let server = pod.serve("web-0", &["--tcp", &TARGET.to_string()]).unwrap();
        let manifests = Manifests::new(&lab.directory().join("manifests")).unwrap();
        manifests.put("cluster", &[manifests::namespace("test"), manifests::node(&node)]).unwrap();
        let ports = [Port::tcp("", 80, TARGET)];
        let mut service = manifests::service("test", "web", Some("web"), &CLUSTER_IPS, &ports);
        service["spec"]["type"] = json!("NodePort");
        service["spec"]["ports"][0]["nodePort"] = json!(NODE_PORT);
        manifests.put("web", &[service, manifests::pod("test", "web", &pod, PodState::Ready, &ports)]).unwrap();
        Self { _server: server, node, manifests, lab }
    }

    /// What a command prints on the node, whatever its exit code.
    fn run(&self, command: &str) -> String {
        self.node.spawn(&["sh", "-c", command]).unwrap().finish(PATIENCE).unwrap().lines.join("\n")
    }

    /// What `shunt check` says.
    fn checked(&self) -> String {
        let shunt = Binaries::find().unwrap().shunt().unwrap().display().to_string();
        self.run(&format!("{shunt} check --cgroup-root {} || true", self.node.cgroup().display()))
    }

    fn daemon(&self, flags: &[&str]) -> Daemon {
        let mut options = DaemonOptions::new(self.manifests.directory());
        options.extra = flags.iter().copied().map(str::to_owned).collect();
        self.node.daemon(options).unwrap_or_else(|error| panic!("{error:#}\n{}", self.lab.logs()))
    }

    /// Clients outside reach the Service.
    fn check_served(&self) {
        for to in [SocketAddr::from((self.node.ipv4, NODE_PORT)), (self.node.ipv6, NODE_PORT).into()] {
            let served = || self.lab.outside.connect(to, Mode::Tcp, 1).unwrap().remove(0).server.is_some();
            let deadline = Instant::now() + PATIENCE;
            while !served() {
                assert!(Instant::now() < deadline, "{to} is not served\n{}", self.lab.logs());
                sleep(Duration::from_millis(50));
            }
        }
    }
}

/// The path for packets, and why another one does not serve.
fn data_path(daemon: &Daemon) -> (String, String) {
    let services: Value = serde_json::from_str(&daemon.command(&["services", "-o", "json"]).unwrap()).unwrap();
    let path = &services["dataPath"];
    (path["packets"].as_str().unwrap_or("none").to_owned(), path["without"].to_string())
}

#[test]
fn programs_serve_packets_by_default() {
    if support::skipped() {
        return;
    }
    let site = Site::new("choice");
    let checked = site.checked();
    assert!(checked.contains("eBPF programs at sockets and eBPF programs for packets"), "{checked}");
    assert!(checked.contains("the kernel accepts them"), "{checked}");
    let daemon = site.daemon(&[]);
    assert_eq!(data_path(&daemon), ("programs".to_owned(), "[]".to_owned()));
    site.check_served();
    let rules = site.run("nft list ruleset | grep -c shunt; iptables-legacy-save 2>/dev/null | grep -c SHUNT");
    assert_eq!(rules, "0\n0", "no rules are installed");
}

/// Each of these hosts serves all by rules, and not by programs.
#[test]
fn rules_serve_where_programs_would_leave_something_unserved() {
    if support::skipped() {
        return;
    }
    let below = "ip link add below link eth0 type macvlan mode bridge";
    for (name, prepare, flags, reason) in [
        ("choicefilter", FIREWALL, &[][..], "packet filters: the FORWARD chain of iptables-nft drops"),
        ("choicelink", below, &[], "packet devices: below is of kind macvlan"),
        ("choiceoff", "true", &["--socket-lb", "off"], "[]"),
    ] {
        let site = Site::new(name);
        site.run(prepare);
        if flags.is_empty() {
            let checked = site.checked();
            assert!(checked.contains("eBPF programs at sockets and nftables rules for packets"), "{checked}");
        }
        let daemon = site.daemon(flags);
        let (packets, without) = data_path(&daemon);
        assert!(packets == "nftables" && without.contains(reason), "{name}: {packets}, {without}");
        site.check_served();
        drop(daemon);
        if flags.is_empty() {
            // Who names them has them.
            assert_eq!(data_path(&site.daemon(&["--proxy-mode=ebpf"])).0, "programs");
        }
    }
}
