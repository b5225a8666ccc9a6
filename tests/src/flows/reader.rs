//! Playing the corpus to a reader: what it saw against what was to be seen.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use anyhow::{Context as _, ensure};

use super::book::Book;
use super::cast::{Cast, Role, Server};
use super::format::{Expect, SourceSeen};
use super::report::{Played, Report};
use super::scene::{Destination, Flow, Protocol, Scene, scenes};

/// Applies scenes, one after the other, and reports what becomes of their flows.
pub trait Reader {
    /// Looks at one scene; returns what it saw of each flow, in their order.
    fn read(&mut self, scene: &Scene<'_>) -> anyhow::Result<Vec<Seen>>;
}

/// What a reader reports about a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// As expected.
    Right,
    /// Not as expected, and how.
    Wrong(String),
    /// This reader cannot see that, and why.
    Skipped(&'static str),
}

/// What became of the first packet of a flow, for readers that know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes to one of these servers.
    Served {
        /// The servers.
        by: BTreeSet<Server>,
        /// Whether a client stays with the one it got.
        sticky: bool,
        /// Whose address those of them see that are not the client itself, if these rules decide about it.
        source: Option<SourceSeen>,
    },
    /// Refused at once.
    Reject,
    /// Silence.
    Drop,
    /// Left alone.
    Pass,
    /// These rules do not see such packets, and why.
    Unseen(&'static str),
}

/// The first packet of a flow as one node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Who sends it, seen from this node.
    pub source: Source,
    /// Its source address.
    pub source_address: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// Who sends a packet, seen from the node that looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A pod of this node.
    Pod,
    /// The node itself.
    Node,
    /// Any other host.
    Outside,
}

/// What decides about packets on every node without one being sent: a plan, a rendered table, a program under test.
pub trait Rules {
    /// Takes in the objects of a scene.
    fn load(&mut self, scene: &Scene<'_>) -> anyhow::Result<()>;
    /// What the node named `node` makes of a packet.
    fn meet(&mut self, cast: &Cast, node: &str, packet: &Packet) -> anyhow::Result<Outcome>;
}

/// A reader over [`Rules`].
#[must_use]
pub fn read_rules<R: Rules>(rules: R) -> impl Reader {
    RulesReader(rules)
}

struct RulesReader<R>(R);

impl<R: Rules> Reader for RulesReader<R> {
    fn read(&mut self, scene: &Scene<'_>) -> anyhow::Result<Vec<Seen>> {
        self.0.load(scene)?;
        scene.flows.iter().map(|flow| self.follow(scene.cast, flow)).collect()
    }
}

impl<R: Rules> RulesReader<R> {
    fn follow(&mut self, cast: &Cast, flow: &Flow<'_>) -> anyhow::Result<Seen> {
        for to in &flow.to {
            let outcome = self.journey(cast, flow, to)?;
            match judge(flow, &outcome) {
                Seen::Right => {}
                Seen::Wrong(what) => return Ok(Seen::Wrong(format!("{to}: {what}"))),
                Seen::Skipped(why) => return Ok(Seen::Skipped(why)),
            }
        }
        Ok(Seen::Right)
    }

    /// From the client's node to the one it dials, if the first lets the packet pass. There it comes from outside,
    /// also if a pod sent it: a node takes only its own pods for pods (TP-26, the advice; E2E-41).
    fn journey(&mut self, cast: &Cast, flow: &Flow<'_>, to: &Destination) -> anyhow::Result<Outcome> {
        let source = match flow.client.role {
            Role::Node { zone: _ } => Source::Node,
            Role::Pod { node: _ } => Source::Pod,
            Role::Outside => Source::Outside,
        };
        let (destination, port) = (to.address.ip(), to.address.port());
        let packet = Packet { source, source_address: flow.source, destination, port, protocol: to.protocol };
        let first = self.0.meet(cast, &flow.node, &packet)?;
        let next = cast.at(destination).filter(|member| matches!(member.role, Role::Node { zone: _ }));
        match (first, next) {
            (Outcome::Pass, Some(next)) if next.name != flow.node => {
                self.0.meet(cast, &next.name, &Packet { source: Source::Outside, ..packet })
            }
            (first, _) => Ok(first),
        }
    }
}

/// Compares an exactly known outcome with what a flow expects.
#[must_use]
pub fn judge(flow: &Flow<'_>, outcome: &Outcome) -> Seen {
    // What the rules do not decide, or the story does not say, counts as right.
    let source = match outcome {
        Outcome::Unseen(why) => return Seen::Skipped(why),
        Outcome::Served { source, .. } => source.and(flow.seen_source).or(*source),
        Outcome::Reject | Outcome::Drop | Outcome::Pass => None,
    };
    let served = |servers: &[Server], sticky| Outcome::Served { by: servers.iter().cloned().collect(), sticky, source };
    let wanted = match flow.expect {
        Expect::To(servers) => served(servers, false),
        Expect::OneOf(servers) => served(servers, true),
        Expect::Reject => Outcome::Reject,
        // A packet is dropped silently in either case.
        Expect::Drop | Expect::Deny => Outcome::Drop,
        Expect::Pass => Outcome::Pass,
    };
    if *outcome == wanted { Seen::Right } else { Seen::Wrong(format!("wanted {wanted}, got {outcome}")) }
}

/// Plays those stories whose file or name contains `only`; a story is given up at its first step that goes wrong.
pub fn play(book: &Book, only: &str, reader: &mut impl Reader) -> anyhow::Result<Report> {
    let mut report = Report::default();
    for story in &book.stories {
        let title = format!("{}: {}", story.file, story.story);
        if !title.contains(only) {
            continue;
        }
        let mut played = Played::new(title);
        for scene in scenes(&book.cast, story)? {
            let seen = reader.read(&scene).with_context(|| format!("{}, step {:?}", played.title, scene.when))?;
            ensure!(seen.len() == scene.flows.len(), "the reader saw {} flows of {}", seen.len(), scene.flows.len());
            played.take(&scene, seen);
            if !played.wrong.is_empty() {
                break;
            }
        }
        report.stories.push(played);
    }
    Ok(report)
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Served { by, sticky, source } => {
                let servers = by.iter().cloned().collect();
                write!(f, "{}", if *sticky { Expect::OneOf(servers) } else { Expect::To(servers) })?;
                source.map_or(Ok(()), |source| write!(f, " ({source})"))
            }
            Self::Reject => f.write_str("reject"),
            Self::Drop => f.write_str("drop"),
            Self::Pass => f.write_str("pass"),
            Self::Unseen(why) => write!(f, "nothing seen: {why}"),
        }
    }
}
