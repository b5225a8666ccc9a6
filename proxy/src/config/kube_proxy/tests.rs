//! Files as clusters have them, and what becomes of them.

use serde_json::json;
use shunt_model::source::kube::KubeconfigSetting;

use crate::config::tests::{config_of, refused};
use crate::config::{KubeConfig, SourceConfig};
use crate::datapath::PacketOptions;
use crate::plan::{PodDetection, PodInterface};

/// As kubeadm writes it into a ConfigMap.
const KUBEADM: &str = "
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: \"\"
  burst: 0
  contentType: \"\"
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: \"\"
  interfaceNamePrefix: \"\"
detectLocalMode: \"\"
enableProfiling: false
healthzBindAddress: \"\"
hostnameOverride: \"\"
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: \"\"
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
kind: KubeProxyConfiguration
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: \"0\"
  verbosity: 0
metricsBindAddress: \"\"
mode: \"\"
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: \"\"
showHiddenMetricsForVersion: \"\"
winkernel:
  enableDSR: false
  networkName: \"\"
";

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

#[test]
fn a_file_of_kubeadm_is_taken_as_it_is() {
    let config = config_of(KUBEADM, "--hostname-override=Node-1").unwrap();
    assert_eq!(config.node, "node-1");
    let kubeconfig = Some("/var/lib/kube-proxy/kubeconfig.conf".into());
    let setting = KubeconfigSetting::Document;
    assert_eq!(config.source, SourceConfig::Kube(KubeConfig { kubeconfig, setting, master: None }));
    assert_eq!(config.healthz.unwrap().to_string(), "0.0.0.0:10256");
    assert_eq!(config.metrics.unwrap().to_string(), "127.0.0.1:10249");
    assert_eq!((config.oom_score_adj, config.bind_address_hard_fail), (-999, false));
    let told = config.notes.join("\n");
    assert!(!told.contains("clusterCIDR") && !told.contains("iptables."), "{told}");
    assert_eq!(config.pods, PodDetection::Networks(vec!["10.244.0.0/16".parse().unwrap()]));
}

#[test]
fn a_kubeconfig_given_beside_a_document_is_ignored_and_messages_name_the_field() {
    let config = config_of(HEAD, "--kubeconfig k --hostname-override n").unwrap();
    let setting = KubeconfigSetting::Document;
    assert_eq!(config.source, SourceConfig::Kube(KubeConfig { kubeconfig: None, setting, master: None }));
    assert!(config.notes.iter().any(|note| note.contains("ignored") && note.contains("--kubeconfig")));
    let config = config_of("", "--kubeconfig k --hostname-override n").unwrap();
    let setting = KubeconfigSetting::Flag;
    assert_eq!(config.source, SourceConfig::Kube(KubeConfig { kubeconfig: Some("k".into()), setting, master: None }));
}

#[test]
fn fields_are_obeyed() {
    let text = format!(
        "{HEAD}bindAddress: 'fd00::1'\nhealthzBindAddress: 127.0.0.1\nmetricsBindAddress: '0.0.0.0:9'\nbindAddressHardFail: true\nnodePortAddresses: [primary]\noomScoreAdj: -500\nmode: nftables\nnftables: {{syncPeriod: 1m}}\nhostnameOverride: n9\n"
    );
    let config = config_of(&text, "--manifests m").unwrap();
    assert_eq!(config.healthz.unwrap().to_string(), "127.0.0.1:10256");
    assert_eq!(config.metrics.unwrap().to_string(), "0.0.0.0:9");
    assert_eq!((config.node.as_str(), config.oom_score_adj, config.bind_address_hard_fail), ("n9", -500, true));
    assert_eq!(config.node_ports, crate::plan::NodePortAddresses::Primary);
    assert_eq!(config.sync_period.as_secs(), 60);
    assert!(config.notes.iter().any(|note| note.contains("mode nftables")), "{:?}", config.notes);
    // The family of the bind address decides that of the defaults (CF-12).
    let config = config_of(&format!("{HEAD}bindAddress: 'fd00::1'\n"), "--manifests m").unwrap();
    assert_eq!(config.healthz.unwrap().to_string(), "[::]:10256");
    assert_eq!(config.metrics.unwrap().to_string(), "[::1]:10249");
}

#[test]
fn beside_a_document_of_kube_proxy_its_flags_are_ignored_but_two_kinds() {
    let line = "--manifests m --hostname-override n1 --oom-score-adj=-1 --healthz-bind-address 127.0.0.1:1 -v 4";
    let config = config_of(HEAD, line).unwrap();
    assert_eq!((config.node.as_str(), config.oom_score_adj), ("n1", -999));
    assert_eq!(config.healthz.unwrap().port(), 10256);
    let told = config.notes.join("\n");
    assert!(told.contains("--oom-score-adj") && told.contains("--healthz-bind-address"), "{told}");
    assert!(!told.contains("--hostname-override"), "{told}");
    assert_eq!(config.configz().pointer("/kubeproxy.config.k8s.io/logging/verbosity"), Some(&json!(4)));
}

#[test]
fn without_such_a_document_its_flags_count() {
    let line = "--manifests m --hostname-override n1 --oom-score-adj=-1 --masquerade-all --iptables-sync-period 10s --cluster-cidr 10.0.0.0/8 --feature-gates A=true,B=false --metrics-port 0 --healthz-port=0 --proxy-mode=ebpf --v=2";
    let config = config_of("", line).unwrap();
    assert_eq!((config.oom_score_adj, config.sync_period.as_secs()), (-1, 10));
    assert_eq!((config.healthz, config.metrics), (None, None));
    let told = config.notes.join("\n");
    assert!(told.ends_with("without effect in this version: featureGates"), "{told}");
    assert!(config.kube_proxy.iptables.masquerade_all);
    assert_eq!(config.pods, PodDetection::Networks(vec!["10.0.0.0/8".parse().unwrap()]));
}

#[test]
fn packets_are_treated_as_the_document_says() {
    let packets = |text: &str| config_of(&format!("{HEAD}{text}"), "--manifests m --hostname-override n1").unwrap();
    let PacketOptions { masquerade_mark, drop_invalid, loopback_node_ports } = packets("").packets;
    assert_eq!((masquerade_mark, drop_invalid, loopback_node_ports), (0x4000, true, true)); // TP-43, CT-20, TP-15
    let bits = "iptables: {masqueradeBit: 3}\nnftables: {masqueradeBit: 31}\n";
    assert_eq!(packets(bits).packets.masquerade_mark, 8);
    assert_eq!(packets(&format!("mode: nftables\n{bits}")).packets.masquerade_mark, 1 << 31);
    assert!(!packets("conntrack: {tcpBeLiberal: true}\n").packets.drop_invalid);
    assert!(!packets("iptables: {localhostNodePorts: false}\n").packets.loopback_node_ports);
    for (text, wanted) in [
        ("", PodDetection::Node),
        ("detectLocalMode: NodeCIDR\nclusterCIDR: 10.0.0.0/8\n", PodDetection::Node),
        (
            "clusterCIDR: '10.0.0.0/8, fd00::/48'\n",
            PodDetection::Networks(vec!["10.0.0.0/8".parse().unwrap(), "fd00::/48".parse().unwrap()]),
        ),
        (
            "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}\n",
            PodDetection::Interface(PodInterface::Named("cni0".into())),
        ),
        (
            "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}\n",
            PodDetection::Interface(PodInterface::Prefixed("veth".into())),
        ),
    ] {
        assert_eq!(packets(text).pods, wanted, "{text}");
    }
}

#[test]
fn our_settings_stand_in_a_document_of_their_own() {
    let ours = "apiVersion: shunt.dev/v1alpha1\nkind: ShuntConfiguration\ndns: false\nmanifests: m\n";
    let config = config_of(&format!("{HEAD}hostnameOverride: n1\n---\n{ours}"), "").unwrap();
    assert_eq!((config.node.as_str(), config.dns.is_none()), ("n1", true));
    assert_eq!(config.source, SourceConfig::Manifests("m".into()));
    refused(config_of(&format!("{HEAD}---\n{ours}dns-tll: 5\n"), ""), &["dns-tll", "line 8"]);
}

#[test]
fn an_unknown_field_is_a_warning_with_its_line() {
    // CF-2
    let config = config_of(&format!("{HEAD}iptables:\n  masqueradeBits: 3\n"), "--manifests m --hostname-override n");
    let told = config.unwrap().notes.join("\n");
    assert!(told.contains(":4: KubeProxyConfiguration has no field iptables.masqueradeBits"), "{told}");
}

#[test]
fn what_cannot_be_meant_is_refused() {
    // CF-3
    for (text, words) in [
        ("iptables: {masqueradeBit: 32}", ["iptables.masqueradeBit", "0 to 31"]),
        ("oomScoreAdj: -1001", ["oomScoreAdj", "-1000 to 1000"]),
        ("mode: userspace", ["mode", "iptables, ipvs, nftables"]),
        ("detectLocalMode: Pods", ["detectLocalMode", "ClusterCIDR"]),
        ("detectLocalMode: BridgeInterface", ["detectLocal.bridgeInterface", "must be set"]),
        ("bindAddress: here", ["bindAddress", "here"]),
        ("healthzBindAddress: '127.0.0.1:0'", ["healthzBindAddress", "port 0"]),
        ("metricsBindAddress: x:1", ["metricsBindAddress", "x:1"]),
        ("clusterCIDR: 10.0.0.0/8,11.0.0.0/8", ["clusterCIDR", "one of each family"]),
        ("clusterCIDR: pods", ["clusterCIDR", "not a CIDR"]),
        ("nodePortAddresses: [primary, 10.0.0.0/8]", ["primary", "alone"]),
        ("nodePortAddresses: [here]", ["here", "CIDR"]),
        ("iptables: {syncPeriod: 1s, minSyncPeriod: 2s}", ["iptables.minSyncPeriod", "longer"]),
        ("iptables: {syncPeriod: soon}", ["soon", "duration"]),
        ("conntrack: {min: -1}", ["conntrack.min", "0 to"]),
        ("bindAddressHardFail: 5", ["bindAddressHardFail: is integer `5`, but it takes true or false", "line 3"]),
        ("oomScoreAdj: low", ["oomScoreAdj: is string \"low\", but it takes a whole number", "line 3"]),
        ("iptables:\n  syncPeriod: 1s\nnftables:\n  syncPeriod: 5", ["nftables.syncPeriod: ", "line 6"]),
        ("iptables:\n  masqueradeAll: 'yes'", ["iptables.masqueradeAll: is string \"yes\", but it takes", "line 4"]),
        ("iptables: {masqueradeAll: 1}", ["iptables.masqueradeAll: ", "line 3"]),
        ("featureGates:\n  X: true\n  Y: on it", ["featureGates.Y: ", "line 5"]),
        ("conntrack: 7", ["conntrack: is integer `7`, but it takes a block of fields", "line 3"]),
        ("nodePortAddresses: primary", ["nodePortAddresses: is string \"primary\", but it takes a list", "line 3"]),
        ("logging:\n  verbosity: -2", ["logging.verbosity: is integer `-2`, but it takes a whole number of", "line 4"]),
        (
            "ipvs:\n  syncPeriod: 1s\n  minSyncPeriod: 2s",
            ["ipvs.minSyncPeriod: 2s is longer than syncPeriod", "line 5"],
        ),
    ] {
        refused(config_of(&format!("{HEAD}{text}\n"), "--manifests m --hostname-override n"), &words);
    }
    let version = "apiVersion: kubeproxy.config.k8s.io/v1alpha2\nkind: KubeProxyConfiguration\n";
    refused(config_of(version, ""), &["v1alpha2", "v1alpha1"]);
}

#[test]
fn the_defaults_that_are_written_read_back_as_the_defaults() {
    let text = crate::config::defaults_as_text().unwrap();
    let line = "--manifests m --hostname-override n";
    let (written, plain) = (config_of(&text, line).unwrap(), config_of("", line).unwrap());
    assert_eq!(written, plain);
    assert!(written.notes.is_empty(), "{:?}", written.notes);
}
