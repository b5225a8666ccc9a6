//! The flags of `shunt-dns`, and what they and a Corefile ask for together.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use ipnet::IpNet;
use shunt_dns::corefile::PORT;
use shunt_dns::http::HttpConfig;
use shunt_dns::{Corefile, ForwardConfig, PodMode, ServerConfig, StubDomain, Upstreams, ZoneConfig, absolute};

const LISTEN: &str = "127.0.0.1:5353";

/// Answers the names of a cluster, and forwards all others. The cluster is the one of --kubeconfig, or the one in which
/// this runs as a pod, or a folder of manifests.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Flags {
    /// An existing CoreDNS configuration, instead of the flags below that say the same; -conf means the same
    #[arg(
        long,
        alias = "conf",
        value_name = "FILE",
        conflicts_with_all = ["cluster_domain", "upstream", "stub_domain", "upstream_ca", "ttl", "pods"]
    )]
    corefile: Option<PathBuf>,
    /// Port of the Corefile's server blocks that name none
    #[arg(long = "dns.port", short = 'p', value_name = "PORT", default_value_t = PORT, requires = "corefile")]
    dns_port: u16,
    /// Says nothing while it starts and all is well
    #[arg(long)]
    pub(crate) quiet: bool,
    /// Folder of Kubernetes manifests, followed as it changes
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig")]
    pub(crate) manifests: Option<PathBuf>,
    /// Credentials of the Kubernetes API [default: the pod's service account, in a pod]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Where Services without a clusterIP get theirs from
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub(crate) service_cidr: Vec<IpNet>,
    /// Addresses to listen on, over UDP and TCP [default: what the Corefile says, else 127.0.0.1:5353]
    #[arg(long, value_name = "ADDR:PORT", value_delimiter = ',')]
    listen: Vec<SocketAddr>,
    /// The domain of the cluster
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
    /// Who is asked for other names: addresses, tls://IP%NAME, or a file like /etc/resolv.conf; empty refuses them
    /// [default: /etc/resolv.conf, if it is there]
    #[arg(long, value_name = "ADDR,…|FILE")]
    upstream: Option<Upstreams>,
    /// A domain with upstreams of its own; may be repeated
    #[arg(long, value_name = "DOMAIN=ADDR,…")]
    stub_domain: Vec<StubDomain>,
    /// PEM file with the authorities of upstreams that are asked over TLS [default: the system's]
    #[arg(long, value_name = "FILE")]
    upstream_ca: Option<PathBuf>,
    /// TTL of answers in seconds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=3600))]
    ttl: u32,
    /// Which names of pods are answered
    #[arg(long, value_enum, default_value_t = Pods::Insecure)]
    pods: Pods,
    /// Where /health is served [default: what the Corefile says, else nowhere]
    #[arg(long, value_name = "ADDR:PORT")]
    health_address: Option<SocketAddr>,
    /// Where /ready is served [default: what the Corefile says, else nowhere]
    #[arg(long, value_name = "ADDR:PORT")]
    ready_address: Option<SocketAddr>,
    /// Where /metrics is served [default: what the Corefile says, else nowhere]
    #[arg(long, value_name = "ADDR:PORT")]
    metrics_address: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Pods {
    /// none
    Disabled,
    /// any address in an existing namespace
    Insecure,
    /// addresses of existing pods
    Verified,
}

/// Flags as CoreDNS takes them, so that a Deployment needs another image only: for Go one dash is as good as two.
pub(crate) fn as_coredns(arguments: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    arguments.map(|argument| match argument.to_str() {
        Some(text) if has_one_dash_for_two(text) => format!("-{text}").into(),
        _ => argument,
    })
}

fn has_one_dash_for_two(argument: &str) -> bool {
    let flag = argument.strip_prefix('-').unwrap_or_default();
    let name = flag.split('=').next().unwrap_or_default();
    name.len() > 1 && name.starts_with(|first: char| first.is_ascii_alphabetic())
}

/// What to do.
pub(crate) struct Plan {
    pub(crate) server: ServerConfig,
    pub(crate) http: HttpConfig,
    /// There are names of a cluster to be answered.
    pub(crate) needs_cluster: bool,
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The Corefile, to be followed.
    pub(crate) corefile: Option<(PathBuf, Corefile)>,
}

impl Plan {
    pub(crate) fn new(flags: &Flags) -> anyhow::Result<Self> {
        let http =
            HttpConfig { health: flags.health_address, ready: flags.ready_address, metrics: flags.metrics_address };
        let kubeconfig = flags.kubeconfig.clone();
        let Some(path) = &flags.corefile else {
            let server = server_config(flags)?;
            return Ok(Self { server, http, needs_cluster: true, kubeconfig, corefile: None });
        };
        let file = Corefile::read_for_port(path, flags.dns_port).context("--corefile")?;
        let listen = if flags.listen.is_empty() { file.listen() } else { flags.listen.clone() };
        let zone = file.zone(own_addresses(&listen)?);
        Ok(Self {
            server: file.server_config(listen, zone),
            http: HttpConfig {
                health: http.health.or(file.health),
                ready: http.ready.or(file.ready),
                metrics: http.metrics.or(file.prometheus),
            },
            needs_cluster: file.kubernetes.is_some(),
            kubeconfig: kubeconfig.or_else(|| file.kubernetes.as_ref()?.kubeconfig.clone()),
            corefile: Some((path.clone(), file)),
        })
    }
}

fn server_config(flags: &Flags) -> anyhow::Result<ServerConfig> {
    let cluster_domain = absolute(&flags.cluster_domain)
        .with_context(|| format!("--cluster-domain {:?} is not a domain name", flags.cluster_domain))?;
    anyhow::ensure!(!cluster_domain.is_root(), "--cluster-domain must not be the root");
    let pods = match flags.pods {
        Pods::Disabled => PodMode::Disabled,
        Pods::Insecure => PodMode::Insecure,
        Pods::Verified => PodMode::Verified,
    };
    let listen = if flags.listen.is_empty() { vec![LISTEN.parse()?] } else { flags.listen.clone() };
    let dns_addresses = own_addresses(&listen)?;
    let zone = ZoneConfig { ttl: flags.ttl, pods, dns_addresses, ..ZoneConfig::usual(cluster_domain) };
    let forward = ForwardConfig::to(flags.upstream.clone().unwrap_or_else(Upstreams::usual))
        .with_stub_domains(flags.stub_domain.clone())
        .with_authorities(flags.upstream_ca.as_deref());
    Ok(ServerConfig::usual(listen, zone, forward))
}

/// Addresses at which others reach this server: those it listens on, or if it listens on all, the host's (DNS-4.3).
fn own_addresses(listen: &[SocketAddr]) -> anyhow::Result<Vec<IpAddr>> {
    let mut addresses: Vec<IpAddr> = listen.iter().map(SocketAddr::ip).collect();
    if addresses.iter().any(IpAddr::is_unspecified) {
        let interfaces = nix::ifaddrs::getifaddrs().context("asking for the addresses of this host")?;
        addresses.extend(interfaces.filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        }));
    }
    let link_local = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    addresses.retain(|ip| !ip.is_unspecified() && !ip.is_loopback() && !link_local(ip));
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, corefile: &str, port: u16) {
        let flags = Flags::try_parse_from(as_coredns(line.split(' ').map(OsString::from)));
        let flags = flags.unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!((flags.corefile.as_deref(), flags.dns_port), (Some(corefile.as_ref()), port), "{line}");
    }

    #[test]
    fn the_flags_of_coredns_are_taken_as_it_takes_them() {
        check("shunt-dns -conf a/Corefile", "a/Corefile", 53);
        check("shunt-dns -conf=a", "a", 53);
        check("shunt-dns --conf a", "a", 53);
        check("shunt-dns --conf=a -quiet", "a", 53);
        check("shunt-dns --corefile a", "a", 53);
        check("shunt-dns -dns.port 1053 -conf a", "a", 1053);
        check("shunt-dns -dns.port=1053 -conf a", "a", 1053);
        check("shunt-dns --dns.port=1053 -conf a", "a", 1053);
        check("shunt-dns -p 1053 -conf a", "a", 1053);
        check("shunt-dns -p=1053 -conf a", "a", 1053);
        check("shunt-dns -conf a -kubeconfig -", "a", 53);
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for (line, name) in [
            ("shunt-dns -plugins", "--plugins"),
            ("shunt-dns -pidfile=x", "--pidfile"),
            ("shunt-dns -dns.port 1053", "--corefile"),
            ("shunt-dns -conf a -upstream 192.0.2.1", "--upstream"),
        ] {
            let error = Flags::try_parse_from(as_coredns(line.split(' ').map(OsString::from))).unwrap_err();
            assert!(error.to_string().contains(name), "{line}: {error}");
        }
    }
}
