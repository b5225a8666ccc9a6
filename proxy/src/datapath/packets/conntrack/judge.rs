//! Which UDP flows are stale: decided by two plans, the one by which flows were judged before, and the new one.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use shunt_model::{Family, Protocol};

use super::super::sites::{Site, accepts_node_ports, sites};
use super::table::Flow;
use crate::plan::{Plan, PortPlan};

/// Knows the frontends whose flows may be stale.
#[derive(Debug)]
pub(super) struct Judge<'a> {
    plan: &'a Plan,
    /// Every frontend of UDP is looked at, not only those that changed.
    everything: bool,
    sites: HashMap<Site, Allowed>,
    /// Frontends of UDP at addresses that accept node ports, which come before these (TP-4).
    named: OnceCell<HashSet<SocketAddr>>,
}

/// Which flows to a frontend may go on.
#[derive(Clone, Debug)]
enum Allowed {
    /// Those that one of these answers: all that serve, whatever the policies say (CT-3).
    AnsweredBy(Arc<HashSet<SocketAddr>>),
    /// Those that were never translated: it is a frontend no longer (CT-8).
    Untranslated,
}

impl<'a> Judge<'a> {
    /// Compares what changed; without an older plan, all that there is (CT-13).
    pub(super) fn new(judged: Option<&Plan>, plan: &'a Plan) -> Self {
        let nothing = Plan::default();
        // At an address that accepts node ports only now, a flow may be older than that.
        let everything = judged.is_none_or(|judged| accepts_more(judged, plan));
        let mut judge = Self { plan, everything, sites: HashMap::new(), named: OnceCell::new() };
        for change in judged.unwrap_or(&nothing).ports.diff(&plan.ports) {
            match change {
                DiffItem::Add(_, port) => judge.follow(None, Some(port)),
                DiffItem::Update { old: (_, old), new: (_, new) } => judge.follow(Some(old), Some(new)),
                DiffItem::Remove(_, port) => judge.follow(Some(port), None),
            }
        }
        if everything {
            plan.ports.values().for_each(|port| judge.follow(None, Some(port)));
        }
        judge
    }

    fn follow(&mut self, old: Option<&Arc<PortPlan>>, new: Option<&Arc<PortPlan>>) {
        let is_udp = |port: &&Arc<PortPlan>| port.key.protocol == Protocol::Udp;
        let (old, new) = (old.filter(is_udp), new.filter(is_udp));
        let (sites_before, sites_now) = (old.map(|port| sites(port)), new.map(|port| sites(port)));
        let (served_before, serve_now) = (old.map(|port| serving(port)), new.map(|port| serving(port)));
        if sites_before == sites_now && served_before == serve_now {
            return;
        }
        for site in sites_before.into_iter().flatten() {
            // The port that has it now may have come first.
            self.sites.entry(site).or_insert(Allowed::Untranslated);
        }
        let serving = Arc::new(serve_now.unwrap_or_default());
        for site in sites_now.into_iter().flatten() {
            self.sites.insert(site, Allowed::AnsweredBy(Arc::clone(&serving)));
        }
    }

    /// Whether any flow of a family may be stale.
    pub(super) fn concerns(&self, family: Family) -> bool {
        self.everything
            || self.sites.keys().any(|site| match site {
                Site::Address(address) => Family::of(&address.ip()) == family,
                Site::NodePort(of, _) => *of == family,
            })
    }

    pub(super) fn is_stale(&self, flow: &Flow) -> bool {
        match self.allowed(flow.dialled) {
            // The daemon has not seen the Service to which such an address belonged.
            None => self.everything && flow.is_translated() && self.is_of_services_alone(flow.dialled.ip()),
            Some(Allowed::AnsweredBy(serving)) => !serving.contains(&flow.answered_by),
            Some(Allowed::Untranslated) => flow.is_translated(),
        }
    }

    fn allowed(&self, dialled: SocketAddr) -> Option<&Allowed> {
        self.sites.get(&Site::Address(dialled)).or_else(|| {
            let allowed = self.sites.get(&Site::NodePort(Family::of(&dialled.ip()), dialled.port()))?;
            // CT-9: other flows may have the same port.
            (accepts_node_ports(self.plan, dialled.ip()) && !self.named().contains(&dialled)).then_some(allowed)
        })
    }

    /// TODO(scale): O(services) once in a sweep that meets a flow to a changed node port.
    fn named(&self) -> &HashSet<SocketAddr> {
        self.named.get_or_init(|| {
            let ports = self.plan.ports.values().filter(|port| port.key.protocol == Protocol::Udp);
            let named = ports.flat_map(|port| sites(port)).filter_map(|site| match site {
                Site::Address(address) => accepts_node_ports(self.plan, address.ip()).then_some(address),
                Site::NodePort(..) => None,
            });
            named.collect()
        })
    }

    fn is_of_services_alone(&self, address: IpAddr) -> bool {
        self.plan.service_cidrs.iter().any(|range| range.contains(&address))
    }
}

fn accepts_more(judged: &Plan, plan: &Plan) -> bool {
    judged.addresses.diff(&plan.addresses).any(|change| match change {
        DiffItem::Add(_, meaning) => meaning.node_ports.is_some(),
        DiffItem::Update { old: (_, old), new: (_, new) } => old.node_ports.is_none() && new.node_ports.is_some(),
        DiffItem::Remove(..) => false,
    })
}

fn serving(port: &PortPlan) -> HashSet<SocketAddr> {
    let listed = port.cluster.iter().chain(&port.local).map(|endpoint| endpoint.address);
    listed.chain(port.draining.iter().copied()).collect()
}
