//! Any message, by UDP and by TCP, to a server of a small cluster: what comes back is a reply to it, or nothing.
#![no_main]

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use raw::{Message, QR};
use shunt_dns::{Answerer, BlockConfig, ForwardConfig, Name, Transport, Upstreams, ZoneConfig};
use shunt_model::{
    ClusterIps, Endpoint, EndpointPort, EndpointSlice, Family, Namespace, ObjectKey, Protocol, Service, ServiceKind,
    ServicePort, SliceKey, Snapshot, TrafficPolicy,
};

// The reader of the tests, which knows nothing of the server's.
#[expect(dead_code, reason = "the tests use more of it")]
#[path = "../../tests/dns/kinds/raw.rs"]
mod raw;
#[expect(dead_code, reason = "the tests use more of it")]
#[path = "../../tests/dns/kinds/types.rs"]
mod types;

static SERVER: LazyLock<Answerer> = LazyLock::new(|| {
    let domain = Name::from_ascii("cluster.local.").unwrap();
    let zone = ZoneConfig { dns_addresses: vec![[10, 96, 0, 10].into()], ..ZoneConfig::usual(domain.clone()) };
    let block = BlockConfig::usual(domain, ForwardConfig::to(Upstreams::Servers(Vec::new())));
    Answerer::new(zone, Some(Arc::new(cluster())), vec![block]).unwrap()
});

/// A Service with an address and one without, with more endpoints than a datagram holds.
fn cluster() -> Snapshot {
    let mut snapshot = Snapshot::default();
    let namespace = Arc::<str>::from("ns");
    snapshot.namespaces.insert(Arc::clone(&namespace), Arc::new(Namespace { name: namespace }));
    for (name, ips) in
        [("a", ClusterIps::Assigned([[10, 96, 0, 1].into()].into_iter().collect())), ("h", ClusterIps::Headless)]
    {
        let key = ObjectKey::new("ns", name);
        let http =
            ServicePort { name: "p".into(), protocol: Protocol::Tcp, port: 80.try_into().unwrap(), node_port: None };
        let service = Service {
            key: key.clone(),
            created: None,
            kind: ServiceKind::ClusterIp,
            cluster_ips: ips,
            ports: [http].into_iter().collect(),
            external_ips: Default::default(),
            load_balancer_ips: Default::default(),
            source_ranges: Default::default(),
            affinity: None,
            external_policy: TrafficPolicy::Cluster,
            internal_policy: TrafficPolicy::Cluster,
            health_check_node_port: None,
            other_proxy: false,
        };
        snapshot.services.insert(key.clone(), Arc::new(service));
        let endpoint = |last| Endpoint {
            addresses: [[10, 1, 0, last].into()].into(),
            ready: true,
            serving: true,
            terminating: false,
            node: None,
            zone: None,
            zone_hints: Box::default(),
            node_hints: Box::default(),
            hostname: (last == 1).then(|| "e".into()),
            target: None,
        };
        let slice_key = SliceKey { service: key, slice: "s".into() };
        let port = EndpointPort { name: "p".into(), protocol: Protocol::Tcp, port: 80.try_into().unwrap() };
        let slice = EndpointSlice {
            key: slice_key.clone(),
            family: Family::V4,
            ports: [port].into_iter().collect(),
            endpoints: (1..100).map(endpoint).collect(),
            headless: false,
            triggered: None,
        };
        snapshot.slices.insert(slice_key, Arc::new(slice));
    }
    snapshot
}

fuzz_target!(|wire: &[u8]| {
    let client = SocketAddr::from(([10, 1, 0, 1], 5353));
    for transport in [Transport::Udp, Transport::Tcp] {
        let replies = futures::executor::block_on(SERVER.answer(wire, client, transport));
        let is_query = wire.len() >= 12 && wire[2] & 0x80 == 0;
        assert_eq!(replies.len(), usize::from(is_query), "one reply to each query, none to anything else");
        for reply in replies {
            check(wire, &reply, transport);
        }
    }
});

fn check(wire: &[u8], reply: &[u8], transport: Transport) {
    assert_eq!(reply[..2], wire[..2], "the id");
    let message = Message::read(reply).expect("a reply is a message");
    assert_ne!(message.flags & QR, 0);
    // What follows the question may be odd without harm.
    let asked = Message::read(wire).ok();
    let opt = asked.as_ref().map(|asked| asked.opt.as_ref());
    let payload = opt.map_or(1232, |opt| opt.map_or(512, |opt| opt.class));
    if transport == Transport::Udp {
        assert!(reply.len() <= usize::from(payload.clamp(512, 1232)), "the size");
    }
    if let [question] = message.questions.as_slice() {
        let mut at = usize::from(raw::QUESTION);
        let name = raw::name(wire, &mut at).expect("a name that is repeated was read");
        let kind = [question.rtype, question.class].map(u16::to_be_bytes);
        assert_eq!((&question.name, kind.as_flattened()), (&name, &wire[at..at + 4]), "the question as it was asked");
        if let Some(opt) = opt {
            assert_eq!(message.opt.is_some(), opt.is_some(), "OPT for OPT");
        }
    } else {
        assert_eq!(reply.len(), 12, "nothing but a header");
        assert_ne!(message.rcode(), 0);
    }
}
