//! Makes the plan and keeps it up to date: looks only at services that changed, or whose rival for a frontend did.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use shunt_model::{EndpointSlice, Family, ObjectKey, Protocol, Service, ServicePort, Snapshot};
use tracing::warn;

use super::built_in::{built_in, built_in_key};
use super::claims::{Claim, Claimant, Claims, Conflict, Rank};
use super::frontends::{Site, Situation, frontend, needs_of, ports_of, sites_of};
use super::lists::{Lists, Place, choose};
use super::merge::endpoints_of;
use super::{Plan, PlanOptions, PortKey, PortPlan};

/// The plan for a snapshot, and who was refused a frontend because another has it.
#[must_use]
pub fn plan(snapshot: &Snapshot, options: &PlanOptions) -> (Plan, Vec<Conflict>) {
    let mut planner = Planner::new(options.clone());
    planner.follow(Arc::new(snapshot.clone()));
    let conflicts = planner.conflicts().cloned().collect();
    (planner.plan, conflicts)
}

/// A plan that follows the cluster. It always equals what [`plan`] says about the last snapshot.
#[derive(Debug)]
pub struct Planner {
    options: PlanOptions,
    /// The name under which the node's own DNS is in the plan, if it is: a Service of that name is not planned.
    reserved: Option<ObjectKey>,
    snapshot: Arc<Snapshot>,
    claims: Claims,
    conflicts: BTreeMap<Claim, Vec<Conflict>>,
    plan: Plan,
}

impl Planner {
    /// A planner that has seen nothing yet.
    #[must_use]
    pub fn new(options: PlanOptions) -> Self {
        let mut claims = Claims::default();
        let mut plan = Plan::default();
        for port in built_in(&options) {
            for frontend in &port.frontends {
                let site = Site { address: frontend.address, port: frontend.port, kind: frontend.kind };
                claims.add(claim(site, &port.key), Claimant { rank: Rank::BuiltIn, port: port.key.clone() });
            }
            plan.ports.insert(port.key.clone(), Arc::new(port));
        }
        let reserved = (!plan.ports.is_empty()).then(built_in_key);
        Self { options, reserved, snapshot: Arc::default(), claims, conflicts: BTreeMap::new(), plan }
    }

    /// Follows the cluster to `snapshot`. Costs as much as what changed; what did not change stays shared with the
    /// plan before. Logs every conflict when it appears.
    pub fn update(&mut self, snapshot: Arc<Snapshot>) -> &Plan {
        if let Some(name) = &self.reserved
            && snapshot.services.contains_key(name)
            && !self.snapshot.services.contains_key(name)
        {
            warn!(service = %name, "not served: the name is taken by the bundled DNS; rename the service");
        }
        for conflict in self.follow(snapshot) {
            warn!(
                frontend = %conflict.frontend, service = %conflict.loser, winner = %conflict.winner,
                "two services ask for one frontend; the winner has it, the other goes without"
            );
        }
        &self.plan
    }

    /// The plan for the last snapshot.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Who goes without a frontend right now, in order of frontends.
    pub fn conflicts(&self) -> impl Iterator<Item = &Conflict> {
        self.conflicts.values().flatten()
    }

    /// Returns the conflicts that are new.
    fn follow(&mut self, snapshot: Arc<Snapshot>) -> Vec<Conflict> {
        let old = mem::replace(&mut self.snapshot, snapshot);
        let mut services = self.touched(&old);
        services.retain(|service| self.reserved.as_ref() != Some(service));
        let (contested, rivals) = self.restake(&old, &services);
        services.extend(rivals);
        for service in &services {
            self.replan(service);
        }
        self.judge(contested)
    }

    /// The services about which something changed.
    fn touched(&self, old: &Snapshot) -> BTreeSet<ObjectKey> {
        let mut touched = BTreeSet::new();
        touched.extend(old.services.diff(&self.snapshot.services).map(|item| key_of(&item).clone()));
        touched.extend(old.slices.diff(&self.snapshot.slices).map(|item| key_of(&item).service.clone()));
        if own_zone(old, &self.options) != own_zone(&self.snapshot, &self.options) {
            touched.extend(self.snapshot.services.keys().cloned()); // EP-15
        }
        touched
    }

    /// Brings the claims up to date. Returns the contested frontends among them, and all services that contest them.
    fn restake(&mut self, old: &Snapshot, touched: &BTreeSet<ObjectKey>) -> (BTreeSet<Claim>, BTreeSet<ObjectKey>) {
        let (mut contested, mut services) = (BTreeSet::new(), BTreeSet::new());
        let mut note = |claims: &Claims, claim: Claim| {
            let rivals = claims.rivals(&claim);
            if !rivals.is_empty() {
                contested.insert(claim);
                services.extend(rivals.iter().map(|rival| rival.port.service.clone()));
            }
        };
        for key in touched {
            let (before, after) = (old.services.get(key), self.snapshot.services.get(key));
            if before == after {
                continue; // Only its endpoints changed; they make no claims.
            }
            for (claim, claimant) in before.into_iter().flat_map(|service| stakes_of(service)) {
                note(&self.claims, claim);
                self.claims.remove(&claim, &claimant);
            }
            for (claim, claimant) in after.into_iter().flat_map(|service| stakes_of(service)) {
                self.claims.add(claim, claimant);
                note(&self.claims, claim);
            }
        }
        (contested, services)
    }

    /// Plans one service anew. Ports that come out the same stay the same allocation.
    fn replan(&mut self, key: &ObjectKey) {
        let mut fresh = match self.snapshot.services.get(key) {
            Some(service) => {
                let slices: Vec<&EndpointSlice> = self.snapshot.slices_of(key).map(Arc::as_ref).collect();
                plan_service(service, &slices, &self.options, own_zone(&self.snapshot, &self.options))
            }
            None => Vec::new(),
        };
        for port in &mut fresh {
            let PortPlan { key, frontends, .. } = port;
            frontends.retain(|frontend| {
                let site = Site { address: frontend.address, port: frontend.port, kind: frontend.kind };
                self.claims.is_won_by(&claim(site, key), key)
            });
        }
        // Without a frontend nobody can dial it.
        fresh.retain(|port| !port.frontends.is_empty());
        self.replace(key, fresh);
    }

    fn replace(&mut self, service: &ObjectKey, fresh: Vec<PortPlan>) {
        let first =
            PortKey { service: service.clone(), port: Arc::default(), protocol: Protocol::Tcp, family: Family::V4 };
        let planned = self.plan.ports.range(first..).map(|(key, _)| key).take_while(|key| key.service == *service);
        let gone: Vec<PortKey> = planned.filter(|key| !fresh.iter().any(|port| port.key == **key)).cloned().collect();
        for key in gone {
            self.plan.ports.remove(&key);
        }
        for port in fresh {
            if self.plan.ports.get(&port.key).is_none_or(|planned| **planned != port) {
                self.plan.ports.insert(port.key.clone(), Arc::new(port));
            }
        }
    }

    /// Notes the conflicts about the given frontends; returns those that were not there before.
    fn judge(&mut self, contested: BTreeSet<Claim>) -> Vec<Conflict> {
        let mut new = Vec::new();
        for claim in contested {
            let conflicts = self.claims.conflicts(&claim);
            let known = self.conflicts.remove(&claim).unwrap_or_default();
            new.extend(conflicts.iter().filter(|conflict| !known.contains(conflict)).cloned());
            if !conflicts.is_empty() {
                self.conflicts.insert(claim, conflicts);
            }
        }
        new
    }
}

fn key_of<'a, K, V>(item: &DiffItem<'a, 'a, K, V>) -> &'a K {
    match item {
        DiffItem::Add(key, _) | DiffItem::Remove(key, _) | DiffItem::Update { new: (key, _), .. } => key,
    }
}

fn own_zone<'a>(snapshot: &'a Snapshot, options: &PlanOptions) -> Option<&'a str> {
    snapshot.nodes.get(&options.node)?.zone.as_deref()
}

/// All ports of a service, with every frontend it asks for.
fn plan_service(
    service: &Service,
    slices: &[&EndpointSlice],
    options: &PlanOptions,
    zone: Option<&str>,
) -> Vec<PortPlan> {
    let place = Place { node: &options.node, zone };
    let plan_port = |(port, family, cluster_ip)| {
        let candidates = endpoints_of(slices, port, family, place.node);
        let Lists { cluster, local, has_endpoints } = choose(&candidates, place, needs_of(service, port, family));
        let situation = Situation { has_endpoints, knows_pods: options.detector.covers(family) };
        let sites = sites_of(service, port, family, cluster_ip);
        PortPlan {
            key: key(service, port, family),
            frontends: sites.into_iter().map(|site| frontend(site, service, situation)).collect(),
            cluster,
            local,
            affinity: service.affinity,
        }
    };
    ports_of(service).map(plan_port).collect()
}

fn key(service: &Service, port: &ServicePort, family: Family) -> PortKey {
    PortKey { service: service.key.clone(), port: port.name.clone(), protocol: port.protocol, family }
}

fn claim(site: Site, port: &PortKey) -> Claim {
    Claim { family: port.family, address: site.address, protocol: port.protocol, port: site.port }
}

/// Every frontend a Service asks for. Depends on the Service alone.
fn stakes_of(service: &Service) -> Vec<(Claim, Claimant)> {
    let rank = service.created.map_or(Rank::Undated, Rank::Created);
    ports_of(service)
        .flat_map(|(port, family, cluster_ip)| {
            let key = key(service, port, family);
            let sites = sites_of(service, port, family, cluster_ip);
            sites.into_iter().map(move |site| (claim(site, &key), Claimant { rank, port: key.clone() }))
        })
        .collect()
}
