//! The same questions to this server and to unbound as a plain forwarder, in front of one upstream: what differs has a
//! reason.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use super::cases::{Case, Fate, Place, cases};
use super::raw::{self, AA, Message, Question, TC};
use super::upstream::{Asked, Upstream};
use crate::{client, corefile};

/// Where packages put it.
const UNBOUND: [&str; 3] = ["/usr/sbin/unbound", "/usr/bin/unbound", "/usr/local/sbin/unbound"];
const IN: u16 = 1;
const SERVFAIL: u16 = 2;
/// Types and RDATA that are answered differently, and why.
const DIFFERENCES: &[(&[&str], &[&str], &str)] = &[
    (
        &["KX", "RRSIG", "NSEC", "TALINK", "LP"],
        &[
            "a label of 64 octets",
            "a label of no known kind",
            "a name without its end",
            "a name of 257 octets",
            "a pointer out of the message",
            "a pointer to itself",
        ],
        "nobody compresses names in these types, so they are octets here; unbound reads them and fails",
    ),
    (&["NSEC"], &["empty"], "unbound leaves a record out that it could not prove anything with"),
];

/// Why the replies to a case differ, if that is known.
fn reason(case: &Case, own: &Told) -> Option<&'static str> {
    if case.fate == Fate::MayBeLost && own.rcode == SERVFAIL {
        return Some("unbound passes on what does not fit its type, such as addresses of three octets");
    }
    let fits = |(kinds, whats, _): &&(&[&str], &[&str], &str)| {
        kinds.contains(&case.kind.mnemonic) && whats.contains(&case.what)
    };
    DIFFERENCES.iter().find(fits).map(|(.., reason)| *reason)
}

/// Ends with this.
struct Unbound(Child);

impl Drop for Unbound {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.0.kill();
        self.0.wait().unwrap();
    }
}

/// Starts it on a port that was free a moment ago, at an address that no other test uses; `None` if it ends.
async fn start(program: &str, place: &Path, upstream: SocketAddr) -> Option<(Unbound, SocketAddr)> {
    let at = client::sockets("127.53.14.1:0".parse().unwrap()).await.0.local_addr().unwrap();
    let path = place.join("unbound.conf");
    let (ip, port) = (at.ip(), at.port());
    let (their_ip, their_port) = (upstream.ip(), upstream.port());
    let text = format!(
        "server:\n interface: {ip}@{port}\n num-threads: 1\n username: \"\"\n chroot: \"\"\n directory: \"\"\n \
         pidfile: \"\"\n do-daemonize: no\n use-syslog: no\n verbosity: 0\n module-config: \"iterator\"\n \
         do-not-query-localhost: no\n deny-any: no\n minimal-responses: no\n qname-minimisation: no\n \
         aggressive-nsec: no\n edns-buffer-size: 1232\n local-zone: \"test.\" nodefault\n\
         remote-control:\n control-enable: no\nforward-zone:\n name: \".\"\n forward-addr: {their_ip}@{their_port}\n"
    );
    std::fs::write(&path, text).unwrap();
    let mut command = Command::new(program);
    command.args(["-d", "-p", "-c"]).arg(&path).stderr(Stdio::inherit());
    let mut unbound = Unbound(command.spawn().unwrap());
    // It listens before it is connected to, or it has ended.
    while tokio::net::TcpStream::connect(at).await.is_err() {
        if unbound.0.try_wait().unwrap().is_some() {
            return None;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    Some((unbound, at))
}

/// What counts of a reply.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    rcode: u16,
    /// AA and TC.
    flags: u16,
    /// Owners in lower case: spelling is each server's own.
    answers: Vec<(Vec<u8>, u16, Vec<u8>)>,
}

async fn ask(at: SocketAddr, question: &Question, tcp: bool) -> Told {
    let query = raw::query(7, question, Some((1232, 0, &[])));
    let reply = if tcp { client::tcp_bytes(at, &query).await } else { client::udp_bytes(at, &query).await };
    let got = Message::read(&reply).unwrap();
    let mut answers: Vec<_> = got.sections[0]
        .iter()
        .map(|record| (record.owner.to_ascii_lowercase(), record.rtype, record.rdata.clone()))
        .collect();
    answers.sort();
    Told { rcode: got.rcode(), flags: got.flags & (AA | TC), answers }
}

#[expect(clippy::print_stderr, reason = "a skipped test says so")]
#[tokio::test(flavor = "multi_thread")]
async fn unbound_forwards_the_same() {
    let Some(program) = UNBOUND.into_iter().find(|path| Path::new(path).exists()) else {
        eprintln!("SKIPPED: there is no unbound to compare with; the package of that name has it");
        return;
    };
    let all: Arc<Vec<Case>> = Arc::new(cases().into_iter().filter(|case| case.place == Place::Answer).collect());
    let known = Arc::clone(&all);
    let says = move |asked: &Asked| {
        let number = asked.label().strip_prefix('u').and_then(|number| number.parse::<usize>().ok());
        match number.and_then(|number| known.get(number)) {
            Some(case) => case.reply(asked.id, &asked.question, asked.edns, asked.limit).0,
            None => asked.head(5, [0; 3]),
        }
    };
    let upstream = Upstream::start(says).await;
    let place = tempfile::tempdir().unwrap();
    let text = format!(".:53 {{\n cache\n forward . {}\n}}\n", upstream.address);
    let (server, _) = corefile::start(&text, place.path(), None).await;
    let (_unbound, theirs) = 'started: {
        for _ in 0..10 {
            if let Some(started) = start(program, place.path(), upstream.address).await {
                break 'started started;
            }
        }
        panic!("{program} ends at its start; its messages are above");
    };
    let mut wrong = Vec::new();
    for (number, case) in all.iter().enumerate() {
        let name = raw::labels(&format!("u{number}.kind.test"));
        let question = Question { name, rtype: case.asked_type(), class: IN };
        for tcp in [true, false] {
            let (own, other) =
                (ask(server.local_addresses()[0], &question, tcp).await, ask(theirs, &question, tcp).await);
            if own != other && reason(case, &own).is_none() {
                let of = |told: &Told| format!("{told:?}").chars().take(150).collect::<String>();
                wrong.push(format!(
                    "{} {} TCP {tcp}: {}, unbound {}",
                    case.kind.mnemonic,
                    case.what,
                    of(&own),
                    of(&other)
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), all.len(), wrong.join("\n"));
}
