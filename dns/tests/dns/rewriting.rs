//! Names that a Corefile rewrites or makes up: what an upstream is asked, and what the client sees of its answer.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, ResponseCode};
use shunt_dns::{Answerer, Corefile, Name, RecordType, Server, absolute, name_text, record_text, record_type};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::client;
use crate::corefile::start;
use crate::fixture::cluster;
use crate::running::Program;

/// A record as it goes over the wire: section, owner, type, and data with names in full.
type Raw = (usize, &'static str, u16, Vec<u8>);

/// An upstream that says the same to all questions, and remembers the names it was asked for. Stops with its owner.
struct Upstream {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Vec<u8>>>>,
    _task: JoinSet<()>,
}

impl Upstream {
    async fn start(rcode: u8, records: Vec<Raw>) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let asked = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let names = Arc::clone(&asked);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
                let end = question_end(&buffer[..length]);
                let name = buffer[12..end - 4].to_vec();
                // Loop detection and health probes are recognised by their types.
                if ![[0, 13], [0, 2]].contains(&[buffer[end - 4], buffer[end - 3]]) {
                    names.lock().unwrap().push(name);
                }
                socket.send_to(&reply(&buffer[..end], rcode, &records), client).await.unwrap();
            }
        });
        Self { address, asked, _task: task }
    }

    /// The names it was asked for since the last time.
    fn asked(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn question_end(wire: &[u8]) -> usize {
    let mut at = 12;
    while wire[at] > 0 {
        at += usize::from(wire[at]) + 1;
    }
    at + 5
}

/// With AD, as a validating server has it.
fn reply(question: &[u8], rcode: u8, records: &[Raw]) -> Vec<u8> {
    let count = |section| u8::try_from(records.iter().filter(|record| record.0 == section).count()).unwrap();
    let mut wire = question.to_vec();
    wire[2..12].copy_from_slice(&[0x81, 0xa0 | rcode, 0, 1, 0, count(0), 0, count(1), 0, count(2)]);
    for section in 0..3 {
        for (_, owner, rtype, data) in records.iter().filter(|record| record.0 == section) {
            wire.extend(octets(owner));
            wire.extend(rtype.to_be_bytes());
            wire.extend([0, 1, 0, 0, 0, 60]);
            wire.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
            wire.extend(data);
        }
    }
    wire
}

/// A name as it goes over the wire; a space and other octets stand for themselves.
fn octets(name: &str) -> Vec<u8> {
    let labels = name.split('.').filter(|label| !label.is_empty());
    let labels = labels.flat_map(|label| [&[u8::try_from(label.len()).unwrap()], label.as_bytes()].concat());
    labels.chain([0]).collect()
}

async fn start_rewriting(rules: &str, upstream: &Upstream) -> Arc<Server> {
    let place = tempfile::tempdir().unwrap();
    let text = format!(".:53 {{\n {rules}\n forward . {}\n}}\n", upstream.address);
    start(&text, place.path(), None).await.0
}

/// Asks with AD set, over TCP.
async fn ask(server: &Server, name: &Name, rtype: u16) -> Message {
    let mut question = client::question(name, rtype.into());
    question.metadata.authentic_data = true;
    let reply = client::tcp(server.local_addresses()[0], &[question]).await.remove(0);
    assert!(reply.queries[0].name.eq_case(name), "the question comes back as it was asked");
    reply
}

/// All records, without TTL and class.
fn texts(message: &Message) -> Vec<String> {
    let sections = [&message.answers, &message.authorities, &message.additionals];
    let text = |record| {
        let text = record_text(record);
        let (before, after) = text.split_once(" IN ").unwrap();
        format!("{} {after}", before.rsplit_once(' ').unwrap().0)
    };
    sections.into_iter().flatten().map(text).collect()
}

#[tokio::test]
async fn names_of_any_octets_are_asked_for_under_their_new_name() {
    let upstream = Upstream::start(0, Vec::new()).await;
    let rules = r#"rewrite name suffix .lab.test .inner.test
        rewrite name exact "a b.exact.test" "c d.inner.test"
        rewrite name prefix "old " "new "
        rewrite name substring ü ue
        rewrite name regex "^(.*)\\ (.*)\.regex\.test\.$" {2}.{1}.inner.test"#;
    let server = start_rewriting(rules, &upstream).await;
    for (asked, wanted) in [
        ("Office Printer._ipp._tcp.lab.test", "Office Printer._ipp._tcp.inner.test"),
        ("Büro.Lab.Test", "Büro.inner.test"),
        ("0/25.a@b%c+d~e,f.lab.test", "0/25.a@b%c+d~e,f.inner.test"),
        ("-a-.*.lab.test", "-a-.*.inner.test"),
        ("A B.exact.test", "c d.inner.test"),
        ("Old Name.test", "new Name.test"),
        ("Tür.test", "Tuer.test"),
        ("One Two.regex.test", "Two.One.inner.test"),
        ("other name.test", "other name.test"),
    ] {
        let name = absolute(&asked.replace(' ', r"\032")).unwrap();
        assert_eq!(ask(&server, &name, 16).await.metadata.response_code, ResponseCode::NoError, "{asked}");
        assert_eq!(upstream.asked(), [octets(wanted)], "{asked}");
    }
}

/// Data with numbers in front of a name.
fn numbered(numbers: &[u8], name: &str) -> Vec<u8> {
    [numbers, &octets(name)].concat()
}

async fn check(rules: &str, asked: &str, rtype: &str, records: Vec<Raw>, wanted: &[&str]) {
    let upstream = Upstream::start(0, records).await;
    let server = start_rewriting(&format!("{rules}\n cache"), &upstream).await;
    for cached in [false, true] {
        let rtype = record_type(rtype).unwrap();
        let reply = ask(&server, &absolute(asked).unwrap(), rtype.into()).await;
        assert_eq!(texts(&reply), wanted, "{rules} {asked} {rtype}, cached {cached}");
        assert!(!reply.metadata.authentic_data, "{rules} {asked}");
    }
    assert_eq!(upstream.asked().len(), 1, "{asked}: the second is from the cache");
}

#[tokio::test]
async fn with_auto_the_client_sees_its_own_domain_only() {
    let auto = "rewrite name suffix .lab.test .service.consul answer auto";
    let a = || vec![192, 0, 2, 1];
    check(
        auto,
        "Alias.lab.test",
        "A",
        vec![(0, "alias.service.consul", 5, octets("real.service.consul")), (0, "real.service.consul", 1, a())],
        &["Alias.lab.test. CNAME real.lab.test.", "real.lab.test. A 192.0.2.1"],
    )
    .await;
    check(
        auto,
        "absent.lab.test",
        "A",
        vec![(
            1,
            "service.consul",
            6,
            [octets("ns.service.consul"), octets("admin.x"), vec![0; 19], vec![60]].concat(),
        )],
        &["lab.test. SOA ns.lab.test. admin.x. 0 0 0 0 60"],
    )
    .await;
    check(
        auto,
        "x.lab.test",
        "MX",
        vec![
            (0, "x.service.consul", 15, numbered(&[0, 1], "mail.service.consul")),
            (1, "service.consul", 2, octets("ns.service.consul")),
            (2, "mail.service.consul", 1, a()),
        ],
        &["x.lab.test. MX 1 mail.lab.test.", "lab.test. NS ns.lab.test.", "mail.lab.test. A 192.0.2.1"],
    )
    .await;
    check(
        auto,
        "_x._tcp.lab.test",
        "SRV",
        vec![
            (0, "_x._tcp.service.consul", 33, numbered(&[0, 1, 0, 2, 0, 3], "a b.service.consul")),
            (2, "a b.service.consul", 1, a()),
        ],
        &[r"_x._tcp.lab.test. SRV 1 2 3 a\ b.lab.test.", r"a\ b.lab.test. A 192.0.2.1"],
    )
    .await;
    let naptr = numbered(b"\0\x01\0\x02\x01S\x07SIP+D2U\0", "_sip._udp.service.consul");
    for (rtype, data, wanted) in [
        ("NAPTR", naptr, r#"x.lab.test. NAPTR 1 2 "S" "SIP+D2U" "" _sip._udp.lab.test."#),
        ("PTR", octets("Office Printer.service.consul"), r"x.lab.test. PTR Office\ Printer.lab.test."),
        ("DNAME", octets("y.service.consul"), "x.lab.test. DNAME y.lab.test."),
        ("AFSDB", numbered(&[0, 1], "y.service.consul"), "x.lab.test. AFSDB 1 y.lab.test."),
        ("TXT", b"\x0eservice.consul".to_vec(), r#"x.lab.test. TXT "service.consul""#),
    ] {
        let number = record_type(rtype).unwrap().into();
        check(auto, "x.lab.test", rtype, vec![(0, "x.service.consul", number, data)], &[wanted]).await;
    }
}

#[tokio::test]
async fn other_names_stay_unless_a_rule_says_more() {
    let records = || vec![(0, "web.in.test", 5, octets("real.in.test")), (0, "real.in.test", 1, vec![192, 0, 2, 1])];
    let suffix = "rewrite name suffix .lab.test .in.test";
    let real = "real.in.test. A 192.0.2.1";
    check(suffix, "Web.lab.test", "A", records(), &["Web.lab.test. CNAME real.in.test.", real]).await;
    check(
        &format!("{suffix} answer value ^real.in.test.$ real.out.test value nothing x"),
        "web.lab.test",
        "A",
        records(),
        &["web.lab.test. CNAME real.out.test.", real],
    )
    .await;
    check(
        "rewrite continue name suffix .lab.test .b.test answer auto\n rewrite name suffix .b.test .in.test answer auto",
        "web.lab.test",
        "A",
        records(),
        &["web.lab.test. CNAME real.lab.test.", "real.lab.test. A 192.0.2.1"],
    )
    .await;
    // A name that would be too long stays.
    let long = ["x"; 122].join(".");
    let asked = format!("web.{}", ["longer"; 30].join("."));
    check(
        &format!("rewrite name {asked} web.in.test answer value ^real.*$ {{0}}{long}"),
        &asked,
        "A",
        records(),
        &[&format!("{asked}. CNAME real.in.test."), real],
    )
    .await;
}

#[tokio::test]
async fn what_was_not_rewritten_keeps_what_was_validated() {
    let upstream = Upstream::start(0, vec![(0, "web.other.test", 1, vec![192, 0, 2, 1])]).await;
    let server = start_rewriting("rewrite name suffix .lab.test .in.test", &upstream).await;
    assert!(ask(&server, &absolute("web.other.test").unwrap(), 1).await.metadata.authentic_data);
}

/// 240 octets below a domain.
fn long(domain: &str) -> String {
    let label = "x".repeat(59);
    format!("{label}.{label}.{label}.{label}.{domain}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_would_be_too_long_fails_and_is_told_of() {
    let upstream = Upstream::start(0, Vec::new()).await;
    let text = |errors: &str| {
        format!(
            ".:53 {{\n {errors}\n rewrite name suffix .lab.test .very-much-longer.test\n template IN TXT made.test \
             {{\n answer \"{{{{ .Name }}}} 60 IN TXT one\"\n additional \"x.y.z.{{{{ .Name }}}} 60 IN A 192.0.2.1\"\n }}\n \
             forward . {}\n}}\n",
            upstream.address
        )
    };
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("Corefile");
    let names = [long("lab.test"), long("made.test")];
    for errors in ["errors", ""] {
        std::fs::write(&path, text(errors)).unwrap();
        let program = Program::with_corefile(&path);
        for name in &names {
            let question = client::question(&absolute(name).unwrap(), RecordType::TXT);
            let reply = client::udp(program.dns(), &question).await;
            assert_eq!((reply.metadata.response_code, reply.answers.len()), (ResponseCode::ServFail, 0), "{name}");
        }
        let rule = program.line("invalid name after rewrite");
        for part in ["name suffix .lab.test .very-much-longer.test", &names[0], "longer than 255 octets"] {
            assert!(rule.contains(part), "{rule}");
        }
        if errors.is_empty() {
            assert!(rule.contains("WARN") && rule.contains("`errors`"), "{rule}");
        } else {
            assert!(rule.contains(&format!("plugin/errors: 2 {}. TXT: ", names[0])), "{rule}");
            let template = program.line("makes no record");
            assert!(template.contains(&names[1]) && template.contains("longer than 255 octets"), "{template}");
        }
        // A name that fits is asked for, and no other was.
        client::udp(program.dns(), &client::question(&absolute("web.lab.test").unwrap(), RecordType::TXT)).await;
        assert_eq!(upstream.asked(), [octets("web.very-much-longer.test")]);
    }
}

#[tokio::test]
async fn a_name_that_would_be_too_long_is_explained() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("Corefile");
    let text = ".:53 {\n rewrite name suffix .lab.test .very-much-longer.test\n template IN A made.test {\n answer \
                \"x.y.z.{{ .Name }} 60 IN A 192.0.2.1\"\n }\n forward . 127.0.0.1:9\n}\n";
    std::fs::write(&path, text).unwrap();
    let file = Corefile::read(&path).unwrap();
    let config = file.server_config(Vec::new(), file.zone(vec![]));
    let server = Answerer::new(config.zone, Some(Arc::new(cluster())), config.blocks).unwrap();
    for (asked, part) in
        [("lab.test", "the rule `name suffix .lab.test"), ("made.test", "the template `x.y.z.{{ .Name")]
    {
        let told = server.explainer().explain(absolute(&long(asked)).unwrap(), RecordType::A).await.unwrap();
        assert_eq!(told.rcode.as_deref(), Some("SERVFAIL"), "{asked}");
        assert!(told.reason.contains(part) && told.reason.contains("longer than 255 octets"), "{}", told.reason);
    }
    let told = server.explainer().explain(absolute("a b.lab.test").unwrap(), RecordType::A).await.unwrap();
    assert!(told.reason.contains(r"asked as a\ b.very-much-longer.test. (rewrite)"), "{}", told.reason);
}

#[tokio::test]
async fn templates_answer_for_any_name_and_for_any() {
    let place = tempfile::tempdir().unwrap();
    let text = r#".:53 {
        template IN A typed.test {
            answer "{{ .Name }} 60 IN {{ .Type }} 192.0.2.1"
        }
        template IN TYPE65282 typed.test {
            answer "{{ .Name }} 60 IN {{ .Type }} \# 2 00ff"
        }
        template ANY ANY all.test {
            answer "{{ .Name }} 60 IN CNAME {{ .Name }}in.test"
        }
        template IN PTR 0/25.2.0.192.in-addr.arpa {
            answer "{{ .Name }} 60 IN PTR Office\ Printer.{{ .Zone }}"
        }
        template ANY ANY closed.test {
            rcode NXDOMAIN
        }
    }"#;
    let (server, _) = start(text, place.path(), None).await;
    for (asked, rtype, wanted) in [
        ("Typed.test", "A", "Typed.test. A 192.0.2.1"),
        ("Typed.test", "ANY", "Typed.test. A 192.0.2.1"),
        ("Typed.test", "TYPE65282", r"Typed.test. TYPE65282 \# 2 00ff"),
        (r"Office\ Printer.all.test", "CNAME", r"Office\ Printer.all.test. CNAME office\ printer.all.test.in.test."),
        (r"Büro.all.test", "ANY", r"B\195\188ro.all.test. CNAME b\195\188ro.all.test.in.test."),
        (
            "1.0/25.2.0.192.in-addr.arpa",
            "PTR",
            r"1.0/25.2.0.192.in-addr.arpa. PTR Office\ Printer.0/25.2.0.192.in-addr.arpa.",
        ),
        ("x.closed.test", "ANY", "NXDomain"),
        ("x.other.test", "ANY", "Refused"),
    ] {
        let reply = ask(&server, &absolute(asked).unwrap(), record_type(rtype).unwrap().into()).await;
        let told = match texts(&reply).as_slice() {
            [] => format!("{:?}", reply.metadata.response_code),
            records => records.join("; "),
        };
        assert_eq!(told, wanted, "{} {rtype}", name_text(&absolute(asked).unwrap()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flags_take_names_of_any_octets() {
    let upstream = Upstream::start(0, Vec::new()).await;
    let manifests = tempfile::tempdir().unwrap();
    let stub = |domain: &str| format!("{domain}={}", upstream.address);
    let program = Program::start(&[
        "--manifests",
        manifests.path().to_str().unwrap(),
        "--listen",
        "127.0.0.1:0",
        "--upstream",
        "",
        "--cluster-domain",
        r"My Lab.b\195\188ro",
        "--stub-domain",
        &stub("0/25.2.0.192.in-addr.arpa"),
        "--stub-domain",
        &stub("a=b c.test"),
    ]);
    program.line("serving DNS");
    let ask = async |name: &str, rtype| {
        let name = absolute(&name.replace(' ', r"\032")).unwrap();
        client::udp(program.dns(), &client::question(&name, rtype)).await
    };
    for name in ["1.0/25.2.0.192.in-addr.arpa", "Web.A=B C.test"] {
        assert_eq!(ask(name, RecordType::PTR).await.metadata.response_code, ResponseCode::NoError, "{name}");
        assert_eq!(upstream.asked(), [octets(name)], "{name}");
    }
    let apex = texts(&ask("my lab.büro", RecordType::SOA).await).remove(0);
    assert!(apex.starts_with(r"my\ lab.b\195\188ro. SOA ns.dns.my\ lab.b\195\188ro. "), "{apex}");
    assert_eq!(ask("b.test", RecordType::PTR).await.metadata.response_code, ResponseCode::Refused);
}
