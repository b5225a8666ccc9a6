//! Which server the cluster DNS address leads to: ours, or while that does not serve, the cluster's own DNS pods.

use std::sync::Arc;

use shunt_model::{Service, Snapshot};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::plan::{Plan, PlanOptions, plan};
use crate::reconcile::Goal;

/// Chooses between our server and the cluster's own by the options of the plan, and passes each view on with those that
/// fit it.
#[derive(Debug)]
pub struct PlanChoice {
    /// With our server, if there is one.
    ours: Arc<PlanOptions>,
    /// Without it.
    theirs: Arc<PlanOptions>,
    serves: watch::Receiver<bool>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    goal: watch::Sender<Goal>,
}

impl PlanChoice {
    /// Has chosen for the first view. `serves`: our server knows the cluster and answers. Before its first sync it
    /// knows no name; until then the cluster's own DNS pods serve, if there are any.
    #[must_use]
    pub fn new(
        ours: PlanOptions,
        serves: watch::Receiver<bool>,
        snapshots: watch::Receiver<Arc<Snapshot>>,
    ) -> (Self, watch::Receiver<Goal>) {
        let theirs = Arc::new(PlanOptions { dns_backends: Vec::new(), ..ours.clone() });
        let ours = Arc::new(ours);
        let first = Goal { snapshot: Arc::clone(&snapshots.borrow()), options: Arc::clone(&ours) };
        let (goal, chosen) = watch::channel(first);
        let mut choice = Self { ours, theirs, serves, snapshots, goal };
        choice.choose(false);
        (choice, chosen)
    }

    /// Follows the views and our server until the views end or the daemon stops, and our server with it.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let ending = tokio::select! {
                biased;
                () = stop.cancelled() => true,
                Ok(()) = self.serves.changed() => false,
                changed = self.snapshots.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    false
                }
            };
            self.choose(ending);
            if ending {
                return;
            }
        }
    }

    /// Leads the cluster DNS address to our server; while our server does not serve, to the cluster's own DNS pods, if
    /// there are any.
    fn choose(&mut self, ending: bool) {
        let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
        let serves = *self.serves.borrow_and_update() && !ending;
        let has_ours = !self.ours.dns_backends.is_empty();
        let options =
            if has_ours && !serves && others_serve(&self.theirs, &snapshot) { &self.theirs } else { &self.ours };
        let goal = Goal { snapshot, options: Arc::clone(options) };
        self.goal.send_if_modified(|known| {
            let changed = !Arc::ptr_eq(&known.options, &goal.options);
            if changed {
                let server = if Arc::ptr_eq(options, &self.theirs) { "the cluster's own" } else { "the bundled one" };
                info!(server, "the cluster DNS address leads to another server now");
            }
            let modified = changed || !Arc::ptr_eq(&known.snapshot, &goal.snapshot);
            *known = goal;
            modified
        });
    }
}

/// Whether the cluster's own DNS serves at its address, so has an endpoint. Without one our server stays: it may come
/// back, so it is better than none.
fn others_serve(theirs: &PlanOptions, snapshot: &Snapshot) -> bool {
    // To look at thousands of Services costs little beside a plan of all.
    let candidates = snapshot.services.iter().filter(|(_, service)| may_serve(service, theirs));
    let services = candidates.map(|(key, service)| (key.clone(), Arc::clone(service))).collect();
    let (plan, _) = plan(&Snapshot { services, ..snapshot.clone() }, theirs);
    serves_dns(&plan, theirs)
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
