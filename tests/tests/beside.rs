//! Packet programs beside what a network plug-in and a policy leave on a node: rules of flannel, a firewall that knows
//! only clients and endpoints, filters at the same devices.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed, its helpers included"
)]

mod support;
mod world;

use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::peer::{CallError, Mode};
use lab::{Node, Place};
use world::{LOCAL, PATIENCE, SERVER, WEB, World, output};

const POD_RANGES: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];
const OUTSIDE: [&str; 2] = ["172.19.0.2", "fd00:19::2"];

fn of_node(node: &Node) -> [IpAddr; 2] {
    [node.ipv4.into(), node.ipv6.into()]
}

/// The rules of flannel's daemon for a node, in both families: it lets pods talk to each other as they are, and an
/// address of the node stands for all others on one side.
fn install_flannel(node: &Node) {
    let families = [("iptables-nft", "224.0.0.0/4"), ("ip6tables-nft", "ff00::/8")];
    for (((command, multicast), pods), own) in families.into_iter().zip(POD_RANGES).zip(node.pod_cidrs()) {
        let rules = [
            "-t nat -N FLANNEL-POSTRTG".to_owned(),
            "-t nat -A POSTROUTING -j FLANNEL-POSTRTG".to_owned(),
            "-t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN".to_owned(),
            format!("-t nat -A FLANNEL-POSTRTG -s {own} -d {pods} -j RETURN"),
            format!("-t nat -A FLANNEL-POSTRTG -s {pods} -d {own} -j RETURN"),
            format!("-t nat -A FLANNEL-POSTRTG ! -s {pods} -d {own} -j RETURN"),
            format!("-t nat -A FLANNEL-POSTRTG -s {pods} ! -d {multicast} -j MASQUERADE --random-fully"),
            format!("-t nat -A FLANNEL-POSTRTG ! -s {pods} -d {pods} -j MASQUERADE --random-fully"),
            "-N FLANNEL-FWD".to_owned(),
            format!("-A FLANNEL-FWD -s {pods} -j ACCEPT"),
            format!("-A FLANNEL-FWD -d {pods} -j ACCEPT"),
            "-A FORWARD -j FLANNEL-FWD".to_owned(),
            "-P FORWARD DROP".to_owned(),
        ];
        output(node, &rules.map(|rule| format!("{command} -w {rule}")).join(" && "));
    }
}

/// How many connections flannel's rules have masqueraded.
fn masqueraded(node: &Node) -> u64 {
    let list = "for c in iptables-nft ip6tables-nft; do $c -t nat -vnxL FLANNEL-POSTRTG; done";
    let text = output(node, list);
    let rules = text.lines().filter(|line| line.contains("MASQUERADE"));
    rules.map(|line| line.split_whitespace().next().unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn flannels_rules_change_sources_before_the_programs_do_and_answers_are_recognised() {
    let Some(world) = World::routed("flannel") else { return };
    world.nodes.iter().for_each(install_flannel);
    let port = SERVER.to_string();
    let _far = world.lab.outside.serve("far", &["--tcp", &port, "--udp", &port]).unwrap();
    let node = of_node(&world.nodes[0]);
    world.check_services(&node);
    for to in world.frontends(&WEB) {
        world.check(&world.client, to, &["web-0", "web-1"], &node);
    }
    // Flannel's own work: pods reach hosts outside.
    for to in OUTSIDE.map(|ip| SocketAddr::new(ip.parse().unwrap(), SERVER)) {
        world.check(&world.client, to, &["far"], &node);
    }
    assert!(masqueraded(&world.nodes[0]) > 50, "the rules have hardly been used");
}

/// TCP and UDP to port 7000 of pods, from clients as they are, and nothing else is forwarded.
fn install_policy(node: &Node, client: &[IpAddr; 2], answers: &str) {
    let [outside4, outside6] = OUTSIDE;
    let [pods4, pods6] = POD_RANGES;
    let [client4, client6] = client;
    let known = "meta l4proto { tcp, udp } th";
    let rules = format!(
        "table inet firewall {{
            chain forward {{
                type filter hook forward priority filter; policy drop;
                {answers}
                ip saddr {{ {outside4}, {client4} }} ip daddr {pods4} {known} dport {SERVER} accept
                ip6 saddr {{ {outside6}, {client6} }} ip6 daddr {pods6} {known} dport {SERVER} accept
                counter drop
            }}
        }}"
    );
    output(node, &format!("nft -f - <<'END'\n{rules}\nEND"));
}

/// `answers`: what lets endpoints answer.
#[track_caller]
fn check_policy(name: &str, answers: &str) {
    let Some(world) = World::routed(name) else { return };
    let node = &world.nodes[0];
    install_policy(node, &[world.client.ipv4.into(), world.client.ipv6.into()], answers);
    let denied = || output(node, "nft list chain inet firewall forward | grep -o 'counter packets [0-9]*'");
    world.check_services(&of_node(node));
    assert_eq!(denied(), "counter packets 0");
    // It denies what it does not accept: the other port of the same Services.
    for service in [WEB, LOCAL] {
        for to in service.node_ports(node) {
            let (before, to) = (denied(), SocketAddr::new(to.ip(), to.port() + 1));
            let attempts =
                world.lab.outside.connect_with(to, Mode::Tcp, &["--count", "1", "--timeout", "300"]).unwrap();
            assert_eq!(attempts[0].error, Some(CallError::TimedOut), "{to}");
            assert_ne!(denied(), before, "{to}");
        }
    }
}

#[test]
fn a_policy_of_clients_and_endpoints_holds_with_the_kernels_tracking() {
    check_policy("policyct", "ct state invalid drop\nct state established,related accept");
}

#[test]
fn a_policy_of_clients_and_endpoints_holds_without_the_kernels_tracking() {
    let [pods4, pods6] = POD_RANGES;
    let from =
        |family: &str, pods: &str| format!("{family} saddr {pods} meta l4proto {{ tcp, udp }} th sport 7000 accept");
    check_policy("policy", &format!("{}\n{}", from("ip", pods4), from("ip6", pods6)));
}

/// A filter of a network plug-in in the kernel's classic bytecode. It drops IPv4 that is not between clients and
/// endpoints: TCP to port 7000 that is not of the client outside or a pod, and TCP from what clients dial.
fn plug_in_filter() -> String {
    let (node_port, outside, pods) = (WEB.node_port, u32::from_be_bytes([172, 19, 0, 2]), 10 << 8 | 244);
    let program = [
        "40 0 0 12",                    // 0: what the frame holds,
        "21 0 11 2048",                 // 1: unless it is IPv4: pass
        "48 0 0 23",                    // 2: the protocol,
        "21 0 9 6",                     // 3: unless it is TCP: pass
        "40 0 0 34",                    // 4: the source port,
        &format!("21 8 0 {node_port}"), // 5: if it is what a client has dialled: drop
        "21 7 0 80",                    // 6: the same
        "40 0 0 36",                    // 7: the destination port,
        &format!("21 0 4 {SERVER}"),    // 8: unless it is an endpoint's: pass
        "32 0 0 26",                    // 9: the source,
        &format!("21 2 0 {outside}"),   // 10: if it is the client outside: pass
        "116 0 0 16",                   // 11: its first half,
        &format!("21 0 1 {pods}"),      // 12: if it is a pod's: pass, else drop
        "6 0 0 4294967295",             // 13: pass to the next
        "6 0 0 2",                      // 14: drop
    ];
    format!("{},{},", program.len(), program.join(","))
}

fn wait_for(place: &Place, command: &str, wanted: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = output(place, command);
        if said.contains(wanted) {
            return;
        }
        assert!(Instant::now() < deadline, "{command} of {} does not say {wanted}: {said}", place.name());
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn filters_of_others_at_the_same_devices_see_clients_and_endpoints() {
    let Some(world) = World::routed("clsact") else { return };
    let node = &world.nodes[0];
    let devices = output(node, "ip -o link show type veth | cut -d: -f2 | cut -d@ -f1");
    for device in devices.split_whitespace() {
        let filter = plug_in_filter();
        output(node, &format!("tc qdisc add dev {device} clsact 2>/dev/null || true"));
        output(node, &format!("tc filter add dev {device} egress prio 10 bpf da bytecode '{filter}'"));
        wait_for(node, &format!("tc filter show dev {device} egress"), "shunt_egress");
    }
    world.check_services(&of_node(node));
}
