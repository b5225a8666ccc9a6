//! Gathers the endpoints of one service port from all slices of its Service (spec IN-31…39).

use std::cmp::Ordering;
use std::net::SocketAddr;

use shunt_model::{EndpointSlice, Family, ServicePort};

use super::lists::Candidate;

/// The endpoints of `port` in `family`: ordered by address, each address once, whatever the order of slices and of
/// endpoints within them.
pub(super) fn endpoints_of<'a>(
    slices: &[&'a EndpointSlice],
    port: &ServicePort,
    family: Family,
    node: &str,
) -> Vec<Candidate<'a>> {
    let mut candidates = Vec::new();
    for slice in slices.iter().filter(|slice| slice.family == family && !slice.headless) {
        // By name and protocol, never by number (IN-33): slices may disagree on the number of a named port.
        for listed in slice.ports.iter().filter(|listed| listed.name == port.name && listed.protocol == port.protocol) {
            candidates.extend(slice.endpoints.iter().filter_map(|endpoint| {
                let address = SocketAddr::new(*endpoint.addresses.first()?, listed.port.get());
                let local = !node.is_empty() && endpoint.node.as_deref() == Some(node);
                Some(Candidate { address, local, endpoint })
            }));
        }
    }
    candidates.sort_unstable_by(|a, b| a.address.cmp(&b.address).then_with(|| by_claim_to_address(a, b)));
    candidates.dedup_by_key(|candidate| candidate.address);
    candidates
}

/// Who keeps an address that is listed twice: the lesser. One that is not terminating beats one that is, since the
/// address has passed to a new pod (IN-38). The rest only makes the choice independent of the order of the input.
fn by_claim_to_address(a: &Candidate<'_>, b: &Candidate<'_>) -> Ordering {
    let (x, y) = (a.endpoint, b.endpoint);
    x.terminating
        .cmp(&y.terminating)
        .then_with(|| y.ready.cmp(&x.ready))
        .then_with(|| y.serving.cmp(&x.serving))
        .then_with(|| b.local.cmp(&a.local))
        .then_with(|| x.node_hints.cmp(&y.node_hints))
        .then_with(|| x.zone_hints.cmp(&y.zone_hints))
}
