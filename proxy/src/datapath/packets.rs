//! What the paths for packets have in common: what a frontend does with each kind of source, in numbers.

#[cfg(test)]
pub(super) mod cases;
pub(super) mod conntrack;
pub(super) mod sites;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use crate::plan::{Empty, Frontend, List, PortPlan, Source};

/// After a comparison of the tables with what they should be, the next one may wait so many times as long as it took:
/// where others change large tables all the time, comparing must not take a whole processor.
pub(super) const REST: u32 = 4;

/// What a new flow gets at a frontend, by the kind of its source. Frontends with one shape share their rules; they
/// differ in addresses alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Shape {
    pub(super) pods: Treatment,
    pub(super) node: Treatment,
    pub(super) outside: Treatment,
}

/// What a new flow gets from one kind of source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Treatment {
    /// It goes to one of the endpoints of a list, each as likely as the others.
    Pick {
        /// Which list.
        list: List,
        /// How many endpoints the list has, at least one.
        endpoints: usize,
        /// Its source becomes an address of this node.
        masquerade: bool,
    },
    /// There is no endpoint.
    None(Empty),
}

/// What the first packet of a flow gets from rules, read without a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PacketOutcome {
    /// It goes to one of these endpoints.
    Endpoints {
        /// Each is as likely for a new client.
        addresses: BTreeSet<SocketAddr>,
        /// A client stays with the one it got.
        sticky: bool,
    },
    /// Refused at once.
    Reject,
    /// Silence.
    Drop,
    /// Left alone.
    Pass,
}

impl Shape {
    /// The shape of a frontend of this port.
    pub(super) fn of(port: &PortPlan, frontend: &Frontend) -> Self {
        let treatment = |source| {
            let rule = frontend.rule_for(source);
            match port.list(rule.list).len() {
                0 => Treatment::None(rule.empty),
                endpoints => Treatment::Pick { list: rule.list, endpoints, masquerade: rule.masquerade },
            }
        };
        Self { pods: treatment(Source::Pod), node: treatment(Source::Node), outside: treatment(Source::Outside) }
    }

    /// For pods, the node and others.
    pub(super) fn treatments(self) -> [Treatment; 3] {
        let Self { pods, node, outside } = self;
        [pods, node, outside]
    }

    /// Whether some source finds no endpoint, so that rules for untranslated packets must know the frontend.
    pub(super) fn has_unserved(self) -> bool {
        self.treatments().iter().any(|treatment| match treatment {
            Treatment::None(_) => true,
            Treatment::Pick { .. } => false,
        })
    }
}

/// The addresses of endpoints of this port that may be the source of a flow to themselves, whose source must then
/// become the node's (TP-42): those on this node, and all that serve sources from outside without source NAT.
pub(super) fn hairpins(port: &PortPlan) -> BTreeSet<IpAddr> {
    let served_as_they_are = |list| {
        port.frontends.iter().any(|frontend| !frontend.from_outside.masquerade && frontend.from_outside.list == list)
    };
    let of = |list: List| {
        let all = served_as_they_are(list);
        port.list(list).iter().filter(move |endpoint| endpoint.local || all).map(|endpoint| endpoint.address.ip())
    };
    of(List::Cluster).chain(of(List::Local)).collect()
}
