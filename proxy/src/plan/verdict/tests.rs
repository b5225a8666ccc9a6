//! What each kind of source gets: the decision table, the matrix of endpoints and source NAT, and what sockets get.

use super::*;
use crate::plan::fixture::{NODE, cluster, ip, names, options, pod, service, set_node, slice};
use crate::plan::{Detect, EmptyLocal, PlanOptions, plan};

const NODE_IP: &str = "198.51.100.1";

const ADDRESSES: &str = "ip=10.96.0.1 np=30080 ext=203.0.113.9 vip=192.0.2.1";
const SOURCES: [Source; 3] = [Source::Pod, Source::Node, Source::Outside];

fn shown(verdict: &Verdict<'_>) -> String {
    match verdict {
        Verdict::NotOurs => "not ours".to_owned(),
        Verdict::Forward { endpoints, .. } => names(*endpoints),
        Verdict::Reject => "reject".to_owned(),
        Verdict::Drop => "drop".to_owned(),
    }
}

fn packet(source: Source, to: &str) -> Packet {
    let (address, port) = to.rsplit_once(':').unwrap();
    let destination = if address == "node" { ip(NODE_IP) } else { ip(address) };
    let port = port.parse().unwrap();
    Packet { source, source_address: None, destination, port, protocol: Protocol::Tcp }
}

/// What flows from pod, node and outside get: at the cluster IP, and at every external frontend.
#[track_caller]
fn check(words: &str, detector: Detect, endpoints: &str, internal: [&str; 3], external: [&str; 3]) {
    let service = service("web", &format!("{words} {ADDRESSES}"));
    let mut snapshot = cluster([service], [slice("web", "web-1", "http:80/tcp", endpoints)]);
    set_node(&mut snapshot, None, &[NODE_IP]);
    let (plan, _) = plan(&snapshot, &PlanOptions { detector, ..options() });
    let at = |to| SOURCES.map(|source| shown(&plan.verdict(&packet(source, to))));
    assert_eq!(at("10.96.0.1:80"), internal, "cluster IP");
    for frontend in ["node:30080", "203.0.113.9:80", "192.0.2.1:80"] {
        assert_eq!(at(frontend), external, "{frontend}");
    }
}

#[test]
fn decision_table() {
    let (all, one) = ("e1 e2", "e1");
    let (both, far, gone) = ("e1:Rl; e2:R", "e2:R", "e1:Ul; e2:U");
    let pods = Detect::Both;
    check("", pods, both, [all; 3], [all; 3]);
    check("", pods, gone, ["reject"; 3], ["reject"; 3]); // NE-1
    check("iTP", pods, both, [one; 3], [all; 3]);
    check("iTP", pods, far, ["drop"; 3], ["e2"; 3]); // NE-2
    check("iTP", pods, gone, ["reject"; 3], ["reject"; 3]);
    check("eTP", pods, both, [all; 3], [all, all, one]); // TP-21…23
    check("eTP", pods, far, ["e2"; 3], ["e2", "e2", "drop"]); // NE-3
    check("eTP", pods, gone, ["reject"; 3], ["reject"; 3]);
    check("iTP eTP", pods, both, [one; 3], [all, all, one]);
    check("iTP eTP", pods, far, ["drop"; 3], ["e2", "e2", "drop"]);
}

#[test]
fn without_detector_pods_are_outside() {
    for nothing in [Detect::Nothing, Detect::Only(Family::V6)] {
        check("eTP", nothing, "e1:Rl; e2:R", ["e1 e2"; 3], ["e1", "e1 e2", "e1"]); // TP-19
        check("eTP", nothing, "e2:R", ["e2"; 3], ["drop", "e2", "drop"]);
    }
    check("eTP", Detect::Only(Family::V4), "e1:Rl; e2:R", ["e1 e2"; 3], ["e1 e2", "e1 e2", "e1"]);
}

/// The columns of the matrix that say which endpoints answer (MX-1).
#[test]
fn upstream_matrix() {
    let endpoints = "e1:Rl; e2:R";
    check("", Detect::Both, endpoints, ["e1 e2"; 3], ["e1 e2"; 3]);
    check("eTP", Detect::Both, endpoints, ["e1 e2"; 3], ["e1 e2", "e1 e2", "e1"]);
    check("iTP", Detect::Both, endpoints, ["e1"; 3], ["e1 e2"; 3]);
}

const SNAT: bool = true;
const KEPT: bool = false;

/// Whether flows from pod, node and outside get source NAT: at the cluster IP, and at every external frontend.
#[track_caller]
fn check_snat(words: &str, options: &PlanOptions, internal: [bool; 3], external: [bool; 3]) {
    let service = service("web", &format!("{words} {ADDRESSES}"));
    let mut snapshot = cluster([service], [slice("web", "web-1", "http:80/tcp", "e1:Rl; e2:R")]);
    set_node(&mut snapshot, None, &[NODE_IP]);
    let (plan, _) = plan(&snapshot, options);
    let masquerade = |source, to| {
        let met = plan.decide(&packet(source, to)).reason.and_then(|reason| reason.met()).unwrap();
        for endpoint in met.port.list(met.rule.list) {
            assert!(met.rule.masquerades(endpoint.address.ip(), endpoint), "hairpin, TP-42");
            assert_eq!(met.rule.masquerades(ip("10.1.0.99"), endpoint), met.rule.masquerade);
        }
        met.rule.masquerade
    };
    assert_eq!(SOURCES.map(|source| masquerade(source, "10.96.0.1:80")), internal, "cluster IP");
    for frontend in ["node:30080", "203.0.113.9:80", "192.0.2.1:80"] {
        assert_eq!(SOURCES.map(|source| masquerade(source, frontend)), external, "{frontend}");
    }
    assert_eq!(masquerade(Source::Node, "127.0.0.1:30080"), external[1], "loopback");
}

/// MX-2, whole and with its variants.
#[test]
fn upstream_matrix_of_source_nat() {
    let detector = options();
    let all = PlanOptions { masquerade_all: true, ..options() };
    check_snat("", &detector, [KEPT, SNAT, SNAT], [SNAT; 3]);
    check_snat("eTP", &detector, [KEPT, SNAT, SNAT], [KEPT, SNAT, KEPT]);
    check_snat("iTP", &detector, [KEPT, SNAT, SNAT], [SNAT; 3]);
    check_snat("", &all, [SNAT; 3], [SNAT; 3]);
    check_snat("eTP", &all, [SNAT; 3], [KEPT, SNAT, KEPT]);
    check_snat("iTP", &all, [SNAT; 3], [SNAT; 3]);
    for detector in [Detect::Nothing, Detect::Only(Family::V6)] {
        let nothing = PlanOptions { detector, ..options() };
        check_snat("", &nothing, [KEPT; 3], [SNAT; 3]); // TP-19
        check_snat("eTP", &nothing, [KEPT; 3], [KEPT, SNAT, KEPT]);
        check_snat("iTP", &nothing, [KEPT; 3], [SNAT; 3]);
        check_snat("", &PlanOptions { detector, ..all.clone() }, [SNAT; 3], [SNAT; 3]); // TP-40
    }
}

/// What a socket of a pod and of the node gets, in the words of the errors.
#[track_caller]
fn check_socket(options: &PlanOptions, endpoints: &str, to: &str, wanted: [&str; 2]) {
    let words = "ip=10.96.0.1 np=30080 vip=192.0.2.1 iTP from=10.0.0.0/16";
    let mut snapshot = cluster([service("web", words)], [slice("web", "web-1", "http:80/tcp", endpoints)]);
    set_node(&mut snapshot, None, &[NODE_IP]);
    let meshed = pod("meshed", "10.1.0.9", NODE, "mesh=on");
    snapshot.pods.insert(meshed.key.clone(), meshed.into());
    let (plan, _) = plan(&snapshot, options);
    let at = |source| match plan.decide_at_socket(&Packet { source_address: None, ..packet(source, to) }) {
        SocketVerdict::Forward { endpoints, .. } => names(endpoints),
        SocketVerdict::Refuse => "ECONNREFUSED".to_owned(),
        SocketVerdict::Deny => "EPERM".to_owned(),
        SocketVerdict::Pass => "left alone".to_owned(),
    };
    assert_eq!([at(Source::Pod), at(Source::Node)], wanted);
    let meshed = Packet { source_address: Some(ip("10.1.0.9")), ..packet(Source::Pod, to) };
    assert_eq!(plan.decide_at_socket(&meshed), SocketVerdict::Pass);
}

#[test]
fn sockets_are_refused_at_once_where_packets_are_dropped() {
    let service_cidrs = vec!["10.96.0.0/16".parse().unwrap()];
    let opt_out = vec![("mesh".into(), None)];
    let refuse = PlanOptions { service_cidrs, opt_out, ..options() };
    let pass = PlanOptions { empty_local: EmptyLocal::Pass, ..refuse.clone() };
    for options in [&refuse, &pass] {
        check_socket(options, "e1:Rl", "10.96.0.1:80", ["e1"; 2]);
        check_socket(options, "", "10.96.0.1:80", ["ECONNREFUSED"; 2]); // NE-1
        check_socket(options, "e1:R", "10.96.0.1:81", ["ECONNREFUSED"; 2]); // NE-11
        check_socket(options, "e1:R", "10.96.0.1:0", ["left alone"; 2]);
        check_socket(options, "e1:R", "10.96.0.2:80", ["left alone"; 2]); // NE-12
        check_socket(options, "e1:R", "192.0.2.1:80", ["EPERM"; 2]); // TP-31
        check_socket(options, "e1:R", "192.0.2.1:81", ["left alone"; 2]); // NE-14
        check_socket(options, "e1:R", "127.0.0.1:30080", ["left alone", "e1"]); // TP-15
    }
    check_socket(&refuse, "e1:R", "10.96.0.1:80", ["ECONNREFUSED"; 2]); // NE-2
    check_socket(&pass, "e1:R", "10.96.0.1:80", ["left alone"; 2]);
}

#[track_caller]
fn check_decision(words: &str, endpoints: &str, source: Source, to: &str, wanted: (&str, Option<RuleId>)) {
    let service = service("web", words);
    let mut snapshot = cluster([service], [slice("web", "web-1", "http:80/tcp", endpoints)]);
    set_node(&mut snapshot, None, &[NODE_IP]);
    let (plan, _) = plan(&snapshot, &options());
    let decision = plan.decide(&packet(source, to));
    assert_eq!((shown(&decision.verdict).as_str(), decision.reason.map(|reason| reason.rule)), wanted);
}

#[test]
fn decisions_name_the_rule() {
    let (words, one) = ("ip=10.96.0.1 np=30080", "e1:R");
    check_decision(words, one, Source::Pod, "10.96.0.1:80", ("e1", Some(RuleId::Ep20)));
    check_decision(words, one, Source::Pod, "10.96.0.1:81", ("reject", Some(RuleId::Ne11)));
    check_decision(words, one, Source::Pod, "10.96.0.2:80", ("not ours", None));
    check_decision(words, one, Source::Pod, "10.96.0.1:30080", ("reject", Some(RuleId::Ne11)));
    check_decision(words, one, Source::Outside, "node:30080", ("e1", Some(RuleId::Tp20)));
    check_decision(words, "", Source::Outside, "node:30080", ("reject", Some(RuleId::Ne1)));
    check_decision("ip=10.96.0.1 iTP", one, Source::Node, "10.96.0.1:80", ("drop", Some(RuleId::Ne2)));
    check_decision("ip=10.96.0.1 iTP", "e1:Rl", Source::Node, "10.96.0.1:80", ("e1", Some(RuleId::Ep21)));
    let local = "ip=10.96.0.1 np=30080 eTP";
    check_decision(local, one, Source::Pod, "node:30080", ("e1", Some(RuleId::Tp21)));
    check_decision(local, one, Source::Node, "node:30080", ("e1", Some(RuleId::Tp22)));
    check_decision(local, one, Source::Outside, "node:30080", ("drop", Some(RuleId::Ne3)));
    check_decision(local, "e1:Rl", Source::Outside, "node:30080", ("e1", Some(RuleId::Tp23)));
}

#[track_caller]
fn check_packet(words: &str, cidrs: &[&str], packet: Packet, wanted: (&str, Option<RuleId>)) {
    let services = [service("web", words), service("silent", "ip=10.96.0.9 vip=192.0.2.9 from=10.1.0.0/16")];
    let mut snapshot = cluster(services, [slice("web", "web-1", "http:80/tcp", "e1:R")]);
    set_node(&mut snapshot, None, &[NODE_IP]);
    let service_cidrs = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
    let (plan, _) = plan(&snapshot, &PlanOptions { service_cidrs, ..options() });
    let decision = plan.decide(&packet);
    assert_eq!((shown(&decision.verdict).as_str(), decision.reason.map(|reason| reason.rule)), wanted);
}

#[test]
fn unused_service_addresses_are_dropped_only_where_the_ranges_are_known() {
    let (words, range) = ("ip=10.96.0.1 np=30080 ext=10.96.0.7", &["10.96.0.0/12", "fd00:96::/112"][..]);
    for source in SOURCES {
        check_packet(words, range, packet(source, "10.96.0.2:80"), ("drop", Some(RuleId::Ne12)));
        check_packet(words, range, packet(source, "fd00:96::1:80"), ("drop", Some(RuleId::Ne12)));
        check_packet(words, &[], packet(source, "10.96.0.2:80"), ("not ours", None));
        check_packet(words, range, packet(source, "10.96.0.1:81"), ("reject", Some(RuleId::Ne11)));
        check_packet(words, range, packet(source, "10.96.0.7:81"), ("not ours", None)); // NE-14
        check_packet(words, range, packet(source, "192.0.2.9:81"), ("not ours", None)); // NE-14
        check_packet(words, range, packet(source, "203.0.113.1:80"), ("not ours", None));
        // An address of the node itself is in use, whatever range it is in.
        check_packet(words, &["198.51.100.0/24"], packet(source, "node:81"), ("not ours", None));
        // A socket that only asks for its source address must not be refused.
        check_packet(words, range, packet(source, "10.96.0.1:0"), ("not ours", None));
        check_packet(words, range, packet(source, "10.96.0.2:0"), ("not ours", None));
        let udp = Packet { protocol: Protocol::Udp, ..packet(source, "10.96.0.1:80") };
        check_packet(words, range, udp, ("reject", Some(RuleId::Ne11))); // IN-14
    }
}

#[test]
fn loopback_node_ports_are_for_the_node_itself() {
    let words = "ip=10.96.0.1 ip=fd00:96::1 np=30080";
    for address in ["127.0.0.1:30080", "127.8.8.8:30080"] {
        check_packet(words, &[], packet(Source::Node, address), ("e1", Some(RuleId::Tp20))); // TP-15
        check_packet(words, &[], packet(Source::Pod, address), ("not ours", None));
        check_packet(words, &[], packet(Source::Outside, address), ("not ours", None));
    }
    check_packet(words, &[], packet(Source::Node, "::1:30080"), ("reject", Some(RuleId::Ne1)));
    check_packet(words, &[], packet(Source::Pod, "node:30080"), ("e1", Some(RuleId::Tp20)));
    check_packet(words, &[], packet(Source::Pod, "198.51.100.2:30080"), ("not ours", None)); // TP-3
}

#[test]
fn source_ranges_come_first_and_hold_for_load_balancer_addresses_alone() {
    let words = "ip=10.96.0.1 np=30080 vip=192.0.2.1 ext=192.0.2.2 from=10.1.0.0/16";
    let from = |address: &str, to: &str| Packet { source_address: Some(ip(address)), ..packet(Source::Pod, to) };
    check_packet(words, &[], from("10.1.0.7", "192.0.2.1:80"), ("e1", Some(RuleId::Tp20)));
    check_packet(words, &[], from("10.2.0.7", "192.0.2.1:80"), ("drop", Some(RuleId::Tp32))); // TP-31
    check_packet(words, &[], packet(Source::Pod, "192.0.2.1:80"), ("drop", Some(RuleId::Tp32)));
    check_packet(words, &[], packet(Source::Node, "192.0.2.1:80"), ("drop", Some(RuleId::Tp32)));
    for open in ["10.96.0.1:80", "192.0.2.2:80", "node:30080"] {
        let decision = if open == "10.96.0.1:80" { RuleId::Ep20 } else { RuleId::Tp20 };
        check_packet(words, &[], from("10.2.0.7", open), ("e1", Some(decision))); // TP-30
    }
    check_packet(words, &[], from("10.1.0.7", "192.0.2.9:80"), ("reject", Some(RuleId::Ne1))); // TP-35
    check_packet(words, &[], from("10.2.0.7", "192.0.2.9:80"), ("drop", Some(RuleId::Tp32))); // TP-35
}

#[test]
fn mapped_addresses_count_as_ipv4_and_addresses_come_before_node_ports() {
    check_decision("ip=10.96.0.1", "e1:R", Source::Pod, "::ffff:10.96.0.1:80", ("e1", Some(RuleId::Ep20))); // IN-24
    let web = service("web", "ip=10.96.0.1 ext=198.51.100.1 port=http:30080/tcp");
    let other = service("other", "ip=10.96.0.2 np=30080");
    let slices = [slice("web", "a", "http:80/tcp", "e1:R"), slice("other", "a", "http:80/tcp", "e2:R")];
    let mut snapshot = cluster([web, other], slices);
    set_node(&mut snapshot, None, &[NODE_IP]);
    let (plan, _) = plan(&snapshot, &options());
    assert_eq!(shown(&plan.verdict(&packet(Source::Pod, "node:30080"))), "e1"); // TP-4
}
