//! The interfaces of a network namespace, as the kernel lists them.

use std::io;

use rtnetlink::packet_core::Parseable as _;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use super::{Netlink, push_attribute};

const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const IFLA_IFNAME: u16 = 3;
/// `struct ifinfomsg` of no family.
const ANY: [u8; 16] = [0; 16];

/// Whether the calling thread's network namespace has a bridge.
pub(crate) fn has_bridge() -> io::Result<bool> {
    let mut netlink = Netlink::open(NETLINK_ROUTE)?;
    let bridges = netlink.dump(RTM_GETLINK, &ANY, |entry| {
        let message = LinkMessage::parse(entry).map_err(io::Error::other)?;
        Ok(is_bridge(&message).then_some(()))
    })?;
    Ok(!bridges.is_empty())
}

fn is_bridge(message: &LinkMessage) -> bool {
    let bridge = LinkInfo::Kind(InfoKind::Bridge);
    let is_bridge = |attribute: &LinkAttribute| {
        if let LinkAttribute::LinkInfo(about) = attribute { about.contains(&bridge) } else { false }
    };
    message.attributes.iter().any(is_bridge)
}

/// Removes an interface. False if there is none of this name.
pub(crate) fn remove(name: &str) -> io::Result<bool> {
    let mut request = ANY.to_vec();
    push_attribute(&mut request, IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
    match Netlink::open(NETLINK_ROUTE)?.order(RTM_DELLINK, &request) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        Err(error) => Err(error),
    }
}
