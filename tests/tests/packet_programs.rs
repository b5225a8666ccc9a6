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
mod world;

use std::net::IpAddr;

use lab::peer::{Mode, now};
use world::{OFF, WEB, World, output};

/// `sources`: what servers see instead of clients outside.
fn check_service(world: &World, sources: &[IpAddr]) {
    world.wait_until_served();
    world.check_services(sources);
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
    let [to, _] = WEB.inside();
    world.wait_for(&world.client, to, Mode::Tcp, &["web-2"]);
    let late = world.nodes[0].pod("late").unwrap();
    world.wait_for(&late, to, Mode::Udp, &["web-2"]);
    // Its device goes while it sends.
    let mut client = world.lab.outside.connect_loop(WEB.node_ports(&world.nodes[0])[0], Mode::Tcp, 2).unwrap();
    let _gone = late.connect_loop(to, Mode::Udp, 1).unwrap();
    client.wait_for_attempts(0, 5).unwrap();
    output(&late, "ip link del eth0");
    client.wait_for_attempts(now(), 20).unwrap();
    assert_eq!(client.failures().unwrap(), []);
    let log = world.daemons[0].log().unwrap();
    assert!(!log.contains("not all network devices"), "{log}");
}

#[test]
fn a_killed_daemon_fails_no_connection_and_a_cleanup_removes_everything() {
    let Some(mut world) = World::start("packetkill", OFF, |lab, name| lab.node(name).unwrap()) else { return };
    world.wait_until_served();
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
    let left = output(&world.nodes[0], "bpftool net show");
    assert!(!left.contains("shunt"), "programs are still attached: {left}");
    let [to, _] = WEB.node_ports(&world.nodes[0]);
    let attempts = world.lab.outside.connect_with(to, Mode::Tcp, &["--count", "1", "--timeout", "500"]).unwrap();
    assert!(attempts[0].error.is_some(), "{attempts:?}");
}
