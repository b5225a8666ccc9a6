//! Health-check node ports: by them a load balancer learns which nodes have an endpoint (spec HM-1…3, IN-21).

use std::collections::HashSet;
use std::net::IpAddr;
use std::num::NonZeroU16;

use shunt_model::{EndpointSlice, Family, Service, ServiceKind, TrafficPolicy};

use super::frontends::ports_of;
use super::merge::endpoints_of;

/// A `healthCheckNodePort` to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port.
    pub port: NonZeroU16,
    /// How many addresses on this node have a ready endpoint of the Service, over all its ports (spec HM-3).
    pub local_endpoints: usize,
}

/// The health checks of a Service, one for each family it has.
pub(super) fn health_checks(service: &Service, slices: &[&EndpointSlice], node: &str) -> Vec<(Family, HealthCheck)> {
    let is_local_balancer = match &service.kind {
        ServiceKind::LoadBalancer => service.external_policy == TrafficPolicy::Local,
        ServiceKind::ClusterIp | ServiceKind::NodePort | ServiceKind::ExternalName(_) => false,
    };
    let Some(port) = service.health_check_node_port.filter(|_| is_local_balancer) else { return Vec::new() };
    let of_family = |family| {
        let ports = ports_of(service).filter(|(_, of, _)| *of == family).map(|(port, ..)| port);
        let mut ports = ports.peekable();
        ports.peek()?;
        // Terminating endpoints are not ready, so they never count even while they are the ones that serve.
        let local = ports.flat_map(|port| endpoints_of(slices, port, family, node));
        let local = local.filter(|candidate| candidate.local && candidate.endpoint.ready);
        let addresses: HashSet<IpAddr> = local.map(|candidate| candidate.address.ip()).collect();
        Some((family, HealthCheck { port, local_endpoints: addresses.len() }))
    };
    Family::BOTH.into_iter().filter_map(of_family).collect()
}
