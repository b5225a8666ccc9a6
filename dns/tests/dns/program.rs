//! The program as an operator sees it in place of CoreDNS: flags, signals, exit codes, health, metrics.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use lab::api::FakeApi;
use nix::sys::signal::Signal;
use shunt_dns::RecordType;
use tempfile::TempDir;
use tokio::net::UdpSocket;

use crate::client;
use crate::corefile::ask;
use crate::fixture::name;
use crate::running::Program;

/// How often it is looked whether something has come true.
const EVERY: Duration = Duration::from_millis(10);
const FIXED: &str = ".:53 {\n template IN TXT example.test {\n answer \"example.test 5 IN TXT one\"\n }\n}\n";

fn written(text: &str) -> (TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("Corefile");
    std::fs::write(&path, text).unwrap();
    (place, path)
}

async fn wait_for_answer(at: SocketAddr, wanted: &str) {
    let mut last = String::new();
    for _ in 0..2000 {
        last = ask(at, "example.test.", RecordType::TXT).await;
        if last == wanted {
            return;
        }
        tokio::time::sleep(EVERY).await;
    }
    panic!("never {wanted} but {last}");
}

#[track_caller]
fn check_refused(arguments: &[&str], code: i32, words: &[&str]) {
    let (status, log) = Program::start(arguments).ended();
    assert_eq!(status.code(), Some(code), "{arguments:?}: {log}");
    for part in words {
        assert!(log.contains(part), "{arguments:?}: no {part:?} in {log}");
    }
}

#[test]
fn what_it_cannot_do_is_refused_with_its_place_and_name() {
    let (_place, path) = written(".:53 {\n errors\n k8s_external example.org\n}\n");
    let path = path.to_str().unwrap();
    check_refused(&["-conf", path], 1, &[&format!("{path}:3: "), "k8s_external"]);
    check_refused(&["-conf", "/nowhere/Corefile"], 1, &["/nowhere/Corefile", "No such file"]);
    check_refused(&["-conf", path, "-pidfile", "x"], 2, &["--pidfile"]);
    check_refused(&["--listen", "somewhere"], 2, &["--listen", "somewhere"]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let place = tempfile::tempdir().unwrap();
    let manifests = place.path().to_str().unwrap();
    check_refused(&["--manifests", manifests, "--listen", &at], 1, &[&at, "another DNS server holds it"]);
    check_refused(
        &["--manifests", manifests, "--listen", "127.0.0.1:0", "--health-address", &at],
        1,
        &[&at, "is another server running here"],
    );
}

#[test]
fn it_tells_its_version_as_coredns_does() {
    let output = Command::new(env!("CARGO_BIN_EXE_shunt-dns")).arg("-version").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8(output.stdout).unwrap().starts_with("shunt-dns "));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_of_blocks_without_one_can_be_another() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (_place, path) = written(&FIXED.replace(".:53 {", ". {\n bind 127.0.0.1"));
    let program = Program::start(&["-conf", path.to_str().unwrap(), &format!("-dns.port={port}")]);
    assert_eq!(program.dns().port(), port);
    wait_for_answer(program.dns(), "example.test. 5 one").await;
}

#[test]
fn it_is_healthy_at_once_and_ready_with_the_first_view_of_the_cluster() {
    let api = FakeApi::start().unwrap();
    api.stop_listening();
    let place = tempfile::tempdir().unwrap();
    let kubeconfig = place.path().join("kubeconfig");
    std::fs::write(&kubeconfig, api.kubeconfig()).unwrap();
    let corefile = format!(
        ".:53 {{\n health\n ready\n prometheus\n kubernetes cluster.local {{\n kubeconfig {}\n }}\n}}\n",
        kubeconfig.display()
    );
    std::fs::write(place.path().join("Corefile"), corefile).unwrap();
    let program = Program::with_corefile(&place.path().join("Corefile"));
    let health = program.http("/health");
    assert_eq!((health.status, health.body.as_str()), (200, "OK"));
    let ready = program.http("/ready");
    assert_eq!((ready.status, ready.body.as_str()), (503, "kubernetes"));
    api.resume().unwrap();
    program.wait_for("/ready", 200, |body| body.contains("OK"));
    // What was known once stays known.
    api.stop_listening();
    assert_eq!(program.http("/ready").status, 200);
    program.tell(Signal::SIGTERM);
    assert_eq!(program.ended().0.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lame_duck_is_not_ready_and_answers_until_it_is_told_again() {
    let (_place, path) = written(&FIXED.replace(".:53 {", ".:53 {\n health {\n lameduck 600s\n }\n"));
    let program = Program::with_corefile(&path);
    assert_eq!(program.http("/ready").status, 200);
    program.tell(Signal::SIGTERM);
    program.wait_for("/ready", 503, |body| body.contains("Shutting down"));
    assert_eq!(program.http("/health").status, 200);
    assert_eq!(ask(program.dns(), "example.test.", RecordType::TXT).await, "example.test. 5 one");
    program.tell(Signal::SIGTERM);
    assert_eq!(program.ended().0.code(), Some(0));
}

/// What an upstream is asked, by name, until it has been asked for all of these; others are ours to find loops.
async fn asked_for(upstream: &UdpSocket, names: &[&str]) -> Vec<(Message, SocketAddr)> {
    let mut asked = BTreeMap::new();
    while asked.len() < names.len() {
        let (message, from) = next_question(upstream).await;
        let owner = message.queries[0].name.to_string();
        if names.contains(&owner.as_str()) {
            asked.insert(owner, (message, from));
        }
    }
    asked.into_values().collect()
}

async fn next_question(upstream: &UdpSocket) -> (Message, SocketAddr) {
    let mut wire = [0; 512];
    let (length, from) = upstream.recv_from(&mut wire).await.unwrap();
    (Message::from_vec(&wire[..length]).unwrap(), from)
}

async fn answer(upstream: &UdpSocket, (mut message, from): (Message, SocketAddr)) {
    message.metadata.message_type = MessageType::Response;
    upstream.send_to(&message.to_vec().unwrap(), from).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_on_their_way_arrive_before_it_ends() {
    let upstream = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = upstream.local_addr().unwrap();
    let (_place, path) = written(&format!(".:53 {{\n forward . {at}\n}}\n"));
    let program = Program::with_corefile(&path);
    let server = program.dns();
    let question = |text: &str| client::question(&name(text), RecordType::A);
    let (over_udp, over_tcp) = (question("udp.test."), question("tcp.test."));
    let idle = tokio::net::TcpStream::connect(server).await.unwrap();
    let clients = tokio::spawn(async move {
        let over_tcp = [over_tcp];
        tokio::join!(client::udp(server, &over_udp), client::tcp(server, &over_tcp))
    });
    let asked = asked_for(&upstream, &["udp.test.", "tcp.test."]).await;
    program.tell(Signal::SIGTERM);
    // No new query is accepted.
    while tokio::net::TcpStream::connect(server).await.is_ok() {
        tokio::time::sleep(EVERY).await;
    }
    // If that took long, the same is asked again.
    let answering = tokio::spawn(async move {
        for question in asked {
            answer(&upstream, question).await;
        }
        loop {
            let again = next_question(&upstream).await;
            answer(&upstream, again).await;
        }
    });
    let (udp, tcp) = clients.await.unwrap();
    answering.abort();
    for reply in [&udp, &tcp[0]] {
        assert_eq!(reply.metadata.response_code.to_str(), "No Error");
    }
    // A connection without a query is not waited for.
    let (status, log) = program.ended();
    assert_eq!(status.code(), Some(0));
    assert!(!log.contains("not answered in time"), "{log}");
    drop(idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_reads_its_corefile_again_when_told_to() {
    let (_place, path) = written(FIXED);
    let program = Program::with_corefile(&path);
    let at = program.dns();
    wait_for_answer(at, "example.test. 5 one").await;
    let version =
        |page: &str| page.lines().find(|line| line.starts_with("coredns_reload_version_info")).map(str::to_owned);
    let before = version(&program.http("/metrics").body);
    std::fs::write(&path, FIXED.replace("one", "two")).unwrap();
    program.tell(Signal::SIGUSR1);
    wait_for_answer(at, "example.test. 5 two").await;
    // The metric changes a moment after the answers.
    let changed = |page: &str| version(page).is_some_and(|now| Some(&now) != before.as_ref());
    let after = version(&program.wait_for("/metrics", 200, changed));
    assert!(before.is_some(), "{after:?}");
    // A bad one changes nothing, and is reported at each request.
    std::fs::write(&path, "nonsense {").unwrap();
    program.tell(Signal::SIGUSR1);
    program.wait_for("/metrics", 200, |body| body.contains("coredns_reload_failed_total 1\n"));
    program.tell(Signal::SIGUSR1);
    program.wait_for("/metrics", 200, |body| body.contains("coredns_reload_failed_total 2\n"));
    wait_for_answer(at, "example.test. 5 two").await;
    assert_eq!(version(&program.http("/metrics").body), after);
}

#[test]
fn without_a_corefile_there_is_nothing_to_read_again() {
    let place = tempfile::tempdir().unwrap();
    let manifests = place.path().to_str().unwrap();
    let program = Program::start(&["--manifests", manifests, "--listen", "127.0.0.1:0", "--upstream", ""]);
    program.dns();
    program.tell(Signal::SIGUSR1);
    program.tell(Signal::SIGTERM);
    assert_eq!(program.ended().0.code(), Some(0));
}

#[test]
fn it_takes_all_the_files_that_it_may_open() {
    let (_place, path) = written(FIXED);
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -S -n 100; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_shunt-dns")]);
    command.args(["--listen", "127.0.0.1:0", "-conf"]).arg(path);
    let program = Program::spawn(command);
    program.dns();
    let limits = std::fs::read_to_string(Path::new("/proc").join(program.id().to_string()).join("limits")).unwrap();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let mut words = files.split_whitespace();
    assert_eq!(words.next(), words.next(), "{files}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dashboards_find_what_coredns_tells() {
    let (place, path) = written("");
    let hosts = place.path().join("hosts");
    std::fs::write(&hosts, "192.0.2.1 printer.test\n").unwrap();
    let template = "template IN ANY example.test {\n answer \"example.test 5 IN TXT one\"\n }\n";
    let text = format!(
        "test:53 {{\n errors\n cache\n {template} forward . 127.0.0.1:9\n hosts {} {{\n fallthrough\n }}\n}}\n\
         other.test:53 {{\n log\n}}\n",
        hosts.display()
    );
    std::fs::write(&path, text).unwrap();
    let program = Program::with_corefile(&path);
    let at = program.dns();
    assert_eq!(ask(at, "example.test.", RecordType::TXT).await, "example.test. 5 one");
    assert_eq!(ask(at, "printer.test.", RecordType::A).await, "printer.test. 3600 192.0.2.1");
    assert_eq!(ask(at, "example.org.", RecordType::A).await, "Query Refused");
    let page = program.wait_for("/metrics", 200, |page| {
        let asked = page.lines().find_map(|line| line.strip_prefix("coredns_health_request_duration_seconds_count "));
        asked.is_some_and(|times| times != "0")
    });
    let server = format!("server=\"dns://{at}\"");
    let of = |zone: &str| format!("{server},zone=\"{zone}\",view=\"\"");
    for line in [
        format!("coredns_dns_requests_total{{{},proto=\"udp\",family=\"1\",type=\"A\"}} 1", of("dropped")),
        format!("coredns_dns_responses_total{{{},rcode=\"REFUSED\",plugin=\"\"}} 1", of("dropped")),
        format!("coredns_template_matches_total{{{},class=\"IN\",type=\"TXT\"}} 1", of("test.")),
        "coredns_health_request_failures_total 0".to_owned(),
        "coredns_panics_total 0".to_owned(),
        format!("coredns_hosts_entries{{hostsfile=\"{}\"}} 1", hosts.display()),
    ] {
        assert!(page.lines().any(|found| found == line), "no {line} in:\n{page}");
    }
    let plugins = |zone: &str| -> Vec<&str> {
        let start = format!("coredns_plugin_enabled{{{},name=\"", of(zone));
        page.lines().filter_map(|line| line.strip_prefix(&start)?.strip_suffix("\"} 1")).collect()
    };
    let both = ["prometheus", "errors", "loadbalance", "cache", "template", "hosts", "loop", "forward"];
    assert_eq!(plugins("test."), both);
    assert_eq!(plugins("other.test."), ["prometheus", "log", "loadbalance"]);
    let written = page.lines().find_map(|line| line.strip_prefix("coredns_hosts_reload_timestamp_seconds "));
    let modified = std::fs::metadata(&hosts).unwrap().modified().unwrap();
    let modified = modified.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((written.unwrap().parse::<f64>().unwrap() - modified).abs() < 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_odd_packet_leaves_nothing_in_the_log() {
    let place = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_shunt-dns"));
    command.args(["--manifests", place.path().to_str().unwrap(), "--upstream", "", "--listen", "127.0.0.1:0"]);
    command.env_remove("RUST_LOG"); // the default is what counts
    let program = Program::spawn(command);
    let at = program.dns();
    let question = client::question(&name("odd.test."), RecordType::A);
    let mut wire = question.to_vec().unwrap();
    wire[11] = 1; // an additional record follows
    // OPT of 60,004 octets: an option with code 10 that says it is longer than what is left.
    wire.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0xea, 0x64, 0, 10, 0xea, 0x64]);
    wire.extend([0xaa; 60_000]);
    assert_eq!(client::tcp_bytes(at, &wire).await[..2], wire[..2]);
    assert_eq!(client::udp(at, &question).await.metadata.response_code, ResponseCode::Refused);
    assert!(program.log().len() < 5_000, "{} octets of log", program.log().len());
}
