//! Addresses and names as hosts files, resolv.conf and Corefiles of the world spell them, asked over the wire.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use hickory_proto::op::Message;
use hickory_proto::rr::RData;
use hickory_proto::rr::rdata::{CNAME, PTR};
use shunt_dns::{RecordType, absolute, name_text};
use tempfile::TempDir;

use crate::client;
use crate::corefile::start;
use crate::fixture::cluster;
use crate::running::Program;

/// All that is answered: names as text, records in the order of the reply, or the code.
async fn ask(at: SocketAddr, text: &str, rtype: RecordType) -> String {
    let reply = client::udp(at, &client::question(&absolute(text).unwrap(), rtype)).await;
    let data = |data: &RData| {
        if let RData::CNAME(CNAME(name)) | RData::PTR(PTR(name)) = data { name_text(name) } else { data.to_string() }
    };
    let answers: Vec<String> =
        reply.answers.iter().map(|record| format!("{} {}", name_text(&record.name), data(&record.data))).collect();
    let soa = |reply: &Message| reply.authorities.iter().any(|record| record.record_type() == RecordType::SOA);
    match answers.as_slice() {
        [] => reply.metadata.response_code.to_str().to_owned(),
        _ => answers.join("; ") + if soa(&reply) { " SOA" } else { "" },
    }
}

#[tokio::test]
async fn hosts_have_wildcards_and_addresses_with_zones() {
    let place = tempfile::tempdir().unwrap();
    let text = ".:53 {
        hosts HOSTS {
            192.0.2.1 *.apps.lab.test
            192.0.2.2 shop.apps.lab.test
            ::ffff:192.0.2.30 mapped.lab.test
            fe80::1%lo0 local.lab.test
            192.0.2.4 \"office printer.lab.test\" 0/25.2.0.192.in-addr.arpa
            fallthrough
        }
        template IN TXT apps.lab.test {
            answer \"{{ .Name }} 60 IN TXT passed\"
        }
    }\n";
    let (server, _) = start(text, place.path(), None).await;
    let at = server.local_addresses()[0];
    for (name, rtype, wanted) in [
        ("Web.Apps.lab.test", RecordType::A, "Web.Apps.lab.test. 192.0.2.1"),
        ("shop.apps.lab.test", RecordType::A, "shop.apps.lab.test. 192.0.2.2"),
        ("web.apps.lab.test", RecordType::AAAA, "No Error"),
        ("apps.lab.test", RecordType::TXT, "apps.lab.test. passed"),
        ("deep.web.apps.lab.test", RecordType::A, "Query Refused"),
        ("1.2.0.192.in-addr.arpa", RecordType::PTR, "Query Refused"),
        ("2.2.0.192.in-addr.arpa", RecordType::PTR, "2.2.0.192.in-addr.arpa. shop.apps.lab.test."),
        ("mapped.lab.test", RecordType::A, "mapped.lab.test. 192.0.2.30"),
        ("mapped.lab.test", RecordType::AAAA, "No Error"),
        ("30.2.0.192.in-addr.arpa", RecordType::PTR, "30.2.0.192.in-addr.arpa. mapped.lab.test."),
        ("local.lab.test", RecordType::AAAA, "local.lab.test. fe80::1"),
        (r"Office\032Printer.lab.test", RecordType::A, r"Office\ Printer.lab.test. 192.0.2.4"),
        ("0/25.2.0.192.in-addr.arpa", RecordType::A, "0/25.2.0.192.in-addr.arpa. 192.0.2.4"),
    ] {
        assert_eq!(ask(at, name, rtype).await, wanted, "{name} {rtype}");
    }
}

/// A program that says 192.0.2.7 for all names below `test`, and for one of the cluster.
fn upstream(place: &Path) -> Program {
    let path = place.join("upstream.Corefile");
    let text = ". {
        template IN A test nothing.shop.svc.cluster.local a@b.0/25.2.0.192.in-addr.arpa {
            answer \"{{ .Name }} 60 IN A 192.0.2.7\"
        }
        template IN ANY cluster.local {
            rcode NXDOMAIN
        }
    }\n";
    std::fs::write(&path, text).unwrap();
    Program::start(&["-conf", path.to_str().unwrap(), "--listen", "127.0.0.1:0"])
}

#[tokio::test(flavor = "multi_thread")]
async fn upstreams_are_asked_for_the_target_of_a_dangling_external_name_if_it_falls_through() {
    let place = tempfile::tempdir().unwrap();
    let upstream = upstream(place.path());
    let at = upstream.dns();
    let text = |fallthrough: &str| {
        format!(".:53 {{\n kubernetes cluster.local {{\n {fallthrough}\n }}\n forward . {at}\n}}\n")
    };
    let gone = "gone.shop.svc.cluster.local. nothing.shop.svc.cluster.local.";
    let answered = format!("{gone}; nothing.shop.svc.cluster.local. 192.0.2.7");
    let alone = format!("{gone} SOA");
    for (fallthrough, wanted) in [
        ("fallthrough", &answered),
        ("fallthrough svc.cluster.local", &answered),
        ("fallthrough in-addr.arpa", &alone),
        ("", &alone),
    ] {
        let (server, _) = start(&text(fallthrough), place.path(), Some(cluster())).await;
        let server = server.local_addresses()[0];
        assert_eq!(ask(server, "gone.shop.svc.cluster.local", RecordType::A).await, *wanted, "{fallthrough}");
    }
    let (server, _) = start(&text("fallthrough"), place.path(), Some(cluster())).await;
    let server = server.local_addresses()[0];
    for (name, rtype, wanted) in [
        // What upstreams do not know either.
        ("gone.shop.svc.cluster.local", RecordType::AAAA, alone.as_str()),
        ("gone.shop.svc.cluster.local", RecordType::CNAME, gone),
        // A target that exists, and a loop.
        (
            "inner.shop.svc.cluster.local",
            RecordType::AAAA,
            "inner.shop.svc.cluster.local. WEB.shop.svc.cluster.local. SOA",
        ),
        (
            "loop-a.shop.svc.cluster.local",
            RecordType::A,
            "loop-a.shop.svc.cluster.local. loop-b.shop.svc.cluster.local.; \
             loop-b.shop.svc.cluster.local. loop-a.shop.svc.cluster.local. SOA",
        ),
    ] {
        assert_eq!(ask(server, name, rtype).await, wanted, "{name} {rtype}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn server_blocks_and_forwards_are_for_any_names() {
    let place = tempfile::tempdir().unwrap();
    let upstream = upstream(place.path());
    let at = upstream.dns();
    let text = format!(
        "0/25.2.0.192.in-addr.arpa, \"office printer.test\" {{\n forward . {at}\n}}\n\
         .:53\n{{\n forward test {at} {{\n  except a@b.test caf\\233.test\n }}\n}}\n"
    );
    let (server, _) = start(&text, place.path(), None).await;
    let server = server.local_addresses()[0];
    for (name, wanted) in [
        ("a@b.0/25.2.0.192.in-addr.arpa", r"a\@b.0/25.2.0.192.in-addr.arpa. 192.0.2.7"),
        (r"x.Office\032printer.test", r"x.Office\ printer.test. 192.0.2.7"),
        ("x.test", "x.test. 192.0.2.7"),
        ("x.a@b.test", "Query Refused"),
        (r"caf\233.test", "Query Refused"),
        ("1.2.0.192.in-addr.arpa", "Query Refused"),
    ] {
        assert_eq!(ask(server, name, RecordType::A).await, wanted, "{name}");
    }
}

const CLUSTER: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: web}, spec: {clusterIP: 10.96.3.3, ports: [{port: 80}]}}
";
const WEB: &str = "web.shop.svc.cluster.local";

/// The program where `/etc` is a folder of ours; `None`, with the reason printed, where such a place cannot be made.
#[expect(clippy::print_stderr, reason = "a skip is printed with its reason")]
fn with_etc(etc: &Path, arguments: &[&str]) -> Option<Program> {
    let command = |shell: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c"]).args(shell);
        command
    };
    let etc = etc.to_str().unwrap();
    let possible = command(&["mount --bind \"$0\" /etc", etc]).output();
    if !possible.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no mount namespace of our own: {possible:?}");
        return None;
    }
    let mut command = command(&["mount --bind \"$0\" /etc && exec \"$@\"", etc, env!("CARGO_BIN_EXE_shunt-dns")]);
    command.args(["--listen", "127.0.0.1:0", "--ready-address", "127.0.0.1:0"]).args(arguments);
    Some(Program::spawn(command))
}

/// A folder for `/etc`, and one of manifests.
fn places() -> (TempDir, TempDir) {
    let (etc, manifests) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(manifests.path().join("cluster.yaml"), CLUSTER).unwrap();
    (etc, manifests)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resolv_conf_that_nobody_named_may_be_missing_or_useless_until_it_is_there() {
    let place = tempfile::tempdir().unwrap();
    let upstream = upstream(place.path());
    let useless: [fn(&Path); 6] = [
        |_missing| {},
        |path| std::fs::write(path, "").unwrap(),
        |path| std::fs::write(path, "# none\nsearch test\n").unwrap(),
        |path| std::fs::write(path, "nameserver dns.test\nnameserver fe80::53%nowhere\n").unwrap(),
        |path| std::fs::write(path, [0xff, 0xfe, 0]).unwrap(),
        |path| std::fs::create_dir(path).unwrap(),
    ];
    let mut programs = Vec::new();
    for make in useless {
        let (etc, manifests) = places();
        make(&etc.path().join("resolv.conf"));
        let arguments = ["--manifests", manifests.path().to_str().unwrap()];
        let Some(program) = with_etc(etc.path(), &arguments) else { return };
        programs.push((program, etc, manifests));
    }
    for (number, (program, etc, _)) in programs.iter().enumerate() {
        let at = program.dns();
        assert_eq!(ask(at, WEB, RecordType::A).await, format!("{WEB}. 10.96.3.3"), "{number}");
        assert_eq!(ask(at, "www.example.test", RecordType::A).await, "Query Refused", "{number}");
        let ready = program.http("/ready");
        assert_eq!(ready.status, 200);
        assert!(ready.body.starts_with("OK\nwarning: /etc/resolv.conf names no server"), "{}", ready.body);
        let log = program.log();
        let warned = log.lines().filter(|line| line.contains(" WARN ") && line.contains("/etc/resolv.conf"));
        assert_eq!(warned.count(), 1, "{number}: {log}");
        let path = etc.path().join("resolv.conf");
        if path.is_dir() {
            std::fs::remove_dir(&path).unwrap();
        }
        std::fs::write(&path, format!("nameserver {}\n", upstream.dns())).unwrap();
    }
    for (program, _, _) in &programs {
        program.wait_for("/ready", 200, |body| body == "OK");
        assert_eq!(ask(program.dns(), "www.example.test", RecordType::A).await, "www.example.test. 192.0.2.7");
    }
}

#[test]
fn a_resolv_conf_that_the_operator_named_must_be_there() {
    let (etc, manifests) = places();
    let corefile = etc.path().join("Corefile");
    std::fs::write(&corefile, ".:53 {\n forward . /etc/resolv.conf\n}\n").unwrap();
    let manifests = manifests.path().to_str().unwrap();
    for arguments in
        [["-conf", "/etc/Corefile"].as_slice(), &["--manifests", manifests, "--upstream", "/etc/resolv.conf"]]
    {
        let Some(program) = with_etc(etc.path(), arguments) else { return };
        let (status, log) = program.ended();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("reading upstreams from /etc/resolv.conf"), "{log}");
    }
}
