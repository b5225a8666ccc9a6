//! Health-check node ports: by them a load balancer learns which nodes have an endpoint (HM-1…3, IN-21).

use std::collections::HashSet;
use std::net::IpAddr;
use std::num::NonZeroU16;

use imbl::ordmap::DiffItem;
use shunt_model::{EndpointSlice, Family, ObjectKey, Service, ServiceKind, Snapshot, TrafficPolicy};

use super::frontends::{is_balanced, ports_of};
use super::merge::endpoints_of;

/// A `healthCheckNodePort` to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port.
    pub port: NonZeroU16,
    /// How many addresses on this node have a ready endpoint of the Service, over all its ports (HM-3).
    pub local_endpoints: usize,
}

/// The addresses of health-check node ports: those that accept node ports of the family (HM-1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthCheckAddresses {
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
}

impl HealthCheckAddresses {
    /// In the order of [`Family::BOTH`].
    pub(crate) fn new([v4, v6]: [Vec<IpAddr>; 2]) -> Self {
        Self { v4, v6 }
    }

    /// The addresses to listen on, sorted. Empty means the wildcard: every address of the family accepts node ports, or
    /// none does, and the server must still answer a load balancer's probe.
    #[must_use]
    pub fn of(&self, family: Family) -> &[IpAddr] {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

/// The health checks of a Service, one for each family it has.
pub(super) fn health_checks(service: &Service, slices: &[&EndpointSlice], node: &str) -> Vec<(Family, HealthCheck)> {
    let Some(port) = service.health_check_node_port.filter(|_| wants_check(service)) else { return Vec::new() };
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

/// The Services that need a health-check node port but name none, and did not so in `old` (IN-21).
pub(super) fn newly_without_port<'a>(old: &'a Snapshot, new: &'a Snapshot) -> impl Iterator<Item = &'a ObjectKey> {
    let lacks = |service: &Service| wants_check(service) && service.health_check_node_port.is_none();
    old.services.diff(&new.services).filter_map(move |item| match item {
        DiffItem::Add(key, new) => lacks(new).then_some(key),
        DiffItem::Update { old: (_, old), new: (key, new) } => (lacks(new) && !lacks(old)).then_some(key),
        DiffItem::Remove(..) => None,
    })
}

fn wants_check(service: &Service) -> bool {
    is_balanced(service)
        && match &service.kind {
            ServiceKind::LoadBalancer => service.external_policy == TrafficPolicy::Local,
            ServiceKind::ClusterIp | ServiceKind::NodePort | ServiceKind::ExternalName(_) => false,
        }
}

#[cfg(test)]
mod tests {
    use crate::plan::fixture::{cluster, options, service, slice};
    use crate::plan::plan;

    const PORTS: &str = "http:80/tcp dns:53/udp";

    /// The health checks of a Service as `family port count`.
    #[track_caller]
    fn check(words: &str, endpoints: &str, wanted: &[&str]) {
        let service = service("web", &format!("ip=10.96.0.1 port=http:80/tcp port=dns:53/udp {words}"));
        let slices = [slice("web", "a", PORTS, endpoints), slice("web", "b", "http:8080/tcp", "f1:Rl")];
        let (plan, _) = plan(&cluster([service], slices), &options());
        let shown = |((_, family), check): (&(_, shunt_model::Family), &super::HealthCheck)| {
            format!("{family} {} {}", check.port, check.local_endpoints)
        };
        assert_eq!(plan.health_checks.iter().map(shown).collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn only_load_balancers_with_policy_local_have_health_checks() {
        let local = "type=lb eTP check=30900";
        check(local, "", &["IPv4 30900 0"]); // HM-4 makes that a 503
        check(&format!("{local} ip=fd00:96::1"), "", &["IPv4 30900 0", "IPv6 30900 1"]); // HM-1
        check("type=lb eTP", "e1:Rl", &[]); // IN-21: no number, no server
        check("type=lb check=30900", "e1:Rl", &[]);
        check("eTP ext=192.0.2.1 check=30900", "e1:Rl", &[]); // IN-21: the type counts
        check(&format!("{local} iTP"), "e1:Rl", &["IPv4 30900 1"]); // IN-21: iTP has no say
        check(&format!("{local} other"), "e1:Rl", &[]); // IN-1
    }

    #[test]
    fn a_missing_port_is_reported_once() {
        let of = |words: &str| cluster([service("web", &format!("ip=10.96.0.1 type=lb {words}"))], []);
        let told = |old, new| super::newly_without_port(&old, &new).count();
        assert_eq!(told(of(""), of("eTP")), 1); // IN-21
        assert_eq!(told(of("eTP"), of("eTP iTP")), 0);
        assert_eq!(told(of(""), of("eTP check=30900")), 0);
        assert_eq!(told(cluster([], []), of("eTP other")), 0); // IN-1
        assert_eq!(told(of("eTP"), cluster([], [])), 0);
    }

    #[test]
    fn addresses_of_ready_local_endpoints_count_once() {
        let local = "type=lb eTP check=30900";
        check(local, "e1:Rl; e2:R; e3:Ul; e4:Rl", &["IPv4 30900 2"]); // HM-3: both ports, yet two addresses
        check(local, "e1:Tl; e2:R", &["IPv4 30900 0"]); // HM-3: it serves, but does not count
    }
}
