//! From kube-proxy to shunt, and from one data path to another: no connection fails, and only what must go is removed.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed, its helpers included")]
#![expect(clippy::indexing_slicing, reason = "a test that cannot go on has failed, its helpers included")]

mod support;

use std::fmt::Debug;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::kube_proxy_rules::{Cluster, Endpoint, Family, ServicePort, iptables_mode, nftables_mode};
use lab::manifests::{self, PodState, Port};
use lab::peer::Mode;
use lab::{Binaries, Client, Daemon, DaemonOptions, Lab, Manifests, Node, Place, Pod, Process};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(30);
const CLUSTER_IPS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 96, 1, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x101))];
const PORT: u16 = 80;
const TARGET: u16 = 7000;
const NODE_PORT: u16 = 30_080;

/// How kube-proxy wrote its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Former {
    /// iptables mode, with one of the two kinds of iptables.
    Iptables(&'static str),
    Nftables,
}

const MODES: [&str; 3] = ["nftables", "iptables", "ebpf"];
const FORMER: [Former; 3] = [Former::Iptables("legacy"), Former::Iptables("nft"), Former::Nftables];

/// A node with a Service of two pods, the kubelet's rules and kube-proxy's.
struct Site {
    /// They end before the lab does.
    _servers: Vec<Process>,
    client: Pod,
    node: Node,
    manifests: Manifests,
    lab: Lab,
}

impl Site {
    fn new(name: &str, former: Former) -> Self {
        let lab = Lab::new(name).unwrap();
        let node = lab.node("n1").unwrap();
        let client = node.pod("client").unwrap();
        let pods = ["web-0", "web-1"].map(|name| node.pod(name).unwrap());
        let server = |pod: &Pod| pod.serve(pod.name(), &["--tcp", &TARGET.to_string()]).unwrap();
        let servers = pods.iter().map(server).collect();
        let manifests = Manifests::new(&lab.directory().join("manifests")).unwrap();
        manifests.put("cluster", &[manifests::namespace("test"), manifests::node(&node)]).unwrap();
        let ports = [Port::tcp("", PORT, TARGET)];
        let mut service = manifests::service("test", "web", Some("web"), &CLUSTER_IPS, &ports);
        service["spec"]["type"] = json!("NodePort");
        service["spec"]["ports"][0]["nodePort"] = json!(NODE_PORT);
        let pod = |pod| manifests::pod("test", "web", pod, PodState::Ready, &ports);
        manifests.put("web", &[service, pod(&pods[0]), pod(&pods[1])]).unwrap();
        let site = Self { _servers: servers, client, node, manifests, lab };
        site.install(former, &pods);
        site
    }

    fn install(&self, former: Former, pods: &[Pod; 2]) {
        let ports = CLUSTER_IPS.map(|cluster_ip| {
            let endpoint = |pod: &Pod| {
                let ip: IpAddr = if cluster_ip.is_ipv4() { pod.ipv4.into() } else { pod.ipv6.into() };
                Endpoint { address: SocketAddr::new(ip, TARGET), local: true }
            };
            let mut port = ServicePort::tcp("web", cluster_ip, PORT, pods.iter().map(endpoint).collect());
            port.namespace = "test".to_owned();
            port.node_port = Some(NODE_PORT);
            port
        });
        let pod_ranges = self.node.pod_cidrs();
        let service_ranges = ["10.96.0.0/16", "fd00:10:96::/112"].map(str::to_owned);
        let cluster = Cluster { pod_ranges, service_ranges, ports: ports.to_vec() };
        // A kubelet of today writes with whatever iptables it finds.
        let kind = match former {
            Former::Iptables(kind) => kind,
            Former::Nftables => "nft",
        };
        for (command, family) in [("iptables", Family::V4), ("ip6tables", Family::V6)] {
            let restore = format!("{command}-{kind}-restore --noflush");
            self.feed(&restore, &iptables_mode::of_kubelet());
            match former {
                Former::Iptables(_) => self.feed(&restore, &iptables_mode::of_kube_proxy(&cluster, family)),
                Former::Nftables => self.feed("nft -f -", &nftables_mode::of_kube_proxy(&cluster, family)),
            }
        }
    }

    /// Runs a command on the node that reads `input`.
    fn feed(&self, command: &str, input: &str) {
        let file = self.lab.directory().join("input");
        fs::write(&file, input).unwrap();
        self.run(&format!("{command} < {}", file.display()));
    }

    /// Runs a command on the node and gives what it prints.
    fn run(&self, command: &str) -> Vec<String> {
        let process = self.node.spawn(&["sh", "-c", command]).unwrap();
        let log = process.log().to_owned();
        let finished = process.finish(PATIENCE).unwrap();
        assert!(finished.status.success(), "{command}: {}", fs::read_to_string(log).unwrap());
        finished.lines
    }

    /// All rules and chains of Kubernetes on the node, without counters.
    fn kubernetes_rules(&self) -> Vec<String> {
        let save = ["iptables-legacy", "iptables-nft", "ip6tables-legacy", "ip6tables-nft"];
        let saved =
            save.map(|kind| self.run(&format!("{kind}-save 2>/dev/null | sed 's/ \\[.*//' | grep KUBE- || true")));
        let tables = self.run("nft list tables | grep kube-proxy || true");
        saved.into_iter().flatten().chain(tables).collect()
    }

    fn has_rules_of_kube_proxy(&self) -> bool {
        let named =
            ["KUBE-SERVICES", "KUBE-SVC-", "KUBE-SEP-", "KUBE-MARK-MASQ", "KUBE-PROXY", "KUBE-FORWARD", "kube-proxy"];
        self.kubernetes_rules().iter().any(|line| named.iter().any(|name| line.contains(name)))
    }

    /// The paths of shunt whose rules serve on the node.
    fn rules_of_shunt(&self) -> Vec<&'static str> {
        let has = |command: &str| !self.run(&format!("{command} || true")).is_empty();
        let nftables = has("nft list maps | grep 'map frontends'");
        let iptables =
            ["nft", "legacy"].iter().any(|kind| has(&format!("iptables-{kind}-save 2>/dev/null | grep SHUNT")));
        [(nftables, "nftables"), (iptables, "iptables")]
            .into_iter()
            .filter_map(|(has, path)| has.then_some(path))
            .collect()
    }

    fn wait_for(&self, what: &str, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}\n{}", self.lab.logs());
            sleep(Duration::from_millis(20));
        }
    }

    /// Where clients outside dial the Service.
    fn node_ports(&self) -> [SocketAddr; 2] {
        [(self.node.ipv4, NODE_PORT).into(), (self.node.ipv6, NODE_PORT).into()]
    }

    /// Clients outside and in a pod that open connections all the time.
    fn load(&self) -> Vec<(&'static str, Client)> {
        let further = ["--interval", "3", "--duration", "300"];
        let dial = |place: &Place, to| place.connect_in_background(to, Mode::Tcp, &further).unwrap();
        let outside = self.node_ports().map(|to| ("outside", dial(&self.lab.outside, to)));
        let inside = CLUSTER_IPS.map(|ip| ("pod", dial(&self.client, SocketAddr::new(ip, PORT))));
        outside.into_iter().chain(inside).collect()
    }

    /// Connections that stay: one from outside, one from a pod.
    fn connections(&self) -> Vec<Process> {
        let hold = |place: &Place, to: SocketAddr| {
            let mut process = place.listening_peer("hold", &[&to.to_string()]).unwrap();
            process.wait_for_line(PATIENCE, |line| line.starts_with("web-")).unwrap();
            talk(&mut process, "at first");
            process
        };
        let [node_port, _] = self.node_ports();
        vec![hold(&self.lab.outside, node_port), hold(&self.client, SocketAddr::new(CLUSTER_IPS[0], PORT))]
    }

    fn daemon(&self, mode: &str) -> Daemon {
        let mut options = DaemonOptions::new(self.manifests.directory());
        options.extra = ["--proxy-mode", mode].map(str::to_owned).into();
        self.node.daemon(options).unwrap_or_else(|error| panic!("{error:#}\n{}", self.lab.logs()))
    }
}

/// A line goes to the server and comes back.
fn talk(connection: &mut Process, when: impl Debug) {
    connection.say("still there").unwrap();
    let echo = connection.wait_for_line(PATIENCE, |line| line.contains("still there"));
    echo.unwrap_or_else(|error| panic!("{when:?}: {error:#}"));
}

/// Links of programs at sockets are pinned, of whatever version.
fn has_programs(daemon: &Daemon) -> bool {
    let versions = daemon.bpf_root().read_dir().into_iter().flatten().flatten();
    let mut links = versions.filter_map(|version| version.path().join("links").read_dir().ok());
    links.any(|mut links| links.next().is_some())
}

/// Every client has made further connections since now, and none of all failed.
fn check(clients: &mut [(&'static str, Client)], connections: &mut [Process], when: impl Debug) {
    for (place, client) in clients {
        let now = client.attempts().unwrap().last().map_or(0, |attempt| attempt.t);
        client.wait_for_attempts(now, 20).unwrap();
        assert_eq!(client.failures().unwrap(), [], "{place}, {when:?}");
    }
    for connection in connections {
        talk(connection, &when);
    }
}

#[test]
fn cleanup_removes_what_kube_proxy_left_and_nothing_of_the_kubelet() {
    if support::skipped() {
        return;
    }
    let shunt = Binaries::find().unwrap().shunt().unwrap().display().to_string();
    for former in FORMER {
        let site = Site::new("cleanup", former);
        // When nothing translates or tracks packets any more, the kernel stops doing it for running connections too:
        // a network plug-in does.
        for family in ["ip", "ip6"] {
            let chain = "type nat hook postrouting priority 100\n oifname \"flannel.1\" masquerade";
            site.feed("nft -f -", &format!("table {family} cni {{\nchain out {{\n{chain}\n}}\n}}\n"));
        }
        let mut connections = site.connections();
        check(&mut site.load(), &mut connections, former);
        let said = site.run(&format!("{shunt} cleanup --kube-proxy")).join("\n");
        let removed = match former {
            Former::Iptables(kind) => format!("chains of kube-proxy in table nat of iptables-{kind}"),
            Former::Nftables => "removed 1 table ip kube-proxy of nftables".to_owned(),
        };
        assert!(said.contains(&removed), "{former:?}: {said}");
        let left = site.kubernetes_rules();
        for kept in [":KUBE-FIREWALL -", ":KUBE-KUBELET-CANARY -", ":KUBE-MARK-DROP -", "-A INPUT -j KUBE-FIREWALL"] {
            assert!(left.iter().filter(|line| *line == kept).count() >= 2, "{former:?}: {kept} is not in {left:#?}");
        }
        assert!(!site.has_rules_of_kube_proxy(), "{former:?}: {left:#?}");
        connections.iter_mut().for_each(|connection| talk(connection, former));
        assert_eq!(site.run(&format!("{shunt} cleanup --kube-proxy")), ["nothing of kube-proxy is left"]);
    }
}

#[test]
fn kube_proxys_rules_are_replaced_without_a_failed_connection() {
    if support::skipped() {
        return;
    }
    for former in FORMER {
        for mode in MODES {
            let site = Site::new("takeover", former);
            let (mut clients, mut connections) = (site.load(), site.connections());
            check(&mut clients, &mut connections, (former, mode));
            let _daemon = site.daemon(mode);
            site.wait_for("the end of kube-proxy's rules", || !site.has_rules_of_kube_proxy());
            check(&mut clients, &mut connections, (former, mode));
            let left = site.kubernetes_rules();
            assert!(left.iter().any(|line| line == "-A INPUT -j KUBE-FIREWALL"), "{former:?} to {mode}: {left:#?}");
        }
    }
}

#[test]
fn the_rules_of_a_kube_proxy_that_runs_stay_until_it_stops() {
    if support::skipped() {
        return;
    }
    let site = Site::new("running", Former::Iptables("nft"));
    let program = site.lab.directory().join("kube-proxy");
    fs::copy("/bin/sleep", &program).unwrap();
    let mut kube_proxy = site.node.spawn(&[program.as_os_str(), "600".as_ref()]).unwrap();
    let (mut clients, mut connections) = (site.load(), site.connections());
    let daemon = site.daemon("nftables");
    let named = format!("kube-proxy still runs (process {})", kube_proxy.pid());
    site.wait_for("the daemon to name it", || daemon.log().unwrap().contains(&named));
    let ready = daemon.health("/readyz").unwrap();
    let warns = ready.body.split_once("warnings").is_some_and(|(_, warnings)| warnings.contains(&named));
    assert!(ready.status == 200 && warns, "{}", ready.body);
    assert!(site.has_rules_of_kube_proxy());
    let shunt = Binaries::find().unwrap().shunt().unwrap().display().to_string();
    let checked = site.run(&format!("{shunt} check || true")).join("\n");
    assert!(checked.contains(&format!("runs (process {})", kube_proxy.pid())), "{checked}");
    check(&mut clients, &mut connections, "it runs");
    kube_proxy.kill9().unwrap();
    site.wait_for("the end of its rules", || !site.has_rules_of_kube_proxy());
    check(&mut clients, &mut connections, "it has stopped");
}

#[test]
fn data_paths_replace_one_another_without_a_failed_connection() {
    if support::skipped() {
        return;
    }
    let site = Site::new("datapaths", Former::Nftables);
    let mut daemon = site.daemon("ebpf");
    site.wait_for("the end of kube-proxy's rules", || !site.has_rules_of_kube_proxy());
    let (mut clients, mut connections) = (site.load(), site.connections());
    check(&mut clients, &mut connections, "at first");
    // Without sockets, packets take over what programs served until then.
    let steps: [(&[&str], &[&str], bool); 7] = [
        (&["--proxy-mode", "nftables", "--socket-lb", "off"], &["nftables"], false),
        (&["--proxy-mode", "iptables", "--socket-lb", "off"], &["iptables"], false),
        (&["--proxy-mode", "ebpf"], &[], true),
        (&["--proxy-mode", "nftables"], &["nftables"], true),
        (&["--proxy-mode", "ebpf", "--socket-lb", "off"], &[], false),
        (&["--proxy-mode", "iptables"], &["iptables"], true),
        // The default.
        (&[], &[], true),
    ];
    for (arguments, expected, sockets) in steps {
        daemon.stop().unwrap();
        check(&mut clients, &mut connections, ("stopped before", arguments));
        daemon.options().extra = arguments.iter().copied().map(str::to_owned).collect();
        daemon.restart().unwrap_or_else(|error| panic!("{arguments:?}: {error:#}\n{}", site.lab.logs()));
        site.wait_for(&format!("rules: {expected:?}"), || site.rules_of_shunt() == expected);
        site.wait_for(&format!("programs: {sockets}"), || has_programs(&daemon) == sockets);
        check(&mut clients, &mut connections, arguments);
    }
}
