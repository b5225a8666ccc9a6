//! The chains that every table of ours has: those at the kernel's hooks, and those that they share.

use shunt_model::Family;

use super::Rendering;
use super::chain::REJECT;
use super::collection::{Collection, PORT, word};

/// A chain that is always there.
pub(super) struct FixedChain {
    pub(super) name: &'static str,
    pub(super) rules: Vec<String>,
}

/// Where the kernel calls a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hook {
    pub(super) kind: &'static str,
    pub(super) hook: &'static str,
    pub(super) priority: i32,
}

/// An empty chain that tells our tables from those of others, and this layout from other ones.
pub(super) const MARKER: &str = "made-by-shunt-v1";
/// The chain for packets that come in.
pub(super) const TRANSLATES: &str = "nat-prerouting";
/// How the markers of all layouts begin.
pub(super) const MARKERS: &str = "made-by-shunt-";

const NAT: &str = "nat";
const FILTER: &str = "filter";
/// New flows of clients outside of the source ranges end before their destination is translated (TP-35), which is at
/// -100.
const BEFORE_TRANSLATION: i32 = -110;

impl Hook {
    const fn new(kind: &'static str, hook: &'static str, priority: i32) -> Self {
        Self { kind, hook, priority }
    }
}

/// All of them for a family. A chain stands after those that it leads to.
pub(super) fn fixed_chains(family: Family, rendering: &Rendering) -> Vec<FixedChain> {
    let chain = |name, rules| FixedChain { name, rules };
    vec![
        chain(MARKER, Vec::new()),
        chain(REJECT, vec![reject(family).to_owned()]),
        chain("undefined-port", vec![format!("{ANY_PORT} goto {REJECT}")]),
        chain("unused-address", unused_address(family)),
        chain("untranslated", untranslated(family, rendering)),
        chain("source-nat", source_nat(rendering)),
        chain(TRANSLATES, translate(family)),
        chain("nat-output", translate_own(family, rendering)),
        chain("nat-postrouting", postrouting(family, rendering)),
        chain("filter-prerouting", admit(family, rendering)),
        chain("filter-output-first", vec![source_ranges(family)]),
        chain("filter-input", vec![UNTRANSLATED.to_owned()]),
        chain("filter-forward", forward(family, rendering)),
        chain("filter-output", vec![UNTRANSLATED.to_owned(), unused(family)]),
    ]
}

/// Where the kernel calls the chain of this name, if it does.
pub(super) fn hook(chain: &str) -> Option<Hook> {
    Some(match chain {
        TRANSLATES => Hook::new(NAT, "prerouting", -100),
        "nat-output" => Hook::new(NAT, "output", -100),
        "nat-postrouting" => Hook::new(NAT, "postrouting", 100),
        "filter-prerouting" => Hook::new(FILTER, "prerouting", BEFORE_TRANSLATION),
        "filter-output-first" => Hook::new(FILTER, "output", BEFORE_TRANSLATION),
        "filter-input" => Hook::new(FILTER, "input", 0),
        "filter-forward" => Hook::new(FILTER, "forward", 0),
        "filter-output" => Hook::new(FILTER, "output", 0),
        _ => return None,
    })
}

/// What a Service can define. Port 0 is no flow but a socket that asks for its source address.
const ANY_PORT: &str = "meta l4proto { tcp, udp, sctp } th dport != 0";
const UNTRANSLATED: &str = "ct state new jump untranslated";

/// NE-4: for every protocol.
const fn reject(family: Family) -> &'static str {
    match family {
        Family::V4 => "reject with icmp port-unreachable",
        Family::V6 => "reject with icmpv6 port-unreachable",
    }
}

/// Addresses come before node ports (TP-4).
fn translate(family: Family) -> Vec<String> {
    let ip = word(family);
    vec![
        format!("{ip} daddr . {PORT} vmap @{}", Collection::Frontends.name()),
        format!("{ip} daddr @{} {PORT} vmap @{}", Collection::NodeAddresses.name(), Collection::NodePorts.name()),
    ]
}

fn translate_own(family: Family, rendering: &Rendering) -> Vec<String> {
    let mut rules = translate(family);
    if at_loopback(family, rendering) {
        rules.push(format!("ip daddr 127.0.0.0/8 {PORT} vmap @{}", Collection::NodePorts.name()));
    }
    rules
}

fn at_loopback(family: Family, rendering: &Rendering) -> bool {
    family == Family::V4 && rendering.loopback_node_ports
}

/// TP-43; TP-42 for the flow of an endpoint to itself.
fn postrouting(family: Family, rendering: &Rendering) -> Vec<String> {
    let (ip, bit) = (word(family), rendering.masquerade_mark);
    vec![
        format!("meta mark and {bit:#x} == {bit:#x} goto source-nat"),
        format!("ct status dnat {ip} saddr . {ip} daddr @{} {MASQUERADE}", Collection::Hairpins.name()),
    ]
}

const MASQUERADE: &str = "masquerade fully-random";

/// A tunnel sends the packet through this hook again: it must not carry the bit (TP-44).
fn source_nat(rendering: &Rendering) -> Vec<String> {
    vec![format!("meta mark set meta mark and {:#x}", !rendering.masquerade_mark), MASQUERADE.to_owned()]
}

/// TP-15: while the kernel routes loopback addresses, other hosts on the link could dial them.
fn admit(family: Family, rendering: &Rendering) -> Vec<String> {
    let mut rules = Vec::new();
    if at_loopback(family, rendering) {
        rules.push("iifname != \"lo\" ip daddr 127.0.0.0/8 drop".to_owned());
        rules.push("iifname != \"lo\" ip saddr 127.0.0.0/8 drop".to_owned());
    }
    rules.push(source_ranges(family));
    rules
}

/// TP-30…32.
fn source_ranges(family: Family) -> String {
    let (ip, filtered, allowed) = (word(family), Collection::Filtered.name(), Collection::Allowed.name());
    format!("ct state new {ip} daddr . {PORT} @{filtered} {ip} daddr . {PORT} . {ip} saddr != @{allowed} drop")
}

/// What new flows get that keep a destination of Services (NE-6).
fn untranslated(family: Family, rendering: &Rendering) -> Vec<String> {
    let (ip, node_ports) = (word(family), Collection::UnservedNodePorts.name());
    let mut rules = vec![
        // It may lead to an endpoint at an address and port that mean something else to clients.
        "ct status dnat return".to_owned(),
        format!("{ip} daddr . {PORT} vmap @{}", Collection::Unserved.name()),
        format!("{ip} daddr @{} {PORT} vmap @{node_ports}", Collection::NodeAddresses.name()),
    ];
    if at_loopback(family, rendering) {
        rules.push(format!("ip daddr 127.0.0.0/8 {PORT} vmap @{node_ports}"));
    }
    rules.push(format!("{ip} daddr @{} goto undefined-port", Collection::ClusterIps.name())); // NE-11
    rules
}

/// NE-12.
fn unused(family: Family) -> String {
    format!("ct state new {} daddr @{} goto unused-address", word(family), Collection::ServiceCidrs.name())
}

fn unused_address(family: Family) -> Vec<String> {
    let ip = word(family);
    vec![
        "ct status dnat return".to_owned(),
        format!("{ip} daddr @{} return", Collection::ClusterIps.name()),
        format!("{ip} daddr @{} return", Collection::OtherAddresses.name()),
        format!("{ANY_PORT} drop"),
    ]
}

fn forward(family: Family, rendering: &Rendering) -> Vec<String> {
    let mut rules = Vec::new();
    if rendering.drop_invalid {
        rules.push("ct state invalid drop".to_owned()); // CT-20
    }
    rules.extend([UNTRANSLATED.to_owned(), unused(family)]);
    rules
}
