//! Where other names are asked: lists of addresses, and files like `/etc/resolv.conf`.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// What a resolv.conf says about upstreams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// The name servers, port 53 unless given, in order.
    pub upstreams: Vec<SocketAddr>,
    /// `nameserver` lines whose value is no address, to be logged; libc ignores them too.
    pub ignored: Vec<String>,
}

/// Why an upstream list is unusable.
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
    #[error("upstream {0:?} is not an address (wanted IP, IP:PORT or [IP]:PORT, or a path with a /)")]
    Address(String),
}

/// Where other names are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstreams {
    /// These servers; none means that other names are refused.
    Servers(Vec<SocketAddr>),
    /// The servers that a file like `/etc/resolv.conf` names, also after it has changed.
    File(PathBuf),
}

impl Upstreams {
    /// Reads a flag's value: addresses separated by commas, or the path of a resolv.conf (anything with a `/`). An empty
    /// value means no upstreams.
    pub fn parse(flag: &str) -> Result<Self, UpstreamError> {
        if flag.contains('/') {
            return Ok(Self::File(PathBuf::from(flag)));
        }
        let elements = flag.split(',').map(str::trim).filter(|element| !element.is_empty());
        let address = |element: &str| address(element).ok_or_else(|| UpstreamError::Address(element.to_owned()));
        elements.map(address).collect::<Result<_, _>>().map(Self::Servers)
    }

    /// The servers now.
    pub fn read(&self) -> Result<ResolvConf, UpstreamError> {
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
pub fn upstreams_from_resolv_conf(text: &str) -> ResolvConf {
    let mut conf = ResolvConf::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        match words.next().and_then(address) {
            Some(server) if !conf.upstreams.contains(&server) => conf.upstreams.push(server),
            Some(_) => {}
            None => conf.ignored.push(line.trim().to_owned()),
        }
    }
    conf
}

fn address(text: &str) -> Option<SocketAddr> {
    text.parse().ok().or_else(|| Some(SocketAddr::new(text.parse().ok()?, 53)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(flag: &str, wanted: &[&str]) {
        let wanted: Vec<SocketAddr> = wanted.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(Upstreams::parse(flag).unwrap(), Upstreams::Servers(wanted), "{flag}");
    }

    #[test]
    fn a_flag_is_a_list_of_addresses() {
        check("", &[]);
        check("192.0.2.1", &["192.0.2.1:53"]);
        check("192.0.2.1:5353, fd00::1,[fd00::2]:54", &["192.0.2.1:5353", "[fd00::1]:53", "[fd00::2]:54"]);
    }

    #[test]
    fn a_bad_upstream_is_named() {
        let error = Upstreams::parse("192.0.2.1,dns.example").unwrap_err().to_string();
        assert!(error.contains("dns.example"), "{error}");
        let error = Upstreams::parse("/nonexistent/resolv.conf").unwrap().read().unwrap_err().to_string();
        assert!(error.contains("/nonexistent/resolv.conf"), "{error}");
    }

    #[test]
    fn resolv_conf_gives_its_name_servers_once_and_in_order() {
        let text = "# nameserver 1.1.1.1\nsearch a b\nnameserver 192.0.2.2 # two\n nameserver\tfd00::1\nnameserver x\n\
                    nameserver 192.0.2.2\noptions ndots:5\nnameservers 192.0.2.9\n";
        let conf = upstreams_from_resolv_conf(text);
        assert_eq!(conf.upstreams, ["192.0.2.2:53".parse().unwrap(), "[fd00::1]:53".parse().unwrap()]);
        assert_eq!(conf.ignored, ["nameserver x"]);
    }
}
