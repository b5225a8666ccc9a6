//! The table of events and of the flows that they end, row by row.

use std::net::SocketAddr;

use super::judge::Judge;
use super::table::Flow;
use crate::plan::fixture::{cluster, options, service, set_node, slice};
use crate::plan::{NodePortAddresses, Plan, PlanOptions, plan};
use shunt_model::{Family, Snapshot};

/// With every kind of frontend that IPv4 has.
const EVERYWHERE: &str = "ip=10.96.0.1 port=dns:53/udp np=30053 ext=198.51.100.7 vip=198.51.100.8 type=lb";

fn planned(mut snapshot: Snapshot, addresses: &[&str]) -> Plan {
    set_node(&mut snapshot, None, addresses);
    plan(&snapshot, &PlanOptions { node_ports: NodePortAddresses::Primary, ..options() }).0
}

/// The Service with these words and endpoints; without words there is none.
fn with(words: &str, endpoints: &str) -> Plan {
    let services = (!words.is_empty()).then(|| service("dns", words));
    planned(cluster(services, [slice("dns", "a", "dns:5353/udp", endpoints)]), &["192.0.2.1"])
}

/// `c1` is a flow to the cluster IP that 10.1.0.1:5353 answers, `c1:9090` one that another port answers, `c-` one that
/// was never translated; `x` is the external IP, `v` the load balancer's address, `n` the node port. `N` and `o` have
/// the port of it at other addresses, `g` is an address of no Service.
fn flow(text: &str) -> Flow {
    let dialled: SocketAddr = match &text[..1] {
        "c" => "10.96.0.1:53",
        "x" => "198.51.100.7:53",
        "v" => "198.51.100.8:53",
        "n" => "192.0.2.1:30053",
        "N" => "192.0.2.2:30053",
        "o" => "203.0.113.1:30053",
        "g" => "10.96.7.7:53",
        other => panic!("{other}"),
    }
    .parse()
    .unwrap();
    let answered_by = match &text[1..] {
        "-" => dialled,
        endpoint => {
            let (number, port) = endpoint.split_once(':').unwrap_or((endpoint, "5353"));
            format!("10.1.0.{number}:{port}").parse().unwrap()
        }
    };
    Flow::between(dialled, answered_by)
}

#[track_caller]
fn check(old: Option<&Plan>, new: &Plan, flows: &str, stale: &str) {
    let judge = Judge::new(old, new);
    let concerned = judge.concerns(Family::V4);
    let found: Vec<&str> = flows.split_whitespace().filter(|text| concerned && judge.is_stale(&flow(text))).collect();
    assert_eq!(found.join(" "), stale);
}

#[track_caller]
fn check_endpoints(before: &str, after: &str, flows: &str, stale: &str) {
    check(Some(&with(EVERYWHERE, before)), &with(EVERYWHERE, after), flows, stale);
}

#[track_caller]
fn check_words(before: &str, after: &str, flows: &str, stale: &str) {
    check(Some(&with(before, "e1:R")), &with(after, "e1:R"), flows, stale);
}

#[test]
fn flows_end_when_their_endpoint_serves_no_longer() {
    check_endpoints("e1:R; e2:R", "e2:R", "c1 x1 v1 n1 c2 x2 v2 n2", "c1 x1 v1 n1"); // CT-3
    check_endpoints("e1:R; e2:R", "e1:T; e2:R", "c1 n1 c2", ""); // CT-3, CT-10
    check_endpoints("e1:T; e2:R", "e1:U; e2:R", "c1 n1 c2", "c1 n1"); // CT-3
    check_endpoints("", "e1:R", "c- x- v- n- c1", "c- x- v- n-"); // CT-5
    check_endpoints("e1:R", "", "c1 x1 v1 n1 c-", "c1 x1 v1 n1 c-"); // CT-7
    check_endpoints("e1:R", "e1:R; e2:R", "c1 n1 c2", "");
}

#[test]
fn flows_to_the_old_port_of_an_endpoint_end() {
    let at = |port| {
        let slice = slice("dns", "a", port, "e1:R");
        planned(cluster([service("dns", EVERYWHERE)], [slice]), &["192.0.2.1"])
    };
    check(Some(&at("dns:5353/udp")), &at("dns:9090/udp"), "c1 n1 c1:9090 n1:9090", "c1 n1");
}

#[test]
fn policies_and_affinity_end_no_flow() {
    for word in ["iTP", "eTP", "aff=10", "from=10.0.0.0/8"] {
        let changed = format!("{EVERYWHERE} {word}");
        check_words(EVERYWHERE, &changed, "c1 x1 v1 n1 c2 n2 c- n-", "");
        assert!(!Judge::new(Some(&with(EVERYWHERE, "e1:R")), &with(&changed, "e1:R")).concerns(Family::V4), "{word}");
    }
}

#[test]
fn translated_flows_of_a_frontend_that_is_gone_end() {
    check_words(EVERYWHERE, "", "c1 x1 v1 n1 c2 c- n- o1 N1", "c1 x1 v1 n1 c2"); // CT-8
    let (node_port, cluster_ip) = ("ip=10.96.0.1 port=dns:53/udp np=30053", "ip=10.96.0.1 port=dns:53/udp");
    check_words(node_port, cluster_ip, "n1 n- c1", "n1");
    check_words(cluster_ip, node_port, "n- n1 c1", "n-"); // CT-5
}

#[test]
fn only_flows_to_addresses_that_accept_node_ports_are_flows_to_a_node_port() {
    // CT-9
    check_endpoints("e1:R", "e2:R", "n1 n- N1 N- o1 o-", "n1 n-");
    // The same socket address, as the external IP of another Service, comes first (TP-4).
    let plan = |endpoints| {
        let services = [
            service("dns", "ip=10.96.0.1 port=dns:53/udp np=30053"),
            service("own", "ip=10.96.0.2 port=dns:30053/udp ext=192.0.2.1"),
        ];
        let slices = [slice("dns", "a", "dns:5353/udp", endpoints), slice("own", "b", "dns:5353/udp", "e9:R")];
        planned(cluster(services, slices), &["192.0.2.1"])
    };
    check(Some(&plan("e1:R")), &plan("e2:R"), "n9 n1 c1", "c1");
}

#[test]
fn only_flows_of_udp_are_looked_at() {
    // CT-6
    let tcp = |endpoints| {
        let words = "ip=10.96.0.1 port=dns:53/tcp np=30053";
        planned(cluster([service("dns", words)], [slice("dns", "a", "dns:5353/tcp", endpoints)]), &["192.0.2.1"])
    };
    let (before, after) = (tcp("e1:R"), tcp("e2:R"));
    check(Some(&before), &after, "c1 n1", "");
    assert!(!Judge::new(Some(&before), &after).concerns(Family::V4));
}

#[test]
fn the_first_sweep_looks_at_every_flow() {
    // CT-13
    check(None, &with(EVERYWHERE, "e1:R"), "c1 x1 n1 c2 x2 n2 c- n- o1 N1", "c2 x2 n2 c- n-");
    // A Service that was deleted while no daemon ran.
    let mut plan = with(EVERYWHERE, "e1:R");
    check(None, &plan, "g1 g-", "");
    plan.service_cidrs = ["10.96.0.0/16".parse().unwrap()].into();
    check(None, &plan, "g1 g- c1", "g1");
}

#[test]
fn a_new_address_that_accepts_node_ports_is_looked_at() {
    let at = |addresses: &[&str], endpoints| {
        planned(cluster([service("dns", EVERYWHERE)], [slice("dns", "a", "dns:5353/udp", endpoints)]), addresses)
    };
    check(Some(&at(&["192.0.2.1"], "e1:R")), &at(&["192.0.2.2"], "e1:R"), "N- N1 n1 c1", "N-");
    check(Some(&at(&["192.0.2.2"], "e1:R")), &at(&[], "e1:R"), "N1 c1 c2", "");
}

#[test]
fn one_family_is_not_asked_for_changes_of_the_other() {
    let both = |v6| {
        let words = "ip=10.96.0.1 ip=fd00:96::1 port=dns:53/udp";
        let slices = [slice("dns", "a", "dns:5353/udp", "e1:R"), slice("dns", "b", "dns:5353/udp", v6)];
        planned(cluster([service("dns", words)], slices), &[])
    };
    let (before, after) = (both("f1:R"), both("f2:R"));
    let judge = Judge::new(Some(&before), &after);
    assert_eq!(Family::BOTH.map(|family| judge.concerns(family)), [false, true]);
}
