//! What sockets of every kind see on the socket path, and what becomes of those whose endpoint leaves.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed, its helpers included")]
#![expect(clippy::print_stderr, reason = "figures are printed, not asserted")]
#![expect(clippy::indexing_slicing, reason = "JSON of our own making")]

mod cluster;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use cluster::{Cluster, Shop};
use lab::manifests::{PodState, Port};
use lab::peer::{CallError, Mode, now};
use lab::{DaemonOptions, Place, Pod, manifests};
use serde_json::{Value, json};

const NODE_PORT: u16 = 30_080;

/// Sends everything of the node's service to the pods of a shop as well.
fn node_port(cluster: &Cluster, shop: &Shop, port: u16) {
    let mut service =
        manifests::service("test", &format!("np-{port}"), Some(shop.name()), &[], &[Port::tcp("tcp", 80, 7000)]);
    service["spec"]["type"] = json!("NodePort");
    service["spec"]["ports"][0]["nodePort"] = json!(port);
    cluster.manifests.put(&format!("np-{port}"), &[service]).unwrap();
    cluster.wait_until_applied(&shop.client);
}

#[test]
fn a_connected_udp_client_of_a_removed_endpoint_gets_another_at_once() {
    let Some(cluster) = Cluster::alone("recover") else { return };
    let mut shop = Shop::open(&cluster, "recover", &[PodState::Ready, PodState::Ready]);
    for to in [shop.addresses()[0], shop.addresses()[1], shop.mapped_address()] {
        let ask = |further: &[&str]| shop.client.connect_in_background(to, Mode::Udp, further).unwrap();
        let mut client = ask(&["--same-socket", "--interval", "1", "--timeout", "1000"]);
        let first = client.wait_for_attempts(0, 5).unwrap().remove(0).server.unwrap();
        let gone = usize::from(first.ends_with("-1"));
        let removed = now();
        shop.set(gone, PodState::Unready);
        let other = client.wait_for(removed, "another server", |a| a.server.as_deref().is_some_and(|s| s != first));
        let took = Duration::from_nanos(other.unwrap().t - removed);
        eprintln!("{to}: another endpoint answers {took:?} after its manifest was written");
        let failures: Vec<_> = client.failures().unwrap().into_iter().filter_map(|attempt| attempt.error).collect();
        // A receiver gets the former, a sender the latter.
        assert_eq!(failures.len(), 1, "{to}: {failures:?}");
        assert!(matches!(failures[0], CallError::Aborted | CallError::NoDestination), "{to}: {failures:?}");
        shop.set(gone, PodState::Ready);
        cluster.wait_until_applied(&shop.client);
    }
}

/// Whether some TCP socket of a place waits for the answer to its first segment.
fn connects(place: &Place) -> bool {
    const SYN_SENT: &str = "02";
    let read = || Ok(fs::read_to_string("/proc/thread-self/net/tcp")?);
    let table = place.in_netns(read).unwrap();
    table.lines().skip(1).any(|line| line.split_whitespace().nth(3) == Some(SYN_SENT))
}

#[test]
fn a_client_that_still_connects_to_an_endpoint_that_left_is_told() {
    let Some(cluster) = Cluster::alone("connects") else { return };
    let mut shop = Shop::open(&cluster, "connects", &[PodState::Ready]);
    let down = shop.pod(0).spawn(&["ip", "link", "set", "eth0", "down"]).unwrap();
    assert!(down.finish(Duration::from_secs(10)).unwrap().status.success());
    let further = ["--count", "1", "--timeout", "60000"];
    let mut client = shop.client.connect_in_background(shop.addresses()[0], Mode::Tcp, &further).unwrap();
    cluster.wait_for("the client to connect", || connects(&shop.client));
    shop.set(0, PodState::Unready);
    let told = client.wait_for(0, "an error", |attempt| attempt.error.is_some()).unwrap();
    assert_eq!(told.error, Some(CallError::Aborted));
}

#[test]
fn sockets_of_endpoints_that_stay_and_established_connections_are_left_alone() {
    let Some(cluster) = Cluster::alone("leftalone") else { return };
    let mut shop = Shop::open(&cluster, "stay", &[PodState::Ready, PodState::Ready]);
    let [to, _] = shop.addresses();
    // Straight to the pod that will leave: none of ours, though the endpoint is the same.
    let direct = SocketAddr::new(shop.pod(0).ipv4.into(), 7000);
    let same = ["--same-socket", "--interval", "2"];
    let mut straight = shop.client.connect_in_background(direct, Mode::Udp, &same).unwrap();
    let mut unconnected = shop.client.connect_in_background(to, Mode::UdpUnconnected, &same).unwrap();
    let mut streams: Vec<_> = (0..8).map(|_| Stream::open(&shop.client, to)).collect();
    assert!(streams.iter().any(|stream| stream.server == "stay-0"), "by chance once in 256 runs");
    straight.wait_for_attempts(0, 5).unwrap();
    unconnected.wait_for_attempts(0, 5).unwrap();
    shop.set(0, PodState::Terminating);
    cluster.wait_until_applied(&shop.client);
    shop.set(0, PodState::Unready);
    cluster.wait_until_applied(&shop.client);
    let later = now();
    // CT-6: established TCP goes on for as long as both ends like.
    streams.iter_mut().for_each(Stream::echo);
    assert!(straight.wait_for_attempts(later, 20).unwrap().iter().all(|a| a.server.as_deref() == Some("stay-0")));
    assert!(unconnected.wait_for_attempts(later, 20).unwrap().iter().all(|a| a.server.as_deref() == Some("stay-1")));
    assert_eq!((straight.failures().unwrap(), unconnected.failures().unwrap()), (vec![], vec![]));
}

#[test]
fn a_udp_socket_stays_with_a_terminating_endpoint_that_serves() {
    let Some(cluster) = Cluster::alone("drain") else { return };
    let mut shop = Shop::open(&cluster, "drain", &[PodState::Ready, PodState::Ready]);
    let [to, _] = shop.addresses();
    let same = ["--same-socket", "--interval", "2"];
    for mode in [Mode::Udp, Mode::UdpUnconnected] {
        let mut client = shop.client.connect_in_background(to, mode, &same).unwrap();
        let first = client.wait_for_attempts(0, 5).unwrap().remove(0).server.unwrap();
        let leaving = usize::from(first.ends_with("-1"));
        shop.set(leaving, PodState::TerminatingServing);
        cluster.wait_until_applied(&shop.client);
        // CT-10: it may finish what it began; new clients go elsewhere (EP-20).
        let later = client.wait_for_attempts(now(), 20).unwrap();
        assert!(later.iter().all(|attempt| attempt.server.as_ref() == Some(&first)), "{mode:?}: {later:?}");
        let fresh = shop.client.connect(to, Mode::Udp, 20).unwrap();
        assert!(fresh.iter().all(|attempt| attempt.server.as_ref() != Some(&first)), "{mode:?}");
        shop.set(leaving, PodState::Unready);
        client.wait_for(now(), "another server", |a| a.server.as_ref().is_some_and(|s| *s != first)).unwrap();
        shop.set(leaving, PodState::Ready);
        cluster.wait_until_applied(&shop.client);
    }
}

#[test]
fn a_socket_with_many_destinations_gets_each_answer_from_whom_it_asked() {
    let Some(cluster) = Cluster::alone("many") else { return };
    let shops: Vec<Shop> =
        (0..9).map(|number| Shop::open(&cluster, &format!("many{number}"), &[PodState::Ready; 2])).collect();
    let client = &shops[0].client;
    for family in [0, 1] {
        let to: Vec<SocketAddr> = shops.iter().map(|shop| shop.addresses()[family]).collect();
        let probes = client.probe("many", &to).unwrap();
        assert_eq!(probes.len(), 27);
        let mut servers: BTreeMap<SocketAddr, BTreeSet<String>> = BTreeMap::new();
        for probe in probes {
            assert_eq!((probe.peer, &probe.error), (Some(probe.to), &None), "{probe:?}");
            servers.entry(probe.to).or_default().extend(probe.server);
        }
        assert!(servers.values().all(|servers| servers.len() == 1), "each frontend keeps its endpoint: {servers:?}");
    }
}

#[test]
fn tcp_fast_open_and_multipath_tcp_reach_the_service() {
    let Some(cluster) = Cluster::get() else { return };
    let shop = Shop::open(&cluster, "tfo", &[PodState::Ready]);
    for to in shop.addresses() {
        for mode in [Mode::TcpFastopen, Mode::Mptcp] {
            for attempt in shop.client.connect(to, mode, 3).unwrap() {
                assert_eq!(attempt.server.as_deref(), Some("tfo-0"), "{mode:?} to {to}: {:?}", attempt.error);
                // The hook of getpeername is not given the subflow that dialled (docs/parity.md).
                assert!(mode == Mode::Mptcp || attempt.peername == Some(to), "{mode:?}: {:?}", attempt.peername);
            }
        }
    }
}

#[test]
fn ping_raw_and_route_probing_sockets_are_left_alone() {
    let Some(cluster) = Cluster::get() else { return };
    let shop = Shop::open(&cluster, "ping", &[PodState::Ready]);
    shop.client.in_netns(|| Ok(fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0")?)).unwrap();
    for to in shop.addresses() {
        for call in ["ping", "raw"] {
            let probe = shop.client.probe(call, &[to]).unwrap().remove(0);
            assert_eq!((probe.peer.map(|peer| peer.ip()), probe.error), (Some(to.ip()), None), "{call} {to}");
        }
        // glibc and musl learn of routes by connecting UDP sockets to these ports.
        for port in [0, 65_535] {
            let probe = shop.client.probe("udp-connect", &[SocketAddr::new(to.ip(), port)]).unwrap().remove(0);
            assert_eq!(probe.error, None, "port {port} of {to}");
        }
    }
}

#[test]
fn node_ports_are_dialled_on_every_address_of_the_node_and_loopback_from_the_node_only() {
    let Some(cluster) = Cluster::alone("nodeport") else { return };
    let shop = Shop::open(&cluster, "np", &[PodState::Ready]);
    node_port(&cluster, &shop, NODE_PORT);
    let added: Ipv4Addr = Ipv4Addr::new(172, 18, 7, 7);
    let host: &Place = cluster.node.host();
    let ip = ["addr", "add", "172.18.7.7/32", "dev", "lo"];
    host.spawn(&[&["ip"][..], &ip].concat()).unwrap().finish(Duration::from_secs(5)).unwrap();
    let reached = |place: &Place, ip: IpAddr| {
        let attempt = place.connect(SocketAddr::new(ip, NODE_PORT), Mode::Tcp, 1).unwrap().remove(0);
        attempt.server.as_deref() == Some("np-0")
    };
    let node: [IpAddr; 2] = [cluster.node.ipv4.into(), cluster.node.ipv6.into()];
    for ip in node {
        assert!(reached(host, ip) && reached(&shop.client, ip), "{ip}");
    }
    for loopback in ["127.0.0.1", "127.8.9.1", "::1"].map(|ip| ip.parse().unwrap()) {
        assert!(reached(host, loopback), "{loopback} from the node");
        assert!(!reached(&shop.client, loopback), "a pod's {loopback} is its own");
    }
    // TP-12, but at once: an address that the node gets later counts as soon as the kernel reports it.
    cluster.wait_for("the new address", || reached(&shop.client, added.into()));
}

#[test]
fn a_process_of_the_node_cannot_bind_a_node_port_in_use() {
    let Some(cluster) = Cluster::alone("bind") else { return };
    let shop = Shop::open(&cluster, "bind", &[PodState::Ready]);
    let at = |ip: &str, port| SocketAddr::new(ip.parse().unwrap(), port);
    let bind = |place: &Place, call: &str, to: SocketAddr| place.probe(call, &[to]).unwrap().remove(0).error;
    let host: &Place = cluster.node.host();
    assert_eq!(bind(host, "bind-tcp", at("0.0.0.0", NODE_PORT)), None, "no program has it yet");
    node_port(&cluster, &shop, NODE_PORT);
    for any in ["0.0.0.0", "::"] {
        assert_eq!(bind(host, "bind-tcp", at(any, NODE_PORT)), Some(CallError::InUse), "{any}");
        assert_eq!(bind(host, "bind-udp", at(any, NODE_PORT)), None, "another protocol: {any}");
        assert_eq!(bind(host, "bind-tcp", at(any, NODE_PORT + 1)), None, "another port: {any}");
        assert_eq!(bind(&shop.client, "bind-tcp", at(any, NODE_PORT)), None, "a pod has ports of its own: {any}");
    }
}

#[test]
fn a_pod_that_opts_out_is_left_alone_from_then_on() {
    // So that the source tells packets that the node translates from a socket, which keeps the pod's address.
    let masquerade_all = |options: &mut DaemonOptions| options.extra.push("--masquerade-all".to_owned());
    let Some(cluster) = Cluster::alone_with("optout", masquerade_all) else { return };
    let shop = Shop::open(&cluster, "opt", &[PodState::Ready]);
    let [to, _] = shop.addresses();
    let mesh = cluster.node.pod("mesh").unwrap();
    let at_socket = |pod: &Pod| {
        let attempt = pod.connect(to, Mode::Tcp, 1).unwrap().remove(0);
        assert_eq!(attempt.server.as_deref(), Some("opt-0"), "{:?}", attempt.error);
        attempt.source.is_some_and(|source| source.ip() == IpAddr::V4(pod.ipv4))
    };
    assert!(at_socket(&mesh));
    let mut pod = manifests::pod("test", "mesh", &mesh, PodState::Ready, &[]);
    let put = |pod: &Value| cluster.manifests.put("mesh", std::slice::from_ref(pod)).unwrap();
    pod["metadata"]["annotations"] = json!({"shunt.dev/socket-proxy": "disabled"});
    put(&pod);
    cluster.wait_for("the pod to be left alone", || !at_socket(&mesh));
    assert!(at_socket(&shop.client), "others are served");
    pod["metadata"]["annotations"] = json!({"shunt.dev/socket-proxy": "enabled"});
    put(&pod);
    cluster.wait_for("the pod to be served again", || at_socket(&mesh));
}

#[test]
fn an_element_that_a_stray_hand_removed_is_repaired() {
    let Some(cluster) = Cluster::alone("audit") else { return };
    let shop = Shop::open(&cluster, "audit", &[PodState::Ready]);
    let [to, _] = shop.addresses();
    let served = || shop.client.connect(to, Mode::Tcp, 1).unwrap().remove(0).server.is_some();
    let IpAddr::V4(ip) = to.ip() else { panic!("the first is IPv4") };
    let [a, b, c, d] = ip.octets();
    let key = format!("{a} {b} {c} {d} 0 80 6 0");
    let map = cluster.bpf_root().join("v5/maps/FRONTENDS4").display().to_string();
    let words = ["map", "delete", "pinned", &map, "key"];
    let status = std::process::Command::new("bpftool").args(words).args(key.split(' ')).status();
    assert!(status.is_ok_and(|status| status.success()), "bpftool failed; cargo xtask setup --tests installs it");
    cluster.wait_for("the repair", served);
    let metrics = cluster.daemon().metrics("/metrics").unwrap().body;
    assert!(!metrics.contains("audit_repairs_total 0"), "{metrics}");
    let log = fs::read_to_string(cluster.daemon().process().log()).unwrap();
    let told = format!("service=test/audit:tcp/tcp what=\"frontend {to}/tcp\"");
    assert!(log.contains(&told), "{told} is not in\n{log}");
}

/// A TCP connection held open by a process in a pod.
struct Stream {
    process: lab::Process,
    server: String,
}

impl Stream {
    fn open(place: &Place, to: SocketAddr) -> Self {
        let process = place.listening_peer("hold", &[&to.to_string()]).unwrap();
        let server = process.next_line(Duration::from_secs(5)).unwrap().unwrap();
        Self { process, server }
    }

    /// Sends a line, and reads it back.
    fn echo(&mut self) {
        self.process.say("still there?").unwrap();
        assert_eq!(self.process.next_line(Duration::from_secs(5)).unwrap().as_deref(), Some("still there?"));
    }
}
