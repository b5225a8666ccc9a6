//! Turns the plan of one service port into the content of the tables.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;

use shunt_model::{Family, ObjectKey, Protocol};

use super::SELF_TEST;
use super::layout::{Access, FrontendKey, Sources, Target};
use crate::plan::{EmptyAtSocket, Endpoint, Frontend, List, PortKey, PortPlan};

/// What the tables hold for a service port; `None` if it has no frontend.
///
/// Only pods and the node itself dial from a socket of this node, and their namespace says which. DT-1 has the same
/// rule for both, so each frontend has one access.
#[must_use]
pub(super) fn target(port: &PortPlan) -> Option<Target<'_>> {
    if port.frontends.is_empty() {
        return None;
    }
    let frontends = port.frontends.iter().map(|frontend| (key(port, frontend), access(frontend))).collect();
    Some(Target {
        frontends,
        cluster: &port.cluster,
        local: &port.local,
        draining: port.draining_at_sockets(),
        affinity: port.affinity.map_or(0, std::num::NonZero::get),
        keeps_destination: port.empty_local_at_sockets == EmptyAtSocket::Pass,
        ranges: port.source_ranges.as_ref().map(|ranges| Sources { prefixes: &ranges.ranges, node: ranges.node }),
    })
}

fn key(port: &PortPlan, frontend: &Frontend) -> FrontendKey {
    match frontend.address {
        Some(address) => FrontendKey::new(address, frontend.port, port.key.protocol),
        None => FrontendKey::node_port(port.key.family, frontend.port, port.key.protocol),
    }
}

fn access(frontend: &Frontend) -> Access {
    Access { list: frontend.at_sockets, filtered: frontend.filtered, falls_back: frontend.falls_back }
}

/// The service ports that the self-test dials: owner, frontend, and the loopback address it leads to.
pub(super) fn self_test() -> impl Iterator<Item = (PortKey, FrontendKey, Endpoint)> {
    SELF_TEST.into_iter().filter_map(|probe| {
        let family = Family::of(&probe.ip());
        let loopback: IpAddr = match family {
            Family::V4 => Ipv4Addr::LOCALHOST.into(),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        };
        let service = ObjectKey::new("shunt", "self-test");
        let owner = PortKey { service, port: Arc::default(), protocol: Protocol::Udp, family };
        let frontend = FrontendKey::new(probe.ip(), NonZeroU16::new(probe.port())?, Protocol::Udp);
        Some((owner, frontend, Endpoint { address: SocketAddr::new(loopback, probe.port()), local: true }))
    })
}

/// What the tables hold for the self-test.
pub(super) fn self_test_target(frontend: FrontendKey, endpoint: &[Endpoint]) -> Target<'_> {
    let access = Access { list: List::Cluster, filtered: false, falls_back: false };
    Target { frontends: vec![(frontend, access)], cluster: endpoint, ..Target::default() }
}
