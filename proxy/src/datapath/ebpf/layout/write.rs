//! One write to the tables, and the keys of frontends in both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;

use proxy_abi::{Backend4, Backend6, BackendRef, Extent, FrontendKey4, FrontendKey6, FrontendValue, Shape, Slot};
use shunt_model::{Family, Protocol};

/// A store that programs see at once. A list of them is safe to stop after any element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// A backend comes alive; `words` are those of [`Backend6`] or, in the first two, of [`Backend4`].
    Backend {
        /// Which array.
        family: Family,
        /// Which element.
        index: u32,
        /// The value.
        words: [u64; 4],
    },
    /// A backend dies: its references fail from now on.
    BackendGone {
        /// Which array.
        family: Family,
        /// Which element.
        index: u32,
    },
    /// A choice of a service.
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
    /// A frontend leads to a service.
    Frontend {
        /// What clients dial.
        key: FrontendKey,
        /// Which service.
        service: u32,
    },
    /// A frontend is ours no longer.
    FrontendGone {
        /// What clients dialled.
        key: FrontendKey,
    },
}

/// Key of a frontend map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrontendKey {
    /// In `FRONTENDS4`.
    V4(FrontendKey4),
    /// In `FRONTENDS6`.
    V6(FrontendKey6),
}

impl FrontendKey {
    /// The key of what clients dial.
    #[must_use]
    pub fn new(address: IpAddr, port: NonZeroU16, protocol: Protocol) -> Self {
        let (port, protocol) = (port.get().to_be(), protocol.number());
        match address {
            IpAddr::V4(four) => Self::V4(FrontendKey4 { address: address4(four), port, protocol, scope: 0 }),
            IpAddr::V6(six) => Self::V6(FrontendKey6 { address: address6(six), port, protocol, scope: 0 }),
        }
    }

    /// Which of the two maps it belongs to.
    #[must_use]
    pub fn family(&self) -> Family {
        match self {
            Self::V4(_) => Family::V4,
            Self::V6(_) => Family::V6,
        }
    }

    /// The value that sends this key to `service`.
    #[must_use]
    pub fn value(&self, service: u32) -> FrontendValue {
        match self {
            Self::V4(key) => FrontendValue::new(key.fingerprint(), service),
            Self::V6(key) => FrontendValue::new(key.fingerprint(), service),
        }
    }
}

fn address4(address: Ipv4Addr) -> proxy_abi::Address4 {
    u32::from_ne_bytes(address.octets())
}

fn address6(address: Ipv6Addr) -> proxy_abi::Address6 {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address.octets();
    [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]].map(u32::from_ne_bytes)
}

/// The value of a living backend.
#[must_use]
pub fn backend_words(address: SocketAddr, reference: BackendRef) -> [u64; 4] {
    let port = address.port().to_be();
    match address.ip() {
        IpAddr::V4(four) => {
            let [first, second] = Backend4::new(address4(four), port, reference.generation()).words;
            [first, second, 0, 0]
        }
        IpAddr::V6(six) => Backend6::new(address6(six), port, reference.generation()).words,
    }
}

/// What `words` say: the endpoint and its generation, 0 if it is dead, and the last generation used.
#[must_use]
pub fn backend_parts(family: Family, words: [u64; 4]) -> (SocketAddr, u16, u16) {
    let [first, second, third, fourth] = words;
    let last = |word: u64| u16::try_from(word).unwrap_or(0);
    match family {
        Family::V4 => {
            let address = Ipv4Addr::from(Backend4::address(first).to_ne_bytes());
            let port = u16::from_be(Backend4::port(first));
            (SocketAddr::from((address, port)), Backend4::generation(first), last(second))
        }
        Family::V6 => {
            let mut octets = [0; 16];
            for (place, word) in octets.chunks_exact_mut(4).zip(Backend6::address(first, second)) {
                place.copy_from_slice(&word.to_ne_bytes());
            }
            let port = u16::from_be(Backend6::port(third));
            (SocketAddr::from((Ipv6Addr::from(octets), port)), Backend6::generation(third), last(fourth))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_survives_the_way_through_the_map() {
        for text in ["10.244.1.2:8080", "[fd00::1:2]:53"] {
            let address: SocketAddr = text.parse().unwrap();
            let words = backend_words(address, BackendRef::new(9, 77));
            assert_eq!(backend_parts(Family::of(&address.ip()), words), (address, 77, 77));
        }
    }
}
