//! Who plays in the stories: nodes, pods and the outside client, with their addresses and servers.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde::de::Error as _;
use serde_json::Value;

use crate::network;

/// The port that every place serves, TCP and UDP.
pub const PORT: u16 = 7000;
/// The other one.
pub const OTHER_PORT: u16 = 7001;
const ZONE: &str = "topology.kubernetes.io/zone";

/// All members, as `cast.yaml` has them.
#[derive(Clone, Debug)]
pub struct Cast {
    /// Nodes first, then pods, the outside client last.
    pub members: Vec<Member>,
    /// The Node objects that are in force in every story.
    pub nodes: Vec<Value>,
}

/// One place of the lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name: `n1`, `a1`, `outside`.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Its IPv4 address.
    pub ipv4: IpAddr,
    /// Its IPv6 address.
    pub ipv6: IpAddr,
}

/// What a place is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// A node: its own network namespace.
    Node {
        /// Its zone.
        zone: Option<String>,
    },
    /// A pod.
    Pod {
        /// The node it runs on.
        node: String,
    },
    /// The client outside of the cluster.
    Outside,
}

/// A server of the cast: a place and a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    /// The place; an address if no member of the cast has it.
    pub place: String,
    /// The port.
    pub port: u16,
}

impl Cast {
    /// The cast of `cast.yaml`, read from its top-level lists `nodes` and `pods`.
    pub(super) fn new(nodes: Vec<Value>, pods: &[Value]) -> anyhow::Result<Self> {
        let mut members = Vec::new();
        for node in &nodes {
            members.push(member(node, "/status/addresses", "address", |node| {
                let labels = node.pointer("/metadata/labels");
                let zone = labels.and_then(|labels| labels.get(ZONE)).and_then(Value::as_str);
                Ok(Role::Node { zone: zone.map(str::to_owned) })
            })?);
        }
        for pod in pods {
            members.push(member(pod, "/status/podIPs", "ip", |pod| {
                let node = pod.pointer("/spec/nodeName").and_then(Value::as_str).context("no spec.nodeName")?;
                Ok(Role::Pod { node: node.to_owned() })
            })?);
        }
        members.push(Member {
            name: "outside".to_owned(),
            role: Role::Outside,
            ipv4: network::OUTSIDE_V4.into(),
            ipv6: network::OUTSIDE_V6.into(),
        });
        Ok(Self { members, nodes })
    }

    /// The member of that name.
    pub fn member(&self, name: &str) -> anyhow::Result<&Member> {
        let known = || self.members.iter().map(|member| member.name.as_str()).collect::<Vec<_>>().join(", ");
        self.members
            .iter()
            .find(|member| member.name == name)
            .with_context(|| format!("{name:?} is none of the cast: {}", known()))
    }

    /// The member with that address.
    #[must_use]
    pub fn at(&self, address: IpAddr) -> Option<&Member> {
        self.members.iter().find(|member| member.ipv4 == address || member.ipv6 == address)
    }

    /// Who answers at `address`: a server of the cast, or the bare address.
    #[must_use]
    pub fn server(&self, address: SocketAddr) -> Server {
        let place = self.at(address.ip()).map_or_else(|| address.ip().to_string(), |member| member.name.clone());
        Server { place, port: address.port() }
    }
}

impl Member {
    /// Its address of the family of `like`.
    #[must_use]
    pub fn address(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() { self.ipv4 } else { self.ipv6 }
    }

    /// The node whose daemon decides about its flows; none for the outside client.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        match &self.role {
            Role::Node { zone: _ } => Some(&self.name),
            Role::Pod { node } => Some(node),
            Role::Outside => None,
        }
    }

    /// Whether it runs the servers of the cast.
    #[must_use]
    pub fn serves(&self) -> bool {
        match self.role {
            Role::Node { zone: _ } | Role::Pod { node: _ } => true,
            Role::Outside => false,
        }
    }
}

fn member(
    object: &Value,
    addresses: &str,
    field: &str,
    role: impl Fn(&Value) -> anyhow::Result<Role>,
) -> anyhow::Result<Member> {
    let name =
        object.pointer("/metadata/name").and_then(Value::as_str).context("an object of cast.yaml has no name")?;
    let listed = object.pointer(addresses).and_then(Value::as_array).into_iter().flatten();
    let ips: Vec<IpAddr> =
        listed.filter_map(|entry| entry.get(field)?.as_str()).filter_map(|text| text.parse().ok()).collect();
    let [ipv4 @ IpAddr::V4(_), ipv6 @ IpAddr::V6(_)] = *ips.as_slice() else {
        bail!("{name} of cast.yaml needs one IPv4 and one IPv6 address, in this order, in {addresses}");
    };
    let role = role(object).with_context(|| format!("{name} of cast.yaml"))?;
    Ok(Member { name: name.to_owned(), role, ipv4, ipv6 })
}

impl fmt::Display for Server {
    /// `a1`, and `a1:7001` for any but the usual port.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            PORT => f.write_str(&self.place),
            other => write!(f, "{}:{other}", self.place),
        }
    }
}

impl FromStr for Server {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text.rsplit_once(':') {
            None => Ok(Self { place: text.to_owned(), port: PORT }),
            Some((place, port)) => {
                let port = port.parse().with_context(|| format!("{text:?} is no server: write a1 or a1:7001"))?;
                Ok(Self { place: place.to_owned(), port })
            }
        }
    }
}

impl<'de> Deserialize<'de> for Server {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(|error| D::Error::custom(format!("{error:#}")))
    }
}
