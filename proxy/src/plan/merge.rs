//! Gathers the endpoints of one service port from all slices of its Service (IN-31…39).

use std::cmp::Ordering;
use std::mem;
use std::net::SocketAddr;

use shunt_model::{EndpointPort, EndpointSlice, Family, Service, ServicePort};

use super::lists::Candidate;

/// The endpoints that serve under port names which no port of `service` has, for a port that no slice names: ordered,
/// each address once. After a port was renamed the slices have its former name for a moment, and its running flows go
/// on meanwhile (CT-14).
pub(super) fn serving_under_a_former_name(
    slices: &[&EndpointSlice],
    service: &Service,
    port: &ServicePort,
    family: Family,
) -> Vec<SocketAddr> {
    let is_named = |listed: &EndpointPort| {
        listed.protocol != port.protocol
            || service.ports.iter().any(|own| own.name == listed.name && own.protocol == listed.protocol)
    };
    let mut found = Vec::new();
    for slice in slices.iter().filter(|slice| slice.family == family && !slice.headless) {
        for listed in slice.ports.iter().filter(|listed| !is_named(listed)) {
            let serving = slice.endpoints.iter().filter(|endpoint| endpoint.serving);
            let addresses = serving.filter_map(|endpoint| endpoint.addresses.first());
            found.extend(addresses.map(|ip| SocketAddr::new(*ip, listed.port.get())));
        }
    }
    found.sort_unstable();
    found.dedup();
    found.shrink_to_fit();
    found
}

/// The endpoints of `port` in `family`: ordered by address, each address once, whatever the order of the slices. Within
/// a slice the order counts for an address that it lists twice.
pub(super) fn endpoints_of<'a>(
    slices: &[&'a EndpointSlice],
    port: &ServicePort,
    family: Family,
    node: &str,
) -> Vec<Candidate<'a>> {
    let mut found = Vec::new();
    for (number, slice) in slices.iter().enumerate().filter(|(_, slice)| slice.family == family && !slice.headless) {
        // By name and protocol, never by number (IN-33): slices may disagree on the number of a named port.
        for listed in slice.ports.iter().filter(|listed| listed.name == port.name && listed.protocol == port.protocol) {
            found.extend(slice.endpoints.iter().filter_map(|endpoint| {
                let address = SocketAddr::new(*endpoint.addresses.first()?, listed.port.get());
                let local = !node.is_empty() && endpoint.node.as_deref() == Some(node);
                Some(Candidate { address, local, endpoint, slice: number })
            }));
        }
    }
    // Stable: the entries for one address stay in the order of their slices, and within a slice in its order.
    found.sort_by_key(|candidate| candidate.address);
    // Of one slice the later entry counts unless it terminates (IN-38). `dedup_by` drops its first argument.
    found.dedup_by(|later, kept| {
        let same = later.address == kept.address && later.slice == kept.slice;
        if same && !later.endpoint.terminating {
            mem::swap(later, kept);
        }
        same
    });
    found.dedup_by(|other, kept| {
        let same = other.address == kept.address;
        if same && by_claim_to_address(other, kept) == Ordering::Less {
            mem::swap(other, kept);
        }
        same
    });
    found
}

/// Orders the entries of two slices for one address; the lesser one stays. An entry that is not terminating comes
/// before one that is, since the address has passed to a new pod (IN-38). All further steps only make the choice
/// independent of the order of the input.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::{NODE, service, slice};

    /// The endpoints of port http/tcp, as address, state (`*` if local) and hints, in either order of the slices.
    #[track_caller]
    fn check(slices: &[EndpointSlice], wanted: &[&str]) {
        let service = service("web", "");
        let mut slices: Vec<&EndpointSlice> = slices.iter().collect();
        for _ in 0..2 {
            let found = endpoints_of(&slices, &service.ports[0], Family::V4, NODE);
            let print = |c: &Candidate<'_>| {
                let state = match (c.endpoint.ready, c.endpoint.terminating) {
                    (true, _) => "ready",
                    (false, true) => "terminating",
                    (false, false) => "unready",
                };
                let hints = c.endpoint.zone_hints.iter().chain(&c.endpoint.node_hints).map(|hint| format!(" {hint}"));
                format!("{} {state}{}{}", c.address, if c.local { "*" } else { "" }, hints.collect::<String>())
            };
            assert_eq!(found.iter().map(print).collect::<Vec<_>>(), wanted);
            slices.reverse();
        }
    }

    fn http(name: &str, endpoints: &str) -> EndpointSlice {
        slice("web", name, "http:80/tcp", endpoints)
    }

    #[test]
    fn all_slices_of_a_service_count() {
        check(&[], &[]);
        check(&[http("a", "e2:R"), http("b", "e1:Rl")], &["10.1.0.1:80 ready*", "10.1.0.2:80 ready"]);
        check(&[http("a", "e10:R; e9:R")], &["10.1.0.9:80 ready", "10.1.0.10:80 ready"]);
    }

    #[test]
    fn ports_match_by_name_and_protocol() {
        let slices = [slice("web", "a", "http:8080/tcp", "e1:R"), slice("web", "b", "http:80/tcp", "e2:R")];
        check(&slices, &["10.1.0.1:8080 ready", "10.1.0.2:80 ready"]); // IN-33: each keeps its number
        check(&[slice("web", "a", "http:80/udp https:80/tcp :80/tcp", "e1:R")], &[]);
    }

    /// What drains for the only port of a Service, `http:80/tcp`.
    #[track_caller]
    fn check_former(slices: &[EndpointSlice], wanted: &[&str]) {
        let service = service("web", "");
        let slices: Vec<&EndpointSlice> = slices.iter().collect();
        let found = serving_under_a_former_name(&slices, &service, &service.ports[0], Family::V4);
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn under_a_name_that_no_port_has_those_that_serve_go_on() {
        // CT-14
        let former = |ports: &str| slice("web", "a", ports, "e2:R; e1:T; e3:U; e2:R");
        check_former(&[former("web:8080/tcp")], &["10.1.0.1:8080", "10.1.0.2:8080"]);
        check_former(&[former("http:8080/tcp web:8080/udp")], &[]);
        check_former(&[slice("web", "a", "web:80/tcp", "f1:R")], &[]);
    }

    #[test]
    fn other_families_headless_slices_and_endpoints_without_address_do_not_count() {
        check(&[slice("web", "a", "http:80/tcp", "f1:R")], &[]); // IN-31
        check(&[EndpointSlice { headless: true, ..http("a", "e1:R") }], &[]); // IN-2
        let mut bare = http("a", "e1:R; e2:R");
        bare.endpoints[0].addresses = [].into();
        check(&[bare], &["10.1.0.2:80 ready"]); // IN-34
    }

    #[test]
    fn of_two_entries_for_an_address_the_one_that_is_not_terminating_stays() {
        check(&[http("a", "e1:T; e1:R")], &["10.1.0.1:80 ready"]); // IN-38
        check(&[http("a", "e1:T"), http("b", "e1:U")], &["10.1.0.1:80 unready"]);
        check(&[http("a", "e1:U"), http("b", "e1:R")], &["10.1.0.1:80 ready"]);
        check(&[http("a", "e1:R"), http("b", "e1:Rl")], &["10.1.0.1:80 ready*"]);
        check(&[http("a", "e1:Tl"), http("b", "e1:Tl")], &["10.1.0.1:80 terminating*"]);
        check(&[http("a", "e1:R z=b"), http("b", "e1:R z=a")], &["10.1.0.1:80 ready a"]);
        check(&[http("a", "e1:R n=2"), http("b", "e1:R n=1")], &["10.1.0.1:80 ready node-1"]);
    }

    #[test]
    fn of_two_entries_of_one_slice_the_later_stays_unless_it_terminates() {
        // IN-38, as kube-proxy's own cache of slices
        check(&[http("a", "e1:R; e1:U")], &["10.1.0.1:80 unready"]);
        check(&[http("a", "e1:U; e1:R")], &["10.1.0.1:80 ready"]);
        check(&[http("a", "e1:R z=a; e1:Rl z=b; e1:R z=c")], &["10.1.0.1:80 ready c"]);
        check(&[http("a", "e1:R z=a; e1:T; e2:R")], &["10.1.0.1:80 ready a", "10.1.0.2:80 ready"]);
        check(&[http("a", "e1:T; e1:Tl")], &["10.1.0.1:80 terminating"]);
        check(&[http("a", "e1:T; e1:U; e1:T")], &["10.1.0.1:80 unready"]);
        // What a slice says in the end is compared with the others.
        check(&[http("a", "e1:Rl; e1:U"), http("b", "e1:R")], &["10.1.0.1:80 ready"]);
    }

    #[test]
    fn publish_not_ready_addresses_arrive_as_ready() {
        let mut leaving = http("a", "e1:T");
        leaving.endpoints[0].ready = true;
        check(&[leaving], &["10.1.0.1:80 ready"]); // IN-42
    }

    #[test]
    fn large_slices_are_merged_port_by_port() {
        let ports: Vec<String> = (0..100).map(|number| format!("p{number}:{}/tcp", 1000 + number)).collect();
        let mut large = slice("web", "a", &format!("http:80/tcp {}", ports.join(" ")), "e0:R");
        let first = large.endpoints[0].clone();
        large.endpoints = (0..1000_u16)
            .map(|number| {
                let [high, low] = number.to_be_bytes();
                shunt_model::Endpoint { addresses: [[10, 1, high, low].into()].into(), ..first.clone() }
            })
            .collect();
        let mut service = service("web", "");
        assert_eq!(endpoints_of(&[&large, &large], &service.ports[0], Family::V4, NODE).len(), 1000); // IN-41
        service.ports[0].name = "p99".into();
        let found = endpoints_of(&[&large], &service.ports[0], Family::V4, NODE);
        assert!(found.len() == 1000 && found.iter().all(|candidate| candidate.address.port() == 1099));
    }

    #[test]
    fn without_a_node_name_nothing_is_local() {
        let (service, mut slice) = (service("web", ""), http("a", "e1:R"));
        slice.endpoints[0].node = Some("".into());
        assert!(!endpoints_of(&[&slice], &service.ports[0], Family::V4, "")[0].local); // IN-9
    }
}
