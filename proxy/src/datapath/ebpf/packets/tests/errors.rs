//! Errors of ICMP about the packets of translated flows, byte for byte: their receivers see their own packets in them.

use proptest::prelude::any;

use super::*;

const ETHERNET: usize = 14;
const ROUTER: [&str; 2] = ["192.0.2.77", "2001:db8:77::7"];

/// A packet as it came in, between the hooks, and as it left.
struct Walk([Vec<u8>; 3]);

impl Walk {
    #[track_caller]
    fn of(node: &mut Node, frame: Vec<u8>) -> Self {
        let (verdict, between) = node.run("shunt_ingress", &frame);
        assert_eq!(verdict, NEXT);
        let (verdict, left) = node.run("shunt_egress", &between);
        assert_eq!(verdict, NEXT);
        Self([frame, between, left])
    }
}

/// The ends of a packet, which may be without a checksum.
#[track_caller]
fn ends(frame: &[u8]) -> Seen {
    let packet = PacketHeaders::from_ethernet_slice(frame).unwrap();
    match (packet.net.unwrap(), packet.transport.unwrap()) {
        (etherparse::NetHeaders::Ipv4(ip, _), TransportHeader::Udp(udp)) if udp.checksum == 0 => {
            ((ip.source, udp.source_port).into(), (ip.destination, udp.destination_port).into())
        }
        _ => seen(frame),
    }
}

/// An error about a frame, whose quotation ends so many bytes behind the IP header.
fn error(kind: u8, [from, to]: [IpAddr; 2], about: &[u8], length: usize) -> Vec<u8> {
    let packet = &about[ETHERNET..];
    let end = length + if from.is_ipv4() { 20 } else { 40 };
    let quote = &packet[..end.min(packet.len())];
    let mut frame = Vec::new();
    // A next hop takes 1300 bytes.
    let (ip, rest) = (ip_between(from, to), [0, 0, 5, 0x14]);
    let code = if kind == 3 { 4 } else { 0 };
    if from.is_ipv4() {
        ip.icmpv4_raw(kind, code, rest).write(&mut frame, quote).unwrap();
    } else {
        ip.icmpv6_raw(kind, code, rest).write(&mut frame, quote).unwrap();
    }
    frame
}

/// The types of errors in a family.
fn kinds(address: IpAddr) -> &'static [u8] {
    if address.is_ipv4() { &[3, 11, 12] } else { &[1, 2, 3, 4] }
}

/// A flow and its addresses.
struct Flow {
    request: Walk,
    reply: Walk,
    client: IpAddr,
    dialled: IpAddr,
    endpoint: IpAddr,
    /// The node's address, if it stands for the client.
    source: Option<IpAddr>,
}

impl Flow {
    /// A request, and the reply that `answer` makes for the ends of the request as it left.
    #[track_caller]
    fn through(node: &mut Node, request: Vec<u8>, answer: impl FnOnce(&str, &str) -> Vec<u8>) -> Self {
        let (client, dialled) = ends(&request);
        let request = Walk::of(node, request);
        let (source, endpoint) = ends(&request.0[2]);
        let reply = Walk::of(node, answer(&endpoint.to_string(), &source.to_string()));
        assert_eq!(seen(&reply.0[2]), (dialled, client));
        let source = (source.ip() != client.ip()).then_some(source.ip());
        Self { request, reply, client: client.ip(), dialled: dialled.ip(), endpoint: endpoint.ip(), source }
    }

    /// Errors about its packets come in and leave.
    #[track_caller]
    fn check(&self, node: &mut Node) {
        let Self { request: Walk(request), reply: Walk(reply), client, dialled, endpoint, source } = self;
        let router = ip(if client.is_ipv4() { ROUTER[0] } else { ROUTER[1] });
        for kind in kinds(*client) {
            for length in [4, 6, 8, 18, 19, 20, 100] {
                let mut check = |program, comes: &[u8], wanted: &[u8]| {
                    let (verdict, found) = node.run(program, comes);
                    assert_eq!(verdict, NEXT, "{program}: type {kind}");
                    assert_eq!(found, wanted, "{program}: type {kind}, {length} bytes");
                };
                // About the client's packet: from a router behind this node, for which the node stands too, and from
                // the endpoint.
                let router_told = if source.is_some() { *dialled } else { router };
                for (reporter, told) in [(router, router_told), (*endpoint, *dialled)] {
                    let comes = error(*kind, [reporter, source.unwrap_or(*client)], &request[2], length);
                    let between = error(*kind, [reporter, *client], &request[1], length);
                    check("shunt_ingress", &comes, &between);
                    check("shunt_egress", &between, &error(*kind, [told, *client], &request[0], length));
                }
                // About the answer, from a router before this node, from the client.
                for reporter in [router, *client] {
                    let comes = error(*kind, [reporter, *dialled], &reply[2], length);
                    let between = error(*kind, [reporter, *endpoint], &reply[1], length);
                    check("shunt_ingress", &comes, &between);
                    let told = source.unwrap_or(reporter);
                    check("shunt_egress", &between, &error(*kind, [told, *endpoint], &reply[0], length));
                }
            }
        }
    }
}

/// Clients outside get the node's address as their source at a node port, pods keep theirs at a cluster IP.
fn each_flow(node: &mut Node, mut check: impl FnMut(&mut Node, Flow)) {
    type Make = fn(&str, &str) -> Vec<u8>;
    let [v4, v6] = NODE_ADDRESSES.map(ip);
    for (flags, ends) in [
        (0, [(ip("203.0.113.9"), v4, 30_080, 30_053), (ip("2001:db8::9"), v6, 30_080, 30_053)]),
        (Device::PODS, [(ip("10.1.9.9"), ip("10.96.0.1"), 80, 53), (ip("fd00::9:9"), ip("fd00:96::1"), 80, 53)]),
    ] {
        node.set_device(flags);
        for (client, dialled, stream, datagrams) in ends {
            // The first packet, when the flow is in the small tables; later ones.
            let packets: [(Make, u16, Make); 4] =
                [(syn, stream, ack), (ack, stream, ack), (udp, datagrams, udp), (udp_without_checksum, datagrams, udp)];
            for (make, port, answer) in packets {
                let flow = Flow::through(node, make(&at(client, 40_000), &at(dialled, port)), answer);
                assert_eq!(flow.source.is_some(), flags == 0);
                check(node, flow);
            }
        }
    }
}

/// IPv6 always has one.
fn udp_without_checksum(from: &str, to: &str) -> Vec<u8> {
    let mut frame = udp(from, to);
    if address(from).is_ipv4() {
        frame[ETHERNET + 26..ETHERNET + 28].fill(0);
    }
    frame
}

#[test]
fn errors_reach_both_sides_as_about_their_own_packets() {
    let Some(mut node) = Node::with("errors", &one_endpoint("")) else { return };
    each_flow(&mut node, |node, flow| flow.check(node));
}

/// Two flows of one client from one port lead to one endpoint, so that another port stands for one of them.
#[test]
fn errors_about_a_flow_with_another_port_tell_its_own() {
    let Some(mut node) = Node::with("errors-ports", &one_endpoint("ext=192.0.2.1")) else { return };
    node.set_device(Device::PODS);
    let (client, first, second) = ("10.1.9.9:40000", "10.96.0.1:80", "192.0.2.1:80");
    Walk::of(&mut node, syn(client, first));
    let request = Walk::of(&mut node, syn(client, second));
    let (stand_in, _) = seen(&request.0[1]);
    assert_ne!(stand_in.port(), 40_000);
    let flow = Flow::through(&mut node, ack(client, second), ack);
    flow.check(&mut node);
}

/// Errors of this node itself pass the hook at egress alone.
#[test]
fn errors_of_the_node_itself_are_translated_where_they_leave() {
    let Some(mut node) = Node::with("errors-own", &one_endpoint("")) else { return };
    each_flow(&mut node, |node, flow| {
        let own = ip(if flow.client.is_ipv4() { NODE_ADDRESSES[0] } else { NODE_ADDRESSES[1] });
        for kind in kinds(own) {
            let (Walk(request), Walk(reply)) = (&flow.request, &flow.reply);
            let (verdict, told) = node.run("shunt_egress", &error(*kind, [own, flow.client], &request[1], 8));
            assert_eq!((verdict, told), (NEXT, error(*kind, [own, flow.client], &request[0], 8)));
            let (verdict, told) = node.run("shunt_egress", &error(*kind, [own, flow.endpoint], &reply[1], 8));
            assert_eq!((verdict, told), (NEXT, error(*kind, [own, flow.endpoint], &reply[0], 8)));
        }
    });
}

#[test]
fn messages_that_are_no_errors_of_a_flow_go_on_as_they_came() {
    let Some(mut node) = Node::with("no-errors", &one_endpoint("")) else { return };
    let [own, own6] = NODE_ADDRESSES.map(ip);
    each_flow(&mut node, |node, flow| {
        let Flow { request: Walk(request), reply: Walk(reply), client, dialled, .. } = &flow;
        let router = ip(if client.is_ipv4() { ROUTER[0] } else { ROUTER[1] });
        let node_address = if client.is_ipv4() { own } else { own6 };
        let mut frames = Vec::new();
        for kind in (0..=255).filter(|kind| !kinds(*client).contains(kind)) {
            frames.push(error(kind, [router, *dialled], &reply[2], 20));
            frames.push(error(kind, [router, node_address], &request[2], 20));
        }
        let kind = kinds(*client)[0];
        // A flow that is not known; one that somebody else than the receiver has sent; an error about an error.
        let make =
            if client.is_ipv4() { syn("10.96.0.1:80", "10.1.9.7:9") } else { syn("[fd00:96::1]:80", "[fd00::7]:9") };
        frames.push(error(kind, [router, *dialled], &make, 20));
        frames.push(error(kind, [router, *dialled], &request[0], 20));
        frames.push(error(kind, [router, node_address], &reply[0], 20));
        frames.push(error(kind, [router, *dialled], &error(kind, [*dialled, *client], &request[0], 20), 100));
        for frame in frames {
            for program in ["shunt_ingress", "shunt_egress"] {
                assert_eq!(node.run(program, &frame), (NEXT, frame.clone()));
            }
        }
    });
}

#[test]
fn errors_that_end_too_early_go_on_as_they_came() {
    let Some(mut node) = Node::with("errors-cut", &one_endpoint("")) else { return };
    each_flow(&mut node, |node, flow| {
        let Flow { request: Walk(request), reply: Walk(reply), client, dialled, source, .. } = &flow;
        let router = ip(if client.is_ipv4() { ROUTER[0] } else { ROUTER[1] });
        for (to, about) in [(source.unwrap_or(*dialled), &request[2]), (*dialled, &reply[2])] {
            let whole = error(kinds(*client)[0], [router, to], about, 20);
            let needed = ETHERNET + if client.is_ipv4() { 20 + 8 + 20 + 4 } else { 40 + 8 + 40 + 4 };
            for length in ETHERNET + 40..needed {
                let cut = &whole[..length];
                assert_eq!(node.run("shunt_ingress", cut), (NEXT, cut.to_vec()), "{length}");
                // The packet is whole, but says that it is not.
                let mut short = whole.clone();
                let (place, length) =
                    if client.is_ipv4() { (2, length - ETHERNET) } else { (4, length - ETHERNET - 40) };
                short[ETHERNET + place..ETHERNET + place + 2]
                    .copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
                assert_eq!(node.run("shunt_ingress", &short), (NEXT, short.clone()), "{length}");
            }
        }
    });
}

/// Whether the checksums of a message are right.
fn is_right(frame: &[u8]) -> bool {
    let packet = PacketHeaders::from_ethernet_slice(frame).unwrap();
    let payload = packet.payload.slice();
    match (packet.net.unwrap(), packet.transport.unwrap()) {
        (etherparse::NetHeaders::Ipv4(ip, _), TransportHeader::Icmpv4(header)) => {
            ip.header_checksum == ip.calc_header_checksum()
                && header.checksum == header.icmp_type.calc_checksum(payload)
        }
        (etherparse::NetHeaders::Ipv6(ip, _), TransportHeader::Icmpv6(_)) => {
            let message = etherparse::Icmpv6Slice::from_slice(&frame[ETHERNET + 40..]).unwrap();
            message.is_checksum_valid(ip.source, ip.destination)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn garbage_in_errors_goes_on_or_is_translated_with_right_checksums() {
    let Some(mut node) = Node::with("errors-garbage", &one_endpoint("")) else { return };
    let mut runner = TestRunner::deterministic();
    let changes = proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4);
    each_flow(&mut node, |node, flow| {
        let Flow { request: Walk(request), reply: Walk(reply), client, dialled, source, .. } = &flow;
        let router = ip(if client.is_ipv4() { ROUTER[0] } else { ROUTER[1] });
        for _ in 0..200 {
            let changes = changes.new_tree(&mut runner).unwrap().current();
            for (to, about) in [(source.unwrap_or(*client), &request[2]), (*dialled, &reply[2])] {
                let mut about = about.clone();
                for (at, value) in &changes {
                    let at = ETHERNET + at.index(about.len() - ETHERNET);
                    about[at] = *value;
                }
                let comes = error(kinds(*client)[0], [router, to], &about, 20);
                assert!(is_right(&comes));
                let (verdict, between) = node.run("shunt_ingress", &comes);
                assert!(verdict == NEXT && is_right(&between), "{changes:?}");
                let (verdict, left) = node.run("shunt_egress", &between);
                assert!(verdict == NEXT && is_right(&left), "{changes:?}");
            }
        }
    });
}
