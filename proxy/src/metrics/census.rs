//! What a plan holds, counted by looking only at what changed since the last count.

use imbl::ordmap::DiffItem;
use shunt_model::Family;
use tokio::sync::watch;

use super::KubeProxy;
use crate::plan::{Empty, FrontendKind, List, Plan, PortPlan, Rule};
use crate::status::Status;

/// What a plan holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Service ports.
    pub ports: usize,
    /// Frontends.
    pub frontends: usize,
    /// Endpoints, counted once for each service port.
    pub endpoints: usize,
    /// Service ports with policy Local that have endpoints, but none on this node.
    pub without_local: WithoutLocal,
}

/// Service ports with policy Local that have endpoints, but none on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WithoutLocal {
    /// By `internalTrafficPolicy`: IPv4, IPv6.
    pub internal: [i64; 2],
    /// By `externalTrafficPolicy`: IPv4, IPv6.
    pub external: [i64; 2],
}

/// Counts one plan after another.
#[derive(Debug, Default)]
pub struct Census {
    counted: Plan,
    counts: Counts,
}

impl Census {
    /// What `plan` holds; costs as much as it differs from the plan counted before.
    pub fn count(&mut self, plan: &Plan) -> Counts {
        let old = std::mem::replace(&mut self.counted, plan.clone());
        let counts = &mut self.counts;
        for item in old.ports.diff(&self.counted.ports) {
            let (gone, come) = match item {
                DiffItem::Add(_, new) => (None, Some(new)),
                DiffItem::Remove(_, old) => (Some(old), None),
                DiffItem::Update { old: (_, old), new: (_, new) } => (Some(old), Some(new)),
            };
            if let Some(port) = gone {
                counts.frontends -= port.frontends.len();
                counts.endpoints -= reachable(port);
                count_without_local(port, -1, &mut counts.without_local);
            }
            if let Some(port) = come {
                counts.frontends += port.frontends.len();
                counts.endpoints += reachable(port);
                count_without_local(port, 1, &mut counts.without_local);
            }
        }
        counts.ports = self.counted.ports.len();
        *counts
    }
}

/// Counts what is planned into `counts`, and what is served into kube-proxy's metrics, until the status ends.
pub async fn follow(mut status: watch::Receiver<Status>, counts: watch::Sender<Counts>, kube_proxy: KubeProxy) {
    let mut census = Census::default();
    loop {
        let (plan, served) = {
            let status = status.borrow_and_update();
            (status.planned.clone(), status.last_sync.is_some() && status.error.is_none())
        };
        let counted = census.count(&plan);
        counts.send_replace(counted);
        if served {
            kube_proxy.serves(counted.without_local);
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// How many endpoints any of its frontends may lead to; the local ones are nearly always among the others.
fn reachable(port: &PortPlan) -> usize {
    port.cluster.len().max(port.local.len())
}

/// A port with endpoints, but without one on this node where policy Local needs one (NE-16). The plan drops packets
/// there for just that reason; `cluster` may be empty only because no frontend uses it.
fn count_without_local(port: &PortPlan, by: i64, count: &mut WithoutLocal) {
    if !port.local.is_empty() {
        return;
    }
    let elsewhere = |rule: Rule| rule.list == List::Local && rule.empty == Empty::Drop;
    let internal =
        port.frontends.iter().any(|frontend| frontend.kind == FrontendKind::ClusterIp && elsewhere(frontend.from_pods));
    let external = port
        .frontends
        .iter()
        .any(|frontend| frontend.kind != FrontendKind::ClusterIp && elsewhere(frontend.from_outside));
    let index = usize::from(port.key.family == Family::V6);
    for (counts, counted) in [(&mut count.internal, internal), (&mut count.external, external)] {
        if let Some(count) = counts.get_mut(index).filter(|_| counted) {
            *count += by;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::{cluster, options, service, slice};
    use crate::plan::plan;

    /// One Service of each row: its description and its endpoints. `wanted`: ports, frontends, endpoints, and without
    /// an endpoint here by the internal and by the external policy.
    #[track_caller]
    fn check(census: &mut Census, services: &[(&str, &str)], wanted: [i64; 5]) {
        let names: Vec<String> = (0..services.len()).map(|number| format!("s{number}")).collect();
        let objects = names.iter().zip(services).map(|(name, (text, _))| service(name, text));
        let slices = names.iter().zip(services).map(|(name, (_, ends))| slice(name, "a", ":80/tcp", ends));
        let (plan, _) = plan(&cluster(objects.collect::<Vec<_>>(), slices.collect::<Vec<_>>()), &options());
        let counts = census.count(&plan);
        assert_eq!(counts, Census::default().count(&plan), "as counted from nothing");
        let Counts { ports, frontends, endpoints, without_local: WithoutLocal { internal, external } } = counts;
        let number = |count: usize| i64::try_from(count).unwrap();
        let found = [number(ports), number(frontends), number(endpoints), internal[0], external[0]];
        assert_eq!(found, wanted, "{plan:?}");
        assert_eq!((internal[1], external[1]), (0, 0));
    }

    const PLAIN: &str = "ip=10.96.1.1 port=:80/tcp";

    #[test]
    fn counts_follow_the_plan_up_and_down() {
        let mut census = Census::default();
        check(&mut census, &[], [0, 0, 0, 0, 0]);
        check(&mut census, &[(PLAIN, "e1:R; e2:R")], [1, 1, 2, 0, 0]);
        check(&mut census, &[(PLAIN, "e1:R"), ("ip=10.96.1.2 port=:80/tcp", "")], [2, 2, 1, 0, 0]);
        check(&mut census, &[(PLAIN, "")], [1, 1, 0, 0, 0]);
        check(&mut census, &[], [0, 0, 0, 0, 0]);
    }

    #[test]
    fn ports_without_an_endpoint_here_are_counted_by_the_policy_that_asks_for_one() {
        let (internal, external) = ("ip=10.96.1.1 port=:80/tcp np=30080 iTP", "ip=10.96.1.1 port=:80/tcp np=30080 eTP");
        let mut census = Census::default();
        check(&mut census, &[(PLAIN, "e1:R")], [1, 1, 1, 0, 0]);
        check(&mut census, &[(internal, "e1:R")], [1, 2, 1, 1, 0]);
        check(&mut census, &[(internal, "e1:Rl")], [1, 2, 1, 0, 0]);
        check(&mut census, &[(external, "e1:R; e2:R")], [1, 2, 2, 0, 1]);
        check(&mut census, &[(external, "")], [1, 2, 0, 0, 0]);
        // Without any other frontend nothing uses the endpoints elsewhere, but they are there.
        let alone = "ip=10.96.1.1 port=:80/tcp iTP";
        check(&mut census, &[(alone, "e1:R")], [1, 1, 0, 1, 0]);
        check(&mut census, &[(alone, "e1:T")], [1, 1, 0, 1, 0]);
        check(&mut census, &[(alone, "e1:Rl")], [1, 1, 1, 0, 0]);
        check(&mut census, &[(alone, "e1:U")], [1, 1, 0, 0, 0]);
        check(&mut census, &[(alone, "")], [1, 1, 0, 0, 0]);
        let both = "ip=10.96.1.1 port=:80/tcp np=30080 iTP eTP";
        check(&mut census, &[(both, "e1:R")], [1, 2, 1, 1, 1]);
    }
}
