//! What must hold for every cluster, tried on random small ones.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;
use shunt_model::{EndpointSlice, Family, Pod, Service, Snapshot};

use super::fixture::{NODE, cluster, ip, options, pod, service, set_node, slice};
use super::{
    Detect, Empty, EmptyLocal, Frontend, FrontendKind, NodePortAddresses, Packet, Plan, PlanOptions, Planner, PortKey,
    PortPlan, SocketVerdict, Source, Verdict, plan,
};

/// None of those that Services use.
pub(crate) const NODE_ADDRESSES: [&str; 2] = ["198.51.100.1", "2001:db8:ffff::1"];

/// Few names and few addresses, so that Services collide and slices overlap often.
fn any_service() -> impl Strategy<Value = Service> {
    let address = prop_oneof![
        Just("ip=10.96.0.1"),
        Just("ip=10.96.0.10"),
        Just("ip=10.96.0.1 ip=fd00:96::1"),
        Just("ip=fd00:96::2"),
        Just("headless"),
        Just(""),
    ];
    let ports = prop_oneof![
        Just("port=http:80/tcp"),
        Just("port=http:80/tcp port=dns:53/udp"),
        Just("port=dns:53/udp"),
        Just("port=http:80/tcp np=30080"),
        Just("port=http:80/tcp np=30080 port=dns:53/udp np=30053"),
        Just("port=http:80/sctp np=30080"),
    ];
    let extra = prop_oneof![
        3 => Just(""),
        1 => Just("ext=192.0.2.1"),
        1 => Just("vip=192.0.2.1 vip=2001:db8::1 type=lb"),
        1 => Just("vip=192.0.2.1 vip=2001:db8::1 type=lb eTP check=30900 from=198.51.100.0/24"),
        1 => Just("vip=192.0.2.3 from=10.0.0.0/8 from=2001:db8::/32 from=192.0.2.0/24"),
        1 => Just("ext=10.96.0.1 ext=192.0.2.2 vip=192.0.2.2"),
        1 => Just("vip=192.0.2.1 vip=2001:db8::1 type=lb from=10.1.0.0/30 from=fd00::/126"),
        1 => Just("vip=192.0.2.1 vip=192.0.2.2 type=lb from=198.51.100.0/24"),
        1 => Just("ext=198.51.100.1 np=30053"),
        1 => Just("ext=127.0.0.1 vip=::1 vip=0.0.0.0 type=lb np=30080"),
        1 => Just("other"),
        1 => Just("alias"),
    ];
    let policy = prop_oneof![Just(""), Just("iTP"), Just("eTP"), Just("iTP eTP")];
    let created = prop_oneof![Just(""), Just("created=1"), Just("created=2")];
    ("[a-d]", address, ports, extra, policy, created, any::<bool>()).prop_map(
        |(name, address, ports, extra, policy, created, affinity)| {
            let affinity = if affinity { "aff=60" } else { "" };
            service(&name, &format!("{address} {ports} {extra} {policy} {created} {affinity}"))
        },
    )
}

fn any_endpoint(family: char) -> impl Strategy<Value = String> {
    let hints = prop_oneof![Just(""), Just(" z=a"), Just(" z=b"), Just(" z=ab"), Just(" z=a n=1"), Just(" z=b n=2")];
    (0_u8..6, "[RUT]l?", hints).prop_map(move |(number, state, hints)| format!("{family}{number}:{state}{hints}"))
}

fn any_slice() -> impl Strategy<Value = EndpointSlice> {
    let ports = prop_oneof![Just("http:80/tcp http:80/sctp"), Just("http:8080/tcp dns:53/udp"), Just("dns:53/udp")];
    let endpoints = prop_oneof![Just('e'), Just('f')]
        .prop_flat_map(|family| prop::collection::vec(any_endpoint(family), 1..6))
        .prop_map(|endpoints| endpoints.join("; "));
    ("[a-e]", "[x-z]", ports, endpoints, prop::bool::weighted(0.1)).prop_map(
        |(service, name, ports, endpoints, headless)| EndpointSlice {
            headless,
            ..slice(&service, &name, ports, &endpoints)
        },
    )
}

pub(crate) fn any_cluster() -> impl Strategy<Value = Snapshot> {
    let services = prop::collection::vec(any_service(), 0..5);
    let slices = prop::collection::vec(any_slice(), 0..8);
    let pods = prop::collection::vec(any_pod(), 0..4);
    (services, slices, pods, any_zone()).prop_map(|(services, slices, pods, zone)| {
        let mut snapshot = cluster(services, slices);
        snapshot.pods.extend(pods.into_iter().map(|pod| (pod.key.clone(), Arc::new(pod))));
        set_node(&mut snapshot, zone, &NODE_ADDRESSES);
        snapshot
    })
}

/// Few addresses, so that pods share one as they do when one has just taken over from another.
fn any_pod() -> impl Strategy<Value = Pod> {
    let addresses = prop_oneof![Just("10.1.0.1"), Just("10.1.0.1 fd00::1"), Just("10.1.0.2"), Just("")];
    let annotation = prop_oneof![Just("mesh=on"), Just("mesh=off"), Just("")];
    let node = prop_oneof![2 => Just(NODE), 1 => Just("elsewhere")];
    ("[a-c]", addresses, node, annotation, prop::bool::weighted(0.1)).prop_map(
        |(name, addresses, node, annotation, host_network)| Pod {
            host_network,
            ..pod(&name, addresses, node, annotation)
        },
    )
}

fn any_observation() -> impl Strategy<Value = Arc<BTreeSet<IpAddr>>> {
    let address = prop_oneof![
        Just("198.51.100.1"),
        Just("192.0.2.200"),
        Just("127.0.0.1"),
        Just("::1"),
        Just("fe80::1"),
        Just("2001:db8::5"),
    ];
    prop::collection::btree_set(address.prop_map(ip), 0..5).prop_map(Arc::new)
}

fn any_zone() -> impl Strategy<Value = Option<&'static str>> {
    prop_oneof![Just(None), Just(Some("a")), Just(Some("b"))]
}

pub(crate) fn any_options() -> impl Strategy<Value = PlanOptions> {
    let detector = prop_oneof![Just(Detect::Nothing), Just(Detect::Only(Family::V4)), Just(Detect::Both)];
    let node_ports = prop_oneof![
        Just(NodePortAddresses::All),
        Just(NodePortAddresses::Primary),
        Just(NodePortAddresses::Within(vec!["198.51.100.0/24".parse().unwrap()])),
    ];
    let external_ips = prop::bool::weighted(0.8);
    let empty_local = prop_oneof![Just(EmptyLocal::Refuse), Just(EmptyLocal::Pass)];
    let network = (node_ports, external_ips, any::<bool>());
    (detector, any::<bool>(), network, empty_local).prop_map(|(detector, dns, network, empty_local)| {
        let (node_ports, external_ips, masquerade_all) = network;
        PlanOptions {
            node_ports,
            external_ips,
            empty_local,
            masquerade_all,
            service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
            opt_out: vec![("mesh".into(), Some("on".into()))],
            detector,
            cluster_dns: vec![ip("10.96.0.10"), ip("fd00:96::2")],
            dns_backends: if dns { vec!["169.254.20.10:53".parse().unwrap()] } else { Vec::new() },
            ..options()
        }
    })
}

/// One change, as a source publishes it.
#[derive(Clone, Debug)]
enum Edit {
    PutService(Service),
    RemoveService(usize),
    PutSlice(EndpointSlice),
    RemoveSlice(usize),
    PutPod(Pod),
    RemovePod(usize),
    Zone(Option<&'static str>),
    Renumber,
    LoseNode,
    /// The interfaces have these addresses.
    Observe(Arc<BTreeSet<IpAddr>>),
}

fn any_edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        4 => any_service().prop_map(Edit::PutService),
        2 => (0_usize..8).prop_map(Edit::RemoveService),
        4 => any_slice().prop_map(Edit::PutSlice),
        2 => (0_usize..8).prop_map(Edit::RemoveSlice),
        2 => any_pod().prop_map(Edit::PutPod),
        1 => (0_usize..4).prop_map(Edit::RemovePod),
        1 => any_zone().prop_map(Edit::Zone),
        1 => Just(Edit::Renumber),
        1 => Just(Edit::LoseNode),
        1 => any_observation().prop_map(Edit::Observe),
    ]
}

fn apply(snapshot: &mut Snapshot, edit: Edit) {
    match edit {
        Edit::PutService(service) => {
            snapshot.services.insert(service.key.clone(), Arc::new(service));
        }
        Edit::RemoveService(index) => {
            if let Some(key) = snapshot.services.keys().nth(index).cloned() {
                snapshot.services.remove(&key);
            }
        }
        Edit::PutSlice(slice) => {
            snapshot.slices.insert(slice.key.clone(), Arc::new(slice));
        }
        Edit::RemoveSlice(index) => {
            if let Some(key) = snapshot.slices.keys().nth(index).cloned() {
                snapshot.slices.remove(&key);
            }
        }
        Edit::PutPod(pod) => {
            snapshot.pods.insert(pod.key.clone(), Arc::new(pod));
        }
        Edit::RemovePod(index) => {
            if let Some(key) = snapshot.pods.keys().nth(index).cloned() {
                snapshot.pods.remove(&key);
            }
        }
        Edit::Zone(zone) => set_node(snapshot, zone, &NODE_ADDRESSES),
        Edit::Renumber => set_node(snapshot, None, &["192.0.2.200", "2001:db8::5"]),
        Edit::LoseNode => snapshot.nodes.clear(),
        Edit::Observe(_) => {}
    }
}

/// The same cluster as another source might have written it: every list reversed or rotated, slices renamed. Within a
/// slice the order counts for an address that it lists twice (IN-38): the endpoints of such a slice stay as they are.
fn shuffled(snapshot: &Snapshot, turn: usize) -> Snapshot {
    fn rotate<T>(list: &mut [T], turn: usize) {
        if !list.is_empty() {
            list.rotate_left(turn % list.len());
            list.reverse();
        }
    }
    let services = snapshot.services.values().map(|service| {
        let mut service = Service::clone(service);
        rotate(&mut service.ports, turn);
        rotate(&mut service.external_ips, turn);
        rotate(&mut service.load_balancer_ips, turn);
        rotate(&mut service.source_ranges, turn);
        service
    });
    let slices = snapshot.slices.values().enumerate().map(|(index, slice)| {
        let mut slice = EndpointSlice::clone(slice);
        rotate(&mut slice.ports, turn);
        let addresses: BTreeSet<_> = slice.endpoints.iter().map(|endpoint| &endpoint.addresses).collect();
        if addresses.len() == slice.endpoints.len() {
            rotate(&mut slice.endpoints, turn);
        }
        slice.key.slice = format!("{}-{}", (index + turn) % 3, slice.key.slice).into();
        slice
    });
    Snapshot { nodes: snapshot.nodes.clone(), pods: snapshot.pods.clone(), ..cluster(services, slices) }
}

fn every_frontend(plan: &Plan) -> impl Iterator<Item = (&PortPlan, &Frontend)> {
    plan.ports.values().flat_map(|port| port.frontends.iter().map(move |frontend| (&**port, frontend)))
}

/// A packet to the frontend.
fn packet_to(port: &PortPlan, frontend: &Frontend, source: Source) -> Packet {
    let node: IpAddr = match port.key.family {
        Family::V4 => ip(NODE_ADDRESSES[0]),
        Family::V6 => ip(NODE_ADDRESSES[1]),
    };
    Packet {
        source,
        source_address: None,
        destination: frontend.address.unwrap_or(node),
        port: frontend.port.get(),
        protocol: port.key.protocol,
    }
}

fn is_sorted_and_unique<T: Ord>(list: &[T]) -> bool {
    list.is_sorted_by(|a, b| a < b)
}

proptest! {
    #[test]
    fn the_order_of_the_input_does_not_matter(snapshot in any_cluster(), options in any_options(), turn in 0_usize..7) {
        prop_assert_eq!(plan(&snapshot, &options), plan(&shuffled(&snapshot, turn), &options));
    }

    #[test]
    fn a_planner_gives_the_plan_that_planning_anew_gives(
        start in any_cluster(),
        options in any_options(),
        batches in prop::collection::vec(prop::collection::vec(any_edit(), 1..4), 1..12),
    ) {
        let mut planner = Planner::new(options.clone());
        planner.update(Arc::new(start.clone()));
        let (mut snapshot, mut observed) = (start, None);
        for batch in batches {
            for edit in batch {
                if let Edit::Observe(addresses) = &edit {
                    observed = Some(Arc::clone(addresses));
                    planner.observe_addresses(Arc::clone(addresses));
                }
                apply(&mut snapshot, edit);
            }
            planner.update(Arc::new(snapshot.clone()));
            let mut anew = Planner::new(options.clone());
            observed.iter().for_each(|addresses| anew.observe_addresses(Arc::clone(addresses)));
            anew.update(Arc::new(snapshot.clone()));
            prop_assert_eq!(planner.plan(), anew.plan());
            prop_assert!(planner.conflicts().eq(anew.conflicts()));
            let same = planner.plan().clone();
            // Equal objects, none of them shared: the plan must stay as it is.
            planner.update(Arc::new(copied(&snapshot)));
            let now = planner.plan();
            prop_assert!(same.ports.ptr_eq(&now.ports) && same.health_checks.ptr_eq(&now.health_checks));
            prop_assert!(same.addresses.ptr_eq(&now.addresses));
        }
    }

    #[test]
    fn verdicts_say_what_the_lists_say(snapshot in any_cluster(), options in any_options()) {
        let (plan, _) = plan(&snapshot, &options);
        for (port, frontend) in every_frontend(&plan) {
            for source in [Source::Pod, Source::Node, Source::Outside] {
                let (rule, packet) = (frontend.rule_for(source), packet_to(port, frontend, source));
                let kept_out = frontend.kind == FrontendKind::LoadBalancer
                    && port.source_ranges.as_ref().is_some_and(|ranges| !ranges.admit(source, None));
                let wanted = match (port.list(rule.list), rule.empty) {
                    _ if frontend.address.is_none() && !plan.accepts_node_ports(&packet) => Verdict::NotOurs,
                    _ if kept_out => Verdict::Drop,
                    ([], Empty::Reject) => Verdict::Reject,
                    ([], Empty::Drop) => Verdict::Drop,
                    (endpoints, _) => Verdict::Forward { port: &port.key, endpoints },
                };
                prop_assert_eq!(plan.verdict(&packet), wanted);
                // Whatever the detector, a socket of this node is inside the cluster, as the node itself is.
                let at_socket = match (port.list(frontend.from_node.list), frontend.from_node.empty) {
                    _ if source == Source::Outside => continue,
                    _ if wanted == Verdict::NotOurs => SocketVerdict::Pass,
                    _ if kept_out => SocketVerdict::Deny,
                    ([], Empty::Drop) if options.empty_local == EmptyLocal::Pass => SocketVerdict::Pass,
                    ([], Empty::Drop | Empty::Reject) => SocketVerdict::Refuse,
                    (endpoints, _) => SocketVerdict::Forward { port: &port.key, endpoints },
                };
                prop_assert_eq!(plan.decide_at_socket(&packet), at_socket);
                prop_assert_eq!(frontend.filtered, frontend.kind == FrontendKind::LoadBalancer && port.source_ranges.is_some());
            }
        }
    }

    #[test]
    fn plans_are_tidy(snapshot in any_cluster(), options in any_options()) {
        let (plan, conflicts) = plan(&snapshot, &options);
        let mut owners = BTreeMap::new();
        for (port, frontend) in every_frontend(&plan) {
            let place = (port.key.family, frontend.address, port.key.protocol, frontend.port);
            prop_assert!(owners.insert(place, &port.key).is_none(), "{:?} is planned twice", place);
        }
        for (key, port) in &plan.ports {
            prop_assert_eq!(key, &port.key);
            prop_assert!(!port.frontends.is_empty());
            prop_assert!(is_sorted_and_unique(&port.frontends));
            for list in [&port.cluster, &port.local] {
                prop_assert!(is_sorted_and_unique(list));
                prop_assert!(list.iter().all(|endpoint| Family::of(&endpoint.address.ip()) == key.family));
                prop_assert_eq!(list.capacity(), list.len());
            }
            prop_assert!(port.local.iter().all(|endpoint| endpoint.local));
            prop_assert!(is_sorted_and_unique(&port.draining) && port.draining.capacity() == port.draining.len());
            let listed = |address| [&port.cluster, &port.local].iter().any(|l| l.iter().any(|e| e.address == address));
            prop_assert!(!port.draining.iter().any(|address| listed(*address)));
            let ranges = port.source_ranges.as_ref().map(|ranges| &ranges.ranges);
            prop_assert!(ranges.is_none_or(|ranges| !ranges.is_empty() && is_sorted_and_unique(ranges)));
            let filters = port.frontends.iter().any(|frontend| frontend.filtered);
            prop_assert_eq!(ranges.is_some(), filters, "ranges hold for an address or are not there");
        }
        for conflict in &conflicts {
            let at = conflict.frontend;
            let PortKey { service, family, .. } = &conflict.winner;
            let check = plan.health_checks.get(&(service.clone(), *family)).filter(|check| check.port == at.port);
            let owner = owners.get(&(at.family, at.address, at.protocol, at.port));
            // Among health checks alone none is a service port.
            prop_assert!(owner == Some(&&conflict.winner) || (owner.is_none() && at.address.is_none() && check.is_some()));
        }
    }
}

/// An equal snapshot that shares no object with the original.
fn copied(snapshot: &Snapshot) -> Snapshot {
    let services = snapshot.services.values().map(|service| Service::clone(service));
    let slices = snapshot.slices.values().map(|slice| EndpointSlice::clone(slice));
    let mut copy = Snapshot { nodes: snapshot.nodes.clone(), ..cluster(services, slices) };
    copy.pods.extend(snapshot.pods.values().map(|pod| (pod.key.clone(), Arc::new(Pod::clone(pod)))));
    copy
}

#[test]
fn an_endpoint_stays_small() {
    assert!(size_of::<super::Endpoint>() <= 36, "a node may hold 100,000 of them");
}
