//! The search path of pods, completed on the server: one query where the resolver library would send five
//! (DNS-17.7…17.12).

use std::path::Path;

use hickory_proto::rr::Name;

use crate::names;
use crate::records;
use crate::request::Request;
use crate::zone::View;

/// Search paths are completed for pods of the cluster, which are found by their address, so pod mode must be verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AutopathConfig {
    /// Only names in these domains; none means all.
    pub(crate) zones: Vec<Name>,
    /// What comes after the cluster's own domains: the search list of the node, which the kubelet appends too.
    pub(crate) search: Vec<Name>,
}

impl AutopathConfig {
    /// Reads the search list from a resolv.conf; a file that cannot be read has none.
    #[must_use]
    pub(crate) fn with_search_of(zones: Vec<Name>, resolv_conf: &Path) -> Self {
        let text = std::fs::read_to_string(resolv_conf).unwrap_or_default();
        let last = text.lines().filter_map(|line| line.trim().strip_prefix("search")).next_back();
        let domain = |word: &str| names::absolute(word).ok();
        Self { zones, search: last.unwrap_or_default().split_whitespace().filter_map(domain).collect() }
    }

    /// The names to try for `name`, if it is the first that a pod's resolver tries; the first of them is `name` itself.
    pub(crate) fn paths(&self, name: &Name, request: &Request, view: &View) -> Option<Vec<Name>> {
        if !self.zones.is_empty() && !self.zones.iter().any(|zone| zone.zone_of(name)) {
            return None;
        }
        let domain = &view.zone.config().cluster_domain;
        let namespace = view.zone.namespace_of_pod(request.client.ip())?;
        let first = records::below(&[namespace, "svc"], domain)?;
        if !first.zone_of(name) || first.num_labels() == name.num_labels() {
            return None;
        }
        let base: Vec<&[u8]> = name.iter().take(name.iter().len() - first.iter().len()).collect();
        let services = records::below(&["svc"], domain)?;
        let domains = [services, domain.clone()].into_iter().chain(self.search.iter().cloned());
        let rest = domains.chain([Name::root()]);
        let under = |domain: Name| Name::from_labels(base.iter().copied().chain(domain.iter())).ok();
        Some(std::iter::once(name.clone()).chain(rest.filter_map(under)).collect())
    }
}
