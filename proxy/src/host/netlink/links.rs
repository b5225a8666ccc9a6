//! The interfaces of a network namespace, as the kernel lists them.

use std::io;

use rtnetlink::packet_core::Parseable as _;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use super::Netlink;

const RTM_GETLINK: u16 = 18;
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
    message.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(about) => about.contains(&LinkInfo::Kind(InfoKind::Bridge)),
        _ => false,
    })
}
