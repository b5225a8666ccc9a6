//! Chooses which endpoints of one service port may answer on this node (spec 2.1–2.3): pure, the heart of the plan.

use std::net::SocketAddr;

use super::Endpoint;

/// An endpoint as the choice sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate<'a> {
    /// Where it listens for this service port.
    pub(super) address: SocketAddr,
    /// It runs on this node (IN-36).
    pub(super) local: bool,
    /// Its state and hints.
    pub(super) endpoint: &'a shunt_model::Endpoint,
}

/// This node, as far as topology hints can name it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// Own node name; empty matches nothing (IN-9).
    pub(super) node: &'a str,
    /// Own zone, if the node has one (EP-12).
    pub(super) zone: Option<&'a str>,
}

/// Which lists a service port uses (EP-3, EP-4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Needs {
    pub(super) cluster: bool,
    pub(super) local: bool,
}

/// The outcome of the choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lists {
    /// EP-20; empty if not needed.
    pub(super) cluster: Vec<Endpoint>,
    /// EP-21; empty if not needed.
    pub(super) local: Vec<Endpoint>,
    /// The service port works somewhere, though perhaps not from here (EP-22).
    pub(super) has_endpoints: bool,
}

/// Fills the lists that are needed, in the order of `candidates`.
pub(super) fn choose(candidates: &[Candidate<'_>], place: Place<'_>, needs: Needs) -> Lists {
    let topology = Topology::of(candidates, place);
    let cluster = match needs.cluster {
        true => ready_else_terminating(candidates, |candidate| topology.allows(candidate, place), |_| true),
        false => Vec::new(),
    };
    let local = match needs.local {
        true => ready_else_terminating(candidates, |candidate| candidate.local, |candidate| candidate.local),
        false => Vec::new(),
    };
    let has_endpoints = !cluster.is_empty()
        || needs.local && candidates.iter().any(|c| c.endpoint.ready || c.serves_while_terminating());
    Lists { cluster, local, has_endpoints }
}

/// The ready endpoints that `allowed` lets through; if there are none, the terminating ones in `fallback` that still
/// serve (EP-1). Each list decides for itself, so one may fall back while the other does not (V28).
fn ready_else_terminating<'a>(
    candidates: &[Candidate<'a>],
    allowed: impl Fn(&Candidate<'a>) -> bool,
    fallback: impl Fn(&Candidate<'a>) -> bool,
) -> Vec<Endpoint> {
    let ready = select(candidates, |candidate| candidate.endpoint.ready && allowed(candidate));
    if !ready.is_empty() {
        return ready;
    }
    select(candidates, |candidate| candidate.serves_while_terminating() && fallback(candidate))
}

/// Exactly as long as it must be: at 100,000 endpoints spare capacity would be megabytes.
fn select<'a>(candidates: &[Candidate<'a>], wanted: impl Fn(&Candidate<'a>) -> bool) -> Vec<Endpoint> {
    let mut list = Vec::with_capacity(candidates.iter().filter(|c| wanted(c)).count());
    list.extend(candidates.iter().filter(|c| wanted(c)).map(|c| Endpoint { address: c.address, local: c.local }));
    list
}

impl Candidate<'_> {
    fn serves_while_terminating(&self) -> bool {
        self.endpoint.serving && self.endpoint.terminating
    }

    fn hinted_to_node(&self, place: Place<'_>) -> bool {
        !place.node.is_empty() && self.endpoint.node_hints.iter().any(|hint| **hint == *place.node)
    }

    fn hinted_to_zone(&self, place: Place<'_>) -> bool {
        place.zone.is_some_and(|zone| self.endpoint.zone_hints.iter().any(|hint| **hint == *zone))
    }
}

/// How hints narrow the cluster list (spec 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    SameNode,
    SameZone,
    Anywhere,
}

impl Topology {
    /// Decided by the ready endpoints alone. One of them without a hint switches that kind of hint off (EP-10).
    fn of(candidates: &[Candidate<'_>], place: Place<'_>) -> Self {
        let ready = || candidates.iter().filter(|candidate| candidate.endpoint.ready);
        if ready().any(|c| c.hinted_to_node(place)) && ready().all(|c| !c.endpoint.node_hints.is_empty()) {
            Self::SameNode
        } else if ready().any(|c| c.hinted_to_zone(place)) && ready().all(|c| !c.endpoint.zone_hints.is_empty()) {
            Self::SameZone
        } else {
            Self::Anywhere
        }
    }

    fn allows(self, candidate: &Candidate<'_>, place: Place<'_>) -> bool {
        match self {
            Self::SameNode => candidate.hinted_to_node(place),
            Self::SameZone => candidate.hinted_to_zone(place),
            Self::Anywhere => true,
        }
    }
}
