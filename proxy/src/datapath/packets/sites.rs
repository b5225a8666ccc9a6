//! Where the frontends of a plan are dialled, and which of them an address and port mean.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use shunt_model::{Family, Protocol};

use crate::plan::{Frontend, Plan, PortPlan};

/// Where a frontend is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::datapath) enum Site {
    Address(SocketAddr),
    NodePort(Family, u16),
}

/// All frontends of a plan.
#[derive(Debug)]
pub(in crate::datapath) struct Sites<'a> {
    plan: &'a Plan,
    ports: HashMap<(Protocol, Site), &'a Arc<PortPlan>>,
}

impl<'a> Sites<'a> {
    pub(in crate::datapath) fn of(plan: &'a Plan) -> Self {
        let of_port =
            |port: &'a Arc<PortPlan>| sites(port).into_iter().map(move |site| ((port.key.protocol, site), port));
        Self { plan, ports: plan.ports.values().flat_map(of_port).collect() }
    }

    /// The service port that is dialled at `dialled`. One that names the address comes before node ports (TP-4).
    pub(in crate::datapath) fn port(&self, protocol: Protocol, dialled: SocketAddr) -> Option<&'a Arc<PortPlan>> {
        self.ports.get(&(protocol, Site::Address(dialled))).copied().or_else(|| {
            let node_port = Site::NodePort(Family::of(&dialled.ip()), dialled.port());
            let port = self.ports.get(&(protocol, node_port)).copied();
            port.filter(|_| accepts_node_ports(self.plan, dialled.ip()))
        })
    }
}

/// Where the frontends of a service port are dialled.
pub(in crate::datapath) fn sites(port: &PortPlan) -> Vec<Site> {
    let site = |frontend: &Frontend| match frontend.address {
        Some(address) => Site::Address(SocketAddr::new(address, frontend.port.get())),
        None => Site::NodePort(port.key.family, frontend.port.get()),
    };
    port.frontends.iter().map(site).collect()
}

pub(in crate::datapath) fn accepts_node_ports(plan: &Plan, address: IpAddr) -> bool {
    plan.meaning(address).is_some_and(|meaning| meaning.node_ports.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::{cluster, options, service, set_node, slice};
    use crate::plan::{NodePortAddresses, PlanOptions, plan};

    #[test]
    fn a_socket_address_means_what_names_it_before_a_node_port() {
        let services = [
            service("web", "ip=10.96.0.1 port=http:80/tcp np=30080"),
            service("own", "ip=10.96.0.2 port=http:30080/tcp ext=192.0.2.1"),
        ];
        let mut snapshot = cluster(services, [slice("web", "a", "http:8080/tcp", "e1:R")]);
        set_node(&mut snapshot, None, &["192.0.2.1", "192.0.2.2"]);
        let options = PlanOptions { node_ports: NodePortAddresses::All, ..options() };
        let plan = plan(&snapshot, &options).0;
        let sites = Sites::of(&plan);
        let check = |dialled: &str, protocol, wanted: Option<&str>| {
            let found = sites.port(protocol, dialled.parse().unwrap());
            assert_eq!(found.map(|port| port.key.service.name.to_string()).as_deref(), wanted, "{dialled}");
        };
        check("10.96.0.1:80", Protocol::Tcp, Some("web"));
        check("10.96.0.1:80", Protocol::Udp, None);
        check("192.0.2.1:30080", Protocol::Tcp, Some("own"));
        check("192.0.2.2:30080", Protocol::Tcp, Some("web"));
        check("203.0.113.1:30080", Protocol::Tcp, None);
    }
}
