//! A plan for people and scripts: the table and the JSON of `shunt plan`. The field names are a stable interface.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::Serialize;
use shunt_model::{Family, ObjectKey, Protocol};

use super::{
    Empty, EmptyAtSocket, Endpoint, Frontend, FrontendKind, HealthCheck, List, Plan, PortPlan, Rule, SourceRanges,
};
use crate::columns::aligned;

/// A plan: `{"ports": [...], ...}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanView<'a> {
    /// Ordered by namespace, name, port, protocol and family.
    pub ports: Vec<PortView<'a>>,
    /// Addresses of this node that accept node ports.
    pub node_addresses: Vec<IpAddr>,
    /// Addresses of local Pods that opted out: their sockets are left alone.
    pub opted_out: Vec<IpAddr>,
    /// Networks of the pods of this node, as packets show them.
    pub pod_networks: &'a [IpNet],
    /// Health-check node ports.
    pub health_checks: Vec<HealthCheckView<'a>>,
    /// The addresses on which those servers listen; without one of a family, every address of that family.
    pub health_check_addresses: Vec<IpAddr>,
}

/// A health-check node port of a Service in one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheckView<'a> {
    /// Namespace of the Service.
    pub namespace: &'a str,
    /// Name of the Service.
    pub name: &'a str,
    /// `IPv4` or `IPv6`.
    pub family: Family,
    /// Where it is served.
    pub port: u16,
    /// How many addresses on this node have a ready endpoint.
    pub local_endpoints: usize,
}

/// A service port in one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortView<'a> {
    /// Namespace of the Service.
    pub namespace: &'a str,
    /// Name of the Service.
    pub name: &'a str,
    /// Name of the port, "" if unnamed.
    pub port: &'a str,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: Protocol,
    /// `IPv4` or `IPv6`.
    pub family: Family,
    /// Where clients dial.
    pub frontends: Vec<FrontendView>,
    /// The endpoints of policy Cluster.
    pub cluster: Vec<EndpointView>,
    /// The endpoints of policy Local.
    pub local: Vec<EndpointView>,
    /// Timeout of ClientIP affinity in seconds, null without affinity.
    pub affinity_seconds: Option<u32>,
    /// Endpoints that serve but get no new flow; running flows go on.
    pub draining: &'a [SocketAddr],
    /// The sources that may dial the LoadBalancer frontends; null means every source.
    pub source_ranges: Option<SourceRangesView<'a>>,
    /// What a socket of this node gets that `local` serves, when `local` is empty: `refuse` or `pass`.
    pub empty_local_at_sockets: EmptyAtSocket,
}

/// A restriction of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceRangesView<'a> {
    /// The networks that are let through.
    pub ranges: &'a [IpNet],
    /// This node's primary address is among them.
    pub node: bool,
}

/// A frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendView {
    /// The address, null for a node port.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// `ClusterIP`, `ExternalIP`, `LoadBalancer` or `NodePort`.
    pub kind: FrontendKind,
    /// Only sources inside the source ranges may dial it.
    pub filtered: bool,
    /// The list that serves a socket of this node: `cluster` or `local`.
    pub at_sockets: List,
    /// It is the node's own DNS: while that is closed, sockets get the endpoints of `cluster` that are not local.
    pub falls_back: bool,
    /// What serves flows from pods.
    pub from_pods: RuleView,
    /// What serves flows from the node itself.
    pub from_node: RuleView,
    /// What serves all other flows.
    pub from_outside: RuleView,
}

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleView {
    /// `cluster` or `local`.
    pub list: List,
    /// What happens to packets when that list is empty: `reject` or `drop`.
    pub empty: Empty,
    /// A packet's source becomes an address of this node.
    pub masquerade: bool,
}

/// An endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointView {
    /// `10.1.0.1:80` or `[fd00::1]:80`.
    pub address: SocketAddr,
    /// It runs on this node.
    pub local: bool,
}

impl<'a> From<&'a Plan> for PlanView<'a> {
    fn from(plan: &'a Plan) -> Self {
        // `service_cidrs` is left out: it is what the caller said, and no part of what the node does.
        let Plan { ports, addresses, opted_out, pods, health_checks, health_check_addresses, service_cidrs: _ } = plan;
        let of_node = addresses.iter().filter(|(_, meaning)| meaning.node_ports.is_some());
        let check = |((service, family), check): (&'a (ObjectKey, Family), &HealthCheck)| HealthCheckView {
            namespace: &service.namespace,
            name: &service.name,
            family: *family,
            port: check.port.get(),
            local_endpoints: check.local_endpoints,
        };
        Self {
            ports: ports.values().map(|port| PortView::from(&**port)).collect(),
            node_addresses: of_node.map(|(address, _)| *address).collect(),
            opted_out: opted_out.iter().copied().collect(),
            pod_networks: &pods.networks,
            health_checks: health_checks.iter().map(check).collect(),
            health_check_addresses: Family::BOTH
                .iter()
                .flat_map(|family| health_check_addresses.of(*family))
                .copied()
                .collect(),
        }
    }
}

impl<'a> From<&'a PortPlan> for PortView<'a> {
    fn from(port: &'a PortPlan) -> Self {
        let PortPlan { key, frontends, cluster, local, affinity, draining, source_ranges, empty_local_at_sockets } =
            port;
        let restriction = |ranges: &'a SourceRanges| {
            let SourceRanges { ranges, node } = ranges;
            SourceRangesView { ranges, node: *node }
        };
        Self {
            namespace: &key.service.namespace,
            name: &key.service.name,
            port: &key.port,
            protocol: key.protocol,
            family: key.family,
            frontends: frontends.iter().map(FrontendView::from).collect(),
            cluster: cluster.iter().map(EndpointView::from).collect(),
            local: local.iter().map(EndpointView::from).collect(),
            affinity_seconds: affinity.map(std::num::NonZero::get),
            draining,
            source_ranges: source_ranges.as_deref().map(restriction),
            empty_local_at_sockets: *empty_local_at_sockets,
        }
    }
}

impl From<&Frontend> for FrontendView {
    fn from(frontend: &Frontend) -> Self {
        let Frontend { falls_back, address, port, kind, filtered, at_sockets, from_pods, from_node, from_outside } =
            *frontend;
        let rule = |rule| {
            let Rule { list, empty, masquerade } = rule;
            RuleView { list, empty, masquerade }
        };
        Self {
            address,
            port: port.get(),
            kind,
            filtered,
            at_sockets,
            falls_back,
            from_pods: rule(from_pods),
            from_node: rule(from_node),
            from_outside: rule(from_outside),
        }
    }
}

impl From<&Endpoint> for EndpointView {
    fn from(endpoint: &Endpoint) -> Self {
        let Endpoint { address, local } = *endpoint;
        Self { address, local }
    }
}

/// The plan as indented JSON, see [`PlanView`].
pub fn render_json(plan: &Plan) -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(&PlanView::from(plan))
}

/// The plan as a table, one line per service port and family. `*` marks endpoints on this node; a node port is shown
/// as `*:30080/tcp`.
#[must_use]
pub fn render_table(plan: &Plan) -> String {
    let title = ["NAMESPACE/NAME", "PORT", "FRONTENDS", "ENDPOINTS"].map(str::to_owned);
    let rows: Vec<[String; 4]> = [title].into_iter().chain(plan.ports.values().map(|port| row(port))).collect();
    aligned(&rows)
}

fn row(port: &PortPlan) -> [String; 4] {
    let protocol = port.key.protocol;
    let name = if port.key.port.is_empty() { "-" } else { &port.key.port };
    let frontends = port.frontends.iter().map(|f| format!("{}/{protocol}", socket(f.address, f.port.get())));
    [port.key.service.to_string(), name.to_owned(), join(frontends), join(endpoints(port))]
}

/// All endpoints that any frontend may lead to (EP-23).
fn endpoints(port: &PortPlan) -> impl Iterator<Item = String> {
    let mut reachable: Vec<&Endpoint> = port.cluster.iter().chain(&port.local).collect();
    reachable.sort_unstable();
    reachable.dedup();
    reachable.into_iter().map(|endpoint| format!("{}{}", endpoint.address, if endpoint.local { "*" } else { "" }))
}

fn join(cells: impl Iterator<Item = String>) -> String {
    let joined = cells.collect::<Vec<_>>().join(",");
    if joined.is_empty() { "<none>".to_owned() } else { joined }
}

/// `10.0.0.1:80`, `[fd00::1]:80`, or `*:80` for every accepted node address.
pub(super) fn socket(address: Option<IpAddr>, port: u16) -> String {
    address.map_or_else(|| format!("*:{port}"), |address| SocketAddr::new(address, port).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::{cluster, options, service, slice};
    use crate::plan::plan;

    fn example() -> Plan {
        let services = [
            service("web", "ip=10.96.0.1 ip=fd00:96::1 np=30080 eTP aff=600"),
            service("empty", "ip=10.96.0.2 port=:53/udp"),
        ];
        let slices =
            [slice("web", "a", "http:8080/tcp", "e1:R; e2:Ul; e3:Tl"), slice("web", "b", "http:8080/tcp", "f1:Rl")];
        plan(&cluster(services, slices), &options()).0
    }

    #[test]
    fn the_table_has_a_line_per_service_port_and_family() {
        let lines: Vec<Vec<String>> =
            render_table(&example()).lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect();
        assert_eq!(
            lines,
            [
                ["NAMESPACE/NAME", "PORT", "FRONTENDS", "ENDPOINTS"],
                ["default/empty", "-", "10.96.0.2:53/udp", "<none>"],
                ["default/web", "http", "*:30080/tcp,10.96.0.1:80/tcp", "10.1.0.1:8080,10.1.0.3:8080*"], // EV-28, EP-23
                ["default/web", "http", "*:30080/tcp,[fd00:96::1]:80/tcp", "[fd00::1]:8080*"],
            ]
        );
    }

    #[test]
    fn the_json_keeps_its_field_names() {
        let json: serde_json::Value = serde_json::from_str(&render_json(&example()).unwrap()).unwrap();
        let rule =
            |list, empty, masquerade| serde_json::json!({ "list": list, "empty": empty, "masquerade": masquerade });
        let [plain, masqueraded] = [false, true].map(|masquerade| rule("cluster", "reject", masquerade));
        let local = rule("local", "drop", false);
        assert_eq!(json["ports"].as_array().unwrap().len(), 3);
        assert_eq!(
            json["ports"][1],
            serde_json::json!({
                "namespace": "default", "name": "web", "port": "http", "protocol": "TCP", "family": "IPv4",
                "emptyLocalAtSockets": "refuse",
                "frontends": [
                    { "address": null, "port": 30080, "kind": "NodePort", "filtered": false, "atSockets": "cluster",
                      "fallsBack": false, "fromPods": plain, "fromNode": masqueraded, "fromOutside": local },
                    { "address": "10.96.0.1", "port": 80, "kind": "ClusterIP", "filtered": false, "atSockets": "cluster",
                      "fallsBack": false, "fromPods": plain, "fromNode": masqueraded, "fromOutside": masqueraded },
                ],
                "cluster": [{ "address": "10.1.0.1:8080", "local": false }],
                "local": [{ "address": "10.1.0.3:8080", "local": true }],
                "affinitySeconds": 600,
                "draining": [],
                "sourceRanges": null,
            })
        );
    }
}
