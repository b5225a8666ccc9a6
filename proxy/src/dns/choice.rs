//! Which server the cluster DNS address leads to: ours, or while that does not serve, the cluster's own DNS pods.

use std::sync::Arc;

use shunt_model::{Service, Snapshot};
use tokio::sync::watch;
use tracing::info;

use crate::plan::{Plan, PlanOptions, plan};

/// Chooses between our server and the cluster's own, by the options of the plan.
#[derive(Debug)]
pub struct PlanChoice {
    /// With our server, if there is one.
    ours: PlanOptions,
    serves: watch::Receiver<bool>,
    /// The daemon stops, and our server with it.
    ending: bool,
    /// The options chosen last leave our server out.
    without_ours: bool,
}

impl PlanChoice {
    /// Our server is chosen first. `serves`: it knows the cluster and answers.
    #[must_use]
    pub fn new(ours: PlanOptions, serves: watch::Receiver<bool>) -> Self {
        Self { ours, serves, ending: false, without_ours: false }
    }

    /// The options to begin with.
    #[must_use]
    pub fn usual(&self) -> PlanOptions {
        self.ours.clone()
    }

    /// Returns when another choice may be due; never returns if none will be.
    pub async fn changed(&mut self) {
        if self.serves.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Notes that our server stops for good.
    pub fn end(&mut self) {
        self.ending = true;
    }

    /// Leads the cluster DNS address to our server; while our server does not serve, to the cluster's own DNS pods, if
    /// there are any. `None` if that is no change.
    pub fn choose(&mut self, snapshot: &Snapshot) -> Option<PlanOptions> {
        if self.ours.dns_backends.is_empty() {
            return None;
        }
        let ours_serves = *self.serves.borrow_and_update() && !self.ending;
        let others = if ours_serves { None } else { without_ours(&self.ours, snapshot) };
        if others.is_some() == self.without_ours {
            return None;
        }
        self.without_ours = others.is_some();
        let server = if self.without_ours { "the cluster's own" } else { "the bundled one" };
        info!(server, "the cluster DNS address leads to another server now");
        Some(others.unwrap_or_else(|| self.ours.clone()))
    }
}

/// The options under which the cluster's own DNS serves at its address, if it has an endpoint. Without one our server
/// stays: it may come back, so it is better than none.
fn without_ours(options: &PlanOptions, snapshot: &Snapshot) -> Option<PlanOptions> {
    let ours = PlanOptions { dns_backends: Vec::new(), ..options.clone() };
    // To look at thousands of Services costs little beside a plan of all.
    let candidates = snapshot.services.iter().filter(|(_, service)| may_serve(service, options));
    let services = candidates.map(|(key, service)| (key.clone(), Arc::clone(service))).collect();
    let (plan, _) = plan(&Snapshot { services, ..snapshot.clone() }, &ours);
    serves_dns(&plan, options).then_some(ours)
}

fn may_serve(service: &Service, options: &PlanOptions) -> bool {
    let lists = [service.cluster_ips.addresses(), &service.external_ips, &service.load_balancer_ips];
    lists.into_iter().flatten().any(|address| options.cluster_dns.contains(&address.to_canonical()))
}

fn serves_dns(plan: &Plan, options: &PlanOptions) -> bool {
    plan.ports.values().any(|port| {
        let leads = |frontend: &crate::plan::Frontend| {
            frontend.port.get() == crate::config::DNS_PORT
                && frontend.address.is_some_and(|address| options.cluster_dns.contains(&address))
        };
        !port.cluster.is_empty() && port.frontends.iter().any(leads)
    })
}
