//! Much data through packet programs, with a source of this node and with the client's own, in frames of either size;
//! and through a smaller hop, whose router tells its senders.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed, its helpers included"
)]
#![expect(clippy::print_stderr, reason = "figures are printed, not asserted")]

mod support;
mod world;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lab::Place;
use lab::peer::{SwarmLine, TransferLine};
use world::{LOCAL, Service, WEB, World, output};

/// For one transfer of the largest size.
const PATIENCE: Duration = Duration::from_secs(300);
/// Through a smaller hop.
const SOME: u64 = 2 << 20;
/// A large datagram.
const LARGE: u32 = 8000;
/// What a router on the way lets through.
const SMALLER: u32 = 1400;

/// How many bytes each transfer has; the figures of the documentation were measured with 2^30.
fn bytes() -> u64 {
    std::env::var("SHUNT_TRANSFER").map_or(32 << 20, |number| number.parse().unwrap())
}

/// The node ports for many bytes.
fn bulk_ports(world: &World, service: &Service) -> [SocketAddr; 2] {
    service.node_ports(&world.nodes[0]).map(|to| SocketAddr::new(to.ip(), to.port() + 1))
}

/// Transfers in one direction; what arrives is what was sent.
#[track_caller]
fn transfer(world: &World, to: SocketAddr, bytes: u64, direction: &[&str]) -> TransferLine {
    let (to, bytes) = (to.to_string(), bytes.to_string());
    let arguments = [&["transfer", "--to", &to, "--bytes", &bytes], direction].concat();
    let line: TransferLine = world.lab.outside.ask(&arguments, PATIENCE).unwrap().remove(0);
    assert!(line.sent == line.received && line.sent.len() == 64, "{line:?}\n{}", world.lab.logs());
    line
}

/// Gives all links of the lab frames of this size.
fn set_mtu(world: &World, mtu: u32) {
    let pods = [world.server(0), world.server(1), &world.client].map(|pod| &**pod);
    let nodes = [&world.nodes[0], &world.nodes[1]].map(|node| node.host());
    for place in [&world.lab.router, &world.lab.outside].into_iter().chain(nodes).chain(pods) {
        let each = "for d in $(ip -o link show type veth | cut -d: -f2 | cut -d@ -f1); do";
        output(place, &format!("{each} ip link set $d mtu {mtu} || exit 1; done"));
    }
}

#[test]
fn much_data_arrives_as_it_was_sent_in_frames_of_either_size() {
    let Some(world) = World::routed("transfer") else { return };
    for mtu in [1500, 9000] {
        set_mtu(&world, mtu);
        for service in [WEB, LOCAL] {
            for to in bulk_ports(&world, &service) {
                for direction in [&[][..], &["--down"]] {
                    let line = transfer(&world, to, bytes(), direction);
                    let rate = u128::from(line.bytes) / 1000 / line.milliseconds.max(1);
                    eprintln!("mtu {mtu}, policy {}, {to} {direction:?}: {rate} MB/s", service.policy);
                }
            }
        }
        // They are in one piece in large frames.
        if mtu > LARGE {
            check_large_datagrams(&world);
        }
    }
}

/// Datagrams of so many bytes come and go.
fn check_large_datagrams(world: &World) {
    for service in [WEB, LOCAL] {
        for to in service.node_ports(&world.nodes[0]) {
            let (to, bytes) = (to.to_string(), LARGE.to_string());
            let arguments = ["swarm", "--to", &to, "--count", "8", "--bytes", &bytes];
            let line: SwarmLine = world.lab.outside.ask(&arguments, PATIENCE).unwrap().remove(0);
            assert_eq!((line.answered, line.silent, line.mixed_up), (8, 0, 0), "{to}\n{}", world.lab.logs());
        }
    }
}

/// The addresses of two ends, family by family, and how `ip` is told of which it is.
fn pairs(from: [IpAddr; 2], to: [IpAddr; 2]) -> impl Iterator<Item = (&'static str, u8, IpAddr, IpAddr)> {
    [("-4", 32), ("-6", 128)].into_iter().zip(from).zip(to).map(|(((flag, length), from), to)| (flag, length, from, to))
}

/// The kernel of a place has learned that less goes through to `to`.
#[track_caller]
fn check_learned(place: &Place, flag: &str, to: IpAddr) {
    let route = output(place, &format!("ip {flag} route get {to}"));
    assert!(route.contains(&format!("mtu {SMALLER}")), "{} to {to}: {route}", place.name());
}

/// Else a server that has learned offers smaller segments, and its client need not learn.
fn forget(place: &Place) {
    output(place, "ip -4 route flush cache && ip -6 route flush cache");
}

const OUTSIDE: [&str; 2] = ["172.19.0.2", "fd00:19::2"];

fn addresses(v4: impl Into<IpAddr>, v6: impl Into<IpAddr>) -> [IpAddr; 2] {
    [v4.into(), v6.into()]
}

/// The router between has a smaller hop in both directions.
#[test]
fn senders_learn_of_a_smaller_hop_when_a_node_stands_for_the_client() {
    let Some(world) = World::routed("smallnat") else { return };
    world.put_pods(&["web-1"]);
    let (node, far, server) = (&world.nodes[0], &world.nodes[1], world.server(1));
    let (of_node, outside) = (addresses(node.ipv4, node.ipv6), OUTSIDE.map(|ip| ip.parse().unwrap()));
    let hops = addresses(far.ipv4, far.ipv6);
    for ((flag, length, server, hop), client) in pairs(addresses(server.ipv4, server.ipv6), hops).zip(outside) {
        let add = format!("ip {flag} route add");
        let lock = format!("mtu lock {SMALLER}");
        output(&world.lab.router, &format!("{add} {server}/{length} via {hop} {lock}"));
        output(&world.lab.router, &format!("{add} {client}/{length} dev outer {lock}"));
    }
    for ((flag, .., of_node), to) in pairs(outside, of_node).zip(bulk_ports(&world, &WEB)) {
        world.wait_for(&world.lab.outside, to_web(to), lab::peer::Mode::Tcp, &["web-1"]);
        transfer(&world, to, SOME, &["--down"]);
        check_learned(server, flag, of_node);
        forget(server);
        transfer(&world, to, SOME, &[]);
        check_learned(&world.lab.outside, flag, of_node);
    }
}

/// The port of the same Service that greets.
fn to_web(bulk: SocketAddr) -> SocketAddr {
    SocketAddr::new(bulk.ip(), bulk.port() - 1)
}

/// The node itself has the smaller hop before the endpoint, and the router the one before the client.
#[test]
fn senders_learn_of_a_smaller_hop_when_the_client_keeps_its_address() {
    let Some(world) = World::routed("smallown") else { return };
    let (node, server) = (&world.nodes[0], world.server(0));
    let (of_node, outside) = (addresses(node.ipv4, node.ipv6), OUTSIDE.map(|ip| ip.parse().unwrap()));
    let device = output(node, &format!("ip -4 -o route get {} | sed 's/.* dev \\([^ ]*\\).*/\\1/'", server.ipv4));
    for ((flag, length, server, own), client) in pairs(addresses(server.ipv4, server.ipv6), of_node).zip(outside) {
        let lock = format!("mtu lock {SMALLER}");
        output(node, &format!("ip {flag} route change {server}/{length} dev {device} src {own} {lock}"));
        output(&world.lab.router, &format!("ip {flag} route add {client}/{length} dev outer {lock}"));
    }
    for ((flag, _, client, of_node), to) in pairs(outside, of_node).zip(bulk_ports(&world, &LOCAL)) {
        transfer(&world, to, SOME, &["--down"]);
        check_learned(server, flag, client);
        forget(server);
        transfer(&world, to, SOME, &[]);
        check_learned(&world.lab.outside, flag, of_node);
    }
}
