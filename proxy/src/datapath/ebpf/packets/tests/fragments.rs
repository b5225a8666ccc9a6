//! Datagrams in fragments, of which only the first has ports.

use etherparse::defrag::IpDefragPool;
use etherparse::{Ipv4Header, Ipv6FragmentHeader, Ipv6Header, NetSlice, SlicedPacket, UdpHeader, UdpSlice};

use super::*;

const ETHERNET: usize = 14;
/// Of fragments of Ethernet's usual size.
const USUAL: usize = 1448;

/// Cuts the packet of a frame into fragments with so many bytes of it, a multiple of eight.
pub(super) fn cut(frame: &[u8], identification: u16, size: usize) -> Vec<Vec<u8>> {
    let (ethernet, packet) = frame.split_at(ETHERNET);
    let header_length = if packet[0] >> 4 == 4 { 20 } else { 40 };
    let (header, payload) = packet.split_at(header_length);
    let pieces = payload.chunks(size).enumerate();
    pieces
        .map(|(at, piece)| {
            fragment(ethernet, header, identification, at * size, (at + 1) * size < payload.len(), piece)
        })
        .collect()
}

/// The fragment with these bytes at this place.
fn fragment(ethernet: &[u8], ip: &[u8], identification: u16, at: usize, more: bool, piece: &[u8]) -> Vec<u8> {
    let offset = u16::try_from(at / 8).unwrap().try_into().unwrap();
    let mut frame = ethernet.to_vec();
    if ip[0] >> 4 == 4 {
        let mut header = Ipv4Header::from_slice(ip).unwrap().0;
        header.set_payload_len(piece.len()).unwrap();
        (header.identification, header.fragment_offset, header.more_fragments) = (identification, offset, more);
        header.dont_fragment = false;
        header.header_checksum = header.calc_header_checksum();
        header.write(&mut frame).unwrap();
    } else {
        let mut header = Ipv6Header::from_slice(ip).unwrap().0;
        let behind = Ipv6FragmentHeader::new(header.next_header, offset, more, identification.into());
        header.next_header = etherparse::IpNumber::IPV6_FRAGMENTATION_HEADER;
        header.set_payload_length(piece.len() + 8).unwrap();
        header.write(&mut frame).unwrap();
        behind.write(&mut frame).unwrap();
    }
    frame.extend(piece);
    frame
}

fn addresses(slice: &SlicedPacket<'_>) -> (IpAddr, IpAddr) {
    match slice.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            assert_eq!(ip.header().header_checksum(), ip.header().to_header().calc_header_checksum());
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Arp(arp) => panic!("{arp:?}"),
    }
}

/// The datagram that its fragments make: its ends and what it brings. Its checksum must be right.
#[track_caller]
fn datagram(fragments: &[Vec<u8>]) -> (Seen, Vec<u8>) {
    let (mut pool, mut whole, mut ends) = (IpDefragPool::<(), ()>::new(), None, None);
    for fragment in fragments {
        let slice = SlicedPacket::from_ethernet(fragment).unwrap();
        let found = addresses(&slice);
        assert_eq!(*ends.get_or_insert(found), found, "fragments go different ways");
        let complete = pool.process_sliced_packet(&slice, (), ()).unwrap();
        whole = whole.or(complete);
    }
    let (whole, (from, to)) = (whole.expect("fragments are missing").payload, ends.unwrap());
    let udp = UdpSlice::from_slice(&whole).unwrap();
    let (header, payload) = (udp.to_header(), udp.payload());
    let right = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            UdpHeader::calc_checksum_ipv4_raw(&header, from.octets(), to.octets(), payload)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            UdpHeader::calc_checksum_ipv6_raw(&header, from.octets(), to.octets(), payload)
        }
        _ => panic!("{from} {to}"),
    };
    assert_eq!(header.checksum, right.unwrap(), "of {from} to {to}");
    ((SocketAddr::new(from, header.source_port), SocketAddr::new(to, header.destination_port)), payload.to_vec())
}

/// What 8000 bytes of a datagram are.
fn payload() -> Vec<u8> {
    (0..8000_u32).map(|at| at.wrapping_mul(0x9e37_79b1).to_be_bytes()[0]).collect()
}

/// A datagram of 8000 bytes in fragments of so many.
fn large(from: &str, to: &str, identification: u16, size: usize) -> Vec<Vec<u8>> {
    let (from, to) = (address(from), address(to));
    let mut frame = Vec::new();
    ip_between(from.ip(), to.ip()).udp(from.port(), to.port()).write(&mut frame, &payload()).unwrap();
    cut(&frame, identification, size)
}

/// What becomes of frames at a hook; all of them must go on.
#[track_caller]
fn all(node: &mut Node, program: &'static str, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut run = |frame: &Vec<u8>| {
        let (verdict, after) = node.run(program, frame);
        assert_eq!(verdict, NEXT);
        after
    };
    frames.iter().map(&mut run).collect()
}

/// The kernel's tracking puts fragments together between the hooks, and cuts what leaves anew.
fn tracked(between: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let ((from, to), payload) = datagram(between);
    let mut frame = Vec::new();
    ip_between(from.ip(), to.ip()).udp(from.port(), to.port()).write(&mut frame, &payload).unwrap();
    cut(&frame, 0x7777, 1232)
}

/// A client outside, this node, a pod of this node, the cluster IP, the endpoint.
const FAMILIES: [[&str; 5]; 2] = [
    ["203.0.113.9", NODE_ADDRESSES[0], "10.1.9.9", "10.96.0.1", "10.1.0.1"],
    ["2001:db8::9", NODE_ADDRESSES[1], "fd00::9:9", "fd00:96::1", "fd00::1"],
];

/// All later fragments in another order.
fn reordered(mut fragments: Vec<Vec<u8>>, turn: usize) -> Vec<Vec<u8>> {
    let later = &mut fragments[1..];
    match turn % 3 {
        0 => {}
        1 => later.reverse(),
        _ => later.rotate_left(2),
    }
    fragments
}

#[test]
fn a_datagram_of_8000_bytes_goes_through_in_both_directions() {
    let Some(mut node) = Node::with("pieces", &one_endpoint("")) else { return };
    for [outside, own, pod, service, endpoint] in FAMILIES.map(|family| family.map(ip)) {
        let server = SocketAddr::new(endpoint, 5353);
        for (flags, client, dialled) in [(0, outside, at(own, 30_053)), (Device::PODS, pod, at(service, 53))] {
            node.set_device(flags);
            for turn in 0..6 {
                let from = at(client, 40_000);
                let through = |node: &mut Node, fragments: Vec<Vec<u8>>| {
                    let between = all(node, "shunt_ingress", &reordered(fragments, turn));
                    let between = if turn < 3 { between } else { tracked(&between) };
                    let left = all(node, "shunt_egress", &between);
                    [datagram(&between), datagram(&left)]
                };
                let identification = u16::try_from(turn).unwrap();
                let [inside, left] = through(&mut node, large(&from, &dialled, identification, USUAL));
                assert_eq!(inside, ((address(&from), server), payload()));
                let (source, destination) = left.0;
                assert_eq!((source.ip(), destination), (if flags == 0 { own } else { client }, server));
                assert_eq!(left.1, payload());
                let answer = large(&server.to_string(), &source.to_string(), identification, USUAL);
                let [_, answered] = through(&mut node, answer);
                assert_eq!(answered, ((address(&dialled), address(&from)), payload()));
            }
        }
    }
}

#[test]
fn fragments_before_their_first_one_are_dropped_for_a_service_and_left_to_the_kernel_for_the_node() {
    let Some(mut node) = Node::with("early", &one_endpoint("ext=192.0.2.1")) else { return };
    for [client, own, pod, service, endpoint] in FAMILIES.map(|family| family.map(ip)) {
        for (from, to, verdict) in
            [(pod, at(service, 53), DROP), (client, at(own, 30_053), NEXT), (client, at(own, 9), NEXT)]
        {
            for later in &large(&at(from, 40_000), &to, 7, USUAL)[1..] {
                assert_eq!(node.run("shunt_ingress", later), (verdict, later.clone()));
                assert_eq!(node.run("shunt_egress", later), (NEXT, later.clone()));
            }
        }
        // A flow that is known does not help: the fragment does not say that it is of it.
        let whole = udp(&at(pod, 40_000), &at(service, 53));
        node.through(&whole);
        let answer = large(&at(endpoint, 5353), &at(pod, 40_000), 7, USUAL);
        assert_eq!(node.run("shunt_egress", &answer[1]), (NEXT, answer[1].clone()));
    }
    let outside = &large("203.0.113.9:40000", "192.0.2.1:53", 7, USUAL)[1];
    assert_eq!(node.run("shunt_ingress", outside), (NEXT, outside.clone()));
}

#[test]
fn the_newest_first_fragment_counts() {
    let Some(mut node) = Node::with("newest", &one_endpoint("")) else { return };
    for [client, own, _, _, endpoint] in FAMILIES.map(|family| family.map(ip)) {
        let [first, second] = [40_000, 40_001].map(|port| large(&at(client, port), &at(own, 30_053), 7, USUAL));
        let kernels = large(&at(client, 40_000), &at(own, 9), 7, USUAL);
        let server = SocketAddr::new(endpoint, 5353);
        for fragments in [&first, &second, &first] {
            let between = all(&mut node, "shunt_ingress", fragments);
            assert_eq!(datagram(&between).0.1, server);
            assert_eq!(datagram(&all(&mut node, "shunt_egress", &between)).0.1, server);
        }
        // One that is not ours takes the others with it, and so does one whose flow is not known at egress.
        assert_eq!(all(&mut node, "shunt_ingress", &kernels), kernels);
        let own_answer = large(&at(endpoint, 9), &at(client, 40_000), 7, USUAL);
        assert_eq!(all(&mut node, "shunt_egress", &own_answer), own_answer);
        // The same identification between others, or of another protocol, is another datagram's.
        all(&mut node, "shunt_ingress", &first[..1]);
        let other = large(&at(endpoint, 40_000), &at(own, 30_053), 7, USUAL);
        assert_eq!(all(&mut node, "shunt_ingress", &other[1..]), other[1..]);
        let whole = sctp::packet(&at(client, 40_000), &at(own, 30_053), 1, 3000);
        let other = cut(&whole, 7, USUAL);
        assert_eq!(all(&mut node, "shunt_ingress", &other[1..]), other[1..]);
        assert_ne!(all(&mut node, "shunt_ingress", &first[1..]), first[1..]);
    }
}

/// Nothing is looked at but addresses: the receiver, whose kernel drops such datagrams, sees what was sent.
#[test]
fn overlapping_fragments_go_where_their_first_one_went_as_they_are() {
    let Some(mut node) = Node::with("overlap", &one_endpoint("")) else { return };
    for [client, own, _, _, endpoint] in FAMILIES.map(|family| family.map(ip)) {
        let fragments = large(&at(client, 40_000), &at(own, 30_053), 7, USUAL);
        let length = if client.is_ipv4() { 20 } else { 40 };
        let (ethernet, ip) = (&fragments[0][..ETHERNET], &fragments[0][ETHERNET..ETHERNET + length]);
        let ip = if client.is_ipv4() { ip.to_vec() } else { [&ip[..6], &[17], &ip[7..]].concat() };
        let _first = all(&mut node, "shunt_ingress", &fragments[..1]);
        for at in [8, 16, 800, USUAL - 8, USUAL + 8, 8000, 65_528] {
            for size in [0, 1, 8, 100, 1448] {
                let overlapping = fragment(ethernet, &ip, 7, at, at % 16 == 0, &vec![0xee; size]);
                let (verdict, inside) = node.run("shunt_ingress", &overlapping);
                assert_eq!(verdict, NEXT);
                if size == 0 {
                    assert_eq!(inside, overlapping, "an empty one is none");
                    continue;
                }
                let slice = SlicedPacket::from_ethernet(&inside).unwrap();
                assert_eq!(addresses(&slice), (client, endpoint));
                assert!(inside.len() == overlapping.len() && inside.ends_with(&vec![0xee; size]));
            }
        }
    }
}

/// A piece that ends before the ports or the checksum is not read, and takes its datagram with it.
#[test]
fn first_fragments_without_a_whole_header_go_on_as_they_came() {
    let Some(mut node) = Node::with("tiny", &one_endpoint("")) else { return };
    for [client, own, _, service, _] in FAMILIES.map(|family| family.map(ip)) {
        let stream = syn(&at(client, 40_000), &at(own, 30_080));
        for size in [8, 16] {
            let tiny = cut(&stream, 7, size);
            assert_eq!(all(&mut node, "shunt_ingress", &tiny), tiny);
        }
        let fits = cut(&stream, 7, 24);
        assert_ne!(all(&mut node, "shunt_ingress", &fits)[0], fits[0]);
        let to_service = cut(&syn(&at(client, 40_000), &at(service, 80)), 8, 8);
        assert_eq!(node.run("shunt_ingress", &to_service[1]), (DROP, to_service[1].clone()));
    }
}

#[test]
fn a_first_fragment_is_refused_as_a_packet_is() {
    let Some(mut node) = Node::with("pieces-refused", &refused::unserved()) else { return };
    for [client, _, _, service, _] in FAMILIES.map(|family| family.map(ip)) {
        let fragments = large(&at(client, 40_000), &at(service, 53), 7, USUAL);
        node.pay_for_refusals();
        let (verdict, message) = node.run_without_sum("shunt_ingress", &fragments[0]);
        assert_eq!((verdict, message), (REDIRECT, refused::refusal(&fragments[0])));
        assert_eq!(node.run("shunt_ingress", &fragments[1]).0, DROP);
    }
}
