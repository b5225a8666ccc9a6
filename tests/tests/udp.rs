//! UDP sockets that live longer than what they dialled: endpoints that leave, frontends that come, move and are
//! renamed, and sockets that are connected and not connected in turn.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed, its helpers included")]
#![expect(clippy::print_stderr, reason = "figures are printed, not asserted")]
#![expect(clippy::indexing_slicing, reason = "JSON of our own making")]

mod cluster;
mod support;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use cluster::{Cluster, Shop};
use lab::manifests::{PodState, Port, SliceEndpoint};
use lab::peer::{BenchLine, CallError, Mode, now};
use lab::{Client, manifests};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);
const SAME: [&str; 3] = ["--same-socket", "--interval", "2"];
/// Elements of the table in which an earlier release kept connected UDP sockets.
const FORMER_TABLE: u32 = 131_072;

/// A Service of UDP port 53 beside the shops' own.
fn names(name: &str, shop: &Shop, port: &str, ips: &[&str], external: &[&str]) -> Value {
    let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
    let mut service = manifests::service("test", name, Some(shop.name()), &ips, &[Port::udp(port, 53, 7000)]);
    service["spec"]["externalIPs"] = json!(external);
    service
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// Sends packets for these addresses out of the pod, so that a socket can be connected to them before they are served.
fn route(shop: &Shop, to: &[&str]) {
    for prefix in to {
        let words = ["ip", "route", "add", prefix, "dev", "eth0"];
        let done = shop.client.spawn(&words).unwrap().finish(Duration::from_secs(5)).unwrap();
        assert!(done.status.success(), "{prefix}");
    }
}

fn wait_for_server(client: &mut Client, since: u64, wanted: &str) {
    client.wait_for(since, wanted, |attempt| attempt.server.as_deref() == Some(wanted)).unwrap();
}

#[test]
fn a_long_lived_socket_is_found_when_its_endpoint_leaves_whatever_others_dialled_meanwhile() {
    let Some(cluster) = Cluster::alone("longlived") else { return };
    let mut shop = Shop::open(&cluster, "long", &[PodState::Ready]);
    let [to, _] = shop.addresses();
    let mut client = shop.client.connect_in_background(to, Mode::Udp, &["--same-socket", "--interval", "50"]).unwrap();
    wait_for_server(&mut client, 0, "long-0");
    let samples = (FORMER_TABLE + 1000).to_string();
    let words = ["bench-connect", "--udp", "--rounds", "1", "--to", &to.to_string(), "--samples", &samples];
    let dialled: Vec<BenchLine> = shop.client.ask(&words, PATIENCE).unwrap();
    assert_eq!(dialled[0].samples, usize::try_from(FORMER_TABLE + 1000).unwrap());
    shop.add(PodState::Ready);
    let removed = now();
    shop.set(0, PodState::Unready);
    wait_for_server(&mut client, removed, "long-1");
    let attempts = client.attempts().unwrap().to_vec();
    let first = attempts.iter().find(|attempt| attempt.server.as_deref() == Some("long-1")).unwrap();
    eprintln!("another endpoint answers {:?} after the change", Duration::from_nanos(first.t - removed));
}

#[test]
fn a_connected_socket_older_than_its_frontend_gets_there() {
    let Some(cluster) = Cluster::alone("older") else { return };
    let shop = Shop::open(&cluster, "older", &[PodState::Ready]);
    route(&shop, &["10.96.77.0/24", "203.0.113.0/24"]);
    let node_port: SocketAddr = SocketAddr::new(cluster.node.ipv4.into(), 30_053);
    let (cluster_ip, external) = (at("10.96.77.1", 53), at("203.0.113.9", 53));
    let fast = ["--same-socket", "--interval", "2", "--timeout", "50"];
    let dial = |to| shop.client.connect_in_background(to, Mode::Udp, &fast).unwrap();
    let mut clients: Vec<Client> = [cluster_ip, external, node_port].into_iter().map(dial).collect();
    // As long as it has no endpoint, a Service has nothing to offer to a socket.
    let mut beside = dial(at("10.96.77.2", 53));
    clients.iter_mut().chain([&mut beside]).for_each(|client| drop(client.wait_for_attempts(0, 2).unwrap()));
    let mut service = names("older-names", &shop, "dns", &["10.96.77.1"], &["203.0.113.9"]);
    service["spec"]["type"] = json!("NodePort");
    service["spec"]["ports"][0]["nodePort"] = json!(30_053);
    cluster.manifests.put("names", &[service]).unwrap();
    for client in &mut clients {
        wait_for_server(client, 0, "older-0");
    }
    assert!(beside.attempts().unwrap().iter().all(|attempt| attempt.error != Some(CallError::Aborted)));
    // Deleted and created again.
    cluster.manifests.remove("names").unwrap();
    cluster.wait_until_applied(&shop.client);
    let gone = now();
    clients.iter_mut().for_each(|client| drop(client.wait_for_attempts(gone, 2).unwrap()));
    let again = now();
    cluster.manifests.put("names", &[names("again", &shop, "dns", &["10.96.77.1"], &["203.0.113.9"])]).unwrap();
    clients.iter_mut().take(2).for_each(|client| wait_for_server(client, again, "older-0"));
}

#[test]
fn an_older_socket_gets_to_the_first_endpoint_on_its_node_if_only_that_may_serve() {
    let Some(cluster) = Cluster::alone("oldlocal") else { return };
    let shop = Shop::open(&cluster, "oldlocal", &[PodState::Ready]);
    let to = at("10.96.77.1", 53);
    route(&shop, &["10.96.77.0/24"]);
    let fast = ["--same-socket", "--interval", "2", "--timeout", "50"];
    let mut client = shop.client.connect_in_background(to, Mode::Udp, &fast).unwrap();
    client.wait_for_attempts(0, 2).unwrap();
    let put = |node: &str| {
        let mut service = names("names", &shop, "dns", &["10.96.77.1"], &[]);
        service["spec"]["selector"] = Value::Null;
        service["spec"]["internalTrafficPolicy"] = json!("Local");
        let end = SliceEndpoint { address: shop.pod(0).ipv4.into(), node: node.to_owned(), ready: true };
        let slice = manifests::slice("test", "names", "names-1", &[end], &[Port::udp("dns", 53, 7000)]);
        cluster.manifests.put("names", &[service, slice]).unwrap();
    };
    put("elsewhere");
    cluster.wait_until_applied(&shop.client);
    client.wait_for_attempts(now(), 10).unwrap();
    assert!(client.attempts().unwrap().iter().all(|attempt| attempt.error != Some(CallError::Aborted)));
    put(cluster.node.name());
    wait_for_server(&mut client, 0, "oldlocal-0");
}

#[test]
fn sockets_from_before_the_first_start_get_there() {
    let Some(cluster) = Cluster::alone("firststart") else { return };
    let shop = Shop::open(&cluster, "first", &[PodState::Ready]);
    let to = at("10.96.77.1", 53);
    route(&shop, &["10.96.77.0/24"]);
    cluster.daemon().stop().unwrap();
    std::fs::remove_dir_all(cluster.bpf_root()).unwrap();
    cluster.manifests.put("names", &[names("names", &shop, "dns", &["10.96.77.1"], &[])]).unwrap();
    let fast = ["--same-socket", "--interval", "2", "--timeout", "50"];
    let mut client = shop.client.connect_in_background(to, Mode::Udp, &fast).unwrap();
    client.wait_for_attempts(0, 2).unwrap();
    cluster.daemon().restart().unwrap();
    wait_for_server(&mut client, 0, "first-0");
}

#[test]
fn a_socket_that_connected_while_the_programs_were_detached_gets_there() {
    let Some(cluster) = Cluster::alone("detached") else { return };
    let shop = Shop::open(&cluster, "detached", &[PodState::Ready]);
    let to = at("10.96.77.1", 53);
    route(&shop, &["10.96.77.0/24"]);
    cluster.manifests.put("names", &[names("names", &shop, "dns", &["10.96.77.1"], &[])]).unwrap();
    cluster.wait_until_applied(&shop.client);
    let links = cluster.bpf_root().join(format!("v{}/links", cluster::TABLES));
    cluster.daemon().process().pause().unwrap();
    std::fs::remove_dir_all(links).unwrap();
    let once = || shop.client.connect_with(to, Mode::Udp, &["--count", "1", "--timeout", "50"]).unwrap().remove(0);
    cluster.wait_for("the programs to be detached", || once().server.is_none());
    let fast = ["--same-socket", "--interval", "2", "--timeout", "50"];
    let mut client = shop.client.connect_in_background(to, Mode::Udp, &fast).unwrap();
    client.wait_for_attempts(0, 2).unwrap();
    assert!(client.attempts().unwrap().iter().all(|attempt| attempt.server.is_none()));
    cluster.daemon().process().resume().unwrap();
    wait_for_server(&mut client, 0, "detached-0");
}

/// Clients of both kinds at each address, with the server that answers each.
fn clients(shop: &Shop, to: &[SocketAddr]) -> Vec<(SocketAddr, Mode, Client)> {
    let kinds = to.iter().flat_map(|to| [(*to, Mode::Udp), (*to, Mode::UdpUnconnected)]);
    kinds.map(|(to, mode)| (to, mode, shop.client.connect_in_background(to, mode, &SAME).unwrap())).collect()
}

#[test]
fn sockets_follow_a_frontend_that_moves_to_another_service() {
    let Some(cluster) = Cluster::alone("moves") else { return };
    let blue = Shop::open(&cluster, "blue", &[PodState::Ready]);
    let green = Shop::open(&cluster, "green", &[PodState::Ready]);
    let [one, two] = [&["10.96.77.1", "fd00:10:96::77:1"], &["10.96.77.2", "fd00:10:96::77:2"]];
    let external = "203.0.113.95";
    let put = |of_blue: &[&str], of_green: &[&str], external_of_blue: &[&str], external_of_green: &[&str]| {
        let services = [
            names("blue-names", &blue, "dns", of_blue, external_of_blue),
            names("green-names", &green, "dns", of_green, external_of_green),
        ];
        cluster.manifests.put("names", &services).unwrap();
    };
    put(one, two, &[external], &[]);
    cluster.wait_until_applied(&blue.client);
    let [to_one, to_two] = [one, two].map(|ips| ips.map(|ip| at(ip, 53)));
    let mut of_blue = clients(&blue, &[at(external, 53), to_one[0], to_one[1]]);
    let mut of_green = clients(&blue, &to_two);
    of_blue.iter_mut().for_each(|(.., client)| wait_for_server(client, 0, "blue-0"));
    of_green.iter_mut().for_each(|(.., client)| wait_for_server(client, 0, "green-0"));
    // The external IP moves, and the cluster IPs are swapped.
    let moved = now();
    put(two, one, &[], &[external]);
    of_blue.iter_mut().for_each(|(.., client)| wait_for_server(client, moved, "green-0"));
    of_green.iter_mut().for_each(|(.., client)| wait_for_server(client, moved, "blue-0"));
    cluster.wait_until_applied(&blue.client);
    let later = now();
    for (to, mode, client) in of_blue.iter_mut() {
        let attempts = client.wait_for_attempts(later, 20).unwrap();
        assert!(attempts.iter().all(|a| a.server.as_deref() == Some("green-0")), "{mode:?} to {to}: {attempts:?}");
    }
}

#[test]
fn a_renamed_port_or_service_disturbs_no_socket() {
    let Some(cluster) = Cluster::alone("renamed") else { return };
    let shop = Shop::open(&cluster, "renamed", &[PodState::Ready; 4]);
    let ips = ["10.96.77.1", "fd00:10:96::77:1"];
    let put = |service: Value| {
        cluster.manifests.put("names", &[service]).unwrap();
        cluster.wait_until_applied(&shop.client);
    };
    put(names("names", &shop, "dns", &ips, &["203.0.113.9"]));
    let mut clients = clients(&shop, &[at(ips[0], 53), at(ips[1], 53), at("203.0.113.9", 53)]);
    let first = |client: &mut Client| client.wait_for_attempts(0, 5).unwrap().remove(0).server;
    let before: Vec<Option<String>> = clients.iter_mut().map(|(.., client)| first(client)).collect();
    put(names("names", &shop, "dns-udp", &ips, &["203.0.113.9"]));
    put(names("called-otherwise", &shop, "dns-udp", &ips, &["203.0.113.9"]));
    for ((to, mode, client), server) in clients.iter_mut().zip(before) {
        let attempts = client.wait_for_attempts(now(), 20).unwrap();
        assert!(attempts.iter().all(|attempt| attempt.server == server), "{mode:?} to {to}: {attempts:?}");
        assert_eq!(client.failures().unwrap(), vec![], "{mode:?} to {to}");
    }
}

#[test]
fn a_renamed_port_disturbs_no_socket_while_the_slices_have_its_former_name() {
    let Some(cluster) = Cluster::alone("lagging") else { return };
    let shop = Shop::open(&cluster, "lagging", &[PodState::Ready; 4]);
    let to = at("10.96.77.1", 53);
    let put = |port: &str, listed: &str| {
        let mut service = names("names", &shop, port, &["10.96.77.1"], &[]);
        service["spec"]["selector"] = Value::Null;
        let node = cluster.node.name().to_owned();
        let end =
            |index: usize| SliceEndpoint { address: shop.pod(index).ipv4.into(), node: node.clone(), ready: true };
        let ends: Vec<SliceEndpoint> = (0..4).map(end).collect();
        let slice = manifests::slice("test", "names", "names-1", &ends, &[Port::udp(listed, 53, 7000)]);
        cluster.manifests.put("names", &[service, slice]).unwrap();
        cluster.wait_until_applied(&shop.client);
    };
    put("dns", "dns");
    let mut clients = clients(&shop, &[to]);
    let first = |client: &mut Client| client.wait_for_attempts(0, 5).unwrap().remove(0).server;
    let before: Vec<Option<String>> = clients.iter_mut().map(|(.., client)| first(client)).collect();
    // As from an API server: the controller that writes the slices follows.
    put("names", "dns");
    assert_eq!(shop.client.connect(to, Mode::Udp, 1).unwrap()[0].error, Some(CallError::Refused));
    clients.iter_mut().for_each(|(.., client)| drop(client.wait_for_attempts(now(), 100).unwrap()));
    put("names", "names");
    for ((to, mode, client), server) in clients.iter_mut().zip(before) {
        let attempts = client.wait_for_attempts(now(), 20).unwrap();
        assert!(attempts.iter().all(|attempt| attempt.server == server), "{mode:?} to {to}: {attempts:?}");
        assert_eq!(client.failures().unwrap(), vec![], "{mode:?} to {to}");
    }
}

/// Whence the answers to the questions of one socket came.
#[track_caller]
fn check_senders(shop: &Shop, steps: &[&str], wanted: &[SocketAddr]) {
    let answers = shop.client.turns(steps).unwrap();
    let senders: Vec<SocketAddr> = answers.iter().filter_map(|answer| answer.peer).collect();
    assert_eq!(senders, wanted, "{steps:?}");
}

#[test]
fn an_answer_names_what_the_socket_dialled_last_to_get_it() {
    let Some(cluster) = Cluster::alone("turns") else { return };
    let shop = Shop::open(&cluster, "turns", &[PodState::Ready]);
    let other = ["10.96.77.1", "fd00:10:96::77:1"];
    cluster.manifests.put("names", &[names("names", &shop, "dns", &other, &[])]).unwrap();
    cluster.wait_until_applied(&shop.client);
    let pod: [IpAddr; 2] = [shop.pod(0).ipv4.into(), shop.pod(0).ipv6.into()];
    for family in [0, 1] {
        let (one, two) = (shop.addresses()[family], at(other[family], 53));
        let direct = SocketAddr::new(pod[family], 7000);
        let [to_one, to_two, to_pod] = [one, two, direct].map(|to| format!("ask={to}"));
        let [connect_one, connect_two, connect_pod] = [one, two, direct].map(|to| format!("connect={to}"));
        let check = |steps: &[&str], wanted: &[SocketAddr]| check_senders(&shop, steps, wanted);
        check(&[&connect_one, "ask", "disconnect", &to_pod], &[one, direct]);
        check(&[&connect_one, "ask", "disconnect", &to_two, &to_one], &[one, two, one]);
        check(&[&to_one, &connect_pod, "ask"], &[one, direct]);
        check(&[&to_one, &connect_two, "ask"], &[one, two]);
        check(&[&to_one, &to_pod, &to_one], &[one, direct, one]);
        check(&[&connect_one, "ask", &connect_pod, "ask", &connect_two, "ask"], &[one, direct, two]);
        check(&[&to_one, &to_two, &to_one, &to_two], &[one, two, one, two]);
        check(&[&to_one, &connect_one, &to_one, &to_pod, "ask"], &[one, one, one, one]);
    }
}

#[test]
fn a_connected_socket_may_name_its_peer_at_each_call() {
    let Some(cluster) = Cluster::alone("named") else { return };
    let shop = Shop::open(&cluster, "named", &[PodState::Ready; 4]);
    for to in shop.addresses() {
        let (connect, ask) = (format!("connect={to}"), format!("ask={to}"));
        for _ in 0..8 {
            // No other endpoint's answer would reach it.
            let answers = shop.client.turns(&[&ask, &connect, "ask", &ask, &ask]).unwrap();
            let servers: Vec<_> = answers.iter().skip(1).map(|answer| &answer.server).collect();
            assert!(servers.len() == 3 && servers.iter().all(|server| *server == servers[0]), "{answers:?}");
        }
    }
}
