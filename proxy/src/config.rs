//! The daemon's configuration: settings from flags and file, checked, with defaults applied.

pub mod file;
pub mod kube_proxy;
pub mod settings;
pub mod values;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use serde_json::{Value, json};
use shunt_dns::{Corefile, CorefileError, ForwardConfig, Name, PodMode, Upstreams, absolute, name_text};
use shunt_model::GoDuration;
use shunt_model::source::kube::KubeconfigSetting;

pub use file::ConfigFile;
pub use kube_proxy::flags::KubeProxyFlags;
use kube_proxy::{DetectLocal, KubeProxyConfiguration};
pub use settings::{LogFormat, PodNames, ProxyMode, Settings, SocketLb};
pub use values::{Address, Annotation, CommaSeparated, NodePortAddress, Text};

use crate::datapath::{FlowTimeouts, Mode, PacketOptions, Requested, Wanted};
use crate::host::devices::Devices;
use crate::plan::{EmptyLocal, NodePortAddresses, PodDetection, PodInterface};

/// Port of the DNS server where none is given.
pub const DNS_PORT: u16 = 53;
/// The default directory of pins.
pub const BPF_ROOT: &str = "/sys/fs/bpf/shunt";
/// The default path of the control socket.
pub const CONTROL_SOCKET: &str = "/run/shunt/shunt.sock";
/// The default state directory.
pub const STATE_DIR: &str = "/var/lib/shunt";
/// kubeadm's service range: what most clusters have, and what [`CLUSTER_DNS`] lies in.
const SERVICE_CIDR: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 12));
const CLUSTER_DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
/// The annotation by which a Pod opts out of load balancing at its sockets, with its value.
const OPT_OUT: (&str, &str) = ("shunt.dev/socket-proxy", "disabled");
const CLUSTER_DOMAIN: &str = "cluster.local";
const DNS_TTL: u32 = 5;
const HEALTHZ_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;

/// The operator's settings, by where they were given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Given {
    /// Our flags.
    pub flags: Settings,
    /// kube-proxy's flags.
    pub kube_proxy: KubeProxyFlags,
    /// The configuration file.
    pub file: ConfigFile,
    /// The daemon runs in a pod that may have a service account.
    pub in_cluster: bool,
}

/// The complete configuration of `shunt run`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Own node name, trimmed and in lower case.
    pub node: String,
    /// Where objects come from.
    pub source: SourceConfig,
    /// Ranges for Services without a clusterIP.
    pub service_cidrs: Vec<IpNet>,
    /// The ranges that the operator gave, which belong to Services alone; empty if the default is in use.
    pub exclusive_cidrs: Vec<IpNet>,
    /// Which addresses of the node accept node ports.
    pub node_ports: NodePortAddresses,
    /// Processes of the node cannot bind a node port.
    pub bind_protection: bool,
    /// External IPs are served.
    pub external_ips: bool,
    /// Annotations by which Pods opt out: key and, if given, value.
    pub opt_out: Vec<Annotation>,
    /// What a socket gets where policy Local has no endpoint on this node.
    pub empty_local: EmptyLocal,
    /// The data path.
    pub mode: Requested,
    /// How packets are treated.
    pub packets: PacketOptions,
    /// The devices by which this node reaches others, for programs that serve packets.
    pub devices: Devices,
    /// How packets of pods are known.
    pub pods: PodDetection,
    /// The served cgroup; discovered if not given.
    pub cgroup_root: Option<PathBuf>,
    /// Where programs and maps are pinned.
    pub bpf_root: PathBuf,
    /// Programs to load instead of the built-in ones.
    pub bpf_object: Option<PathBuf>,
    /// The control socket.
    pub control_socket: PathBuf,
    /// Where the API server's endpoints are remembered.
    pub state_dir: PathBuf,
    /// The service addresses pods use for DNS. Never given to a Service, even if the DNS server is off.
    pub cluster_dns: Vec<IpAddr>,
    /// The bundled DNS, unless it is off.
    pub dns: Option<DnsConfig>,
    /// Where health is served, if it is.
    pub healthz: Option<SocketAddr>,
    /// Where metrics are served, if they are.
    pub metrics: Option<SocketAddr>,
    /// An address of these that cannot be listened on ends the daemon (HM-23).
    pub bind_address_hard_fail: bool,
    /// `oom_score_adj` of this process, -1000 to 1000: the higher, the sooner the kernel ends it when memory runs out.
    pub oom_score_adj: i32,
    /// A change that waits for twice as long makes the node unhealthy (HM-13).
    pub sync_period: Duration,
    /// Form of the log.
    pub log_format: LogFormat,
    /// How much is logged, as kube-proxy's `-v`: from 4 on, details.
    pub verbosity: u32,
    /// kube-proxy's configuration with all flags applied.
    pub kube_proxy: KubeProxyConfiguration,
    /// Notes for the log at the start: what was ignored, and why.
    pub notes: Vec<String>,
}

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceConfig {
    /// A folder of manifests.
    Manifests(PathBuf),
    /// The Kubernetes API.
    Kube(KubeConfig),
}

/// How the Kubernetes API is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeConfig {
    /// The kubeconfig file; without one, the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// Where the operator can name one, for messages.
    pub setting: KubeconfigSetting,
    /// The API server's URL, instead of the one that the credentials name.
    pub master: Option<String>,
}

/// What the bundled DNS does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsConfig {
    /// Where it listens.
    pub listen: DnsListen,
    /// Domain of cluster names.
    pub domain: String,
    /// The upstreams for other names, unless the Corefile names them.
    pub forward: ForwardConfig,
    /// A Corefile that says more.
    pub corefile: Option<PathBuf>,
    /// Answers for names of pods.
    pub pods: PodNames,
    /// Seconds for which a cluster name may be cached.
    pub ttl: u32,
}

/// Where the DNS server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsListen {
    /// On the usual link-local address, or the next one if another program holds it.
    Default,
    /// Exactly here.
    Given(Vec<SocketAddr>),
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("reading the configuration file {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file says something that is not a setting.
    #[error("{}: {reason}", .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, with name and line.
        reason: String,
    },
    /// No source of objects.
    #[error("no source of services: give --kubeconfig FILE for a cluster, or --manifests DIR for a folder")]
    NoSource,
    /// Two of them.
    #[error("--manifests and --kubeconfig exclude each other: leave one out")]
    TwoSources,
    /// kube-proxy's flags do not fit.
    #[error("{0}; see docs/configuration.md for what each flag and field takes")]
    KubeProxy(String),
    /// No name for this node.
    #[error("--hostname-override is empty: give the node's name, or leave the flag out to use the host name")]
    EmptyNode,
    /// The operating system does not know its name.
    #[error("asking for the host name; give the node's name with --hostname-override")]
    Hostname(#[source] std::io::Error),
    /// The DNS server has nowhere to listen.
    #[error("--dns-bind-address is empty: give an address, or --dns=false to run without DNS")]
    NoDnsAddress,
    /// Contradictory node port addresses.
    #[error("--nodeport-addresses: primary stands alone and cannot be combined with ranges")]
    PrimaryWithRanges,
    /// The Corefile cannot be used.
    #[error("--corefile")]
    Corefile(#[from] CorefileError),
    /// The Corefile has no names of a cluster.
    #[error("--corefile {} has no directive kubernetes, so the daemon would not answer names of the cluster; add it", .0.display())]
    NoKubernetes(PathBuf),
    /// The Corefile and a flag set the same thing.
    #[error("--corefile and {0} say the same thing: leave one of them out")]
    BesideCorefile(&'static str),
    /// A cluster DNS address was given with a port.
    #[error("--cluster-dns takes addresses without a port, not {0}: pods always ask at port 53")]
    ClusterDnsPort(SocketAddr),
}

impl Config {
    /// Checks the settings and fills in defaults.
    pub fn new(given: Given) -> Result<Self, ConfigError> {
        let Given { mut flags, kube_proxy: kube_flags, file, in_cluster } = given;
        let mut notes = Vec::new();
        let has_document = file.kube_proxy.is_some();
        let document = document(&mut flags, &kube_flags, file.kube_proxy, &mut notes)?;
        let settings = flags.or(file.settings);
        let mode = requested(&settings);
        let cluster_dns = cluster_dns(settings.cluster_dns.as_ref())?;
        let dns = if settings.dns.unwrap_or(true) { Some(DnsConfig::new(&settings)?) } else { None };
        let turned_off = |flag: &str| !has_document && kube_flags.turns_off(flag);
        let [healthz, metrics] = servers(&settings, &document)?;
        let name = settings.hostname_override.clone().or_else(|| some(&document.hostname_override));
        let node_ports = settings.nodeport_addresses.clone().map_or_else(|| of_document(&document), Ok)?;
        Ok(Self {
            node: node_name(name.as_deref())?,
            source: source(&settings, &document, in_cluster, has_document)?,
            exclusive_cidrs: settings.service_cidr.clone().map_or_else(Vec::new, |CommaSeparated(ranges)| ranges),
            service_cidrs: service_cidrs(settings.service_cidr),
            node_ports: crate::config::node_ports(Some(node_ports))?,
            bind_protection: settings.nodeport_bind_protection.unwrap_or(true),
            external_ips: settings.external_ips.unwrap_or(true),
            opt_out: settings
                .opt_out_annotation
                .map_or_else(default_opt_out, |CommaSeparated(annotations)| annotations),
            empty_local: settings.empty_local.unwrap_or_default(),
            mode,
            packets: packets(&document),
            devices: settings.devices.map(|Text(devices)| devices).unwrap_or_default(),
            pods: pods(&document),
            cgroup_root: settings.cgroup_root,
            bpf_root: settings.bpf_root.unwrap_or_else(|| PathBuf::from(BPF_ROOT)),
            bpf_object: settings.bpf_object,
            control_socket: settings.control_socket.unwrap_or_else(|| PathBuf::from(CONTROL_SOCKET)),
            state_dir: settings.state_dir.unwrap_or_else(|| PathBuf::from(STATE_DIR)),
            cluster_dns,
            dns,
            healthz: (!turned_off("healthz-port")).then_some(healthz),
            metrics: (!turned_off("metrics-port")).then_some(metrics),
            bind_address_hard_fail: document.bind_address_hard_fail,
            oom_score_adj: document.oom_score_adj,
            sync_period: document.sync_period().0,
            log_format: settings.log_format.unwrap_or(match document.logging.format.as_str() {
                "json" => LogFormat::Json,
                _ => LogFormat::Text,
            }),
            verbosity: document.logging.verbosity,
            kube_proxy: document,
            notes,
        })
    }

    /// The effective configuration in kube-proxy's terms, as `/configz` shows it (HM-22).
    #[must_use]
    pub fn configz(&self) -> Value {
        let mut document = self.kube_proxy.clone();
        let shown = |address: Option<SocketAddr>| address.map(|address| address.to_string()).unwrap_or_default();
        document.hostname_override.clone_from(&self.node);
        document.healthz_bind_address = shown(self.healthz);
        document.metrics_bind_address = shown(self.metrics);
        json!({"kubeproxy.config.k8s.io": document})
    }
}

/// Both documents with their default values, for `--write-config-to`.
pub fn defaults_as_text() -> Result<String, serde_json::Error> {
    let document = serde_json::to_string_pretty(&KubeProxyConfiguration::default())?;
    Ok(format!(
        "# JSON is YAML. kube-proxy's own document; docs/configuration.md tells what each field does here.\n{document}\n\
         ---\n# Settings of shunt, by the names of its flags: see shunt run --help.\n\
         apiVersion: shunt.dev/v1alpha1\nkind: ShuntConfiguration\n"
    ))
}

/// kube-proxy's document with its flags applied: all of them if there is no such document, else those for logging.
fn document(
    flags: &mut Settings,
    kube_flags: &KubeProxyFlags,
    given: Option<kube_proxy::Decoded>,
    notes: &mut Vec<String>,
) -> Result<KubeProxyConfiguration, ConfigError> {
    let refused = |reason: String| ConfigError::KubeProxy(reason);
    let mut value = json!({});
    let mut counted = kube_flags.clone();
    if let Some(kube_proxy::Decoded { document, warnings }) = given {
        notes.extend(warnings);
        counted = kube_flags.logging();
        let mut ignored: Vec<String> = flags.take_kube_proxys().into_iter().map(str::to_owned).collect();
        ignored.extend(kube_flags.names().into_iter().filter(|name| !counted.names().contains(name)));
        if !ignored.is_empty() {
            let ignored = ignored.join(", ");
            notes.push(format!("ignored beside a KubeProxyConfiguration, as kube-proxy has it: {ignored}"));
        }
        value = serde_json::to_value(document).map_err(|error| refused(error.to_string()))?;
    }
    counted.apply(&mut value);
    let document: KubeProxyConfiguration = serde_json::from_value(value).map_err(|error| refused(error.to_string()))?;
    document.check().map_err(refused)?;
    if !document.mode.is_empty() {
        let mode = &document.mode;
        notes.push(format!("mode {mode} is kube-proxy's own choice: --proxy-mode says what this daemon uses"));
    }
    let idle = document.without_effect();
    if !idle.is_empty() {
        notes.push(format!("accepted without effect in this version: {}", idle.join(", ")));
    }
    Ok(document)
}

/// Where health and metrics are served.
fn servers(settings: &Settings, document: &KubeProxyConfiguration) -> Result<[SocketAddr; 2], ConfigError> {
    let v6 = document.primary().map_err(ConfigError::KubeProxy)?.is_some_and(|ip| ip.is_ipv6())
        || document.bind_address == "::";
    let (any, own): (IpAddr, IpAddr) = if v6 {
        (std::net::Ipv6Addr::UNSPECIFIED.into(), std::net::Ipv6Addr::LOCALHOST.into())
    } else {
        (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::LOCALHOST.into())
    };
    let healthz = document.healthz().map_err(ConfigError::KubeProxy)?;
    let healthz = healthz.unwrap_or_else(|| SocketAddr::new(any, HEALTHZ_PORT));
    let metrics = document.metrics().map_err(ConfigError::KubeProxy)?;
    let metrics = metrics.unwrap_or_else(|| SocketAddr::new(own, METRICS_PORT));
    Ok([
        settings.healthz_bind_address.map_or(healthz, |address| address.or_port(HEALTHZ_PORT)),
        settings.metrics_bind_address.map_or(metrics, |address| address.or_port(METRICS_PORT)),
    ])
}

fn of_document(document: &KubeProxyConfiguration) -> Result<CommaSeparated<NodePortAddress>, ConfigError> {
    let parsed = document.node_port_addresses.iter().map(|text| text.parse());
    parsed
        .collect::<Result<_, String>>()
        .map(CommaSeparated)
        .map_err(|e| ConfigError::KubeProxy(format!("nodePortAddresses: {e}")))
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

impl DnsConfig {
    /// The DNS part of the settings.
    pub fn new(settings: &Settings) -> Result<Self, ConfigError> {
        let listen = match &settings.dns_bind_address {
            None => DnsListen::Default,
            Some(CommaSeparated(addresses)) if addresses.is_empty() => return Err(ConfigError::NoDnsAddress),
            Some(CommaSeparated(addresses)) => {
                DnsListen::Given(addresses.iter().map(|a| a.or_port(DNS_PORT)).collect())
            }
        };
        if let Some(path) = &settings.corefile {
            return Self::from_corefile(settings, path, listen);
        }
        let domain = settings.cluster_domain.as_deref().unwrap_or(CLUSTER_DOMAIN);
        let upstreams = settings.dns_upstream.as_ref().map(|Text(upstreams)| upstreams.clone());
        let stub_domains = settings.dns_stub_domain.iter().flatten().map(|Text(stub)| stub.clone());
        Ok(Self {
            listen,
            // What is no name is refused where the zone is made.
            domain: absolute(domain).map_or_else(|_invalid| domain.to_owned(), |name| domain_text(&name)),
            forward: ForwardConfig::to(upstreams.unwrap_or_else(Upstreams::usual))
                .with_stub_domains(stub_domains)
                .with_authorities(settings.dns_upstream_ca.as_deref()),
            corefile: None,
            pods: settings.dns_pods.unwrap_or(PodNames::Insecure),
            ttl: settings.dns_ttl.unwrap_or(DNS_TTL),
        })
    }

    /// What a Corefile says; the rest of it is read when the server starts. Addresses, health and metrics are the
    /// daemon's.
    fn from_corefile(settings: &Settings, path: &Path, listen: DnsListen) -> Result<Self, ConfigError> {
        for (given, flag) in [
            (settings.cluster_domain.is_some(), "--cluster-domain"),
            (settings.dns_upstream.is_some(), "--dns-upstream"),
            (settings.dns_stub_domain.is_some(), "--dns-stub-domain"),
            (settings.dns_upstream_ca.is_some(), "--dns-upstream-ca"),
            (settings.dns_pods.is_some(), "--dns-pods"),
            (settings.dns_ttl.is_some(), "--dns-ttl"),
        ] {
            if given {
                return Err(ConfigError::BesideCorefile(flag));
            }
        }
        let file = Corefile::read(path)?;
        let cluster = file.kubernetes.ok_or_else(|| ConfigError::NoKubernetes(path.to_owned()))?;
        Ok(Self {
            listen,
            domain: domain_text(&cluster.domain),
            forward: ForwardConfig { routes: Vec::new(), cache: None },
            corefile: Some(path.to_owned()),
            pods: match cluster.pods {
                PodMode::Disabled => PodNames::Disabled,
                PodMode::Insecure => PodNames::Insecure,
                PodMode::Verified => PodNames::Verified,
            },
            ttl: cluster.ttl,
        })
    }
}

/// Without its final dot, in lower case.
fn domain_text(domain: &Name) -> String {
    let text = name_text(domain).to_ascii_lowercase();
    text.strip_suffix('.').map(str::to_owned).unwrap_or(text)
}

/// The node's name in the form in which it is compared: given or the host's, trimmed, in lower case (IN-9).
pub fn node_name(given: Option<&str>) -> Result<String, ConfigError> {
    let name = match given {
        Some(name) => name.to_owned(),
        None => nix::unistd::gethostname()
            .map_err(|error| ConfigError::Hostname(error.into()))?
            .to_string_lossy()
            .into_owned(),
    };
    let name = name.trim().to_lowercase();
    if name.is_empty() { Err(ConfigError::EmptyNode) } else { Ok(name) }
}

/// The ranges given, or the default one.
#[must_use]
pub fn service_cidrs(given: Option<CommaSeparated<IpNet>>) -> Vec<IpNet> {
    given.map_or_else(|| vec![SERVICE_CIDR], |CommaSeparated(ranges)| ranges)
}

/// The DNS service addresses given, or the default one.
pub fn cluster_dns(given: Option<&CommaSeparated<Address>>) -> Result<Vec<IpAddr>, ConfigError> {
    let Some(CommaSeparated(addresses)) = given else { return Ok(vec![CLUSTER_DNS]) };
    let check = |address: &Address| match address.port {
        Some(port) => Err(ConfigError::ClusterDnsPort(SocketAddr::new(address.ip, port))),
        None => Ok(address.ip),
    };
    addresses.iter().map(check).collect()
}

fn node_ports(given: Option<CommaSeparated<NodePortAddress>>) -> Result<NodePortAddresses, ConfigError> {
    let Some(CommaSeparated(given)) = given.filter(|CommaSeparated(given)| !given.is_empty()) else {
        return Ok(NodePortAddresses::All);
    };
    let ranges: Vec<IpNet> = given
        .iter()
        .filter_map(|address| match address {
            NodePortAddress::Primary => None,
            NodePortAddress::Within(range) => Some(*range),
        })
        .collect();
    match ranges.len() {
        0 => Ok(NodePortAddresses::Primary),
        count if count == given.len() => Ok(NodePortAddresses::Within(ranges)),
        _ => Err(ConfigError::PrimaryWithRanges),
    }
}

/// The annotations by which Pods opt out, if the operator names none.
#[must_use]
pub fn default_opt_out() -> Vec<Annotation> {
    let (key, value) = OPT_OUT;
    vec![Annotation { key: key.to_owned(), value: Some(value.to_owned()) }]
}

fn source(
    settings: &Settings,
    document: &KubeProxyConfiguration,
    in_cluster: bool,
    has_document: bool,
) -> Result<SourceConfig, ConfigError> {
    let kubeconfig =
        settings.kubeconfig.clone().or_else(|| some(&document.client_connection.kubeconfig).map(Into::into));
    match &settings.manifests {
        Some(_) if settings.kubeconfig.is_some() => Err(ConfigError::TwoSources),
        Some(folder) => Ok(SourceConfig::Manifests(folder.clone())),
        None if kubeconfig.is_some() || settings.master.is_some() || in_cluster || has_document => {
            // A flag beside a document is ignored, as kube-proxy has it.
            let setting = if has_document { KubeconfigSetting::Document } else { KubeconfigSetting::Flag };
            Ok(SourceConfig::Kube(KubeConfig { kubeconfig, setting, master: settings.master.clone() }))
        }
        None => Err(ConfigError::NoSource),
    }
}

fn requested(settings: &Settings) -> Requested {
    let mode = match settings.proxy_mode.unwrap_or(ProxyMode::Auto) {
        ProxyMode::Auto => None,
        ProxyMode::Ebpf => Some(Mode::Ebpf),
        ProxyMode::Nftables => Some(Mode::Nftables),
        ProxyMode::Iptables => Some(Mode::Iptables),
    };
    let sockets = match settings.socket_lb.unwrap_or(SocketLb::Auto) {
        SocketLb::Auto => Wanted::Auto,
        SocketLb::On => Wanted::On,
        SocketLb::Off => Wanted::Off,
    };
    Requested { mode, sockets }
}

/// How packets are treated, as kube-proxy's document says: its blocks for iptables and nftables mean the same here.
#[must_use]
pub fn packets(document: &KubeProxyConfiguration) -> PacketOptions {
    let bit = match document.mode.as_str() {
        "nftables" => document.nftables.masquerade_bit,
        _ => document.iptables.masquerade_bit,
    };
    PacketOptions {
        masquerade_mark: u32::try_from(bit).ok().and_then(|bit| 1_u32.checked_shl(bit)).unwrap_or(1 << 14),
        drop_invalid: !document.conntrack.tcp_be_liberal,
        loopback_node_ports: document.iptables.localhost_node_ports,
    }
}

/// How long packet programs remember a flow without packets: as long as the document says for the kernel (CT-32, CT-33,
/// CT-35). 0 leaves the default, as it does there.
#[must_use]
pub fn flow_timeouts(document: &KubeProxyConfiguration) -> FlowTimeouts {
    let default = FlowTimeouts::default();
    let seconds = |wanted: &GoDuration, default| match u32::try_from(wanted.0.as_secs()) {
        Ok(0) => default,
        Ok(seconds) => seconds,
        Err(_) => u32::MAX / 4,
    };
    let conntrack = &document.conntrack;
    FlowTimeouts {
        tcp_established: seconds(&conntrack.tcp_established_timeout, default.tcp_established),
        tcp_close_wait: seconds(&conntrack.tcp_close_wait_timeout, default.tcp_close_wait),
        udp: seconds(&conntrack.udp_timeout, default.udp),
        udp_stream: seconds(&conntrack.udp_stream_timeout, default.udp_stream),
    }
}

/// How packets of pods are known, as kube-proxy's document says (3.3 of the specification of services).
fn pods(document: &KubeProxyConfiguration) -> PodDetection {
    let DetectLocal { bridge_interface, interface_name_prefix } = &document.detect_local;
    match document.detect_local_mode.as_str() {
        "BridgeInterface" => PodDetection::Interface(PodInterface::Named(bridge_interface.as_str().into())),
        "InterfaceNamePrefix" => PodDetection::Interface(PodInterface::Prefixed(interface_name_prefix.as_str().into())),
        "NodeCIDR" => PodDetection::Node,
        _ => match document.cluster_cidrs() {
            networks if networks.is_empty() => PodDetection::Node,
            networks => PodDetection::Networks(networks),
        },
    }
}
