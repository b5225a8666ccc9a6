//! The interfaces of a network namespace, as the kernel lists them.

use std::io;

use rtnetlink::packet_core::Parseable as _;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use super::{Netlink, push_attribute};

const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const IFLA_IFNAME: u16 = 3;
const IFLA_EXT_MASK: u16 = 29;
/// `RTEXT_FILTER_SKIP_STATS`: counters are most of what the kernel says of an interface.
const NO_COUNTERS: u32 = 1 << 3;
/// `struct ifinfomsg` of no family.
const ANY: [u8; 16] = [0; 16];

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// Its index, which no other interface has as long as the namespace exists.
    pub(crate) index: u32,
    pub(crate) name: String,
    /// What stands before the IP header of its packets.
    pub(crate) layer: Layer,
    pub(crate) kind: Kind,
    /// The index of the bridge or bond whose port it is.
    pub(crate) controller: Option<u32>,
    /// What it belongs to, such as the other end of a veth, is in another network namespace: what this one calls that.
    pub(crate) elsewhere: Option<i32>,
}

/// What stands before the IP header of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layer {
    /// An Ethernet header.
    Ethernet,
    /// Nothing.
    Ip,
    /// This is a loopback interface.
    Loopback,
    /// Something else.
    Other,
}

/// What an interface is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Hardware, or of a kind that works like it.
    Plain,
    /// One of two ends.
    Veth,
    /// A bridge.
    Bridge,
    /// A bond or a team: its ports only carry what passes it.
    Bundle,
    /// A routing domain: what it receives, its ports have received.
    Vrf,
    /// A tunnel or an overlay.
    Tunnel,
    /// It shares the interface below it, whose programs see nothing of it; the kind by its name.
    Shared(&'static str),
    /// It carries no packets to other hosts or pods.
    Idle,
}

impl Kind {
    /// By the kind's name in the kernel.
    fn of(name: &str) -> Self {
        match name {
            "veth" => Self::Veth,
            "bridge" => Self::Bridge,
            "bond" | "team" => Self::Bundle,
            "vrf" => Self::Vrf,
            "vxlan" | "geneve" | "gre" | "gretap" | "ip6gre" | "ip6gretap" | "ipip" | "ip6tnl" | "sit" | "tun"
            | "wireguard" | "xfrm" | "vti" | "vti6" | "bareudp" => Self::Tunnel,
            "macvlan" => Self::Shared("macvlan"),
            "macvtap" => Self::Shared("macvtap"),
            "ipvlan" => Self::Shared("ipvlan"),
            "ipvtap" => Self::Shared("ipvtap"),
            "netkit" => Self::Shared("netkit"),
            "dummy" | "ifb" | "nlmon" => Self::Idle,
            _ => Self::Plain,
        }
    }
}

impl Layer {
    fn of(layer: LinkLayerType) -> Self {
        const IP: [LinkLayerType; 8] = [
            LinkLayerType::None,
            LinkLayerType::Rawip,
            LinkLayerType::Ppp,
            LinkLayerType::Tunnel,
            LinkLayerType::Tunnel6,
            LinkLayerType::Sit,
            LinkLayerType::Ipgre,
            LinkLayerType::Ip6gre,
        ];
        if layer == LinkLayerType::Ether {
            Self::Ethernet
        } else if layer == LinkLayerType::Loopback {
            Self::Loopback
        } else if IP.contains(&layer) {
            Self::Ip
        } else {
            Self::Other
        }
    }
}

impl Link {
    fn of(message: &LinkMessage) -> Self {
        let mut found = Self {
            index: message.header.index,
            name: String::new(),
            layer: Layer::of(message.header.link_layer_type),
            kind: Kind::of(&kind(message).map(ToString::to_string).unwrap_or_default()),
            controller: None,
            elsewhere: None,
        };
        for attribute in &message.attributes {
            if let LinkAttribute::IfName(name) = attribute {
                found.name.clone_from(name);
            } else if let LinkAttribute::Controller(index) = attribute {
                found.controller = (*index != 0).then_some(*index);
            } else if let LinkAttribute::LinkNetNsId(namespace) = attribute {
                found.elsewhere = Some(*namespace);
            }
        }
        found
    }
}

/// All interfaces in the calling thread's network namespace.
pub(crate) fn list(netlink: &mut Netlink) -> io::Result<Vec<Link>> {
    let mut request = ANY.to_vec();
    push_attribute(&mut request, IFLA_EXT_MASK, &NO_COUNTERS.to_ne_bytes());
    netlink.dump(RTM_GETLINK, &request, |entry| {
        let message = LinkMessage::parse(entry).map_err(io::Error::other)?;
        Ok(Some(Link::of(&message)))
    })
}

/// Whether the calling thread's network namespace has a bridge.
pub(crate) fn has_bridge() -> io::Result<bool> {
    let mut netlink = Netlink::open(NETLINK_ROUTE)?;
    let bridges = netlink.dump(RTM_GETLINK, &ANY, |entry| {
        let message = LinkMessage::parse(entry).map_err(io::Error::other)?;
        Ok((kind(&message) == Some(&InfoKind::Bridge)).then_some(()))
    })?;
    Ok(!bridges.is_empty())
}

fn kind(message: &LinkMessage) -> Option<&InfoKind> {
    let about = message
        .attributes
        .iter()
        .find_map(|attribute| if let LinkAttribute::LinkInfo(about) = attribute { Some(about) } else { None })?;
    about.iter().find_map(|info| if let LinkInfo::Kind(kind) = info { Some(kind) } else { None })
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
