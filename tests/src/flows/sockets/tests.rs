//! The judgement as tables: what counts as which outcome, at sockets and by packets.

use std::sync::LazyLock;

use super::super::{Destination, Flow, load};
use super::Translation::{AtSocket, ByPackets};
use super::*;

const CLUSTER_IP: &str = "10.96.1.1:80";
const ALL: [&str; 7] =
    ["ECONNREFUSED", "EPERM", "EHOSTUNREACH", "ENETUNREACH", "ETIMEDOUT", "ECONNRESET", "closed without a greeting"];

fn attempt(to: SocketAddr, outcome: &str) -> Attempt {
    let answered = outcome.starts_with(char::is_lowercase) && !outcome.contains(' ');
    let [server, error] = [answered, !answered].map(|is_it| is_it.then(|| outcome.to_owned()));
    let (peername, error) = (answered.then_some(to), error.map(CallError::from));
    Attempt { t: 0, began: 0, server, peername, source: None, error, us: 0 }
}

static CAST: LazyLock<Cast> = LazyLock::new(|| load().unwrap().cast);

/// What pod a1 does when it dials there.
fn flow_to<'a>(expect: &'a Expect, to: Destination) -> Flow<'a> {
    let client = CAST.member("a1").unwrap();
    let (node, source) = ("n1".to_owned(), client.address(to.address.ip()));
    Flow { client, node, source, unusual_source: false, to: vec![to], expect, seen_source: None }
}

fn destination(to: &str, mode: Mode) -> Destination {
    let protocol = match mode {
        Mode::Tcp | Mode::Http | Mode::TcpFastopen | Mode::Mptcp => Protocol::Tcp,
        Mode::Sctp | Mode::SctpInit => Protocol::Sctp,
        Mode::Udp | Mode::UdpUnconnected => Protocol::Udp,
    };
    Destination { address: to.parse().unwrap(), protocol }
}

/// The judgement when pod a1 dials and sees these outcomes: names of servers, and of an error.
fn judged(translation: Translation, expect: &Expect, to: &str, mode: Mode, outcomes: &[&str]) -> Seen {
    let to = destination(to, mode);
    let attempts = outcomes.iter().map(|outcome| attempt(to.address, outcome)).collect();
    judge_sockets(&CAST, &flow_to(expect, to), &[Dialled { to, translation, mode, attempts }])
}

/// These errors are right, in every such mode, and all others wrong; so are an answer and an error after an answer.
#[track_caller]
fn check(translation: Translation, expect: &Expect, to: &str, modes: &[Mode], right: &[&str]) {
    for mode in modes {
        for error in ALL {
            let seen = judged(translation, expect, to, *mode, &[error]);
            assert_eq!(seen == Seen::Right, right.contains(&error), "{error} {mode:?} to {to}: {seen:?}");
            assert_ne!(judged(translation, expect, to, *mode, &["b1", error]), Seen::Right, "b1, then {error}");
        }
        assert_ne!(judged(translation, expect, to, *mode, &["b1"]), Seen::Right, "b1 answers");
        assert_ne!(judged(translation, expect, to, *mode, &[]), Seen::Right, "nothing was tried");
    }
}

const MODES: [Mode; 3] = [Mode::Tcp, Mode::Udp, Mode::UdpUnconnected];

#[test]
fn a_socket_is_refused_where_packets_are_rejected_or_dropped() {
    check(AtSocket, &Expect::Reject, CLUSTER_IP, &MODES, &["ECONNREFUSED"]);
    check(AtSocket, &Expect::Drop, CLUSTER_IP, &MODES, &["ECONNREFUSED"]);
    check(AtSocket, &Expect::Drop, "[fd00:10:96::101]:80", &MODES, &["ECONNREFUSED"]);
}

#[test]
fn packets_are_refused_only_where_they_are_rejected_and_an_open_socket_hears_nothing() {
    let connected = [Mode::Tcp, Mode::Udp, Mode::SctpInit];
    check(ByPackets, &Expect::Reject, CLUSTER_IP, &connected, &["ECONNREFUSED"]);
    check(ByPackets, &Expect::Reject, CLUSTER_IP, &[Mode::UdpUnconnected], &["ETIMEDOUT"]);
    for expect in [Expect::Drop, Expect::Deny] {
        check(ByPackets, &expect, CLUSTER_IP, &MODES, &["ETIMEDOUT"]);
        check(ByPackets, &expect, CLUSTER_IP, &[Mode::SctpInit], &["ETIMEDOUT"]);
    }
}

#[test]
fn a_datagram_of_the_node_itself_may_fail_as_it_is_sent() {
    #[track_caller]
    fn row(expect: &Expect, mode: Mode, error: &str, right: bool) {
        let to = destination(CLUSTER_IP, mode);
        let flow = Flow { client: CAST.member("n1").unwrap(), ..flow_to(expect, to) };
        let dialled = Dialled { to, translation: ByPackets, mode, attempts: vec![attempt(to.address, error)] };
        let seen = judge_sockets(&CAST, &flow, &[dialled]);
        assert_eq!(seen == Seen::Right, right, "{expect} {mode:?} {error}: {seen:?}");
    }
    row(&Expect::Reject, Mode::Udp, "EPERM", true);
    row(&Expect::Reject, Mode::Udp, "ECONNREFUSED", true);
    row(&Expect::Reject, Mode::Udp, "ETIMEDOUT", false);
    row(&Expect::Drop, Mode::UdpUnconnected, "EPERM", true);
    row(&Expect::Deny, Mode::SctpInit, "EPERM", true);
    row(&Expect::Drop, Mode::Udp, "ECONNREFUSED", false);
    row(&Expect::Drop, Mode::Tcp, "EPERM", false);
}

#[test]
fn packets_decide_for_the_outside_for_sctp_and_at_other_nodes() {
    #[track_caller]
    fn row(client: &str, expect: &Expect, to: &str, mode: Mode, sockets: bool, wanted: Translation) {
        let to = destination(to, mode);
        let flow = Flow { client: CAST.member(client).unwrap(), ..flow_to(expect, to) };
        assert_eq!(Translation::of(&CAST, &flow, &to, sockets), wanted, "{client} {to} {sockets}");
    }
    let (to, pass) = (Expect::To(vec!["a1".parse().unwrap()]), Expect::Pass);
    row("a1", &to, CLUSTER_IP, Mode::Tcp, true, AtSocket);
    row("a1", &to, CLUSTER_IP, Mode::Tcp, false, ByPackets);
    row("a1", &to, CLUSTER_IP, Mode::SctpInit, true, ByPackets);
    row("a1", &to, "172.18.0.11:30080", Mode::Udp, true, AtSocket);
    row("a1", &to, "172.18.0.12:30080", Mode::Udp, true, ByPackets);
    row("a1", &pass, "172.18.0.12:30080", Mode::Udp, true, AtSocket);
    row("n1", &to, "127.0.0.1:30080", Mode::Tcp, true, AtSocket);
    row("outside", &to, "172.18.0.11:30080", Mode::Tcp, true, ByPackets);
}

#[test]
fn a_server_sees_the_client_or_a_node_as_the_story_says() {
    #[track_caller]
    fn row(translation: Translation, seen_source: Option<SourceSeen>, server: &str, source: &str, right: bool) {
        let to = destination(CLUSTER_IP, Mode::Tcp);
        let expect = Expect::To(vec![server.parse().unwrap()]);
        let flow = Flow { seen_source, ..flow_to(&expect, to) };
        let source = Some(SocketAddr::new(source.parse().unwrap(), 40_000));
        let attempts = vec![Attempt { source, ..attempt(to.address, server) }];
        let seen = judge_sockets(&CAST, &flow, &[Dialled { to, translation, mode: Mode::Tcp, attempts }]);
        assert_eq!(seen == Seen::Right, right, "{source:?}: {seen:?}");
    }
    let (kept, node) = (Some(SourceSeen::Kept), Some(SourceSeen::Node));
    row(ByPackets, kept, "b1", "10.244.1.11", true);
    row(ByPackets, kept, "b1", "172.18.0.11", false);
    row(ByPackets, node, "b1", "172.18.0.11", true);
    row(ByPackets, node, "b1", "172.18.0.12", false);
    row(ByPackets, node, "b1", "10.244.1.11", false);
    // A client that reaches itself.
    row(ByPackets, kept, "a1", "172.18.0.11", true);
    row(ByPackets, kept, "a1", "10.244.1.11", false);
    row(ByPackets, None, "b1", "10.244.1.12", true);
    row(AtSocket, node, "b1", "10.244.1.11", true);
    row(AtSocket, node, "b1", "172.18.0.11", false);
}

#[test]
fn source_ranges_deny() {
    check(AtSocket, &Expect::Deny, "192.0.2.1:80", &MODES, &["EPERM"]);
}

#[test]
fn without_a_proxy_an_address_without_a_host_is_unreachable_or_silent() {
    check(AtSocket, &Expect::Pass, CLUSTER_IP, &[Mode::Tcp], &["EHOSTUNREACH", "ENETUNREACH", "ETIMEDOUT"]);
    check(AtSocket, &Expect::Pass, CLUSTER_IP, &[Mode::Udp, Mode::UdpUnconnected], &["ETIMEDOUT"]);
}

#[test]
fn without_a_proxy_a_port_without_a_listener_is_refused_by_its_host() {
    check(AtSocket, &Expect::Pass, "172.18.0.12:30080", &[Mode::Tcp], &["ECONNREFUSED"]);
    check(AtSocket, &Expect::Pass, "172.18.0.12:30080", &[Mode::Udp], &["ECONNREFUSED", "ETIMEDOUT"]);
    // Only programs refuse a socket that is not connected.
    check(AtSocket, &Expect::Pass, "172.18.0.12:30080", &[Mode::UdpUnconnected], &["ETIMEDOUT"]);
    check(AtSocket, &Expect::Pass, "127.0.0.1:30080", &[Mode::Tcp], &["ECONNREFUSED"]);
}

#[test]
fn servers_count_as_they_are_called() {
    let both = Expect::To(vec!["b1".parse().unwrap(), "c1".parse().unwrap()]);
    let one = Expect::OneOf(vec!["b1".parse().unwrap(), "c1".parse().unwrap()]);
    #[track_caller]
    fn row(expect: &Expect, to: &str, outcomes: &[&str], right: bool) {
        let seen = judged(AtSocket, expect, to, Mode::Tcp, outcomes);
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
    let Seen::Wrong(told) = judged(AtSocket, &Expect::Drop, CLUSTER_IP, Mode::Tcp, &["ETIMEDOUT"]) else {
        panic!("right")
    };
    assert_eq!(told, "10.96.1.1:80/tcp (Tcp): wanted drop, got silence");
    let Seen::Wrong(told) = judged(AtSocket, &Expect::Deny, CLUSTER_IP, Mode::Udp, &["EHOSTUNREACH"]) else {
        panic!("right")
    };
    assert_eq!(told, "10.96.1.1:80/udp (Udp): wanted deny, got unreachable");
}
