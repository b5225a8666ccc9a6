//! Rules as Corefiles write them: what is asked instead, and what the client sees of the answer.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::Record;

use super::*;
use crate::corefile::Corefile;
use crate::names::absolute;
use crate::presentation::{data, record_text};
use crate::reply::Origin;
use crate::types::record_type;

/// The rules of a server block.
fn rules(lines: &[&str]) -> Result<Vec<Rewrite>, String> {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("Corefile");
    let lines: String = lines.iter().map(|line| format!(" rewrite {line}\n")).collect();
    std::fs::write(&path, format!(".:53 {{\n{lines}}}\n")).unwrap();
    let file = Corefile::read(&path).map_err(|error| error.to_string())?;
    Ok(file.blocks[0].rewrites.clone())
}

#[track_caller]
fn check(lines: &[&str], asked: &str, wanted: &str) {
    let rules = rules(lines).unwrap();
    let rewritten = match Rewritten::new(&rules, &absolute(asked).unwrap()) {
        Ok(Some(rewritten)) => names::text(&rewritten.name),
        Ok(None) => "as it is".to_owned(),
        Err(no_name) => no_name.to_string(),
    };
    assert_eq!(rewritten, wanted, "{lines:?} {asked}");
}

#[test]
fn names_are_rewritten_by_kind() {
    let exact = ["name web.example web.shop.svc.cluster.local"];
    check(&exact, "WEB.example", "web.shop.svc.cluster.local.");
    check(&exact, "www.web.example", "as it is");
    check(&["name exact web.example WEB.shop"], "web.example", "WEB.shop.");
    check(&["name suffix .corp.example .svc.x"], "Web.Shop.Corp.example", "Web.Shop.svc.x.");
    check(&["name suffix .corp.example .svc.x"], "corp.example", "as it is");
    check(&["name suffix .corp.example ."], "web.corp.example", "web.");
    check(&["name prefix old- new-"], "OLD-Web.example", "new-Web.example.");
    check(&["name prefix old- new-"], "web.old-example", "as it is");
    check(&["name substring b c"], "abAB.example", "acAc.example.");
    check(&["name substring .corp. ."], "a.corp.b", "a.b.");
    let regex = [r"name regex ^(.*)\.(.*)\.on\.example\.$ {1}.{2}.svc.x"];
    check(&regex, "Web.Shop.ON.example", "Web.Shop.svc.x.");
    check(&regex, "on.example", "as it is");
    check(&["name regex (.*)-eu.x {0}.y{z}"], "a-eu.x", "a-eu.x.y{z}.");
    // A group that looks like the place of another.
    check(&[r"name regex ^(.*)\.(.*)\.x\.$ {1}.{2}.y"], "{2}.b.x", "{2}.b.y.");
    check(&["name substring q y", "name suffix .x .y"], "a.x", "a.y.");
}

#[test]
fn names_of_any_octets_are_rewritten_and_keep_their_spelling() {
    let lab = ["name suffix .lab.test .inner.test"];
    check(&lab, "Office Printer._ipp._tcp.lab.test", r"Office\ Printer._ipp._tcp.inner.test.");
    check(&lab, "Büro 2.Lab.Test", r"B\195\188ro\ 2.inner.test.");
    check(&lab, r"a\.b.lab.test", r"a\.b.inner.test.");
    check(&lab, "0/25.a@b.lab.test", r"0/25.a\@b.inner.test.");
    check(&lab, r"\000\255.lab.test", r"\000\255.inner.test.");
    check(&["name suffix .lab.test .inner.test"], r"x\.lab.test", "as it is");
    check(&[r#"name "office printer.lab.test" Printer.inner.test"#], "Office Printer.lab.test", "Printer.inner.test.");
    check(&[r"name prefix office\032 a\.b-"], "Office Printer.x", r"a\.b-Printer.x.");
    check(&["name substring ü ue"], "Büro.x", "Buero.x.");
    check(&[r#"name regex "^(.*)\\ (.*)\.lab\.test\.$" {1}-{2}.x"#], "Office Printer.lab.test", "Office-Printer.x.");
    check(&[r"name regex ^(.*)\.lab\.test\.$ {1}.x"], "Büro 2.lab.test", r"B\195\188ro\ 2.x.");
    check(&[r"name regex ^b\\195\\188ro\.x\.$ y"], "Büro.x", "y.");
}

#[test]
fn a_rule_may_go_on() {
    let lines = ["continue name prefix a b", "name prefix b c", "name prefix c d"];
    check(&lines, "a.example", "c.example.");
    check(&["Continue NAME Prefix a b", "Stop Name PREFIX b c"], "a.example", "c.example.");
}

#[test]
fn what_would_be_no_name_is_an_error() {
    let invalid = |rule: &str, name: &str, reason: &str| {
        format!("invalid name after rewrite: the rule `{rule}` makes no name of {name}: {reason}")
    };
    let label = "x".repeat(63);
    let long = [label.as_str(), &label, &label, "x.lab.test"].join(".");
    let rule = format!("name suffix .lab.test .{label}.test");
    check(&[&rule], &long, &invalid(&rule, &format!("{long}."), "it is longer than 255 octets"));
    check(
        &["name substring a aa"],
        &format!("a{}.test", "x".repeat(62)),
        &invalid("name substring a aa", &format!("a{}.test.", "x".repeat(62)), "a label is longer than 63 octets"),
    );
    check(&["name prefix a ."], "ab.x", &invalid("name prefix a .", "ab.x.", "a label is empty"));
    let regex = r"name regex ^(.*)x\.$ {1}.y";
    check(&[regex], "x", &invalid(regex, "x.", "a label is empty"));
    // The second rule gets what the first one made.
    check(
        &["continue name suffix .a .b", "name prefix x. ."],
        "x.y.a",
        &invalid("name prefix x. .", "x.y.b.", "a label is empty"),
    );
}

#[track_caller]
fn check_refused(line: &str, wanted: &str) {
    let error = rules(&[line]).unwrap_err();
    assert!(error.contains(wanted), "{line}: {error}");
}

#[test]
fn rules_that_never_make_a_name_are_refused() {
    check_refused("name suffix .a ..", "\"..\" is no part of a name: a label is empty");
    check_refused(r"name prefix a b\25", "a backslash needs");
    check_refused("name a..b c", "no domain");
    check_refused("name regex (.*) {1}..x", "never becomes a name: a label is empty");
    check_refused("name regex (.*) {2}.x", "has a place for group 2, and the pattern \"(.*)\" has 1");
    check_refused("name suffix .a .b answer name a {1}", "has a place for group 1");
    check_refused("name substring \"\" b", "takes what to look for");
    check_refused("name suffix .a .b answer value auto", "take a pattern and a name");
    check_refused("name suffix .a .b auto", "auto is too much");
    check_refused("name suffix .a .b answer other", "answer takes auto, name or value");
}

/// `OWNER TYPE DATA`.
fn record(text: &str) -> Record {
    let text = text.replace(r"\ ", r"\032");
    let words: Vec<&str> = text.splitn(3, ' ').collect();
    let rtype = record_type(words[1]).unwrap();
    Record::from_rdata(absolute(words[0]).unwrap(), 60, data(rtype, words[2]).unwrap())
}

/// The records of an answer, and what the client sees of each; the sections do not matter.
#[track_caller]
fn check_restored(lines: &[&str], asked: &str, records: &[(&str, &str)]) {
    let rules = rules(lines).unwrap();
    let rewritten = Rewritten::new(&rules, &absolute(asked).unwrap()).unwrap().unwrap();
    for (from, wanted) in records {
        let mut reply = Reply {
            origin: Origin::Upstream { authentic: true },
            answers: vec![record(from)],
            authorities: vec![record(from)],
            additionals: vec![record(from)],
            ..Reply::error(ResponseCode::NoError)
        };
        rewritten.restore(&mut reply);
        assert_eq!(reply.origin, Origin::Upstream { authentic: false }, "{lines:?} {asked}");
        for section in [&reply.answers, &reply.authorities, &reply.additionals] {
            let told = record_text(&section[0]).replacen(" 60 IN", "", 1);
            assert_eq!(told, *wanted, "{lines:?} {asked}: {from}");
        }
    }
}

#[test]
fn the_client_gets_its_own_name_back() {
    for rule in ["prefix a b", "suffix .lab.test .in.test", "substring lab in", r"regex ^(.*)\.lab.test\.$ {1}.in.test"]
    {
        let name = if rule.starts_with("prefix") { "Alias.lab.test" } else { "A B.lab.test" };
        let rules = rules(&[&format!("name {rule}")]).unwrap();
        let asked = absolute(name).unwrap();
        let after = names::text(&Rewritten::new(&rules, &asked).unwrap().unwrap().name);
        check_restored(
            &[&format!("name {rule}")],
            name,
            &[
                (&format!("{after} A 192.0.2.1"), &format!("{} A 192.0.2.1", names::text(&asked))),
                ("other.in.test A 192.0.2.1", "other.in.test. A 192.0.2.1"),
                ("other.in.test MX 10 real.in.test", "other.in.test. MX 10 real.in.test."),
            ],
        );
    }
}

#[test]
fn a_suffix_with_auto_is_undone_in_all_names() {
    let rows = [
        ("Alias.service.consul CNAME Real.Service.consul", "alias.lab.test. CNAME Real.lab.test."),
        ("real.service.consul A 192.0.2.1", "real.lab.test. A 192.0.2.1"),
        ("service.consul SOA ns.service.consul admin.x 1 2 3 4 5", "lab.test. SOA ns.lab.test. admin.x. 1 2 3 4 5"),
        ("service.consul NS ns.service.consul", "lab.test. NS ns.lab.test."),
        ("a.service.consul MX 10 mail.service.consul", "a.lab.test. MX 10 mail.lab.test."),
        ("_a._tcp.service.consul SRV 1 2 3 h.service.consul", "_a._tcp.lab.test. SRV 1 2 3 h.lab.test."),
        ("1.x.arpa PTR office\\ printer.service.consul", r"1.x.arpa. PTR office\ printer.lab.test."),
        ("a.service.consul DNAME b.service.consul", "a.lab.test. DNAME b.lab.test."),
        (
            r#"a.service.consul NAPTR 1 2 "S" "SIP+D2U" "" b.service.consul"#,
            r#"a.lab.test. NAPTR 1 2 "S" "SIP+D2U" "" b.lab.test."#,
        ),
        ("a.service.consul AFSDB 1 b.service.consul", "a.lab.test. AFSDB 1 b.lab.test."),
        ("a.xservice.consul CNAME consul", "a.xservice.consul. CNAME consul."),
        ("a.service.consul MX 0 .", "a.lab.test. MX 0 ."),
        (". NS a.root", ". NS a.root."),
    ];
    for line in [
        "name suffix .lab.test .service.consul answer auto",
        "name suffix .lab.test .service.consul answer name auto",
        "stop Name Suffix .lab.test .service.consul ANSWER Auto",
        "{\n name suffix .lab.test. .service.consul.\n answer name auto\n}",
        "name suffix .lab.test .service.consul answer name never-there x AUTO",
    ] {
        check_restored(&[line], "alias.lab.test", &rows);
        check_restored(
            &[line],
            "Alias.LAB.test",
            &[("alias.service.consul A 192.0.2.1", "Alias.LAB.test. A 192.0.2.1")],
        );
    }
}

#[test]
fn other_kinds_with_auto_are_undone_where_the_new_name_stands() {
    let rows = [
        ("web.in.test CNAME x.in.test", "Web.lab.test. CNAME x.in.test."),
        ("a.in.test CNAME web.in.test", "a.in.test. CNAME Web.lab.test."),
        ("a.in.test SRV 0 0 1 b.web.in.test", "a.in.test. SRV 0 0 1 b.Web.lab.test."),
        ("b.web.in.test A 192.0.2.1", "b.Web.lab.test. A 192.0.2.1"),
        ("bweb.in.test A 192.0.2.1", "bweb.in.test. A 192.0.2.1"),
    ];
    for line in [
        "name web.lab.test web.in.test",
        "name exact web.lab.test web.in.test answer auto",
        "name prefix web.lab web.in answer auto",
        "name substring lab in answer auto",
        r"name regex ^(.*)\.lab\.test\.$ {1}.in.test answer auto",
    ] {
        check_restored(&[line], "Web.lab.test", &rows);
    }
}

#[test]
fn answers_are_rewritten_by_patterns() {
    let rule = r"name regex ^(.*)\.lab\.test\.$ {1}.in.test";
    let both = format!(r"{rule} answer name ^(.*)\.in\.test\.$ {{1}}.lab.test VALUE ^(.*)\.in\.test\.$ {{1}}.out.test");
    check_restored(
        &[&both],
        "web.lab.test",
        &[
            ("web.in.test CNAME Real.in.test", "web.lab.test. CNAME Real.out.test."),
            ("Office\\ Printer.in.test A 192.0.2.1", r"Office\ Printer.lab.test. A 192.0.2.1"),
            ("a.in.test PTR b.in.test", "a.lab.test. PTR b.out.test."),
            ("a.in.test NAPTR 1 2 \"\" \"\" \"\" b.in.test", "a.lab.test. NAPTR 1 2 \"\" \"\" \"\" b.out.test."),
        ],
    );
    // The last is undone first, and what would be no name stays.
    let label = "x".repeat(63);
    let chain = format!("{rule} answer value ^b c answer value ^a b answer name ^(.*)$ {{1}}.{label}.{label}.{label}");
    check_restored(
        &[&chain],
        "web.lab.test",
        &[(&format!("{label}.x CNAME a.x"), &format!("{label}.x. CNAME c.")), ("y MX 1 b", "y. MX 1 c.")],
    );
}

#[test]
fn several_rules_are_undone_in_reverse_order() {
    check_restored(
        &["continue name suffix .a.test .b.test answer auto", "name suffix .b.test .c.test answer auto"],
        "web.a.test",
        &[
            ("web.c.test CNAME real.c.test", "web.a.test. CNAME real.a.test."),
            ("real.b.test A 192.0.2.1", "real.a.test. A 192.0.2.1"),
        ],
    );
    // Without auto it is the name itself that comes back.
    check_restored(
        &["continue name suffix .a.test .b.test", "name prefix web x"],
        "Web.a.test",
        &[("x.b.test CNAME y.b.test", "Web.a.test. CNAME y.b.test."), ("web.b.test MX 1 x", "Web.a.test. MX 1 x.")],
    );
    check_restored(
        &["continue name a.test b.test", "continue name suffix .never .matches answer auto", "name b.test c.test"],
        "A.test",
        &[("c.test CNAME x.c.test", "A.test. CNAME x.A.test."), ("a.matches A 192.0.2.1", "a.matches. A 192.0.2.1")],
    );
}
