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
        services.retain(|service| self.is_from_cluster(service));
        let (contested, mut rivals) = self.restake(&old, &services);
        rivals.retain(|service| self.is_from_cluster(service));
        services.extend(rivals);
        for service in &services {
            self.replan(service);
        }
        self.judge(contested)
    }

    /// Whether the ports of that name come from a Service and not from the node's own DNS.
    fn is_from_cluster(&self, service: &ObjectKey) -> bool {
        self.reserved.as_ref() != Some(service)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::{cluster, options, service, set_zone, slice};

    fn example() -> Snapshot {
        let mut snapshot = cluster(
            [service("web", "ip=10.96.0.1 np=30080"), service("api", "ip=10.96.0.2")],
            [
                slice("web", "a", "http:80/tcp", "e1:R z=a; e2:R z=b"),
                slice("api", "a", "http:80/tcp", "e3:R"),
                slice("nobody", "a", "http:80/tcp", "e4:R"),
            ],
        );
        set_zone(&mut snapshot, Some("a"));
        snapshot
    }

    /// The Services whose ports are not shared with the plan before `edit`.
    #[track_caller]
    fn check(edit: impl FnOnce(&mut Snapshot), wanted: &[&str]) {
        let before = example();
        let mut planner = Planner::new(options());
        let old = planner.update(Arc::new(before.clone())).clone();
        let mut after = before;
        edit(&mut after);
        let new = planner.update(Arc::new(after.clone())).clone();
        let mut changed: Vec<_> =
            old.ports.diff(&new.ports).map(|item| key_of(&item).service.name.to_string()).collect();
        changed.dedup();
        assert_eq!(changed, wanted);
        assert_eq!(old.ports.ptr_eq(&new.ports), wanted.is_empty(), "nothing changed, so nothing is copied");
        for (key, port) in &new.ports {
            let shared = old.ports.get(key).is_some_and(|other| Arc::ptr_eq(other, port));
            assert_eq!(shared, !wanted.contains(&&*key.service.name), "{key}");
        }
        assert_eq!(new, plan(&after, &options()).0);
    }

    fn put_service(snapshot: &mut Snapshot, service: Service) {
        snapshot.services.insert(service.key.clone(), Arc::new(service));
    }

    fn put_slice(snapshot: &mut Snapshot, slice: EndpointSlice) {
        snapshot.slices.insert(slice.key.clone(), Arc::new(slice));
    }

    #[test]
    fn what_did_not_change_stays_shared() {
        check(|_| (), &[]);
        check(|snapshot| *snapshot = example(), &[]); // equal, but nothing shared
        check(|snapshot| put_slice(snapshot, slice("api", "a", "http:80/tcp", "e3:R; e4:U")), &[]); // IN-40
        check(|snapshot| put_slice(snapshot, slice("nobody", "a", "http:80/tcp", "e5:R")), &[]);
        check(|snapshot| put_service(snapshot, service("web", "ip=10.96.0.1 np=30080 created=7")), &[]); // IN-13
    }

    #[test]
    fn what_changed_is_planned_anew() {
        check(|snapshot| put_slice(snapshot, slice("api", "a", "http:80/tcp", "e3:T")), &[]);
        check(|snapshot| put_slice(snapshot, slice("api", "b", "http:80/tcp", "e4:R")), &["api"]);
        check(|snapshot| put_service(snapshot, service("web", "ip=10.96.0.1")), &["web"]);
        check(|snapshot| put_service(snapshot, service("web", "headless")), &["web"]);
        check(|snapshot| snapshot.services = snapshot.services.without(&ObjectKey::new("default", "api")), &["api"]);
        check(|snapshot| put_service(snapshot, service("nobody", "ip=10.96.0.3")), &["nobody"]);
    }

    #[test]
    fn a_new_zone_of_the_node_concerns_every_service() {
        check(|snapshot| set_zone(snapshot, Some("b")), &["web"]); // EP-15
        check(|snapshot| set_zone(snapshot, None), &["web"]);
        check(|snapshot| snapshot.nodes.clear(), &["web"]);
    }

    #[test]
    fn a_freed_frontend_passes_to_the_rival() {
        let take = |snapshot: &mut Snapshot| put_service(snapshot, service("a-first", "ip=10.96.0.2 created=1"));
        check(take, &["a-first", "api"]);
        let mut snapshot = example();
        take(&mut snapshot);
        let mut planner = Planner::new(options());
        planner.update(Arc::new(snapshot));
        assert_eq!(planner.conflicts().count(), 1);
        let plan = planner.update(Arc::new(example())).clone();
        assert_eq!(plan, super::plan(&example(), &options()).0);
        assert_eq!(planner.conflicts().count(), 0);
    }

    #[test]
    fn a_conflict_is_new_once() {
        let mut snapshot = example();
        put_service(&mut snapshot, service("rival", "ip=10.96.0.2"));
        let mut planner = Planner::new(options());
        assert_eq!(planner.follow(Arc::new(snapshot.clone())).len(), 1);
        put_service(&mut snapshot, service("rival", "ip=10.96.0.2 aff=5"));
        assert_eq!(planner.follow(Arc::new(snapshot.clone())).len(), 0);
        put_service(&mut snapshot, service("third", "ip=10.96.0.2"));
        assert_eq!(planner.follow(Arc::new(snapshot)).len(), 1);
    }
}
