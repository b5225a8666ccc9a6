//! Which sources may dial a load balancer's addresses: `loadBalancerSourceRanges` (IN-17, TP-30…36).

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use shunt_model::{Family, Service};

use super::{Source, node::ThisNode};

/// The sources that may dial the LoadBalancer frontends of a service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceRanges {
    /// All of one family; sorted, each once. They include the Service's own addresses where TP-34 says so.
    pub ranges: Vec<IpNet>,
    /// This node's own primary address is inside.
    pub node: bool,
}

impl SourceRanges {
    /// Whether a flow of this source may pass. A node whose source address is not known yet counts by its primary
    /// address; every other source without an address is refused.
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
pub(super) fn source_ranges(service: &Service, family: Family, here: &ThisNode) -> Option<Arc<SourceRanges>> {
    let of_family = service.source_ranges.iter().filter(|range| Family::of(&range.addr()) == family);
    let ranges: Vec<IpNet> = of_family.copied().collect();
    // Ranges of the other family alone restrict nothing here, nor does a list with one that holds every address.
    if ranges.is_empty() || ranges.iter().any(|range| range.prefix_len() == 0) {
        return None;
    }
    let mut restriction = SourceRanges { ranges, node: false };
    restriction.node = here.primary(family).is_some_and(|address| restriction.contains(address));
    if restriction.node {
        // A load balancer's address is often assigned to the node; the node then sends to it from this address.
        let own = service.load_balancer_ips.iter().filter(|address| Family::of(address) == family);
        restriction.ranges.extend(own.copied().map(IpNet::from));
    }
    restriction.ranges.sort_unstable();
    restriction.ranges.dedup();
    Some(Arc::new(restriction))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::{cluster, ip, options, service, set_node};
    use crate::plan::plan;

    /// The ranges of the IPv4 port of a load balancer, with `+node` if they hold the node's own 10.0.0.5.
    #[track_caller]
    fn check(words: &str, wanted: Option<&str>) {
        let service = service("web", &format!("ip=10.96.0.1 ip=fd00:96::1 {words}"));
        let mut snapshot = cluster([service], []);
        set_node(&mut snapshot, None, &["10.0.0.5", "203.0.113.5"]);
        let (plan, _) = plan(&snapshot, &options());
        let port = plan.ports.values().find(|port| port.key.family == Family::V4).unwrap();
        let shown = port.source_ranges.as_deref().map(|SourceRanges { ranges, node }| {
            let ranges = ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            format!("{ranges}{}", if *node { " +node" } else { "" })
        });
        assert_eq!(shown.as_deref(), wanted);
    }

    #[test]
    fn ranges_of_the_family_restrict_it() {
        // IN-17
        check("vip=192.0.2.1", None);
        check("vip=192.0.2.1 from=198.51.100.0/24", Some("198.51.100.0/24"));
        check("vip=192.0.2.1 from=198.51.100.0/24 from=0.0.0.0/0", None);
        check("vip=192.0.2.1 from=2001:db8::/32", None);
        check("vip=192.0.2.1 from=198.51.100.0/24 from=::/0", Some("198.51.100.0/24"));
        let halves = "vip=192.0.2.1 from=128.0.0.0/1 from=0.0.0.0/1 from=128.0.0.0/1";
        check(halves, Some("0.0.0.0/1 128.0.0.0/1 192.0.2.1/32 +node")); // E2E-87
    }

    #[test]
    fn only_load_balancer_addresses_are_restricted() {
        check("ext=192.0.2.1 np=30080 from=198.51.100.0/24", None); // TP-30
        check("ext=192.0.2.1 vip=192.0.2.1 from=198.51.100.0/24", Some("198.51.100.0/24")); // TP-36
        check("vip=2001:db8::1 from=198.51.100.0/24", None);
    }

    #[test]
    fn a_node_inside_admits_the_services_own_addresses() {
        let vips = "vip=192.0.2.2 vip=192.0.2.1 vip=2001:db8::1";
        check(&format!("{vips} from=10.0.0.0/8"), Some("10.0.0.0/8 192.0.2.1/32 192.0.2.2/32 +node")); // TP-34
        check(&format!("{vips} from=203.0.113.0/24"), Some("203.0.113.0/24")); // TP-34: the primary address only
    }

    #[test]
    fn a_source_without_an_address_is_refused_unless_it_is_the_node() {
        let inside = SourceRanges { ranges: vec!["10.0.0.0/8".parse().unwrap()], node: true };
        let outside = SourceRanges { node: false, ..inside.clone() };
        for source in [Source::Pod, Source::Node, Source::Outside] {
            assert!(inside.admit(source, Some(ip("10.1.0.1")))); // TP-31
            assert!(inside.admit(source, Some(ip("::ffff:10.1.0.1")))); // IN-24
            assert!(!inside.admit(source, Some(ip("192.0.2.9"))));
            assert!(!inside.admit(source, Some(ip("fd00::1"))));
            assert_eq!(inside.admit(source, None), source == Source::Node);
            assert!(!outside.admit(source, None));
        }
    }
}
