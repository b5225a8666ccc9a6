//! Templates as Corefiles write them, and the records that they make of names.

use std::net::{Ipv4Addr, SocketAddr};

use hickory_proto::op::Message;

use super::*;
use crate::corefile::Corefile;
use crate::names::absolute;
use crate::presentation::record_text;
use crate::request::Transport;

#[test]
fn records_with_holes_are_read() {
    let patterns = [Regex::new("^(x)").unwrap(), Regex::new("^(?P<b>y)").unwrap()];
    let read = |text: &str| RecordTemplate::read(text, &patterns).map_err(|error| error.to_string());
    let record = read("{{ .Name }} 60 IN A 10.1.{{ .Group.b }}.{{ index .Match 1 }}").unwrap();
    assert_eq!((record.ttl, record.rtype), (60, Some(RecordType::A)));
    for text in [
        "{{.Name}} IN 60 A 10.1.1.1",
        "{{ .Name }} 60 {{ .Class }} A 10.1.1.1",
        "{{ .Name }} 60 {{.Type}} 10.1.1.1",
        "{{ .Name }} 1m in a 10.1.1.1",
        "{{ .Name }} 60 IN TYPE65282 \\# 1 0a",
        "office\\ printer.lab.test 60 IN A 10.1.1.1",
    ] {
        assert_eq!(read(text).map(|record| record.ttl), Ok(60), "{text}");
    }
    assert!(read("{{ .Zone }} 60 {{ .Class }} SOA ns.{{ .Zone }} admin.{{ .Zone }} (1 60 60 60 60)").is_ok());
    assert_eq!(read("{{ .Name }} A 10.1.1.1").unwrap().ttl, 3600);
    for (text, part) in [
        ("{{ .Meta \"x\" }} A 10.1.1.1", ".Meta"),
        ("name 60 IN", "no record"),
        ("name 60 IN ADRESS 10.1.1.1", "no record"),
        ("{{ .Name }} A 10.1.1.{{ .Group.c }}", "no pattern has the group c"),
        ("{{ .Group.c }} A 10.1.1.1", "no pattern has the group c"),
        ("{{ .Name }} A 10.1.1.{{ index .Match 2 }}", "no pattern has the group 2"),
        ("{{ .Name }} A 10.1.1.{{ index .Group \"2\" }}", "no pattern has the group 2"),
        ("name 60 IN A 10.1.1", "\"name 60 IN A 10.1.1\" is no record: it does not fit type A"),
        ("name 60 IN CNAME a..b", "\"a..b\" is no name: a label is empty"),
        ("a..b 60 IN A 10.1.1.1", "\"a..b\" is no name"),
        ("name 60 IN TYPE65282 10.1.1.1", "does not fit type TYPE65282"),
        ("", "no record"),
    ] {
        assert!(read(text).unwrap_err().contains(part), "{text}: {:?}", read(text));
    }
}

/// What the template `head { body }` says to a question: an rcode, its records, or why there are none.
fn told(head: &str, body: &str, asked: &str, rtype: &str) -> String {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("Corefile");
    std::fs::write(&path, format!(".:53 {{\n template {head} {{\n{body}\n }}\n}}\n")).unwrap();
    let file = Corefile::read(&path).unwrap();
    let request = Request {
        metadata: Message::query().metadata,
        query: Query::query(absolute(asked).unwrap(), record_type(rtype).unwrap()),
        edns: None,
        serial: None,
        client: SocketAddr::from((Ipv4Addr::LOCALHOST, 5353)),
        transport: Transport::Tcp,
        received: std::time::Instant::now(),
        length: 0,
    };
    match file.blocks[0].templates[0].answer(&request.query, &request) {
        None => "nothing".to_owned(),
        Some(Reply { why: Some(why), rcode: ResponseCode::ServFail, .. }) => why.to_string(),
        Some(Reply { answers, authorities, additionals, .. }) => {
            [answers, authorities, additionals].iter().flatten().map(record_text).collect::<Vec<_>>().join("; ")
        }
    }
}

#[track_caller]
fn check(head: &str, body: &str, asked: &str, rtype: &str, wanted: &str) {
    assert_eq!(told(head, body, asked, rtype), wanted, "{asked} {rtype}");
}

#[test]
fn names_of_any_octets_are_filled_in() {
    let printer = "Office Printer._ipp._tcp.lab.test";
    let name = r"Office\ Printer._ipp._tcp.lab.test.";
    let lower = name.to_ascii_lowercase();
    check("IN A", r#"answer "{{ .Name }} 60 IN A 192.0.2.1""#, printer, "A", &format!("{name} 60 IN A 192.0.2.1"));
    check(
        "IN ANY lab.test",
        r#"answer "{{ .Name }} 60 IN CNAME {{ .Name }}inner.test"
        additional "{{ .Name }} 60 IN TXT \"two  words\" {{ .Name }}"
        authority "x.{{ .Zone }} 60 IN NS {{ .Name }}""#,
        printer,
        "SRV",
        &format!(
            "{name} 60 IN CNAME {lower}inner.test.; x.lab.test. 60 IN NS {lower}; \
             {name} 60 IN TXT \"two  words\" \"{}\"",
            lower.replace('\\', "")
        ),
    );
    let groups = r#"match "^(?P<first>.*)\\ (.*)\._ipp\._tcp\.lab\.test\.$"
        answer "{{ .Name }} 60 {{ .Type }} 10 20 631 {{ .Group.first }}-{{ index .Match 2 }}.lab.test""#;
    check("IN SRV", groups, printer, "SRV", &format!("{name} 60 IN SRV 10 20 631 office-printer.lab.test."));
    for (asked, owner) in [
        ("Büro.x", r"B\195\188ro.x."),
        ("0/25.2.0.192.in-addr.arpa", "0/25.2.0.192.in-addr.arpa."),
        (r"a\.b\;c\(d\)\@\\.x", r"a\.b\;c\(d\)\@\\.x."),
        (r"\000\255-.x", r"\000\255-.x."),
    ] {
        let target = owner.to_ascii_lowercase();
        check(
            "IN A",
            r#"answer "{{ .Name }} 60 IN PTR {{ .Name }}""#,
            asked,
            "A",
            &format!("{owner} 60 IN PTR {target}"),
        );
    }
}

#[test]
fn groups_are_filled_in_by_number_and_by_name() {
    let pattern = "match ^ip-([0-9]+)-(?P<d>[0-9]+)\\.x\n";
    for holes in [
        r#"{{ index .Match 1 }}.{{ index .Match 2 }}"#,
        r#"{{ index .Group \"1\" }}.{{ .Group.d }}"#,
        r#"{{ index .Group \"1\" }}.{{ index .Group \"d\" }}"#,
    ] {
        let body = format!("{pattern} answer \"{{{{ .Name }}}} 60 IN A 10.0.{holes}\"");
        check("IN A", &body, "ip-3-4.x", "A", "ip-3-4.x. 60 IN A 10.0.3.4");
    }
    let all = r#"answer "{{ .Name }} 60 IN TXT {{ index .Group \"0\" }} {{ index .Match 0 }}""#;
    check("IN TXT", all, "a.x", "TXT", r#"a.x. 60 IN TXT "a.x." "a.x.""#);
}

#[test]
fn data_of_all_types_can_be_made() {
    for data in [
        "NAPTR 1 2 \"S\" \"SIP+D2U\" \"\" x.test.",
        "AFSDB 1 x.test.",
        "RP x.test. y.test.",
        "DNAME x.test.",
        "TYPE65282 \\# 2 00ff",
    ] {
        let body = format!("answer \"{{{{ .Name }}}} 60 IN {}\"", data.replace('"', "\\\""));
        check("ANY ANY", &body, "a.test", "TXT", &format!("a.test. 60 IN {data}"));
    }
    check(
        "IN TYPE65282",
        r#"answer "{{ .Name }} 60 {{ .Type }} \# 1 0a""#,
        "a",
        "TYPE65282",
        r"a. 60 IN TYPE65282 \# 1 0a",
    );
    check("IN afsdb", r#"answer "{{ .Name }} 60 {{ .Type }} 1 b""#, "a", "AFSDB", "a. 60 IN AFSDB 1 b.");
    check("IN TYPE65282", r#"answer "{{ .Name }} 60 {{ .Type }} \# 1 0a""#, "a", "TYPE65283", "nothing");
}

#[test]
fn a_question_for_any_is_for_the_type_of_the_template() {
    let typed = r#"answer "{{ .Name }} 60 IN {{ .Type }} 192.0.2.1""#;
    check("IN A", typed, "a", "A", "a. 60 IN A 192.0.2.1");
    check("IN A", typed, "a", "ANY", "a. 60 IN A 192.0.2.1");
    check("IN A", typed, "a", "AAAA", "nothing");
    check("ANY ANY", r#"answer "{{ .Name }} 60 IN A 192.0.2.1""#, "a", "ANY", "a. 60 IN A 192.0.2.1");
    check("IN A", "match ^b\n fallthrough", "a", "ANY", "nothing");
    check(
        "IN ANY",
        typed,
        "a",
        "ANY",
        "the template `{{ .Name }} 60 IN {{ .Type }} 192.0.2.1` makes no record of a.: it does not fit type ANY",
    );
}

#[test]
fn what_is_no_record_says_why() {
    let label = "x".repeat(63);
    let long = [label.as_str(), &label, &label, "a.test"].join(".");
    let answer = |data: &str| format!("answer \"{data}\"");
    for data in ["{{ .Name }} 60 IN CNAME {{ .Name }}{{ .Name }}", "{{ .Name }}{{ .Name }} 60 IN A 192.0.2.1"] {
        check(
            "IN A",
            &answer(data),
            &long,
            "A",
            &format!(
                "the template `{data}` makes no record of {long}.: \"{long}.{long}.\" is no name: it is longer than \
                 255 octets"
            ),
        );
    }
    let data = "{{ .Name }} 60 IN A 10.0.0.{{ index .Match 1 }}";
    check(
        "IN A",
        &format!("match ^ip-(.*)\\.x\n {}", answer(data)),
        "ip-300.x",
        "A",
        &format!("the template `{data}` makes no record of ip-300.x.: it does not fit type A"),
    );
}
