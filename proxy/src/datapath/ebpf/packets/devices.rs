//! Which network devices have packet programs, and what the programs must know of each.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proxy_abi::Device;
use shunt_model::Family;

use super::super::PacketOptions;
use super::super::layout::write::address as words;
use crate::host::devices::Devices;
use crate::host::netlink::addresses::{InterfaceAddress, is_reachable};
use crate::host::netlink::links::{Kind, Layer, Link};
use crate::plan::PodInterface;

/// What is there, as the kernel lists it.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub(super) links: Vec<Link>,
    pub(super) addresses: Vec<InterfaceAddress>,
    /// The devices of the default route, of IPv4 and of IPv6.
    pub(super) defaults: [BTreeSet<u32>; 2],
    /// The devices that have virtual functions, which pods may have.
    pub(super) divided: BTreeSet<u32>,
}

/// A device that gets programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) name: String,
    /// Its packets begin with an Ethernet header.
    pub(super) ethernet: bool,
    pub(super) device: Device,
}

/// What a look finds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Selection {
    /// By index.
    pub(super) wanted: BTreeMap<u32, Wanted>,
    /// What is not served, in sentences.
    pub(super) unserved: BTreeSet<String>,
}

/// What a device is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// The end of a pod's.
    Pods,
    /// By it this node reaches others.
    Uplink,
}

/// Chooses the devices, by what they are but for what the operator names.
pub(super) fn select(found: &Found, options: &PacketOptions) -> Selection {
    let PacketOptions { interface, devices, timeouts: _ } = options;
    let mut selection = Selection::default();
    let roles: Vec<(&Link, Role)> = found
        .links
        .iter()
        .filter_map(|link| Some((link, found.role(link, devices, &mut selection.unserved)?)))
        .collect();
    let [node4, node6] = [Family::V4, Family::V6].map(|family| found.of_node(&roles, family));
    for &(link, role) in &roles {
        let pods = interface.as_ref().map_or(role == Role::Pods, |interface| found.is_named(link, interface));
        let owner = found.owner(link);
        let source = |family, of_node: Option<IpAddr>| found.preferred(owner, family).or(of_node).map(words);
        let [_, _, _, address4] = source(Family::V4, node4).unwrap_or_default();
        let address6 = source(Family::V6, node6).unwrap_or_default();
        let pod = link.elsewhere.filter(|_| role == Role::Pods).and_then(|namespace| u32::try_from(namespace).ok());
        let flags = if pods { Device::PODS } else { 0 };
        let device = Device { flags, address4, address6, pod: pod.map_or(0, |namespace| namespace.saturating_add(1)) };
        let ethernet = link.layer == Layer::Ethernet;
        selection.wanted.insert(link.index, Wanted { name: link.name.clone(), ethernet, device });
    }
    selection
}

impl Found {
    fn role(&self, link: &Link, devices: &Devices, unserved: &mut BTreeSet<String>) -> Option<Role> {
        let name = &link.name;
        if self.divided.contains(&link.index) {
            unserved.insert(format!("{name} has virtual functions (SR-IOV): pods that have one send past this node"));
        }
        match link.kind {
            Kind::Shared(kind) => {
                unserved.insert(format!("{name} is of kind {kind}: what pods send by it is not seen here"));
                return None;
            }
            // The ports of a routing domain have the packets, and a bridge's too if pods are among them.
            Kind::Vrf | Kind::Idle => return None,
            Kind::Bridge if self.has_pods(link) => return None,
            Kind::Plain | Kind::Veth | Kind::Bridge | Kind::Bundle | Kind::Tunnel => {}
        }
        let above = link.controller.and_then(|index| self.links.iter().find(|link| link.index == index));
        // A bundle sends what its ports carry, and a bridge without pods what its ports do.
        let is_used = match above.map(|above| above.kind) {
            Some(Kind::Bundle) => return None,
            Some(Kind::Bridge) => above.is_some_and(|bridge| self.has_pods(bridge)),
            Some(Kind::Plain | Kind::Veth | Kind::Vrf | Kind::Tunnel | Kind::Shared(_) | Kind::Idle) | None => {
                self.is_uplink(link)
            }
        };
        let role = match (devices.name(name), self.is_end_of_pod(link)) {
            (Some(true), _) => Role::Uplink,
            (Some(false) | None, true) => Role::Pods,
            (None, false) if is_used => Role::Uplink,
            (Some(false) | None, false) => return None,
        };
        match link.layer {
            Layer::Ethernet | Layer::Ip => Some(role),
            Layer::Loopback => None,
            Layer::Other => {
                unserved.insert(format!("{name} has neither an Ethernet header nor bare IP packets"));
                None
            }
        }
    }

    /// The other end is in a network namespace of its own, and this node reaches no other host by it: an address of a
    /// whole subnet or a default route says so. Some network plug-ins put the gateway's address alone on each.
    fn is_end_of_pod(&self, link: &Link) -> bool {
        let of_subnet = |assigned: &InterfaceAddress| {
            let alone = if assigned.address.is_ipv4() { 32 } else { 128 };
            assigned.interface == link.index && is_reachable(assigned.address) && assigned.prefix != alone
        };
        link.kind == Kind::Veth
            && link.elsewhere.is_some()
            && !self.leads_out(link)
            && !self.addresses.iter().any(of_subnet)
    }

    fn has_pods(&self, bridge: &Link) -> bool {
        self.links.iter().any(|link| link.controller == Some(bridge.index) && self.is_end_of_pod(link))
    }

    /// The device that has the addresses: a port of a bridge has none of its own.
    fn owner(&self, link: &Link) -> u32 {
        let bridge = self.links.iter().find(|above| link.controller == Some(above.index) && above.kind == Kind::Bridge);
        bridge.map_or(link.index, |bridge| bridge.index)
    }

    fn leads_out(&self, link: &Link) -> bool {
        self.defaults.iter().any(|devices| devices.contains(&link.index))
    }

    /// A tunnel leads to other nodes also without an address.
    fn is_uplink(&self, link: &Link) -> bool {
        let is_its = |assigned: &InterfaceAddress| assigned.interface == link.index && is_reachable(assigned.address);
        self.leads_out(link) || link.kind == Kind::Tunnel || self.addresses.iter().any(is_its)
    }

    fn is_named(&self, link: &Link, interface: &PodInterface) -> bool {
        match interface {
            PodInterface::Named(name) => self.links.iter().any(|named| {
                *named.name == **name && (named.index == link.index || link.controller == Some(named.index))
            }),
            PodInterface::Prefixed(prefix) => link.name.starts_with(&**prefix),
        }
    }

    /// The address that the kernel prefers as the source of what leaves by a device.
    fn preferred(&self, index: u32, family: Family) -> Option<IpAddr> {
        let usable = self.addresses.iter().filter(|assigned| {
            assigned.interface == index
                && Family::of(&assigned.address) == family
                && is_reachable(assigned.address)
                && !assigned.tentative
        });
        usable.min_by_key(|assigned| (assigned.deprecated, assigned.secondary)).map(|assigned| assigned.address)
    }

    /// The address that stands for clients where the device has none: of a device that leads out, else of another, else
    /// one of loopback, as on nodes whose uplinks have no addresses.
    fn of_node(&self, roles: &[(&Link, Role)], family: Family) -> Option<IpAddr> {
        let of = |index: u32| self.preferred(index, family);
        let uplinks = || roles.iter().filter(|(_, role)| *role == Role::Uplink).map(|(link, _)| *link);
        let owner = |link: &Link| self.owner(link);
        let lo = self.links.iter().filter(|link| link.layer == Layer::Loopback).map(|link| link.index);
        let defaults = self.defaults.iter().flatten().copied();
        let not_tunnels = uplinks().filter(|link| link.kind != Kind::Tunnel).map(owner);
        defaults.chain(not_tunnels).chain(lo).chain(uplinks().map(owner)).find_map(of)
    }
}
