//! Turns the plan of one service port into the content of the tables.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;

use proxy_abi::SourceNat;
use shunt_model::{Family, ObjectKey, Protocol};

use super::SELF_TEST;
use super::layout::{Access, FrontendKey, Sources, Target};
use crate::plan::{Empty, EmptyAtSocket, Endpoint, Frontend, List, PortKey, PortPlan, Rule};

/// What the tables hold for a service port; `None` if it has no frontend.
///
/// A socket of this node is the node's or a pod's, and DT-1 has the same rule for both. Packets are from pods or from
/// outside, and where another list serves those, the frontend has a second element for them.
#[must_use]
pub(super) fn target(port: &PortPlan) -> Option<Target<'_>> {
    if port.frontends.is_empty() {
        return None;
    }
    let frontends = port.frontends.iter().flat_map(|frontend| {
        let (key, access) = (key(port, frontend), access(frontend));
        let outside = Access { list: frontend.from_outside.list, falls_back: false, ..access };
        let differs = outside.list != access.list;
        [Some((key, access)), differs.then(|| (key.outside(), outside))].into_iter().flatten()
    });
    let drops = |frontend: &Frontend| {
        let Rule { list, empty, masquerade: _ } = frontend.from_outside;
        list == List::Local && empty == Empty::Drop
    };
    Some(Target {
        frontends: frontends.collect(),
        cluster: &port.cluster,
        local: &port.local,
        draining: port.draining_at_sockets(),
        affinity: port.affinity.map_or(0, std::num::NonZero::get),
        keeps_destination: port.empty_local_at_sockets == EmptyAtSocket::Pass,
        silent: port.frontends.iter().any(drops),
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
    let Frontend { falls_back, filtered, at_sockets, from_pods, from_outside, .. } = frontend;
    let source_nat = SourceNat::new(from_pods.masquerade, from_outside.masquerade);
    Access { list: *at_sockets, filtered: *filtered, falls_back: *falls_back, source_nat }
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
    let source_nat = SourceNat::default();
    let access = Access { list: List::Cluster, filtered: false, falls_back: false, source_nat };
    Target { frontends: vec![(frontend, access)], cluster: endpoint, ..Target::default() }
}
