//! What the tables of flows remember, what ends flows, and what becomes of flows that were forgotten.

mod earlier;
mod ports;

use proxy_abi::connection::{Connection, State, Translation};
use proxy_abi::packet::Ends;
use tokio_util::sync::CancellationToken;

use super::super::super::tables::kernel::Array;
use super::super::flows::collect::{Collected, collect, end_flow};
use super::super::flows::{FlowTables, FlowTimeouts, expect_opening, leading_back, now};
use super::*;

/// A Service with a node port, whose endpoints are on other nodes.
fn with_endpoints(endpoints: &str) -> Plan {
    let service = service("web", "ip=10.96.0.1 port=http:80/tcp np=30080 port=dns:53/udp np=30053");
    planned([service], [slice("web", "x", "http:8080/tcp dns:5353/udp", endpoints)])
}

fn planned(
    services: impl IntoIterator<Item = shunt_model::Service>,
    slices: impl IntoIterator<Item = shunt_model::EndpointSlice>,
) -> Plan {
    let mut snapshot = cluster(services, slices);
    set_node(&mut snapshot, None, &NODE_ADDRESSES);
    plan(&snapshot, &options()).0
}

const FIVE: &str = "e1:R; e2:R; e3:R; e4:R; e5:R";
const CLIENT: &str = "203.0.113.9:40000";

/// Where node ports are dialled.
fn node_port(port: u16) -> String {
    at(ip(NODE_ADDRESSES[0]), port)
}

/// The tables of flows of a node.
struct Remembered(FlowTables);

impl Remembered {
    fn of(node: &Node) -> Self {
        Self(FlowTables::open(&node.pins.maps).unwrap())
    }

    fn flows(&self) -> Vec<(Ends, Connection)> {
        let mut all = Vec::new();
        for pair in self.0.pairs() {
            pair.read_connections(|found| {
                all.extend(found);
                Ok(true)
            })
            .unwrap();
        }
        all
    }

    /// How many elements lead back to flows, in the tables of those that open and in the large ones.
    fn leading_back(&self) -> [usize; 2] {
        self.0.pairs().map(|pair| {
            let mut count = 0;
            pair.read_translations(|found| {
                count += found.len();
                Ok(true)
            })
            .unwrap();
            count
        })
    }

    fn is_empty(&self) -> bool {
        self.flows().is_empty() && self.leading_back() == [0, 0]
    }

    /// Changes all elements; `None` removes one.
    fn change(
        &self,
        connection: impl Fn(Connection) -> Option<Connection>,
        translation: impl Fn(Translation) -> Option<Translation>,
    ) {
        for pair in self.0.pairs() {
            let (mut connections, mut translations) = (Vec::new(), Vec::new());
            pair.read_connections(|found| {
                connections.extend(found);
                Ok(true)
            })
            .unwrap();
            pair.read_translations(|found| {
                translations.extend(found);
                Ok(true)
            })
            .unwrap();
            for (client, found) in connections {
                pair.take_connection(&client).unwrap();
                if let Some(changed) = connection(found) {
                    pair.add_connection(&client, &changed).unwrap();
                }
            }
            for (key, found) in translations {
                pair.remove_translations(&[key]).unwrap();
                if let Some(changed) = translation(found) {
                    pair.add_translation(&key, &changed).unwrap();
                }
            }
        }
    }

    /// Makes so many seconds pass.
    fn age(&self, seconds: u32) {
        self.change(
            |found| Some(Connection { seen: found.seen.wrapping_sub(seconds), ..found }),
            |found| Some(Translation { seen: found.seen.wrapping_sub(seconds), ..found }),
        );
    }

    /// What a full table does, to all.
    fn forget_connections(&self) {
        self.change(|_| None, Some);
    }

    fn forget_what_leads_back(&self) {
        self.change(Some, |_| None);
    }

    fn forget_all(&self) {
        self.change(|_| None, |_| None);
    }

    fn collect(&self) -> Collected {
        collect(&self.0, &FlowTimeouts::default(), now().unwrap(), &CancellationToken::new()).unwrap()
    }
}

fn collected(kept: u64, ended: u64, left_over: u64) -> Collected {
    Collected { kept, ended, left_over }
}

/// No connection of an earlier path is left.
fn own_all_flows(node: &Node) {
    let config = Array::open(&node.pins.maps, &maps::CONFIG).unwrap();
    config.update(0, Config::FLAGS, |flags| flags | Config::OWN_FLOWS).unwrap();
}

/// Another path serves packets from now on.
fn leave(node: &Node) {
    let config = Array::open(&node.pins.maps, &maps::CONFIG).unwrap();
    config.update(0, Config::FLAGS, |flags| flags | Config::LEAVING).unwrap();
}

#[test]
fn programs_that_are_left_begin_nothing_and_go_on_with_what_they_know() {
    let Some(mut node) = Node::with("leaving", &with_endpoints("e1:R")) else { return };
    let (http, server) = (node_port(30_080), "10.1.0.1:8080");
    let (open, closed) = ("203.0.113.9:40000", "203.0.113.9:40001");
    let stands_in = [open, closed].map(|client| node.through(&syn(client, &http))[1].0.to_string());
    for (client, source) in [open, closed].into_iter().zip(&stands_in) {
        node.through(&ack(client, &http));
        node.through(&ack(server, source));
    }
    node.through(&tcp(closed, &http, |header| header.rst = true));
    leave(&node);
    let passes = |node: &mut Node, frame: &[u8]| assert_eq!(node.run("shunt_ingress", frame), (NEXT, frame.to_vec()));
    passes(&mut node, &syn("203.0.113.9:40002", &http));
    passes(&mut node, &udp(open, &node_port(30_053)));
    // Nothing has this address, but rules may.
    passes(&mut node, &syn(open, "10.96.0.99:80"));
    assert_eq!(node.through(&ack(open, &http))[1], (address(&stands_in[0]), address(server)));
    assert_eq!(node.through(&ack(server, &stands_in[0]))[1], (address(&http), address(open)));
    // The port that stood for the other client may be another path's.
    passes(&mut node, &ack(server, &stands_in[1]));
}

#[test]
fn a_port_of_an_ended_flow_may_dial_the_endpoint_itself() {
    for left in [false, true] {
        let Some(mut node) = Node::with("direct", &with_endpoints("e1:R")) else { return };
        let (http, server) = (node_port(30_080), "10.1.0.1:8080");
        let (open, closed) = ("203.0.113.9:40000", "203.0.113.9:40001");
        for client in [open, closed] {
            node.through(&syn(client, &http));
            node.through(&ack(client, &http));
        }
        node.through(&tcp(closed, &http, |header| header.rst = true));
        if left {
            leave(&node);
            // It dials the same again, and another path leads it to the same endpoint.
            assert_eq!(node.run("shunt_ingress", &syn(closed, &http)).0, NEXT);
        }
        for frame in [syn(closed, server), ack(server, closed), ack(closed, server)] {
            assert_eq!(node.run("shunt_egress", &frame), (NEXT, frame), "left: {left}");
        }
        let answer = node.run("shunt_egress", &ack(server, open)).1;
        assert_eq!(seen(&answer).0, address(&http), "left: {left}");
    }
}

/// Makes the tables follow another plan.
fn follow(node: &Node, plan: &Plan) {
    let mut tables = Tables::open(&node.pins.maps).unwrap();
    let mut layout = Layout::restored(tables.capacity(), &tables.dump().unwrap());
    let mut addresses = Addresses::restored(tables.addresses().unwrap(), true);
    for port in plan.ports.values() {
        let target = image::target(port).unwrap();
        layout.upsert(&port.key, &target, 0).unwrap().iter().for_each(|write| tables.write(write).unwrap());
    }
    layout.remove_unclaimed(0).iter().for_each(|write| tables.write(write).unwrap());
    tables.flush().unwrap();
    addresses.follow(&plan.addresses);
    let (set, gone) = addresses.take_changes();
    tables.set_addresses(&set).unwrap();
    gone.iter().for_each(|address| tables.set_address(*address, None).unwrap());
}

#[test]
fn a_flow_ends_once_it_has_had_no_packet_for_too_long() {
    let Some(mut node) = Node::with("flows-end", &with_endpoints(FIVE)) else { return };
    let tables = Remembered::of(&node);
    let (http, dns) = (node_port(30_080), node_port(30_053));
    node.through(&udp(CLIENT, &dns));
    node.through(&udp(CLIENT, &dns));
    // A second may pass meanwhile.
    tables.age(170);
    assert_eq!(tables.collect(), collected(1, 0, 0));
    tables.age(20);
    assert_eq!(tables.collect(), collected(0, 1, 2));
    assert!(tables.is_empty());
    // A connection that opens, is up, and is closed.
    node.through(&syn(CLIENT, &http));
    tables.age(61);
    assert_eq!(tables.collect(), collected(0, 1, 2));
    assert!(tables.is_empty());
    node.through(&syn(CLIENT, &http));
    node.through(&ack(CLIENT, &http));
    tables.age(3601);
    // What led back to it while it opened is left over.
    assert_eq!(tables.collect(), collected(1, 0, 2));
    assert_eq!(tables.leading_back(), [0, 2]);
    node.through(&tcp(CLIENT, &http, |header| header.rst = true));
    tables.age(11);
    assert_eq!(tables.collect(), collected(0, 1, 2));
    assert!(tables.is_empty());
}

#[test]
fn a_packet_that_comes_between_look_and_end_keeps_its_flow() {
    let Some(mut node) = Node::with("flows-kept", &with_endpoints(FIVE)) else { return };
    let (tables, dns) = (Remembered::of(&node), node_port(30_053));
    let before = node.through(&udp(CLIENT, &dns));
    tables.age(1000);
    let (client, looked_at) = tables.flows()[0];
    let pair = &tables.0.large;
    let keys: Vec<_> = leading_back(&client, &looked_at).map(|(key, _)| key).collect();
    pair.remove_translations(&keys).unwrap();
    // The packet finds the connection, and makes again what leads back to it.
    assert_eq!(node.through(&udp(CLIENT, &dns)), before);
    assert_eq!(tables.leading_back(), [0, 2]);
    let goes_on = end_flow(pair, &client, &looked_at).unwrap();
    assert_eq!(goes_on, tables.flows().first().map(|(_, flow)| *flow));
    assert_eq!(tables.leading_back(), [0, 2]);
    assert_eq!(node.through(&udp(CLIENT, &dns)), before);
    // Without a packet it ends.
    let (_, last) = tables.flows()[0];
    assert_eq!(end_flow(pair, &client, &last).unwrap(), None);
    assert_eq!(tables.flows(), []);
}

#[test]
fn what_leads_back_to_a_forgotten_connection_stays_while_answers_come() {
    let Some(mut node) = Node::with("flows-left-over", &with_endpoints(FIVE)) else { return };
    let (tables, dns) = (Remembered::of(&node), node_port(30_053));
    let [_, (source, server)] = node.through(&udp(CLIENT, &dns));
    tables.forget_connections();
    tables.age(61);
    let answer = udp(&server.to_string(), &source.to_string());
    assert_eq!(node.through(&answer)[1], (address(&dns), address(CLIENT)));
    assert_eq!(tables.collect(), collected(0, 0, 0));
    assert_eq!(node.through(&answer)[1], (address(&dns), address(CLIENT)));
    tables.age(61);
    assert_eq!(tables.collect(), collected(0, 0, 2));
    assert!(tables.is_empty());
}

#[test]
fn what_leads_back_is_made_again_from_the_connection() {
    let Some(mut node) = Node::with("flows-again", &with_endpoints(FIVE)) else { return };
    let (tables, http) = (Remembered::of(&node), node_port(30_080));
    node.through(&syn(CLIENT, &http));
    let before = node.through(&ack(CLIENT, &http));
    let [_, (source, server)] = before;
    tables.forget_what_leads_back();
    tables.age(1);
    assert_eq!(node.through(&ack(CLIENT, &http)), before);
    let answer = ack(&server.to_string(), &source.to_string());
    assert_eq!(node.through(&answer)[1], (address(&http), address(CLIENT)));
}

/// Clients outside at the node port, for which the node stands, and pods at the cluster IP.
const WAYS: [(u32, &str, &str); 2] = [(0, "203.0.113.9", "node"), (Device::PODS, "10.9.0.7", "10.96.0.1:80")];

#[test]
fn a_forgotten_connection_goes_on_with_its_endpoint_and_ports() {
    let Some(mut node) = Node::with("flows-forgotten", &with_endpoints(FIVE)) else { return };
    own_all_flows(&node);
    let tables = Remembered::of(&node);
    let mut endpoints = HashSet::new();
    for (flags, client, to) in WAYS {
        node.set_device(flags);
        let to = if to == "node" { node_port(30_080) } else { to.to_owned() };
        for port in 40_000..40_012 {
            let from = at(ip(client), port);
            node.through(&syn(&from, &to));
            let before = node.through(&ack(&from, &to));
            let [_, (source, server)] = before;
            endpoints.insert(server);
            for forget in [Remembered::forget_all, Remembered::forget_connections] {
                forget(&tables);
                assert_eq!(node.through(&ack(&from, &to)), before);
                let answer = ack(&server.to_string(), &source.to_string());
                assert_eq!(node.through(&answer)[1], (address(&to), address(&from)));
                assert_eq!(node.through(&ack(&from, &to)), before);
            }
            assert_eq!(tables.flows().len(), 1);
            assert_eq!(State::of(tables.flows()[0].1.state), State::Open);
            tables.forget_all();
        }
    }
    assert!(endpoints.len() > 2, "{endpoints:?}");
}

#[test]
fn a_packet_in_the_middle_of_a_connection_passes_while_the_kernel_may_translate_it() {
    let Some(mut node) = Node::with("flows-earlier", &with_endpoints(FIVE)) else { return };
    let http = node_port(30_080);
    let fin = tcp(CLIENT, &http, |header| (header.ack, header.fin) = (true, true));
    let reset = tcp(CLIENT, &http, |header| header.rst = true);
    for frame in [ack(CLIENT, &http), fin, reset] {
        for program in ["shunt_ingress", "shunt_egress"] {
            assert_eq!(node.run(program, &frame), (NEXT, frame.clone()));
        }
    }
    assert!(Remembered::of(&node).is_empty());
}

/// The SYN has passed programs of a version that did not note opening connections, its answer passes these.
#[test]
fn a_connection_that_opens_during_an_upgrade_is_answered() {
    for noted in [false, true] {
        let Some(mut node) = Node::with("flows-upgrade", &with_endpoints("e1:R")) else { return };
        let http = node_port(30_080);
        let [_, (source, server)] = node.through(&syn(CLIENT, &http));
        let opened = Array::open(&node.pins.maps, &maps::packets::OPENED).unwrap();
        let notes = || (0..maps::packets::OPENED.capacity).filter(|index| opened.load(*index, 0) != Some(0)).count();
        assert_eq!(notes(), 2);
        if !noted {
            (0..maps::packets::OPENED.capacity).for_each(|index| opened.store(index, &[(0, 0)]).unwrap());
        }
        expect_opening(&node.pins.maps).unwrap();
        // Where programs have noted any, they have noted all.
        assert_eq!(notes(), if noted { 2 } else { maps::packets::OPENED.capacity as usize });
        let answer = tcp(&server.to_string(), &source.to_string(), |header| (header.syn, header.ack) = (true, true));
        assert_eq!(node.through(&answer)[1], (address(&http), address(CLIENT)));
        assert_eq!(node.through(&ack(CLIENT, &http))[1], (source, server));
    }
}

#[test]
fn answers_to_what_others_have_opened_pass() {
    let Some(mut node) = Node::with("flows-foreign", &with_endpoints(FIVE)) else { return };
    own_all_flows(&node);
    // Source NAT of others has chosen the number of a node port for a connection to this server.
    let (server, http) = ("198.51.100.7:443", node_port(30_080));
    let answer = tcp(server, &http, |header| (header.syn, header.ack) = (true, true));
    for frame in [answer.clone(), ack(server, &http), ack(server, &http), answer] {
        assert_eq!(node.run("shunt_ingress", &frame), (NEXT, frame));
    }
    let tables = Remembered::of(&node);
    assert_eq!((tables.flows().len(), tables.leading_back()), (1, [0, 0]));
    // The same host as a client.
    let [(_, endpoint), _] = node.through(&syn(server, &http));
    assert_eq!(endpoint.port(), 8080);
    assert_eq!(node.through(&ack(server, &http))[0].1, endpoint);
}

#[test]
fn a_connection_that_opens_again_follows_the_endpoints() {
    let Some(mut node) = Node::with("flows-reopen", &with_endpoints("e1:R")) else { return };
    let http = node_port(30_080);
    node.through(&syn(CLIENT, &http));
    node.through(&ack(CLIENT, &http));
    node.through(&tcp(CLIENT, &http, |header| header.rst = true));
    follow(&node, &with_endpoints("e2:R"));
    for frame in [syn(CLIENT, &http), ack(CLIENT, &http), ack(CLIENT, &http)] {
        assert_eq!(node.through(&frame)[0].1, address("10.1.0.2:8080"));
    }
}

/// CT-3, CT-6, CT-7, CT-8: UDP follows the endpoints with the next packet, TCP stays once it is up.
#[test]
fn flows_to_an_endpoint_that_left_begin_anew() {
    let Some(mut node) = Node::with("flows-stale", &with_endpoints("e1:R")) else { return };
    let (http, dns) = (node_port(30_080), node_port(30_053));
    let up = "203.0.113.10:40000";
    let [_, (_, first)] = node.through(&syn(up, &http));
    node.through(&ack(up, &http));
    node.through(&syn(CLIENT, &http));
    let [_, (source, server)] = node.through(&udp(CLIENT, &dns));
    assert_eq!(server, address("10.1.0.1:5353"));
    follow(&node, &with_endpoints("e2:R"));
    assert_eq!(node.through(&ack(up, &http))[1].1, first, "it stays");
    assert_eq!(node.through(&syn(CLIENT, &http))[1].1, address("10.1.0.2:8080"), "sent again");
    let [_, (new_source, new_server)] = node.through(&udp(CLIENT, &dns));
    assert_eq!(new_server, address("10.1.0.2:5353"));
    // An answer of the former one that was on its way, and one of the new one.
    for (source, server) in [(source, server), (new_source, new_server)] {
        let answer = udp(&server.to_string(), &source.to_string());
        assert_eq!(node.through(&answer)[1], (address(&dns), address(CLIENT)));
    }
    // The last one goes: refused at once, and there is no flow that each packet would keep.
    follow(&node, &with_endpoints(""));
    for _ in 0..2 {
        node.pay_for_refusals();
        let frame = udp(CLIENT, &dns);
        assert_eq!(node.run("shunt_ingress", &frame), (REDIRECT, refused::refusal(&frame)));
    }
    let udp_flows = |node: &Node| {
        let flows = Remembered::of(node).flows();
        flows.iter().filter(|(client, _)| client.protocol == 17).count()
    };
    assert_eq!(udp_flows(&node), 0);
    // It comes back, and the Service goes.
    follow(&node, &with_endpoints("e3:R"));
    assert_eq!(node.through(&udp(CLIENT, &dns))[0].1, address("10.1.0.3:5353"));
    follow(&node, &planned([], []));
    for frame in [udp(CLIENT, &dns), udp(CLIENT, "10.96.0.1:53")] {
        assert_eq!(node.run("shunt_ingress", &frame), (NEXT, frame));
    }
}

/// So many flows, each with one element that leads back to it, as fill the large tables.
fn fill(tables: &Remembered, flows: u32, seen: u32) {
    for number in 0..flows {
        let client = Ends {
            from: proxy_abi::mapped((0x0a00_0000 + number).to_be()),
            to: proxy_abi::mapped(0xc000_0201_u32.to_be()),
            from_port: 40_000_u16.to_be(),
            to_port: 30_080_u16.to_be(),
            // Datagrams and connections.
            protocol: if number % 2 == 0 { 17 } else { 6 },
            padding: [0; 3],
        };
        let connection = Connection {
            endpoint: proxy_abi::mapped(0x0a01_0001_u32.to_be()),
            endpoint_port: 8080_u16.to_be(),
            client_port: client.from_port,
            state: State::Open as u8,
            seen,
            ..Connection::default()
        };
        tables.0.large.add_connection(&client, &connection).unwrap();
        for (key, translation) in leading_back(&client, &connection) {
            tables.0.large.add_translation(&key, &translation).unwrap();
        }
    }
}

#[test]
#[expect(clippy::print_stderr, reason = "what it takes is a figure, and no fact to be asserted")]
fn full_tables_are_looked_through_and_emptied() {
    const FLOWS: u32 = 120_000;
    let Some(node) = Node::with("flows-full", &with_endpoints(FIVE)) else { return };
    let (tables, now) = (Remembered::of(&node), now().unwrap());
    fill(&tables, FLOWS, now);
    let known = tables.flows().len() as u64;
    for (idle, what) in [(0, "which all go on"), (86_401, "which all end")] {
        let cpu = || nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
        let begun = cpu();
        let timeouts = FlowTimeouts::default();
        let found = collect(&tables.0, &timeouts, now.wrapping_add(idle), &CancellationToken::new()).unwrap();
        let took = std::time::Duration::from(cpu() - begun);
        eprintln!("{known} flows and what leads back to them, {what}: {took:?} of a processor");
        let wanted = if idle == 0 { (known, 0) } else { (0, known) };
        assert_eq!((found.kept, found.ended), wanted);
    }
    assert!(tables.is_empty());
}
