//! A story as a reader plays it: all objects in force at each step, and the flows of each client.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::cast::{Cast, Member, Role, Server};
use super::format::{Expect, OnlyFamily, RawFlow, SourceSeen, Step, Story, split_destination};

/// One step of a story.
#[derive(Clone, Debug)]
pub struct Scene<'a> {
    /// Who plays.
    pub cast: &'a Cast,
    /// The story.
    pub story: &'a Story,
    /// What has just happened.
    pub when: &'a str,
    /// Every object in force, Nodes included.
    pub objects: Vec<Value>,
    /// What is tried.
    pub flows: Vec<Flow<'a>>,
}

/// One client that dials one or more destinations.
#[derive(Clone, Debug)]
pub struct Flow<'a> {
    /// The client.
    pub client: &'a Member,
    /// The node where the first decision is taken: the client's, or where a packet from outside arrives.
    pub node: String,
    /// The source address.
    pub source: IpAddr,
    /// Whether the source address is not the client's usual one.
    pub unusual_source: bool,
    /// What it dials.
    pub to: Vec<Destination>,
    /// What becomes of it.
    pub expect: &'a Expect,
    /// Whose address the server sees where packets are translated, if the story says it.
    pub seen_source: Option<SourceSeen>,
}

impl Flow<'_> {
    /// Whose address this server sees where packets are translated, if the story says it.
    #[must_use]
    pub fn source_seen_by(&self, server: &Server) -> Option<SourceSeen> {
        let own = server.place == self.client.name;
        self.seen_source.map(|source| if own { SourceSeen::Node } else { source })
    }
}

/// Where a client dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Address and port.
    pub address: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
}

/// Transport protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// The scenes of a story.
pub fn scenes<'a>(cast: &'a Cast, story: &'a Story) -> anyhow::Result<Vec<Scene<'a>>> {
    let mut objects = BTreeMap::new();
    for node in &cast.nodes {
        objects.insert(identity(node)?, node.clone());
    }
    let mut scenes = Vec::new();
    for step in &story.steps {
        let context = || format!("{}.yaml: story {:?}, step {:?}", story.file, story.story, step.when);
        change(&mut objects, step).with_context(context)?;
        let mut flows = Vec::new();
        for raw in &step.flows {
            flows.extend(expand(cast, story, raw).with_context(context)?);
        }
        scenes.push(Scene { cast, story, when: &step.when, objects: objects.values().cloned().collect(), flows });
    }
    Ok(scenes)
}

fn change(objects: &mut BTreeMap<String, Value>, step: &Step) -> anyhow::Result<()> {
    for gone in &step.remove {
        let identity = match gone.split('/').collect::<Vec<_>>().as_slice() {
            [kind, name] => format!("{kind}/default/{name}"),
            [_, _, _] => gone.clone(),
            _ => bail!("{gone:?}: write Kind/name or Kind/namespace/name"),
        };
        objects.remove(&identity).with_context(|| format!("{gone} is to be removed, but is not there"))?;
    }
    for object in &step.put {
        objects.insert(identity(object)?, object.clone());
    }
    Ok(())
}

fn identity(object: &Value) -> anyhow::Result<String> {
    let text = |pointer| object.pointer(pointer).and_then(Value::as_str);
    let (kind, name) = text("/kind").zip(text("/metadata/name")).context("an object has no kind or name")?;
    Ok(format!("{kind}/{}/{name}", text("/metadata/namespace").unwrap_or("default")))
}

fn expand<'a>(cast: &'a Cast, story: &Story, raw: &'a RawFlow) -> anyhow::Result<Vec<Flow<'a>>> {
    let to: Vec<Destination> =
        raw.to.iter().map(|to| destination(cast, story.family, to)).collect::<anyhow::Result<_>>()?;
    let first = to.first().context("a flow goes nowhere")?.address.ip();
    ensure!(to.iter().all(|to| to.address.is_ipv4() == first.is_ipv4()), "one flow is of one family");
    check_servers(cast, &raw.expect)?;
    let answered = matches!(raw.expect, Expect::To(_) | Expect::OneOf(_));
    ensure!(answered || raw.source.is_none(), "`source` is for flows that a server answers");
    let mut flows = Vec::new();
    for name in &raw.from {
        let client = cast.member(name)?;
        for node in entry_nodes(cast, client, raw, first)? {
            let source = raw.from_address.unwrap_or_else(|| client.address(first));
            let unusual_source = raw.from_address.is_some();
            let (to, expect, seen_source) = (to.clone(), &raw.expect, raw.source);
            flows.push(Flow { client, node, source, unusual_source, to, expect, seen_source });
        }
    }
    ensure!(!flows.is_empty(), "a flow comes from nowhere");
    Ok(flows)
}

fn entry_nodes(cast: &Cast, client: &Member, raw: &RawFlow, to: IpAddr) -> anyhow::Result<Vec<String>> {
    match (client.node(), cast.at(to).map(|member| (&member.role, &member.name))) {
        (Some(_), _) if !raw.at.is_empty() => bail!("`at` is for packets from outside; {} has a node", client.name),
        (Some(node), _) => Ok(vec![node.to_owned()]),
        (None, Some((Role::Node { zone: _ }, name))) if raw.at.is_empty() => Ok(vec![name.clone()]),
        (None, _) if raw.at.is_empty() => bail!("say in `at` at which node packets from outside to {to} arrive"),
        (None, _) => raw.at.iter().map(|name| Ok(cast.member(name)?.name.clone())).collect(),
    }
}

fn check_servers(cast: &Cast, expect: &Expect) -> anyhow::Result<()> {
    let servers = match expect {
        Expect::To(servers) | Expect::OneOf(servers) => servers.as_slice(),
        Expect::Reject | Expect::Drop | Expect::Deny | Expect::Pass => return Ok(()),
    };
    ensure!(!servers.is_empty(), "no server is expected: say reject, drop, deny or pass");
    servers.iter().try_for_each(|server| cast.member(&server.place).map(drop))
}

fn destination(cast: &Cast, family: Option<OnlyFamily>, text: &str) -> anyhow::Result<Destination> {
    let (host, rest) = split_destination(text)?;
    let wrong = || format!("{text:?} is no destination: write 10.96.1.1:80/tcp");
    let (port, protocol) = rest.split_once('/').with_context(wrong)?;
    let address = match (host.parse::<IpAddr>(), family) {
        (Ok(address), _) => address,
        (Err(_), Some(OnlyFamily::IPv6)) => cast.member(host)?.ipv6,
        (Err(_), Some(OnlyFamily::IPv4) | None) => cast.member(host)?.ipv4,
    };
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => bail!(wrong()),
    };
    Ok(Destination { address: SocketAddr::new(address, port.parse().with_context(wrong)?), protocol })
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        };
        write!(f, "{}/{protocol}", self.address)
    }
}

impl fmt::Display for Flow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.client.name)?;
        if self.unusual_source {
            write!(f, " as {}", self.source)?;
        }
        if self.client.node().is_none() {
            write!(f, " at {}", self.node)?;
        }
        let to: Vec<String> = self.to.iter().map(ToString::to_string).collect();
        write!(f, " -> {}", to.join(", "))
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |servers: &[Server]| servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        match self {
            Self::To(servers) => write!(f, "{}", names(servers)),
            Self::OneOf(servers) => write!(f, "always the same of {}", names(servers)),
            Self::Reject => f.write_str("reject"),
            Self::Drop => f.write_str("drop"),
            Self::Deny => f.write_str("deny"),
            Self::Pass => f.write_str("pass"),
        }
    }
}
