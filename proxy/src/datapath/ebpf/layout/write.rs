//! One write to the tables, and the keys of frontends in both families.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;

use ipnet::IpNet;
use proxy_abi::maps::{self, Map};
use proxy_abi::{
    Address4, Address6, Backend4, Backend6, BackendRef, Extent, FrontendKey4, FrontendKey6, FrontendValue, Lead,
    RangeKey, RangePrefix, RangesWord, Shape, Slot, Standing, Terms, scope,
};
use shunt_model::{Family, Protocol};
use zerocopy::transmute;

/// One write, which programs see at once. A list of writes may stop after any of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// A backend is created; `words` are those of [`Backend6`] or, in the first two, of [`Backend4`].
    Backend {
        /// Which array.
        family: Family,
        /// Which element.
        index: u32,
        /// The value.
        words: [u64; 4],
    },
    /// A living backend gets another standing in its service port.
    Standing {
        /// Which array.
        family: Family,
        /// Which element.
        index: u32,
        /// The value.
        standing: Standing,
    },
    /// A backend is removed: its references no longer match.
    BackendGone {
        /// Which array.
        family: Family,
        /// Which element.
        index: u32,
    },
    /// A slot of a service.
    Slot {
        /// Which slot.
        index: u32,
        /// The value.
        slot: Slot,
    },
    /// The switch of a service.
    Extent {
        /// Which service.
        service: u32,
        /// The value.
        extent: Extent,
    },
    /// What the daemon itself reads back after a restart.
    Shape {
        /// Which service.
        service: u32,
        /// The value.
        shape: Shape,
    },
    /// How a service chooses.
    Terms {
        /// Which service.
        service: u32,
        /// The value.
        terms: Terms,
    },
    /// Which sources the filtered frontends of a service take.
    Ranges {
        /// Which service.
        service: u32,
        /// The value.
        ranges: RangesWord,
    },
    /// A prefix joins the ranges `id`.
    Range {
        /// Which ranges.
        id: u32,
        /// The prefix.
        prefix: IpNet,
    },
    /// A prefix leaves the ranges `id`.
    RangeGone {
        /// Which ranges.
        id: u32,
        /// The prefix.
        prefix: IpNet,
    },
    /// A frontend leads to a service.
    Frontend {
        /// What clients dial.
        key: FrontendKey,
        /// Where it leads.
        lead: Lead,
    },
    /// A frontend is removed.
    FrontendGone {
        /// What clients dialled.
        key: FrontendKey,
    },
}

/// Key of a frontend map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum FrontendKey {
    /// In `FRONTENDS4`.
    V4(FrontendKey4),
    /// In `FRONTENDS6`.
    V6(FrontendKey6),
}

impl FrontendKey {
    /// The key of what clients dial.
    #[must_use]
    pub(crate) fn new(address: IpAddr, port: NonZeroU16, protocol: Protocol) -> Self {
        let (port, protocol) = (port.get().to_be(), protocol.number());
        match address {
            IpAddr::V4(four) => Self::V4(FrontendKey4 { address: address4(four), port, protocol, scope: scope::ANY }),
            IpAddr::V6(six) => Self::V6(FrontendKey6 { address: address6(six), port, protocol, scope: scope::ANY }),
        }
    }

    /// The key of the same for packets from outside.
    #[must_use]
    pub(crate) fn outside(self) -> Self {
        match self {
            Self::V4(key) => Self::V4(FrontendKey4 { scope: scope::OUTSIDE, ..key }),
            Self::V6(key) => Self::V6(FrontendKey6 { scope: scope::OUTSIDE, ..key }),
        }
    }

    /// The key of a node port: it stands for every address of the node that accepts them.
    #[must_use]
    pub(crate) fn node_port(family: Family, port: NonZeroU16, protocol: Protocol) -> Self {
        let any: IpAddr = match family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self::new(any, port, protocol)
    }

    /// Which of the two maps it belongs to.
    #[must_use]
    pub(crate) fn family(&self) -> Family {
        match self {
            Self::V4(_) => Family::V4,
            Self::V6(_) => Family::V6,
        }
    }

    /// The map that holds it.
    #[must_use]
    pub(crate) const fn map(&self) -> Map {
        match self {
            Self::V4(_) => maps::FRONTENDS4,
            Self::V6(_) => maps::FRONTENDS6,
        }
    }

    /// The value that makes this key lead to `lead`.
    #[must_use]
    pub(crate) fn value(&self, lead: Lead) -> FrontendValue {
        match self {
            Self::V4(key) => FrontendValue::new(key.fingerprint(), lead),
            Self::V6(key) => FrontendValue::new(key.fingerprint(), lead),
        }
    }
}

impl fmt::Display for FrontendKey {
    /// As people write it: `10.96.0.10:53/udp`, `node port 30080/tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ip, port, protocol) = match self {
            Self::V4(key) => (IpAddr::from(Ipv4Addr::from(key.address.to_ne_bytes())), key.port, key.protocol),
            Self::V6(key) => (IpAddr::from(address_of(key.address)), key.port, key.protocol),
        };
        let port = u16::from_be(port);
        match ip.is_unspecified() {
            true => write!(f, "node port {port}/")?,
            false => write!(f, "{}/", SocketAddr::new(ip, port))?,
        }
        match [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].iter().find(|known| known.number() == protocol) {
            Some(known) => write!(f, "{known}"),
            None => write!(f, "protocol {protocol}"),
        }
    }
}

impl fmt::Display for Write {
    /// Which element it is about, as people write addresses and ports; numbers are those of the element's map.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Backend { family, index, words } => {
                write!(f, "endpoint {} (backend {index})", backend_parts(*family, *words).address)
            }
            Self::Standing { family, index, standing: _ } => write!(f, "state of {family} backend {index}"),
            Self::BackendGone { family, index } => write!(f, "removed {family} backend {index}"),
            Self::Slot { index, slot: _ } => write!(f, "choice among endpoints (slot {index})"),
            Self::Extent { service, extent: _ } => write!(f, "number of endpoints (service {service})"),
            Self::Shape { service, shape: _ } => write!(f, "size (service {service})"),
            Self::Terms { service, terms: _ } => write!(f, "affinity and silence (service {service})"),
            Self::Ranges { service, ranges: _ } => write!(f, "choice of source ranges (service {service})"),
            Self::Range { id, prefix } => write!(f, "source range {prefix} (ranges {id})"),
            Self::RangeGone { id, prefix } => write!(f, "removed source range {prefix} (ranges {id})"),
            Self::Frontend { key, lead: _ } => write!(f, "frontend {key}"),
            Self::FrontendGone { key } => write!(f, "removed frontend {key}"),
        }
    }
}

/// An IPv4 address as tables hold it.
#[must_use]
pub(crate) fn address4(address: Ipv4Addr) -> Address4 {
    u32::from_ne_bytes(address.octets())
}

/// An address as tables of both families hold it.
#[must_use]
pub(crate) fn address(address: IpAddr) -> Address6 {
    match address {
        IpAddr::V4(four) => proxy_abi::mapped(address4(four)),
        IpAddr::V6(six) => address6(six),
    }
}

fn address6(address: Ipv6Addr) -> Address6 {
    transmute!(address.octets())
}

/// The IPv6 address that tables hold as `words`.
#[must_use]
pub(crate) fn address_of(words: Address6) -> Ipv6Addr {
    let octets: [u8; 16] = transmute!(words);
    Ipv6Addr::from(octets)
}

/// The key of a prefix in `RANGES`.
#[must_use]
pub(crate) fn range_key(id: u32, prefix: &IpNet) -> [u8; 24] {
    let before = match prefix {
        IpNet::V4(_) => RangeKey::BITS_BEFORE4,
        IpNet::V6(_) => RangeKey::BITS_BEFORE6,
    };
    let key = RangeKey { id, address: address(prefix.network()) };
    transmute!(RangePrefix { bits: before.saturating_add(u32::from(prefix.prefix_len())), key })
}

/// The ranges and the prefix that [`range_key`] made `bytes` of; `None` for a key that it cannot have made.
#[must_use]
pub(crate) fn range_of(bytes: &[u8; 24]) -> Option<(u32, IpNet)> {
    let RangePrefix { bits, key: RangeKey { id, address } } = transmute!(*bytes);
    let address = address_of(address);
    let (address, before) = match address.to_ipv4_mapped() {
        Some(four) => (IpAddr::V4(four), RangeKey::BITS_BEFORE4),
        None => (IpAddr::V6(address), RangeKey::BITS_BEFORE6),
    };
    let length = u8::try_from(bits.checked_sub(before)?).ok()?;
    Some((id, IpNet::new(address, length).ok()?))
}

/// The value of a living backend.
#[must_use]
pub(crate) fn backend_words(address: SocketAddr, standing: Standing) -> [u64; 4] {
    let port = address.port().to_be();
    match address.ip() {
        IpAddr::V4(four) => {
            let [first, second] = Backend4::new(address4(four), port, standing).words;
            [first, second, 0, 0]
        }
        IpAddr::V6(six) => Backend6::new(address6(six), port, standing).words,
    }
}

/// A backend as read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    /// The endpoint.
    pub address: SocketAddr,
    /// Its generation, 0 if it is dead.
    pub generation: u16,
    /// What it is in its service port; holds the last generation even if it is dead.
    pub standing: Standing,
}

/// What the words of a backend say.
#[must_use]
pub(crate) fn backend_parts(family: Family, words: [u64; 4]) -> Life {
    let [first, second, third, fourth] = words;
    match family {
        Family::V4 => {
            let address = Ipv4Addr::from(Backend4::address(first).to_ne_bytes());
            let port = u16::from_be(Backend4::port(first));
            let (generation, standing) = (Backend4::generation(first), Standing(second));
            Life { address: SocketAddr::from((address, port)), generation, standing }
        }
        Family::V6 => {
            let address = address_of(Backend6::address(first, second));
            let port = u16::from_be(Backend6::port(third));
            let (generation, standing) = (Backend6::generation(third), Standing(fourth));
            Life { address: SocketAddr::from((address, port)), generation, standing }
        }
    }
}

/// The write that creates a backend.
#[must_use]
pub(crate) fn backend(family: Family, address: SocketAddr, reference: BackendRef, standing: Standing) -> Write {
    Write::Backend { family, index: reference.index(), words: backend_words(address, standing) }
}

#[cfg(test)]
mod tests {
    use proxy_abi::SourceNat;

    use super::*;

    #[test]
    fn a_backend_survives_the_way_through_the_map() {
        for text in ["10.244.1.2:8080", "[fd00::1:2]:53"] {
            let address: SocketAddr = text.parse().unwrap();
            let standing = Standing::new(77, 3, true, false);
            let life = Life { address, generation: 77, standing };
            assert_eq!(backend_parts(Family::of(&address.ip()), backend_words(address, standing)), life);
        }
    }

    #[test]
    fn an_element_is_named_as_people_write_addresses() {
        let port = |number: u16| NonZeroU16::new(number).unwrap();
        let frontend = |ip: &str| FrontendKey::new(ip.parse().unwrap(), port(53), Protocol::Udp);
        assert_eq!(frontend("10.96.0.10").to_string(), "10.96.0.10:53/udp");
        assert_eq!(frontend("fd00:96::a").to_string(), "[fd00:96::a]:53/udp");
        for family in Family::BOTH {
            let key = FrontendKey::node_port(family, port(30080), Protocol::Tcp);
            assert_eq!(key.to_string(), "node port 30080/tcp");
        }
        let source_nat = SourceNat::default();
        let lead = Lead { service: 3, local: false, filtered: false, falls_back: false, source_nat };
        assert_eq!(Write::Frontend { key: frontend("10.96.0.10"), lead }.to_string(), "frontend 10.96.0.10:53/udp");
        let standing = Standing::new(77, 3, true, false);
        for text in ["10.244.1.2:8080", "[fd00::1:2]:53"] {
            let address: SocketAddr = text.parse().unwrap();
            let (family, words) = (Family::of(&address.ip()), backend_words(address, standing));
            let write = Write::Backend { family, index: 5, words };
            assert_eq!(write.to_string(), format!("endpoint {text} (backend 5)"));
        }
        let range = Write::Range { id: 2, prefix: "10.0.0.0/8".parse().unwrap() };
        assert_eq!(range.to_string(), "source range 10.0.0.0/8 (ranges 2)");
    }

    #[test]
    fn a_prefix_survives_the_way_through_the_map() {
        for text in ["10.0.0.0/8", "192.0.2.1/32", "0.0.0.0/1", "fd00::/8", "2001:db8::1/128"] {
            let prefix: IpNet = text.parse().unwrap();
            assert_eq!(range_of(&range_key(7, &prefix)), Some((7, prefix)), "{text}");
        }
    }
}
