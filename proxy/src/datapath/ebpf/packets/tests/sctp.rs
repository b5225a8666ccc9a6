//! Packets of SCTP, whose checksum covers ports but no addresses.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;

const ETHERNET: usize = 14;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const DATA: u8 = 0;
const ABORT: u8 = 6;
/// Protocol number.
const SCTP: u8 = 132;

/// Where the header of a packet without options and extensions begins.
fn header(frame: &[u8]) -> usize {
    ETHERNET + if frame[ETHERNET] >> 4 == 4 { 20 } else { 40 }
}

/// CRC32c of a packet: its checksum counts as 0.
fn right_checksum(packet: &[u8]) -> u32 {
    let step = |rest: u32| if rest & 1 == 1 { rest >> 1 ^ 0x82f6_3b78 } else { rest >> 1 };
    !packet.iter().enumerate().fold(!0, |rest, (at, byte)| {
        let byte = if (8..12).contains(&at) { 0 } else { *byte };
        (0..8).fold(rest ^ u32::from(byte), |rest, _| step(rest))
    })
}

fn checksum(frame: &[u8]) -> u32 {
    u32::from_le_bytes(*frame[header(frame) + 8..].first_chunk().unwrap())
}

fn set_checksum(frame: &mut [u8], checksum: u32) {
    let at = header(frame) + 8;
    frame[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
}

/// A packet with one chunk of this type and so many bytes.
pub(super) fn packet(from: &str, to: &str, chunk: u8, length: u16) -> Vec<u8> {
    let (from, to) = (address(from), address(to));
    let mut payload = [&from.port().to_be_bytes()[..], &to.port().to_be_bytes(), &[0; 8], &[chunk, 0]].concat();
    payload.extend((length + 4).to_be_bytes());
    payload.extend((0..length).map(|at| u8::try_from(at % 251).unwrap()));
    let mut frame = Vec::new();
    ip_between(from.ip(), to.ip()).write(&mut frame, etherparse::IpNumber(SCTP), &payload).unwrap();
    let right = right_checksum(&payload);
    set_checksum(&mut frame, right);
    frame
}

/// The ends of a packet.
#[track_caller]
fn ends(frame: &[u8]) -> Seen {
    let ip = &frame[ETHERNET..];
    let port = |at| u16::from_be_bytes(*frame[header(frame) + at..].first_chunk().unwrap());
    let (from, to): (IpAddr, IpAddr) = if ip[0] >> 4 == 4 {
        let header = etherparse::Ipv4Header::from_slice(ip).unwrap().0;
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        (Ipv4Addr::from(header.source).into(), Ipv4Addr::from(header.destination).into())
    } else {
        let header = etherparse::Ipv6Header::from_slice(ip).unwrap().0;
        (Ipv6Addr::from(header.source).into(), Ipv6Addr::from(header.destination).into())
    };
    (SocketAddr::new(from, port(0)), SocketAddr::new(to, port(2)))
}

/// A Service with a node port and external IPs, one endpoint on another node. Its second port is the endpoint's own.
fn signalling() -> Plan {
    let words = "ip=10.96.0.1 ip=fd00:96::1 port=sig:90/sctp np=30090 port=same:9091/sctp ext=192.0.2.1";
    let slices = [("x", "e1:R"), ("y", "f1:R")]
        .map(|(name, endpoint)| slice("sig", name, "sig:9090/sctp same:9091/sctp", endpoint));
    let mut snapshot = cluster([service("sig", words)], slices);
    set_node(&mut snapshot, None, &NODE_ADDRESSES);
    plan(&snapshot, &options()).0
}

/// A client outside, this node, the client's pod of this node, the cluster IP, the endpoint.
const FAMILIES: [[&str; 5]; 2] = [
    ["203.0.113.9", NODE_ADDRESSES[0], "10.1.9.9", "10.96.0.1", "10.1.0.1"],
    ["2001:db8::9", NODE_ADDRESSES[1], "fd00::9:9", "fd00:96::1", "fd00::1"],
];

/// What a packet is when it has come in, and when it has left; its checksum must be as right or wrong as before.
#[track_caller]
fn through(node: &mut Node, frame: &[u8]) -> [Seen; 2] {
    let (verdict, inside) = node.run("shunt_ingress", frame);
    assert_eq!(verdict, NEXT);
    let (verdict, after) = node.run("shunt_egress", &inside);
    assert_eq!(verdict, NEXT);
    let wrong = |frame: &[u8]| checksum(frame) ^ right_checksum(&frame[header(frame)..]);
    for later in [&inside, &after] {
        if checksum(frame) == 0 {
            assert_eq!(checksum(later), 0);
        } else {
            assert_eq!(wrong(later), wrong(frame), "of {:?}", ends(later));
        }
        assert_eq!(later[header(later) + 12..], frame[header(frame) + 12..], "the rest is as it was");
    }
    [ends(&inside), ends(&after)]
}

#[test]
fn an_association_is_translated_in_both_directions_with_right_checksums() {
    let Some(mut node) = Node::with("sctp", &signalling()) else { return };
    for [outside, own, pod, service, endpoint] in FAMILIES.map(|family| family.map(ip)) {
        let server = SocketAddr::new(endpoint, 9090);
        for (flags, client, dialled) in [(0, outside, at(own, 30_090)), (Device::PODS, pod, at(service, 90))] {
            node.set_device(flags);
            let from = at(client, 40_000);
            let init = packet(&from, &dialled, INIT, 16);
            let [inside, (source, destination)] = through(&mut node, &init);
            assert_eq!((inside, destination), ((address(&from), server), server));
            // The node stands for the client outside, with another port.
            assert_eq!(source.ip(), if flags == 0 { own } else { client });
            let answer = packet(&server.to_string(), &source.to_string(), INIT_ACK, 40);
            assert_eq!(through(&mut node, &answer)[1], (address(&dialled), address(&from)));
            for length in (0..100).chain([500, 1000, 1397, 1452]) {
                let data = packet(&from, &dialled, DATA, length);
                assert_eq!(through(&mut node, &data)[1], (source, server));
                let answer = packet(&server.to_string(), &source.to_string(), DATA, length);
                assert_eq!(through(&mut node, &answer)[1], (address(&dialled), address(&from)));
            }
        }
    }
}

#[test]
fn a_checksum_that_a_device_computes_is_left_alone_and_a_wrong_one_stays_wrong() {
    let Some(mut node) = Node::with("sctp-sums", &signalling()) else { return };
    for [client, own, _, _, endpoint] in FAMILIES.map(|family| family.map(ip)) {
        let mut init = packet(&at(client, 40_000), &at(own, 30_090), INIT, 16);
        for sum in [0, 1, 0xdead_beef, !0] {
            set_checksum(&mut init, sum);
            let [(from, server), (source, _)] = through(&mut node, &init);
            assert_eq!(server, SocketAddr::new(endpoint, 9090));
            let mut answer = packet(&server.to_string(), &source.to_string(), INIT_ACK, 40);
            set_checksum(&mut answer, sum);
            assert_eq!(through(&mut node, &answer)[1], (address(&at(own, 30_090)), from));
        }
    }
}

/// Two associations of one client from one port lead to one endpoint, so that another port stands for one of them.
#[test]
fn another_port_stands_for_one_of_two_associations() {
    let Some(mut node) = Node::with("sctp-ports", &signalling()) else { return };
    node.set_device(Device::PODS);
    let (client, server) = ("10.1.9.9:40000", "10.1.0.1:9090");
    through(&mut node, &packet(client, "10.96.0.1:90", INIT, 16));
    let [(stand_in, _), _] = through(&mut node, &packet(client, "192.0.2.1:90", INIT, 16));
    assert_ne!(stand_in.port(), 40_000);
    let answer = through(&mut node, &packet(server, &stand_in.to_string(), INIT_ACK, 99))[1];
    assert_eq!(answer, (address("192.0.2.1:90"), address(client)));
    let answer = through(&mut node, &packet(server, client, INIT_ACK, 99))[1];
    assert_eq!(answer, (address("10.96.0.1:90"), address(client)));
}

/// The endpoint that has restarted begins its association with the node anew, and the client is told.
#[test]
fn an_init_of_the_endpoint_comes_to_its_client() {
    let Some(mut node) = Node::with("sctp-anew", &signalling()) else { return };
    for [client, own, _, _, endpoint] in FAMILIES.map(|family| family.map(ip)) {
        let (from, dialled) = (at(client, 40_000), at(own, 30_090));
        let [_, (source, server)] = through(&mut node, &packet(&from, &dialled, INIT, 16));
        through(&mut node, &packet(&from, &dialled, DATA, 16));
        assert_eq!(server, SocketAddr::new(endpoint, 9090));
        let anew = packet(&server.to_string(), &source.to_string(), INIT, 16);
        assert_eq!(through(&mut node, &anew)[1], (address(&dialled), address(&from)));
    }
}

#[test]
fn only_an_init_begins_an_association() {
    let Some(mut node) = Node::with("sctp-init", &signalling()) else { return };
    for [client, own, ..] in FAMILIES.map(|family| family.map(ip)) {
        for chunk in (0..=255).filter(|chunk| *chunk != INIT) {
            let other = packet(&at(client, 40_000), &at(own, 30_090), chunk, 16);
            assert_eq!(node.run("shunt_ingress", &other), (NEXT, other));
        }
        // After one that was aborted, another begins.
        for chunk in [INIT, DATA, ABORT, INIT, DATA] {
            let [_, (_, server)] = through(&mut node, &packet(&at(client, 40_000), &at(own, 30_090), chunk, 16));
            assert_eq!(server.port(), 9090);
        }
    }
}

/// How many bytes follow is not known, so the checksum cannot be taken along.
#[test]
fn a_first_fragment_is_dropped_if_a_port_changes() {
    let Some(mut node) = Node::with("sctp-pieces", &signalling()) else { return };
    node.set_device(Device::PODS);
    for [_, _, client, service, endpoint] in FAMILIES.map(|family| family.map(ip)) {
        for (port, changes) in [(90, true), (9091, false)] {
            let whole = packet(&at(client, 40_000), &at(service, port), INIT, 3000);
            for (at, piece) in fragments::cut(&whole, 9, 1480).iter().enumerate() {
                let (verdict, inside) = node.run("shunt_ingress", piece);
                if changes {
                    assert_eq!(verdict, DROP);
                    continue;
                }
                assert_eq!(verdict, NEXT);
                assert_eq!(ends(&inside).1.ip(), endpoint);
                let mut expected = piece.clone();
                let place = if client.is_ipv4() { ETHERNET + 16..ETHERNET + 20 } else { ETHERNET + 24..ETHERNET + 40 };
                expected[place.clone()].copy_from_slice(&inside[place]);
                if client.is_ipv4() {
                    expected[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&inside[ETHERNET + 10..ETHERNET + 12]);
                }
                assert_eq!(inside, expected, "only the address of fragment {at} changes");
            }
        }
    }
}
