//! The names of kube-proxy's chains (LY-1…3, LY-21).

use std::net::SocketAddr;

use data_encoding::BASE32;
use ring::digest::{SHA256, digest};

use super::ServicePort;

fn hash(text: &str, length: usize) -> String {
    let mut encoded = BASE32.encode(digest(&SHA256, text.as_bytes()).as_ref());
    encoded.truncate(length);
    encoded
}

/// `ns/svc:port`, without the end if the port has no name; it also stands in comments.
pub(super) fn readable(port: &ServicePort) -> String {
    let ServicePort { namespace, name, port_name, .. } = port;
    if port_name.is_empty() { format!("{namespace}/{name}") } else { format!("{namespace}/{name}:{port_name}") }
}

/// A chain of iptables for a service port: `KUBE-SVC-…` with `SVC`, `SVL`, `EXT` or `FW`.
pub(super) fn chain(kind: &str, port: &ServicePort) -> String {
    format!("KUBE-{kind}-{}", hash(&format!("{}{}", readable(port), port.protocol), 16))
}

/// The chain of iptables for an endpoint.
pub(super) fn endpoint_chain(port: &ServicePort, endpoint: SocketAddr) -> String {
    format!("KUBE-SEP-{}", hash(&format!("{}{}{endpoint}", readable(port), port.protocol), 16))
}

/// The end of the names of nftables objects for a service port, or for one of its endpoints.
pub(super) fn base(port: &ServicePort, endpoint: Option<SocketAddr>) -> String {
    let ServicePort { namespace, name, port_name, protocol, .. } = port;
    let mut full = format!("{namespace}/{name}/{protocol}/{port_name}");
    if let Some(endpoint) = endpoint {
        full.push_str(&format!("__{}/{}", endpoint.ip().to_string().replace(':', "."), endpoint.port()));
    }
    let mut named = format!("{}-{full}", hash(&full, 8));
    if named.len() > 240 {
        named.truncate(237);
        named.push_str("...");
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str) -> ServicePort {
        let (path, port_name) = name.split_once(':').unwrap_or((name, ""));
        let (namespace, service) = path.split_once('/').unwrap();
        let mut port = ServicePort::tcp(service, "10.96.0.1".parse().unwrap(), 80, Vec::new());
        (port.namespace, port.port_name) = (namespace.to_owned(), port_name.to_owned());
        port
    }

    #[test]
    fn chains_of_iptables_have_kube_proxys_names() {
        // LY-3
        for (name, hashed) in [
            ("ns1/svc1:p80", "XPGD46QRK7WJZT7O"),
            ("ns2/svc2:p80", "GNZBNJ2PO5MGZ6GT"),
            ("ns3/svc3:p80", "X27LE4BHSL4DOUIK"),
            ("ns4/svc4:p80", "4SW47YFZTEDKD3PK"),
            ("ns5/svc5:p80", "NUKIZ6OKUXPJNT4C"),
            ("ns1/svc1", "AQI2S6QIMU7PVVRP"),
        ] {
            assert_eq!(chain("SVC", &port(name)), format!("KUBE-SVC-{hashed}"), "{name}");
        }
        let endpoint = "10.180.0.1:80".parse().unwrap();
        assert_eq!(endpoint_chain(&port("ns1/svc1:p80"), endpoint), "KUBE-SEP-SXIVWICOYRO3J4NJ");
    }

    #[test]
    fn objects_of_nftables_have_kube_proxys_names() {
        // LY-21
        let port = port("ns1/svc1:p80");
        assert_eq!(base(&port, None), "ULMVA6XW-ns1/svc1/tcp/p80");
        let endpoint = "10.180.0.1:80".parse().unwrap();
        assert_eq!(base(&port, Some(endpoint)), "5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80");
    }
}
