//! Snapshots change; the zone and the server follow.

use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shunt_dns::{Answer, ForwardConfig, PodMode, RecordType, ServerConfig, Upstreams, Zone, ZoneConfig, serve};
use shunt_model::{ObjectKey, SliceKey, Snapshot};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::client;
use crate::fixture::{cluster, key, name, namespace, pod, service, slice, zone_config};

/// Changes one object among few, so that additions, updates and removals all happen often.
fn change(snapshot: &mut Snapshot, rng: &mut StdRng) {
    let owner = ObjectKey::new(format!("n{}", rng.random_range(0..2)), format!("s{}", rng.random_range(0..3)));
    let address = format!("10.0.0.{}", rng.random_range(1..6));
    let part = format!("p{}", rng.random_range(0..2));
    match rng.random_range(0..9) {
        0 => namespace(snapshot, &owner.namespace),
        1 => drop(snapshot.namespaces.remove(&owner.namespace)),
        2 => service(snapshot, &owner, &address, "http:tcp:80"),
        3 => service(snapshot, &owner, "None", "http:tcp:80"),
        4 => drop(snapshot.services.remove(&owner)),
        5 => slice(snapshot, &owner, &part, "http:tcp:80", &format!("{address} !10.0.0.7 h=fd00::7")),
        6 => drop(snapshot.slices.remove(&SliceKey { service: owner, slice: part.as_str().into() })),
        7 => pod(snapshot, &owner, &format!("{address} fd00::{}", rng.random_range(1..3))),
        _ => drop(snapshot.pods.remove(&owner)),
    }
}

#[test]
fn following_changes_is_the_same_as_starting_afresh() {
    for (seed, pods) in [(1, PodMode::Verified), (2, PodMode::Verified), (3, PodMode::Insecure)] {
        let mut rng = StdRng::seed_from_u64(seed);
        let config = Arc::new(ZoneConfig { pods, ..zone_config() });
        let mut snapshot = Snapshot::default();
        let mut zone = Zone::new(Arc::clone(&config), Arc::default(), 1);
        for _ in 0..500 {
            for _ in 0..rng.random_range(0..4) {
                change(&mut snapshot, &mut rng);
            }
            zone = zone.next(Arc::new(snapshot.clone()), 1);
            assert_eq!(zone, Zone::new(Arc::clone(&config), Arc::new(snapshot.clone()), 1));
        }
    }
}

#[test]
fn the_serial_moves_with_changes_only_and_never_back() {
    let serial = |zone: &Zone| {
        let Answer::Records(records) = zone.answer(&name("cluster.local."), RecordType::SOA) else { panic!("a SOA") };
        records.answers[0].data.to_string().split(' ').nth(2).unwrap().to_owned()
    };
    let zone = Zone::new(Arc::new(zone_config()), Arc::new(cluster()), 100);
    let mut snapshot = cluster();
    pod(&mut snapshot, &key("pod-2"), "10.1.0.9");
    let same = zone.next(Arc::new(snapshot.clone()), 110);
    assert_eq!(serial(&same), "100"); // pods are in DNS in verified mode only
    service(&mut snapshot, &key("new"), "10.96.0.77", "");
    let moved = same.next(Arc::new(snapshot.clone()), 120);
    assert_eq!(serial(&moved), "120"); // DNS-3.6
    snapshot.services.remove(&key("new"));
    assert_eq!(serial(&moved.next(Arc::new(snapshot), 90)), "120");
}

#[tokio::test]
async fn absence_is_a_fact_only_once_the_cluster_is_known() {
    let (sender, snapshots) = watch::channel(None);
    let listen = vec!["127.0.0.1:0".parse().unwrap()];
    let no_upstreams = ForwardConfig::to(Upstreams::Servers(vec![]));
    let config =
        ServerConfig { startup_timeout: Duration::ZERO, ..ServerConfig::usual(listen, zone_config(), no_upstreams) };
    let server = serve(config, snapshots).await.unwrap();
    let address = server.local_addresses()[0];
    let rcode = async |text: &str, rtype| {
        let reply = client::udp(address, &client::question(&name(text), rtype)).await;
        (reply.metadata.response_code, reply.answers.len(), reply.authorities.len())
    };
    let web = "web.shop.svc.cluster.local.";
    assert_eq!(rcode(web, RecordType::A).await, (ResponseCode::ServFail, 0, 1)); // DNS-11.3
    assert_eq!(rcode("dns-version.cluster.local.", RecordType::TXT).await, (ResponseCode::NoError, 1, 0)); // DNS-11.2
    let mut views = server.views();
    sender.send_replace(Some(Arc::new(cluster())));
    views.wait_for(|view| view.snapshot.is_some()).await.unwrap();
    assert_eq!(rcode(web, RecordType::A).await, (ResponseCode::NoError, 1, 0));
    assert_eq!(rcode("nothing.shop.svc.cluster.local.", RecordType::A).await, (ResponseCode::NXDomain, 0, 1));
    views.mark_unchanged();
    let mut without = cluster();
    without.services.remove(&key("web"));
    sender.send_replace(Some(Arc::new(without)));
    views.changed().await.unwrap();
    assert_eq!(rcode(web, RecordType::A).await, (ResponseCode::NXDomain, 0, 1)); // DNS-8.4
    drop(sender);
    assert_eq!(rcode("dual.shop.svc.cluster.local.", RecordType::A).await, (ResponseCode::NoError, 1, 0)); // DNS-11.5
    server.shutdown().await;
}

#[tokio::test]
async fn questions_about_the_cluster_wait_for_its_first_view_but_not_for_ever() {
    let web = client::question(&name("web.shop.svc.cluster.local."), RecordType::A);
    let elsewhere = client::question(&name("www.example.test."), RecordType::A);
    for (startup_timeout, wanted) in [(600_000, ResponseCode::NoError), (200, ResponseCode::ServFail)] {
        let startup_timeout = Duration::from_millis(startup_timeout);
        let (sender, snapshots) = watch::channel(None);
        let listen = vec!["127.0.0.1:0".parse().unwrap()];
        let no_upstreams = ForwardConfig::to(Upstreams::Servers(vec![]));
        let config = ServerConfig { startup_timeout, ..ServerConfig::usual(listen, zone_config(), no_upstreams) };
        let server = serve(config, snapshots).await.unwrap();
        let at = server.local_addresses()[0];
        let waiting = tokio::spawn({
            let over_tcp = [web.clone()];
            let web = web.clone();
            async move { tokio::join!(client::udp(at, &web), client::tcp(at, &over_tcp)) }
        });
        // What needs no cluster does not wait.
        assert_eq!(client::udp(at, &elsewhere).await.metadata.response_code, ResponseCode::Refused);
        let all_asked = async {
            while (server.stats().udp_queries, server.stats().tcp_queries) != (2, 1) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(client::PATIENCE, all_asked).await.expect("both questions arrive");
        if wanted == ResponseCode::NoError {
            sender.send_replace(Some(Arc::new(cluster())));
        }
        let (over_udp, mut over_tcp) = waiting.await.unwrap();
        assert_eq!([over_udp, over_tcp.remove(0)].map(|reply| reply.metadata.response_code), [wanted; 2]); // DNS-11.1
        server.shutdown().await;
    }
}
