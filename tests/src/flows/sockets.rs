//! Judges what real sockets see of a flow: answers, refusal, denial, silence, or an unreachable address.
//!
//! A socket gets an error at once where a packet would wait for an answer (`docs/parity.md`): where a packet gets
//! silence because the policy is Local and no endpoint is on the node, a socket is refused; where source ranges leave
//! the client out, it is denied. No other error counts as either.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::cast::{Cast, OTHER_PORT, PORT, Server};
use super::format::Expect;
use super::reader::Seen;
use super::scene::{Destination, Flow, Protocol};
use crate::peer::{Attempt, CallError, Mode};

/// What came of dialling one destination in one way.
#[derive(Clone, Debug)]
pub struct Dialled {
    /// The destination.
    pub to: Destination,
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
            Expect::Reject | Expect::Drop => failed(&servers, failure.as_ref(), &[Failure::Refused]),
            Expect::Deny => failed(&servers, failure.as_ref(), &[Failure::Denied]),
            Expect::Pass => left_alone(cast, flow, dialled, &servers, failure.as_ref()),
        };
        // TP-51: the client sees the address that it dialled as its peer, or loopback if it dialled none.
        let address = SocketAddr::new(reached(dialled.to.address.ip()), dialled.to.address.port());
        let other = dialled.attempts.iter().filter_map(|attempt| attempt.peername).find(|peer| *peer != address);
        if right && other.is_none() {
            continue;
        }
        let got: Vec<String> = servers
            .iter()
            .map(ToString::to_string)
            .chain(failure.map(|failure| failure.to_string()))
            .chain(other.map(|other| format!("by the name of {other}")))
            .collect();
        let got = if got.is_empty() { "nothing at all".to_owned() } else { got.join(", ") };
        return Seen::Wrong(format!("{} ({:?}): wanted {}, got {got}", dialled.to, dialled.mode, flow.expect));
    }
    Seen::Right
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
    let (address, port) = (dialled.to.address.ip().to_canonical(), dialled.to.address.port());
    let owner = if reached(address).is_loopback() { Some(flow.client) } else { cast.at(address) };
    match owner {
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
        (Protocol::Tcp | Protocol::Sctp, _) => &[Failure::Refused],
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
mod tests {
    use std::sync::LazyLock;

    use super::super::{Destination, Flow, load};
    use super::*;

    const CLUSTER_IP: &str = "10.96.1.1:80";
    const ALL: [&str; 7] = [
        "ECONNREFUSED",
        "EPERM",
        "EHOSTUNREACH",
        "ENETUNREACH",
        "ETIMEDOUT",
        "ECONNRESET",
        "closed without a greeting",
    ];

    fn attempt(to: SocketAddr, outcome: &str) -> Attempt {
        let answered = outcome.starts_with(char::is_lowercase) && !outcome.contains(' ');
        let [server, error] = [answered, !answered].map(|is_it| is_it.then(|| outcome.to_owned()));
        Attempt { t: 0, began: 0, server, peername: answered.then_some(to), error: error.map(CallError::from), us: 0 }
    }

    /// The judgement when pod a1 dials and sees these outcomes: names of servers, and of an error.
    fn judged(expect: &Expect, to: &str, mode: Mode, outcomes: &[&str]) -> Seen {
        static CAST: LazyLock<Cast> = LazyLock::new(|| load().unwrap().cast);
        let address: SocketAddr = to.parse().unwrap();
        let protocol = if mode == Mode::Tcp { Protocol::Tcp } else { Protocol::Udp };
        let to = Destination { address, protocol };
        let client = CAST.member("a1").unwrap();
        let (node, source) = ("n1".to_owned(), client.address(address.ip()));
        let flow = Flow { client, node, source, unusual_source: false, to: vec![to], expect };
        let attempts = outcomes.iter().map(|outcome| attempt(address, outcome)).collect();
        judge_sockets(&CAST, &flow, &[Dialled { to, mode, attempts }])
    }

    /// These errors are right, in every such mode, and all others wrong; so are an answer and an error after an answer.
    #[track_caller]
    fn check(expect: &Expect, to: &str, modes: &[Mode], right: &[&str]) {
        for mode in modes {
            for error in ALL {
                let seen = judged(expect, to, *mode, &[error]);
                assert_eq!(seen == Seen::Right, right.contains(&error), "{error} {mode:?} to {to}: {seen:?}");
                assert_ne!(judged(expect, to, *mode, &["b1", error]), Seen::Right, "b1, then {error}");
            }
            assert_ne!(judged(expect, to, *mode, &["b1"]), Seen::Right, "b1 answers");
            assert_ne!(judged(expect, to, *mode, &[]), Seen::Right, "nothing was tried");
        }
    }

    const MODES: [Mode; 3] = [Mode::Tcp, Mode::Udp, Mode::UdpUnconnected];

    #[test]
    fn a_socket_is_refused_where_packets_are_rejected_or_dropped() {
        check(&Expect::Reject, CLUSTER_IP, &MODES, &["ECONNREFUSED"]);
        check(&Expect::Drop, CLUSTER_IP, &MODES, &["ECONNREFUSED"]);
        check(&Expect::Drop, "[fd00:10:96::101]:80", &MODES, &["ECONNREFUSED"]);
    }

    #[test]
    fn source_ranges_deny() {
        check(&Expect::Deny, "192.0.2.1:80", &MODES, &["EPERM"]);
    }

    #[test]
    fn without_a_proxy_an_address_without_a_host_is_unreachable_or_silent() {
        check(&Expect::Pass, CLUSTER_IP, &[Mode::Tcp], &["EHOSTUNREACH", "ENETUNREACH", "ETIMEDOUT"]);
        check(&Expect::Pass, CLUSTER_IP, &[Mode::Udp, Mode::UdpUnconnected], &["ETIMEDOUT"]);
    }

    #[test]
    fn without_a_proxy_a_port_without_a_listener_is_refused_by_its_host() {
        check(&Expect::Pass, "172.18.0.12:30080", &[Mode::Tcp], &["ECONNREFUSED"]);
        check(&Expect::Pass, "172.18.0.12:30080", &[Mode::Udp], &["ECONNREFUSED", "ETIMEDOUT"]);
        // Only programs refuse a socket that is not connected.
        check(&Expect::Pass, "172.18.0.12:30080", &[Mode::UdpUnconnected], &["ETIMEDOUT"]);
        check(&Expect::Pass, "127.0.0.1:30080", &[Mode::Tcp], &["ECONNREFUSED"]);
    }

    #[test]
    fn servers_count_as_they_are_called() {
        let both = Expect::To(vec!["b1".parse().unwrap(), "c1".parse().unwrap()]);
        let one = Expect::OneOf(vec!["b1".parse().unwrap(), "c1".parse().unwrap()]);
        #[track_caller]
        fn row(expect: &Expect, to: &str, outcomes: &[&str], right: bool) {
            let seen = judged(expect, to, Mode::Tcp, outcomes);
            assert_eq!(seen == Seen::Right, right, "{outcomes:?}: {seen:?}");
        }
        row(&both, CLUSTER_IP, &["b1", "c1", "b1"], true);
        row(&both, CLUSTER_IP, &["b1"], false);
        row(&both, CLUSTER_IP, &["b1", "c1", "a1"], false);
        row(&both, CLUSTER_IP, &["b1", "c1", "ECONNREFUSED"], false);
        row(&one, CLUSTER_IP, &["c1", "c1"], true);
        row(&one, CLUSTER_IP, &["c1", "b1"], false);
        row(&one, CLUSTER_IP, &["a1"], false);
        row(&Expect::Pass, "10.244.2.11:7000", &["b1"], true);
        row(&Expect::Pass, "10.244.2.11:7000", &["c1"], false);
        row(&Expect::Pass, "127.0.0.1:7001", &["a1:7001"], true);
        row(&Expect::Pass, "127.0.0.1:7001", &["ECONNREFUSED"], false);
        row(&Expect::Pass, "0.0.0.0:30080", &["ECONNREFUSED"], true);
        row(&Expect::Pass, "[::]:30080", &["b1"], false);
    }

    #[test]
    fn a_wrong_outcome_is_reported_by_its_name() {
        let Seen::Wrong(told) = judged(&Expect::Drop, CLUSTER_IP, Mode::Tcp, &["ETIMEDOUT"]) else { panic!("right") };
        assert_eq!(told, "10.96.1.1:80/tcp (Tcp): wanted drop, got silence");
        let Seen::Wrong(told) = judged(&Expect::Deny, CLUSTER_IP, Mode::Udp, &["EHOSTUNREACH"]) else {
            panic!("right")
        };
        assert_eq!(told, "10.96.1.1:80/udp (Udp): wanted deny, got unreachable");
    }
}
