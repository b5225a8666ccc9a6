//! Packets through the programs by the kernel's test-run, byte for byte; these need root.

mod bad;
mod decisions;
mod errors;
mod flows;
mod fragments;
mod many;
mod redirects;
mod refused;

mod sctp;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use aya::maps::{PerCpuArray, PerCpuValues};
use aya::programs::{TestRun as _, TestRunOptions};
use etherparse::{PacketBuilder, PacketHeaders, TransportHeader};
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;
use proxy_abi::{Config, Device, maps};
use shunt_model::{Family, Protocol};

use super::super::layout::{Capacity, Layout};
use super::super::tables::addresses::Addresses;
use super::super::tables::bits::AddressBits;
use super::super::tables::kernel::Tables;
use super::super::tables::service_ranges::ServiceRanges;
use super::super::{image, pins};
use super::*;
use crate::datapath::nftables::walk::Walk;
use crate::datapath::packets::{PacketOutcome, cases};
use crate::host::netns::tests::is_root;
use crate::plan::fixture::{cluster, ip, options, service, set_node, slice};
use crate::plan::properties::{NODE_ADDRESSES, any_cluster, any_options};
use crate::plan::{Packet, Plan, Source, plan};
use crate::sys::bpf;
use crate::sys::run::run_with_sum;

/// `lo`, by which packets of a test-run come in and leave.
const DEVICE: u32 = 1;
const NEXT: u32 = u32::MAX;
const DROP: u32 = 2;
/// `TC_ACT_REDIRECT`.
const REDIRECT: u32 = 7;

/// The programs on the tables of a plan.
struct Node {
    root: PathBuf,
    pins: Pins,
    loaded: Loaded,
}

impl Node {
    #[expect(clippy::print_stderr, reason = "a skipped test must be seen")]
    fn with(test: &str, plan: &Plan) -> Option<Self> {
        if OBJECT.is_empty() {
            eprintln!("SKIPPED {test}: built without BPF programs (cargo xtask build)");
            return None;
        }
        if !is_root(test) {
            return None;
        }
        let root = PathBuf::from(format!("/sys/fs/bpf/shunt-unit-{}-{test}", std::process::id()));
        let pins = Pins::create(&root).unwrap();
        let loaded = Loaded::load(OBJECT, &pins).unwrap_or_else(|error| panic!("{error}"));
        let mut tables = Tables::open(&pins.maps).unwrap();
        let (mut layout, mut addresses) = (Layout::new(Capacity::default()), Addresses::default());
        for port in plan.ports.values() {
            let target = image::target(port).unwrap();
            layout.upsert(&port.key, &target, 0).unwrap().iter().for_each(|write| tables.write(write).unwrap());
        }
        tables.flush().unwrap();
        addresses.follow(&plan.addresses);
        let (set, _) = addresses.take_changes();
        AddressBits::open(&pins.maps).unwrap().set(set.iter().map(|(address, _)| *address)).unwrap();
        tables.set_addresses(&set).unwrap();
        ServiceRanges::open(&pins.maps).unwrap().apply(&plan.service_cidrs).unwrap();
        // The node's own DNS is open.
        let config = Config { flags: Config::next_generation(0, 0) | Config::DNS_SERVES, ..Config::default() };
        let map = bpf::open_pin(&pins.maps.of(&maps::CONFIG)).unwrap();
        let element: [u8; size_of::<Config>()] = zerocopy::transmute!(config);
        bpf::update(map.as_fd(), &0_u32.to_ne_bytes(), &element).unwrap();
        let node = Self { root, pins, loaded };
        node.set_device(0);
        Some(node)
    }

    fn set_device(&self, flags: u32) {
        let [v4, v6] = NODE_ADDRESSES.map(ip);
        let address4 = super::super::layout::write::address(v4)[3];
        let device = Device { flags, address4, address6: super::super::layout::write::address(v6), pod: 0 };
        let map = bpf::open_pin(&self.pins.maps.of(&maps::packets::DEVICES)).unwrap();
        let element: [u8; size_of::<Device>()] = zerocopy::transmute!(device);
        bpf::update(map.as_fd(), &DEVICE.to_ne_bytes(), &element).unwrap();
    }

    /// As many refusals may be sent as at the start.
    fn pay_for_refusals(&mut self) {
        let map = self.loaded.ebpf.map_mut("REFUSALS").unwrap();
        let mut map = PerCpuArray::<_, u64>::try_from(map).unwrap();
        let values = vec![0; aya::util::nr_cpus().unwrap()];
        map.set(0, PerCpuValues::try_from(values).unwrap(), 0).unwrap();
    }

    /// What a program returns, and the packet after it. Where the kernel can, it gives the packet the sum over it, as
    /// devices do, and compares it afterwards.
    fn run(&mut self, program: &'static str, frame: &[u8]) -> (u32, Vec<u8>) {
        if !program.ends_with("_ip") {
            let mut after = vec![0; frame.len() + 256];
            let program = self.loaded.program(program).unwrap();
            match run_with_sum(program.fd().unwrap().as_fd(), frame, &mut after) {
                Ok(verdict) => return (verdict, after),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => panic!("{error}: {frame:02x?}"),
            }
        }
        self.run_without_sum(program, frame)
    }

    /// The same for a packet that is cut, with which the kernel gives up its sum, and yet compares it.
    fn run_without_sum(&mut self, program: &'static str, frame: &[u8]) -> (u32, Vec<u8>) {
        let mut after = vec![0; frame.len() + 256];
        let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut after), ..TestRunOptions::default() };
        let result = self.loaded.program(program).unwrap().test_run(options).unwrap();
        let length = usize::try_from(result.data_size_out).unwrap();
        after.truncate(length);
        (result.return_value, after)
    }

    /// A packet that comes in and leaves.
    #[track_caller]
    fn through(&mut self, frame: &[u8]) -> [Seen; 2] {
        let (verdict, inside) = self.run("shunt_ingress", frame);
        assert_eq!(verdict, NEXT);
        let (verdict, after) = self.run("shunt_egress", &inside);
        assert_eq!(verdict, NEXT);
        [seen(&inside), seen(&after)]
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Nothing is done about a failure: what is left shows by its name.
        drop(pins::remove(&self.root, pins::Owner::Devices));
    }
}

/// The Ethernet addresses of frames; `lo` has the address 0.
const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 1];
const NODE: [u8; 6] = [0; 6];

/// The ends of a packet whose checksums are right.
type Seen = (SocketAddr, SocketAddr);

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn tcp(from: &str, to: &str, change: impl FnOnce(&mut etherparse::TcpHeader)) -> Vec<u8> {
    let (from, to) = (address(from), address(to));
    let mut header = etherparse::TcpHeader::new(from.port(), to.port(), 7, 1024);
    change(&mut header);
    let builder = ip_between(from.ip(), to.ip()).tcp_header(header);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, b"payload").unwrap();
    bytes
}

fn syn(from: &str, to: &str) -> Vec<u8> {
    tcp(from, to, |header| header.syn = true)
}

fn ack(from: &str, to: &str) -> Vec<u8> {
    tcp(from, to, |header| header.ack = true)
}

fn udp(from: &str, to: &str) -> Vec<u8> {
    let (from, to) = (address(from), address(to));
    let mut bytes = Vec::new();
    ip_between(from.ip(), to.ip()).udp(from.port(), to.port()).write(&mut bytes, b"payload").unwrap();
    bytes
}

fn ip_between(from: IpAddr, to: IpAddr) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    let ethernet = PacketBuilder::ethernet2(SENDER, NODE);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        (from, to) => panic!("{from} and {to} are of two families"),
    }
}

/// Reads the ends of a packet, and checks its checksums.
#[track_caller]
fn seen(frame: &[u8]) -> Seen {
    let packet = PacketHeaders::from_ethernet_slice(frame).unwrap();
    let payload = packet.payload.slice();
    let (net, transport) = (packet.net.unwrap(), packet.transport.unwrap());
    let (from, to): (IpAddr, IpAddr) = match &net {
        etherparse::NetHeaders::Ipv4(header, _) => {
            assert_eq!(header.header_checksum, header.calc_header_checksum(), "of the header");
            (header.source.into(), header.destination.into())
        }
        etherparse::NetHeaders::Ipv6(header, _) => (header.source.into(), header.destination.into()),
        other => panic!("{other:?}"),
    };
    let (from_port, to_port, found, right) = match transport {
        TransportHeader::Tcp(header) => {
            let right = match (from, to) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    header.calc_checksum_ipv4_raw(from.octets(), to.octets(), payload)
                }
                (IpAddr::V6(from), IpAddr::V6(to)) => {
                    header.calc_checksum_ipv6_raw(from.octets(), to.octets(), payload)
                }
                _ => panic!("{from} {to}"),
            };
            (header.source_port, header.destination_port, header.checksum, right.unwrap())
        }
        TransportHeader::Udp(header) => {
            let right = match (from, to) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    header.calc_checksum_ipv4_raw(from.octets(), to.octets(), payload)
                }
                (IpAddr::V6(from), IpAddr::V6(to)) => {
                    header.calc_checksum_ipv6_raw(from.octets(), to.octets(), payload)
                }
                _ => panic!("{from} {to}"),
            };
            (header.source_port, header.destination_port, header.checksum, right.unwrap())
        }
        other @ (TransportHeader::Icmpv4(_) | TransportHeader::Icmpv6(_) | TransportHeader::Igmp(_)) => {
            panic!("{other:?}")
        }
    };
    assert_eq!(found, right, "of {from} to {to}");
    (SocketAddr::new(from, from_port), SocketAddr::new(to, to_port))
}

/// One Service with a node port and an external IP, one endpoint on another node.
fn one_endpoint(words: &str) -> Plan {
    let service = service(
        "web",
        &format!("ip=10.96.0.1 ip=fd00:96::1 port=http:80/tcp np=30080 port=dns:53/udp np=30053 {words}"),
    );
    let slices = [
        slice("web", "x", "http:8080/tcp dns:5353/udp", "e1:R"),
        slice("web", "y", "http:8080/tcp dns:5353/udp", "f1:R"),
    ];
    let mut snapshot = cluster([service], slices);
    set_node(&mut snapshot, None, &NODE_ADDRESSES);
    plan(&snapshot, &options()).0
}

/// `address:port`, with brackets where they belong.
fn at(ip: IpAddr, port: u16) -> String {
    SocketAddr::new(ip, port).to_string()
}

#[test]
fn a_flow_through_a_node_port_is_translated_in_both_directions() {
    let plan = one_endpoint("");
    let Some(mut node) = Node::with("node-port", &plan) else { return };
    for (family, client, endpoint) in [(Family::V4, "203.0.113.9", "10.1.0.1"), (Family::V6, "2001:db8::9", "fd00::1")]
    {
        let [v4, v6] = NODE_ADDRESSES.map(ip);
        let own = if family == Family::V4 { v4 } else { v6 };
        let (client, endpoint) = (ip(client), ip(endpoint));
        type Make = fn(&str, &str) -> Vec<u8>;
        for (make, again, node_port, target) in
            [(syn as Make, ack as Make, 30_080, 8080), (udp as Make, udp as Make, 30_053, 5353)]
        {
            let (from, to) = (at(client, 40_000), at(own, node_port));
            let [inside, outside] = node.through(&make(&from, &to));
            let server = SocketAddr::new(endpoint, target);
            assert_eq!(inside, (address(&from), server), "at ingress only the destination changes");
            let (source, destination) = outside;
            assert_eq!((source.ip(), destination), (own, server), "the node stands for the client");
            // The answer, and what the client sends then.
            let [inside, answered] = node.through(&again(&server.to_string(), &source.to_string()));
            assert_eq!(inside, (server, address(&from)));
            assert_eq!(answered, (address(&to), address(&from)));
            assert_eq!(node.through(&again(&from, &to)), [(address(&from), server), (source, server)]);
            assert_eq!(node.through(&again(&server.to_string(), &source.to_string()))[1], answered);
        }
    }
}

#[test]
fn what_is_not_ours_goes_on_as_it_came() {
    let plan = one_endpoint("ext=192.0.2.1");
    let Some(mut node) = Node::with("not-ours", &plan) else { return };
    let [own, _] = NODE_ADDRESSES.map(ip);
    for frame in [
        syn("203.0.113.9:40000", "198.51.100.7:80"),
        syn("203.0.113.9:40000", &at(own, 22)),
        ack("203.0.113.9:40000", "192.0.2.1:80"),
        udp("203.0.113.9:40000", "192.0.2.1:54"),
        syn("[2001:db8::9]:40000", "[2001:db8::7]:80"),
    ] {
        for program in ["shunt_ingress", "shunt_egress"] {
            assert_eq!(node.run(program, &frame), (NEXT, frame.clone()), "{:?}", seen(&frame));
        }
    }
}

/// The first packet of a flow.
fn first_packet(packet: &Packet) -> Option<Vec<u8>> {
    let from = at(packet.source_address?, 40_000);
    let to = at(packet.destination, packet.port);
    match packet.protocol {
        Protocol::Tcp => Some(syn(&from, &to)),
        Protocol::Udp => Some(udp(&from, &to)),
        Protocol::Sctp => None,
    }
}

/// Everything that a plan names gets from the programs what the plan says, and what the rules of nftables give it.
#[test]
fn packets_get_what_the_plan_says() {
    let mut runner = TestRunner::deterministic();
    let mut met = HashSet::new();
    let mut plans = vec![cases::story().0];
    for _ in 0..8 {
        let snapshot = any_cluster().new_tree(&mut runner).unwrap().current();
        let options = any_options().new_tree(&mut runner).unwrap().current();
        plans.push(plan(&snapshot, &options).0);
    }
    for (turn, plan) in plans.into_iter().enumerate() {
        let Some(mut node) = Node::with(&format!("plan-{turn}"), &plan) else { return };
        let rules = Walk::of(&plan, cases::PACKETS);
        for source in [Source::Outside, Source::Pod] {
            node.set_device(if source == Source::Pod { Device::PODS } else { 0 });
            for packet in cases::packets(&plan).iter().filter(|packet| packet.source == source) {
                let Some(frame) = first_packet(packet) else { continue };
                node.pay_for_refusals();
                let (verdict, after) = node.run("shunt_ingress", &frame);
                let wanted = cases::in_words(&plan, packet);
                assert_eq!(rules.outcome(packet), wanted, "{packet:?}");
                met.insert(std::mem::discriminant(&wanted));
                match wanted {
                    PacketOutcome::Endpoints { addresses, .. } => {
                        assert_eq!(verdict, NEXT, "{packet:?}");
                        let (from, to) = seen(&after);
                        assert!(addresses.contains(&to), "{packet:?} to {to}");
                        // Another port stands for the client's if it reaches the endpoint by another frontend too.
                        assert_eq!(from.ip(), seen(&frame).0.ip(), "{packet:?}");
                    }
                    PacketOutcome::Pass => assert_eq!((verdict, after), (NEXT, frame), "{packet:?}"),
                    PacketOutcome::Reject => {
                        assert_eq!((verdict, after), (REDIRECT, refused::refusal(&frame)), "{packet:?}");
                    }
                    PacketOutcome::Drop => assert_eq!(verdict, DROP, "{packet:?}"),
                }
            }
        }
    }
    assert_eq!(met.len(), 4, "{met:?}");
}
