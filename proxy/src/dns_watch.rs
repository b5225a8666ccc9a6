//! Watches the bundled DNS from outside, as a client would: when it does not answer, the cluster's own DNS pods take over.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::rr::Name;
use shunt_model::with_causes;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::dns_service::probe;
use crate::plan::{Plan, PlanOptions, plan};
use shunt_model::Snapshot;

/// How often it is asked.
const EVERY: Duration = Duration::from_secs(1);
/// So many failures in a row are no accident.
const FAILURES: u32 = 3;

/// Asks for ever; `serving` is true as long as it answers.
pub async fn watch(addresses: Vec<SocketAddr>, domain: Name, serving: watch::Sender<bool>) {
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
    let (plan, _) = plan(snapshot, &ours);
    serves_dns(&plan, options).then_some(ours)
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
