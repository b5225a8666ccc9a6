//! The chains that every packet meets, and those that are the same for all Services.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use shunt_model::{Family, Protocol};

use super::image::new_flow;
use super::rule::{Match, Name, Rule, Side, State, Table, Target};
use super::{
    FORWARD, HAIRPIN, HEALTH, INPUT, MARK, NODE_PORTS, OUTPUT, POSTROUTING, REFUSE, REFUSE_OTHERS, SERVICES, UNMARK,
    UNSERVED, UNSERVED_NODE_PORTS, UNUSED,
};
use crate::datapath::PacketOptions;
use crate::plan::AddressMeaning;

/// The jumps from the kernel's own chains to ours, as `iptables-save` writes them without `-A`.
pub(super) const JUMPS: [(Table, &str); 6] = [
    (Table::Nat, "PREROUTING -j SHUNT-SERVICES"),
    (Table::Nat, "OUTPUT -j SHUNT-OUTPUT"),
    (Table::Nat, "POSTROUTING -j SHUNT-POSTROUTING"),
    (Table::Filter, "INPUT -j SHUNT-INPUT"),
    (Table::Filter, "FORWARD -j SHUNT-FORWARD"),
    (Table::Filter, "OUTPUT -j SHUNT-OUTPUT"),
];

type Chain = (Table, Name, Vec<Rule>);

/// All that follows from the options alone; `loopback` says whether node ports are served at 127.0.0.0/8.
pub(super) fn chains(family: Family, options: PacketOptions, loopback: bool, health: bool) -> Vec<Chain> {
    let mark = options.masquerade_mark;
    let nat = |name: &str, rules| (Table::Nat, Name::from(name), rules);
    let filter = |name: &str, rules| (Table::Filter, Name::from(name), rules);
    vec![
        nat(OUTPUT, nat_output(loopback)),
        nat(POSTROUTING, postrouting(mark)),
        nat(MARK, vec![Rule::all(Target::Mark(mark))]),
        nat(UNMARK, vec![Rule::all(Target::Unmark(mark))]),
        filter(INPUT, input(loopback, health)),
        filter(FORWARD, forward(options)),
        filter(OUTPUT, output(loopback)),
        filter(REFUSE, but_port_zero(Target::Reject(family))),
        filter(UNUSED, but_port_zero(Target::Drop)),
        filter(REFUSE_OTHERS, vec![jump(UNSERVED_NODE_PORTS), goto(REFUSE)]),
    ]
}

fn jump(chain: &str) -> Rule {
    Rule::all(Target::Jump(chain.into()))
}

fn goto(chain: &str) -> Rule {
    Rule::all(Target::Goto(chain.into()))
}

fn loopback_network() -> IpNet {
    Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8).into()
}

/// Loopback is asked here and nowhere else: only this node sends to it (TP-15).
fn nat_output(loopback: bool) -> Vec<Rule> {
    let at_loopback = loopback.then(|| goto(NODE_PORTS).to(loopback_network()));
    at_loopback.into_iter().chain([goto(SERVICES)]).collect()
}

/// TP-43 and TP-44: the bit is cleared, since the packet may come by again, in a tunnel.
fn postrouting(mark: u32) -> Vec<Rule> {
    vec![
        jump(HAIRPIN).when(Match::State(State::Translated)),
        Rule::all(Target::Return).when(Match::Unmarked(mark)),
        Rule::all(Target::Toggle(mark)),
        Rule::all(Target::Masquerade),
    ]
}

fn input(loopback: bool, health: bool) -> Vec<Rule> {
    // route_localnet lets packets in from elsewhere that are for loopback.
    let outside = Some(Side { network: loopback_network(), outside: true });
    let guard = Rule { source: outside, ..Rule::all(Target::Drop).to(loopback_network()) };
    let guard = loopback.then(|| guard.when(Match::State(State::Unknown)));
    let health = health.then(|| jump(HEALTH).of(Protocol::Tcp));
    guard.into_iter().chain([new_flow(jump(UNSERVED))]).chain(health).collect()
}

/// CT-20 and TP-45
fn forward(options: PacketOptions) -> Vec<Rule> {
    let invalid = options.drop_invalid.then(|| Rule::all(Target::Drop).when(Match::State(State::Invalid)));
    let accepts = [
        new_flow(jump(UNSERVED)),
        Rule::all(Target::Accept).when(Match::Marked(options.masquerade_mark)),
        Rule::all(Target::Accept).when(Match::State(State::Known)),
    ];
    invalid.into_iter().chain(accepts).collect()
}

fn output(loopback: bool) -> Vec<Rule> {
    let at_loopback = loopback.then(|| new_flow(goto(UNSERVED_NODE_PORTS).to(loopback_network())));
    at_loopback.into_iter().chain([new_flow(jump(UNSERVED))]).collect()
}

/// Port 0 is no flow.
fn but_port_zero(target: Target) -> Vec<Rule> {
    let zero = |protocol| Rule::all(Target::Return).of(protocol).when(Match::Ports(0, 0));
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter();
    protocols.map(zero).chain([Rule::all(target)]).collect()
}

/// What untranslated packets get at an address, at ports of which no frontend names it.
pub(super) fn address_leaf(meaning: AddressMeaning, in_a_range: bool) -> Option<Rule> {
    let AddressMeaning { node_ports, refuses_other_ports } = meaning;
    match (node_ports.is_some(), refuses_other_ports) {
        (true, true) => Some(goto(REFUSE_OTHERS)),
        (true, false) => Some(goto(UNSERVED_NODE_PORTS)),
        (false, true) => Some(goto(REFUSE)),
        // It is in use, so it is not like the others of the range.
        (false, false) => in_a_range.then(|| Rule::all(Target::Return)),
    }
}

/// What untranslated packets get at an address in a range of Services that nothing uses (NE-12).
pub(super) fn unused_address() -> Rule {
    goto(UNUSED)
}
