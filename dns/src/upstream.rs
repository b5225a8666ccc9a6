//! Where other names are asked: servers, lists of them, and files like `/etc/resolv.conf`.

use std::fmt;
use std::io;
use std::net::{SocketAddr, SocketAddrV6};
use std::path::PathBuf;
use std::str::FromStr;

use tokio_rustls::rustls::pki_types::ServerName;

const PORT: u16 = 53;
/// RFC 7858 section 3.1.
const TLS_PORT: u16 = 853;

/// A server to ask, written `IP`, `IP:PORT`, `[IP]:PORT`, or with `tls://` in front for DNS over TLS; then `%NAME` may
/// follow, the name its certificate must have instead of the address.
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
        let wrong = || UpstreamError::Address(text.to_owned());
        let Some(over_tls) = text.strip_prefix("tls://") else {
            return address(text, PORT).map(Self::from).ok_or_else(wrong);
        };
        let (place, name) = over_tls.split_once('%').map_or((over_tls, None), |(place, name)| (place, Some(name)));
        let address = address(place, TLS_PORT).ok_or_else(wrong)?;
        let named = match name {
            None => ServerName::from(address.ip()),
            Some(name) => match ServerName::try_from(name.to_owned()) {
                Ok(name) => name,
                Err(source) => return Err(UpstreamError::TlsName { name: name.to_owned(), source }),
            },
        };
        Ok(Self { address, tls: Some(named) })
    }
}

/// What a resolv.conf says about upstreams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResolvConf {
    /// The name servers, port 53 unless given, in order.
    pub(crate) upstreams: Vec<Upstream>,
    /// `nameserver` lines whose value is no address, to be logged; libc ignores them too.
    pub(crate) ignored: Vec<String>,
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
}

/// Where other names are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstreams {
    /// These servers; none means that other names are refused.
    Servers(Vec<Upstream>),
    /// The servers that a file like `/etc/resolv.conf` names, also after it has changed.
    File(PathBuf),
}

impl FromStr for Upstreams {
    type Err = UpstreamError;

    /// Reads a flag's value: servers separated by commas, or the path of a resolv.conf (anything else with a `/`). An
    /// empty value means no upstreams.
    fn from_str(flag: &str) -> Result<Self, UpstreamError> {
        if flag.contains('/') && !flag.contains("tls://") {
            return Ok(Self::File(PathBuf::from(flag)));
        }
        servers(flag).map(Self::Servers)
    }
}

impl Upstreams {
    /// The servers now.
    pub(crate) fn read(&self) -> Result<ResolvConf, UpstreamError> {
        match self {
            Self::Servers(servers) => Ok(ResolvConf { upstreams: servers.clone(), ignored: Vec::new() }),
            Self::File(path) => match std::fs::read_to_string(path) {
                Ok(text) => Ok(upstreams_from_resolv_conf(&text)),
                Err(source) => Err(UpstreamError::Read { path: path.clone(), source }),
            },
        }
    }
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
        match words.next().and_then(|word| address(word, PORT)).map(Upstream::from) {
            Some(server) if !conf.upstreams.contains(&server) => conf.upstreams.push(server),
            Some(_) => {}
            None => conf.ignored.push(line.trim().to_owned()),
        }
    }
    conf
}

fn servers(list: &str) -> Result<Vec<Upstream>, UpstreamError> {
    list.split(',').map(str::trim).filter(|element| !element.is_empty()).map(str::parse).collect()
}

fn address(text: &str, port: u16) -> Option<SocketAddr> {
    if let Some((ip, interface)) = text.split_once('%') {
        // As routers announce themselves; the interface must exist.
        let index = nix::net::if_::if_nametoindex(interface).ok()?;
        return Some(SocketAddrV6::new(ip.parse().ok()?, port, 0, index).into());
    }
    text.parse().ok().or_else(|| Some(SocketAddr::new(text.parse().ok()?, port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(flag: &str, wanted: &[&str]) {
        let Upstreams::Servers(servers) = flag.parse().unwrap() else { panic!("{flag} is a list") };
        assert_eq!(servers.iter().map(ToString::to_string).collect::<Vec<_>>(), wanted, "{flag}");
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
        check("192.0.2.1:5353, fd00::1,[fd00::2]:54", &["192.0.2.1:5353", "[fd00::1]:53", "[fd00::2]:54"]);
        check("tls://192.0.2.1", &["tls://192.0.2.1:853%192.0.2.1"]);
        check("tls://[fd00::1]:8853%dns.example,192.0.2.1", &["tls://[fd00::1]:8853%dns.example", "192.0.2.1:53"]);
    }

    #[test]
    fn a_bad_upstream_is_named() {
        check_refused("192.0.2.1,dns.example", "dns.example");
        check_refused("tls://dns.example", "tls://dns.example");
        check_refused("tls://192.0.2.1%a b", "a b");
        check_refused("/nonexistent/resolv.conf", "/nonexistent/resolv.conf");
    }

    #[test]
    fn resolv_conf_gives_its_name_servers_once_and_in_order() {
        let text = "# nameserver 1.1.1.1\nsearch a b\nnameserver 192.0.2.2 # two\n nameserver\tfd00::1\nnameserver x\n\
                    nameserver fe80::1%lo\nnameserver fe80::1%nowhere\nnameserver 192.0.2.2\noptions ndots:5\nnameservers 192.0.2.9\n";
        let conf = upstreams_from_resolv_conf(text);
        let servers: Vec<String> = conf.upstreams.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.2:53", "[fd00::1]:53", "[fe80::1%1]:53"]);
        assert_eq!(conf.ignored, ["nameserver x", "nameserver fe80::1%nowhere"]);
    }
}
