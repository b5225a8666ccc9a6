//! IPv6 packets for which the kernel has the sum over all of it (`CHECKSUM_COMPLETE`), as network cards give it,
//! through packet programs.
//!
//! No card is needed: the kernel makes such a sum itself out of the checksum of a tunnel's outer packet, if only that
//! one was compared before. Here the outer packet is one that GRO compares: it comes out of another tunnel. GRO does
//! not compare what is inside of it, as that has padding behind its end.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed, its helpers included")]

mod support;

use std::net::Ipv6Addr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use etherparse::PacketBuilder;
use lab::manifests::{self, PodState, Port};
use lab::{DaemonOptions, Lab, Manifests, Place};
use serde_json::json;

/// Only an event that never comes takes so long.
const PATIENCE: Duration = Duration::from_secs(60);
const SERVER: u16 = 7000;
const EXTERNAL: &str = "2001:db8:203::1";
/// Ethernet addresses of the sender and of the two tunnels of the node, one in the other.
const SENDER: [u8; 6] = [2, 0, 0, 0, 0x99, 9];
const TUNNELS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0x99, 1], [2, 0, 0, 0, 0x99, 2]];
/// Their UDP ports.
const PORTS: [u16; 2] = [4789, 4790];
/// The sender's address inside.
const CLIENT: &str = "fd00:99::2";

/// What a shell command in a place prints.
fn output(place: &Place, command: &str) -> String {
    let finished = place.spawn(&["sh", "-c", command]).unwrap().finish(PATIENCE).unwrap();
    assert!(finished.status.success(), "{command}: {}", finished.status);
    finished.lines.join("\n")
}

/// A frame in the tunnel with this number.
fn in_tunnel(number: u8, frame: &[u8]) -> Vec<u8> {
    [&[8, 0, 0, 0, 0, 0, number, 0], frame].concat()
}

/// What is behind the outer IP header of a packet with a frame in both tunnels. The outer checksum is left out.
fn packet(frame: &[u8]) -> Vec<u8> {
    let mut middle = Vec::new();
    let builder = PacketBuilder::ethernet2(SENDER, TUNNELS[0]).ipv4([10, 99, 1, 2], [10, 99, 1, 1], 64);
    builder.udp(5001, PORTS[1]).write(&mut middle, &in_tunnel(2, frame)).unwrap();
    let payload = in_tunnel(1, &middle);
    let length = u16::try_from(payload.len() + 8).unwrap();
    [&5000_u16.to_be_bytes()[..], &PORTS[0].to_be_bytes(), &length.to_be_bytes(), &[0, 0], &payload].concat()
}

/// A SYN, and a datagram, each with padding behind it.
fn frames(port: u16) -> [Vec<u8>; 2] {
    let [client, service] = [CLIENT, EXTERNAL].map(|address| address.parse::<Ipv6Addr>().unwrap().octets());
    let builder = || PacketBuilder::ethernet2(SENDER, TUNNELS[1]).ipv6(client, service, 64);
    let (mut syn, mut datagram) = (Vec::new(), Vec::new());
    builder().tcp(port, 80, 7, 1024).syn().write(&mut syn, &[]).unwrap();
    builder()
        .udp(port, 80)
        .write(&mut datagram, b"a question that is longer than what the kernel sums at once")
        .unwrap();
    [syn, datagram].map(|frame| [&frame[..], &[0; 8]].concat())
}

/// A counter of the kernel in a place.
fn counter(place: &Place, name: &str) -> u64 {
    let line = output(place, &format!("cat /proc/net/snmp6 | grep -w {name}"));
    line.split_whitespace().last().unwrap().parse().unwrap()
}

/// What the kernel says once, at the first packet whose sum does not fit although its checksum does.
fn failures(place: &Place) -> String {
    output(place, "dmesg | grep -c 'hw csum failure' || true")
}

#[test]
fn translated_packets_with_the_sum_of_a_device_reach_their_sockets() {
    if support::skipped() {
        return;
    }
    let lab = Lab::new("devicesums").unwrap();
    let node = lab.node("n1").unwrap();
    let mac = |bytes: [u8; 6]| bytes.map(|byte| format!("{byte:02x}")).join(":");
    let (v4, [first, second]) = (node.ipv4, TUNNELS.map(mac));
    output(
        &node,
        &format!(
            "ip link add v1 address {first} type vxlan id 1 dstport {} local {v4} nolearning && ip link set v1 up && \
             ip addr add 10.99.1.1/24 dev v1 && \
             ip link add v2 address {second} type vxlan id 2 dstport {} local 10.99.1.1 nolearning && \
             ip link set v2 up && ip addr add fd00:99::1/64 dev v2 nodad",
            PORTS[0], PORTS[1]
        ),
    );
    let manifests = Manifests::new(&lab.directory().join("manifests")).unwrap();
    let ports = [Port::tcp("tcp", 80, SERVER), Port::udp("udp", 80, SERVER)];
    let mut service = manifests::service("shop", "web", Some("web"), &["fd00:10:96::101".parse().unwrap()], &ports);
    service["spec"]["externalIPs"] = json!([EXTERNAL]);
    // The endpoint is in the node's own network, so that the kernel looks at its packets here.
    let pod = node.pod("web").unwrap();
    let mut endpoint = manifests::pod("shop", "web", &pod, PodState::Ready, &ports);
    endpoint["status"]["podIP"] = json!(node.ipv6);
    endpoint["status"]["podIPs"] = json!([{"ip": node.ipv6}]);
    manifests.put("cluster", &[manifests::namespace("shop"), manifests::node(&node), service, endpoint]).unwrap();
    let mut options = DaemonOptions::new(manifests.directory());
    options.extra.extend(["--proxy-mode=ebpf", "--socket-lb=off"].map(str::to_owned));
    let _daemon = node.daemon(options).unwrap_or_else(|error| panic!("{error:#}"));
    let port = SERVER.to_string();
    let _server = node.serve("web", &["--tcp", &port, "--udp", &port]).unwrap();

    let failures_before = failures(&node);
    let deadline = Instant::now() + PATIENCE;
    // Until the first ones have found the programs in place.
    let mut turn = 0;
    loop {
        for frame in frames(40_000 + turn) {
            let packet = HEXLOWER.encode(&packet(&frame));
            let sent = lab.outside.peer(&["raw", &v4.to_string(), "17", &packet]).unwrap().finish(PATIENCE).unwrap();
            assert!(sent.status.success(), "{sent:?}");
        }
        // The state of a connection whose SYN the kernel has answered.
        let half_open = output(&node, "ss -Htn6 state syn-recv");
        if counter(&node, "Udp6InDatagrams") > 0 && half_open.contains(CLIENT) {
            break;
        }
        turn += 1;
        assert!(Instant::now() < deadline, "nothing arrives\n{}", lab.logs());
        sleep(Duration::from_millis(50));
    }
    for name in ["Udp6InCsumErrors", "Icmp6InCsumErrors"] {
        assert_eq!(counter(&node, name), 0, "{name}");
    }
    let tcp = output(&node, "nstat -asz TcpInCsumErrors | grep TcpInCsumErrors");
    assert_eq!(tcp.split_whitespace().nth(1), Some("0"), "{tcp}");
    assert_eq!(failures(&node), failures_before, "the kernel says that the sums do not fit");
}
