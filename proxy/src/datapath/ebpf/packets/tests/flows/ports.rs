//! What becomes of the ports of flows that have ended.

use super::*;

/// A port that the node can give away as it is.
const PORT: u16 = 1503;
const FORMER: &str = "203.0.113.9:1503";
const NEXT_CLIENT: &str = "203.0.113.10:1503";

/// Flows of datagrams end before what leads back to none goes.
const SHORT: FlowTimeouts = FlowTimeouts { tcp_established: 20, tcp_close_wait: 15, udp: 5, udp_stream: 10 };

fn collect_short(tables: &Remembered) -> Collected {
    collect(&tables.0, &SHORT, now().unwrap(), &CancellationToken::new()).unwrap()
}

/// After these packets of a client and so many seconds, its flow has ended, and another client has its port at once.
#[track_caller]
fn check(test: &str, to: u16, packets: &[fn(&str, &str) -> Vec<u8>], idle: u32) {
    let Some(mut node) = Node::with(test, &with_endpoints("e1:R")) else { return };
    let (tables, to) = (Remembered::of(&node), node_port(to));
    let stands_in = SocketAddr::new(ip(NODE_ADDRESSES[0]), PORT);
    for packet in packets {
        assert_eq!(node.through(&packet(FORMER, &to))[1].0, stands_in);
    }
    assert_ne!(node.through(&packets[0](NEXT_CLIENT, &to))[1].0, stands_in, "{test}: it is in use");
    tables.age(idle);
    let found = collect_short(&tables);
    assert_eq!((found.kept, found.ended), (0, 2), "{test}");
    assert!(tables.is_empty(), "{test}: {:?}", tables.leading_back());
    assert_eq!(node.through(&packets[0](NEXT_CLIENT, &to))[1].0, stands_in, "{test}: it is free");
}

fn reset(from: &str, to: &str) -> Vec<u8> {
    tcp(from, to, |header| header.rst = true)
}

#[test]
fn the_port_of_a_flow_that_has_ended_is_free_at_once() {
    check("ports-datagram", 30_053, &[udp], 11);
    check("ports-stream", 30_053, &[udp, udp], 11);
    check("ports-idle", 30_080, &[syn, ack], 61);
    check("ports-closed", 30_080, &[syn, ack, reset], 61);
}

#[test]
fn what_led_back_while_a_connection_opened_goes_with_it() {
    let Some(mut node) = Node::with("ports-opened", &with_endpoints("e1:R")) else { return };
    let (tables, http) = (Remembered::of(&node), node_port(30_080));
    for packet in [syn, ack, reset] {
        node.through(&packet(FORMER, &http));
    }
    assert_eq!(tables.leading_back(), [2, 2]);
    tables.age(11);
    assert_eq!(tables.collect(), collected(0, 1, 4));
    assert!(tables.is_empty());
}

#[test]
fn what_leads_to_another_flow_or_has_been_used_since_stays() {
    let Some(mut node) = Node::with("ports-others", &with_endpoints("e1:R")) else { return };
    let (tables, dns) = (Remembered::of(&node), node_port(30_053));
    let [_, (source, server)] = node.through(&udp(FORMER, &dns));
    let before = tables.leading_back();
    tables.age(11);
    // Another client's, by the same port: as a program has it that takes the port of a flow that has ended.
    let other = proxy_abi::mapped(u32::from_ne_bytes([203, 0, 113, 10]));
    tables.change(Some, |found| Some(Translation { address: other, ..found }));
    assert_eq!(collect_short(&tables), collected(0, 1, 0));
    assert_eq!(tables.leading_back(), before);
    tables.forget_all();
    // A flow of the same ends begins anew while the collector is at work.
    node.through(&udp(FORMER, &dns));
    tables.age(11);
    let this_second = now().unwrap();
    tables.change(Some, |found| Some(Translation { seen: this_second, ..found }));
    let found = collect(&tables.0, &SHORT, this_second, &CancellationToken::new()).unwrap();
    assert_eq!(found, collected(0, 1, 0));
    let answer = udp(&server.to_string(), &source.to_string());
    assert_eq!(node.through(&answer)[1], (address(&dns), address(FORMER)));
}

#[test]
fn many_elements_are_removed_by_one_call_or_where_the_kernel_has_none_by_many() {
    let Some(mut node) = Node::with("ports-batch", &with_endpoints("e1:R")) else { return };
    let tables = Remembered::of(&node);
    for port in 0..8 {
        node.through(&udp(&format!("203.0.113.9:{}", PORT + port), &node_port(30_053)));
    }
    let large = &tables.0.large;
    let keys: Vec<_> = tables.flows().iter().flat_map(|(client, flow)| leading_back(client, flow)).collect();
    let keys: Vec<_> = keys.into_iter().map(|(key, _)| key).collect();
    assert_eq!((keys.len(), tables.leading_back()), (16, [0, 16]));
    // Some that are gone already, at the start, in the middle and at the end.
    for gone in [&keys[0], &keys[1], &keys[7], &keys[15]] {
        large.remove_translations(&[*gone]).unwrap();
    }
    assert_eq!(tables.leading_back(), [0, 12]);
    large.remove_translations(&keys).unwrap();
    assert_eq!(tables.leading_back(), [0, 0]);
    // A map of sockets has no such call.
    let map = bpf::open_pin(&node.pins.maps.of(&maps::OWN_DNS)).unwrap();
    let sockets = [(); 3].map(|()| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    let keys = sockets.each_ref().map(|socket| std::os::fd::AsRawFd::as_raw_fd(socket).to_ne_bytes());
    for key in &keys {
        bpf::update_word(map.as_fd(), key, 1).unwrap();
    }
    bpf::delete_all(map.as_fd(), &keys).unwrap();
    let left = keys.map(|key| bpf::lookup_word(map.as_fd(), &key).unwrap());
    assert_eq!(left, [None; 3]);
}
