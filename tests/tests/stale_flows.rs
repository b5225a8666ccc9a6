//! UDP clients that never change their source port, on each path for packets: they follow the endpoints, although the
//! kernel remembers where their flow went (CT-1…13; E2E-94, E2E-95, E2E-109, E2E-110, E2E-112, E2E-115).
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed, its helpers included")]
#![expect(clippy::indexing_slicing, reason = "a test that cannot go on has failed, its helpers included")]

mod support;

use std::net::{IpAddr, SocketAddr};

use lab::manifests::{self, PodState, Port, SliceEndpoint};
use lab::peer::{Attempt, Mode};
use lab::{Client, Daemon, DaemonOptions, Lab, Manifests, Node, Place, Pod, Process};
use serde_json::json;

const PORT: u16 = 53;
const TARGET: u16 = 7000;
const OTHER_TARGET: u16 = 7001;
const NODE_PORT: u16 = 30_053;
/// Mode and sockets. Those of this node are translated where sockets serve, so the flows of packets are those from
/// outside.
const PATHS: [(&str, &str); 5] =
    [("nftables", "off"), ("iptables", "off"), ("nftables", "on"), ("iptables", "on"), (PROGRAMS, "off")];
/// eBPF programs for packets, in the place of a mode: they do not serve the node's own packets.
const PROGRAMS: &str = "programs";

/// A node with two pods that serve UDP, and clients at every kind of frontend. Fields are dropped in this order.
struct Site {
    clients: Vec<(String, Client)>,
    daemon: Daemon,
    _servers: Vec<Process>,
    client: Pod,
    pods: [Pod; 2],
    node: Node,
    manifests: Manifests,
    lab: Lab,
}

impl Site {
    /// Clients begin to send before there is a Service.
    fn start((mode, sockets): (&str, &str)) -> Self {
        let lab = Lab::new(&format!("stale{mode}")).unwrap();
        let node = lab.node("n1").unwrap();
        let client = node.pod("client").unwrap();
        let pods = ["a", "b"].map(|name| node.pod(name).unwrap());
        let serve = |pod: &Pod, name: &str, port: u16| pod.serve(name, &["--udp", &port.to_string()]).unwrap();
        let mut servers: Vec<Process> = pods.iter().map(|pod| serve(pod, pod.name(), TARGET)).collect();
        servers.push(serve(&pods[0], "a-other", OTHER_TARGET));
        let manifests = Manifests::new(&lab.directory().join("manifests")).unwrap();
        manifests.put("cluster", &[manifests::namespace("test"), manifests::node(&node)]).unwrap();
        let mut options = DaemonOptions::new(manifests.directory());
        let path: &[&str] = &["--proxy-mode", if mode == PROGRAMS { "ebpf" } else { mode }];
        options.extra =
            [path, &["--socket-lb", sockets, "--dns=false"]].concat().into_iter().map(str::to_owned).collect();
        options.dns_bind = None;
        let daemon = node.daemon(options).unwrap_or_else(|error| panic!("{error:#}\n{}", lab.logs()));
        let node_ports: [SocketAddr; 2] = [(node.ipv4, NODE_PORT).into(), (node.ipv6, NODE_PORT).into()];
        let cluster_ips = cluster_ips(1).map(|ip| SocketAddr::new(ip, PORT));
        let mut dials = vec![(&lab.outside, node_ports)];
        if sockets == "off" {
            dials.push((&*client, cluster_ips));
        }
        if sockets == "off" && mode != PROGRAMS {
            dials.push((node.host(), cluster_ips));
        }
        let clients = dials.iter().flat_map(|(place, addresses)| addresses.map(|to| (*place, to)));
        let clients = clients.map(|(place, to)| (format!("{} at {to}", place.name()), sends(place, to))).collect();
        Self { clients, daemon, _servers: servers, client, pods, node, manifests, lab }
    }

    fn put(&self, states: &[(usize, PodState)]) {
        self.put_with(states, TARGET);
    }

    /// The Service with these pods, which listen there.
    fn put_with(&self, states: &[(usize, PodState)], target: u16) {
        let ports = [Port::udp("dns", PORT, target)];
        let mut service = manifests::service("test", "dns", Some("dns"), &cluster_ips(1), &ports);
        service["spec"]["type"] = json!("NodePort");
        service["spec"]["ports"][0]["nodePort"] = json!(NODE_PORT);
        let pod =
            |(index, state): &(usize, PodState)| manifests::pod("test", "dns", &self.pods[*index], *state, &ports);
        self.manifests.put("dns", &std::iter::once(service).chain(states.iter().map(pod)).collect::<Vec<_>>()).unwrap();
    }

    /// Every client gets an answer that `wanted` accepts, or none, from now on.
    #[track_caller]
    fn all(&mut self, what: &str, wanted: impl Fn(&Attempt) -> bool) {
        for (name, client) in &mut self.clients {
            let now = client.attempts().unwrap().last().map_or(0, |attempt| attempt.t);
            let outcome = client.wait_for(now, what, &wanted);
            outcome.unwrap_or_else(|error| panic!("{name}, {what}: {error:#}\n{}", self.lab.logs()));
        }
    }

    #[track_caller]
    fn all_reach(&mut self, server: &str) {
        self.all(&format!("an answer of {server}"), |attempt| attempt.server.as_deref() == Some(server));
    }

    #[track_caller]
    fn all_fail(&mut self) {
        self.all("no answer", |attempt| attempt.error.is_some());
    }

    /// All that was written is in force, and flows were looked at: a Service that is written now is served later.
    fn settle(&self, number: u8) {
        let ports = [Port::udp("dns", PORT, TARGET)];
        let name = format!("mark-{number}");
        let ips = cluster_ips(number);
        let endpoint = SliceEndpoint { address: self.pods[0].ipv4.into(), node: "n1".to_owned(), ready: true };
        let slice = manifests::slice("test", &name, &name, &[endpoint], &ports);
        let service = manifests::service("test", &name, None, &ips[..1], &ports);
        self.manifests.put(&name, &[service, slice]).unwrap();
        let mut client =
            self.client.connect_in_background(SocketAddr::new(ips[0], PORT), Mode::Udp, &["--timeout", "100"]).unwrap();
        client.wait_for(0, "the mark", |attempt| attempt.error.is_none()).unwrap();
    }
}

fn cluster_ips(last: u8) -> [IpAddr; 2] {
    [format!("10.96.2.{last}"), format!("fd00:10:96::2{last:02}")].map(|ip| ip.parse().unwrap())
}

/// Sends from one socket all the time. An answer that comes later than the timeout would be taken for that to the next
/// question, and so on: on a busy machine a short one proves nothing.
fn sends(place: &Place, to: SocketAddr) -> Client {
    let further = ["--same-socket", "--interval", "10", "--timeout", "2000", "--duration", "300"];
    place.connect_in_background(to, Mode::Udp, &further).unwrap()
}

#[test]
fn clients_with_one_source_port_follow_the_endpoints() {
    if support::skipped() {
        return;
    }
    for path in PATHS {
        let mut site = Site::start(path);
        // CT-33, E2E-116
        let close_wait = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait";
        assert_eq!(site.node.in_netns(|| Ok(std::fs::read_to_string(close_wait)?)).unwrap(), "3600\n");
        site.all_fail();
        site.put(&[]);
        site.settle(10);
        // E2E-109, E2E-110, E2E-112: from none to the first, then another.
        site.put(&[(0, PodState::Ready)]);
        site.all_reach("a");
        site.put(&[(1, PodState::Ready)]);
        site.all_reach("b");
        // CT-10: it serves until it ends.
        site.put(&[(0, PodState::Ready), (1, PodState::TerminatingServing)]);
        site.settle(11);
        site.all_reach("b");
        site.put(&[(0, PodState::Ready), (1, PodState::Terminating)]);
        site.all_reach("a");
        // E2E-115
        site.put_with(&[(0, PodState::Ready)], OTHER_TARGET);
        site.all_reach("a-other");
        // CT-7: the server still runs.
        site.put(&[]);
        site.all_fail();
        site.put(&[(1, PodState::Ready)]);
        site.all_reach("b");
        // CT-8
        site.manifests.remove("dns").unwrap();
        site.all_fail();
        site.put(&[(0, PodState::Ready)]);
        site.all_reach("a");
        // CT-13: what changed while no daemon ran.
        site.daemon.stop().unwrap();
        site.put(&[(1, PodState::Ready)]);
        site.daemon.restart().unwrap();
        site.all_reach("b");
        if path.0 == PROGRAMS {
            continue;
        }
        let metrics = site.daemon.metrics("/metrics").unwrap().body;
        let ended = "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"} ";
        let ended = metrics.lines().find_map(|line| line.strip_prefix(ended)?.parse::<u64>().ok());
        let flows = u64::try_from(site.clients.len() / 2).unwrap();
        assert!(ended >= Some(flows), "{metrics}");
    }
}
