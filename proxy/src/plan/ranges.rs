//! Who may dial a load balancer's addresses: `loadBalancerSourceRanges` (spec IN-17, 3.5).

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use shunt_model::{Family, Service};

use super::{Source, node::Here};

/// Who may dial the LoadBalancer frontends of a service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceRanges {
    /// All of one family; sorted, each once. They include the Service's own addresses where spec TP-34 says so.
    pub ranges: Vec<IpNet>,
    /// This node's own primary address is inside.
    pub node: bool,
}

impl SourceRanges {
    /// Whether a flow of this source may pass. A node whose source address is not known yet counts by its primary
    /// address; anybody else unknown stays out.
    #[must_use]
    pub fn admit(&self, source: Source, address: Option<IpAddr>) -> bool {
        match (address, source) {
            (Some(address), _) => self.contains(address.to_canonical()),
            (None, Source::Node) => self.node,
            (None, Source::Pod | Source::Outside) => false,
        }
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(&address))
    }
}

/// The restriction of a Service in one family, if there is one.
pub(super) fn source_ranges(service: &Service, family: Family, here: &Here) -> Option<Arc<SourceRanges>> {
    let of_family = service.source_ranges.iter().filter(|range| Family::of(&range.addr()) == family);
    let ranges: Vec<IpNet> = of_family.copied().collect();
    // Ranges of the other family alone restrict nothing here, nor does a list with one that holds every address.
    if ranges.is_empty() || ranges.iter().any(|range| range.prefix_len() == 0) {
        return None;
    }
    let mut restriction = SourceRanges { ranges, node: false };
    restriction.node = here.primary(family).is_some_and(|address| restriction.contains(address));
    if restriction.node {
        // A load balancer's address is often assigned to the node, and then the source of what the node sends to it.
        let own = service.load_balancer_ips.iter().filter(|address| Family::of(address) == family);
        restriction.ranges.extend(own.copied().map(IpNet::from));
    }
    restriction.ranges.sort_unstable();
    restriction.ranges.dedup();
    Some(Arc::new(restriction))
}
