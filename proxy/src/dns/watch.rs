//! Watches the bundled DNS from outside, as a client would: when it does not answer, the cluster's own DNS pods take over.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::rr::Name;
use shunt_dns::View;
use shunt_model::{Service, Snapshot, with_causes};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::dns::service::probe;
use crate::plan::{Plan, PlanOptions, plan};

/// How often it is asked.
const EVERY: Duration = Duration::from_secs(1);
/// So many failures in a row are no accident.
const FAILURES: u32 = 3;

/// Asks for ever; `serving` is true as soon as it knows the cluster and as long as it answers.
pub async fn watch(
    addresses: Vec<SocketAddr>,
    domain: Name,
    mut views: watch::Receiver<View>,
    serving: watch::Sender<bool>,
) {
    if views.wait_for(|view| view.snapshot.is_some()).await.is_err() {
        return;
    }
    serving.send_replace(true);
    let mut failures = 0_u32;
    loop {
        tokio::time::sleep(EVERY).await;
        let mut failure = None;
        for address in &addresses {
            if let Err(error) = probe(*address, &domain).await {
                failure = Some(with_causes(&error));
            }
        }
        failures = if failure.is_some() { failures.saturating_add(1) } else { 0 };
        let serves = failures < FAILURES;
        let changed = serving.send_if_modified(|known| std::mem::replace(known, serves) != serves);
        match failure {
            Some(reason) if changed => warn!(reason, "the bundled DNS does not answer"),
            None if changed => info!("the bundled DNS answers again"),
            Some(_) | None => {}
        }
    }
}

/// The options under which the cluster's own DNS serves at its address, if it has an endpoint to do so; without one, a
/// server that may come back is better than none.
pub fn without_ours(options: &PlanOptions, snapshot: &Snapshot) -> Option<PlanOptions> {
    let ours = PlanOptions { dns_backends: Vec::new(), ..options.clone() };
    // A look at each of thousands of Services costs nothing beside a plan of all.
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
