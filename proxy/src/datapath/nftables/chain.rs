//! The chains that frontends share: one per shape, not one per service.

use shunt_model::{Family, Protocol};

use super::Rendering;
use super::collection::{At, Collection, port_of, word};
use crate::datapath::packets::{Shape, Treatment};
use crate::plan::{Empty, List, PodInterface};

/// A chain that lasts as long as a frontend needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum SharedChain {
    /// Sends a flow to one of so many endpoints.
    Pick(Pick),
    /// Sends a flow on by its source.
    Sources { node: Option<Pick>, pods: Option<Pick>, outside: Option<Pick> },
    /// What a flow gets by its source that found no endpoint.
    Unserved { node: Option<Empty>, pods: Option<Empty>, outside: Option<Empty> },
}

/// How an endpoint is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Pick {
    pub(super) at: At,
    pub(super) protocol: Protocol,
    pub(super) list: List,
    /// How many the list has.
    pub(super) endpoints: usize,
    pub(super) masquerade: bool,
}

/// Where a frontend without endpoints leads: the packet stays as it is, and no other frontend gets it.
pub(super) const UNTRANSLATED: &str = "accept";
/// The chain that refuses: a map cannot do it.
pub(super) const REJECT: &str = "reject-at-once";

/// How a treatment of a shape picks, if it does.
pub(super) fn pick(at: At, protocol: Protocol, treatment: Treatment) -> Option<Pick> {
    match treatment {
        Treatment::Pick { list, endpoints, masquerade } => Some(Pick { at, protocol, list, endpoints, masquerade }),
        Treatment::None(_) => None,
    }
}

/// Where a frontend of this shape leads, and the chains it needs.
pub(super) fn serving(at: At, protocol: Protocol, shape: Shape) -> (String, Vec<SharedChain>) {
    let [pods, node, outside] = shape.treatments().map(|treatment| pick(at, protocol, treatment));
    let mut chains: Vec<_> = [node, pods, outside].into_iter().flatten().map(SharedChain::Pick).collect();
    if node == outside && pods == outside {
        return (lead(outside), chains);
    }
    let sources = SharedChain::Sources { node, pods, outside };
    chains.push(sources);
    chains.sort_unstable();
    chains.dedup();
    (format!("goto {}", sources.name()), chains)
}

/// What untranslated packets to a frontend of this shape get, if it lacks an endpoint for some source.
pub(super) fn refusal(shape: Shape) -> Option<(String, Option<SharedChain>)> {
    let [pods, node, outside] = shape.treatments().map(|treatment| match treatment {
        Treatment::Pick { .. } => None,
        Treatment::None(empty) => Some(empty),
    });
    match (node, pods, outside) {
        (None, None, None) => None,
        (Some(node), Some(pods), Some(outside)) if node == outside && pods == outside => {
            Some((refuse(Some(outside)).to_owned(), None))
        }
        _ => {
            let chain = SharedChain::Unserved { node, pods, outside };
            Some((format!("goto {}", chain.name()), Some(chain)))
        }
    }
}

fn lead(pick: Option<Pick>) -> String {
    pick.map_or_else(|| UNTRANSLATED.to_owned(), |pick| format!("goto {}", SharedChain::Pick(pick).name()))
}

const fn refuse(empty: Option<Empty>) -> &'static str {
    match empty {
        Some(Empty::Reject) => "goto reject-at-once",
        Some(Empty::Drop) => "drop",
        None => "return",
    }
}

impl SharedChain {
    /// Its name, which says all of it.
    pub(super) fn name(self) -> String {
        match self {
            Self::Pick(Pick { at, protocol, list, endpoints, masquerade }) => {
                let masquerade = if masquerade { "-masquerade" } else { "" };
                format!("{}{protocol}-pick-{}-{endpoints}{masquerade}", prefix(at), list_name(list))
            }
            Self::Sources { node, pods, outside } => {
                let first = [node, pods, outside].into_iter().flatten().next();
                let start = first.map(|Pick { at, protocol, .. }| format!("{}{protocol}-", prefix(at)));
                let [node, pods, outside] = [node, pods, outside].map(code);
                format!("{}sources-{node}-{pods}-{outside}", start.unwrap_or_default())
            }
            Self::Unserved { node, pods, outside } => {
                let word = |empty| match empty {
                    Some(Empty::Reject) => "reject",
                    Some(Empty::Drop) => "drop",
                    None => "served",
                };
                format!("unserved-{}-{}-{}", word(node), word(pods), word(outside))
            }
        }
    }

    /// Its rules.
    pub(super) fn rules(self, family: Family, rendering: &Rendering) -> Vec<String> {
        match self {
            Self::Pick(pick) => pick.rules(family, rendering),
            Self::Sources { node, pods, outside } => {
                by_source(family, rendering, &lead(node), &lead(pods), &lead(outside))
            }
            Self::Unserved { node, pods, outside } => {
                by_source(family, rendering, refuse(node), refuse(pods), refuse(outside))
            }
        }
    }
}

impl Pick {
    fn rules(self, family: Family, rendering: &Rendering) -> Vec<String> {
        let Self { at, protocol, list, endpoints, masquerade } = self;
        let dialled = port_of(family, at, protocol);
        let map = Collection::Endpoints(at, list, protocol).name();
        let send = |of: usize| format!("dnat to {dialled} . numgen random mod {of} map @{map}");
        let mut rules = Vec::new();
        if masquerade {
            rules.push(rendering.mark());
        }
        rules.push(send(endpoints));
        // The rule set may change between two lookups of one packet. Then the endpoint with this number may be gone:
        // the first one is there. If all are gone, the client must not be refused by what comes later: it tries again.
        if endpoints > 1 {
            rules.push(send(1));
        }
        rules.push("drop".to_owned());
        rules
    }
}

/// Rules that lead on by the source of a packet: the node first, for its address may be one that pods have.
pub(super) fn by_source(family: Family, rendering: &Rendering, node: &str, pods: &str, outside: &str) -> Vec<String> {
    let mut rules = vec![format!("fib saddr type local {node}")];
    if pods != outside {
        rules.push(format!("{} {pods}", pod_test(family, rendering)));
    }
    rules.push(outside.to_owned());
    rules
}

/// What is true for a packet of a pod of this node.
fn pod_test(family: Family, rendering: &Rendering) -> String {
    match &rendering.pod_interface {
        None => format!("{} saddr @{}", word(family), Collection::PodNetworks.name()),
        // An asterisk at the end stands for any letters, and a backslash before it for the asterisk itself.
        Some(PodInterface::Named(name)) => match name.strip_suffix('*') {
            Some(start) => format!("iifname \"{start}\\*\""),
            None => format!("iifname \"{name}\""),
        },
        Some(PodInterface::Prefixed(prefix)) => format!("iifname \"{prefix}*\""),
    }
}

/// The words for a list in names of chains.
pub(super) const fn list_name(list: List) -> &'static str {
    match list {
        List::Cluster => "cluster",
        List::Local => "local",
    }
}

const fn prefix(at: At) -> &'static str {
    match at {
        At::Address => "",
        At::NodePort => "node-port-",
    }
}

/// `c4`, `l1m`, `none`.
fn code(pick: Option<Pick>) -> String {
    let Some(Pick { at: _, protocol: _, list, endpoints, masquerade }) = pick else { return "none".to_owned() };
    let list = match list {
        List::Cluster => 'c',
        List::Local => 'l',
    };
    format!("{list}{endpoints}{}", if masquerade { "m" } else { "" })
}
