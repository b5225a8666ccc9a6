//! Addresses as Kubernetes objects spell them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// An address in canonical form (IN-24): leading zeros are decimal, IPv4-mapped IPv6 is IPv4.
pub(crate) fn address(text: &str) -> Option<IpAddr> {
    if !text.contains(':') {
        return ipv4(text).map(IpAddr::V4);
    }
    // The dotted tail of an IPv6 address may carry leading zeros too.
    let parsed: Ipv6Addr = match text.rsplit_once(':') {
        Some((head, tail)) if tail.contains('.') => format!("{head}:{}", ipv4(tail)?).parse().ok()?,
        Some(_) | None => text.parse().ok()?,
    };
    Some(parsed.to_canonical())
}

/// An address that can be dialled, or why not: `"x" is not an IP address`.
pub(crate) fn usable_address(text: &str) -> Result<IpAddr, String> {
    let Some(address) = address(text) else {
        return Err(format!("{text:?} is not an IP address"));
    };
    if address.is_unspecified() || address.is_multicast() {
        return Err(format!("{text:?} is not an address of one machine"));
    }
    Ok(address)
}

/// An address that the API server takes as an external IP or as that of an endpoint (its ValidateEndpointIP), or why
/// not: `"127.0.0.1" is a loopback address, which an API server refuses as an external IP or endpoint`.
pub(crate) fn ordinary_address(text: &str) -> Result<IpAddr, String> {
    let address = usable_address(text)?;
    let link_local = match address {
        IpAddr::V4(four) => four.is_link_local(),
        IpAddr::V6(six) => six.is_unicast_link_local(),
    };
    let kind = match (address.is_loopback(), link_local) {
        (true, _) => "loopback",
        (false, true) => "link-local",
        (false, false) => return Ok(address),
    };
    Err(format!("{text:?} is a {kind} address, which an API server refuses as an external IP or endpoint"))
}

/// A network in CIDR notation, surrounding white space and host bits dropped (IN-17).
pub(crate) fn network(text: &str) -> Option<IpNet> {
    let (head, length) = text.trim().split_once('/')?;
    IpNet::new(address(head)?, length.parse().ok()?).ok().map(|network| network.trunc())
}

fn ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then(|| octets.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<&str>) {
        assert_eq!(address(text).map(|address| address.to_string()).as_deref(), expected, "{text}");
    }

    #[test]
    fn addresses_are_parsed_leniently_and_stored_canonically() {
        // IN-24
        check("10.0.0.1", Some("10.0.0.1"));
        check("172.30.0.041", Some("172.30.0.41"));
        check("0010.000.0.1", Some("10.0.0.1"));
        check("::ffff:10.0.0.1", Some("10.0.0.1"));
        check("::ffff:010.0.0.1", Some("10.0.0.1"));
        check("FD00:0:0::01", Some("fd00::1"));
        check("10.0.0.256", None);
        check("10.0.0", None);
        check("10.0.0.1.2", None);
        check("10.0.0.+1", None);
        check("10.0.0.x", None);
        check("fe80::1%eth0", None);
        check("", None);
    }

    #[test]
    fn addresses_that_an_api_server_refuses_are_told_by_their_kind() {
        for good in ["10.0.0.1", "192.0.2.1", "128.0.0.1", "169.253.0.1", "fd00::1", "fec0::1", "2001:db8::1"] {
            assert!(ordinary_address(good).is_ok(), "{good}");
        }
        let rows = [
            ("0.0.0.0", "not an address of one machine"),
            ("::", "not an address of one machine"),
            ("224.0.0.1", "not an address of one machine"),
            ("ff02::1", "not an address of one machine"),
            ("127.0.0.1", "a loopback address"),
            ("127.255.0.9", "a loopback address"),
            ("::1", "a loopback address"),
            ("::ffff:127.0.0.1", "a loopback address"),
            ("169.254.169.254", "a link-local address"),
            ("fe80::1", "a link-local address"),
            ("x", "not an IP address"),
        ];
        for (bad, why) in rows {
            let reason = ordinary_address(bad).unwrap_err();
            assert!(reason.starts_with(&format!("{bad:?} is {why}")), "{reason}");
        }
    }

    #[test]
    fn networks_lose_spaces_and_host_bits() {
        assert_eq!(network(" 10.1.2.3/8 "), Some("10.0.0.0/8".parse().unwrap()));
        assert_eq!(network("fd00::1/64"), Some("fd00::/64".parse().unwrap()));
        assert_eq!(network("10.0.0.0"), None);
        assert_eq!(network("10.0.0.0/33"), None);
    }
}
