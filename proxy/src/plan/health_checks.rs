//! Health-check node ports: by them a load balancer learns which nodes have an endpoint (HM-1…3, IN-21).

use std::collections::HashSet;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use shunt_model::{EndpointSlice, Family, ObjectKey, Protocol, Service, ServiceKind, Snapshot, TrafficPolicy};

use super::PortKey;
use super::claims::{Claim, Claims};
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

/// The name by which a health-check node port is in claims. No port of a Service has a name with capital letters.
const NAME: &str = "healthCheckNodePort";

/// The health-check node port of a Service in a family, as a claim.
fn claim_of(service: &Service, port: NonZeroU16, family: Family) -> (Claim, PortKey) {
    let protocol = Protocol::Tcp;
    let claim = Claim { family, address: None, protocol, port };
    (claim, PortKey { service: service.key.clone(), port: Arc::from(NAME), protocol, family })
}

/// What the health-check node ports of a Service claim: where another Service has the node port, none is served.
pub(super) fn claims_of(service: &Service) -> impl Iterator<Item = (Claim, PortKey)> {
    let port = service.health_check_node_port.filter(|_| wants_check(service));
    let has = |family: &Family| ports_of(service).any(|(_, of, _)| of == *family);
    let families = Family::BOTH.into_iter().filter(has);
    families.filter_map(move |family| port.map(|port| claim_of(service, port, family)))
}

/// The health checks of a Service, one for each family it has, where its claim is the first.
pub(super) fn health_checks(
    service: &Service,
    slices: &[&EndpointSlice],
    node: &str,
    claims: &Claims,
) -> Vec<(Family, HealthCheck)> {
    let of_family = |(claim, key): (Claim, PortKey)| {
        if !claims.is_won_by(&claim, &key) {
            return None;
        }
        let (Claim { port, .. }, family) = (claim, key.family);
        let ports = ports_of(service).filter(|(_, of, _)| *of == family).map(|(port, ..)| port);
        // Terminating endpoints are not ready, so they never count even while they are the ones that serve.
        let local = ports.flat_map(|port| endpoints_of(slices, port, family, node));
        let local = local.filter(|candidate| candidate.local && candidate.endpoint.ready);
        let addresses: HashSet<IpAddr> = local.map(|candidate| candidate.address.ip()).collect();
        Some((family, HealthCheck { port, local_endpoints: addresses.len() }))
    };
    claims_of(service).filter_map(of_family).collect()
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

    /// The health checks of Service `web` beside another Service, and the conflicts, whichever the planner sees first.
    #[track_caller]
    fn check_beside(other: &str, wanted: &[&str], lost: &[&str]) {
        let web = service("web", "ip=10.96.0.1 ip=fd00:96::1 port=http:80/tcp type=lb eTP check=30900 created=9");
        let both = cluster([web.clone(), service("other", other)], []);
        let (whole, conflicts) = plan(&both, &options());
        let checks = whole.health_checks.keys().filter(|(key, _)| *key.name == *"web");
        assert_eq!(checks.map(|(_, family)| family.to_string()).collect::<Vec<_>>(), wanted);
        let told: Vec<_> =
            conflicts.iter().map(|conflict| format!("{} {}", conflict.loser, conflict.frontend)).collect();
        assert_eq!(told, lost);
        let mut planner = crate::plan::Planner::new(options());
        planner.update(std::sync::Arc::new(cluster([web.clone()], [])));
        assert_eq!(planner.plan().health_checks.len(), 2, "alone it has both");
        assert_eq!(planner.update(std::sync::Arc::new(both)).health_checks, whole.health_checks);
        assert_eq!(planner.update(std::sync::Arc::new(cluster([web], []))).health_checks.len(), 2, "alone again");
    }

    #[test]
    fn a_node_port_of_another_service_comes_before_a_health_check() {
        const LOST: &str = "default/web:healthCheckNodePort/tcp *:30900/tcp";
        check_beside("ip=10.96.0.2 np=30900", &["IPv6"], &[LOST]);
        check_beside("ip=10.96.0.2 np=30900 created=99", &["IPv6"], &[LOST]);
        check_beside("ip=fd00:96::2 np=30900", &["IPv4"], &[LOST]);
        check_beside("ip=10.96.0.2 port=dns:53/udp np=30900", &["IPv4", "IPv6"], &[]);
        check_beside("ip=10.96.0.2 np=30901", &["IPv4", "IPv6"], &[]);
        // Of two health checks the older Service has it.
        let twin = "ip=10.96.0.2 type=lb eTP check=30900 created";
        check_beside(&format!("{twin}=1"), &["IPv6"], &[LOST]);
        let loser = "default/other:healthCheckNodePort/tcp *:30900/tcp";
        check_beside(&format!("{twin}=20"), &["IPv4", "IPv6"], &[loser]);
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
