//! Packets that a host should not get: segments from outside of a connection's window, and what a neighbour sends to
//! loopback. On each path for packets.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed, its helpers included"
)]

mod cluster;
mod support;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use lab::manifests::{self, PodState, Port};
use lab::peer::{CallError, Mode};
use lab::{DaemonOptions, Lab, Manifests, Place, Process};
use serde_json::json;

use cluster::{Cluster, Shop};

const PATIENCE: Duration = Duration::from_secs(30);
/// Where pods listen.
const TARGET: u16 = 7000;
const NODE_PORT: u16 = 30_090;
/// A server of the node for the node alone.
const PRIVATE: u16 = 7777;
const MODES: [Mode; 2] = [Mode::Tcp, Mode::Udp];

fn run(place: &Place, command: &str) {
    let finished = place.spawn(&["sh", "-c", command]).unwrap().finish(PATIENCE).unwrap();
    assert!(finished.status.success(), "{command}: {}", finished.status);
}

/// A line goes to the server and comes back.
#[track_caller]
fn talk(connection: &mut Process) {
    connection.say("still there").unwrap();
    let answer = connection.wait_for_line(PATIENCE, |line| line.contains("still there"));
    answer.unwrap_or_else(|error| panic!("the connection is gone: {error:#}"));
}

/// How many packets conntrack could not place at this host, over all processors.
fn unplaced(place: &Place) -> u64 {
    let read = || Ok(fs::read_to_string("/proc/thread-self/net/stat/nf_conntrack")?);
    let text = place.in_netns(read).unwrap();
    let mut lines = text.lines();
    let column = lines.next().unwrap().split_whitespace().position(|name| name == "invalid").unwrap();
    lines.map(|line| u64::from_str_radix(line.split_whitespace().nth(column).unwrap(), 16).unwrap()).sum()
}

/// E2E-114: nothing translates such a packet back, so a client that got it would reset a connection that it does not
/// know, and so its own.
#[track_caller]
fn check_window(name: &str, mode: &str) {
    let arguments = [mode, "--socket-lb=off"];
    let cluster = Cluster::alone_with(name, |options| options.extra.extend(arguments.map(str::to_owned)));
    let Some(cluster) = cluster else { return };
    let shop = Shop::open(&cluster, "web", &[PodState::Ready]);
    let server = shop.pod(0);
    let pairs = shop.addresses().into_iter().zip([server.ipv4.into(), server.ipv6.into()]);
    for (to, ip) in pairs {
        let mut connection = shop.client.listening_peer("hold", &[&to.to_string()]).unwrap();
        connection.wait_for_line(PATIENCE, |line| line == "web-0").unwrap();
        let stray = server.peer(&["stray", &SocketAddr::new(ip, TARGET).to_string()]).unwrap();
        stray.wait_for_line(PATIENCE, |line| line == "listening").unwrap();
        let before = unplaced(&cluster.node);
        talk(&mut connection);
        stray.wait_for_line(PATIENCE, |line| line == "sent").unwrap();
        cluster.wait_for("conntrack to meet the segments", || unplaced(&cluster.node) >= before + 5);
        talk(&mut connection);
    }
}

#[test]
fn nftables_keeps_a_connection_whose_server_sends_segments_outside_of_the_window() {
    check_window("windownft", "--proxy-mode=nftables");
}

#[test]
fn iptables_keeps_a_connection_whose_server_sends_segments_outside_of_the_window() {
    check_window("windowipt", "--proxy-mode=iptables");
}

/// TP-15: node ports at 127.0.0.1 need a kernel that routes loopback addresses, and that one would let a neighbour in.
#[track_caller]
fn check_loopback(name: &str, mode: &str) {
    if support::skipped() {
        return;
    }
    let lab = Lab::new(name).unwrap();
    let node = lab.node("n1").unwrap();
    let _private = node.serve("private", &["--address", "127.0.0.1", "--udp", "7777", "--tcp", "7777"]).unwrap();
    let pod = node.pod("web-0").unwrap();
    let _server = pod.serve("web-0", &["--tcp", "7000", "--udp", "7000"]).unwrap();
    for command in [
        "ip rule add priority 10 lookup local",
        "ip rule del priority 0",
        &format!("ip route add 127.0.0.0/8 via {} table 99", node.ipv4),
        "ip rule add priority 5 to 127.0.0.0/8 lookup 99",
        "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet",
    ] {
        run(&lab.router, command);
    }
    let dial = |from: &Place, port, mode| {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let attempt = from.connect_with(to, mode, &["--count", "1", "--timeout", "500"]).unwrap().remove(0);
        attempt.server.ok_or(attempt.error)
    };
    // Without rules of ours the neighbour does get in, so it means something when it does not.
    run(&node, "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet");
    for mode in MODES {
        assert_eq!(dial(&lab.router, PRIVATE, mode), Ok("private".to_owned()), "{mode:?} before the daemon");
    }

    let manifests = Manifests::new(&lab.directory().join("manifests")).unwrap();
    let ports = [Port::tcp("tcp", 80, TARGET), Port::udp("udp", 80, TARGET)];
    let mut service = manifests::service("test", "web", Some("web"), &["10.96.1.9".parse().unwrap()], &ports);
    service["spec"]["type"] = json!("NodePort");
    for port in service["spec"]["ports"].as_array_mut().unwrap() {
        port["nodePort"] = json!(NODE_PORT);
    }
    let pod = manifests::pod("test", "web", &pod, PodState::Ready, &ports);
    manifests.put("all", &[manifests::namespace("test"), manifests::node(&node), service, pod]).unwrap();
    let mut options = DaemonOptions::new(manifests.directory());
    options.extra = [mode, "--socket-lb=off"].map(str::to_owned).into();
    let _daemon = node.daemon(options).unwrap_or_else(|error| panic!("{error:#}\n{}", lab.logs()));
    for mode in MODES {
        assert_eq!(dial(&node, NODE_PORT, mode), Ok("web-0".to_owned()), "{mode:?} of the node to its node port");
        assert_eq!(dial(&node, PRIVATE, mode), Ok("private".to_owned()), "{mode:?} of the node to its own server");
        for port in [PRIVATE, NODE_PORT] {
            let neighbour = dial(&lab.router, port, mode);
            assert_eq!(neighbour, Err(Some(CallError::TimedOut)), "{mode:?} of a neighbour to {port}");
        }
    }
}

#[test]
fn nftables_keeps_neighbours_from_loopback() {
    check_loopback("loopnft", "--proxy-mode=nftables");
}

#[test]
fn iptables_keeps_neighbours_from_loopback() {
    check_loopback("loopipt", "--proxy-mode=iptables");
}
