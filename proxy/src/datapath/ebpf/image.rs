//! From the plan of one service port to what its tables must hold.

use super::layout::{FrontendKey, Target};
use crate::plan::{FrontendKind, List, PortPlan};

/// What the tables hold for a service port; `None` if it has no frontend that the socket path serves.
///
/// The socket path serves cluster IPs. Whoever dials one from a socket of this node is a pod or the node itself, for
/// whom spec 2.4 has the same rule, so one list serves the service port.
#[must_use]
pub(super) fn target(port: &PortPlan) -> Option<Target<'_>> {
    let served = || port.frontends.iter().filter(|frontend| frontend.kind == FrontendKind::ClusterIp);
    let rule = served().next()?.from_pods;
    let frontends = served()
        .filter_map(|frontend| Some(FrontendKey::new(frontend.address?, frontend.port, port.key.protocol)))
        .collect();
    let endpoints = match rule.list {
        List::Cluster => &port.cluster,
        List::Local => &port.local,
    };
    Some(Target { frontends, endpoints })
}
