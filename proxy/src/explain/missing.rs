//! Why a Service that the cluster has is not in the plan, for whoever asks where its connections go.

use std::sync::Arc;

use shunt_model::{ClusterIps, Family, ObjectKey, Service, ServiceKind, Snapshot};

use crate::plan::{Frontend, Plan, PortPlan};

/// What the cluster's Service of that name lacks, if it has one: words that follow its name.
pub(super) fn why_missing(snapshot: &Snapshot, plan: &Plan, key: &ObjectKey, port: Option<&str>) -> Option<String> {
    let service = snapshot.services.get(key)?;
    if let ServiceKind::ExternalName(target) = &service.kind {
        return Some(format!("is an alias of {target}, which only DNS knows: see `shunt dns`"));
    }
    if service.other_proxy {
        return Some("is left to another proxy by its label service.kubernetes.io/service-proxy-name".to_owned());
    }
    match &service.cluster_ips {
        ClusterIps::Headless => {
            Some("is headless: clients dial the endpoints themselves, which DNS names (`shunt dns`)".to_owned())
        }
        ClusterIps::Unassigned => Some("has no cluster IP yet".to_owned()),
        ClusterIps::Assigned(_) => Some(without_frontend(plan, service, port)),
    }
}

fn without_frontend(plan: &Plan, service: &Service, port: Option<&str>) -> String {
    let is_meant = |name: &str, number: u16| port.is_none_or(|port| *name == *port || number.to_string() == *port);
    let mut meant = service.ports.iter().filter(|port| is_meant(&port.name, port.port.get())).peekable();
    if meant.peek().is_none() {
        let ports = service.ports.iter().map(|port| match port.name.is_empty() {
            true => format!("{}/{}", port.port, port.protocol),
            false => format!("{} ({}/{})", port.name, port.port, port.protocol),
        });
        return format!("has no such port, but {}", ports.collect::<Vec<_>>().join(", "));
    }
    let owner = meant.find_map(|port| {
        let ips = || Family::BOTH.iter().filter_map(|family| service.cluster_ip(*family));
        let is_there = |frontend: &Frontend| {
            frontend.port == port.port && frontend.address.is_some_and(|address| ips().any(|ip| ip == address))
        };
        let has =
            |planned: &&Arc<PortPlan>| planned.key.protocol == port.protocol && planned.frontends.iter().any(is_there);
        plan.ports.values().find(has).map(|planned| &planned.key.service)
    });
    match owner {
        Some(owner) => format!("has no frontend of its own there: {owner} answers at its address; explain that one"),
        None => "has no frontend here, although the cluster has it: see the daemon's log about it".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use crate::explain::explain;
    use crate::plan::fixture::{NODE, cluster, ip, options, service};
    use crate::plan::{PlanOptions, plan};

    /// What is said of a destination that has nothing planned.
    #[track_caller]
    fn check(words: &str, destination: &str, wanted: &str) {
        let older = service("older", "ip=10.96.0.9 port=http:80/tcp created=1");
        let snapshot = cluster([older, service("web", words)], []);
        let options = PlanOptions {
            cluster_dns: vec![ip("10.96.0.10")],
            dns_backends: vec!["169.254.20.10:53".parse().unwrap()],
            ..options()
        };
        let (plan, _) = plan(&snapshot, &options);
        assert_eq!(explain(&snapshot, &plan, NODE, "node", destination).unwrap_err().to_string(), wanted);
    }

    #[test]
    fn a_service_that_is_not_in_the_plan_says_why() {
        let dns = "ip=10.96.0.10 port=dns:53/udp port=metrics:9153/tcp";
        let theirs = "there: shunt/cluster-dns answers at its address; explain that one";
        check(dns, "default/web:dns", &format!("default/web:dns: default/web has no frontend of its own {theirs}"));
        check(
            dns,
            "web.default:53/udp",
            &format!("web.default:53/udp: default/web has no frontend of its own {theirs}"),
        );
        let named = "default/web:https: default/web has no such port, but dns (53/udp), metrics (9153/tcp)";
        check(dns, "default/web:https", named);
        let older = "there: default/older answers at its address; explain that one";
        check(
            "ip=10.96.0.9 created=2",
            "default/web",
            &format!("default/web: default/web has no frontend of its own {older}"),
        );
        let headless = "is headless: clients dial the endpoints themselves, which DNS names (`shunt dns`)";
        check("headless", "default/web", &format!("default/web: default/web {headless}"));
        check("", "default/web", "default/web: default/web has no cluster IP yet");
        let alias = "default/web: default/web is an alias of example.com, which only DNS knows: see `shunt dns`";
        check("alias", "default/web", alias);
        let label = "default/web is left to another proxy by its label service.kubernetes.io/service-proxy-name";
        check("ip=10.96.0.1 other", "default/web", &format!("default/web: {label}"));
    }
}
