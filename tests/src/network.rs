//! Links, addresses and routes of the lab. All ranges are private, and no namespace has a route out of the lab.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::Context as _;

use crate::host::{ip_batch, ip_batch_v6};
use crate::place::Place;

/// The router's address on its bridge: gateway of the nodes.
pub(crate) const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 1);
pub(crate) const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 1);
/// The client outside of the cluster, beyond the router.
pub(crate) const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(172, 19, 0, 2);
pub(crate) const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x19, 0, 0, 0, 0, 0, 2);
/// Its gateway, which is the router.
const OUTER_V4: Ipv4Addr = Ipv4Addr::new(172, 19, 0, 1);
const OUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x19, 0, 0, 0, 0, 0, 1);
/// The number of a bridged node's own address among those of its pods.
const BRIDGE_NUMBER: u8 = 1;
/// The router's routes for what the client outside sends to no host of the lab. They are asked after the main table.
const BALANCED: &str = "100";
/// A pod's gateway is the same on every node, as with routed pod networks (Calico, GKE).
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Address of node `number` (from 1) in both families.
pub(crate) fn node_addresses(number: u8) -> (Ipv4Addr, Ipv6Addr) {
    let last = number.saturating_add(10);
    (Ipv4Addr::new(172, 18, 0, last), Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, u16::from(last)))
}

/// Address of pod `pod` of node `node` in both families.
pub(crate) fn pod_addresses(node: u8, pod: u8) -> (Ipv4Addr, Ipv6Addr) {
    let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, u16::from(node), 0, 0, 0, u16::from(pod));
    (Ipv4Addr::new(10, 244, node, pod), v6)
}

/// The pod ranges of node `number`.
pub(crate) fn pod_cidrs(number: u8) -> [String; 2] {
    let (v4, v6) = pod_addresses(number, 0);
    [format!("{v4}/24"), format!("{v6}/64")]
}

/// Makes the router namespace with its bridge.
pub(crate) fn make_router(router: &Place) -> anyhow::Result<()> {
    make_namespace(router, NamespaceRole::Router)?;
    ip_batch(
        Some(router.netns()),
        &format!(
            "link set lo up\n\
             link add br0 type bridge\n\
             link set br0 up\n\
             addr add {ROUTER_V4}/24 dev br0\n\
             addr add {ROUTER_V6}/64 dev br0 nodad\n"
        ),
    )
}

/// Joins the client outside to the router by a link of its own.
pub(crate) fn join_outside(router: &Place, outside: &Place) -> anyhow::Result<()> {
    make_namespace(outside, NamespaceRole::Host)?;
    let netns = outside.netns();
    ip_batch(
        Some(router.netns()),
        &format!(
            "link add outer type veth peer name eth0 netns {netns}\n\
             link set outer up\n\
             addr add {OUTER_V4}/24 dev outer\n\
             addr add {OUTER_V6}/64 dev outer nodad\n"
        ),
    )?;
    let rule = format!("rule add priority 40000 iif outer lookup {BALANCED}\n");
    ip_batch(Some(router.netns()), &rule)?;
    ip_batch_v6(router.netns(), &rule)?;
    ip_batch(
        Some(netns),
        &format!(
            "link set lo up\n\
             link set eth0 up\n\
             addr add {OUTSIDE_V4}/24 dev eth0\n\
             addr add {OUTSIDE_V6}/64 dev eth0 nodad\n\
             route add default via {OUTER_V4}\n\
             route add default via {OUTER_V6}\n"
        ),
    )
}

/// Sends to this node what the client outside sends to no host of the lab.
pub(crate) fn balance_to(router: &Place, v4: Ipv4Addr, v6: Ipv6Addr) -> anyhow::Result<()> {
    ip_batch(
        Some(router.netns()),
        &format!(
            "route replace default via {v4} table {BALANCED}\n\
             route replace default via {v6} table {BALANCED}\n"
        ),
    )
}

/// Gives a place one more address on its only link, or takes it away.
pub(crate) fn change_address(place: &Place, address: IpAddr, change: AddressChange) -> anyhow::Result<()> {
    let (verb, flags) = match change {
        AddressChange::Add => ("replace", " nodad"),
        AddressChange::Remove => ("del", ""),
    };
    let (length, flags) = if address.is_ipv4() { (32, "") } else { (128, flags) };
    ip_batch(Some(place.netns()), &format!("addr {verb} {address}/{length} dev eth0{flags}\n"))
}

/// What happens to an address of a place.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AddressChange {
    /// It is added.
    Add,
    /// It goes.
    Remove,
}

/// Joins node `number` to the bridge, with routes on the router to its pods, and a default route to all other
/// addresses.
pub(crate) fn join_node(router: &Place, node: &Place, number: u8) -> anyhow::Result<()> {
    make_namespace(node, NamespaceRole::Router)?;
    let (v4, v6) = node_addresses(number);
    let [pods_v4, pods_v6] = pod_cidrs(number);
    let netns = node.netns();
    ip_batch(
        Some(router.netns()),
        &format!(
            "link add n{number} type veth peer name eth0 netns {netns}\n\
             link set n{number} master br0 up\n\
             route add {pods_v4} via {v4}\n\
             route add {pods_v6} via {v6}\n"
        ),
    )?;
    ip_batch(
        Some(netns),
        &format!(
            "link set lo up\n\
             link set eth0 up\n\
             addr add {v4}/24 dev eth0\n\
             addr add {v6}/64 dev eth0 nodad\n\
             route add default via {ROUTER_V4}\n\
             route add default via {ROUTER_V6}\n"
        ),
    )
}

/// How the pods of a node are joined to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PodNetwork {
    /// A link and a route for each pod, as with Calico: the node routes whatever pods send to each other.
    Routed,
    /// All on one bridge, as with the bridge plugin of CNI: pods of the node reach each other past its routing.
    Bridged,
}

/// The bridge of a bridged node.
const POD_BRIDGE: &str = "cni0";

/// Makes the bridge that joins the pods of node `number`. Its packets do not pass netfilter unless that is turned on,
/// as on a node where no program has done it.
pub(crate) fn make_pod_bridge(node: &Place, number: u8) -> anyhow::Result<()> {
    let (v4, v6) = pod_addresses(number, BRIDGE_NUMBER);
    ip_batch(
        Some(node.netns()),
        &format!(
            "link add {POD_BRIDGE} type bridge\n\
             link set {POD_BRIDGE} up\n\
             addr add {v4}/24 dev {POD_BRIDGE}\n\
             addr add {v6}/64 dev {POD_BRIDGE} nodad\n"
        ),
    )?;
    node.in_netns(|| {
        for setting in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
            let path = Path::new("/proc/sys/net/bridge").join(setting);
            fs::write(&path, "0").with_context(|| format!("writing {}: is br_netfilter loaded?", path.display()))?;
        }
        Ok(())
    })
}

/// Joins pod `number` to node `node_number`.
pub(crate) fn join_pod(
    node: &Place,
    node_number: u8,
    network: PodNetwork,
    pod: &Place,
    number: u8,
) -> anyhow::Result<()> {
    make_namespace(pod, NamespaceRole::Host)?;
    match network {
        PodNetwork::Routed => route_pod(node, node_number, pod, number),
        PodNetwork::Bridged => bridge_pod(node, node_number, pod, number),
    }
}

/// A port of the node's bridge, whose address is the gateway.
fn bridge_pod(node: &Place, node_number: u8, pod: &Place, number: u8) -> anyhow::Result<()> {
    let netns = pod.netns();
    let (gateway_v4, gateway_v6) = pod_addresses(node_number, BRIDGE_NUMBER);
    let (v4, v6) = pod_addresses(node_number, number);
    ip_batch(
        Some(node.netns()),
        &format!(
            "link add pod{number} type veth peer name eth0 netns {netns}\n\
             link set pod{number} master {POD_BRIDGE} up\n"
        ),
    )?;
    ip_batch(
        Some(netns),
        &format!(
            "link set lo up\n\
             link set eth0 up\n\
             addr add {v4}/24 dev eth0\n\
             addr add {v6}/64 dev eth0 nodad\n\
             route add default via {gateway_v4}\n\
             route add default via {gateway_v6}\n"
        ),
    )
}

/// A veth, host routes on the node, one gateway for everything in the pod.
fn route_pod(node: &Place, node_number: u8, pod: &Place, number: u8) -> anyhow::Result<()> {
    let netns = pod.netns();
    let (node_v4, node_v6) = node_addresses(node_number);
    let (v4, v6) = pod_addresses(node_number, number);
    // `src`: without it the node would dial its pods from the gateway address, which other nodes share.
    ip_batch(
        Some(node.netns()),
        &format!(
            "link add pod{number} type veth peer name eth0 netns {netns}\n\
             link set pod{number} up\n\
             addr add {GATEWAY_V4}/32 dev pod{number} scope link\n\
             addr add {GATEWAY_V6}/64 dev pod{number} nodad\n\
             route add {v4}/32 dev pod{number} src {node_v4}\n\
             route add {v6}/128 dev pod{number} src {node_v6}\n"
        ),
    )?;
    ip_batch(
        Some(netns),
        &format!(
            "link set lo up\n\
             link set eth0 up\n\
             addr add {v4}/32 dev eth0\n\
             addr add {v6}/128 dev eth0 nodad\n\
             route add {GATEWAY_V4}/32 dev eth0 scope link\n\
             route add default via {GATEWAY_V4} dev eth0 src {v4}\n\
             route add default via {GATEWAY_V6} dev eth0 src {v6}\n"
        ),
    )
}

/// Whether a namespace forwards packets of other hosts.
#[derive(Clone, Copy)]
enum NamespaceRole {
    Router,
    Host,
}

fn make_namespace(place: &Place, role: NamespaceRole) -> anyhow::Result<()> {
    ip_batch(None, &format!("netns add {}\n", place.netns()))?;
    let forward = match role {
        NamespaceRole::Router => "1",
        NamespaceRole::Host => "0",
    };
    // In this order: turning forwarding on resets what is per device.
    let settings = [
        ("ipv4/ip_forward", forward),
        ("ipv6/conf/all/forwarding", forward),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        // Nodes on one bridge use the router on purpose; it must not send redirects, which would show a shorter way.
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        // Link-local addresses are usable at once: no two hosts of a lab have the same one on one link.
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/dad_transmits", "0"),
        // A test sees every refusal, however many there are.
        ("ipv4/icmp_ratelimit", "0"),
        ("ipv6/icmp/ratelimit", "0"),
    ];
    // Kernel: 6.12; before it the limits of the first namespace hold for all, and cannot be seen here.
    let newer_settings = [("ipv4/icmp_msgs_per_sec", "1000000"), ("ipv4/icmp_msgs_burst", "1000000")];
    place.in_netns(move || {
        for (setting, value) in settings {
            fs::write(format!("/proc/sys/net/{setting}"), value).with_context(|| format!("setting {setting}"))?;
        }
        for (setting, value) in newer_settings {
            let path = Path::new("/proc/sys/net").join(setting);
            if path.exists() {
                fs::write(path, value).with_context(|| format!("setting {setting}"))?;
            }
        }
        Ok(())
    })
}
