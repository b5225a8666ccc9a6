//! This node as the plan sees it: its zone, its primary addresses, and where it accepts node ports (TP-10…14, EP-12).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use shunt_model::{Family, Node, Snapshot};

use super::{HealthCheckAddresses, NodePortAddresses, PlanOptions};

/// Stands for all of 127.0.0.0/8.
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// What the plan knows of the node it is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ThisNode {
    /// Own zone, if the node has one.
    pub(super) zone: Option<Arc<str>>,
    /// The primary address of each family, see [`ThisNode::primary`].
    primary: [Option<IpAddr>; 2],
    /// Its addresses, but for loopback.
    pub(super) own: Arc<BTreeSet<IpAddr>>,
    /// The addresses that accept node ports, in canonical form; 127.0.0.1 stands for 127.0.0.0/8.
    pub(super) node_ports: Arc<BTreeSet<IpAddr>>,
    /// As [`Plan::health_check_addresses`](super::Plan::health_check_addresses).
    pub(super) health_checks: Arc<HealthCheckAddresses>,
    /// The ranges of its pods, as the Node object has them.
    pub(super) pod_ranges: Vec<IpNet>,
}

impl ThisNode {
    /// `observed` are the addresses of this node's interfaces; until they are known, those of the Node object count.
    pub(super) fn new(snapshot: &Snapshot, options: &PlanOptions, observed: Option<&BTreeSet<IpAddr>>) -> Self {
        let node = snapshot.nodes.get(&options.node).map(Arc::as_ref);
        let mut assigned: BTreeSet<IpAddr> = match observed {
            Some(observed) => observed.iter().map(IpAddr::to_canonical).collect(),
            None => listed(node).collect(),
        };
        assigned.retain(|address| !address.is_loopback());
        let node_ports = LOOPBACK.iter().chain(&assigned).copied();
        let node_ports: BTreeSet<IpAddr> =
            node_ports.filter(|address| accepts(&options.node_ports, node, address)).collect();
        let health_checks = Family::BOTH.map(|family| match accepts_everywhere(&options.node_ports, family) {
            true => Vec::new(),
            false => node_ports.iter().filter(|address| Family::of(address) == family).copied().collect(),
        });
        Self {
            zone: node.and_then(|node| node.zone.clone()),
            primary: Family::BOTH.map(|family| primary(node, family).or_else(|| first(&assigned, family))),
            own: Arc::new(assigned),
            node_ports: Arc::new(node_ports),
            health_checks: Arc::new(HealthCheckAddresses::new(health_checks)),
            pod_ranges: node.map(|node| node.pod_cidrs.clone()).unwrap_or_default(),
        }
    }

    /// The node's primary address of `family`, as source ranges see it (TP-34).
    pub(super) fn primary(&self, family: Family) -> Option<IpAddr> {
        let [v4, v6] = self.primary;
        match family {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }
}

/// The form in which a set of node addresses holds `address`: one address stands for all of IPv4 loopback, and for the
/// unspecified address, which to a client is its own loopback.
pub(super) fn as_listed(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) if v4.is_loopback() || v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V4(_) | IpAddr::V6(_) => address,
    }
}

/// Whether node ports are accepted at every address of `family` (TP-10).
fn accepts_everywhere(wanted: &NodePortAddresses, family: Family) -> bool {
    match wanted {
        NodePortAddresses::All => true,
        NodePortAddresses::Primary => false,
        NodePortAddresses::Within(networks) => {
            let mut of_family = networks.iter().filter(|network| Family::of(&network.addr()) == family).peekable();
            of_family.peek().is_none() || of_family.any(|network| network.prefix_len() == 0)
        }
    }
}

fn accepts(wanted: &NodePortAddresses, node: Option<&Node>, address: &IpAddr) -> bool {
    let family = Family::of(address);
    match wanted {
        NodePortAddresses::All => true,
        // Only the addresses of the Node object: a guess could open node ports on an address that the operator did not
        // name.
        NodePortAddresses::Primary => primary(node, family) == Some(*address),
        NodePortAddresses::Within(networks) => {
            accepts_everywhere(wanted, family) || networks.iter().any(|network| network.contains(address))
        }
    }
}

fn listed(node: Option<&Node>) -> impl Iterator<Item = IpAddr> {
    node.into_iter().flat_map(|node| node.addresses.iter().map(IpAddr::to_canonical))
}

/// InternalIP before ExternalIP, which is the order in which the model has them.
fn primary(node: Option<&Node>, family: Family) -> Option<IpAddr> {
    listed(node).find(|address| Family::of(address) == family && !address.is_loopback())
}

/// The first address that another machine can reach; link-local addresses are the same on every node.
fn first(assigned: &BTreeSet<IpAddr>, family: Family) -> Option<IpAddr> {
    let is_link_local = |address: &IpAddr| match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let mut of_family = assigned.iter().filter(|address| Family::of(address) == family);
    of_family.find(|address| !is_link_local(address)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::{ip, options, set_node};

    /// The addresses that accept node ports and the primary ones, on a node whose object lists `listed` and whose
    /// interfaces have `observed`, if that is known.
    #[track_caller]
    fn check(node_ports: NodePortAddresses, listed: &[&str], observed: Option<&[&str]>, wanted: &str, primary: &str) {
        let mut snapshot = Snapshot::default();
        set_node(&mut snapshot, None, listed);
        let observed = observed.map(|addresses| addresses.iter().map(|address| ip(address)).collect());
        let here = ThisNode::new(&snapshot, &PlanOptions { node_ports, ..options() }, observed.as_ref());
        let join = |addresses: Vec<&IpAddr>| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(join(here.node_ports.iter().collect()), wanted, "accepted");
        assert_eq!(join(here.primary.iter().flatten().collect()), primary, "primary");
    }

    /// Where health checks listen, on a node whose object and interfaces have these addresses; `*` is the wildcard.
    #[track_caller]
    fn check_health(node_ports: NodePortAddresses, listed: &[&str], observed: &[&str], wanted: [&str; 2]) {
        let mut snapshot = Snapshot::default();
        set_node(&mut snapshot, None, listed);
        let observed = observed.iter().map(|address| ip(address)).collect();
        let here = ThisNode::new(&snapshot, &PlanOptions { node_ports, ..options() }, Some(&observed));
        let shown = Family::BOTH.map(|family| match here.health_checks.of(family) {
            [] => "*".to_owned(),
            addresses => {
                assert!(addresses.iter().all(|address| here.node_ports.contains(address)), "node ports are elsewhere");
                addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
            }
        });
        assert_eq!(shown, wanted);
    }

    #[test]
    fn health_checks_listen_where_node_ports_are_accepted() {
        // 10.0.0.1 and fd00::1 are those of a bridge: the first in order, and not the node's primary ones.
        let observed = &["127.0.0.1", "::1", "10.0.0.1", "192.168.7.5", "fd00::1", "fd00::5"];
        let listed = &["192.168.7.5", "fd00::5"];
        check_health(NodePortAddresses::All, listed, observed, ["*", "*"]); // HM-1
        check_health(NodePortAddresses::Primary, listed, observed, ["192.168.7.5", "fd00::5"]); // TP-13
        check_health(NodePortAddresses::Primary, &["192.168.7.5"], observed, ["192.168.7.5", "*"]);
        check_health(NodePortAddresses::Primary, &["192.168.7.6"], observed, ["*", "*"]);
        check_health(within(&["192.168.0.0/16"]), listed, observed, ["192.168.7.5", "*"]); // TP-10
        check_health(
            within(&["127.0.0.0/8", "10.0.0.0/8", "fd00::/16"]),
            listed,
            observed,
            ["10.0.0.1 127.0.0.1", "fd00::1 fd00::5"],
        );
        check_health(within(&["0.0.0.0/0", "10.0.0.0/8"]), listed, observed, ["*", "*"]);
        check_health(within(&["172.16.0.0/12"]), listed, observed, ["*", "*"]);
    }

    fn within(networks: &[&str]) -> NodePortAddresses {
        NodePortAddresses::Within(networks.iter().map(|network| network.parse().unwrap()).collect())
    }

    const OBJECT: &[&str] = &["10.0.0.5", "2001:db8::5", "203.0.113.5"];
    const INTERFACES: &[&str] = &["127.0.0.1", "127.0.0.53", "::1", "10.0.0.5", "192.168.7.5", "fe80::5"];

    #[test]
    fn all_addresses_accept_node_ports_by_default() {
        let all = NodePortAddresses::All;
        check(all.clone(), OBJECT, None, "10.0.0.5 127.0.0.1 203.0.113.5 ::1 2001:db8::5", "10.0.0.5 2001:db8::5");
        let here = "10.0.0.5 127.0.0.1 192.168.7.5 ::1 fe80::5"; // TP-11: what the kernel calls local
        check(all.clone(), OBJECT, Some(INTERFACES), here, "10.0.0.5 2001:db8::5");
        check(all.clone(), OBJECT, Some(&["::ffff:10.0.0.5"]), "10.0.0.5 127.0.0.1 ::1", "10.0.0.5 2001:db8::5"); // IN-24
        check(all, &[], None, "127.0.0.1 ::1", "");
    }

    #[test]
    fn networks_narrow_their_own_family_only() {
        let v6 = "::1 2001:db8::5";
        let check = |networks, wanted: &str| check(within(networks), OBJECT, None, wanted, "10.0.0.5 2001:db8::5"); // TP-10
        check(&["10.0.0.0/8"], &format!("10.0.0.5 {v6}"));
        check(&["10.0.0.0/8", "127.0.0.0/8"], &format!("10.0.0.5 127.0.0.1 {v6}"));
        check(&["0.0.0.0/0", "10.0.0.0/8"], &format!("10.0.0.5 127.0.0.1 203.0.113.5 {v6}"));
        check(&["172.16.0.0/12", "2001:db8::/32"], "2001:db8::5");
        check(&["::1/128"], "10.0.0.5 127.0.0.1 203.0.113.5 ::1");
        check(&[], &format!("10.0.0.5 127.0.0.1 203.0.113.5 {v6}"));
    }

    #[test]
    fn primary_is_what_the_node_object_names_first() {
        let primary = NodePortAddresses::Primary;
        check(primary.clone(), OBJECT, None, "10.0.0.5 2001:db8::5", "10.0.0.5 2001:db8::5");
        check(primary.clone(), OBJECT, Some(INTERFACES), "10.0.0.5", "10.0.0.5 2001:db8::5");
        check(primary.clone(), &["10.0.0.5"], None, "10.0.0.5", "10.0.0.5"); // TP-13: none of IPv6, not all
        check(primary, &[], Some(INTERFACES), "", "10.0.0.5");
    }

    #[test]
    fn without_a_node_object_the_first_address_that_others_can_reach_is_primary() {
        let observed: &[&str] = &["127.0.0.1", "169.254.20.10", "192.168.7.5", "192.168.7.6", "fe80::5", "fd00::5"];
        let wanted = "127.0.0.1 169.254.20.10 192.168.7.5 192.168.7.6 ::1 fd00::5 fe80::5";
        check(NodePortAddresses::All, &[], Some(observed), wanted, "192.168.7.5 fd00::5"); // TP-34
    }
}
