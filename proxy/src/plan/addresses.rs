//! What an address means besides its frontends: whether node ports are accepted there, whether it refuses other ports.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;

use super::{FrontendKind, PortPlan};

/// What an address means at the ports where it is no frontend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressMeaning {
    /// Whether the address accepts node ports, and from which clients.
    pub node_ports: Option<NodePorts>,
    /// It is a cluster IP: a flow to a port that is neither one of its frontends nor a node port is refused (NE-11).
    pub refuses_other_ports: bool,
}

/// The clients from which an address accepts node ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePorts {
    /// Every client.
    FromAnywhere,
    /// This node alone. So a loopback address does, since every network namespace has a loopback of its own.
    FromNodeOnly,
}

/// Keeps [`Plan::addresses`](super::Plan::addresses) up to date, at the cost of what changed.
#[derive(Debug, Default)]
pub(super) struct AddressBook {
    meanings: OrdMap<IpAddr, AddressMeaning>,
    uses: HashMap<IpAddr, Uses>,
    /// The addresses of this node, but for loopback.
    own: Arc<BTreeSet<IpAddr>>,
    /// Those of them that accept node ports, and those of loopback that do.
    node_ports: Arc<BTreeSet<IpAddr>>,
}

/// How many frontends name an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Uses {
    /// As a cluster IP.
    cluster_ip: u32,
    /// As an external IP or a load balancer's address.
    external: u32,
}

impl AddressBook {
    /// What each address means; an address that nothing uses has no entry.
    pub(super) fn meanings(&self) -> &OrdMap<IpAddr, AddressMeaning> {
        &self.meanings
    }

    /// Sets the addresses of this node, and those that accept node ports.
    pub(super) fn set_node(&mut self, own: &Arc<BTreeSet<IpAddr>>, node_ports: &Arc<BTreeSet<IpAddr>>) {
        let owned = std::mem::replace(&mut self.own, Arc::clone(own));
        let accepted = std::mem::replace(&mut self.node_ports, Arc::clone(node_ports));
        for address in owned.symmetric_difference(own).chain(accepted.symmetric_difference(node_ports)) {
            self.judge(*address);
        }
    }

    /// Follows a service port that was added, changed or removed.
    pub(super) fn follow(&mut self, old: Option<&PortPlan>, new: Option<&PortPlan>) {
        let (old, new) = (sites(old), sites(new));
        if old == new {
            return;
        }
        for (address, kind) in &new {
            let uses = self.uses.entry(*address).or_default().of(*kind);
            *uses = uses.saturating_add(1);
        }
        for (address, kind) in &old {
            if let Some(uses) = self.uses.get_mut(address) {
                let count = uses.of(*kind);
                *count = count.saturating_sub(1);
                if *uses == Uses::default() {
                    self.uses.remove(address);
                }
            }
        }
        for (address, _) in old.iter().chain(&new) {
            self.judge(*address);
        }
    }

    /// Updates the meaning of an address; writes to the map only if it changed.
    fn judge(&mut self, address: IpAddr) {
        let uses = self.uses.get(&address);
        let node_ports = self.node_ports.contains(&address).then(|| match address.is_loopback() {
            true => NodePorts::FromNodeOnly,
            false => NodePorts::FromAnywhere,
        });
        if uses.is_none() && node_ports.is_none() && !self.own.contains(&address) {
            if self.meanings.contains_key(&address) {
                self.meanings.remove(&address);
            }
            return;
        }
        // Loopback is each namespace's own, whatever a Service claims.
        let refuses_other_ports = !address.is_loopback() && uses.is_some_and(|uses| uses.cluster_ip > 0);
        let meaning = AddressMeaning { node_ports, refuses_other_ports };
        if self.meanings.get(&address) != Some(&meaning) {
            self.meanings.insert(address, meaning);
        }
    }
}

impl Uses {
    fn of(&mut self, kind: FrontendKind) -> &mut u32 {
        match kind {
            FrontendKind::ClusterIp => &mut self.cluster_ip,
            FrontendKind::External | FrontendKind::LoadBalancer | FrontendKind::NodePort => &mut self.external,
        }
    }
}

fn sites(port: Option<&PortPlan>) -> Vec<(IpAddr, FrontendKind)> {
    let frontends = port.into_iter().flat_map(|port| &port.frontends);
    frontends.filter_map(|frontend| Some((frontend.address?, frontend.kind))).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use shunt_model::Snapshot;

    use super::*;
    use crate::plan::fixture::{cluster, ip, options, service, set_node};
    use crate::plan::{Plan, Planner};

    fn snapshot(services: &[(&str, &str)]) -> Arc<Snapshot> {
        let mut snapshot = cluster(services.iter().map(|(name, words)| service(name, words)), []);
        set_node(&mut snapshot, None, &["198.51.100.1"]);
        Arc::new(snapshot)
    }

    /// Every address and what it means.
    fn shown(plan: &Plan) -> Vec<String> {
        let words = |(address, meaning): (&IpAddr, &AddressMeaning)| {
            let AddressMeaning { node_ports, refuses_other_ports } = meaning;
            let node_ports = match node_ports {
                Some(NodePorts::FromAnywhere) => " node",
                Some(NodePorts::FromNodeOnly) => " loopback",
                None => "",
            };
            format!("{address}{node_ports}{}", if *refuses_other_ports { " refuses" } else { "" })
        };
        plan.addresses.iter().map(words).collect()
    }

    const NODE: [&str; 3] = ["127.0.0.1 loopback", "198.51.100.1 node", "::1 loopback"];

    #[test]
    fn an_address_is_a_cluster_ip_as_long_as_one_port_says_so() {
        let mut planner = Planner::new(options());
        let mut check = |services: &[(&str, &str)], wanted: &[&str]| {
            let plan = planner.update(snapshot(services));
            let mut wanted: Vec<String> = wanted.iter().chain(&NODE).map(|&text| text.to_owned()).collect();
            wanted.sort_by_key(|text| ip(text.split(' ').next().unwrap()));
            assert_eq!(shown(plan), wanted);
        };
        let web = ("web", "ip=10.96.0.1 ext=192.0.2.1 np=30080");
        let two = ("web", "ip=10.96.0.1 port=a:1/tcp port=b:2/udp");
        check(&[web], &["10.96.0.1 refuses", "192.0.2.1"]); // NE-11, NE-14
        check(&[two], &["10.96.0.1 refuses"]);
        check(&[two, ("api", "ip=10.96.0.2 ext=10.96.0.1")], &["10.96.0.1 refuses", "10.96.0.2 refuses"]);
        check(&[("api", "ip=10.96.0.2 ext=10.96.0.1")], &["10.96.0.1", "10.96.0.2 refuses"]);
        check(&[], &[]);
    }

    #[test]
    fn an_address_of_the_node_may_be_a_cluster_ip_too() {
        let mut planner = Planner::new(options());
        let plan = planner.update(snapshot(&[("web", "ip=198.51.100.1")])).clone();
        assert_eq!(shown(&plan), ["127.0.0.1 loopback", "198.51.100.1 node refuses", "::1 loopback"]);
        planner.observe_addresses(Arc::new([ip("198.51.100.2")].into()));
        let plan = planner.update(snapshot(&[("web", "ip=198.51.100.1")]));
        let wanted = ["127.0.0.1 loopback", "198.51.100.1 refuses", "198.51.100.2 node", "::1 loopback"];
        assert_eq!(shown(plan), wanted);
    }

    #[test]
    fn addresses_stay_shared_unless_one_means_something_else() {
        let mut planner = Planner::new(options());
        let before = planner.update(snapshot(&[("web", "ip=10.96.0.1")])).clone();
        let after = planner.update(snapshot(&[("web", "ip=10.96.0.1 aff=60")])).clone();
        assert_ne!(before.ports, after.ports);
        assert!(before.addresses.ptr_eq(&after.addresses));
    }
}
