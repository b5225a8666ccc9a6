//! What settings become, and which are refused.

use std::error::Error as _;

use clap::Parser;
use shunt_dns::{ForwardConfig, Upstreams};

use super::{Annotation, Config, ConfigFile, DnsListen, Given, KubeProxyFlags, LogFormat, PodNames, Settings};
use crate::plan::NodePortAddresses;

#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    kube_proxy: KubeProxyFlags,
}

fn flags(line: &str) -> Result<Settings, String> {
    let words = std::iter::once("shunt").chain(line.split_whitespace());
    CommandLine::try_parse_from(words).map(|flags| flags.settings).map_err(|error| error.to_string())
}

fn file(name: &str, text: &str) -> Result<Settings, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    read(&path).map(|file| file.settings)
}

fn read(path: &std::path::Path) -> Result<ConfigFile, String> {
    ConfigFile::read(path).map_err(|error| match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    })
}

fn config(line: &str) -> Result<Config, String> {
    config_of("", line)
}

/// What a file with this text and a command line make.
pub(super) fn config_of(text: &str, line: &str) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.conf");
    std::fs::write(&path, text).unwrap();
    let words = std::iter::once("shunt").chain(line.split_whitespace());
    let CommandLine { settings, kube_proxy } = CommandLine::try_parse_from(words).map_err(|error| error.to_string())?;
    Config::new(Given { flags: settings, kube_proxy, file: read(&path)?, in_cluster: false })
        .map_err(|error| error.to_string())
}

#[track_caller]
pub(super) fn refused<T: std::fmt::Debug>(outcome: Result<T, String>, words: &[&str]) {
    let message = outcome.unwrap_err();
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
}

#[test]
fn defaults_are_those_of_the_documentation() {
    let config = config("--manifests m --hostname-override n1").unwrap();
    assert_eq!(config.service_cidrs, ["10.96.0.0/12".parse().unwrap()]);
    assert_eq!(config.bpf_root.to_str(), Some("/sys/fs/bpf/shunt"));
    assert_eq!(config.control_socket.to_str(), Some("/run/shunt/shunt.sock"));
    assert_eq!(config.cluster_dns, ["10.96.0.10".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(config.healthz.unwrap().to_string(), "0.0.0.0:10256");
    assert_eq!(config.metrics.unwrap().to_string(), "127.0.0.1:10249");
    assert_eq!(config.log_format, LogFormat::Text);
    let dns = config.dns.unwrap();
    assert_eq!(dns.listen, DnsListen::Default);
    assert_eq!(dns.domain, "cluster.local");
    assert_eq!(dns.forward, ForwardConfig::to(Upstreams::usual()));
    assert_eq!((dns.pods, dns.ttl), (PodNames::Insecure, 5));
}

#[test]
fn node_names_are_trimmed_and_lower_case() {
    let node = |name: &str| super::node_name(Some(name)).map_err(|error| error.to_string());
    assert_eq!(node(" Node-A ").unwrap(), "node-a"); // IN-9
    refused(node("  "), &["--hostname-override", "empty"]);
}

#[test]
fn the_file_has_the_names_of_the_flags_and_flags_win() {
    let yaml =
        "manifests: m\ndns: false\nservice-cidr: [10.0.0.0/16, fd00::/112]\ndns-upstream: [192.0.2.1, 'fd00::1']\n";
    let json = r#"{"manifests": "m", "dns": false, "service-cidr": "10.0.0.0/16,fd00::/112",
        "dns-upstream": "192.0.2.1,fd00::1"}"#;
    assert_eq!(file("c.yaml", yaml), file("c.json", json));
    let both = flags("--dns --service-cidr 10.1.0.0/16").unwrap().or(file("c.yaml", yaml).unwrap());
    assert_eq!(both.dns, Some(true));
    assert_eq!(both.service_cidr, flags("--service-cidr 10.1.0.0/16").unwrap().service_cidr);
    assert_eq!(both.manifests, Some("m".into()));
    assert_eq!(both.dns_upstream, flags("--dns-upstream 192.0.2.1:53,[fd00::1]:53").unwrap().dns_upstream);
    assert_eq!(file("empty.yaml", ""), Ok(Settings::default()));
    let yaml = "dns-stub-domain: [a.example=192.0.2.1, 'b.example=192.0.2.2,192.0.2.3']\n";
    let given = flags("--dns-stub-domain a.example=192.0.2.1 --dns-stub-domain b.example=192.0.2.2,192.0.2.3").unwrap();
    assert_eq!(file("c.yaml", yaml).unwrap().dns_stub_domain, given.dns_stub_domain);
}

#[test]
fn mistakes_in_the_file_are_named_with_their_line() {
    refused(file("c.yaml", "manifests: m\ndns-tll: 5\n"), &["c.yaml", "dns-tll", "line 2"]);
    refused(file("c.json", "{\n\"dns-tll\": 5}"), &["c.json", "dns-tll", "line 2"]);
    refused(file("c.yaml", "manifests: m\nservice-cidr: nonsense\n"), &["nonsense", "line 2"]);
    refused(file("c.yaml", "proxy-mode: ipvs\n"), &["ipvs", "line 1"]);
    refused(file("c.yaml", "dns-ttl: [\n"), &["c.yaml"]);
    refused(read("absent.yaml".as_ref()), &["absent.yaml"]);
}

#[test]
fn mistakes_in_flags_say_what_to_do() {
    refused(config("--hostname-override n"), &["--manifests", "--kubeconfig"]);
    refused(config("--manifests m --kubeconfig k"), &["--manifests", "--kubeconfig", "leave one out"]);
    refused(config("--manifests m --socket-lb never"), &["never", "auto", "off"]);
    refused(config("--manifests m --proxy-mode ipvs"), &["ipvs", "auto"]);
    refused(config("--manifests m --cluster-dns 10.96.0.10:53"), &["--cluster-dns", "without a port"]);
    refused(config("--manifests m --dns-bind-address="), &["--dns-bind-address", "--dns=false"]);
    refused(config("--manifests m --dns-upstream resolv.conf"), &["resolv.conf", "slash"]);
    refused(config("--manifests m --dns-stub-domain 192.0.2.1"), &["192.0.2.1", "DOMAIN=ADDR"]);
    refused(config("--manifests m --dns-stub-domain a.example="), &["a.example=", "DOMAIN=ADDR"]);
    refused(config("--manifests m --dns-upstream tls://dns.example"), &["tls://dns.example", "not an address"]);
    refused(config("--manifests m --healthz-bind-address localhost:1"), &["localhost:1", "IP"]);
    refused(config("--manifests m --kube-api-qps fast"), &["--kube-api-qps", "no number"]);
    refused(config("--manifests m --iptables-masquerade-bit 32"), &["iptables.masqueradeBit", "0 to 31"]);
}

#[test]
fn the_cluster_domain_may_be_any_name() {
    for (text, wanted) in [
        ("Cluster.Local.", Ok("cluster.local")),
        (r"a\.", Ok(r"a\.")),
        (r"my\032lab.test", Ok(r"my\ lab.test")),
        ("büro.test", Ok(r"b\195\188ro.test")),
        ("-a-.0/25", Ok("-a-.0/25")),
        ("a..b", Err("\"a..b\" is not a domain name")),
        (".", Err("must not be the root")),
    ] {
        let dns =
            config(&format!("--manifests m --hostname-override n1 --cluster-domain={text}")).unwrap().dns.unwrap();
        let zone = crate::dns::service::zone_config(&dns, &[]);
        match wanted {
            Ok(wanted) => {
                assert_eq!(shunt_dns::name_text(&zone.unwrap().cluster_domain), format!("{wanted}."), "{text}");
            }
            Err(part) => assert!(zone.unwrap_err().to_string().contains(part), "{text}"),
        }
    }
}

#[test]
fn a_corefile_says_all_of_dns_but_where_it_listens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("Corefile");
    let of = |text: &str, further: &str| {
        std::fs::write(&path, text).unwrap();
        config(&format!("--manifests m --hostname-override n1 --corefile {} {further}", path.display()))
    };
    let text = ".:1053 {\n bind 10.0.0.5\n kubernetes Corp.Local {\n  pods verified\n  ttl 30\n }\n}\n";
    let dns = of(text, "").unwrap().dns.unwrap();
    assert_eq!(
        (dns.domain.as_str(), dns.pods, dns.ttl, dns.listen),
        ("corp.local", PodNames::Verified, 30, DnsListen::Default)
    );
    let listen = of(text, "--dns-bind-address 127.0.0.9").unwrap().dns.unwrap().listen;
    assert_eq!(listen, DnsListen::Given(vec!["127.0.0.9:53".parse().unwrap()]));
    for flag in ["--cluster-domain a", "--dns-upstream 192.0.2.1", "--dns-stub-domain a=192.0.2.1", "--dns-ttl 5"] {
        refused(of(text, flag), &["--corefile", flag.split(' ').next().unwrap(), "leave one"]);
    }
    refused(of(text, "--dns-pods insecure"), &["--corefile", "--dns-pods"]);
    refused(of(".:53 {\n forward . 192.0.2.1\n}\n", ""), &["Corefile", "no directive kubernetes"]);
}

#[test]
fn addresses_take_a_port_or_the_default_one() {
    let listen = |list: &str| config(&format!("--manifests m --dns-bind-address {list}")).unwrap().dns.unwrap().listen;
    let given = |addresses: &[&str]| DnsListen::Given(addresses.iter().map(|a| a.parse().unwrap()).collect());
    assert_eq!(listen("127.0.0.1"), given(&["127.0.0.1:53"]));
    assert_eq!(listen("127.0.0.1:5353,::1,[::1]:5353"), given(&["127.0.0.1:5353", "[::1]:53", "[::1]:5353"]));
    assert_eq!(listen("::ffff:127.0.0.1"), given(&["127.0.0.1:53"]));
}

#[test]
fn node_port_addresses_are_all_ranges_or_primary_alone() {
    let node_ports = |line: &str| config(&format!("--manifests m --hostname-override n1 {line}")).map(|c| c.node_ports);
    assert_eq!(node_ports(""), Ok(NodePortAddresses::All));
    assert_eq!(node_ports("--nodeport-addresses primary"), Ok(NodePortAddresses::Primary));
    let ranges = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
    assert_eq!(node_ports("--nodeport-addresses 10.0.0.0/8,fd00::/8"), Ok(NodePortAddresses::Within(ranges)));
    refused(node_ports("--nodeport-addresses primary,10.0.0.0/8"), &["--nodeport-addresses", "primary"]);
    refused(node_ports("--nodeport-addresses 10.0.0.0/33"), &["10.0.0.0/33"]);
}

#[test]
fn annotations_of_pods_that_are_left_alone_can_be_named() {
    let opt_out = |line: &str| config(&format!("--manifests m --hostname-override n1 {line}")).map(|c| c.opt_out);
    let annotation = |key: &str, value: Option<&str>| Annotation { key: key.into(), value: value.map(Into::into) };
    assert_eq!(opt_out(""), Ok(vec![annotation("shunt.dev/socket-proxy", Some("disabled"))]));
    let both = vec![annotation("sidecar.istio.io/status", None), annotation("a/b", Some("c"))];
    assert_eq!(opt_out("--opt-out-annotation sidecar.istio.io/status,a/b=c"), Ok(both));
    refused(opt_out("--opt-out-annotation =x"), &["=x", "key"]);
}
