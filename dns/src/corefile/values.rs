//! Values as Corefiles write them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::rr::Name;
use ipnet::IpNet;
use shunt_model::GoDuration;

use crate::sockets::{any_address, one_for_all};

/// A domain, absolute and in the spelling given.
pub(super) fn domain(text: &str) -> Result<Name, String> {
    crate::names::absolute(text).map_err(|error| format!("{text:?} is no domain: {error}"))
}

/// Domains or ranges of addresses; these are their reverse zones.
pub(super) fn zones(text: &str) -> Result<Vec<Name>, String> {
    match text.parse::<IpNet>() {
        Ok(net) => Ok(reverse_zones(net)),
        // Not a domain, which may have a slash in it: those of RFC 2317 begin with a number and a slash.
        Err(error) if text.split_once('/').is_some_and(|(ip, _)| ip.parse::<IpAddr>().is_ok()) => {
            Err(format!("{text:?} is no range of addresses: {error}"))
        }
        Err(_) => Ok(vec![domain(text)?]),
    }
}

/// The zones that a range of addresses fills, cut at whole octets or nibbles (DNS-5.4).
fn reverse_zones(net: IpNet) -> Vec<Name> {
    let (step, bits) = if net.addr().is_ipv4() { (8, 32) } else { (4, 128) };
    let length = net.prefix_len().div_ceil(step) * step;
    let count = u32::from(length - net.prefix_len());
    let first = match net.network() {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    };
    let at = |number: u128| {
        let whole = first | number.checked_shl(u32::from(bits - length)).unwrap_or_default();
        let ip = match net {
            IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(whole).unwrap_or_default())),
            IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(whole)),
        };
        // The name of an address has a label for each octet or nibble, and two for the tree.
        Name::from(ip).trim_to(usize::from(length / step) + 2)
    };
    (0..1_u128 << count).map(at).collect()
}

/// The keys of a server block: a comma is between two, unless a backslash is before it.
pub(super) fn server_keys(word: &str) -> impl Iterator<Item = &str> {
    let mut escaped = false;
    let between = move |character: char| {
        let is_escaped = std::mem::take(&mut escaped);
        escaped = character == '\\' && !is_escaped;
        character == ',' && !is_escaped
    };
    word.split(between).filter(|key| !key.is_empty())
}

/// `[dns://]DOMAIN[:PORT]`, `:PORT` for all domains. A colon in a name has a backslash before it.
pub(super) fn server_key(key: &str) -> Result<(Vec<Name>, Option<u16>), String> {
    let bare = match key.split_once("://") {
        None | Some(("dns", _)) => key.trim_start_matches("dns://"),
        Some((scheme, _)) => return Err(format!("{key}: {scheme}:// is not served, only plain DNS")),
    };
    let (name, port) = match bare.rsplit_once(':') {
        Some((name, _)) if name.ends_with('\\') => (bare, None),
        // An IPv6 range has colons of its own, and its length after the last one.
        Some((name, port)) if !name.replace("\\:", "").contains(':') || name.parse::<IpNet>().is_ok() => {
            (name, Some(port.parse().map_err(|_number| format!("{key}: {port:?} is no port"))?))
        }
        Some(_) | None => (bare, None),
    };
    Ok((zones(if name.is_empty() { "." } else { name })?, port))
}

/// Longer than anything that is waited for, and short enough that sums of times are times.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// `5s`, `1m30s`, `500ms`; a number alone is of seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let duration = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_not_a_number) => text.parse().map(|GoDuration(duration)| duration)?,
    };
    if duration > LONGEST { Err(format!("{text} is longer than a year")) } else { Ok(duration) }
}

/// `:PORT` is every address, `localhost:PORT` the own one.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let wrong = || format!("{text:?} is no address to listen on; write ADDRESS:PORT or :PORT");
    if let Ok(address) = text.parse() {
        return Ok(one_for_all(address));
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let ip: IpAddr = match host {
        "" => any_address(),
        "localhost" => Ipv4Addr::LOCALHOST.into(),
        _ => return Err(wrong()),
    };
    Ok(SocketAddr::new(ip, port.parse().map_err(|_number| wrong())?))
}

/// All addresses of a family.
pub(super) fn everywhere(v6: bool) -> Result<IpNet, String> {
    let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    IpNet::new(any, 0).map_err(|error| error.to_string())
}

/// A number in a range.
pub(super) fn number<T: std::str::FromStr + PartialOrd + std::fmt::Display>(
    text: &str,
    least: T,
    most: T,
) -> Result<T, String> {
    match text.parse::<T>() {
        Ok(number) if number >= least && number <= most => Ok(number),
        Ok(_) | Err(_) => Err(format!("{text:?} is no number from {least} to {most}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, milliseconds) in [("5s", 5000), ("1m30s", 90_000), ("0.5s", 500), ("250ms", 250), ("30", 30_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "s", "5d", "5x", "-5s", "8761h", "18446744073709551615"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[track_caller]
    fn check(key: &str, wanted: &[&str], port: Option<u16>) {
        let (zones, found) = server_key(key).unwrap();
        assert_eq!(zones.iter().map(crate::names::text).collect::<Vec<_>>(), wanted, "{key}");
        assert_eq!(found, port, "{key}");
    }

    #[test]
    fn server_blocks_are_named_by_domain_range_and_port() {
        check(".:53", &["."], Some(53));
        check(":5353", &["."], Some(5353));
        check("example.org", &["example.org."], None);
        check("dns://example.org.:53", &["example.org."], Some(53));
        check("10.96.0.0/16", &["96.10.in-addr.arpa."], None);
        check("10.96.0.0/15", &["96.10.in-addr.arpa.", "97.10.in-addr.arpa."], None);
        check("fd00::/8", &["d.f.ip6.arpa."], None);
        check("fd00::/8:54", &["d.f.ip6.arpa."], Some(54));
        for key in ["tls://.:853", "example.org:x", "a..b", "10.96.0.0/33", "10.96.0.0/", "fd00::/129", r"a\25"] {
            assert!(server_key(key).is_err(), "{key}");
        }
    }

    #[test]
    fn domains_are_any_names() {
        check("0/25.2.0.192.in-addr.arpa", &["0/25.2.0.192.in-addr.arpa."], None);
        check("0/25.2.0.192.in-addr.arpa:54", &["0/25.2.0.192.in-addr.arpa."], Some(54));
        check("Office Printer._ipp._tcp.lab.test:53", &[r"Office\ Printer._ipp._tcp.lab.test."], Some(53));
        check(r"office\032printer.test", &[r"office\ printer.test."], None);
        check("bücher.test", &[r"b\195\188cher.test."], None);
        check("-a_b-.@%+~.test", &[r"-a_b-.\@%+~.test."], None);
        check(r"a\:b.test", &["a:b.test."], None);
        check(r"a\:b.test:54", &["a:b.test."], Some(54));
        let keys = |word| server_keys(word).collect::<Vec<_>>();
        assert_eq!(keys("a.test,b.test,"), ["a.test", "b.test"]);
        assert_eq!(keys(r"a\,b.test,c\\,d"), [r"a\,b.test", r"c\\", "d"]);
    }

    #[test]
    fn addresses_to_listen_on_may_leave_the_host_out() {
        assert_eq!(listen_address(":9153"), Ok(SocketAddr::new(any_address(), 9153)));
        assert_eq!(listen_address("0.0.0.0:9153"), listen_address(":9153"));
        assert_eq!(listen_address("localhost:8080"), Ok("127.0.0.1:8080".parse().unwrap()));
        assert_eq!(listen_address("[::1]:8080"), Ok("[::1]:8080".parse().unwrap()));
        assert!(listen_address("8080").is_err());
    }
}
