//! Every kind of name in every directive that takes one, and as a question: names are octets (RFC 2181 section 11).

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use hickory_proto::op::ResponseCode;
use shunt_dns::{Corefile, ForwardConfig, StubDomain, Upstreams, serve};
use tokio::sync::watch;

use super::belongs;
use super::cases::TTL;
use super::raw::{self, Message, Question};
use super::upstream::{Asked, Upstream};
use crate::client;
use crate::fixture::{cluster, ip, zone_config};
use crate::running::Program;

const IN: u16 = 1;
const A: u16 = 1;
const CNAME: u16 = 5;
const SOA: u16 = 6;
const PTR: u16 = 12;
const AXFR: u16 = 252;
/// What the upstream says, and what configurations here say.
const THEIRS: [u8; 4] = [192, 0, 2, 9];
const OURS: [u8; 4] = [192, 0, 2, 1];

/// The first labels of names, in presentation format.
const NAMES: &[&str] = &[
    "www",
    "WwW-MiXeD",
    r"Office\032Printer",
    r"\032",
    r"a\009b",
    r"a\013\010b",
    "b\u{fc}cher",
    "\u{65e5}\u{672c}",
    "\u{212a}", // the sign of Kelvin, whose lower case is a plain k
    "\u{17f}",  // an s, whose upper case is a plain S
    "\u{130}",
    r"\195\040", // no UTF-8
    r"\255",
    r"\000",
    r"a\000b",
    r"\001\002\031",
    r"\127",
    "0/25",
    "a@b",
    r"a\@b",
    "a%b",
    "%2e",
    "a+b",
    "a~b",
    "a,b",
    "a:b",
    r"a\061b", // an equals sign
    "a&b",
    "a!b",
    "a?b",
    "a|b",
    "a<b>",
    "a[b]",
    "a^b",
    "a`b",
    "a'b",
    r"a\034b",
    r"a\\b",
    r"\\",
    r"a\;b",
    "a(b)",
    r"a\035b",
    r"a\036b",
    r"\036\1231\125",
    r"\123\123\032.Name\032\125\125", // a template's hole
    r"a\.b",
    r"\.",
    "*",
    "*.a",
    "a*b",
    "_",
    "_http._tcp",
    "-",
    "--",
    "-a",
    "a-",
    "xn--bcher-kva",
    "xn--",
    r"xn--\195",
    "123",
    "1.2.3.4",
    "0x7f",
    "fe80--1",
    "localhost",
    "a.B.c.D.e.F.g.H.i.J.k.L.m",
    "A.a.A.a",
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx.\
     xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx.\
     xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx.yyyyyyyyyyyyyyyyyyyyyyyyy",
];

/// What a configuration does with a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// It gives the address of the configuration.
    Ours,
    /// The upstream is asked, under this name.
    AskedAs(&'static str),
    /// The upstream is asked each time.
    AskedTwice,
    /// The answer is a record of the asked type that holds this name.
    Holds(&'static str),
    /// It has records of the asked type.
    Some,
    Refused,
}
use Wanted::{AskedAs, AskedTwice, Holds, Ours, Refused, Some as SomeRecords};

/// What takes a name, a Corefile with it, a question and what becomes of that; <N> stands for a name.
const DIRECTIVES: &[(&str, &str, (&str, u16), Wanted)] = &[
    (
        "server block",
        "<N>.here.test:53 {\n template IN A . {\n answer \"{{ .Name }} 60 IN A 192.0.2.1\"\n }\n}\n",
        ("Www.<N>.here.test", A),
        Ours,
    ),
    (
        "forward",
        "here.test:53 {\n forward <N>.here.test UPSTREAM\n}\n",
        ("Www.<N>.here.test", A),
        AskedAs("Www.<N>.here.test"),
    ),
    ("except", ".:53 {\n forward . UPSTREAM {\n except <N>.here.test\n }\n}\n", ("Www.<N>.here.test", A), Refused),
    (
        "rewrite name exact",
        ".:53 {\n rewrite name exact <N>.here.test <N>.there.test\n forward . UPSTREAM\n}\n",
        ("<N>.here.test", A),
        AskedAs("<N>.there.test"),
    ),
    (
        "rewrite name suffix",
        ".:53 {\n rewrite name suffix .<N>.here.test .<N>.there.test\n forward . UPSTREAM\n}\n",
        ("Www.<N>.here.test", A),
        AskedAs("Www.<N>.there.test"),
    ),
    (
        "rewrite name suffix of such a name",
        ".:53 {\n rewrite name suffix .here.test .there.test answer auto\n forward . UPSTREAM\n}\n",
        ("<N>.here.test", A),
        AskedAs("<N>.there.test"),
    ),
    (
        "rewrite name prefix",
        ".:53 {\n rewrite name prefix <N>.here. <N>.there.\n forward . UPSTREAM\n}\n",
        ("<N>.here.test", A),
        AskedAs("<N>.there.test"),
    ),
    (
        "rewrite name substring",
        ".:53 {\n rewrite name substring .<N>.here. .<N>.there.\n forward . UPSTREAM\n}\n",
        ("Www.<N>.here.test", A),
        AskedAs("Www.<N>.there.test"),
    ),
    (
        "rewrite name regex",
        ".:53 {\n rewrite name regex ^(.*)\\.here\\.test\\.$ {1}.there.test\n forward . UPSTREAM\n}\n",
        ("<N>.here.test", A),
        AskedAs("<N>.there.test"),
    ),
    (
        "template zone",
        ".:53 {\n template IN A <N>.here.test {\n answer \"{{ .Name }} 60 IN A 192.0.2.1\"\n }\n}\n",
        ("Www.<N>.here.test", A),
        Ours,
    ),
    (
        "template's own name",
        ".:53 {\n template IN A here.test {\n answer \"<N>.here.test 60 IN A 192.0.2.1\"\n }\n}\n",
        ("<N>.here.test", A),
        Ours,
    ),
    (
        "template group",
        ".:53 {\n template IN CNAME here.test {\n match \"^(?P<whole>.*)\\.here\\.test\\.$\"\n \
         answer \"{{ .Name }} 60 IN CNAME {{ .Group.whole }}.there.test.\"\n }\n}\n",
        ("<N>.here.test", CNAME),
        Holds("<N>.there.test"),
    ),
    (
        "template data",
        ".:53 {\n template IN CNAME here.test {\n answer \"{{ .Name }} 60 IN CNAME x.{{ .Name }}\"\n }\n}\n",
        ("<N>.here.test", CNAME),
        Holds("x.<N>.here.test"),
    ),
    ("hosts", ".:53 {\n hosts /dev/null {\n 192.0.2.1 <N>.here.test\n }\n}\n", ("<N>.here.test", A), Ours),
    ("hosts file", ".:53 {\n hosts HOSTS\n}\n", ("<N>.here.test", A), Ours),
    ("hosts file, in reverse", ".:53 {\n hosts HOSTS\n}\n", ("1.2.0.192.in-addr.arpa", PTR), Holds("<N>.here.test")),
    ("hosts zone", ".:53 {\n hosts HOSTS <N>.here.test\n forward . UPSTREAM\n}\n", ("<N>.here.test", A), Ours),
    (
        "hosts fallthrough",
        ".:53 {\n hosts /dev/null {\n fallthrough <N>.here.test\n }\n forward . UPSTREAM\n}\n",
        ("Www.<N>.here.test", A),
        AskedAs("Www.<N>.here.test"),
    ),
    (
        "template fallthrough",
        ".:53 {\n template IN A . {\n match ^x$\n fallthrough <N>.here.test\n }\n forward . UPSTREAM\n}\n",
        ("Www.<N>.here.test", A),
        AskedAs("Www.<N>.here.test"),
    ),
    (
        "cache disable",
        ".:53 {\n cache {\n disable success <N>.here.test\n }\n forward . UPSTREAM\n}\n",
        ("Www.<N>.here.test", A),
        AskedTwice,
    ),
    ("kubernetes", ".:53 {\n kubernetes <N>.k8s.test\n}\n", ("<N>.k8s.test", SOA), SomeRecords),
    (
        "kubernetes fallthrough",
        ".:53 {\n kubernetes k8s.test {\n fallthrough <N>.k8s.test\n }\n forward . UPSTREAM\n}\n",
        ("Www.<N>.k8s.test", A),
        AskedAs("Www.<N>.k8s.test"),
    ),
    (
        "autopath",
        ".:53 {\n kubernetes <N>.k8s.test {\n pods verified\n }\n autopath <N>.k8s.test @kubernetes\n}\n",
        ("<N>.k8s.test", SOA),
        SomeRecords,
    ),
    (
        "transfer",
        ".:53 {\n kubernetes <N>.k8s.test\n transfer <N>.k8s.test {\n to *\n }\n}\n",
        ("<N>.k8s.test", AXFR),
        SomeRecords,
    ),
];

/// What has a meaning of its own in a Corefile or a file of hosts is written as the number of its octet: comments, and
/// what stands between server blocks or before a port.
fn word(name: &str) -> String {
    name.replace('#', r"\035").replace(',', r"\044").replace(':', r"\058")
}

/// For messages only.
fn shown(name: &[u8]) -> String {
    name.escape_ascii().to_string()
}

/// An upstream that knows every name, and what it was asked for addresses.
async fn upstream() -> (Upstream, Arc<Mutex<Vec<Vec<u8>>>>) {
    let asked = Arc::<Mutex<Vec<Vec<u8>>>>::default();
    let list = Arc::clone(&asked);
    let says = move |asked: &Asked| {
        if asked.question.rtype != A {
            return asked.head(5, [0; 3]); // looks for loops
        }
        list.lock().unwrap().push(asked.question.name.clone());
        let mut wire = asked.head(0, [1, 0, 0]);
        raw::put_record(&mut wire, &[0xc0, 12], A, IN, TTL, &THEIRS);
        wire
    };
    (Upstream::start(says).await, asked)
}

async fn ask(at: SocketAddr, question: &Question) -> Result<Message, String> {
    let query = raw::query(7, question, None);
    let over_tcp = question.rtype == AXFR;
    let reply = if over_tcp { client::tcp_bytes(at, &query).await } else { client::udp_bytes(at, &query).await };
    let got = Message::read(&reply)?;
    belongs::to_the_question(&got, 7, question, false)?;
    Ok(got)
}

/// A server with this name in this place, asked over the wire.
async fn check(
    name: &str,
    (_, text, (asked, rtype), wanted): &(&str, &str, (&str, u16), Wanted),
    (upstream, list): &(Upstream, Arc<Mutex<Vec<Vec<u8>>>>),
) -> Result<(), String> {
    let place = tempfile::tempdir().unwrap();
    let hosts = place.path().join("named");
    std::fs::write(&hosts, format!("192.0.2.1 {}.here.test # one\n", word(name))).unwrap();
    let text = text.replace("UPSTREAM", &upstream.address.to_string());
    let text = text.replace("<N>", &word(name)).replace("HOSTS", hosts.to_str().unwrap());
    std::fs::write(place.path().join("Corefile"), text).unwrap();
    let file = Corefile::read(&place.path().join("Corefile")).map_err(|error| shunt_model::with_causes(&error))?;
    let (_, snapshots) = watch::channel(Some(Arc::new(cluster())));
    let config = file.server_config(vec!["127.0.0.1:0".parse().unwrap()], file.zone(vec![ip("10.96.0.10")]));
    let server = serve(config, snapshots).await.map_err(|error| shunt_model::with_causes(&error))?;
    let at = server.local_addresses()[0];
    let question = Question { name: raw::labels(&asked.replace("<N>", name)), rtype: *rtype, class: IN };
    list.lock().unwrap().clear();
    let got = ask(at, &question).await?;
    let asked_as = list.lock().unwrap().clone();
    let answers: Vec<&raw::Record> = got.sections[0].iter().filter(|record| record.rtype == *rtype).collect();
    let code = ResponseCode::from(0, u8::try_from(got.rcode()).unwrap());
    let answered = |rdata: &[u8]| answers.len() == 1 && answers[0].owner == question.name && answers[0].rdata == rdata;
    let right = match wanted {
        Ours => answered(&OURS),
        AskedAs(name_there) => {
            let there = raw::labels(&name_there.replace("<N>", name));
            asked_as.len() == 1 && asked_as[0].eq_ignore_ascii_case(&there) && answered(&THEIRS)
        }
        AskedTwice => {
            ask(at, &question).await?;
            answered(&THEIRS) && *list.lock().unwrap() == [question.name.clone(), question.name.clone()]
        }
        // Templates and hosts write names in lower case.
        Holds(held) => {
            let held = raw::labels(&held.replace("<N>", name));
            answers.len() == 1 && answers[0].rdata.eq_ignore_ascii_case(&held) && answers[0].owner == question.name
        }
        SomeRecords => {
            answers.first().is_some_and(|record| record.owner.eq_ignore_ascii_case(&question.name))
                || *rtype == AXFR && !got.sections[0].is_empty()
        }
        Refused => code == ResponseCode::Refused && asked_as.is_empty(),
    };
    let answers: Vec<String> =
        answers.iter().map(|record| format!("{} {:?}", shown(&record.owner), record.rdata)).collect();
    let asked_as: Vec<String> = asked_as.iter().map(|name| shown(name)).collect();
    if right { Ok(()) } else { Err(format!("{code}, {answers:?}, the upstream was asked for {asked_as:?}")) }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_directive_takes_every_name() {
    let upstream = upstream().await;
    let mut wrong = Vec::new();
    for directive in DIRECTIVES {
        for name in NAMES {
            // A wildcard in hosts stands for many names, so its address leads back to none.
            let leads_to_many = directive.0.ends_with("in reverse") && raw::labels(name).starts_with(b"\x01*");
            let wanted = if leads_to_many { Refused } else { directive.3 };
            let directive = (directive.0, directive.1, directive.2, wanted);
            if let Err(why) = check(name, &directive, &upstream).await {
                let why: String = why.chars().take(300).collect();
                wrong.push(format!("{} with {name}: {why}", directive.0));
            }
        }
    }
    let shown = wrong.iter().take(60).cloned().collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} went wrong:\n{shown}", wrong.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_name_is_forwarded_and_comes_back_as_it_was_asked() {
    let (upstream, list) = upstream().await;
    let servers = Upstreams::Servers(vec![upstream.address.into()]);
    let server = client::start_with(zone_config(), None, ForwardConfig::to(servers)).await;
    let longest = super::types::longest_name();
    for name in NAMES.iter().copied().chain([longest.as_str()]) {
        let question = Question { name: raw::labels(name), rtype: A, class: IN };
        let got = ask(server.local_addresses()[0], &question).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        let owners: Vec<&[u8]> = got.sections[0].iter().map(|record| record.owner.as_slice()).collect();
        assert_eq!((got.rcode(), owners), (0, vec![question.name.as_slice()]), "{name}");
        assert_eq!(list.lock().unwrap().last(), Some(&question.name), "{name}");
    }
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_name_can_be_a_stub_domain() {
    let (upstream, list) = upstream().await;
    for name in NAMES {
        let stub: StubDomain = format!("{}.stub.test={}", word(name), upstream.address).parse().unwrap();
        let forward = ForwardConfig::to(Upstreams::Servers(vec![])).with_stub_domains([stub]);
        let server = client::start_with(zone_config(), None, forward).await;
        let question = Question { name: raw::labels(&format!("Www.{name}.stub.test")), rtype: A, class: IN };
        let got = ask(server.local_addresses()[0], &question).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((got.rcode(), list.lock().unwrap().last()), (0, Some(&question.name)), "{name}");
        server.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_name_can_be_logged() {
    let (upstream, _) = upstream().await;
    let place = tempfile::tempdir().unwrap();
    let domains: Vec<String> = NAMES.iter().map(|name| format!("{}.log.test", word(name))).collect();
    let text = format!(".:53 {{\n log {}\n forward . {}\n}}\n", domains.join(" "), upstream.address);
    std::fs::write(place.path().join("Corefile"), text).unwrap();
    let program = Program::with_corefile(&place.path().join("Corefile"));
    for (number, name) in NAMES.iter().enumerate() {
        let question = Question { name: raw::labels(&format!("n{number}.{name}.log.test")), rtype: A, class: IN };
        ask(program.dns(), &question).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        // One line, whatever is in the name.
        let line = program.line(&format!("\"A IN n{number}."));
        assert!(line.contains(".log.test. udp") && line.ends_with('s'), "{name}: {line}");
    }
}

/// Letters of other alphabets that fold to those of ASCII are other octets.
#[tokio::test(flavor = "multi_thread")]
async fn names_that_look_alike_are_different() {
    let upstream = upstream().await;
    for (name, other) in [("\u{212a}", "k"), ("\u{17f}", "s"), ("b\u{fc}cher", "B\u{dc}CHER"), (r"a\.b", "a.b")] {
        for (what, text, (asked, rtype), wanted) in DIRECTIVES {
            let AskedAs(_) = wanted else { continue };
            // What is asked about is not what stands in the configuration.
            if !what.starts_with("rewrite") || what.ends_with("such a name") || what.ends_with("regex") {
                continue;
            }
            let text = text.replace("<N>", name);
            let asked = asked.replace("<N>", other);
            let directive = (*what, text.as_str(), (asked.as_str(), *rtype), Refused);
            let met = check(other, &directive, &upstream).await.unwrap_err();
            let as_it_is = format!("the upstream was asked for {:?}", [shown(&raw::labels(&asked))]);
            assert!(met.contains(&as_it_is), "{what} of {name} takes {other}: {met}");
        }
    }
}
