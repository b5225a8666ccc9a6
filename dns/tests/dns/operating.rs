//! What an operator meets who runs this in place of CoreDNS: failures with their reasons, counts, stops and changes.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record};
use nix::sys::signal::Signal;
use shunt_dns::{Corefile, RecordType, Server, ServerConfig, serve};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::client;
use crate::corefile::ask;
use crate::fixture::{cluster, name};
use crate::running::Program;

fn written(text: &str) -> (TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("Corefile");
    std::fs::write(&path, text).unwrap();
    (place, path)
}

/// A server in this process that knows the cluster of the tables, or not yet.
async fn start(text: &str, known: bool) -> Server {
    let (_place, path) = written(text);
    let file = Corefile::read(&path).unwrap();
    let (_, snapshots) = watch::channel(known.then(|| Arc::new(cluster())));
    let config = file.server_config(vec!["127.0.0.1:0".parse().unwrap()], file.zone(vec![]));
    serve(ServerConfig { startup_timeout: Duration::from_secs(3600), ..config }, snapshots).await.unwrap()
}

/// Answers everything with one address that may be kept for 3 s, until the program ends.
fn upstream() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut wire = [0; 4096];
        while let Ok((length, client)) = socket.recv_from(&mut wire) {
            let mut message = Message::from_vec(&wire[..length]).unwrap().into_response();
            let owner = message.queries[0].name.clone();
            message.add_answer(Record::from_rdata(owner, 3, RData::A(A::new(192, 0, 2, 7))));
            socket.send_to(&message.to_vec().unwrap(), client).unwrap();
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_says_who_was_asked_last_and_what_came_of_it() {
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (_place, path) = written(&format!(".:53 {{\n errors\n forward . {closed}\n}}\n"));
    let program = Program::with_corefile(&path);
    assert_eq!(ask(program.dns(), "WWW.example.org.", RecordType::A).await, "Server Failure");
    let line = program.line("plugin/errors: 2 www.example.org. A: no upstream answered");
    assert!(line.contains("ERROR") && line.contains(&format!("the last was {closed}: ")), "{line}");
    // So does the word that it is down, which probes find out.
    let line = program.line("the upstream does not answer");
    assert!(line.contains(&closed.to_string()) && line.contains("error="), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_of_two_blocks_is_counted_once_and_cached_answers_at_once() {
    let to = upstream();
    let block = |domain: &str| format!("{domain}:53 {{\n cache {{\n success 100 30 20\n }}\n forward . {to}\n}}\n");
    let (_place, path) = written(&(block("a.test") + &block("b.test")));
    let program = Program::with_corefile(&path);
    let at = program.dns();
    for name in ["one.a.test.", "two.a.test.", "one.b.test.", "one.b.test."] {
        let answer = ask(at, name, RecordType::A).await;
        let ttl: u32 = answer.split(' ').nth(1).unwrap().parse().unwrap();
        // No answer is kept for less than 20 s, as the file says, nor does its client hear of less at first (DNS-14.4).
        assert!(answer.ends_with(" 192.0.2.7") && (1..=20).contains(&ttl) && (ttl > 3), "{answer}");
    }
    let page = program.http("/metrics").body;
    for line in [
        format!(
            "coredns_proxy_request_duration_seconds_count{{proxy_name=\"forward\",to=\"{to}\",rcode=\"NOERROR\"}} 3"
        ),
        format!("coredns_cache_entries{{server=\"dns://{at}\",type=\"success\",zones=\"a.test.\",view=\"\"}} 2"),
        format!("coredns_cache_entries{{server=\"dns://{at}\",type=\"success\",zones=\"b.test.\",view=\"\"}} 1"),
    ] {
        assert!(page.lines().any(|found| found == line), "no {line} in:\n{page}");
    }
    for name in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"] {
        assert!(page.lines().any(|line| line.starts_with(&format!("{name} "))), "no {name} in:\n{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_changes_nothing_and_a_lameduck_is_that_of_the_file_in_force() {
    let fixed = "template IN TXT example.test {\n answer \"example.test 5 IN TXT one\"\n }\n";
    let text = |lameduck: &str| format!(".:53 {{\n health {{\n lameduck {lameduck}\n }}\n {fixed}}}\n");
    let (_place, path) = written(&text("0s"));
    let program = Program::with_corefile(&path);
    let at = program.dns();
    program.tell(Signal::SIGHUP);
    assert_eq!(ask(at, "example.test.", RecordType::TXT).await, "example.test. 5 one");
    std::fs::write(&path, text("600s")).unwrap();
    program.tell(Signal::SIGUSR1);
    program.line("the new Corefile is in force");
    program.tell(Signal::SIGTERM);
    program.wait_for("/ready", 503, |body| body.contains("Shutting down"));
    assert_eq!(ask(at, "example.test.", RecordType::TXT).await, "example.test. 5 one");
    program.tell(Signal::SIGTERM);
    assert_eq!(program.ended().0.code(), Some(0));
}

#[tokio::test]
async fn a_template_s_failure_waits_for_no_cluster() {
    let text = ".:53 {\n kubernetes cluster.local\n template ANY ANY down.test {\n rcode SERVFAIL\n }\n}\n";
    let server = start(text, false).await;
    // One about the cluster would wait for an hour.
    assert_eq!(ask(server.local_addresses()[0], "www.down.test.", RecordType::A).await, "Server Failure");
}

#[tokio::test]
async fn a_zone_is_transferred_if_it_is_one_of_those_named() {
    for (named, rcode) in [("other.example", ResponseCode::Refused), ("cluster.local", ResponseCode::NoError)] {
        let server =
            start(&format!(".:53 {{\n kubernetes cluster.local\n transfer {named} {{\n to *\n }}\n}}\n"), true).await;
        let question = client::question(&name("cluster.local."), RecordType::AXFR);
        let reply = client::tcp(server.local_addresses()[0], &[question]).await.remove(0);
        assert_eq!(reply.metadata.response_code, rcode, "{named}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_is_logged_as_any_query() {
    let (place, path) = written(".:53 {\n log\n kubernetes cluster.local\n transfer {\n to *\n }\n}\n");
    let place = place.path().to_str().unwrap();
    let program = Program::start(&["-conf", path.to_str().unwrap(), "--manifests", place, "--listen", "127.0.0.1:0"]);
    let question = client::question(&name("cluster.local."), RecordType::AXFR);
    client::tcp(program.dns(), &[question]).await;
    let line = program.line("\"AXFR IN cluster.local. tcp ");
    assert!(line.contains(" NOERROR qr,aa,"), "{line}");
}

#[tokio::test]
async fn a_server_that_is_shut_down_leaves_no_connection_behind() {
    let server = start(".:53 {\n template IN A test {\n answer \"a.test 5 IN A 192.0.2.1\"\n }\n}\n", true).await;
    let mut connection = tokio::net::TcpStream::connect(server.local_addresses()[0]).await.unwrap();
    // It is accepted when this is answered.
    ask(server.local_addresses()[0], "a.test.", RecordType::A).await;
    client::tcp(server.local_addresses()[0], &[client::question(&name("a.test."), RecordType::A)]).await;
    server.shutdown().await;
    // Long before it would be closed as idle.
    let end = timeout(Duration::from_secs(5), connection.read(&mut [0; 1])).await.expect("the end of the connection");
    assert_eq!(end.unwrap_or_default(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_heard_by_both_families_however_everywhere_is_written() {
    let (_place, path) = written(".:53 {\n health\n}\n");
    for everywhere in ["0.0.0.0:0", "[::]:0"] {
        let http = ["--health-address", everywhere, "--ready-address", everywhere];
        let program =
            Program::start(&[&["-conf", path.to_str().unwrap(), "--listen", "127.0.0.1:0"], &http[..]].concat());
        let mut at = program.http_address();
        // One listener, which takes both wherever there are both.
        let own: &[&str] = if at.is_ipv6() { &["127.0.0.1", "::1"] } else { &["127.0.0.1"] };
        for ip in own {
            at.set_ip(ip.parse().unwrap());
            assert_eq!(lab::http_get(at, "/health", Duration::from_secs(20)).unwrap().status, 200, "{everywhere} {at}");
        }
    }
}

#[test]
fn a_resolv_conf_that_cannot_serve_a_pod_is_told_of() {
    for (conf, words) in [
        ("search a.test\n", "resolv.conf names no server to ask: names outside of the cluster are refused"),
        ("nameserver 127.0.0.53\n", "the nameserver is a loopback address: in a pod no server listens there"),
    ] {
        let (place, path) = written(".:53 {\n forward . ./resolv.conf\n}\n");
        std::fs::write(place.path().join("resolv.conf"), conf).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_shunt-dns"));
        command.args(["--listen", "127.0.0.1:0", "-conf"]).arg(path).current_dir(place.path());
        command.env("KUBERNETES_SERVICE_HOST", "10.96.0.1");
        assert!(Program::spawn(command).line(words).contains("./resolv.conf"), "{conf}");
    }
}
