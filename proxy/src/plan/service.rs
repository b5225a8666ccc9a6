//! One Service: its ports as planned, and the frontends it claims.

use std::sync::Arc;

use shunt_model::{EndpointSlice, Family, Service, ServicePort};

use super::claims::{Age, Claim, Claimant, Rank};
use super::frontends::{Site, Situation, empty_local_at_sockets, frontend, needs_of, ports_of, sites_of};
use super::lists::{ChosenLists, NodeAndZone, choose};
use super::merge::{endpoints_of, serving_under_a_former_name};
use super::node::ThisNode;
use super::ranges::source_ranges;
use super::{FrontendKind, PlanOptions, PortKey, PortPlan, SourceRanges, health_checks};

/// All ports of a service, with every frontend it claims.
pub(super) fn plan_service(
    service: &Service,
    slices: &[&EndpointSlice],
    options: &PlanOptions,
    here: &ThisNode,
) -> Vec<PortPlan> {
    let place = NodeAndZone { node: &options.node, zone: here.zone.as_deref() };
    let ranges: [Option<Arc<SourceRanges>>; 2] = Family::BOTH.map(|family| source_ranges(service, family, here));
    let plan_port = |(port, family, cluster_ip)| {
        let candidates = endpoints_of(slices, port, family, place.node);
        let needs = needs_of(service, port, family);
        let ChosenLists { cluster, local, mut draining, has_endpoints } = choose(&candidates, place, needs);
        if candidates.is_empty() {
            draining = serving_under_a_former_name(slices, service, port, family);
        }
        let [v4, v6] = &ranges;
        let source_ranges = match family {
            Family::V4 => v4.clone(),
            Family::V6 => v6.clone(),
        };
        let situation = Situation { has_endpoints, restricted: source_ranges.is_some(), family, options };
        let sites = sites_of(service, (port, family, cluster_ip), options.external_ips);
        PortPlan {
            key: key(service, port, family),
            frontends: sites.into_iter().map(|site| frontend(site, service, situation)).collect(),
            cluster,
            local,
            affinity: service.affinity,
            draining,
            source_ranges,
            empty_local_at_sockets: empty_local_at_sockets(has_endpoints, options),
        }
    };
    ports_of(service).map(plan_port).collect()
}

/// Every frontend that a Service claims, and its health-check node port. Depends on the Service and the options alone.
pub(super) fn stakes_of(service: &Service, options: &PlanOptions) -> Vec<(Claim, Claimant)> {
    let age = service.created.map_or(Age::Undated, Age::Created);
    let rank = move |kind| match kind {
        FrontendKind::ClusterIp => Rank::ClusterIp(age),
        FrontendKind::External | FrontendKind::LoadBalancer | FrontendKind::NodePort => Rank::Other(age),
    };
    let frontends = ports_of(service).flat_map(|(port, family, cluster_ip)| {
        let key = key(service, port, family);
        let sites = sites_of(service, (port, family, cluster_ip), options.external_ips);
        sites.into_iter().map(move |site| (claim(site, &key), Claimant { rank: rank(site.kind), port: key.clone() }))
    });
    let check = |(claim, port)| (claim, Claimant { rank: Rank::HealthCheck(age), port });
    frontends.chain(health_checks::claims_of(service).map(check)).collect()
}

/// A frontend of a service port as a claim.
pub(super) fn claim(site: Site, port: &PortKey) -> Claim {
    Claim { family: port.family, address: site.address, protocol: port.protocol, port: site.port }
}

fn key(service: &Service, port: &ServicePort, family: Family) -> PortKey {
    PortKey { service: service.key.clone(), port: port.name.clone(), protocol: port.protocol, family }
}
