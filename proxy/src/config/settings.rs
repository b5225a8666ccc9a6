//! What the operator said, on the command line or in the configuration file, before defaults are applied.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};
use ipnet::IpNet;
use serde::Deserialize;
use shunt_dns::{StubDomain, Upstreams};

use super::values::{Address, Annotation, CommaSeparated, NodePortAddress, Text};
use crate::host::devices::Devices;
use crate::plan::EmptyLocal;

/// Settings of `shunt run`; `None` where nothing was said. The field names are the flags' and the file's names.
#[derive(Args, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Settings {
    /// Folder of Kubernetes manifests (*.yaml, *.yml, *.json), watched for changes
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Credentials of the Kubernetes API [default: the pod's service account, in a pod]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// URL of the Kubernetes API server, instead of the one that the credentials name
    #[arg(long, value_name = "URL")]
    pub master: Option<String>,
    /// Name of this node [default: the host name]
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// Ranges from which Services without a clusterIP get one [default: 10.96.0.0/12]
    #[arg(long, value_name = "CIDR,...")]
    pub service_cidr: Option<CommaSeparated<IpNet>>,
    /// The cgroup2 directory whose processes are served [default: the root of the cgroup2 mount]
    #[arg(long, value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,
    /// Where programs and maps are pinned, on a bpf file system [default: /sys/fs/bpf/shunt]
    #[arg(long, value_name = "DIR")]
    pub bpf_root: Option<PathBuf>,
    /// Load the programs from this file instead of the built-in one
    #[arg(long, value_name = "FILE", hide = true)]
    pub bpf_object: Option<PathBuf>,
    /// Where `shunt services` and `shunt dns` find this daemon [default: /run/shunt/shunt.sock]
    #[arg(long, value_name = "PATH")]
    pub control_socket: Option<PathBuf>,
    /// Where the API server's endpoints are remembered, for a start after a reboot [default: /var/lib/shunt]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Node addresses that accept node ports: ranges, or `primary` alone [default: all, loopback included]
    #[arg(long, value_name = "CIDR,...|primary")]
    pub nodeport_addresses: Option<CommaSeparated<NodePortAddress>>,
    /// Processes of the node cannot bind a node port in use [default: true]
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub nodeport_bind_protection: Option<bool>,
    /// Serve the externalIPs of Services [default: true]
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub external_ips: Option<bool>,
    /// Pods with one of these annotations are left alone, for service meshes and VMs [default:
    /// shunt.dev/socket-proxy=disabled]
    #[arg(long, value_name = "KEY[=VALUE],...")]
    pub opt_out_annotation: Option<CommaSeparated<Annotation>>,
    /// What a socket gets whose Service has endpoints, but none on this node where policy Local wants one [default:
    /// refuse]
    #[arg(long)]
    pub empty_local: Option<EmptyLocal>,
    /// How connections are balanced [default: auto]
    #[arg(long)]
    pub proxy_mode: Option<ProxyMode>,
    /// Whether programs at sockets serve the connections of this node, before any packet is sent [default: auto]
    #[arg(long)]
    pub socket_lb: Option<SocketLb>,
    /// The network devices by which this node reaches others, for eBPF programs that serve packets: auto, or names
    /// separated by commas, of which one that ends in + stands for all that begin like it [default: auto]
    #[arg(long, value_name = "LIST")]
    pub devices: Option<Text<Devices>>,
    /// Run the bundled DNS server [default: true]
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub dns: Option<bool>,
    /// Where the DNS server listens; the addresses are put on lo if need be [default: 169.254.20.10:53]
    #[arg(long, value_name = "IP[:PORT],...")]
    pub dns_bind_address: Option<CommaSeparated<Address>>,
    /// Service addresses that pods use for DNS already [default: 10.96.0.10]
    #[arg(long, value_name = "IP,...")]
    pub cluster_dns: Option<CommaSeparated<Address>>,
    /// Domain of cluster names [default: cluster.local]
    #[arg(long, value_name = "DOMAIN")]
    pub cluster_domain: Option<String>,
    /// Where other names are asked for; tls://IP%NAME is asked over TLS [default: /etc/resolv.conf]
    #[arg(long, value_name = "ADDR,...|FILE")]
    pub dns_upstream: Option<Text<Upstreams>>,
    /// A domain whose names are asked for elsewhere; may be repeated
    #[arg(long, value_name = "DOMAIN=ADDR,...")]
    pub dns_stub_domain: Option<Vec<Text<StubDomain>>>,
    /// PEM file with the authorities of servers that are asked over TLS [default: the system's]
    #[arg(long, value_name = "FILE")]
    pub dns_upstream_ca: Option<PathBuf>,
    /// An existing CoreDNS configuration, instead of the settings of DNS that say the same
    #[arg(long, value_name = "FILE")]
    pub corefile: Option<PathBuf>,
    /// Answers for names of pods such as 10-0-0-1.default.pod [default: insecure]
    #[arg(long)]
    pub dns_pods: Option<PodNames>,
    /// Seconds for which a cluster name may be cached [default: 5]
    #[arg(long, value_name = "SECONDS")]
    pub dns_ttl: Option<u32>,
    /// Where /healthz, /livez and /readyz are served [default: 0.0.0.0:10256]
    #[arg(long, value_name = "IP[:PORT]")]
    pub healthz_bind_address: Option<Address>,
    /// Where /metrics and /proxyMode are served [default: 127.0.0.1:10249]
    #[arg(long, value_name = "IP[:PORT]")]
    pub metrics_bind_address: Option<Address>,
    /// Form of the log on stderr [default: text]
    #[arg(long)]
    pub log_format: Option<LogFormat>,
}

/// `--proxy-mode`.
#[derive(ValueEnum, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum ProxyMode {
    /// The best this host can do
    Auto,
    /// eBPF programs at sockets, over nftables or iptables rules for packets
    Ebpf,
    /// nftables rules for packets
    Nftables,
    /// iptables rules for packets
    Iptables,
}

/// `--socket-lb`.
#[derive(ValueEnum, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum SocketLb {
    /// Where the programs work
    Auto,
    /// In any case: without them the daemon does not start
    On,
    /// Not at all: everything is balanced by packets
    Off,
}

/// `--dns-pods`.
#[derive(ValueEnum, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum PodNames {
    /// Such names do not exist
    Disabled,
    /// Any address is answered, whether or not a pod has it
    Insecure,
    /// Only addresses of pods in that namespace are answered
    Verified,
}

/// `--log-format`.
#[derive(ValueEnum, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
    Json,
}

impl Settings {
    /// Takes out the flags that kube-proxy has too, and returns their names (CF-14).
    pub fn take_kube_proxys(&mut self) -> Vec<&'static str> {
        let mut names = Vec::new();
        let mut note = |taken: bool, name| {
            if taken {
                names.push(name);
            }
        };
        note(self.kubeconfig.take().is_some(), "--kubeconfig");
        note(self.master.take().is_some(), "--master");
        note(self.nodeport_addresses.take().is_some(), "--nodeport-addresses");
        note(self.healthz_bind_address.take().is_some(), "--healthz-bind-address");
        note(self.metrics_bind_address.take().is_some(), "--metrics-bind-address");
        names
    }

    /// These settings, and `file`'s where these say nothing.
    #[must_use]
    pub fn or(self, file: Self) -> Self {
        // Every field by name: a new flag must be decided here before it compiles.
        Self {
            manifests: self.manifests.or(file.manifests),
            kubeconfig: self.kubeconfig.or(file.kubeconfig),
            master: self.master.or(file.master),
            hostname_override: self.hostname_override.or(file.hostname_override),
            service_cidr: self.service_cidr.or(file.service_cidr),
            cgroup_root: self.cgroup_root.or(file.cgroup_root),
            bpf_root: self.bpf_root.or(file.bpf_root),
            bpf_object: self.bpf_object.or(file.bpf_object),
            control_socket: self.control_socket.or(file.control_socket),
            state_dir: self.state_dir.or(file.state_dir),
            nodeport_addresses: self.nodeport_addresses.or(file.nodeport_addresses),
            nodeport_bind_protection: self.nodeport_bind_protection.or(file.nodeport_bind_protection),
            external_ips: self.external_ips.or(file.external_ips),
            opt_out_annotation: self.opt_out_annotation.or(file.opt_out_annotation),
            empty_local: self.empty_local.or(file.empty_local),
            proxy_mode: self.proxy_mode.or(file.proxy_mode),
            socket_lb: self.socket_lb.or(file.socket_lb),
            devices: self.devices.or(file.devices),
            dns: self.dns.or(file.dns),
            dns_bind_address: self.dns_bind_address.or(file.dns_bind_address),
            cluster_dns: self.cluster_dns.or(file.cluster_dns),
            cluster_domain: self.cluster_domain.or(file.cluster_domain),
            dns_upstream: self.dns_upstream.or(file.dns_upstream),
            dns_stub_domain: self.dns_stub_domain.or(file.dns_stub_domain),
            dns_upstream_ca: self.dns_upstream_ca.or(file.dns_upstream_ca),
            corefile: self.corefile.or(file.corefile),
            dns_pods: self.dns_pods.or(file.dns_pods),
            dns_ttl: self.dns_ttl.or(file.dns_ttl),
            healthz_bind_address: self.healthz_bind_address.or(file.healthz_bind_address),
            metrics_bind_address: self.metrics_bind_address.or(file.metrics_bind_address),
            log_format: self.log_format.or(file.log_format),
        }
    }
}
