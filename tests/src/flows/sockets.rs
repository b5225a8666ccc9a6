//! Judges what real sockets see of a flow: answers, refusal, denial, silence, or an unreachable address.
//!
//! A socket gets an error at once where a packet would wait for an answer (`docs/parity.md`): where a packet gets
//! silence because the policy is Local and no endpoint is on the node, a socket is refused; where source ranges leave
//! the client out, it is denied. No other error counts as either. So the judgement depends on where a flow is
//! translated: at the client's socket, or by what its packets meet on their way.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::cast::{Cast, Member, OTHER_PORT, PORT, Role, Server};
use super::format::{Expect, SourceSeen};
use super::reader::Seen;
use super::scene::{Destination, Flow, Protocol};
use crate::peer::{Attempt, CallError, Mode};

/// Where the destination of a flow is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translation {
    /// At the client's socket.
    AtSocket,
    /// On its packets, by a node.
    ByPackets,
}

impl Translation {
    /// Of what `client`, on a node whose sockets are translated or not, sends to this destination.
    #[must_use]
    pub fn of(cast: &Cast, flow: &Flow<'_>, to: &Destination, sockets: bool) -> Self {
        let elsewhere = Self::is_elsewhere(cast, flow, to);
        match flow.client.role {
            Role::Node { zone: _ } | Role::Pod { node: _ }
                if sockets && to.protocol != Protocol::Sctp && (!elsewhere || *flow.expect == Expect::Pass) =>
            {
                Self::AtSocket
            }
            Role::Node { zone: _ } | Role::Pod { node: _ } | Role::Outside => Self::ByPackets,
        }
    }

    /// Whether another node decides: the one whose node ports are dialled, with the client's packets.
    #[must_use]
    pub fn is_elsewhere(cast: &Cast, flow: &Flow<'_>, to: &Destination) -> bool {
        cast.at(to.address.ip().to_canonical()).is_some_and(|member| match &member.role {
            Role::Node { zone: _ } => member.name != flow.node,
            Role::Pod { node: _ } | Role::Outside => false,
        })
    }
}

/// What came of dialling one destination in one way.
#[derive(Clone, Debug)]
pub struct Dialled {
    /// The destination.
    pub to: Destination,
    /// Where it was decided who answers.
    pub translation: Translation,
    /// How.
    pub mode: Mode,
    /// Every attempt; none after a failed one.
    pub attempts: Vec<Attempt>,
}

/// How an attempt failed, as far as a socket sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Failure {
    /// `ECONNREFUSED`: by the programs, or by a host where no server listens.
    Refused,
    /// `EPERM`: the programs deny this client the address.
    Denied,
    /// No route, or no host at the address.
    Unreachable,
    /// No answer within the time.
    Silent,
    /// Any other error.
    Other(CallError),
}

impl Failure {
    fn of(error: &CallError) -> Self {
        match error {
            CallError::Refused => Self::Refused,
            CallError::Denied => Self::Denied,
            CallError::NoHost | CallError::NoNetwork => Self::Unreachable,
            CallError::TimedOut => Self::Silent,
            CallError::Aborted | CallError::NoDestination | CallError::InUse | CallError::Other(_) => {
                Self::Other(error.clone())
            }
        }
    }
}

/// What a client saw of a flow, against what was to be seen.
#[must_use]
pub fn judge_sockets(cast: &Cast, flow: &Flow<'_>, all: &[Dialled]) -> Seen {
    let mut everywhere = BTreeSet::new();
    for dialled in all {
        let servers: BTreeSet<Server> =
            dialled.attempts.iter().filter_map(|attempt| attempt.server.as_deref()?.parse().ok()).collect();
        let failure = dialled.attempts.iter().find_map(|attempt| attempt.error.as_ref()).map(Failure::of);
        everywhere.extend(servers.iter().cloned());
        let right = match flow.expect {
            Expect::To(wanted) => failure.is_none() && servers == wanted.iter().cloned().collect(),
            Expect::OneOf(wanted) => {
                failure.is_none() && everywhere.len() == 1 && everywhere.iter().all(|server| wanted.contains(server))
            }
            Expect::Reject | Expect::Drop | Expect::Deny => {
                failed(&servers, failure.as_ref(), &unanswered(flow, dialled))
            }
            Expect::Pass => left_alone(cast, flow, dialled, &servers, failure.as_ref()),
        };
        // TP-51: the client sees the address that it dialled as its peer, or loopback if it dialled none.
        let address = SocketAddr::new(reached(dialled.to.address.ip()), dialled.to.address.port());
        let other = dialled.attempts.iter().filter_map(|attempt| attempt.peername).find(|peer| *peer != address);
        let stranger = dialled.attempts.iter().find_map(|attempt| wrong_source(cast, flow, dialled, attempt));
        if right && other.is_none() && stranger.is_none() {
            continue;
        }
        let got: Vec<String> = servers
            .iter()
            .map(ToString::to_string)
            .chain(failure.map(|failure| failure.to_string()))
            .chain(other.map(|other| format!("by the name of {other}")))
            .chain(stranger)
            .collect();
        let got = if got.is_empty() { "nothing at all".to_owned() } else { got.join(", ") };
        return Seen::Wrong(format!("{} ({:?}): wanted {}, got {got}", dialled.to, dialled.mode, flow.expect));
    }
    Seen::Right
}

/// How a flow fails that no server is to answer, for its policy or its source.
fn unanswered(flow: &Flow<'_>, dialled: &Dialled) -> Vec<Failure> {
    let failure = match (dialled.translation, flow.expect, dialled.mode) {
        (Translation::AtSocket, Expect::Deny, _) => Failure::Denied,
        (Translation::AtSocket, _, _) => Failure::Refused,
        // An ICMP message is no error to a socket that is not connected.
        (Translation::ByPackets, Expect::Reject, mode) if mode != Mode::UdpUnconnected => Failure::Refused,
        (Translation::ByPackets, _, _) => Failure::Silent,
    };
    match (dialled.translation, &flow.client.role, dialled.mode) {
        // The call that sends a datagram fails where netfilter drops it on its way out, also if it is rejected.
        (Translation::ByPackets, Role::Node { zone: _ }, Mode::Udp | Mode::UdpUnconnected | Mode::SctpInit) => {
            vec![failure, Failure::Denied]
        }
        _ => vec![failure],
    }
}

/// What is wrong with the source address that a server saw.
fn wrong_source(cast: &Cast, flow: &Flow<'_>, dialled: &Dialled, attempt: &Attempt) -> Option<String> {
    let (server, source) = attempt.server.as_deref()?.parse::<Server>().ok().zip(attempt.source)?;
    let wanted = match dialled.translation {
        Translation::AtSocket => flow.seen_source.map(|_| SourceSeen::Kept),
        Translation::ByPackets => flow.source_seen_by(&server),
    }?;
    let seen = cast.at(source.ip());
    let right = match wanted {
        SourceSeen::Kept => source.ip() == flow.source || seen == Some(flow.client),
        SourceSeen::Node => {
            let dialled = cast.at(dialled.to.address.ip()).map(|member| member.name.as_str());
            seen.is_some_and(|seen| seen.name == flow.node || Some(seen.name.as_str()) == dialled)
        }
    };
    (!right).then(|| format!("{server} saw {source}, not a flow {wanted}"))
}

/// Whether the right answer to this question is none at all, as far as it is known before.
#[must_use]
pub fn is_silent(cast: &Cast, flow: &Flow<'_>, to: &Destination, mode: Mode, translation: Translation) -> bool {
    let dialled = Dialled { to: *to, translation, mode, attempts: Vec::new() };
    match flow.expect {
        Expect::To(_) | Expect::OneOf(_) => false,
        Expect::Reject | Expect::Drop | Expect::Deny => unanswered(flow, &dialled).contains(&Failure::Silent),
        // A connection is refused by a host; all else may stay without an answer.
        Expect::Pass => to.protocol != Protocol::Tcp || owner(cast, flow, to.address.ip()).is_none(),
    }
}

/// Who has this address, for this client.
fn owner<'a>(cast: &'a Cast, flow: &Flow<'a>, address: IpAddr) -> Option<&'a Member> {
    let address = address.to_canonical();
    if reached(address).is_loopback() { Some(flow.client) } else { cast.at(address) }
}

/// Where the kernel leads a client that dials `address`: the unspecified one is its own loopback.
fn reached(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) if v4.is_unspecified() && address.is_ipv4() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(),
        IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V4(_) | IpAddr::V6(_) => address,
    }
}

/// Whether no server answered, and it failed in one of these ways.
fn failed(servers: &BTreeSet<Server>, failure: Option<&Failure>, ways: &[Failure]) -> bool {
    servers.is_empty() && failure.is_some_and(|failure| ways.contains(failure))
}

/// Whether this is what happens without a proxy.
fn left_alone(
    cast: &Cast,
    flow: &Flow<'_>,
    dialled: &Dialled,
    servers: &BTreeSet<Server>,
    failure: Option<&Failure>,
) -> bool {
    let port = dialled.to.address.port();
    match owner(cast, flow, dialled.to.address.ip()) {
        Some(owner) if owner.serves() && [PORT, OTHER_PORT].contains(&port) => {
            failure.is_none() && *servers == BTreeSet::from([Server { place: owner.name.clone(), port }])
        }
        // No server listens there, and the host refuses.
        Some(_) => failed(servers, failure, without_listener(dialled)),
        // No host has the address, and the router reports it.
        None => failed(servers, failure, without_host(dialled)),
    }
}

/// The sender of a datagram gets the error only if its socket is connected. The kernel may leave the message out, since
/// it limits them by rate; it never leaves out the reset of a TCP connection.
fn without_listener(dialled: &Dialled) -> &'static [Failure] {
    match (dialled.to.protocol, dialled.mode) {
        (Protocol::Udp, Mode::UdpUnconnected) => &[Failure::Silent],
        (Protocol::Udp, _) => &[Failure::Refused, Failure::Silent],
        (Protocol::Tcp, _) => &[Failure::Refused],
        // The raw socket of the lab's own server takes each packet and leaves out those to other ports.
        (Protocol::Sctp, _) => &[Failure::Silent],
    }
}

/// The router's message too may be left out, and UDP sockets without `IP_RECVERR` do not get it.
fn without_host(dialled: &Dialled) -> &'static [Failure] {
    match dialled.to.protocol {
        Protocol::Udp => &[Failure::Silent],
        Protocol::Tcp | Protocol::Sctp => &[Failure::Unreachable, Failure::Silent],
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("refused"),
            Self::Denied => f.write_str("denied"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Silent => f.write_str("silence"),
            Self::Other(error) => error.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests;
