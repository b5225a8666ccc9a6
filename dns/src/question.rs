//! What a name asks for: the shapes of DNS-1.2…1.7 and of the reverse trees, before any data is looked at.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::Name;
use shunt_model::{ObjectKey, Protocol};

/// A name, read. Everything below the cluster domain is lower case (DNS-1.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// Neither in the cluster domain nor in a reverse tree.
    Outside,
    /// Below `in-addr.arpa.` or `ip6.arpa.`; `None` unless it spells one whole address (DNS-5.6).
    Reverse(Option<IpAddr>),
    /// The cluster domain itself.
    Apex,
    /// `dns-version`.
    Version,
    /// `ns.dns`.
    NameServer,
    /// `svc`.
    Services,
    /// `pod`.
    Pods,
    /// `NS.svc`.
    Namespace(String),
    /// `S.NS.svc`.
    Service(ObjectKey),
    /// `E.S.NS.svc`.
    Endpoint(ObjectKey, String),
    /// `_PORT._PROTO.S.NS.svc`; the protocol is absent if no such protocol exists.
    Port(ObjectKey, String, Option<Protocol>),
    /// `NS.pod`.
    PodNamespace(String),
    /// `IP-WITH-DASHES.NS.pod`.
    Pod(String, String),
    /// In the cluster domain, but of no known shape.
    Shapeless,
}

impl Question {
    /// Reads `name`, which is taken as absolute.
    pub(crate) fn parse(name: &Name, domain: &Name) -> Self {
        let mut labels = name.iter().rev();
        let inside = domain.iter().rev().all(|ours| labels.next().is_some_and(|theirs| same(ours, theirs)));
        if !inside {
            return match reverse(name) {
                ReverseName::Outside => Self::Outside,
                ReverseName::Partial => Self::Reverse(None),
                ReverseName::Address(address) => Self::Reverse(Some(address)),
            };
        }
        let Some(rest) = labels.map(lower).collect::<Option<Vec<String>>>() else {
            return Self::Shapeless; // DNS-1.9
        };
        let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
        match rest.as_slice() {
            [] => Self::Apex,
            ["dns-version"] => Self::Version,
            ["dns", "ns"] => Self::NameServer,
            ["svc", below @ ..] => service(below),
            ["pod"] => Self::Pods,
            ["pod", namespace] => Self::PodNamespace((*namespace).to_owned()),
            ["pod", namespace, pod] => Self::Pod((*namespace).to_owned(), (*pod).to_owned()),
            _ => Self::Shapeless,
        }
    }
}

/// The labels below `svc`, rightmost first.
fn service(below: &[&str]) -> Question {
    match below {
        [] => Question::Services,
        [namespace] => Question::Namespace((*namespace).to_owned()),
        [namespace, service] => Question::Service(ObjectKey::new(*namespace, *service)),
        [namespace, service, endpoint] => {
            Question::Endpoint(ObjectKey::new(*namespace, *service), (*endpoint).to_owned())
        }
        [namespace, service, protocol, port] => {
            let protocol = match without_underscore(protocol) {
                "tcp" => Some(Protocol::Tcp),
                "udp" => Some(Protocol::Udp),
                "sctp" => Some(Protocol::Sctp),
                _ => None,
            };
            Question::Port(ObjectKey::new(*namespace, *service), without_underscore(port).to_owned(), protocol)
        }
        _ => Question::Shapeless,
    }
}

/// The underscores are optional, as in CoreDNS (DNS-1.7).
fn without_underscore(label: &str) -> &str {
    label.strip_prefix('_').unwrap_or(label)
}

/// The address that a name in the reverse trees spells.
pub(crate) fn address_of(name: &Name) -> Option<IpAddr> {
    match reverse(name) {
        ReverseName::Address(address) => Some(address),
        ReverseName::Partial | ReverseName::Outside => None,
    }
}

/// What a name says in the reverse trees.
enum ReverseName {
    /// It is in none of them.
    Outside,
    /// It spells no whole address.
    Partial,
    /// It spells this one.
    Address(IpAddr),
}

fn reverse(name: &Name) -> ReverseName {
    let mut labels = name.iter().rev();
    if !labels.next().is_some_and(|label| same(label, b"arpa")) {
        return ReverseName::Outside;
    }
    let Some(tree) = labels.next() else { return ReverseName::Outside };
    let labels: Vec<&[u8]> = labels.collect();
    let address = if same(tree, b"in-addr") {
        octets(&labels).map(IpAddr::V4)
    } else if same(tree, b"ip6") {
        nibbles(&labels).map(IpAddr::V6)
    } else {
        return ReverseName::Outside;
    };
    address.map_or(ReverseName::Partial, ReverseName::Address)
}

fn octets(labels: &[&[u8]]) -> Option<Ipv4Addr> {
    let [a, b, c, d] = labels else { return None };
    Some(Ipv4Addr::new(octet(a)?, octet(b)?, octet(c)?, octet(d)?))
}

/// Plain decimal: `parse` alone would also take `+1` and `007`.
fn octet(label: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(label).ok()?;
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

fn nibbles(labels: &[&[u8]]) -> Option<Ipv6Addr> {
    if labels.len() != 32 {
        return None;
    }
    let mut bits = 0_u128;
    for label in labels {
        let [digit] = label else { return None };
        bits = bits << 4 | u128::from(char::from(*digit).to_digit(16)?);
    }
    Some(Ipv6Addr::from_bits(bits))
}

fn same(a: &[u8], b: &[u8]) -> bool {
    a.eq_ignore_ascii_case(b)
}

fn lower(label: &[u8]) -> Option<String> {
    let mut text = std::str::from_utf8(label).ok()?.to_owned();
    text.make_ascii_lowercase();
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, wanted: Question) {
        let domain = Name::from_ascii("cluster.local.").unwrap();
        // Not `from_ascii`: the wire carries labels that text forms refuse.
        let labels = name.split('.').filter(|label| !label.is_empty());
        let asked = Name::from_labels(labels.map(str::as_bytes)).unwrap();
        assert_eq!(Question::parse(&asked, &domain), wanted, "{name}");
    }

    fn web() -> ObjectKey {
        ObjectKey::new("shop", "web")
    }

    #[test]
    fn cluster_names_are_read_from_the_right() {
        check("cluster.local.", Question::Apex);
        check("dns-version.Cluster.Local.", Question::Version);
        check("ns.dns.cluster.local.", Question::NameServer);
        check("dns.cluster.local.", Question::Shapeless); // DNS-4.4
        check("svc.cluster.local.", Question::Services);
        check("shop.svc.cluster.local.", Question::Namespace("shop".into()));
        check("WEB.shop.SVC.cluster.local.", Question::Service(web()));
        check("a.web.shop.svc.cluster.local.", Question::Endpoint(web(), "a".into()));
        check("_http._TCP.web.shop.svc.cluster.local.", Question::Port(web(), "http".into(), Some(Protocol::Tcp)));
        // DNS-1.7
        check("http.sctp.web.shop.svc.cluster.local.", Question::Port(web(), "http".into(), Some(Protocol::Sctp)));
        check("_http._dccp.web.shop.svc.cluster.local.", Question::Port(web(), "http".into(), None));
        check("x._http._tcp.web.shop.svc.cluster.local.", Question::Shapeless); // DNS-1.4
        check("svc.svc.svc.cluster.local.", Question::Service(ObjectKey::new("svc", "svc"))); // DNS-1.6
        check("pod.cluster.local.", Question::Pods);
        check("1-2-3-4.shop.pod.cluster.local.", Question::Pod("shop".into(), "1-2-3-4".into()));
        check("x.1-2-3-4.shop.pod.cluster.local.", Question::Shapeless);
        check("other.cluster.local.", Question::Shapeless); // DNS-1.2
        let bytes = Name::from_labels([b"web".as_slice(), b"\xff\0", b"svc", b"cluster", b"local"]).unwrap();
        let domain = Name::from_ascii("cluster.local.").unwrap();
        assert_eq!(Question::parse(&bytes, &domain), Question::Shapeless); // DNS-1.9
    }

    #[test]
    fn whole_labels_decide_what_is_ours() {
        check("xcluster.local.", Question::Outside); // DNS-3.10
        check("local.", Question::Outside);
        check(".", Question::Outside);
        check("example.arpa.", Question::Outside);
        check("arpa.", Question::Outside);
    }

    #[test]
    fn only_whole_plain_addresses_are_reverse_names() {
        check("1.0.96.10.in-addr.arpa.", Question::Reverse(Some("10.96.0.1".parse().unwrap())));
        check("1.0.96.10.IN-ADDR.ARPA.", Question::Reverse(Some("10.96.0.1".parse().unwrap())));
        for name in ["0.96.10", "1.1.0.96.10", "+1.0.96.10", "01.0.96.10", "256.0.96.10", "x.0.96.10"] {
            check(&format!("{name}.in-addr.arpa."), Question::Reverse(None)); // DNS-5.6
        }
        check("in-addr.arpa.", Question::Reverse(None));
        let address: IpAddr = "fd00::Ab".parse().unwrap();
        let name = Name::from(address).to_ascii().to_ascii_uppercase();
        check(&name, Question::Reverse(Some(address)));
        check("1.ip6.arpa.", Question::Reverse(None));
    }
}
