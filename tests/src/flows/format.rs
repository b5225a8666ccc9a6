//! A story as its file holds it.

use std::fmt;
use std::net::IpAddr;

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::Value;

use super::cast::Server;

/// Objects and what becomes of flows while they change.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Story {
    /// The fact it proves, as a sentence.
    pub story: String,
    /// The file it is from.
    #[serde(skip)]
    pub file: String,
    /// IDs of the rules of `docs/rules.md` that it proves.
    pub proves: Vec<String>,
    /// Set if the story makes no sense in the other family. A story that names no IPv6 address is else played twice.
    #[serde(default)]
    pub family: Option<OnlyFamily>,
    /// What happens, one after the other.
    pub steps: Vec<Step>,
}

/// A family that a story is confined to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum OnlyFamily {
    /// IPv4.
    IPv4,
    /// IPv6.
    IPv6,
}

/// Objects that change, and the flows that are tried then.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Step {
    /// What happens, in words; may be left out of the first step.
    #[serde(default)]
    pub when: String,
    /// Objects that appear or change.
    #[serde(default)]
    pub put: Vec<Value>,
    /// Objects that go, as `Kind/name` or `Kind/namespace/name`.
    #[serde(default)]
    pub remove: Vec<String>,
    /// What is tried then.
    #[serde(default)]
    pub flows: Vec<RawFlow>,
}

/// Who dials what, and what becomes of it. Each of `from` does so on its own.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RawFlow {
    /// Members of the cast; a node means its own network namespace.
    #[serde(deserialize_with = "one_or_more")]
    pub from: Vec<String>,
    /// The node at which packets of `outside` arrive, unless they are sent to an address of a node.
    #[serde(default, deserialize_with = "one_or_more")]
    pub at: Vec<String>,
    /// The source address, if it is not the usual one of `from`.
    #[serde(default)]
    pub from_address: Option<IpAddr>,
    /// `address:port/protocol`; the address may be the name of a member.
    #[serde(deserialize_with = "one_or_more")]
    pub to: Vec<String>,
    /// What becomes of it.
    pub expect: Expect,
    /// Whose address the server sees, where packets are translated. At a socket there is nothing to choose: the kernel
    /// takes the client's own, after the endpoint is known (TP-50).
    #[serde(default)]
    pub source: Option<SourceSeen>,
}

/// Whose address a server sees as the source of a packet. A client that reaches itself is always seen by an address of
/// the node, whatever a story says of its flow (TP-42).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceSeen {
    /// The client's own.
    Kept,
    /// One of the node that translates.
    Node,
}

impl fmt::Display for SourceSeen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kept => "from the client's address",
            Self::Node => "from an address of the node",
        })
    }
}

/// What becomes of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expect {
    /// Exactly these servers answer: all of them over enough tries, and no other.
    To(Vec<Server>),
    /// One of these answers, and always the same one for every address in `to` that this client dials.
    OneOf(Vec<Server>),
    /// Refused at once.
    Reject,
    /// No answer, since the policy is Local and no endpoint is here.
    Drop,
    /// No answer, since source ranges leave the client out.
    Deny,
    /// Not ours: what happens is what would happen without a proxy.
    Pass,
}

/// The host of `host:port/protocol` without brackets, and the rest.
pub(super) fn split_destination(text: &str) -> anyhow::Result<(&str, &str)> {
    let split = text.rsplit_once(':').with_context(|| format!("{text:?} is no destination: write 10.96.1.1:80/tcp"))?;
    Ok((split.0.trim_start_matches('[').trim_end_matches(']'), split.1))
}

fn one_or_more<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMore {
        One(String),
        More(Vec<String>),
    }
    Ok(match OneOrMore::deserialize(deserializer)? {
        OneOrMore::One(one) => vec![one],
        OneOrMore::More(more) => more,
    })
}
