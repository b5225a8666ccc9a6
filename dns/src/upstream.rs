//! Where other names are asked: servers, lists of them, and files like `/etc/resolv.conf`.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tokio_rustls::rustls::pki_types::ServerName;

use crate::names::NameError;

const PORT: u16 = 53;
/// RFC 7858 section 3.1.
const TLS_PORT: u16 = 853;

/// A server to ask, written `IP`, `IP:PORT`, `[IP]:PORT`, or with `tls://` in front for DNS over TLS; then `%NAME` may
/// follow, the name its certificate must have instead of the address, and the port may come after that. An IPv6 address
/// may have a zone, `fe80::1%eth0`: a link-local one needs it, and at others it means nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Where it is.
    pub(crate) address: SocketAddr,
    /// The name that its certificate must have, if it is asked over TLS.
    pub(crate) tls: Option<ServerName<'static>>,
}

impl From<SocketAddr> for Upstream {
    /// The server there, asked in the clear.
    fn from(address: SocketAddr) -> Self {
        Self { address, tls: None }
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tls {
            None => write!(f, "{}", self.address),
            Some(name) => write!(f, "tls://{}%{}", self.address, name.to_str()),
        }
    }
}

impl FromStr for Upstream {
    type Err = UpstreamError;

    fn from_str(text: &str) -> Result<Self, UpstreamError> {
        Self::read(text, None)
    }
}

impl Upstream {
    /// Reads one; `name` is that of its certificate, unless the text has another.
    pub(crate) fn read(text: &str, name: Option<&ServerName<'static>>) -> Result<Self, UpstreamError> {
        let Some(over_tls) = text.strip_prefix("tls://") else {
            return in_the_clear(text.strip_prefix("dns://").unwrap_or(text), text);
        };
        let (place, given) = place_and_name(over_tls);
        let (given, port) = given.map(name_and_port).transpose()?.unzip();
        let mut address = address(place, text)?;
        if let Some(port) = port.flatten() {
            if address.port() != 0 {
                return Err(UpstreamError::TwoPorts(text.to_owned()));
            }
            address.set_port(port.get());
        }
        or_port(&mut address, TLS_PORT);
        let name = given.or_else(|| name.cloned()).unwrap_or_else(|| ServerName::from(address.ip()));
        Ok(Self { address, tls: Some(name) })
    }
}

fn in_the_clear(place: &str, upstream: &str) -> Result<Upstream, UpstreamError> {
    let mut address = address(place, upstream)?;
    or_port(&mut address, PORT);
    Ok(address.into())
}

fn or_port(address: &mut SocketAddr, usual: u16) {
    if address.port() == 0 {
        address.set_port(usual);
    }
}

/// `IP%NAME`, `[IP]:PORT%NAME`. In brackets, and in a link-local address, the first `%` begins the address's zone.
fn place_and_name(text: &str) -> (&str, Option<&str>) {
    let zone = match (text.find(']'), text.split_once('%')) {
        (Some(bracket), _) => bracket,
        (None, Some((ip, _))) if ip.parse().is_ok_and(|ip: Ipv6Addr| ip.is_unicast_link_local()) => ip.len() + 1,
        (None, _) => 0,
    };
    let percent = text.get(zone..).and_then(|rest| rest.find('%')).map(|at| zone + at);
    let (place, name) = percent.map_or((text, ""), |at| text.split_at(at));
    (place, name.strip_prefix('%'))
}

/// `NAME` or `NAME:PORT`.
fn name_and_port(text: &str) -> Result<(ServerName<'static>, Option<NonZeroU16>), UpstreamError> {
    let error = match server_name(text) {
        Ok(name) => return Ok((name, None)),
        Err(error) => error,
    };
    let parts = text.rsplit_once(':').and_then(|(name, port)| Some((server_name(name).ok()?, port.parse().ok()?)));
    parts.map(|(name, port)| (name, Some(port))).ok_or(error)
}

/// The name of a certificate.
pub(crate) fn server_name(text: &str) -> Result<ServerName<'static>, UpstreamError> {
    ServerName::try_from(text.to_owned()).map_err(|source| UpstreamError::TlsName { name: text.to_owned(), source })
}

/// What a resolv.conf says about upstreams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResolvConf {
    /// The name servers, port 53 unless given, in order.
    pub(crate) upstreams: Vec<Upstream>,
    /// `nameserver` lines that name no server, to be logged; libc ignores them too.
    pub(crate) ignored: Vec<Ignored>,
}

/// A line that is ignored, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ignored {
    pub(crate) line: String,
    pub(crate) reason: String,
}

/// Why upstreams are unusable.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The file cannot be read.
    #[error("reading upstreams from {} (give addresses or a file like /etc/resolv.conf)", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An element of the list is no address.
    #[error(
        "upstream {0:?} is not an address (IP, IP:PORT or [IP]:PORT, with tls:// in front for DNS over TLS); a file is \
         recognised by a slash in its name, such as ./resolv.conf"
    )]
    Address(String),
    /// A link-local address does not say on which interface it is.
    #[error("upstream {0:?} is a link-local address without its interface: write fe80::1%eth0 or [fe80::1%eth0]:53")]
    NoZone(String),
    /// A link-local address is on an interface that is not there.
    #[error("upstream {upstream:?}: this host has no interface {interface:?}")]
    Interface {
        /// What was given.
        upstream: String,
        /// The interface.
        interface: String,
    },
    /// A port stands after the address, and another one after the name.
    #[error("upstream {0:?} has two ports: write tls://IP:PORT%NAME")]
    TwoPorts(String),
    /// No certificate can have this name.
    #[error("{name:?} is no name for the certificate of an upstream")]
    TlsName {
        /// What was given.
        name: String,
        /// Why it is none.
        #[source]
        source: tokio_rustls::rustls::pki_types::InvalidDnsNameError,
    },
    /// What is given is no `DOMAIN=ADDR,…`.
    #[error("{0:?} does not name a domain and its servers; write DOMAIN=ADDR,…")]
    StubDomain(String),
    /// The domain is no name. The reason is part of the text, because the refusal of a flag shows no causes.
    #[error("{domain:?} is no domain: {error}")]
    StubName {
        /// What was given.
        domain: String,
        /// Why it is none.
        error: NameError,
    },
    /// A range of addresses is no domain.
    #[error("{0:?} is a range of addresses: name its domain, such as 10.in-addr.arpa")]
    StubRange(String),
}

/// Where other names are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstreams {
    /// These servers; none means that other names are refused.
    Servers(Vec<Upstream>),
    /// The servers that a file like `/etc/resolv.conf` names, also after it has changed.
    File(PathBuf),
    /// The same of a file that nobody named: if it is missing, other names are refused until it is there.
    Usual(PathBuf),
}

impl FromStr for Upstreams {
    type Err = UpstreamError;

    /// Reads a flag's value: servers separated by commas, or the path of a resolv.conf (anything else with a `/`). An
    /// empty value means no upstreams.
    fn from_str(flag: &str) -> Result<Self, UpstreamError> {
        if flag.contains('/') && !flag.contains("://") {
            return Ok(Self::File(PathBuf::from(flag)));
        }
        servers(flag).map(Self::Servers)
    }
}

impl Upstreams {
    /// Those of the host, for when nothing else is said.
    #[must_use]
    pub fn usual() -> Self {
        Self::Usual(PathBuf::from("/etc/resolv.conf"))
    }

    /// The servers now.
    pub(crate) fn read(&self) -> Result<ResolvConf, UpstreamError> {
        let path = match self {
            Self::Servers(servers) => {
                return Ok(ResolvConf { upstreams: servers.clone(), ignored: Vec::new() });
            }
            Self::File(path) | Self::Usual(path) => path,
        };
        match std::fs::read(path) {
            // To libc, characters are octets.
            Ok(text) => Ok(upstreams_from_resolv_conf(&String::from_utf8_lossy(&text))),
            Err(source) => Err(UpstreamError::Read { path: path.clone(), source }),
        }
    }

    /// Where they stand, if not in the configuration itself.
    pub(crate) fn file(&self) -> Option<&Path> {
        match self {
            Self::Servers(_) => None,
            Self::File(path) | Self::Usual(path) => Some(path),
        }
    }

    /// Whether a server may start although they cannot be read.
    pub(crate) fn may_be_missing(&self) -> bool {
        match self {
            Self::Servers(_) | Self::File(_) => false,
            Self::Usual(_) => true,
        }
    }

    /// Why names outside of the cluster would be refused, if they would.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let path = self.file()?;
        match self.read() {
            Ok(conf) if conf.upstreams.is_empty() => Some(names_no_server(path)),
            Ok(_) => None,
            Err(error) => {
                Some(format!("{}: names outside of the cluster are refused", shunt_model::with_causes(&error)))
            }
        }
    }
}

/// What it means that a file gives no server.
pub(crate) fn names_no_server(file: &Path) -> String {
    format!("{} names no server to ask: names outside of the cluster are refused", file.display())
}

/// Reads the `nameserver` lines of a resolv.conf. Unlike libc it takes `IP:PORT` too.
#[must_use]
fn upstreams_from_resolv_conf(text: &str) -> ResolvConf {
    let mut conf = ResolvConf::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let word = words.next().unwrap_or_default();
        match in_the_clear(word, word) {
            Ok(server) if !conf.upstreams.contains(&server) => conf.upstreams.push(server),
            Ok(_) => {}
            Err(error) => {
                conf.ignored.push(Ignored { line: line.trim().to_owned(), reason: error.to_string() });
            }
        }
    }
    conf
}

fn servers(list: &str) -> Result<Vec<Upstream>, UpstreamError> {
    list.split(',').map(str::trim).filter(|element| !element.is_empty()).map(str::parse).collect()
}

/// `IP`, `IP:PORT`, `[IP]` or `[IP]:PORT`, with port 0 if it has none; `upstream` is the whole, for errors.
fn address(text: &str, upstream: &str) -> Result<SocketAddr, UpstreamError> {
    let wrong = || UpstreamError::Address(upstream.to_owned());
    let (host, digits) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']').ok_or_else(wrong)? {
            (host, "") => (host, None),
            (host, after) => (host, Some(after.strip_prefix(':').ok_or_else(wrong)?)),
        },
        None => match text.split_once(':') {
            Some((host, digits)) if !digits.contains(':') => (host, Some(digits)),
            // With more colons it is an IPv6 address.
            Some(_) | None => (text, None),
        },
    };
    let port = match digits {
        None => 0,
        Some(digits) => digits.parse().ok().map(NonZeroU16::get).ok_or_else(wrong)?,
    };
    let (ip, zone) = host.split_once('%').map_or((host, None), |(ip, zone)| (ip, Some(zone)));
    let ip: IpAddr = ip.parse().ok().ok_or_else(wrong)?;
    match (ip.to_canonical(), zone) {
        (IpAddr::V6(ip), Some(zone)) if ip.is_unicast_link_local() => match interface(zone) {
            Some(index) => Ok(SocketAddrV6::new(ip, port, 0, index).into()),
            None => Err(UpstreamError::Interface { upstream: upstream.to_owned(), interface: zone.to_owned() }),
        },
        (IpAddr::V6(ip), None) if ip.is_unicast_link_local() => Err(UpstreamError::NoZone(upstream.to_owned())),
        (canonical, zone) if zone.is_none() || ip.is_ipv6() => Ok(SocketAddr::new(canonical, port)),
        (_, _) => Err(wrong()),
    }
}

/// The index of an interface, given by name or, as libc takes it too, by its number.
fn interface(zone: &str) -> Option<u32> {
    // To the kernel `lo:5301` is an alias of lo; here it would be a port that is lost.
    let index = nix::net::if_::if_nametoindex(zone).ok().filter(|_| !zone.contains(':'));
    index.or_else(|| zone.parse().ok().filter(|index| *index != 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::StubDomain;

    #[track_caller]
    fn check(flag: &str, wanted: &[&str]) {
        let Upstreams::Servers(servers) = flag.parse().unwrap() else { panic!("{flag} is a list") };
        assert_eq!(servers.iter().map(ToString::to_string).collect::<Vec<_>>(), wanted, "{flag}");
        for server in servers {
            assert_eq!(server.to_string().parse::<Upstream>().unwrap(), server, "{flag}");
        }
    }

    #[track_caller]
    fn check_refused(flag: &str, part: &str) {
        let error = flag.parse::<Upstreams>().and_then(|upstreams| upstreams.read()).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }

    #[test]
    fn a_flag_is_a_list_of_servers() {
        check("", &[]);
        check("192.0.2.1", &["192.0.2.1:53"]);
        check(
            "192.0.2.1:5353, fd00::1,[fd00::2]:54,[fd00::3]",
            &["192.0.2.1:5353", "[fd00::1]:53", "[fd00::2]:54", "[fd00::3]:53"],
        );
        check("dns://192.0.2.1:54", &["192.0.2.1:54"]);
        check("::ffff:192.0.2.1,[::ffff:192.0.2.2]:54", &["192.0.2.1:53", "192.0.2.2:54"]);
    }

    #[test]
    fn a_server_over_tls_may_have_a_name_and_the_port_before_or_after_it() {
        check("tls://192.0.2.1", &["tls://192.0.2.1:853%192.0.2.1"]);
        check("tls://[fd00::1]:8853%dns.example,192.0.2.1", &["tls://[fd00::1]:8853%dns.example", "192.0.2.1:53"]);
        check("tls://192.0.2.1%dns.example", &["tls://192.0.2.1:853%dns.example"]);
        check("tls://192.0.2.1%dns.example:8853", &["tls://192.0.2.1:8853%dns.example"]);
        check("tls://fd00::1%dns.example:8853", &["tls://[fd00::1]:8853%dns.example"]);
        check("tls://[fd00::1]%dns.example:8853", &["tls://[fd00::1]:8853%dns.example"]);
        check("tls://fd00::1%fd00::2", &["tls://[fd00::1]:853%fd00::2"]);
    }

    #[test]
    fn a_zone_is_the_interface_of_a_link_local_address_and_else_nothing() {
        check("fe80::1%lo", &["[fe80::1%1]:53"]);
        check("fe80::1%1,[fe80::1%lo]:5301", &["[fe80::1%1]:53", "[fe80::1%1]:5301"]);
        check("fe80::1%70000", &["[fe80::1%70000]:53"]);
        check("fd00::53%en0,[fd00::53%1]:54", &["[fd00::53]:53", "[fd00::53]:54"]);
        check("::ffff:192.0.2.1%en0", &["192.0.2.1:53"]);
        check("tls://[fe80::1%lo]:8853%dns.example", &["tls://[fe80::1%1]:8853%dns.example"]);
        check("tls://[fe80::1%lo]%dns.example:8853", &["tls://[fe80::1%1]:8853%dns.example"]);
        check("tls://[fe80::1%lo]:8853", &["tls://[fe80::1%1]:8853%fe80::1"]);
        check("tls://fe80::1%lo", &["tls://[fe80::1%1]:853%fe80::1"]);
        check("tls://fe80::1%lo%dns.example", &["tls://[fe80::1%1]:853%dns.example"]);
        check("tls://[fd00::1%en0]:8853%dns.example", &["tls://[fd00::1]:8853%dns.example"]);
    }

    #[test]
    fn a_stub_domain_is_any_name_with_servers() {
        let read = |text: &str| text.parse::<StubDomain>().map_err(|error| error.to_string());
        for (text, domain, server) in [
            ("0/25.2.0.192.in-addr.arpa=[fe80::1%lo]:54", "0/25.2.0.192.in-addr.arpa.", "[fe80::1%1]:54"),
            (r"office\032printer.test=192.0.2.1", r"office\ printer.test.", "192.0.2.1:53"),
            ("a=b.test=fd00::1%en0", "a=b.test.", "[fd00::1]:53"),
            ("a.test=tls://192.0.2.1%dns.test:8853", "a.test.", "tls://192.0.2.1:8853%dns.test"),
        ] {
            let stub = read(text).unwrap();
            let servers: Vec<String> = stub.upstreams.iter().map(ToString::to_string).collect();
            assert_eq!((crate::names::text(&stub.domain), servers), (domain.to_owned(), vec![server.to_owned()]));
        }
        for (text, part) in [
            ("10.0.0.0/8=192.0.2.1", "\"10.0.0.0/8\" is a range"),
            ("a.test=fe80::1", "without its interface"),
            ("a.test=/etc/resolv.conf", "a.test=/etc/resolv.conf"),
            ("a..test=192.0.2.1", "\"a..test\" is no domain: a label is empty"),
            ("=192.0.2.1", "write DOMAIN=ADDR"),
            (".=192.0.2.1", "write DOMAIN=ADDR"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_bad_upstream_is_named() {
        check_refused("192.0.2.1,dns.example", "dns.example");
        check_refused("tls://dns.example", "tls://dns.example");
        check_refused("tls://192.0.2.1%a b", "a b");
        check_refused("tls://192.0.2.1:853%dns.example:853", "tls://192.0.2.1:853%dns.example:853\" has two ports");
        check_refused("https://192.0.2.1", "https://192.0.2.1");
        check_refused("192.0.2.1:0", "192.0.2.1:0");
        check_refused("192.0.2.1:", "192.0.2.1:");
        check_refused("192.0.2.1%lo", "192.0.2.1%lo");
        check_refused("[fd00::1]53", "[fd00::1]53");
        check_refused("fe80::1", "without its interface");
        check_refused("[fe80::1]:53", "without its interface");
        check_refused("fe80::1%", "no interface \"\"");
        check_refused("[fe80::1%nowhere]:53", "no interface \"nowhere\"");
        check_refused("fe80::1%lo:5301", "no interface \"lo:5301\"");
        check_refused("tls://fe80::1%dns.example", "no interface \"dns.example\"");
        check_refused("/nonexistent/resolv.conf", "/nonexistent/resolv.conf");
    }

    #[test]
    fn resolv_conf_gives_its_name_servers_once_and_in_order() {
        let text = "# nameserver 1.1.1.1\nsearch a b\nnameserver 192.0.2.2 # two\n nameserver\tfd00::1\nnameserver x\n\
                    nameserver fe80::1%lo\nnameserver fe80::1%nowhere\nnameserver 192.0.2.2\noptions ndots:5\n\
                    nameservers 192.0.2.9\nnameserver fe80::53%1\nnameserver fd00:53::53%en0\nnameserver\n\
                    nameserver ::ffff:192.0.2.2\nnameserver fe80::2\nnameserver [fe80::1%lo]:5301\n";
        let conf = upstreams_from_resolv_conf(text);
        let servers: Vec<String> = conf.upstreams.iter().map(ToString::to_string).collect();
        let wanted = [
            "192.0.2.2:53",
            "[fd00::1]:53",
            "[fe80::1%1]:53",
            "[fe80::53%1]:53",
            "[fd00:53::53]:53",
            "[fe80::1%1]:5301",
        ];
        assert_eq!(servers, wanted);
        let ignored: Vec<&str> = conf.ignored.iter().map(|ignored| ignored.line.as_str()).collect();
        assert_eq!(ignored, ["nameserver x", "nameserver fe80::1%nowhere", "nameserver", "nameserver fe80::2"]);
        assert!(conf.ignored[1].reason.contains("no interface \"nowhere\""), "{:?}", conf.ignored);
    }

    #[test]
    fn a_file_in_another_encoding_gives_its_name_servers() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("resolv.conf");
        std::fs::write(&path, b"# caf\xe9\nnameserver 192.0.2.1\n").unwrap();
        assert_eq!(Upstreams::File(path).read().unwrap().upstreams, ["192.0.2.1".parse().unwrap()]);
    }
}
