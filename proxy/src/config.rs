//! The daemon's configuration: settings from flags and file, checked, with defaults applied.

pub mod settings;
pub mod values;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net};

pub use settings::{EmptyLocal, LogFormat, PodNames, ProxyMode, Settings};
pub use values::{Address, Annotation, List, NodePortAddress, Upstreams};

use crate::plan::NodePortAddresses;

/// Port of the DNS server where none is given.
pub const DNS_PORT: u16 = 53;
/// Where pins are, unless told otherwise.
pub const BPF_ROOT: &str = "/sys/fs/bpf/shunt";
/// Where the control socket is, unless told otherwise.
pub const CONTROL_SOCKET: &str = "/run/shunt/shunt.sock";
/// kubeadm's service range: what most clusters have, and what [`CLUSTER_DNS`] lies in.
const SERVICE_CIDR: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 12));
const CLUSTER_DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
/// The annotation by which a Pod opts out of load balancing at its sockets, with its value.
const OPT_OUT: (&str, &str) = ("shunt.dev/socket-proxy", "disabled");
const CLUSTER_DOMAIN: &str = "cluster.local";
const RESOLV_CONF: &str = "/etc/resolv.conf";
const DNS_TTL: u32 = 5;
const HEALTHZ: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 10256);
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);

/// What `shunt run` does, decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Own node name, trimmed and in lower case.
    pub node: String,
    /// Where objects come from.
    pub source: SourceConfig,
    /// Ranges for Services without a clusterIP.
    pub service_cidrs: Vec<IpNet>,
    /// Of these, the ranges that the operator says belong to Services alone: none if nobody named any.
    pub exclusive_cidrs: Vec<IpNet>,
    /// Which addresses of the node accept node ports.
    pub node_ports: NodePortAddresses,
    /// Processes of the node cannot bind a node port.
    pub bind_protection: bool,
    /// External IPs are served.
    pub external_ips: bool,
    /// Annotations of Pods that are left alone: key and, if given, value.
    pub opt_out: Vec<Annotation>,
    /// What a socket gets where policy Local has no endpoint.
    pub empty_local: EmptyLocal,
    /// The served cgroup; discovered if not given.
    pub cgroup_root: Option<PathBuf>,
    /// Where programs and maps are pinned.
    pub bpf_root: PathBuf,
    /// Programs to load instead of the built-in ones.
    pub bpf_object: Option<PathBuf>,
    /// The control socket.
    pub control_socket: PathBuf,
    /// The service addresses pods use for DNS. Never given to a Service, even if the DNS server is off.
    pub cluster_dns: Vec<IpAddr>,
    /// The bundled DNS, unless it is off.
    pub dns: Option<DnsConfig>,
    /// Where health is served.
    pub healthz: SocketAddr,
    /// Where metrics are served.
    pub metrics: SocketAddr,
    /// Form of the log.
    pub log_format: LogFormat,
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
    /// Where other names are asked for.
    pub upstreams: Upstreams,
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
    #[error("no source of services: give --manifests DIR, a folder of Kubernetes manifests")]
    NoSource,
    /// A data path that does not exist yet.
    #[error("--proxy-mode {0} is not in this version: use auto or ebpf")]
    ProxyMode(&'static str),
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
    /// Something wants a port on an address of services.
    #[error("--cluster-dns takes addresses without a port, not {0}: pods always ask at port 53")]
    ClusterDnsPort(SocketAddr),
}

impl Config {
    /// Checks the settings and fills in what was not said.
    pub fn new(settings: Settings) -> Result<Self, ConfigError> {
        check_mode(settings.proxy_mode.unwrap_or(ProxyMode::Auto))?;
        let cluster_dns = cluster_dns(settings.cluster_dns.as_ref())?;
        let dns = if settings.dns.unwrap_or(true) { Some(DnsConfig::new(&settings)?) } else { None };
        Ok(Self {
            node: node_name(settings.hostname_override.as_deref())?,
            source: source(settings.manifests, settings.kubeconfig, settings.master)?,
            exclusive_cidrs: settings.service_cidr.clone().map_or_else(Vec::new, |List(ranges)| ranges),
            service_cidrs: service_cidrs(settings.service_cidr),
            node_ports: node_ports(settings.nodeport_addresses)?,
            bind_protection: settings.nodeport_bind_protection.unwrap_or(true),
            external_ips: settings.external_ips.unwrap_or(true),
            opt_out: settings.opt_out_annotation.map_or_else(default_opt_out, |List(annotations)| annotations),
            empty_local: settings.empty_local.unwrap_or(EmptyLocal::Refuse),
            cgroup_root: settings.cgroup_root,
            bpf_root: settings.bpf_root.unwrap_or_else(|| PathBuf::from(BPF_ROOT)),
            bpf_object: settings.bpf_object,
            control_socket: settings.control_socket.unwrap_or_else(|| PathBuf::from(CONTROL_SOCKET)),
            cluster_dns,
            dns,
            healthz: settings.healthz_bind_address.map_or(HEALTHZ, |address| address.or_port(HEALTHZ.port())),
            metrics: settings.metrics_bind_address.map_or(METRICS, |address| address.or_port(METRICS.port())),
            log_format: settings.log_format.unwrap_or(LogFormat::Text),
        })
    }
}

impl DnsConfig {
    /// The DNS part of the settings.
    pub fn new(settings: &Settings) -> Result<Self, ConfigError> {
        let listen = match &settings.dns_bind_address {
            None => DnsListen::Default,
            Some(List(addresses)) if addresses.is_empty() => return Err(ConfigError::NoDnsAddress),
            Some(List(addresses)) => DnsListen::Given(addresses.iter().map(|a| a.or_port(DNS_PORT)).collect()),
        };
        let domain = settings.cluster_domain.as_deref().unwrap_or(CLUSTER_DOMAIN);
        Ok(Self {
            listen,
            domain: domain.trim_matches('.').to_ascii_lowercase(),
            upstreams: settings.dns_upstream.clone().unwrap_or_else(|| Upstreams::File(PathBuf::from(RESOLV_CONF))),
            pods: settings.dns_pods.unwrap_or(PodNames::Insecure),
            ttl: settings.dns_ttl.unwrap_or(DNS_TTL),
        })
    }
}

/// The node's name as everything compares it: given or the host's, trimmed, in lower case (spec IN-9).
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
pub fn service_cidrs(given: Option<List<IpNet>>) -> Vec<IpNet> {
    given.map_or_else(|| vec![SERVICE_CIDR], |List(ranges)| ranges)
}

/// The DNS service addresses given, or the default one.
pub fn cluster_dns(given: Option<&List<Address>>) -> Result<Vec<IpAddr>, ConfigError> {
    let Some(List(addresses)) = given else { return Ok(vec![CLUSTER_DNS]) };
    let check = |address: &Address| match address.port {
        Some(port) => Err(ConfigError::ClusterDnsPort(SocketAddr::new(address.ip, port))),
        None => Ok(address.ip),
    };
    addresses.iter().map(check).collect()
}

fn node_ports(given: Option<List<NodePortAddress>>) -> Result<NodePortAddresses, ConfigError> {
    let Some(List(given)) = given.filter(|List(given)| !given.is_empty()) else { return Ok(NodePortAddresses::All) };
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

/// The annotations of Pods that are left alone, if the operator names none.
#[must_use]
pub fn default_opt_out() -> Vec<Annotation> {
    let (key, value) = OPT_OUT;
    vec![Annotation { key: key.to_owned(), value: Some(value.to_owned()) }]
}

fn source(
    manifests: Option<PathBuf>,
    kubeconfig: Option<PathBuf>,
    master: Option<String>,
) -> Result<SourceConfig, ConfigError> {
    match manifests {
        Some(folder) => Ok(SourceConfig::Manifests(folder)),
        None if kubeconfig.is_some() || master.is_some() || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => {
            Ok(SourceConfig::Kube(KubeConfig { kubeconfig, master }))
        }
        None => Err(ConfigError::NoSource),
    }
}

fn check_mode(mode: ProxyMode) -> Result<(), ConfigError> {
    match mode {
        ProxyMode::Auto | ProxyMode::Ebpf => Ok(()),
        ProxyMode::Nftables => Err(ConfigError::ProxyMode("nftables")),
        ProxyMode::Iptables => Err(ConfigError::ProxyMode("iptables")),
    }
}
