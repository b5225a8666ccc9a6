//! This node as the plan sees it: its zone, its primary addresses, and where it accepts node ports (spec 3.2, EP-12).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use shunt_model::{Family, Node, Snapshot};

use super::{NodePortAddresses, PlanOptions};

/// Stands for all of 127.0.0.0/8.
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// What the plan knows of the node it is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Here {
    /// Own zone, if the node has one.
    pub(super) zone: Option<Arc<str>>,
    /// The primary address of each family, see [`Here::primary`].
    primary: [Option<IpAddr>; 2],
    /// As [`Plan::node_addresses`](super::Plan::node_addresses).
    pub(super) node_ports: Arc<BTreeSet<IpAddr>>,
}

impl Here {
    /// `observed` are the addresses of this node's interfaces; until they are known, those of the Node object count.
    pub(super) fn new(snapshot: &Snapshot, options: &PlanOptions, observed: Option<&BTreeSet<IpAddr>>) -> Self {
        let node = snapshot.nodes.get(&options.node).map(Arc::as_ref);
        let assigned: BTreeSet<IpAddr> = match observed {
            Some(observed) => observed.iter().map(IpAddr::to_canonical).collect(),
            None => listed(node).collect(),
        };
        let node_ports = LOOPBACK.iter().chain(assigned.iter().filter(|address| !address.is_loopback())).copied();
        Self {
            zone: node.and_then(|node| node.zone.clone()),
            primary: Family::BOTH.map(|family| primary(node, family).or_else(|| first(&assigned, family))),
            node_ports: Arc::new(node_ports.filter(|address| accepts(&options.node_ports, node, address)).collect()),
        }
    }

    /// The node's primary address of `family`, as source ranges see it (spec TP-34).
    pub(super) fn primary(&self, family: Family) -> Option<IpAddr> {
        let [v4, v6] = self.primary;
        match family {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }
}

/// The address under which a set of node addresses would hold `address`: one stands for all of IPv4 loopback.
pub(super) fn as_listed(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) if v4.is_loopback() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V4(_) | IpAddr::V6(_) => address,
    }
}

fn accepts(wanted: &NodePortAddresses, node: Option<&Node>, address: &IpAddr) -> bool {
    let family = Family::of(address);
    match wanted {
        NodePortAddresses::All => true,
        // Only what the Node object says: a guess would open node ports on an address that nobody named.
        NodePortAddresses::Primary => primary(node, family) == Some(*address),
        NodePortAddresses::Within(networks) => {
            let mut of_family = networks.iter().filter(|network| Family::of(&network.addr()) == family).peekable();
            of_family.peek().is_none() || of_family.any(|network| network.contains(address))
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

/// The first that another machine could know; link-local ones are the same on every node.
fn first(assigned: &BTreeSet<IpAddr>, family: Family) -> Option<IpAddr> {
    let is_link_local = |address: &IpAddr| match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let mut of_family = assigned.iter().filter(|address| Family::of(address) == family);
    of_family.find(|address| !address.is_loopback() && !is_link_local(address)).copied()
}
