//! What a daemon that is killed, stopped or started again leaves in force and takes over.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed, its helpers included"
)]

mod cluster;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use cluster::{Cluster, MODES, Shop};
use lab::manifests::{self, PodState};
use lab::peer::{Attempt, Mode, now};
use lab::{Client, DaemonOptions, Pod};
use serde_json::json;

/// How often the daemon is killed while a pod that opted out dials.
const RESTARTS: u32 = 5;
/// Options of a client that dials every 2 ms until the test is over.
const UNTIL_STOPPED: [&str; 4] = ["--interval", "2", "--duration", "600"];
/// A load balancer's address.
const RESTRICTED: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 77)), 80);

/// Every pin below a directory.
fn pins(root: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(pins(&path));
        } else {
            found.insert(path.display().to_string());
        }
    }
    found
}

#[test]
fn a_killed_daemon_fails_no_connection_and_its_successor_adopts_the_state() {
    let Some(cluster) = Cluster::alone("killed") else { return };
    let mut shop = Shop::open(&cluster, "shop", &[PodState::Ready, PodState::Ready]);
    let mut clients = shop.dial_in_every_way();
    assert!(cluster.kernel_writes() > 0, "the first daemon programs the Service");
    let (services, before) = (cluster.services(), pins(&cluster.bpf_root()));
    assert!(!before.is_empty(), "the data path is not pinned");

    let killed = now();
    cluster.daemon().kill9().unwrap();
    for (_, _, client) in &mut clients {
        client.wait_for_attempts(killed, 30).unwrap();
    }
    let started = now();
    cluster.daemon().restart().unwrap();
    assert_eq!((cluster.services(), pins(&cluster.bpf_root())), (services, before), "after the restart");
    assert_eq!(cluster.kernel_writes(), 0, "the new daemon finds everything in place");

    // The new daemon writes to the same tables, not of a second set beside them.
    shop.add(PodState::Ready);
    for (to, mode, client) in &mut clients {
        client.wait_for(started, "shop-2", |attempt| attempt.server.as_deref() == Some("shop-2")).unwrap();
        assert_eq!(client.failures().unwrap(), [], "{mode:?} to {to}");
    }
}

#[test]
fn a_stopped_daemon_leaves_the_data_path_in_place() {
    let Some(cluster) = Cluster::alone("stopped") else { return };
    let shop = Shop::open(&cluster, "shop", &[PodState::Ready]);
    assert!(cluster.daemon().stop().unwrap().success());
    for to in shop.addresses() {
        for mode in MODES {
            let attempt = shop.client.connect(to, mode, 1).unwrap().remove(0);
            assert_eq!(attempt.server.as_deref(), Some("shop-0"), "{mode:?} to {to}: {:?}", attempt.error);
        }
    }
}

#[test]
fn endpoints_that_changed_while_no_daemon_ran_are_applied_at_the_next_start() {
    let Some(cluster) = Cluster::alone("caughtup") else { return };
    let mut shop = Shop::open(&cluster, "shop", &[PodState::Ready, PodState::Ready]);
    cluster.daemon().kill9().unwrap();
    shop.set(0, PodState::Unready);
    cluster.daemon().restart().unwrap();
    for to in shop.addresses() {
        for mode in MODES {
            let attempts = shop.client.connect(to, mode, 30).unwrap();
            assert!(attempts.iter().all(|a| a.server.as_deref() == Some("shop-1")), "{mode:?} to {to}: {attempts:?}");
        }
    }
}

/// Makes the pins look like those of an earlier version of the tables; version 2 had its flows beside them.
fn disguise(root: &Path, version: u32) {
    let former = root.join(format!("v{version}"));
    fs::rename(root.join(format!("v{}", cluster::TABLES)), &former).unwrap();
    if version == 2 {
        for pin in fs::read_dir(root.join("flows-v1/maps")).unwrap() {
            let pin = pin.unwrap().path();
            fs::rename(&pin, former.join("maps").join(pin.file_name().unwrap())).unwrap();
        }
    }
}

#[test]
fn the_tables_of_each_earlier_version_are_taken_over_with_all_that_clients_hold_of_them() {
    for version in [2, 3] {
        take_over(version);
    }
}

fn take_over(version: u32) {
    let Some(cluster) = Cluster::alone_with(&format!("takenover{version}"), masquerade_all) else { return };
    let mut shop = Shop::open(&cluster, "shop", &[PodState::Ready; 3]);
    let mesh = opted_out_pod(&cluster, shop.addresses()[0]);
    restrict_to_pods(&cluster, &shop);
    let mut clients = shop.dial_in_every_way();
    clients.push((RESTRICTED, Mode::Tcp, shop.client.connect_loop(RESTRICTED, Mode::Tcp, 2).unwrap()));
    let mut opted_out = mesh.connect_loop(shop.addresses()[0], Mode::Tcp, 2).unwrap();
    // One socket each, connected before; among so many each endpoint has some in each family.
    let keep = ["--same-socket", "--interval", "5", "--timeout", "1000"];
    let mut sockets: Vec<(SocketAddr, Client, String)> = Vec::new();
    for to in shop.addresses().into_iter().flat_map(|to| [to; 8]) {
        let mut socket = shop.client.connect_in_background(to, Mode::Udp, &keep).unwrap();
        let server = socket.wait_for_attempts(0, 1).unwrap().remove(0).server.unwrap();
        sockets.push((to, socket, server));
    }
    cluster.daemon().kill9().unwrap();
    disguise(&cluster.bpf_root(), version);
    let started = now();
    cluster.daemon().restart().unwrap();
    assert_eq!(cluster.kernel_writes(), 2, "all but the ranges of Services, which came later, is in its own tables");
    let left: Vec<_> =
        pins(&cluster.bpf_root()).into_iter().filter(|pin| pin.contains(&format!("/v{version}/"))).collect();
    assert_eq!(left, Vec::<String>::new(), "the former version is retired");
    for (to, socket, server) in &mut sockets {
        let attempts = socket.wait_for_attempts(started, 5).unwrap();
        assert!(attempts.iter().all(|a| a.server.as_ref() == Some(server)), "{to} had {server}: {attempts:?}");
    }
    let untouched = opted_out.wait_for_attempts(started, 50).unwrap();
    assert!(untouched.iter().all(|attempt| by_packets(&cluster, attempt)), "at the socket: {untouched:?}");
    assert_eq!(opted_out.failures().unwrap(), [], "packets are served always");
    // What the sockets refer to is known: those of an endpoint that leaves are ended, and no others.
    let removed = now();
    shop.set(0, PodState::Unready);
    for (to, socket, server) in sockets.iter_mut().filter(|(_, _, server)| server == "shop-0") {
        socket.wait_for(removed, "another server", |a| a.server.as_ref().is_some_and(|s| s != server)).unwrap();
        let failures: Vec<_> = socket.failures().unwrap().into_iter().map(|attempt| attempt.error).collect();
        assert_eq!(failures.len(), 1, "{to}: the socket ends once: {failures:?}");
    }
    let removed = now();
    for (to, socket, server) in sockets.iter_mut().filter(|(_, _, server)| server != "shop-0") {
        let attempts = socket.wait_for_attempts(removed, 5).unwrap();
        assert!(attempts.iter().all(|a| a.server.as_ref() == Some(server)), "{to} had {server}: {attempts:?}");
        assert_eq!(socket.failures().unwrap(), [], "{to}");
    }
    for (to, mode, client) in &mut clients {
        client.wait_for_attempts(started, 30).unwrap();
        assert_eq!(client.failures().unwrap(), [], "{mode:?} to {to}");
    }
}

/// With source NAT for all packets to cluster IPs, the source tells a socket that is translated from one whose packets
/// are: the former keeps the pod's address.
fn masquerade_all(options: &mut DaemonOptions) {
    options.extra.push("--masquerade-all".to_owned());
}

/// Whether a server answered, to packets that this node translated.
fn by_packets(cluster: &Cluster, attempt: &Attempt) -> bool {
    let node: [IpAddr; 2] = [cluster.node.ipv4.into(), cluster.node.ipv6.into()];
    attempt.source.is_some_and(|source| node.contains(&source.ip()))
}

/// Whether a server answered, and saw the address of this pod.
fn at_socket(pod: &Pod, attempt: &Attempt) -> bool {
    let own: [IpAddr; 2] = [pod.ipv4.into(), pod.ipv6.into()];
    attempt.source.is_some_and(|source| own.contains(&source.ip()))
}

/// A pod that has opted out: what it sends to a Service's address is translated as packets.
fn opted_out_pod(cluster: &Cluster, to: SocketAddr) -> Pod {
    let mesh = cluster.node.pod("mesh").unwrap();
    let mut pod = manifests::pod("test", "mesh", &mesh, PodState::Ready, &[]);
    pod["metadata"]["annotations"] = json!({"shunt.dev/socket-proxy": "disabled"});
    cluster.manifests.put("mesh", &[pod]).unwrap();
    let attempt = || mesh.connect(to, Mode::Tcp, 1).unwrap().remove(0);
    cluster.wait_for("the pod to be left alone", || by_packets(cluster, &attempt()));
    mesh
}

/// Puts a load balancer's address before the pods of `shop` that takes connections of pods alone.
fn restrict_to_pods(cluster: &Cluster, shop: &Shop) {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "restricted", "namespace": "test"},
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.1.200", "clusterIPs": ["10.96.1.200"],
            "selector": {"app": shop.name()}, "loadBalancerSourceRanges": ["10.244.0.0/16"],
            "ports": [{"name": "tcp", "port": RESTRICTED.port(), "targetPort": 7000}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": RESTRICTED.ip()}]}},
    });
    cluster.manifests.put("restricted", &[service]).unwrap();
    let answer = || shop.client.connect(RESTRICTED, Mode::Tcp, 1).unwrap().remove(0).server;
    cluster.wait_for("the load balancer's address to be served", || answer().is_some());
}

#[test]
fn no_socket_of_an_opted_out_pod_is_translated_while_the_daemon_is_killed_and_restarted() {
    let Some(cluster) = Cluster::alone_with("optrestart", masquerade_all) else { return };
    let shop = Shop::open(&cluster, "opt", &[PodState::Ready]);
    let ways = shop.addresses().map(|to| MODES.map(|mode| (to, mode))).concat();
    let mesh = opted_out_pod(&cluster, ways[0].0);
    let dial = |client: &Pod| -> Vec<Client> {
        ways.iter().map(|(to, mode)| client.connect_in_background(*to, *mode, &UNTIL_STOPPED).unwrap()).collect()
    };
    let (mut opted_out, mut served) = (dial(&mesh), dial(&shop.client));
    for _ in 0..RESTARTS {
        let killed = now();
        cluster.daemon().kill9().unwrap();
        for client in &mut opted_out {
            client.wait_for_attempts(killed, 10).unwrap();
        }
        cluster.daemon().restart().unwrap();
        let restarted = now();
        for client in opted_out.iter_mut().chain(&mut served) {
            client.wait_for_attempts(restarted, 50).unwrap();
        }
    }
    type IsRight<'a> = &'a dyn Fn(&Attempt) -> bool;
    let kinds: [(_, IsRight<'_>); 2] = [
        (&mut opted_out, &|attempt| by_packets(&cluster, attempt)),
        (&mut served, &|attempt| at_socket(&shop.client, attempt)),
    ];
    for (clients, is_right) in kinds {
        for (client, (to, mode)) in clients.iter_mut().zip(&ways) {
            let attempts = client.attempts().unwrap();
            let others: Vec<_> = attempts.iter().filter(|attempt| !is_right(attempt)).collect();
            let (some, all) = (others.len(), attempts.len());
            assert_eq!(some, 0, "of {all} by {mode:?} to {to} went another way; the first: {:?}", others[0]);
        }
    }
}
