//! A node whose pods hang on one bridge: by packets, a pod reaches the pod beside it through a Service.
//!
//! The packet to the cluster IP is routed, and so translated; the answer would go over the bridge alone, and reach the
//! client with an address that it did not dial. It passes netfilter only if the daemon has turned that on.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed, its helpers included")]

mod cluster;
mod support;

use std::net::SocketAddr;

use lab::manifests::PodState;

use cluster::{Cluster, MODES, Shop};

#[track_caller]
fn check(name: &str, mode: &str) {
    let arguments = [mode, "--socket-lb=off"];
    let cluster = Cluster::bridged_with(name, |options| options.extra.extend(arguments.map(str::to_owned)));
    let Some(cluster) = cluster else { return };
    let shop = Shop::open(&cluster, "web", &[PodState::Ready]);
    let server = shop.pod(0);
    let direct = [server.ipv4.into(), server.ipv6.into()].map(|ip| SocketAddr::new(ip, 7000));
    for to in shop.addresses().into_iter().chain(direct) {
        for mode in MODES {
            for attempt in shop.client.connect(to, mode, 3).unwrap() {
                assert_eq!(
                    (attempt.server.as_deref(), attempt.peername, attempt.error),
                    (Some("web-0"), Some(to), None),
                    "{mode:?} to {to}"
                );
                let source = attempt.source.map(|source| source.ip());
                let client = [shop.client.ipv4.into(), shop.client.ipv6.into()];
                assert!(source.is_some_and(|source| client.contains(&source)), "{mode:?} to {to} from {source:?}");
            }
        }
    }
}

#[test]
fn nftables_serves_a_pod_beside_the_client() {
    check("bridgednft", "--proxy-mode=nftables");
}

#[test]
fn iptables_serves_a_pod_beside_the_client() {
    check("bridgedipt", "--proxy-mode=iptables");
}
