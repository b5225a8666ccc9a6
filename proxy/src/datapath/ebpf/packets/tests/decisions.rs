//! What the programs count and tell of their decisions.

use std::collections::BTreeMap;

use aya::maps::{Map, MapData, RingBuf};
use proxy_abi::connection::{Connection, Key, Translation};
use proxy_abi::packet::Ends;
use proxy_abi::refusal::BURST;
use proxy_abi::{Count, Event};
use tokio::sync::watch;
use zerocopy::FromBytes as _;

use super::super::super::layout::write::address as words;
use super::super::counters::Counted;
use super::super::flows::{FlowTables, now};
use super::super::owners::{Owned, Owners, processors};
use super::*;
use crate::datapath::Meter as _;

const CLIENT: &str = "203.0.113.9:40000";
const OTHER: &str = "203.0.113.9:40001";
const EXTERNAL: &str = "192.0.2.1:80";

/// A metric and its labels.
fn named(name: &str, labels: &[(&str, String)]) -> String {
    let labels: Vec<String> = labels.iter().map(|(label, value)| format!("{label}={value}")).collect();
    format!("{name}{{{}}}", labels.join(","))
}

impl Node {
    /// All that was counted, but what is 0.
    fn counted(&self, owners: &Owned) -> BTreeMap<String, u64> {
        let (_sender, owners) = watch::channel(owners.clone());
        let counted = Counted::open(&self.pins.maps, owners, processors().unwrap()).unwrap();
        let values = counted.read().into_iter().flat_map(|metric| {
            metric.values.into_iter().map(move |(labels, value)| (named(metric.name, &labels), value))
        });
        values.filter(|(_, value)| *value != 0).collect()
    }

    /// What more was counted since `before`.
    #[track_caller]
    fn check_counted(&self, before: &mut BTreeMap<String, u64>, wanted: &[&str]) {
        let now = self.counted(&Owned::new());
        let more = now.iter().flat_map(|(name, value)| {
            let old = before.get(name).copied().unwrap_or_default();
            (old..*value).map(move |_| name.clone())
        });
        let mut wanted: Vec<&str> = wanted.to_vec();
        wanted.sort_unstable();
        assert_eq!(more.collect::<Vec<_>>(), wanted);
        *before = now;
    }

    /// The tables get another plan.
    fn follow(&self, plan: &Plan) {
        let mut tables = Tables::open(&self.pins.maps).unwrap();
        let mut layout = Layout::restored(tables.capacity(), &tables.dump().unwrap());
        for port in plan.ports.values() {
            let target = image::target(port).unwrap();
            layout.upsert(&port.key, &target, 0).unwrap().iter().for_each(|write| tables.write(write).unwrap());
        }
        tables.flush().unwrap();
    }

    fn listen(&self, listened_to: bool) -> RingBuf<MapData> {
        let map = bpf::open_pin(&self.pins.maps.of(&maps::CONFIG)).unwrap();
        let found: [u8; size_of::<Config>()] = bpf::lookup(map.as_fd(), &0_u32.to_ne_bytes()).unwrap().unwrap();
        let mut config: Config = zerocopy::transmute!(found);
        config.flags = (config.flags & !Config::LISTENED_TO) | if listened_to { Config::LISTENED_TO } else { 0 };
        let element: [u8; size_of::<Config>()] = zerocopy::transmute!(config);
        bpf::update(map.as_fd(), &0_u32.to_ne_bytes(), &element).unwrap();
        let pin = self.pins.maps.of(&maps::packets::EVENTS);
        RingBuf::try_from(Map::from_map_data(MapData::from_pin(pin).unwrap()).unwrap()).unwrap()
    }
}

fn all(queue: &mut RingBuf<MapData>) -> Vec<Event> {
    std::iter::from_fn(|| queue.next().map(|item| Event::read_from_bytes(&item).unwrap())).collect()
}

#[test]
fn flows_that_begin_are_counted_by_how_they_begin() {
    let Some(mut node) = Node::with("count-flows", &one_endpoint("ext=192.0.2.1")) else { return };
    let mut before = BTreeMap::new();
    let [own, _] = NODE_ADDRESSES.map(ip);
    let new = "packet_flows{how=new}";
    node.through(&syn(CLIENT, EXTERNAL));
    node.check_counted(&mut before, &[new, "packet_source_nat_flows{}"]);
    node.through(&ack(CLIENT, EXTERNAL));
    node.check_counted(&mut before, &["packet_flows_established{}"]);
    node.through(&ack(CLIENT, EXTERNAL));
    node.check_counted(&mut before, &[]);
    // From the same port of the client's to the same endpoint.
    node.through(&syn(CLIENT, &at(own, 30_080)));
    node.check_counted(&mut before, &[new, "packet_source_nat_flows{}", "packet_client_port_changes{}"]);
    node.through(&tcp(CLIENT, EXTERNAL, |header| header.rst = true));
    node.check_counted(&mut before, &[]);
    node.run("shunt_ingress", &syn(CLIENT, EXTERNAL));
    node.check_counted(&mut before, &["packet_flows{how=reopened}"]);
    let datagram = udp(CLIENT, &at(own, 30_053));
    node.through(&datagram);
    node.through(&datagram);
    node.check_counted(&mut before, &[new, "packet_source_nat_flows{}"]);
    // What is not ours is not counted.
    node.run("shunt_ingress", &ack(OTHER, EXTERNAL));
    node.run("shunt_ingress", &syn(OTHER, "198.51.100.7:80"));
    node.check_counted(&mut before, &[]);
    // The endpoint leaves, and another one comes.
    let service = service("web", "ip=10.96.0.1 ip=fd00:96::1 port=http:80/tcp np=30080 port=dns:53/udp np=30053");
    let mut snapshot = cluster([service], [slice("web", "x", "http:8080/tcp dns:5353/udp", "e2:R")]);
    set_node(&mut snapshot, None, &NODE_ADDRESSES);
    node.follow(&plan(&snapshot, &options()).0);
    assert_eq!(node.run("shunt_ingress", &datagram).0, NEXT);
    node.check_counted(&mut before, &["packet_flows{how=rebalanced}"]);
}

// NE-1, NE-2, NE-11, TP-31
#[test]
fn packets_that_find_no_endpoint_are_counted_by_the_reason() {
    let Some(mut node) = Node::with("count-refused", &refused::unserved()) else { return };
    let mut before = BTreeMap::new();
    let (none, sent) = ("packet_rejects{reason=no_endpoint}", "packet_reject_messages{result=sent}");
    for (frame, reasons) in [
        (syn(CLIENT, "10.96.0.1:80"), [none, sent].as_slice()),
        (udp(CLIENT, "10.96.0.1:53"), &[none, sent]),
        (syn(CLIENT, "10.96.0.1:81"), &["packet_rejects{reason=undefined_port}", sent]),
        (syn(CLIENT, "192.0.2.2:80"), &["packet_drops{reason=no_local_endpoint}"]),
        (syn(CLIENT, "192.0.2.3:80"), &["packet_drops{reason=source_range}"]),
        (syn("127.0.0.1:40000", "10.96.0.1:80"), &["packet_drops{reason=martian}"]),
        (
            syn("127.0.0.1:40000", "10.96.0.1:81"),
            &["packet_rejects{reason=undefined_port}", "packet_reject_messages{result=no_receiver}"],
        ),
    ] {
        node.pay_for_refusals();
        node.run("shunt_ingress", &frame);
        node.check_counted(&mut before, reasons);
    }
    let frame = syn(CLIENT, "10.96.0.1:80");
    while node.run("shunt_ingress", &frame).0 != DROP {}
    assert_eq!(node.counted(&Owned::new()).get("packet_reject_messages{result=rate_limited}"), Some(&1));
}

#[test]
fn flows_that_cannot_be_translated_are_counted_by_the_reason() {
    let plan = one_endpoint("ext=192.0.2.1");
    let Some(mut node) = Node::with("count-drops", &plan) else { return };
    let mut before = BTreeMap::new();
    let new = "packet_flows{how=new}";
    // The device has no address.
    let map = bpf::open_pin(&node.pins.maps.of(&maps::packets::DEVICES)).unwrap();
    bpf::delete(map.as_fd(), &DEVICE.to_ne_bytes()).unwrap();
    let (_, inside) = node.run("shunt_ingress", &syn(CLIENT, EXTERNAL));
    assert_eq!(node.run("shunt_egress", &inside).0, DROP);
    node.check_counted(&mut before, &[new, "packet_drops{reason=no_source_address}"]);
    node.set_device(0);
    // Nobody can have sent it.
    assert_eq!(node.run("shunt_ingress", &udp("127.0.0.1:40000", "192.0.2.1:53")).0, DROP);
    node.check_counted(&mut before, &["packet_drops{reason=martian}"]);
}

impl Node {
    /// Another flow has the translation from these ends.
    fn take(&self, ends: &Ends, flags: u32) {
        self.take_since(ends, Translation { flags, ..Translation::default() });
    }

    fn take_since(&self, ends: &Ends, value: Translation) {
        let map = bpf::open_pin(&self.pins.maps.of(&maps::packets::TRANSLATIONS)).unwrap();
        let value: [u8; size_of::<Translation>()] = zerocopy::transmute!(value);
        let key: [u8; size_of::<Ends>()] = zerocopy::transmute!(Key::of(ends).ends);
        bpf::update(map.as_fd(), &key, &value).unwrap();
    }
}

fn datagram_ends(from: SocketAddr, to: SocketAddr) -> Ends {
    let (from_port, to_port) = (from.port().to_be(), to.port().to_be());
    Ends { from: words(from.ip()), to: words(to.ip()), from_port, to_port, protocol: 17, padding: [0; 3] }
}

/// Others have all ports that are tried.
#[test]
fn flows_for_which_no_port_is_left_are_counted() {
    let Some(mut node) = Node::with("count-ports", &one_endpoint("ext=192.0.2.1")) else { return };
    let mut before = BTreeMap::new();
    let (own, endpoint) = (ip(NODE_ADDRESSES[0]), address("10.1.0.1:5353"));
    let (_, inside) = node.run("shunt_ingress", &udp(CLIENT, "192.0.2.1:53"));
    for port in 1024..30_000 {
        node.take(&datagram_ends(SocketAddr::new(own, port), endpoint), Translation::OF_NODE);
    }
    assert_eq!(node.run("shunt_egress", &inside).0, DROP);
    node.check_counted(&mut before, &["packet_flows{how=new}", "packet_drops{reason=no_source_port}"]);
    let client = address(OTHER);
    for port in (1024..30_000).chain([client.port()]) {
        node.take(&datagram_ends(SocketAddr::new(client.ip(), port), endpoint), 0);
    }
    assert_eq!(node.run("shunt_ingress", &udp(OTHER, "192.0.2.1:53")).0, DROP);
    node.check_counted(&mut before, &["packet_drops{reason=no_client_port}"]);
}

/// The same, but the others have ended.
#[test]
fn ports_of_flows_that_have_ended_are_given_away() {
    let Some(mut node) = Node::with("ended-ports", &one_endpoint("ext=192.0.2.1")) else { return };
    let (own, client, endpoint) = (ip(NODE_ADDRESSES[0]), address(OTHER), address("10.1.0.1:5353"));
    for port in (1024..30_000).chain([client.port()]) {
        node.take(&datagram_ends(SocketAddr::new(own, port), endpoint), Translation::OF_NODE | Translation::ENDED);
        node.take(&datagram_ends(SocketAddr::new(client.ip(), port), endpoint), Translation::ENDED);
    }
    let datagram = udp(OTHER, "192.0.2.1:53");
    let [(from, _), (source, to)] = node.through(&datagram);
    assert!(from.port() != client.port() && to == endpoint, "{from} {to}");
    assert_eq!(node.through(&udp("10.1.0.1:5353", &source.to_string()))[1], (address("192.0.2.1:53"), client));
    // The flow has both ports now.
    assert_eq!(node.through(&datagram)[1], (source, endpoint));
}

/// Most flows of UDP are one question and its answer: their ports are given away when others are short, but not where
/// answers may still come, or where the client goes on sending.
#[test]
fn ports_of_quiet_flows_of_udp_are_given_away() {
    const ANSWERED: u32 = Translation::OF_NODE | Translation::ANSWERED;
    for (flags, age, given_away) in
        [(ANSWERED, 6, true), (ANSWERED, 0, false), (Translation::OF_NODE, 60, false), (Translation::TAKEN, 60, false)]
    {
        let Some(mut node) = Node::with("quiet-ports", &one_endpoint("ext=192.0.2.1")) else { return };
        let own = ip(NODE_ADDRESSES[0]);
        let seen = now().unwrap().wrapping_sub(age);
        for port in 1024..30_000 {
            let between = datagram_ends(SocketAddr::new(own, port), address("10.1.0.1:5353"));
            node.take_since(
                &between,
                Translation { flags: flags | Translation::OF_NODE, seen, ..Translation::default() },
            );
        }
        let (verdict, inside) = node.run("shunt_ingress", &udp(OTHER, "192.0.2.1:53"));
        assert_eq!(verdict, NEXT);
        let (verdict, after) = node.run("shunt_egress", &inside);
        assert_eq!(verdict == NEXT, given_away, "{flags} {age}");
        if given_away {
            let answer = udp("10.1.0.1:5353", &seen_source(&after));
            assert_eq!(node.through(&answer)[1], (address("192.0.2.1:53"), address(OTHER)));
        }
    }
}

fn seen_source(frame: &[u8]) -> String {
    seen(frame).0.to_string()
}

/// The port that stood for its client is another flow's: its next packet gets another one, and no answer goes astray.
#[test]
fn a_flow_whose_port_was_given_away_gets_another_one() {
    let Some(mut node) = Node::with("lost-port", &one_endpoint("ext=192.0.2.1")) else { return };
    let tables = FlowTables::open(&node.pins.maps).unwrap();
    let (datagram, endpoint) = (udp(CLIENT, "192.0.2.1:53"), address("10.1.0.1:5353"));
    let source = node.through(&datagram)[1].0;
    let owner =
        Translation { address: words(ip("203.0.113.77")), flags: Translation::OF_NODE, ..Translation::default() };
    node.take_since(&datagram_ends(source, endpoint), owner);
    // It is looked at once a second.
    let mut flows = Vec::new();
    tables
        .large
        .read_connections(|found| {
            flows.extend(found);
            Ok(true)
        })
        .unwrap();
    let (client, connection) = flows[0];
    tables.large.take_connection(&client).unwrap();
    let before = Connection { seen: connection.seen.wrapping_sub(1), ..connection };
    tables.large.add_connection(&client, &before).unwrap();
    let [_, (other, to)] = node.through(&datagram);
    assert!(other != source && to == endpoint, "{other} after {source}");
    assert_eq!(node.through(&udp("10.1.0.1:5353", &other.to_string()))[1], (address("192.0.2.1:53"), address(CLIENT)));
    assert_eq!(node.through(&datagram)[1], (other, endpoint));
}

#[test]
fn a_flow_that_is_closed_leaves_its_ports_to_others() {
    let Some(mut node) = Node::with("closed-ports", &one_endpoint("ext=192.0.2.1")) else { return };
    let fin = |from: &str, to: &str| tcp(from, to, |header| (header.ack, header.fin) = (true, true));
    let map = bpf::open_pin(&node.pins.maps.of(&maps::packets::TRANSLATIONS)).unwrap();
    let ended = || {
        let keys = bpf::keys::<{ size_of::<Ends>() }>(map.as_fd()).unwrap();
        let flags = keys.iter().map(|key| {
            let value: [u8; size_of::<Translation>()] = bpf::lookup(map.as_fd(), key).unwrap().unwrap();
            let value: Translation = zerocopy::transmute!(value);
            value.flags & Translation::ENDED != 0
        });
        flags.collect::<Vec<_>>()
    };
    for client_first in [false, true] {
        let source = node.through(&syn(OTHER, EXTERNAL))[1].0.to_string();
        node.through(&ack(OTHER, EXTERNAL));
        assert_eq!(ended(), [false; 2], "it opens, the second time again");
        let mut ends = [(OTHER, EXTERNAL), ("10.1.0.1:8080", &source)];
        if !client_first {
            ends.reverse();
        }
        for (from, to) in ends {
            node.through(&fin(from, to));
        }
        assert_eq!(ended(), [true; 2], "client first: {client_first}");
    }
}

#[test]
fn flows_are_counted_for_the_service_until_its_entry_has_another_owner() {
    let plan = refused::unserved();
    let Some(mut node) = Node::with("count-services", &plan) else { return };
    let tables = Tables::open(&node.pins.maps).unwrap();
    let mut layout = Layout::restored(tables.capacity(), &tables.dump().unwrap());
    let mut owners = Owners::open(&node.pins).unwrap();
    for port in plan.ports.values() {
        layout.upsert(&port.key, &image::target(port).unwrap(), 0).unwrap();
        owners.follow(&layout, &port.key);
    }
    owners.tell();
    let told = owners.subscribe();
    for _ in 0..3 {
        node.run("shunt_ingress", &syn(CLIENT, "10.96.0.1:80"));
    }
    node.run("shunt_ingress", &syn("198.51.100.9:40000", "192.0.2.3:80"));
    let of = |metric: &str, service: &str, port: &str, protocol: &str| {
        format!(
            "{metric}{{service_namespace=default,service_name={service},port_name={port},protocol={protocol},ip_family=IPv4}}"
        )
    };
    let unserved = of("service_packet_flows_unserved", "empty", "http", "tcp");
    let begun = of("service_packet_flows", "ranges", "http", "tcp");
    let counted = node.counted(&told.borrow());
    assert_eq!((counted.get(&unserved), counted.get(&begun)), (Some(&3), Some(&1)), "{counted:?}");
    let of_services = counted.keys().filter(|name| name.starts_with("service_")).count();
    assert_eq!(of_services, 2, "only services that were dialled: {counted:?}");
    let entries: Vec<u32> = told.borrow().keys().copied().collect();
    entries.into_iter().for_each(|entry| owners.gone(entry));
    let counted = node.counted(&told.borrow());
    assert!(!counted.keys().any(|name| name.starts_with("service_")), "{counted:?}");
}

#[test]
fn decisions_are_told_while_somebody_listens() {
    let plan = one_endpoint("ext=192.0.2.1");
    let Some(mut node) = Node::with("events", &plan) else { return };
    node.run("shunt_ingress", &syn(CLIENT, EXTERNAL));
    let mut queue = node.listen(true);
    assert_eq!(all(&mut queue), []);
    node.through(&syn(OTHER, EXTERNAL));
    node.through(&ack(OTHER, EXTERNAL));
    node.run("shunt_ingress", &syn("[2001:db8::9]:40000", "[fd00:96::1]:81"));
    let [begun, refused] = all(&mut queue)[..] else { panic!("not two events") };
    assert_eq!((begun.what, refused.what), (Count::New as u32, Count::UndefinedPort as u32));
    let client = begun.client;
    let (from, to) = (address(OTHER), address(EXTERNAL));
    assert_eq!((client.from, client.to, client.protocol), (words(from.ip()), words(to.ip()), 6));
    assert_eq!((client.from_port, client.to_port), (from.port().to_be(), to.port().to_be()));
    assert_eq!((begun.endpoint, begun.endpoint_port), (words(ip("10.1.0.1")), 8080_u16.to_be()));
    assert_eq!((begun.device, refused.device), (DEVICE, DEVICE));
    assert_ne!(begun.service, Event::NO_SERVICE);
    assert_eq!((refused.service, refused.endpoint, refused.endpoint_port), (Event::NO_SERVICE, [0; 4], 0));
    node.listen(false);
    node.run("shunt_ingress", &syn(CLIENT, "192.0.2.1:80"));
    assert_eq!(all(&mut queue), []);
}

#[test]
fn too_many_events_at_once_are_left_out_and_counted() {
    let plan = one_endpoint("ext=192.0.2.1");
    let Some(mut node) = Node::with("events-rate", &plan) else { return };
    let mut queue = node.listen(true);
    let left_out = |node: &Node| node.counted(&Owned::new()).get("packet_decisions_untold{}").copied();
    let mut begun = 0_usize;
    let mut told = 0_usize;
    while left_out(&node).is_none() {
        let from = SocketAddr::new(ip("203.0.113.9"), 10_000 + u16::try_from(begun).unwrap());
        node.run("shunt_ingress", &syn(&from.to_string(), EXTERNAL));
        begun += 1;
        told += all(&mut queue).len();
        assert!(begun < 40_000, "there is no limit");
    }
    assert!(told >= usize::try_from(BURST).unwrap(), "{told}");
    assert_eq!(begun, told + usize::try_from(left_out(&node).unwrap()).unwrap());
}
