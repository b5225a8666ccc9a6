//! The chains of small clusters, as text.

use super::*;
use crate::plan::PlanOptions;
use crate::plan::fixture::{cluster, options, service, slice};

/// The chains of an IPv4 cluster whose names begin so, in the form of `iptables-save`.
#[track_caller]
fn check(words: &str, endpoints: &str, table: Table, prefix: &str, wanted: &[&str]) {
    let snapshot = cluster([service("web", words)], [slice("web", "x", "http:8080/tcp", endpoints)]);
    let options = PlanOptions { service_cidrs: vec!["10.96.0.0/12".parse().unwrap()], ..options() };
    let (plan, _) = plan(&snapshot, &options);
    let hash = super::super::names::hash(b"default/web:http/tcp");
    let mut found = Vec::new();
    for ((of, name), rules) in chains(&plan, Family::V4) {
        let name = name.replace(&hash, "x");
        if of == table && name.starts_with(prefix) {
            found.extend(rules.iter().map(|rule| format!("{name} {}", rule.replace(&hash, "x"))));
        }
    }
    assert_eq!(found, wanted);
}

const PORT: &str = "ip=10.96.0.1 port=http:80/tcp";

#[test]
fn a_frontend_leads_to_one_endpoint_by_chance() {
    check(
        PORT,
        "e1:R; e2:R; e3:R",
        Table::Nat,
        "SHUNT-cCC",
        &[
            "SHUNT-cCC-x -j SHUNT-MASQ-NO",
            "SHUNT-cCC-x -p tcp -m statistic --mode random --probability 0.33333333349 -j DNAT --to-destination \
             10.1.0.1:8080",
            "SHUNT-cCC-x -p tcp -m statistic --mode random --probability 0.50000000000 -j DNAT --to-destination \
             10.1.0.2:8080",
            "SHUNT-cCC-x -p tcp -j DNAT --to-destination 10.1.0.3:8080",
        ],
    );
    check(
        PORT,
        "e1:R",
        Table::Nat,
        "SHUNT-SERVICES",
        &["SHUNT-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -g SHUNT-cCC-x"],
    );
}

#[test]
fn what_has_no_endpoint_is_refused_and_what_is_unused_gets_silence() {
    check(PORT, "", Table::Filter, "SHUNT-UNSERVED", &["SHUNT-UNSERVED -d 10.96.0.0/12 -g SHUNT-D-0a6"]);
    check(
        PORT,
        "",
        Table::Filter,
        "SHUNT-D-0a600001",
        &[
            "SHUNT-D-0a600001 -p tcp -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable",
            "SHUNT-D-0a600001 -g SHUNT-REFUSE",
        ],
    );
}

#[test]
fn clients_from_elsewhere_keep_to_the_endpoints_of_this_node() {
    check(
        "ip=10.96.0.1 port=http:80/tcp np=30080 eTP",
        "e1:Rl; e2:R",
        Table::Nat,
        "SHUNT-cCl",
        &[
            "SHUNT-cCl-x -j SHUNT-MASQ-O",
            "SHUNT-cCl-x -m mark --mark 0x4000/0x4000 -g SHUNT-__l-x",
            "SHUNT-cCl-x -j SHUNT-MASQ-N",
            "SHUNT-cCl-x -g SHUNT-PC-x",
        ],
    );
}
