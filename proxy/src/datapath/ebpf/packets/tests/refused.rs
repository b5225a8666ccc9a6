//! Packets that are refused, byte for byte.

use etherparse::{IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header};
use etherparse::{Ipv4Options, PacketBuilderStep};
use proxy_abi::refusal::{BURST, QUOTE};

use super::*;

const ETHERNET: usize = 14;

/// The message with which a packet is refused, as another library writes it.
pub(super) fn refusal(frame: &[u8]) -> Vec<u8> {
    let packet = &frame[ETHERNET..];
    let (dialled, client, length) = match packet[0] >> 4 {
        4 => {
            let header = Ipv4Header::from_slice(packet).unwrap().0;
            (IpAddr::from(header.destination), IpAddr::from(header.source), header.total_len.into())
        }
        _ => {
            let header = Ipv6Header::from_slice(packet).unwrap().0;
            let length = usize::from(header.payload_length) + 40;
            (IpAddr::from(header.destination), IpAddr::from(header.source), length)
        }
    };
    let quote = &packet[..length.min(QUOTE as usize)];
    let mut message = Vec::new();
    match (dialled, client) {
        (IpAddr::V4(dialled), IpAddr::V4(client)) => {
            let mut header = Ipv4Header::new(0, 64, IpNumber::ICMP, dialled.octets(), client.octets()).unwrap();
            header.dont_fragment = true;
            header.dscp = 48_u8.try_into().unwrap();
            let ip = IpHeaders::Ipv4(header, Ipv4Extensions::default());
            PacketBuilder::ethernet2(NODE, SENDER).ip(ip).icmpv4_raw(3, 3, [0; 4]).write(&mut message, quote).unwrap();
        }
        (IpAddr::V6(dialled), IpAddr::V6(client)) => {
            let ip = PacketBuilder::ethernet2(NODE, SENDER).ipv6(dialled.octets(), client.octets(), 64);
            ip.icmpv6_raw(1, 4, [0; 4]).write(&mut message, quote).unwrap();
        }
        other => panic!("{other:?}"),
    }
    message
}

/// A Service without endpoints, one with endpoints elsewhere under policy Local, and one for other sources.
pub(super) fn unserved() -> Plan {
    let services = [
        service("empty", "ip=10.96.0.1 ip=fd00:96::1 port=http:80/tcp np=30080 port=dns:53/udp port=sig:90/sctp"),
        service("local", "ip=10.96.0.2 ip=fd00:96::2 port=http:80/tcp np=30081 vip=192.0.2.2 type=lb eTP iTP"),
        service("ranges", "ip=10.96.0.3 port=http:80/tcp vip=192.0.2.3 type=lb from=198.51.100.0/24"),
    ];
    let slices = ["local", "ranges"].map(|name| slice(name, "x", "http:8080/tcp", "e1:R"));
    let six = slice("local", "y", "http:8080/tcp", "f1:R");
    let mut snapshot = cluster(services, slices.into_iter().chain([six]));
    set_node(&mut snapshot, None, &NODE_ADDRESSES);
    plan(&snapshot, &options()).0
}

fn build(from: &str, to: &str, end: impl FnOnce(PacketBuilderStep<IpHeaders>, u16, u16, &mut Vec<u8>)) -> Vec<u8> {
    let (from, to) = (address(from), address(to));
    let mut frame = Vec::new();
    end(ip_between(from.ip(), to.ip()), from.port(), to.port(), &mut frame);
    frame
}

fn sctp(from: &str, to: &str) -> Vec<u8> {
    build(from, to, |ip, from, to, frame| {
        let chunks = [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0; 8], &[1, 0, 0, 20], &[7; 16]].concat();
        ip.write(frame, IpNumber::SCTP, &chunks).unwrap();
    })
}

/// A datagram of so many bytes.
fn datagram(from: &str, to: &str, length: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect();
    build(from, to, |ip, from, to, frame| ip.udp(from, to).write(frame, &payload).unwrap())
}

impl Node {
    #[track_caller]
    fn refuses(&mut self, frame: &[u8]) {
        self.pay_for_refusals();
        let message = refusal(frame);
        let added = if frame[ETHERNET] >> 4 == 4 { 28 } else { 48 };
        let is_whole = message.len() == frame.len() + added;
        let run = if is_whole { Self::run } else { Self::run_without_sum };
        assert_eq!(run(self, "shunt_ingress", frame), (REDIRECT, message.clone()), "{frame:02x?}");
        // Nothing more is done to it when it leaves.
        assert_eq!(self.run("shunt_egress", &message), (NEXT, message));
    }

    #[track_caller]
    fn is_silent(&mut self, frame: &[u8]) {
        self.pay_for_refusals();
        assert_eq!(self.run("shunt_ingress", frame).0, DROP, "{frame:02x?}");
    }
}

const CLIENTS: [&str; 2] = ["203.0.113.9:40000", "[2001:db8::9]:40000"];

// NE-1, NE-4, NE-11
#[test]
fn a_packet_that_finds_no_endpoint_is_answered_by_what_it_dialled() {
    let Some(mut node) = Node::with("refused", &unserved()) else { return };
    let [v4, v6] = NODE_ADDRESSES.map(ip);
    for (client, addresses) in
        CLIENTS.into_iter().zip([[ip("10.96.0.1"), v4, ip("10.96.0.2")], [ip("fd00:96::1"), v6, ip("fd00:96::2")]])
    {
        let [own, node_address, other] = addresses;
        node.refuses(&syn(client, &at(own, 80)));
        node.refuses(&syn(client, &at(node_address, 30_080)));
        node.refuses(&udp(client, &at(own, 53)));
        node.refuses(&sctp(client, &at(own, 90)));
        // A port that no Service defines at a cluster IP.
        node.refuses(&syn(client, &at(other, 81)));
        node.refuses(&udp(client, &at(other, 80)));
        node.refuses(&sctp(client, &at(other, 80)));
        for flags in [1, 2, 3, 4] {
            let syn = tcp(client, &at(own, 80), |header| {
                header.syn = true;
                header.ece = flags & 1 != 0;
                header.cwr = flags & 2 != 0;
                header.set_options(&[etherparse::TcpOptionElement::MaximumSegmentSize(1460)]).unwrap();
            });
            node.refuses(&syn);
        }
    }
}

#[test]
fn long_packets_are_quoted_in_part_and_the_padding_of_frames_not_at_all() {
    let Some(mut node) = Node::with("quoted", &unserved()) else { return };
    for (client, own) in CLIENTS.into_iter().zip(["10.96.0.1:53", "[fd00:96::1]:53"]) {
        for length in (0..20).chain(440..500).chain([1400, 1472]) {
            let mut frame = datagram(client, own, length);
            node.refuses(&frame);
            frame.extend([0xaa; 7]);
            node.refuses(&frame);
        }
        // No checksum.
        let mut frame = datagram(client, own, 9);
        let checksum = frame.len() - 9 - 2;
        frame[checksum..checksum + 2].fill(0);
        node.refuses(&frame);
    }
}

#[test]
fn options_and_extensions_are_quoted_as_they_are() {
    let Some(mut node) = Node::with("options", &unserved()) else { return };
    let mut tcp = etherparse::TcpHeader::new(40_000, 80, 7, 1024);
    tcp.syn = true;
    for words in 1..=10 {
        let mut header = Ipv4Header::new(0, 64, IpNumber::TCP, [203, 0, 113, 9], [10, 96, 0, 1]).unwrap();
        header.options = Ipv4Options::try_from(&[1; 40][..words * 4]).unwrap();
        let ip = IpHeaders::Ipv4(header, Ipv4Extensions::default());
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(SENDER, NODE).ip(ip).tcp_header(tcp.clone()).write(&mut frame, b"").unwrap();
        node.refuses(&frame);
    }
    for length in [6, 14, 94] {
        let source = "2001:db8::9".parse::<std::net::Ipv6Addr>().unwrap().octets();
        let destination = "fd00:96::1".parse::<std::net::Ipv6Addr>().unwrap().octets();
        let header = Ipv6Header { hop_limit: 64, source, destination, ..Ipv6Header::default() };
        let option = etherparse::Ipv6RawExtHeader::new_raw(IpNumber::TCP, &vec![0; length]).unwrap();
        let extensions = Ipv6Extensions { destination_options: Some(option), ..Ipv6Extensions::default() };
        let mut frame = Vec::new();
        let ip = IpHeaders::Ipv6(header, extensions);
        PacketBuilder::ethernet2(SENDER, NODE).ip(ip).tcp_header(tcp.clone()).write(&mut frame, b"").unwrap();
        node.refuses(&frame);
    }
}

/// The kernel takes what a test-run gets for Ethernet, so these sources have the type of the protocol where that would
/// have it.
#[test]
fn devices_without_ethernet_headers_refuse_too() {
    let Some(mut node) = Node::with("refused-ip", &unserved()) else { return };
    for frame in [
        syn("8.0.113.9:40000", "10.96.0.1:80"),
        udp("8.0.113.9:40000", "10.96.0.1:53"),
        syn("[2001:db8:86dd::9]:40000", "[fd00:96::1]:80"),
        datagram("[2001:db8:86dd::9]:40000", "[fd00:96::1]:53", 1000),
    ] {
        // A pod's: what the kernel takes for the address of the receiver is not the device's.
        node.set_device(Device::PODS);
        node.pay_for_refusals();
        let expected = refusal(&frame)[ETHERNET..].to_vec();
        assert_eq!(node.run("shunt_ingress_ip", &frame[ETHERNET..]), (REDIRECT, expected));
    }
}

// NE-2, NE-3, NE-5, TP-31
#[test]
fn silence_is_kept() {
    let Some(mut node) = Node::with("silent", &unserved()) else { return };
    node.is_silent(&syn("203.0.113.9:40000", "192.0.2.2:80"));
    node.is_silent(&syn("203.0.113.9:40000", "198.51.100.1:30081"));
    node.is_silent(&syn("[2001:db8::9]:40000", "[2001:db8:ffff::1]:30081"));
    node.is_silent(&syn("203.0.113.9:40000", "10.96.0.2:80"));
    node.is_silent(&syn("203.0.113.9:40000", "192.0.2.3:80"));
}

#[test]
fn no_message_goes_to_many_hosts_or_from_one_that_was_not_asked() {
    let Some(mut node) = Node::with("not-told", &unserved()) else { return };
    for client in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "ff02::1"].map(ip) {
        let own = if client.is_ipv4() { "10.96.0.1:80" } else { "[fd00:96::1]:80" };
        node.is_silent(&syn(&at(client, 40_000), own));
    }
    let frame = syn("203.0.113.9:40000", "10.96.0.1:80");
    for (station, of_pod) in [([0xff; 6], true), ([1, 0, 0x5e, 0, 0, 1], true), ([2, 0, 0, 0, 0, 9], false)] {
        let mut frame = frame.clone();
        frame[..6].copy_from_slice(&station);
        node.set_device(if of_pod { Device::PODS } else { 0 });
        node.is_silent(&frame);
    }
    // The port of a bridge gets what is for the bridge.
    let mut frame = frame;
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    node.set_device(Device::PODS);
    node.pay_for_refusals();
    let mut expected = refusal(&frame);
    expected[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    assert_eq!(node.run("shunt_ingress", &frame), (REDIRECT, expected));
}

#[test]
fn packets_that_end_too_early_to_be_quoted_are_dropped_or_left_alone() {
    let Some(mut node) = Node::with("cut", &unserved()) else { return };
    for (client, [stream, datagrams]) in
        CLIENTS.into_iter().zip([["10.96.0.1:80", "10.96.0.1:53"], ["[fd00:96::1]:80", "[fd00:96::1]:53"]])
    {
        for frame in [syn(client, stream), udp(client, datagrams), sctp(client, datagrams)] {
            // The kernel wants an IP header for a test-run.
            let header = if address(client).is_ipv4() { 20 } else { 40 };
            for length in ETHERNET + header..frame.len() {
                let cut = &frame[..length];
                node.pay_for_refusals();
                match node.run("shunt_ingress", cut) {
                    (NEXT, after) => assert_eq!(after, cut, "{length}"),
                    (verdict, _) => assert_eq!(verdict, DROP, "{length}"),
                }
            }
        }
    }
    // It says that it ends earlier than it does.
    let frame = syn(CLIENTS[0], "10.96.0.1:80");
    for length in 0..40 {
        let mut short = frame.clone();
        short[ETHERNET + 3] = length;
        assert_eq!(node.run("shunt_ingress", &short), (NEXT, short));
    }
}

#[test]
fn above_the_rate_packets_are_dropped() {
    let Some(mut node) = Node::with("rate", &unserved()) else { return };
    let frame = syn(CLIENTS[0], "10.96.0.1:80");
    let expected = (REDIRECT, refusal(&frame));
    let mut refused = 0;
    loop {
        let result = node.run("shunt_ingress", &frame);
        if result.0 == DROP {
            break;
        }
        assert_eq!(result, expected);
        refused += 1;
        assert!(refused < 1000 * BURST, "there is no limit");
    }
    assert!(refused >= BURST, "{refused}");
    node.refuses(&frame);
}
