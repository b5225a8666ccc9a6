//! The interfaces by which packets leave that no more specific route leads elsewhere.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_core::Parseable as _;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use shunt_model::Family;

use super::{Netlink, push_attribute};

const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
/// `RTM_F_FIB_MATCH`: the route itself with all its next hops, and not the choice for one packet. Kernel: 4.13.
const THE_ROUTE: u32 = 0x2000;

/// Addresses that are reserved for documentation: only a default route leads to them.
const FAR: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1))];

/// The interfaces of the default route of a family; none without such a route. The whole table is not read, which may
/// have a million routes.
pub(crate) fn default_interfaces(netlink: &mut Netlink, family: Family) -> io::Result<BTreeSet<u32>> {
    let [v4, v6] = FAR;
    let found = match family {
        Family::V4 => netlink.get(RTM_GETROUTE, &question(v4), interfaces),
        Family::V6 => netlink.get(RTM_GETROUTE, &question(v6), interfaces),
    };
    const NONE: [i32; 4] = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL];
    match found {
        Ok(found) => Ok(found.unwrap_or_default()),
        // No route, or one that refuses: unreachable, prohibit or blackhole.
        Err(error) if error.raw_os_error().is_some_and(|code| NONE.contains(&code)) => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

/// `struct rtmsg` with the destination.
fn question(to: IpAddr) -> Vec<u8> {
    let (family, length, octets) = match to {
        IpAddr::V4(ip) => (libc::AF_INET, 32, ip.octets().to_vec()),
        IpAddr::V6(ip) => (libc::AF_INET6, 128, ip.octets().to_vec()),
    };
    let mut request = vec![u8::try_from(family).unwrap_or_default(), length, 0, 0, 0, 0, 0, 0];
    request.extend(THE_ROUTE.to_ne_bytes());
    push_attribute(&mut request, RTA_DST, &octets);
    request
}

fn interfaces(answer: &[u8]) -> io::Result<BTreeSet<u32>> {
    let route = RouteMessage::parse(answer).map_err(io::Error::other)?;
    let mut found = BTreeSet::new();
    for attribute in &route.attributes {
        if let RouteAttribute::Oif(index) = attribute {
            found.insert(*index);
        } else if let RouteAttribute::MultiPath(hops) = attribute {
            found.extend(hops.iter().map(|hop| hop.interface_index));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use rtnetlink::sys::protocols::NETLINK_ROUTE;

    use super::*;
    use crate::host::addresses::tests::{in_a_namespace, ip};
    use crate::host::netlink::links;

    #[test]
    fn the_interfaces_of_default_routes_are_found_with_all_their_next_hops() {
        in_a_namespace("the_interfaces_of_default_routes_are_found_with_all_their_next_hops", async {
            ip(&["link add one type veth peer name two", "link set one up", "link set two up", "link set lo up"]);
            ip(&["address add 10.0.1.1/24 dev one", "address add 10.0.2.1/24 dev two"]);
            ip(&["address add fd00:1::1/64 dev one nodad", "address add fd00:2::1/64 dev two nodad"]);
            let mut netlink = Netlink::open(NETLINK_ROUTE).unwrap();
            let names = |netlink: &mut Netlink, family| {
                let found = default_interfaces(netlink, family).unwrap();
                let links = links::list(netlink).unwrap();
                let names = links.into_iter().filter(|link| found.contains(&link.index)).map(|link| link.name);
                names.collect::<Vec<_>>().join(" ")
            };
            let mut check = |wanted: [&str; 2]| {
                assert_eq!([Family::V4, Family::V6].map(|family| names(&mut netlink, family)), wanted);
            };
            check(["", ""]);
            ip(&["route add default via 10.0.1.2", "route add default via fd00:2::2"]);
            check(["one", "two"]);
            ip(&["route add unreachable 198.51.100.0/24", "route del default via fd00:2::2"]);
            ip(&["route add default nexthop via fd00:1::2 dev one nexthop via fd00:2::2 dev two"]);
            check(["", "two one"]);
        });
    }
}
