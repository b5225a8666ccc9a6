//! Many flows of one client to one endpoint: none gets another's packets, also once ports have run out.

use std::collections::HashMap;

use super::*;

/// As many as a client has ports for, or more.
const FLOWS: u16 = 60_000;
/// Their first port.
const FIRST: u16 = 1024;

/// What comes in of a datagram, and what leaves; `None` if it is dropped.
fn sent(node: &mut Node, frame: &[u8]) -> Option<[Seen; 2]> {
    let (verdict, inside) = node.run("shunt_ingress", frame);
    if verdict == DROP {
        return None;
    }
    assert_eq!(verdict, NEXT);
    let (verdict, after) = node.run("shunt_egress", &inside);
    assert!([NEXT, DROP].contains(&verdict), "{verdict}");
    (verdict == NEXT).then(|| [seen(&inside), seen(&after)])
}

#[test]
fn each_flow_has_a_port_of_the_node_for_itself_or_is_dropped() {
    let plan = one_endpoint("");
    let Some(mut node) = Node::with("many", &plan) else { return };
    let [own, _] = NODE_ADDRESSES.map(ip);
    let to = at(own, 30_053);
    let mut stands_for = HashMap::new();
    for port in FIRST..FIRST + FLOWS {
        let from = at(ip("203.0.113.9"), port);
        let Some([_, (source, _)]) = sent(&mut node, &udp(&from, &to)) else { continue };
        assert!(source.ip() == own && (1024..30_000).contains(&source.port()), "{source}");
        assert_eq!(stands_for.insert(source, from), None, "{source} stands for two");
    }
    // All but a few of the ports that there are.
    assert!((28_500..=28_976).contains(&stands_for.len()), "{}", stands_for.len());
    for (source, from) in stands_for {
        let [_, answered] = node.through(&udp("10.1.0.1:5353", &source.to_string()));
        assert_eq!(answered, (address(&to), address(&from)));
    }
}

#[test]
fn flows_by_two_frontends_to_one_endpoint_stay_two_or_are_dropped() {
    let plan = one_endpoint("ext=192.0.2.1 ext=192.0.2.2");
    let Some(mut node) = Node::with("many-two", &plan) else { return };
    let mut between = HashMap::new();
    for to in ["192.0.2.1:53", "192.0.2.2:53"] {
        for port in FIRST..FIRST + 20_000 {
            let from = at(ip("203.0.113.9"), port);
            let Some([(inside, _), (source, _)]) = sent(&mut node, &udp(&from, to)) else { continue };
            assert_eq!(between.insert(inside, (source, from, to)), None, "{inside} is of two flows");
        }
    }
    assert!((28_500..=28_976).contains(&between.len()), "{}", between.len());
    for (source, from, to) in between.into_values() {
        let [_, answered] = node.through(&udp("10.1.0.1:5353", &source.to_string()));
        assert_eq!(answered, (address(to), address(&from)));
    }
}
