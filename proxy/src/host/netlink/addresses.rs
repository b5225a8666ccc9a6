//! The addresses of interfaces, as the kernel lists them.

use std::io;
use std::net::IpAddr;

use rtnetlink::packet_core::Parseable as _;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use super::Netlink;

const RTM_GETADDR: u16 = 22;
/// An address message of no family: addresses of both are listed.
const ANY: [u8; 8] = [0; 8];

/// One address of one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InterfaceAddress {
    /// IPv4-mapped addresses are given as IPv4.
    pub(crate) address: IpAddr,
    /// The interface's index.
    pub(crate) interface: u32,
    /// Not the first choice of its interface: a further IPv4 address of the same subnet, or a temporary IPv6 address.
    pub(crate) secondary: bool,
    /// Duplicate address detection has not ended, or has found another holder: it cannot be used.
    pub(crate) tentative: bool,
    /// How many bits all addresses of its subnet share.
    pub(crate) prefix: u8,
    /// It is not to be the source of anything new.
    pub(crate) deprecated: bool,
}

impl InterfaceAddress {
    /// Reads a message, if it has an address.
    pub(crate) fn of(message: &AddressMessage) -> Option<Self> {
        let flags = message.header.flags;
        Some(Self {
            address: local_address(message)?.to_canonical(),
            interface: message.header.index,
            secondary: flags.contains(AddressHeaderFlags::Secondary),
            tentative: flags.intersects(AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed),
            prefix: message.header.prefix_len,
            deprecated: flags.contains(AddressHeaderFlags::Deprecated),
        })
    }
}

/// IFA_LOCAL where there is one: on point-to-point interfaces IFA_ADDRESS is the other end.
pub(crate) fn local_address(message: &AddressMessage) -> Option<IpAddr> {
    let attributes = || message.attributes.iter();
    let local = attributes().find_map(|a| if let AddressAttribute::Local(ip) = a { Some(*ip) } else { None });
    local.or_else(|| attributes().find_map(|a| if let AddressAttribute::Address(ip) = a { Some(*ip) } else { None }))
}

/// All addresses in the calling thread's network namespace, in the kernel's order.
pub(crate) fn list() -> io::Result<Vec<InterfaceAddress>> {
    list_by(&mut Netlink::open(NETLINK_ROUTE)?)
}

/// The same by an open socket, in its network namespace.
pub(crate) fn list_by(netlink: &mut Netlink) -> io::Result<Vec<InterfaceAddress>> {
    netlink.dump(RTM_GETADDR, &ANY, |entry| {
        Ok(InterfaceAddress::of(&AddressMessage::parse(entry).map_err(io::Error::other)?))
    })
}

/// The addresses at which others may reach a namespace: interface by interface in the kernel's order, secondary ones
/// after all others.
pub(crate) fn reachable(mut found: Vec<InterfaceAddress>) -> Vec<IpAddr> {
    found.retain(|assigned| is_reachable(assigned.address));
    found.sort_by_key(|assigned| (assigned.secondary, assigned.interface));
    found.into_iter().map(|assigned| assigned.address).collect()
}

/// Whether others may reach a namespace at an address of this kind.
pub(crate) fn is_reachable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    }
}
