//! Packet programs under floods: spoofed SYNs beside established flows, many flows of one client, an endpoint that is
//! unplugged.
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

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use lab::peer::{CrowdLine, FloodLine, Mode, SwarmLine, now};
use lab::{Node, Process};
use world::{LOCAL, WEB, World, output};

const PATIENCE: Duration = Duration::from_secs(300);

/// A number of the environment; the figures of the documentation were measured with larger ones.
fn number(name: &str, usual: usize) -> usize {
    std::env::var(name).map_or(usual, |number| number.parse().unwrap())
}

/// Established flows of the client outside.
struct Crowd {
    process: Process,
}

impl Crowd {
    fn open(
        world: &World,
        to: impl Iterator<Item = SocketAddr>,
        count: usize,
        patience: Duration,
    ) -> (Self, CrowdLine) {
        let to = to.map(|to| to.to_string()).collect::<Vec<_>>().join(",");
        let (count, timeout) = (count.to_string(), patience.as_millis().to_string());
        let arguments = ["--to", &to, "--count", &count, "--timeout", &timeout];
        let process = world.lab.outside.listening_peer("crowd", &arguments).unwrap();
        let crowd = Self { process };
        let line = crowd.line();
        (crowd, line)
    }

    fn line(&self) -> CrowdLine {
        let line = self.process.wait_for_line(PATIENCE, |_| true).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// All of them say something.
    fn talk(&mut self) -> CrowdLine {
        self.process.say("talk").unwrap();
        self.line()
    }
}

/// How many elements a map of the programs has.
fn elements(world: &World, map: &str) -> usize {
    let root = world.daemons[0].bpf_root();
    let dump = format!("bpftool -j map dump pinned $(find {} -name {map} | head -1)", root.display());
    output(&world.nodes[0], &format!("{dump} | grep -o '\"key\"' | wc -l")).trim().parse().unwrap()
}

#[track_caller]
fn check_flood(name: &str, prepare: impl Fn(&Node)) {
    let (syns, flows) = (number("SHUNT_SYNS", 40_000), number("SHUNT_FLOWS", 200));
    let Some(world) = World::routed(name) else { return };
    prepare(&world.nodes[0]);
    // Where the answers go.
    output(&world.lab.router, "ip route add blackhole 198.18.0.0/15");
    let to = world.frontends(&WEB).chain(world.frontends(&LOCAL));
    let (mut crowd, opened) = Crowd::open(&world, to, flows, Duration::from_secs(20));
    assert_eq!((opened.all(), opened.failed), (flows, 0), "{opened:?}");
    let [target, _] = WEB.node_ports(&world.nodes[0]);
    let mut client = world.lab.outside.connect_loop(target, Mode::Tcp, 10).unwrap();
    client.wait_for_attempts(0, 1).unwrap();
    let began = now();
    let arguments = ["flood", "--to", &target.to_string(), "--count", &syns.to_string()];
    let flood = world.lab.outside.peer(&arguments).unwrap();
    let (mut rounds, mut done) = (0, Vec::new());
    while done.is_empty() {
        let line = crowd.talk();
        rounds += 1;
        assert_eq!((line.all(), line.failed), (flows, 0), "{line:?}\n{}", world.lab.logs());
        done = flood.pending_lines();
    }
    let ended = now();
    let line = crowd.talk();
    assert_eq!((line.all(), line.failed), (flows, 0), "{line:?}\n{}", world.lab.logs());
    let done: FloodLine = serde_json::from_str(&done[0]).unwrap();
    assert_eq!(usize::try_from(done.sent).unwrap(), syns);
    let full = elements(&world, "OPENINGS");
    assert!(full > 8_192, "the table of openings has not been filled: {full}");
    client.wait_for_attempts(ended, 5).unwrap();
    let all = client.attempts().unwrap();
    let meanwhile: Vec<_> = all.iter().filter(|attempt| (began..ended).contains(&attempt.began)).collect();
    let through = meanwhile.iter().filter(|attempt| attempt.error.is_none()).count();
    eprintln!(
        "{name}: {syns} SYNs in {} ms; {flows} flows went on in {rounds} rounds; {through} of {} new clients got through",
        done.milliseconds,
        meanwhile.len()
    );
    // Whoever comes afterwards is served.
    for to in world.frontends(&WEB) {
        world.wait_for(&world.lab.outside, to, Mode::Tcp, &["web-0", "web-1"]);
    }
}

#[test]
fn a_flood_of_syns_ends_no_flow() {
    check_flood("flood", |_| {});
}

#[test]
fn a_flood_of_syns_ends_no_flow_where_the_kernel_tracks_them_too() {
    let tracks = "nft -f - <<'END'
table inet tracking {
    chain forward {
        type filter hook forward priority filter; policy accept;
        ct state established,related accept
        ct state invalid drop
    }
}
END";
    check_flood("floodct", |node| drop(output(node, tracks)));
}

#[test]
fn many_flows_of_one_client_to_one_endpoint_are_answered_or_dropped_and_never_mixed_up() {
    let count = number("SHUNT_PORTS", 2_000);
    let Some(world) = World::routed("swarm") else { return };
    for (service, server) in [(WEB, "web-1"), (LOCAL, "web-0")] {
        let [to, _] = service.node_ports(&world.nodes[0]);
        world.put_pods(&[server]);
        world.wait_for(&world.lab.outside, to, Mode::Udp, &[server]);
        let arguments = ["swarm", "--to", &to.to_string(), "--count", &count.to_string()];
        let line: SwarmLine = world.lab.outside.ask(&arguments, PATIENCE).unwrap().remove(0);
        eprintln!("{count} flows to {to}: {line:?}");
        assert_eq!((line.mixed_up, line.answered + line.silent), (0, count), "{line:?}");
        // So many ports of the node stand for clients.
        assert!(line.answered >= count.min(28_000), "{line:?}\n{}", world.lab.logs());
    }
}

#[test]
fn an_endpoint_that_is_unplugged_takes_no_other_flow_with_it() {
    let Some(world) = World::routed("unplugged") else { return };
    let (mut crowd, opened) = Crowd::open(&world, world.frontends(&WEB), 40, Duration::from_secs(2));
    let of = |line: &CrowdLine, server: &str| line.answered.get(server).copied().unwrap_or_default();
    assert!(of(&opened, "web-0") > 0 && of(&opened, "web-1") > 0, "{opened:?}");
    assert_eq!(crowd.talk().answered, opened.answered);
    output(world.server(0), "ip link del eth0");
    world.put_pods(&["web-1"]);
    let line = crowd.talk();
    assert_eq!(line.answered, BTreeMap::from([("web-1".to_owned(), of(&opened, "web-1"))]), "{line:?}");
    for to in world.frontends(&WEB) {
        world.wait_for(&world.lab.outside, to, Mode::Tcp, &["web-1"]);
        world.check(&world.lab.outside, to, &["web-1"], &[world.nodes[0].ipv4.into(), world.nodes[0].ipv6.into()]);
    }
    let log = world.daemons[0].log().unwrap();
    assert!(!log.contains("not all network devices"), "{log}");
}
