//! Packets as no sender should send them: nothing is half-rewritten, and no table is filled by them.

use proptest::prelude::any;

use super::*;

const ETHERNET: usize = 14;
const PROGRAMS: [&str; 2] = ["shunt_ingress", "shunt_egress"];
/// Where fields are in headers of IPv4 and IPv6.
const LENGTHS: [usize; 2] = [ETHERNET + 2, ETHERNET + 4];
const HEADERS: [usize; 2] = [ETHERNET + 20, ETHERNET + 40];

/// Clients outside, and ports of this node: one of TCP, one of UDP, one of SCTP.
fn ends() -> [(&'static str, [String; 3]); 2] {
    [("203.0.113.9:40000", NODE_ADDRESSES[0]), ("[2001:db8::9]:40000", NODE_ADDRESSES[1])]
        .map(|(client, own)| (client, [30_080, 30_053, 30_090].map(|port| at(ip(own), port))))
}

fn served() -> Plan {
    let words =
        "ip=10.96.0.1 ip=fd00:96::1 port=http:80/tcp np=30080 port=dns:53/udp np=30053 port=sig:90/sctp np=30090";
    let slices = [("x", "e1:R"), ("y", "f1:R")]
        .map(|(name, endpoint)| slice("web", name, "http:8080/tcp dns:5353/udp sig:9090/sctp", endpoint));
    let mut snapshot = cluster([service("web", words)], slices);
    set_node(&mut snapshot, None, &NODE_ADDRESSES);
    plan(&snapshot, &options()).0
}

/// One first packet of each protocol, with its family: 0 for IPv4.
fn packets() -> Vec<(usize, Vec<u8>)> {
    let of_family = |(family, (client, [stream, datagrams, chunks])): (usize, (&str, [String; 3]))| {
        let init = sctp::packet(client, &chunks, 1, 16);
        [syn(client, &stream), udp(client, &datagrams), init].map(|frame| (family, frame))
    };
    ends().into_iter().enumerate().flat_map(of_family).collect()
}

impl Node {
    /// How many elements the tables of flows have.
    fn elements(&self) -> usize {
        let of_flows = maps::packets::ALL.iter().filter(|map| map.kind == maps::Kind::Lru);
        let count = |map: &maps::Map| {
            let map = bpf::open_pin(&self.pins.maps.of(map)).unwrap();
            bpf::keys::<40>(map.as_fd()).unwrap().len()
        };
        of_flows.map(count).sum()
    }

    #[track_caller]
    fn leaves_alone(&mut self, program: &'static str, frame: &[u8]) {
        assert_eq!(self.run(program, frame), (NEXT, frame.to_vec()), "{program}");
    }
}

#[test]
fn packets_that_end_before_their_header_says_are_left_alone() {
    let Some(mut node) = Node::with("truncated", &served()) else { return };
    for (family, frame) in packets() {
        let fragments = fragments::cut(&frame, 7, 24);
        for frame in std::iter::once(&frame).chain(&fragments) {
            for length in HEADERS[family]..frame.len() {
                node.leaves_alone("shunt_ingress", &frame[..length]);
                node.leaves_alone("shunt_egress", &frame[..length]);
            }
        }
    }
    assert_eq!(node.elements(), 0);
}

/// The kernel has looked at the length of what leaves. Should it be wrong all the same, the packet is translated, with
/// its checksum, or it is dropped.
#[test]
fn packets_of_a_flow_that_end_anywhere_are_translated_in_full_or_not_at_all() {
    let Some(mut node) = Node::with("truncated-flow", &served()) else { return };
    for (family, request) in packets() {
        let (_, between) = node.run("shunt_ingress", &request);
        let (_, left) = node.run("shunt_egress", &between);
        assert_ne!(left, between);
        let elements = node.elements();
        for length in HEADERS[family]..request.len() {
            node.leaves_alone("shunt_ingress", &request[..length]);
            match node.run("shunt_egress", &between[..length]) {
                (NEXT, after) => assert!(after == between[..length] || after == left[..length], "{length}"),
                (verdict, _) => assert_eq!(verdict, DROP, "{length}"),
            }
        }
        assert_eq!(node.elements(), elements);
    }
}

#[test]
fn packets_whose_header_tells_a_wrong_length_are_left_alone() {
    let Some(mut node) = Node::with("lengths", &served()) else { return };
    let told = |fits: bool| {
        let headers = [20, 8, 16].into_iter().cycle();
        let each = packets().into_iter().zip(headers).flat_map(move |((family, frame), header)| {
            let before = if family == 0 { 0 } else { 40 };
            let lengths = (0..200).chain([500, 1500, 9000, 65_535]);
            lengths.filter_map(move |told: u16| {
                let end = ETHERNET + before + usize::from(told);
                let mut frame = frame.clone();
                frame[LENGTHS[family]..][..2].copy_from_slice(&told.to_be_bytes());
                (fits == (HEADERS[family] + header..=frame.len()).contains(&end)).then_some(frame)
            })
        });
        each.collect::<Vec<_>>()
    };
    for wrong in told(false) {
        node.leaves_alone("shunt_ingress", &wrong);
    }
    assert_eq!(node.elements(), 0);
    // What lies behind the end is padding, for all that the program knows.
    for frame in told(true) {
        let (verdict, after) = node.run("shunt_ingress", &frame);
        assert!(verdict == NEXT && after != frame);
    }
}

/// By how much one checksum is more than another.
fn difference(left: &[u8], right: &[u8], place: usize) -> u32 {
    let sum = |frame: &[u8]| u32::from(u16::from_be_bytes([frame[place], frame[place + 1]]));
    (sum(left) + 0xffff - sum(right)) % 0xffff
}

/// That of SCTP has a test of its own.
#[test]
fn a_wrong_checksum_stays_exactly_as_wrong() {
    let Some(mut node) = Node::with("sums", &served()) else { return };
    for ((family, right), own) in packets().into_iter().zip([Some(16), Some(6), None].into_iter().cycle()) {
        let own = own.map(|own| HEADERS[family] + own);
        let of_header = (family == 0).then_some(ETHERNET + 10);
        for place in own.into_iter().chain(of_header) {
            for change in [1, 0x00ff, 0x8000, 0xfffe, 0x1234] {
                let sum = u16::from_be_bytes([right[place], right[place + 1]]).wrapping_add(change);
                let mut wrong = right.clone();
                // UDP takes 0 for none.
                wrong[place..place + 2].copy_from_slice(&sum.max(1).to_be_bytes());
                let (mut translated, mut as_wrong) = (right.clone(), wrong.clone());
                for program in PROGRAMS {
                    (_, translated) = node.run(program, &translated);
                    (_, as_wrong) = node.run(program, &as_wrong);
                    let found = difference(&as_wrong, &translated, place);
                    assert_eq!(found, difference(&wrong, &right, place), "{program}");
                    let mut rest = as_wrong.clone();
                    rest[place..place + 2].copy_from_slice(&translated[place..place + 2]);
                    assert_eq!(rest, translated, "{program}: nothing else differs");
                }
            }
        }
    }
}

/// The frame of IPv6 with so many headers between that of IPv6 and the other one.
fn extended(frame: &[u8], numbers: &[u8]) -> Vec<u8> {
    let (front, rest) = frame.split_at(HEADERS[1]);
    let mut extended = front.to_vec();
    let next = numbers.iter().skip(1).chain([&front[ETHERNET + 6]]);
    for (at, (_, next)) in numbers.iter().zip(next).enumerate() {
        // Options of padding: one byte each.
        let length = if at % 2 == 0 { 0 } else { 1 };
        extended.extend([*next, length]);
        extended.resize(extended.len() + 6 + 8 * usize::from(length), 0);
    }
    if let Some(first) = numbers.first() {
        extended[ETHERNET + 6] = *first;
    }
    extended.extend(rest);
    let length = u16::try_from(extended.len() - HEADERS[1]).unwrap();
    extended[LENGTHS[1]..][..2].copy_from_slice(&length.to_be_bytes());
    extended
}

#[test]
fn extension_headers_are_passed_over_up_to_a_limit() {
    let Some(mut node) = Node::with("chains", &served()) else { return };
    for (_, frame) in packets().into_iter().filter(|(family, _)| *family == 1) {
        let (_, between) = node.run("shunt_ingress", &frame);
        let (_, left) = node.run("shunt_egress", &between);
        for count in 0..=9 {
            // Hop by hop options, a routing header, options for the destination.
            let numbers: Vec<u8> = [0, 43].into_iter().chain(std::iter::repeat(60)).take(count).collect();
            let long = extended(&frame, &numbers);
            if count <= 6 {
                assert_eq!(node.run("shunt_ingress", &long), (NEXT, extended(&between, &numbers)), "{count} headers");
                assert_eq!(node.run("shunt_egress", &extended(&between, &numbers)).1, extended(&left, &numbers));
            } else {
                node.leaves_alone("shunt_ingress", &long);
            }
            // A header that says it is longer than the packet.
            if count > 0 {
                let mut wrong = long;
                wrong[HEADERS[1] + 1] = 255;
                node.leaves_alone("shunt_ingress", &wrong);
            }
        }
    }
}

#[test]
fn martians_open_nothing() {
    let Some(mut node) = Node::with("martians", &served()) else { return };
    let sources = [
        ["127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255"].as_slice(),
        ["::1", "::", "ff02::1", "::203.0.113.9"].as_slice(),
    ];
    let destinations = [["127.0.0.1", "224.0.0.1", "255.255.255.255"], ["::1", "ff02::1", "ff0e::1"]];
    for (family, (client, [stream, datagrams, chunks])) in ends().into_iter().enumerate() {
        for source in sources[family] {
            let from = at(ip(source), 40_000);
            for frame in [syn(&from, &stream), udp(&from, &datagrams), sctp::packet(&from, &chunks, 1, 16)] {
                assert_eq!(node.run("shunt_ingress", &frame).0, DROP, "{source}");
            }
            // What is not ours is the kernel's.
            node.leaves_alone("shunt_ingress", &udp(&from, &at(address(&stream).ip(), 9)));
        }
        for destination in destinations[family].map(ip) {
            for frame in [
                syn(client, &at(destination, 30_080)),
                udp(client, &at(destination, 30_053)),
                sctp::packet(client, &at(destination, 30_090), 1, 16),
            ] {
                node.leaves_alone("shunt_ingress", &frame);
                node.leaves_alone("shunt_egress", &frame);
            }
        }
        for station in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]] {
            let mut frame = syn(client, &stream);
            frame[..6].copy_from_slice(&station);
            assert_eq!(node.run("shunt_ingress", &frame).0, DROP, "{station:x?}");
        }
    }
    assert_eq!(node.elements(), 0);
}

/// The kernel compares the sum over the packet after each run: whatever is done to garbage, it is done to the sum too.
#[test]
fn garbage_goes_on_or_is_dropped() {
    let Some(mut node) = Node::with("garbage", &served()) else { return };
    let mut runner = TestRunner::deterministic();
    let changes = proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6);
    let mut frames = packets();
    for (family, frame) in packets() {
        let (_, between) = node.run("shunt_ingress", &frame);
        frames.extend(fragments::cut(&frame, 7, 24).into_iter().map(|fragment| (family, fragment)));
        frames.push((family, between));
        if family == 1 {
            frames.push((family, extended(&frame, &[0, 60, 43])));
        }
    }
    let mut verdicts = HashSet::new();
    for _ in 0..300 {
        let changes = changes.new_tree(&mut runner).unwrap().current();
        for (_, frame) in &frames {
            let mut frame = frame.clone();
            for (at, value) in &changes {
                let at = ETHERNET + at.index(frame.len() - ETHERNET);
                frame[at] = *value;
            }
            node.pay_for_refusals();
            for program in PROGRAMS {
                let (verdict, after) = node.run(program, &frame);
                assert!([NEXT, DROP].contains(&verdict), "{program}: {frame:02x?}");
                assert_eq!(after.len(), frame.len());
                verdicts.insert(verdict);
            }
        }
    }
    assert_eq!(verdicts.len(), 2);
}
