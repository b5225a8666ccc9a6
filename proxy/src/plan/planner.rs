//! Makes the plan and keeps it up to date: looks only at services that changed, and at those that contest a frontend
//! with them.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use ipnet::IpNet;
use shunt_model::{EndpointSlice, Family, ObjectKey, Service, Snapshot};

use super::addresses::AddressBook;
use super::built_in::{built_in, built_in_key, with_others};
use super::claims::{Claim, Claimant, Claims, Conflict, Rank};
use super::health_checks::{HealthCheck, health_checks};
use super::node::ThisNode;
use super::notices::{Now, Said};
use super::opt_out::OptedOut;
use super::pods::{PodAddresses, PodSources, is_local};
use super::service::{claim, plan_service, stakes_of};
use super::{Endpoint, List, Plan, PlanOptions, PortKey, PortPlan};

/// The plan for a snapshot, and the conflicts: service ports that do not get a frontend because another has it.
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
    /// The addresses of this node's interfaces, once they are known.
    observed: Option<Arc<BTreeSet<IpAddr>>>,
    here: ThisNode,
    addresses: AddressBook,
    opted_out: OptedOut,
    /// The addresses of this node's pods.
    pods: PodAddresses,
    claims: Claims,
    conflicts: BTreeMap<Claim, Vec<Conflict>>,
    /// The conflicts may be others than those that were said last.
    new_conflicts: bool,
    said: Said,
    /// The ports of the node's own DNS.
    own_dns: BTreeMap<PortKey, OwnDns>,
    plan: Plan,
}

/// A port of the node's own DNS, and which endpoints serve while that is closed.
#[derive(Debug)]
struct OwnDns {
    /// The port as it is if no Service has the address too.
    alone: PortPlan,
    /// The endpoints of Services that would have its frontends.
    others: BTreeMap<ObjectKey, Vec<Endpoint>>,
}

impl Planner {
    /// A planner that has seen nothing yet.
    #[must_use]
    pub fn new(options: PlanOptions) -> Self {
        let (mut claims, mut addresses) = (Claims::default(), AddressBook::default());
        let mut own_dns = BTreeMap::new();
        let pods = Arc::new(PodSources::new(&options, &[], std::iter::empty()));
        let mut plan = Plan { service_cidrs: options.service_cidrs.as_slice().into(), pods, ..Plan::default() };
        for port in built_in(&options) {
            for frontend in &port.frontends {
                claims.add(claim(frontend.site(), &port.key), Claimant { rank: Rank::BuiltIn, port: port.key.clone() });
            }
            addresses.follow(None, Some(&port));
            own_dns.insert(port.key.clone(), OwnDns { alone: port.clone(), others: BTreeMap::new() });
            plan.ports.insert(port.key.clone(), Arc::new(port));
        }
        plan.addresses = addresses.meanings().clone();
        let reserved = (!plan.ports.is_empty()).then(built_in_key);
        Self {
            options,
            reserved,
            snapshot: Arc::default(),
            observed: None,
            here: ThisNode::default(),
            addresses,
            opted_out: OptedOut::default(),
            pods: PodAddresses::default(),
            claims,
            conflicts: BTreeMap::new(),
            new_conflicts: true,
            said: Said::default(),
            own_dns,
            plan,
        }
    }

    /// Begins anew with other options, but does not repeat what was logged.
    pub fn renew(&mut self, options: PlanOptions) {
        *self = Self { said: mem::take(&mut self.said), ..Self::new(options) };
    }

    /// Sets the addresses of this node's interfaces. Until then the addresses of its Node object count. The next update
    /// uses them, even with the same snapshot.
    pub fn observe_addresses(&mut self, addresses: Arc<BTreeSet<IpAddr>>) {
        self.observed = Some(addresses);
    }

    /// Follows the cluster to `snapshot`. Costs as much as what changed; what did not change stays shared with the
    /// plan before. Logs what is contradictory when it appears.
    pub fn update(&mut self, snapshot: Arc<Snapshot>) -> &Plan {
        self.follow(snapshot);
        let conflicts = mem::take(&mut self.new_conflicts).then(|| self.conflicts().cloned().collect());
        let replaced = self.replaced();
        let (snapshot, reserved) = (&self.snapshot, self.reserved.as_ref());
        self.said.say(Now { snapshot, conflicts, reserved, replaced });
        &self.plan
    }

    /// The plan for the last snapshot.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The conflicts of the last snapshot, in order of frontends.
    pub fn conflicts(&self) -> impl Iterator<Item = &Conflict> {
        self.conflicts.values().flatten()
    }

    /// The Services in whose place the node's own DNS answers: the cluster DNS address is their cluster IP.
    pub fn replaced(&self) -> BTreeSet<ObjectKey> {
        let own = self.reserved.iter().flat_map(|name| self.plan.ports_of(name));
        let claims = own.flat_map(|(key, port)| port.frontends.iter().map(|frontend| claim(frontend.site(), key)));
        claims.filter_map(|claim| Some(self.claims.replaced(&claim)?.service.clone())).collect()
    }

    fn follow(&mut self, snapshot: Arc<Snapshot>) {
        let old = mem::replace(&mut self.snapshot, snapshot);
        if !old.service_cidrs.ptr_eq(&self.snapshot.service_cidrs) {
            self.plan.service_cidrs = exclusive(&self.options, &self.snapshot);
        }
        let mut services = self.touched(&old);
        let ranges = self.here.pod_ranges.clone();
        services.extend(self.look_around());
        self.find_pods(&old, &ranges);
        if let Some(opted_out) = self.opted_out.follow(&old, &self.snapshot, &self.options) {
            self.plan.opted_out = opted_out;
        }
        services.retain(|service| self.is_from_cluster(service));
        let (contested, mut rivals) = self.restake(&old, &services);
        rivals.retain(|service| self.is_from_cluster(service));
        services.extend(rivals);
        for service in &services {
            self.replan(service);
        }
        self.plan.addresses = self.addresses.meanings().clone();
        self.judge(contested);
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
        touched
    }

    /// Updates what the planner knows of the node. Returns the services whose plan depends on what changed.
    fn look_around(&mut self) -> Vec<ObjectKey> {
        let here = ThisNode::new(&self.snapshot, &self.options, self.observed.as_deref());
        if here == self.here {
            return Vec::new();
        }
        let before = mem::replace(&mut self.here, here);
        if (&before.own, &before.node_ports) != (&self.here.own, &self.here.node_ports) {
            self.addresses.set_node(&self.here.own, &self.here.node_ports);
        }
        if before.health_checks != self.here.health_checks {
            self.plan.health_check_addresses = Arc::clone(&self.here.health_checks);
        }
        let services = self.snapshot.services.values();
        let depends = |service: &Service| match before.zone == self.here.zone {
            false => true, // EP-15
            true => Family::BOTH.iter().any(|family| {
                before.primary(*family) != self.here.primary(*family) && !service.source_ranges.is_empty() // TP-34
            }),
        };
        services.filter(|service| depends(service)).map(|service| service.key.clone()).collect()
    }

    /// Updates how the pods of this node are known.
    fn find_pods(&mut self, old: &Snapshot, ranges: &[IpNet]) {
        let moved = self.pods.follow(old, &self.snapshot, |pod| is_local(pod, &self.options));
        if moved || *ranges != *self.here.pod_ranges {
            self.plan.pods = Arc::new(PodSources::new(&self.options, &self.here.pod_ranges, self.pods.iter()));
        }
    }

    /// Updates the claims. Returns the contested frontends among them, and all services that claim those.
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
            for (claim, claimant) in before.into_iter().flat_map(|service| stakes_of(service, &self.options)) {
                note(&self.claims, claim);
                self.claims.remove(&claim, &claimant);
            }
            for (claim, claimant) in after.into_iter().flat_map(|service| stakes_of(service, &self.options)) {
                self.claims.add(claim, claimant);
                note(&self.claims, claim);
            }
        }
        (contested, services)
    }

    /// Plans one service anew. A port whose plan is equal to the former keeps its allocation.
    fn replan(&mut self, key: &ObjectKey) {
        let (mut fresh, checks) = match self.snapshot.services.get(key) {
            Some(service) => {
                let slices: Vec<&EndpointSlice> = self.snapshot.slices_of(key).map(Arc::as_ref).collect();
                let checks = health_checks(service, &slices, &self.options.node, &self.claims);
                (plan_service(service, &slices, &self.options, &self.here), checks)
            }
            None => (Vec::new(), Vec::new()),
        };
        self.recheck(key, &checks);
        let mut stand_ins = BTreeMap::new();
        for port in &mut fresh {
            let PortPlan { key, frontends, cluster, local, source_ranges, .. } = port;
            frontends.retain(|frontend| {
                let claim = claim(frontend.site(), key);
                let Some(Claimant { rank, port: first }) = self.claims.winner(&claim) else { return false };
                // Whoever only names the address, as an external IP, gets none of its queries (IN-27).
                if *rank == Rank::BuiltIn && self.claims.replaced(&claim) == Some(key) {
                    let serving = match frontend.at_sockets {
                        List::Cluster => &*cluster,
                        List::Local => &*local, // nothing else has to be in `cluster` (EP-2)
                    };
                    stand_ins.insert(first.clone(), serving.to_vec());
                }
                first == key
            });
            source_ranges.take_if(|_| !frontends.iter().any(|frontend| frontend.filtered)); // TP-30
        }
        // Without a frontend no client can dial it.
        fresh.retain(|port| !port.frontends.is_empty());
        self.replace(key, fresh);
        self.stand_in(key, stand_ins);
    }

    /// Notes which endpoints of a Service serve while the node's own DNS is closed, by the ports of the latter.
    fn stand_in(&mut self, service: &ObjectKey, mut stand_ins: BTreeMap<PortKey, Vec<Endpoint>>) {
        for (key, OwnDns { alone, others }) in &mut self.own_dns {
            let endpoints = stand_ins.remove(key).filter(|endpoints| !endpoints.is_empty());
            if others.get(service) == endpoints.as_ref() {
                continue;
            }
            match endpoints {
                Some(endpoints) => drop(others.insert(service.clone(), endpoints)),
                None => drop(others.remove(service)),
            }
            let port = with_others(alone, others.values().flatten());
            self.plan.ports.insert(key.clone(), Arc::new(port));
        }
    }

    fn recheck(&mut self, service: &ObjectKey, fresh: &[(Family, HealthCheck)]) {
        for family in Family::BOTH {
            let key = (service.clone(), family);
            let check = fresh.iter().find(|(of, _)| *of == family).map(|(_, check)| *check);
            match check {
                Some(check) if self.plan.health_checks.get(&key) == Some(&check) => {}
                Some(check) => {
                    self.plan.health_checks.insert(key, check);
                }
                // A removal copies the nodes on its way, even if the key is missing.
                None if !self.plan.health_checks.contains_key(&key) => {}
                None => {
                    self.plan.health_checks.remove(&key);
                }
            }
        }
    }

    fn replace(&mut self, service: &ObjectKey, fresh: Vec<PortPlan>) {
        let planned = self.plan.ports_of(service).map(|(key, _)| key);
        let gone: Vec<PortKey> = planned.filter(|key| !fresh.iter().any(|port| port.key == **key)).cloned().collect();
        for key in gone {
            let old = self.plan.ports.remove(&key);
            self.addresses.follow(old.as_deref(), None);
        }
        for port in fresh {
            let planned = self.plan.ports.get(&port.key);
            if planned.is_none_or(|planned| **planned != port) {
                self.addresses.follow(planned.map(Arc::as_ref), Some(&port));
                self.plan.ports.insert(port.key.clone(), Arc::new(port));
            }
        }
    }

    /// Notes the conflicts about the given frontends.
    fn judge(&mut self, contested: BTreeSet<Claim>) {
        self.new_conflicts |= !contested.is_empty();
        for claim in contested {
            match self.claims.conflicts(&claim) {
                none if none.is_empty() => self.conflicts.remove(&claim),
                conflicts => self.conflicts.insert(claim, conflicts),
            };
        }
    }
}

/// The ranges that belong to Services alone, as the operator and the cluster say (IN-5).
fn exclusive(options: &PlanOptions, snapshot: &Snapshot) -> Arc<[IpNet]> {
    let declared = snapshot.service_cidrs.values().flat_map(|object| object.ranges.iter().copied());
    let ranges: BTreeSet<IpNet> = options.service_cidrs.iter().copied().chain(declared).collect();
    ranges.into_iter().collect()
}

fn key_of<'a, K, V>(item: &DiffItem<'a, 'a, K, V>) -> &'a K {
    match item {
        DiffItem::Add(key, _) | DiffItem::Remove(key, _) | DiffItem::Update { new: (key, _), .. } => key,
    }
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
    fn labels_affinity_and_policies_take_effect_for_their_service_alone() {
        let api = |words: &str| service("api", &format!("ip=10.96.0.2 {words}"));
        check(|snapshot| put_service(snapshot, api("other")), &["api"]); // IN-3
        check(|snapshot| put_service(snapshot, api("aff=60")), &["api"]); // SA-9, SA-10
        check(|snapshot| put_service(snapshot, api("iTP")), &["api"]);
        check(|snapshot| put_service(snapshot, api("eTP")), &[]); // EP-4: nothing to reach it by from outside
        check(|snapshot| put_service(snapshot, api("from=10.0.0.0/8")), &[]); // TP-30
        let headless = || EndpointSlice { headless: true, ..slice("api", "a", "http:80/tcp", "e3:R") };
        check(|snapshot| put_slice(snapshot, headless()), &["api"]); // IN-2, IN-3
        check(|snapshot| put_slice(snapshot, slice("api", "a", "http:81/tcp", "e3:R")), &["api"]); // IN-33
    }

    #[test]
    fn a_new_primary_address_concerns_services_with_source_ranges() {
        let mut snapshot = example();
        put_service(&mut snapshot, service("web", "ip=10.96.0.1 vip=192.0.2.1 from=10.0.0.0/8"));
        let mut planner = Planner::new(options());
        let old = planner.update(Arc::new(snapshot.clone())).clone();
        planner.observe_addresses(Arc::new(["10.0.0.5".parse().unwrap()].into()));
        let new = planner.update(Arc::new(snapshot.clone())).clone();
        let changed: Vec<_> = old.ports.diff(&new.ports).map(|item| key_of(&item).service.name.to_string()).collect();
        assert_eq!(changed, ["web"]); // TP-34
        assert!(new.addresses.contains_key(&crate::plan::fixture::ip("10.0.0.5")));
        crate::plan::fixture::set_node(&mut snapshot, Some("a"), &["172.16.0.5"]);
        let moved = planner.update(Arc::new(snapshot)).clone();
        assert_eq!(moved.ports, old.ports);
        assert_eq!(moved.addresses, new.addresses, "interfaces have the last word");
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
}
