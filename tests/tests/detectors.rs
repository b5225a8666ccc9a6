//! Pods that are known by the interface of their packets: those keep their source through a cluster IP, all others get
//! the node's, on each path for packets.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed, its helpers included")]

mod cluster;
mod support;

use std::fs;
use std::net::IpAddr;

use lab::DaemonOptions;
use lab::manifests::PodState;

use cluster::{Cluster, Shop};

/// A configuration of kube-proxy, on a node whose pods hang on the bridge `cni0` or on links `pod1`, `pod2`.
struct Detector {
    bridged: bool,
    mode: &'static str,
    field: &'static str,
    interface: &'static str,
    knows_the_pods: bool,
}

const DETECTORS: [Detector; 4] = [
    detector(true, "BridgeInterface", "bridgeInterface", "cni0", true),
    detector(true, "BridgeInterface", "bridgeInterface", "docker0", false),
    detector(false, "InterfaceNamePrefix", "interfaceNamePrefix", "pod", true),
    detector(false, "InterfaceNamePrefix", "interfaceNamePrefix", "cali", false),
];

const fn detector(
    bridged: bool,
    mode: &'static str,
    field: &'static str,
    interface: &'static str,
    knows_the_pods: bool,
) -> Detector {
    Detector { bridged, mode, field, interface, knows_the_pods }
}

#[track_caller]
fn check(name: &str, path: &str) {
    for Detector { bridged, mode, field, interface, knows_the_pods } in DETECTORS {
        let configure = |options: &mut DaemonOptions| {
            let file = options.manifests.with_file_name("kube-proxy.yaml");
            let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
            let text = format!("{head}detectLocalMode: {mode}\ndetectLocal: {{{field}: {interface}}}\n");
            fs::write(&file, text).unwrap();
            let arguments = [path, "--socket-lb=off", "--config", file.to_str().unwrap()];
            options.extra.extend(arguments.map(str::to_owned));
        };
        let cluster = match bridged {
            true => Cluster::bridged_with(name, configure),
            false => Cluster::alone_with(name, configure),
        };
        let Some(cluster) = cluster else { return };
        let shop = Shop::open(&cluster, "web", &[PodState::Ready]);
        let client: [IpAddr; 2] = [shop.client.ipv4.into(), shop.client.ipv6.into()];
        for (to, ip) in shop.addresses().into_iter().zip(client) {
            for dialled in cluster::MODES {
                let attempt = shop.client.connect(to, dialled, 1).unwrap().remove(0);
                assert_eq!(attempt.server.as_deref(), Some("web-0"), "{mode} {interface}: {dialled:?} to {to}");
                let source = attempt.source.unwrap().ip();
                assert_eq!(source == ip, knows_the_pods, "{mode} {interface}: {dialled:?} to {to} from {source}");
            }
        }
    }
}

#[test]
fn nftables_knows_pods_by_their_interface() {
    check("detectnft", "--proxy-mode=nftables");
}

#[test]
fn iptables_knows_pods_by_their_interface() {
    check("detectipt", "--proxy-mode=iptables");
}
