//! What is a pod's or the node's own on the socket path: loopback, the unspecified address, and ports to bind.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed, its helpers included")]
#![expect(clippy::indexing_slicing, reason = "JSON of our own making")]

mod cluster;
mod support;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;

use cluster::{Cluster, MODES, Shop};
use lab::Place;
use lab::manifests::{self, PodState, Port};
use lab::peer::CallError;
use serde_json::json;

const NODE_PORT: u16 = 30_080;
/// What the kernel chooses from, and the half of it that node ports are.
const EPHEMERAL: Range<u16> = 30_100..30_140;
const NODE_PORTS: Range<u16> = 30_100..30_120;

fn at(ip: impl AsRef<str>, port: u16) -> SocketAddr {
    SocketAddr::new(ip.as_ref().parse().unwrap(), port)
}

fn cluster_with(name: &str, options: &[&str]) -> Option<Arc<Cluster>> {
    let extra = options.iter().map(|&option| option.to_owned());
    Cluster::alone_with(name, |daemon| daemon.extra.extend(extra))
}

/// Serves these node ports, TCP and UDP, in the families of the cluster IPs, and waits until they are in force.
fn serve_node_ports(cluster: &Cluster, shop: &Shop, cluster_ips: &[&str], node_ports: impl Iterator<Item = u16>) {
    let ports = [Port::tcp("tcp", 80, 7000)];
    let mut service = manifests::service("test", "np", Some(shop.name()), &[], &ports);
    service["spec"]["type"] = json!("NodePort");
    service["spec"]["clusterIPs"] = json!(cluster_ips);
    service["spec"]["clusterIP"] = json!(cluster_ips[0]);
    service["spec"]["ipFamilyPolicy"] = json!("PreferDualStack");
    let families = cluster_ips.iter().map(|ip| if ip.contains(':') { "IPv6" } else { "IPv4" });
    service["spec"]["ipFamilies"] = families.collect();
    let port = |(index, node_port): (usize, u16)| {
        ["TCP", "UDP"].map(|protocol| {
            json!({
                "name": format!("{}-{node_port}", protocol.to_lowercase()), "protocol": protocol, "port": 80 + index,
                "targetPort": 7000, "nodePort": node_port,
            })
        })
    };
    service["spec"]["ports"] = node_ports.enumerate().flat_map(port).collect();
    cluster.manifests.put("np", &[service]).unwrap();
    cluster.wait_until_applied(&shop.client);
}

/// What becomes of binding each of these addresses, over TCP and UDP; `v6:` in front asks for `IPV6_V6ONLY`.
#[track_caller]
fn check_binds(place: &Place, port: u16, addresses: &[&str], wanted: Option<&CallError>) {
    for address in addresses {
        let (ip, v6only) = address.strip_prefix("v6:").map_or((*address, ""), |ip| (ip, "-v6only"));
        for protocol in ["tcp", "udp"] {
            let call = format!("bind-{protocol}{v6only}");
            let found = place.probe(&call, &[at(ip, port)]).unwrap().remove(0).error;
            assert_eq!(found.as_ref(), wanted, "{call} {ip} port {port}");
        }
    }
}

#[test]
fn a_bind_is_refused_at_the_addresses_and_families_that_serve_the_node_port_alone() {
    let Some(cluster) = cluster_with("bindwithin", &["--nodeport-addresses", "172.18.0.11/32,fd00:dead::/64"]) else {
        return;
    };
    let shop = Shop::open(&cluster, "within", &[PodState::Ready]);
    serve_node_ports(&cluster, &shop, &["10.96.7.7", "fd00:10:96::707"], std::iter::once(NODE_PORT));
    let (host, node6): (&Place, String) = (cluster.node.host(), cluster.node.ipv6.to_string());
    assert_eq!(cluster.node.ipv4.to_string(), "172.18.0.11");
    let served = ["172.18.0.11", "0.0.0.0", "::ffff:172.18.0.11", "::ffff:0.0.0.0", "::"];
    check_binds(host, NODE_PORT, &served, Some(&CallError::InUse));
    let free = ["127.0.0.1", "127.9.9.9", "::ffff:127.0.0.1", "::1", "v6:::", &node6, &format!("v6:{node6}")];
    check_binds(host, NODE_PORT, &free, None);
    check_binds(host, NODE_PORT + 1, &served, None);
    check_binds(&shop.client, NODE_PORT, &["0.0.0.0", "::", "127.0.0.1"], None);
    // What may be bound is reached.
    let _own = host.serve("own", &["--address", "127.0.0.1", "--tcp", "30080", "--udp", "30080"]).unwrap();
    for to in ["127.0.0.1", "0.0.0.0", "::ffff:127.0.0.1", "::ffff:0.0.0.0"] {
        for mode in MODES {
            let attempt = host.connect(at(to, NODE_PORT), mode, 1).unwrap().remove(0);
            assert_eq!(attempt.server.as_deref(), Some("own"), "{mode:?} to {to}: {:?}", attempt.error);
        }
    }
}

#[test]
fn a_bind_of_ipv6_alone_is_free_where_the_node_port_is_served_in_ipv4_alone() {
    let Some(cluster) = cluster_with("bindfamily", &[]) else { return };
    let shop = Shop::open(&cluster, "family", &[PodState::Ready]);
    let (host, node4): (&Place, String) = (cluster.node.host(), cluster.node.ipv4.to_string());
    let node6 = cluster.node.ipv6.to_string();
    let four = ["0.0.0.0", "127.0.0.1", "127.9.9.9", &node4, "::", "::ffff:0.0.0.0", "::ffff:127.0.0.1"];
    let six = ["v6:::", "::1", "v6:::1", &node6, &format!("v6:{node6}")];
    serve_node_ports(&cluster, &shop, &["10.96.7.7"], std::iter::once(NODE_PORT));
    check_binds(host, NODE_PORT, &four, Some(&CallError::InUse));
    check_binds(host, NODE_PORT, &six, None);
    serve_node_ports(&cluster, &shop, &["10.96.7.7", "fd00:10:96::707"], std::iter::once(NODE_PORT));
    check_binds(host, NODE_PORT, &four, Some(&CallError::InUse));
    check_binds(host, NODE_PORT, &six, Some(&CallError::InUse));
}

#[test]
fn a_port_that_the_kernel_chooses_can_always_be_bound() {
    let Some(cluster) = cluster_with("bindany", &[]) else { return };
    let shop = Shop::open(&cluster, "any", &[PodState::Ready]);
    serve_node_ports(&cluster, &shop, &["10.96.7.7", "fd00:10:96::707"], NODE_PORTS);
    let host: &Place = cluster.node.host();
    let range = format!("{} {}", EPHEMERAL.start, EPHEMERAL.end - 1);
    host.in_netns(|| Ok(fs::write("/proc/sys/net/ipv4/ip_local_port_range", &range)?)).unwrap();
    for ip in ["0.0.0.0", "::", "127.0.0.1", "::1"] {
        for call in ["bind-tcp", "bind-udp"] {
            let probes = host.probe(call, &[at(ip, 0); 100]).unwrap();
            let errors: Vec<_> = probes.into_iter().filter_map(|probe| probe.error).collect();
            assert_eq!(errors, [], "{call} {ip}");
        }
    }
    check_binds(host, EPHEMERAL.start, &["0.0.0.0", "::", "127.0.0.1", "::1"], Some(&CallError::InUse));
}

#[test]
fn a_server_of_a_pod_is_reached_at_the_pods_own_loopback_whatever_node_ports_there_are() {
    let Some(cluster) = cluster_with("podown", &[]) else { return };
    let shop = Shop::open(&cluster, "far", &[PodState::Ready]);
    serve_node_ports(&cluster, &shop, &["10.96.7.7", "fd00:10:96::707"], std::iter::once(NODE_PORT));
    let _own = shop.client.serve("own", &["--tcp", "30080", "--udp", "30080"]).unwrap();
    let dial = |place: &Place, to: &str, server: &str, peer: &str| {
        for mode in MODES {
            let attempt = place.connect(at(to, NODE_PORT), mode, 1).unwrap().remove(0);
            assert_eq!(attempt.server.as_deref(), Some(server), "{mode:?} to {to}: {:?}", attempt.error);
            // The peer as the kernel shows it to a client without a proxy.
            let peer: IpAddr = peer.parse().unwrap();
            assert_eq!(attempt.peername.map(|peer| peer.ip()), Some(peer), "{mode:?} to {to}");
        }
    };
    let host: &Place = cluster.node.host();
    let mapped = "::ffff:127.0.0.1";
    let ways = [("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("::", "::1"), ("::1", "::1")];
    for (to, peer) in ways.into_iter().chain([("::ffff:0.0.0.0", mapped), (mapped, mapped)]) {
        dial(&shop.client, to, "own", peer);
        dial(host, to, "far-0", peer);
    }
}

#[test]
fn links_at_hooks_that_this_version_does_not_use_are_removed_at_the_start() {
    let Some(cluster) = cluster_with("oldhook", &[]) else { return };
    let shop = Shop::open(&cluster, "hook", &[PodState::Ready]);
    serve_node_ports(&cluster, &shop, &["10.96.7.7"], std::iter::once(NODE_PORT));
    cluster.daemon().kill9().unwrap();
    let version = cluster.bpf_root().join(format!("v{}", cluster::TABLES));
    for kind in ["links", "programs"] {
        fs::hard_link(version.join(kind).join("bind4"), version.join(kind).join("post_bind4")).unwrap();
    }
    cluster.daemon().restart().unwrap();
    for kind in ["links", "programs"] {
        let pins = fs::read_dir(version.join(kind)).unwrap().map(|entry| entry.unwrap().file_name());
        let names: Vec<String> = pins.map(|name| name.into_string().unwrap()).collect();
        assert!(names.contains(&"bind4".to_owned()) && !names.contains(&"post_bind4".to_owned()), "{names:?}");
    }
    check_binds(cluster.node.host(), NODE_PORT, &["0.0.0.0"], Some(&CallError::InUse));
}
