//! Chooses which endpoints of one service port may answer on this node (EP-1…4, EP-10…15, EP-20…26).

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
    /// Which of the Service's slices lists it.
    pub(super) slice: usize,
}

/// This node, as far as topology hints can name it.
#[derive(Clone, Copy, Debug)]
pub(super) struct NodeAndZone<'a> {
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
pub(super) struct ChosenLists {
    /// EP-20; empty if not needed.
    pub(super) cluster: Vec<Endpoint>,
    /// EP-21; empty if not needed.
    pub(super) local: Vec<Endpoint>,
    /// Endpoints that serve but are in neither list: they get no new flow and keep the running ones (CT-3, CT-10).
    pub(super) draining: Vec<SocketAddr>,
    /// The service port works somewhere, though perhaps not from here (EP-22).
    pub(super) has_endpoints: bool,
}

/// Fills the lists that are needed, in the order of `candidates`.
pub(super) fn choose(candidates: &[Candidate<'_>], place: NodeAndZone<'_>, needs: Needs) -> ChosenLists {
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
    let draining = serving_besides(candidates, &cluster, &local);
    ChosenLists { cluster, local, draining, has_endpoints }
}

/// The endpoints that serve but are in neither list: flows to them stay, whatever policy and topology say (CT-3).
fn serving_besides(candidates: &[Candidate<'_>], cluster: &[Endpoint], local: &[Endpoint]) -> Vec<SocketAddr> {
    let listed = |list: &[Endpoint], address| list.binary_search_by_key(&address, |e: &Endpoint| e.address).is_ok();
    let left_out = |c: &&Candidate<'_>| c.endpoint.serving && !listed(cluster, c.address) && !listed(local, c.address);
    let mut draining = Vec::new();
    // In nearly all cases every one of them is in the cluster list.
    if cluster.len() < candidates.len() {
        draining.reserve_exact(candidates.iter().filter(left_out).count());
        draining.extend(candidates.iter().filter(left_out).map(|candidate| candidate.address));
    }
    draining
}

/// The ready endpoints that `allowed` lets through; if there are none, the terminating ones in `fallback` that still
/// serve (EP-1). Each list falls back on its own (EV-28).
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

/// A list without spare capacity: at 100,000 endpoints the spare capacity would be megabytes.
fn select<'a>(candidates: &[Candidate<'a>], wanted: impl Fn(&Candidate<'a>) -> bool) -> Vec<Endpoint> {
    let mut list = Vec::with_capacity(candidates.iter().filter(|c| wanted(c)).count());
    list.extend(candidates.iter().filter(|c| wanted(c)).map(|c| Endpoint { address: c.address, local: c.local }));
    list
}

impl Candidate<'_> {
    fn serves_while_terminating(&self) -> bool {
        self.endpoint.serving && self.endpoint.terminating
    }

    fn hinted_to_node(&self, place: NodeAndZone<'_>) -> bool {
        !place.node.is_empty() && self.endpoint.node_hints.iter().any(|hint| **hint == *place.node)
    }

    fn hinted_to_zone(&self, place: NodeAndZone<'_>) -> bool {
        place.zone.is_some_and(|zone| self.endpoint.zone_hints.iter().any(|hint| **hint == *zone))
    }
}

/// How hints narrow the cluster list (EP-10…15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    SameNode,
    SameZone,
    Anywhere,
}

impl Topology {
    /// Only ready endpoints decide this. One ready endpoint without a hint switches that kind of hint off (EP-10).
    fn of(candidates: &[Candidate<'_>], place: NodeAndZone<'_>) -> Self {
        let ready = || candidates.iter().filter(|candidate| candidate.endpoint.ready);
        if ready().any(|c| c.hinted_to_node(place)) && ready().all(|c| !c.endpoint.node_hints.is_empty()) {
            Self::SameNode
        } else if ready().any(|c| c.hinted_to_zone(place)) && ready().all(|c| !c.endpoint.zone_hints.is_empty()) {
            Self::SameZone
        } else {
            Self::Anywhere
        }
    }

    fn allows(self, candidate: &Candidate<'_>, place: NodeAndZone<'_>) -> bool {
        match self {
            Self::SameNode => candidate.hinted_to_node(place),
            Self::SameZone => candidate.hinted_to_zone(place),
            Self::Anywhere => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use shunt_model::Family;

    use super::*;
    use crate::plan::fixture::{NODE, names, service, slice};
    use crate::plan::frontends::needs_of;
    use crate::plan::merge::endpoints_of;

    /// `place` is `node/zone`, either may be left out. `-` is a list that is not used.
    #[track_caller]
    fn check(words: &str, place: &str, endpoints: &str, cluster: &str, local: &str, has_endpoints: bool) {
        let (node, zone) = place.split_once('/').unwrap();
        let place = NodeAndZone {
            node: if node.is_empty() { NODE } else { node },
            zone: Some(zone).filter(|zone| !zone.is_empty()),
        };
        let service = service("web", words);
        let slice = slice("web", "web-1", "http:80/tcp", endpoints);
        // Whether an endpoint is on this node is part of the notation, so locality is always judged from NODE.
        let candidates = endpoints_of(&[&slice], &service.ports[0], Family::V4, NODE);
        let needs = needs_of(&service, &service.ports[0], Family::V4);
        let lists = choose(&candidates, place, needs);
        let shown = |needed: bool, list: &[Endpoint]| if needed { names(list) } else { "-".to_owned() };
        assert_eq!(shown(needs.cluster, &lists.cluster), cluster, "cluster list");
        assert_eq!(shown(needs.local, &lists.local), local, "local list");
        assert_eq!(lists.has_endpoints, has_endpoints, "hasEndpoints");
        assert!(needs.cluster || lists.cluster.is_empty());
        assert!(needs.local || lists.local.is_empty());
    }

    const Y: bool = true;
    const N: bool = false;

    #[test]
    fn zone_hints_narrow_the_cluster_list() {
        check("", "/a", "e3:R z=a; e4:R z=b; e5:R z=c; e6:R z=a", "e3 e6", "-", Y); // EV-1
        check("eTP np=30080", "/a", "e3:Rl z=a; e4:Rl z=b; e5:R z=c; e6:R z=a", "e3 e6", "e3 e4", Y); // EV-2
        check("iTP np=30080", "/a", "e3:Rl z=a; e4:Rl z=b; e5:R z=c; e6:R z=a", "e3 e6", "e3 e4", Y); // EV-3
        check("", "/", "e3:R z=a", "e3", "-", Y); // EV-4, and EV-5: the model has no empty zone
        check("", "/b", "e3:R z=a", "e3", "-", Y); // EV-6
        check("", "/a", "e3:R z=a; e4:R z=b; e5:R z=c; e6:U z=a", "e3", "-", Y); // EV-7
        check("", "/a", "e3:U z=a; e4:R z=b; e5:R z=c; e6:U z=a", "e4 e5", "-", Y); // EV-8
        check("", "/a", "e3:R z=a; e4:R z=b; e5:R; e6:R z=a", "e3 e4 e5 e6", "-", Y); // EV-9, EP-10
        check("", "/c", "e3:R z=abc; e4:R z=bc; e5:R z=bd; e6:R z=c", "e3 e4 e6", "-", Y); // EV-10, EP-13
        check("eTP np=30080", "/a", "e0:Rl z=a; e1:Rl z=b; e2:R z=a; e3:R z=b", "e0 e2", "e0 e1", Y); // EV-15
        check("", "/a", "e3:R z=a; e4:U; e5:T", "e3", "-", Y); // EP-10: only ready ones need hints
    }

    #[test]
    fn node_hints_come_before_zone_hints() {
        let ev_11 = "e3:R z=a n=1; e4:R z=b n=2; e5:R z=c n=3; e6:R z=a n=4";
        check("", "node-1/a", ev_11, "e3", "-", Y); // EV-11
        check("", "node-1/a", "e3:R z=a n=1; e4:R; e5:R z=c n=3; e6:R z=a n=4", "e3 e4 e5 e6", "-", Y); // EV-12
        check("", "node-0/a", ev_11, "e3 e6", "-", Y); // EV-13
        check("", "node-1/a", "e3:R z=a; e4:R z=b; e5:R z=c; e6:R z=a", "e3 e6", "-", Y); // EV-14: no gate, no hints
        check("", "node-0/d", ev_11, "e3 e4 e5 e6", "-", Y); // EP-11: neither names us
        check("", "node-1/a", "e3:R z=a n=1; e4:R z=a", "e3 e4", "-", Y); // EP-10 per kind of hint
    }

    #[track_caller]
    fn check_draining(words: &str, zone: Option<&str>, endpoints: &str, wanted: &str) {
        let (service, slice) = (service("web", words), slice("web", "web-1", "http:80/tcp", endpoints));
        let candidates = endpoints_of(&[&slice], &service.ports[0], Family::V4, NODE);
        let needs = needs_of(&service, &service.ports[0], Family::V4);
        let draining = choose(&candidates, NodeAndZone { node: NODE, zone }, needs).draining;
        let endpoints: Vec<_> = draining.iter().map(|address| Endpoint { address: *address, local: false }).collect();
        assert_eq!(names(&endpoints), wanted);
        assert_eq!(draining.capacity(), draining.len());
    }

    #[test]
    fn endpoints_that_serve_outside_of_the_lists_are_draining() {
        check_draining("", None, "e1:R; e2:R", "");
        check_draining("", None, "e1:R; e2:T; e3:U; e4:Tl", "e2 e4"); // CT-10
        check_draining("", None, "e2:T; e3:U", ""); // they are the list
        check_draining("iTP", None, "e1:R; e2:Rl; e3:Tl; e4:U", "e1 e3"); // CT-3: policy does not count
        check_draining("", Some("a"), "e1:R z=a; e2:R z=b", "e2"); // CT-3: nor does topology
        check_draining("eTP np=30080", None, "e1:R; e2:Tl; e3:T", "e3"); // EV-28
    }

    #[test]
    fn hints_for_unknown_zones_and_nodes_have_no_effect() {
        check("", "/a", "e1:R z=x; e2:R z=y", "e1 e2", "-", Y);
        check("", "/a", "e1:R n=7; e2:R n=8", "e1 e2", "-", Y);
        check("", "/a", "e1:R z=x n=7; e2:R z=a n=8", "e2", "-", Y); // EP-11
        check("", "/", "e1:R z=a n=7; e2:R z=b n=8", "e1 e2", "-", Y); // EP-12: a node without a zone
    }

    #[test]
    fn policies_decide_which_lists_are_filled() {
        check("iTP", "/", "", "-", "", N); // EV-16
        check("iTP", "/", "e0:R; e1:R", "-", "", Y); // EV-17
        check("iTP", "/", "e0:Rl; e1:Rl", "-", "e0 e1", Y); // EV-18
        check("iTP", "/", "e0:Rl; e1:R", "-", "e0", Y); // EV-19
        check("iTP np=30080", "/", "e0:Rl; e1:R", "e0 e1", "e0", Y); // EV-23
        check("eTP np=30080", "/", "e0:Rl; e1:R", "e0 e1", "e0", Y); // EV-24
        check("iTP eTP np=30080", "/", "e0:Rl; e1:R", "e0 e1", "e0", Y); // EV-25
        check("iTP eTP np=30080", "/", "e0:R; e1:R", "e0 e1", "", Y); // EV-26
        check("eTP", "/", "e0:R; e1:Rl", "e0 e1", "-", Y); // EV-29
        check("eTP type=lb", "/", "e0:R; e1:Rl", "e0 e1", "-", Y); // EV-29, EP-4: no address to reach it by
        check("iTP", "/", "e0:R; e1:Rl", "-", "e1", Y); // EV-30
        check("eTP ext=203.0.113.1", "/", "e0:R; e1:Rl", "e0 e1", "e1", Y); // IN-19: external IPs are access too
        check("eTP vip=203.0.113.1", "/", "e0:R; e1:Rl", "e0 e1", "-", Y); // IN-19: a stray status address is not
        check("eTP ext=2001:db8::1", "/", "e0:R; e1:Rl", "e0 e1", "-", Y); // EP-2 counts per family
    }

    #[test]
    fn terminating_endpoints_serve_only_when_none_is_ready() {
        check("", "/", "e0:U; e1:U", "", "-", N); // EV-20
        check("", "/", "e0:U; e1:R", "e1", "-", Y); // EV-21
        check("", "/", "e0:Tl; e1:T", "e0 e1", "-", Y); // EV-22
        check("iTP eTP np=30080", "/", "e0:T; e1:T", "e0 e1", "", Y); // EV-27
        check("eTP np=30080", "/", "e0:R; e1:Ul; e2:Tl; e3:T", "e0", "e2", Y); // EV-28: each list for itself
        check("", "/a", "e0:T z=a; e1:T z=b", "e0 e1", "-", Y); // EP-20: the fallback ignores topology
        check("iTP", "/", "e0:Tl; e1:Rl", "-", "e1", Y); // EP-25
        check("iTP", "/", "e0:T", "-", "", Y); // EP-22
        check("iTP", "/", "e0:U; e1:Ul", "-", "", N); // EP-24
    }
}
