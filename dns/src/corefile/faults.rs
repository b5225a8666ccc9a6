//! Files with one fault each, and the line that the message names; and shapes of files that have none.

use super::*;

/// The fault is in the line that ends with `# here`.
#[track_caller]
fn check(text: &str, part: &str) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("Corefile");
    std::fs::write(&path, text).unwrap();
    let error = Corefile::read(&path).expect_err(text).to_string();
    let line = text.lines().position(|line| line.ends_with("# here")).unwrap() + 1;
    let wanted = format!("{}:{line}: ", path.display());
    assert!(error.starts_with(&wanted) && error.contains(part), "{text}\n-> {error}\n   wanted {wanted} ... {part}");
}

#[test]
fn the_message_names_the_line_of_a_fault_among_the_names_of_a_server() {
    check("a.test,\nb..test, # here\nc.test {\n}\n", "b..test");
    check("a.test,\n\nc.test:x # here\n{\n}\n", "\"x\" is no port");
    check("a.test:53,\nb.test:54 { # here\n}\n", "ports 53 and 54");
    check("a.test {\n}\nb.test,\na.test { # here\n}\n", "a.test. has a server block already");
    check("a.test,\na.test { # here\n}\n", "a.test. has a server block already");
    check("a.test,\n10.0.0.0/33 { # here\n}\n", "10.0.0.0/33");
}

#[test]
fn the_message_names_the_line_of_a_brace() {
    check(".:53 { # here\n errors\n", "no end");
    check(".:53 {\n hosts { # here\n 192.0.2.1 a\n", "no end");
    check(".:53\n{ # here\n errors\n", "no end");
    check(".:53 {\n}\n{ # here\n}\n", "opens a block of nothing");
    check("{ # here\n errors\n}\n", "opens a block of nothing");
    check(".:53 {\n import x\n { # here\n }\n}\n", "opens a block of nothing");
    check(".:53 {\n errors\n}\n} # here\n", "closes nothing");
    check(".:53\nerrors\n} # here\n", "closes nothing");
    check(".:53{ # here\n errors\n}\n", ".:53{: a brace stands by itself");
    check("a.test b.test{ # here\n errors\n}\n", "b.test{: a brace stands by itself");
    check(".:53 {\n forward . 192.0.2.1{ # here\n  policy random\n }\n}\n", "192.0.2.1{: a brace stands by itself");
    check(".:53 {\n log} # here\nb.test {\n}\n", "log}: a brace stands by itself");
    check(".:53 {\n cache {\n  success 100} # here\n log\n}\n", "100}: a brace stands by itself");
    check(".:53 {\n errors\n}} # here\n", "}}: a brace stands by itself");
    check("(a) # here\nlog\n", "a snippet needs braces");
}

#[test]
fn the_message_names_the_line_of_an_option() {
    check(".:53 {\n forward . tls://192.0.2.1 {\n  force_tcp\n  tls_servername a_b! # here\n }\n}\n", "a_b!");
    check(".:53 {\n forward . 192.0.2.1 {\n  except a.test\n  except b..test # here\n }\n}\n", "b..test");
    check(".:53 {\n forward # here\n}\n", "takes a domain");
    check(".:53 {\n forward 10.0.0.0/7 192.0.2.1 # here\n}\n", "10.in-addr.arpa. and 11.in-addr.arpa.");
    check(".:53 {\n forward . fe80::1 # here\n}\n", "link-local address without its interface");
    check(".:53 {\n forward . 192.0.2.1 192.0.2.1:0 # here\n}\n", "192.0.2.1:0");
    check(".:53 {\n hosts {\n  192.0.2.1 a\n  192.0.2.2 b..c # here\n }\n}\n", "b..c");
    check(".:53 {\n kubernetes cluster.local {\n  pods insecure\n  ttl x # here\n }\n}\n", "ttl");
    check(".:53 {\n hosts {\n  no_reverse x # here\n }\n}\n", "no_reverse: takes no arguments");
    check(".:53 {\n errors {\n  stacktrace { # here\n   x\n  }\n }\n}\n", "stacktrace: takes no braces");
    check(".:53 {\n template IN A {\n  rcode NOERROR\n  match (x # here\n }\n}\n", "the pattern");
}

#[test]
fn the_message_names_the_line_after_quotes_that_fill_several() {
    check(
        ".:53 {\n template IN TXT a.test {\n  answer \"a.test 5 IN\n   TXT x\"\n  nonsense # here\n }\n}\n",
        "nonsense",
    );
    check(".:53 {\n errors\n log \" # here\n\n}\n", "the quote has no end");
    check("\"a.test\n\", b..test { # here\n}\n", "b..test");
}

#[test]
fn a_fault_in_an_imported_file_is_named_there() {
    let place = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(place.path().join(name), text).unwrap();
    write("Corefile", "(common) {\n errors\n nonsense\n}\n.:53 {\n import x.override\n import common\n}\n");
    let read = || Corefile::read(&place.path().join("Corefile")).unwrap_err().to_string();
    write("x.override", "log\n\ncache {\n ttl 5\n}\n");
    let named = format!("{}:4: cache: ttl is not supported", place.path().join("x.override").display());
    assert!(read().starts_with(&named), "{}", read());
    write("x.override", "log\n");
    let named = format!("{}:3: nonsense is not supported", place.path().join("Corefile").display());
    assert!(read().starts_with(&named), "{}", read());
    write("x.override", "log\ncache {\n");
    let named = format!("{}:2: the block that begins here has no end", place.path().join("x.override").display());
    assert!(read().contains(&named), "{}", read());
}

#[test]
fn the_message_names_the_line_of_another_encoding() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("Corefile");
    std::fs::write(&path, b".:53 {\n # caf\xe9\n}\n").unwrap();
    let error = Corefile::read(&path).unwrap_err().to_string();
    assert_eq!(error, format!("{}:2: a character is not UTF-8: save the file in that encoding", path.display()));
}

/// The domains of the blocks, with how many upstreams each has, and whether it logs.
#[track_caller]
fn shape(text: &str) -> String {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("Corefile");
    std::fs::write(place.path().join("more"), "forward . 192.0.2.1\nlog\n").unwrap();
    std::fs::write(&path, text).unwrap();
    let file = Corefile::read(&path).unwrap_or_else(|error| panic!("{text}\n-> {error}"));
    let block = |block: &BlockConfig| {
        let log = if block.log.is_some() { " log" } else { "" };
        let hosts = block.hosts.as_ref().map_or(String::new(), |hosts| format!(" hosts:{}", hosts.lines.len()));
        format!("{}{}{log}{hosts}", names::text(&block.domain), " forward".repeat(block.forward.routes.len()))
    };
    file.blocks.iter().map(block).collect::<Vec<_>>().join("; ")
}

#[test]
fn a_brace_may_stand_below_the_name() {
    assert_eq!(shape("example.org:53\n{\n log\n}\n.:53\n\n{\n}\n"), "example.org. log; .");
    assert_eq!(shape("a.test,\nb.test\n# both\n{ log\n}\n"), "a.test. log; b.test. log");
    assert_eq!(shape("(x)\n{\n log\n}\n.\n{\n import x\n hosts\n {\n  192.0.2.1 a\n }\n}\n"), ". log hosts:1");
}

#[test]
fn one_block_needs_no_braces() {
    assert_eq!(shape(".:53\nforward . 192.0.2.1\nlog\n"), ". forward log");
    assert_eq!(shape("a.test b.test,\nc.test\nlog\n"), "a.test. log; b.test. log; c.test. log");
    assert_eq!(shape(".:53\nhosts {\n 192.0.2.1 a\n 192.0.2.2 b\n}\nlog\n"), ". log hosts:2");
    assert_eq!(shape("(x) {\n log\n}\n.:53\nimport x\nforward . 192.0.2.1\n"), ". forward log");
    assert_eq!(shape(".:53\nimport more\n"), ". forward log");
    assert_eq!(shape("a.test {\n log\n}\n.:53\nforward . 192.0.2.1\n"), "a.test. log; . forward");
    // A comma at the end of a line says only of names that more follow.
    let template = "template IN TXT a.test {\n answer \"a.test 5 IN TXT a,\"\n}\nlog";
    assert_eq!(shape(&format!(".:53 {{\n {template}\n}}\n")), ". log");
    assert_eq!(shape(&format!(".:53\n{template}\nforward . 192.0.2.1\n")), ". forward log");
}

#[test]
fn domains_are_any_names() {
    assert_eq!(shape("0/25.2.0.192.in-addr.arpa {\n log\n}\n"), "0/25.2.0.192.in-addr.arpa. log");
    assert_eq!(shape("\"office printer.test\" {\n}\n"), r"office\ printer.test.");
    for name in ["0/25.2.0.192.in-addr.arpa", "bücher.test", r"office\032printer.test", "a@b%+~.test", "-x-.test"] {
        let text = format!(
            ".:53 {{\n forward {name} 192.0.2.1 {{\n  except x.{name}\n }}\n cache 30 {{\n disable success {name}\n }}\n}}\n"
        );
        assert_eq!(shape(&text), ". forward");
    }
}
