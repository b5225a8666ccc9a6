//! Files that a running server follows: the Corefile, what it imports, and hosts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use shunt_dns::{Corefile, RecordType, Server, corefile};
use tokio::task::JoinSet;

use crate::corefile::{COREFILE, ask, start};
use crate::fixture::cluster;

const EVERY: Duration = Duration::from_millis(10);

/// Asks until the answer is the wanted one.
async fn wait_for(at: SocketAddr, text: &str, rtype: RecordType, wanted: &str) {
    let mut last = String::new();
    for _ in 0..2000 {
        last = ask(at, text, rtype).await;
        if last == wanted {
            return;
        }
        tokio::time::sleep(EVERY).await;
    }
    panic!("{text} is never {wanted} but {last}");
}

/// A server that follows its Corefile while the set is there.
fn follow(path: &std::path::Path, file: Corefile, server: &Arc<Server>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(corefile::follow(path.to_owned(), file, Arc::downgrade(server), vec![], EVERY));
    tasks
}

/// How many Corefiles could not be used.
fn failures(server: &Server) -> u64 {
    let mut registry = Registry::default();
    server.exporter().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("coredns_reload_failed_total "));
    line.unwrap().parse().unwrap()
}

async fn wait_for_failures(server: &Server, wanted: u64) {
    for _ in 0..2000 {
        if failures(server) == wanted {
            return;
        }
        tokio::time::sleep(EVERY).await;
    }
    panic!("{} reloads failed, not {wanted}", failures(server));
}

#[tokio::test]
async fn a_corefile_is_followed_as_it_changes() {
    let place = tempfile::tempdir().unwrap();
    let (server, file) = start(COREFILE, place.path(), Some(cluster())).await;
    let (at, path) = (server.local_addresses()[0], place.path().join("Corefile"));
    let _follower = follow(&path, file, &server);
    let now = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, now.replace("ttl 30", "ttl 7").replace("TXT shut", "TXT open")).unwrap();
    wait_for(at, "closed.test.", RecordType::TXT, "closed.test. 5 open").await;
    wait_for(at, "web.shop.svc.cluster.local.", RecordType::A, "web.shop.svc.cluster.local. 7 10.96.0.1").await;
    // What cannot be used, or not without a restart, changes nothing.
    for bad in [now.replace("errors", "dnssec"), now.replace(":53", ":54")] {
        std::fs::write(&path, bad).unwrap();
        tokio::time::sleep(EVERY * 10).await;
        assert_eq!(ask(at, "closed.test.", RecordType::TXT).await, "closed.test. 5 open");
    }
    std::fs::write(&path, now).unwrap();
    wait_for(at, "closed.test.", RecordType::TXT, "closed.test. 5 shut").await;
}

#[tokio::test]
async fn files_that_a_pattern_fits_come_and_go() {
    let place = tempfile::tempdir().unwrap();
    let text = |word: &str| format!("template IN TXT example.test {{\n answer \"example.test 5 IN TXT {word}\"\n}}\n");
    let corefile = format!(".:53 {{\n import custom/*.override\n {}}}\n", text("stock"));
    let (server, file) = start(&corefile, place.path(), None).await;
    let (at, path) = (server.local_addresses()[0], place.path().join("Corefile"));
    let _follower = follow(&path, file, &server);
    wait_for(at, "example.test.", RecordType::TXT, "example.test. 5 stock").await;
    let custom = place.path().join("custom");
    std::fs::create_dir(&custom).unwrap();
    for word in ["one", "two"] {
        std::fs::write(custom.join("a.override"), text(word)).unwrap();
        wait_for(at, "example.test.", RecordType::TXT, &format!("example.test. 5 {word}")).await;
    }
    std::fs::remove_file(custom.join("a.override")).unwrap();
    wait_for(at, "example.test.", RecordType::TXT, "example.test. 5 stock").await;
    // A bad one counts once, and changes nothing.
    std::fs::write(custom.join("b.override"), "dnssec\n").unwrap();
    wait_for_failures(&server, 1).await;
    tokio::time::sleep(EVERY * 10).await;
    assert_eq!(failures(&server), 1);
    std::fs::write(custom.join("b.override"), text("three")).unwrap();
    wait_for(at, "example.test.", RecordType::TXT, "example.test. 5 three").await;
    // So does a Corefile that is gone.
    std::fs::remove_file(&path).unwrap();
    wait_for_failures(&server, 2).await;
    assert_eq!(ask(at, "example.test.", RecordType::TXT).await, "example.test. 5 three");
    std::fs::write(&path, corefile.replace("import", "# import")).unwrap();
    wait_for(at, "example.test.", RecordType::TXT, "example.test. 5 stock").await;
}

#[tokio::test]
async fn an_interval_that_changes_counts_and_without_one_the_file_is_left_alone() {
    let place = tempfile::tempdir().unwrap();
    let corefile =
        ".:53 {\n reload 2s\n template IN TXT example.test {\n answer \"example.test 5 IN TXT old\"\n }\n}\n";
    let (server, file) = start(corefile, place.path(), None).await;
    let (at, path) = (server.local_addresses()[0], place.path().join("Corefile"));
    let mut follower = follow(&path, file, &server);
    std::fs::write(&path, corefile.replace("reload 2s", "").replace("old", "new")).unwrap();
    wait_for(at, "example.test.", RecordType::TXT, "example.test. 5 new").await;
    let ended = tokio::time::timeout(Duration::from_secs(20), follower.join_next()).await;
    assert!(ended.expect("it ends").unwrap().is_ok());
}

#[tokio::test]
async fn a_file_of_hosts_is_followed_as_it_changes() {
    let place = tempfile::tempdir().unwrap();
    let hosts = "HOSTS {\n ttl 60\n reload 10ms\n 192.0.2.50 printer.test\n fallthrough\n}";
    let (server, _) = start(&format!(".:53 {{\n hosts {hosts}\n}}\n"), place.path(), None).await;
    let (at, path) = (server.local_addresses()[0], place.path().join("hosts"));
    wait_for(at, "scanner.office.test.", RecordType::A, "scanner.office.test. 60 192.0.2.51").await;
    std::fs::write(&path, "192.0.2.52 scanner.office.test").unwrap();
    wait_for(at, "scanner.office.test.", RecordType::A, "scanner.office.test. 60 192.0.2.52").await;
    // While it is away its names stay.
    std::fs::remove_file(&path).unwrap();
    tokio::time::sleep(EVERY * 10).await;
    assert_eq!(ask(at, "scanner.office.test.", RecordType::A).await, "scanner.office.test. 60 192.0.2.52");
    std::fs::write(&path, "").unwrap();
    wait_for(at, "scanner.office.test.", RecordType::A, "Query Refused").await;
    assert_eq!(ask(at, "printer.test.", RecordType::A).await, "printer.test. 60 192.0.2.50");
}
