//! The named maps and sets of our tables: what a packet is looked up in.

use std::net::IpAddr;

use ipnet::IpNet;
use shunt_model::{Family, Protocol};

use crate::plan::List;

/// A map or a set that every table of ours has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Collection {
    /// What is dialled at an address, and the chain that serves it.
    Frontends,
    /// What is dialled at the addresses of this node, and the chain that serves it.
    NodePorts,
    /// The endpoints of one list for one protocol, by what is dialled and their index.
    Endpoints(At, List, Protocol),
    /// What is dialled and has no endpoint for some source.
    Unserved,
    /// The same at the addresses of this node.
    UnservedNodePorts,
    /// What only some sources may dial.
    Filtered,
    /// What is filtered, with the sources that may dial it.
    Allowed,
    /// The addresses that refuse what no Service defines.
    ClusterIps,
    /// The other addresses that the plan knows.
    OtherAddresses,
    /// The addresses of this node that accept node ports.
    NodeAddresses,
    /// The sources that are pods of this node.
    PodNetworks,
    /// The ranges whose unused addresses get no answer.
    ServiceCidrs,
    /// Pairs of equal addresses: endpoints that may dial themselves.
    Hairpins,
}

/// By what a frontend is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum At {
    /// An address.
    Address,
    /// A port of this node.
    NodePort,
}

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

impl Collection {
    /// All of them.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let lists = [At::Address, At::NodePort]
            .into_iter()
            .flat_map(|at| [List::Cluster, List::Local].into_iter().map(move |list| (at, list)));
        let endpoints = lists.flat_map(|(at, list)| PROTOCOLS.map(|protocol| Self::Endpoints(at, list, protocol)));
        let others = [
            Self::Frontends,
            Self::NodePorts,
            Self::Unserved,
            Self::UnservedNodePorts,
            Self::Filtered,
            Self::Allowed,
            Self::ClusterIps,
            Self::OtherAddresses,
            Self::NodeAddresses,
            Self::PodNetworks,
            Self::ServiceCidrs,
            Self::Hairpins,
        ];
        others.into_iter().chain(endpoints)
    }

    /// Its name in the table.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Frontends => "frontends",
            Self::NodePorts => "node-ports",
            Self::Endpoints(At::Address, List::Cluster, Protocol::Tcp) => "cluster-endpoints-tcp",
            Self::Endpoints(At::Address, List::Cluster, Protocol::Udp) => "cluster-endpoints-udp",
            Self::Endpoints(At::Address, List::Cluster, Protocol::Sctp) => "cluster-endpoints-sctp",
            Self::Endpoints(At::Address, List::Local, Protocol::Tcp) => "local-endpoints-tcp",
            Self::Endpoints(At::Address, List::Local, Protocol::Udp) => "local-endpoints-udp",
            Self::Endpoints(At::Address, List::Local, Protocol::Sctp) => "local-endpoints-sctp",
            Self::Endpoints(At::NodePort, List::Cluster, Protocol::Tcp) => "node-port-cluster-endpoints-tcp",
            Self::Endpoints(At::NodePort, List::Cluster, Protocol::Udp) => "node-port-cluster-endpoints-udp",
            Self::Endpoints(At::NodePort, List::Cluster, Protocol::Sctp) => "node-port-cluster-endpoints-sctp",
            Self::Endpoints(At::NodePort, List::Local, Protocol::Tcp) => "node-port-local-endpoints-tcp",
            Self::Endpoints(At::NodePort, List::Local, Protocol::Udp) => "node-port-local-endpoints-udp",
            Self::Endpoints(At::NodePort, List::Local, Protocol::Sctp) => "node-port-local-endpoints-sctp",
            Self::Unserved => "unserved",
            Self::UnservedNodePorts => "unserved-node-ports",
            Self::Filtered => "filtered",
            Self::Allowed => "allowed",
            Self::ClusterIps => "cluster-ips",
            Self::OtherAddresses => "other-addresses",
            Self::NodeAddresses => "node-addresses",
            Self::PodNetworks => "pod-networks",
            Self::ServiceCidrs => "service-cidrs",
            Self::Hairpins => "hairpins",
        }
    }

    /// The one of this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::all().find(|collection| collection.name() == name)
    }

    /// Whether its elements lead to something.
    pub(super) const fn is_map(self) -> bool {
        match self {
            Self::Frontends | Self::NodePorts | Self::Endpoints(..) | Self::Unserved | Self::UnservedNodePorts => true,
            Self::Filtered
            | Self::Allowed
            | Self::ClusterIps
            | Self::OtherAddresses
            | Self::NodeAddresses
            | Self::PodNetworks
            | Self::ServiceCidrs
            | Self::Hairpins => false,
        }
    }

    /// `map` or `set`.
    pub(super) const fn kind(self) -> &'static str {
        if self.is_map() { "map" } else { "set" }
    }

    /// What stands between the braces of its declaration. It has no size: the kernel lets it grow.
    pub(super) fn declaration(self, family: Family) -> String {
        let (ip, address) = (word(family), address_type(family));
        match self {
            Self::Frontends | Self::Unserved => format!("type {address} . inet_proto . inet_service : verdict;"),
            Self::NodePorts | Self::UnservedNodePorts => "type inet_proto . inet_service : verdict;".to_owned(),
            // A random number has no type of its own that could be named, so these maps are declared by expressions.
            // nft 1.0.6 takes the port in what they lead to for a match of its protocol, in the first rule of a
            // transaction that uses the map: hence a map for each protocol. Declared by `th dport`, it could not be
            // used in a later transaction at all.
            Self::Endpoints(at, _, protocol) => {
                let dialled = port_of(family, at, protocol);
                format!("typeof {dialled} . numgen random mod 65536 : {ip} daddr . {protocol} dport;")
            }
            Self::Filtered => format!("type {address} . inet_proto . inet_service;"),
            Self::Allowed => format!("type {address} . inet_proto . inet_service . {address}; flags interval;"),
            Self::ClusterIps | Self::OtherAddresses | Self::NodeAddresses => format!("type {address};"),
            Self::PodNetworks | Self::ServiceCidrs => format!("type {address}; flags interval;"),
            Self::Hairpins => format!("type {address} . {address};"),
        }
    }
}

/// What a packet of a protocol dials, in the words of nft.
pub(super) fn port_of(family: Family, at: At, protocol: Protocol) -> String {
    match at {
        At::Address => format!("{} daddr . {protocol} dport", word(family)),
        At::NodePort => format!("{protocol} dport"),
    }
}

/// The protocol and the port that a packet dials, in the words of nft.
pub(super) const PORT: &str = "meta l4proto . th dport";

/// nft's word for a family, and for its addresses in packets.
pub(super) const fn word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// nft's type of the addresses of a family.
pub(super) const fn address_type(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    }
}

/// What a client dials: an address, or a port of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Dialled {
    pub(super) address: Option<IpAddr>,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
}

impl Dialled {
    /// Its key: `10.96.0.1 . tcp . 80`, or `tcp . 30080`.
    pub(super) fn key(self) -> String {
        let Self { address, protocol, port } = self;
        match address {
            Some(address) => format!("{address} . {protocol} . {port}"),
            None => format!("{protocol} . {port}"),
        }
    }

    /// The key of its endpoint with this index, in a map for its protocol.
    pub(super) fn endpoint_key(self, index: usize) -> String {
        let Self { address, protocol: _, port } = self;
        match address {
            Some(address) => format!("{address} . {port} . {index}"),
            None => format!("{port} . {index}"),
        }
    }
}

/// A network as nft lists it: an address alone has no length.
pub(super) fn network(network: &IpNet) -> String {
    match network.prefix_len() == network.max_prefix_len() {
        true => network.addr().to_string(),
        false => network.trunc().to_string(),
    }
}
