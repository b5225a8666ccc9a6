//! What a daemon has installed stays: cleanup and a second daemon are refused, and what is removed all the same is
//! back.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed, its helpers included"
)]

mod cluster;
mod support;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use cluster::{Cluster, MODES, Shop};
use lab::manifests::PodState;
use lab::peer::{Mode, now};
use lab::{Binaries, Client, Node, Process};

const SOON: Duration = Duration::from_secs(20);
/// Options of a socket that stays open and asks every 5 ms.
const KEEP: [&str; 5] = ["--same-socket", "--interval", "5", "--timeout", "1000"];

/// Runs a command of `shunt` on the node; returns its exit code, what it printed, and its messages.
fn shunt(node: &Node, arguments: &[&str]) -> (Option<i32>, String, String) {
    let shunt = Binaries::find().unwrap().shunt().unwrap().display().to_string();
    finish(node.spawn(&[&[shunt.as_str()], arguments].concat()).unwrap())
}

fn finish(process: Process) -> (Option<i32>, String, String) {
    let log = process.log().to_owned();
    let finished = process.finish(SOON).unwrap();
    (finished.status.code(), finished.lines.join("\n"), fs::read_to_string(log).unwrap())
}

fn cleanup(cluster: &Cluster, further: &[&str]) -> (Option<i32>, String, String) {
    let (root, socket) = (cluster.bpf_root().display().to_string(), cluster.daemon().control_socket());
    let socket = socket.display().to_string();
    let arguments = ["cleanup", "--bpf-root", &root, "--control-socket", &socket];
    shunt(&cluster.node, &[&arguments, further].concat())
}

/// How often the daemon has put back what was removed.
fn restored(cluster: &Cluster) -> u64 {
    let metrics = cluster.daemon().metrics("/metrics").unwrap().body;
    let line = metrics.lines().find(|line| line.starts_with("shunt_installation_restored_total "));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("no such metric:\n{metrics}"))
}

fn log(cluster: &Cluster) -> String {
    fs::read_to_string(cluster.daemon().process().log()).unwrap()
}

/// Waits until the daemon has put something back since `before`, and is ready.
fn wait_until_restored(cluster: &Cluster, before: u64) {
    cluster.wait_for("all to be put back", || restored(cluster) > before);
    cluster.daemon().wait_ready().unwrap();
}

#[track_caller]
fn check_served(shop: &Shop) {
    for (to, mode) in shop.addresses().map(|to| MODES.map(|mode| (to, mode))).concat() {
        let attempt = shop.client.connect(to, mode, 1).unwrap().remove(0);
        assert!(attempt.server.is_some(), "{mode:?} to {to}: {:?}", attempt.error);
    }
}

#[test]
fn cleanup_is_refused_under_a_daemon_and_what_it_removes_by_force_is_back_with_every_flow() {
    let Some(cluster) = Cluster::alone("forced") else { return };
    let mut shop = Shop::open(&cluster, "shop", &[PodState::Ready, PodState::Ready]);
    let mut clients = shop.dial_in_every_way();
    let pid = cluster.daemon().process().pid();
    let (code, printed, said) = cleanup(&cluster, &[]);
    assert_eq!((code, printed.as_str()), (Some(1), ""), "{said}");
    let wanted = format!("another daemon (pid {pid}) serves with the BPF root {}", cluster.bpf_root().display());
    assert!(said.contains(&wanted) && said.contains("stop it first") && said.contains("--force"), "{said}");
    let refused = now();
    for (to, mode, client) in &mut clients {
        client.wait_for_attempts(refused, 30).unwrap();
        assert_eq!(client.failures().unwrap(), [], "{mode:?} to {to}");
    }
    drop(clients);

    let mut sockets: Vec<(SocketAddr, Client, String)> = Vec::new();
    for to in shop.addresses().into_iter().flat_map(|to| [to; 6]) {
        let mut socket = shop.client.connect_in_background(to, Mode::Udp, &KEEP).unwrap();
        let server = socket.wait_for_attempts(0, 1).unwrap().remove(0).server.unwrap();
        sockets.push((to, socket, server));
    }
    let before = restored(&cluster);
    let (code, printed, said) = cleanup(&cluster, &["--force"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(printed.contains("removed 11 links below") && !printed.contains("control socket"), "{printed}");
    wait_until_restored(&cluster, before);
    let back = now();
    check_served(&shop);
    // Those at devices are put back by themselves.
    let told = |what: &str| log(&cluster).lines().any(|line| line.contains(" WARN ") && line.contains(what));
    for what in ["everything is attached and pinned again lost=no program is", "detached are attached again"] {
        cluster.wait_for(what, || told(what));
    }

    // The flows are those of before: the sockets of an endpoint that leaves are ended, and no others.
    shop.set(0, PodState::Unready);
    for (to, socket, server) in &mut sockets {
        if server == "shop-0" {
            socket.wait_for(back, "another server", |a| a.server.as_ref().is_some_and(|s| s != server)).unwrap();
        } else {
            let attempts = socket.wait_for_attempts(back, 5).unwrap();
            assert!(attempts.iter().all(|a| a.server.as_ref() == Some(server)), "{to} had {server}: {attempts:?}");
        }
    }
    // The lock is held on the directory that is there now.
    let (code, _, said) = cleanup(&cluster, &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&wanted), "{said}");
    assert!(cluster.daemon().stop().unwrap().success());
    cluster.daemon().restart().unwrap();
    assert_eq!(cluster.kernel_writes(), 0, "the next daemon adopts all of it");
}

#[test]
fn links_and_pins_that_another_program_removes_are_back() {
    let Some(cluster) = Cluster::alone("vanished") else { return };
    let shop = Shop::open(&cluster, "shop", &[PodState::Ready]);
    let root = cluster.bpf_root();
    let links = root.join("v5/links");
    let lose = |what: &str, remove: &dyn Fn()| {
        let before = restored(&cluster);
        remove();
        wait_until_restored(&cluster, before);
        check_served(&shop);
        let found = |directory: &str| fs::read_dir(root.join(directory)).map_or(0, Iterator::count);
        // Those at sockets, and four for packets.
        cluster.wait_for(&format!("all pins after {what}"), || {
            (found("v5/links"), found("v5/programs")) == (11, 15) && found("v5/devices") > 0
        });
        assert!(found("v5/maps") > 5 && found("flows-v1/maps") > 3, "after {what}");
    };
    lose("the loss of one link", &|| fs::remove_file(links.join("connect4")).unwrap());
    lose("the loss of all", &|| fs::remove_dir_all(&root).unwrap_or_else(|error| panic!("{error}")));
    lose("the loss of programs' pins", &|| fs::remove_dir_all(root.join("v5/programs")).unwrap());
    lose("the loss of maps' pins", &|| fs::remove_dir_all(root.join("v5/maps")).unwrap());
    let before = restored(&cluster);
    lose("the loss of one program's pin", &|| fs::remove_file(root.join("v5/programs/connect4")).unwrap());
    lose("the loss of one map's pin", &|| fs::remove_file(root.join("v5/maps/SLOTS")).unwrap());
    assert_eq!(restored(&cluster), before + 2, "each is put back once");
    let pin = links.join("connect6").display().to_string();
    lose("a link that was detached", &|| {
        let tool = cluster.node.spawn(&["bpftool", "link", "detach", "pinned", &pin]).unwrap();
        assert!(tool.finish(SOON).unwrap().status.success(), "bpftool: cargo xtask setup --tests installs it");
    });
    assert_eq!(cluster.daemon().health("/healthz").unwrap().status, 200);
}

/// The command line of the cluster's daemon, with other values for some flags.
fn command_line(cluster: &Cluster, others: &[(&str, &str)]) -> Vec<String> {
    let line = fs::read_to_string(format!("/proc/{}/cmdline", cluster.daemon().process().pid())).unwrap();
    let mut words: Vec<String> = line.split_terminator('\0').map(str::to_owned).collect();
    for (flag, value) in others {
        let at = words.iter().position(|word| word == flag).unwrap_or_else(|| panic!("no {flag}"));
        words[at + 1] = (*value).to_owned();
    }
    words
}

#[test]
fn a_second_daemon_on_the_same_bpf_root_is_refused_with_the_pid_of_the_first() {
    let Some(cluster) = Cluster::alone("second") else { return };
    let shop = Shop::open(&cluster, "shop", &[PodState::Ready]);
    let mut clients = shop.dial_in_every_way();
    let pid = cluster.daemon().process().pid();
    let socket = cluster.daemon().control_socket();
    let other = socket.with_extension("second").display().to_string();
    let line = command_line(&cluster, &[("--control-socket", &other)]);
    let before = now();
    let (code, _, said) = finish(cluster.node.spawn(&line).unwrap());
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("another daemon (pid {pid}) serves with the BPF root")), "{said}");
    assert!(!Path::new(&other).exists(), "it left its control socket");
    for (to, mode, client) in &mut clients {
        client.wait_for_attempts(before, 30).unwrap();
        assert_eq!(client.failures().unwrap(), [], "{mode:?} to {to}");
    }
    assert_eq!(restored(&cluster), 0, "the second removed nothing");
    // The lock ends with the first, however that ends.
    cluster.daemon().kill9().unwrap();
    let mut second = cluster.node.spawn(&line).unwrap();
    cluster.wait_for("the second to serve", || {
        assert!(second.is_running().unwrap(), "{}", fs::read_to_string(second.log()).unwrap());
        cluster.daemon().health("/readyz").is_ok_and(|answer| answer.status == 200)
    });
    check_served(&shop);
}

/// The addresses of `lo` that are not its own.
fn on_lo(cluster: &Cluster) -> Vec<String> {
    let shown = cluster.node.spawn(&["ip", "-o", "addr", "show", "dev", "lo"]).unwrap().finish(SOON).unwrap().lines;
    let address = |line: &String| line.split_whitespace().nth(3).map(str::to_owned);
    shown.iter().filter_map(address).filter(|found| found != "127.0.0.1/8" && found != "::1/128").collect()
}

/// A BPF root that is not on a BPF file system has no pins, and hinders no cleanup of the rest.
fn check_cleanup_without_bpffs(cluster: &Cluster) {
    let address = "169.254.20.10/32";
    let add = ["ip", "addr", "add", address, "dev", "lo", "label", "lo:shunt"];
    assert!(cluster.node.spawn(&add).unwrap().finish(SOON).unwrap().status.success());
    let root = cluster.manifests.directory().parent().unwrap().join("no-bpffs");
    fs::create_dir(&root).unwrap();
    let (root, socket) = (root.display().to_string(), cluster.daemon().control_socket().display().to_string());
    let line = ["cleanup", "--bpf-root", &root, "--control-socket", &socket];
    let (code, printed, said) = shunt(&cluster.node, &line);
    assert_eq!((code, printed.as_str()), (Some(0), "removed 169.254.20.10 from lo"), "{said}");
}

/// Of a cluster whose API server is away.
const KUBECONFIG: &str = r#"{"apiVersion": "v1", "kind": "Config", "current-context": "a",
    "clusters": [{"name": "a", "cluster": {"server": "http://127.0.0.1:1"}}],
    "users": [{"name": "a", "user": {"token": "a"}}],
    "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}]}"#;

#[test]
fn a_start_that_fails_takes_back_what_it_made_and_cleanup_leaves_nothing() {
    let Some(cluster) = Cluster::alone("failed") else { return };
    let line = command_line(&cluster, &[]);
    cluster.daemon().kill9().unwrap();
    let socket = cluster.daemon().control_socket();
    assert!(socket.exists(), "a daemon that is killed leaves its socket");
    let (code, printed, said) = cleanup(&cluster, &[]);
    assert_eq!(code, Some(0), "{said}");
    for removed in ["11 links below", "169.254.20.10 from lo", "fd00:169:254:20::10 from lo", "the control socket"] {
        assert!(printed.contains(&format!("removed {removed}")), "{removed}: {printed}");
    }
    let check_nothing = |after: &str| {
        assert_eq!(on_lo(&cluster), Vec::<String>::new(), "after {after}");
        assert!(!cluster.bpf_root().exists() && !socket.exists(), "after {after}");
    };
    check_nothing("a cleanup");
    assert_eq!(cleanup(&cluster, &[]).1, "nothing of shunt is installed");
    check_cleanup_without_bpffs(&cluster);

    // Credentials that cannot be read: known only once DNS listens.
    let without_source = |words: &[String]| {
        let at = words.iter().position(|word| word == "--manifests").unwrap();
        [&words[..at], &words[at + 2..]].concat()
    };
    let kubeconfig = cluster.manifests.directory().join("no-kubeconfig").display().to_string();
    let mut failing = without_source(&line);
    failing.extend(["--kubeconfig".to_owned(), kubeconfig.clone()]);
    let (code, _, said) = finish(cluster.node.spawn(&failing).unwrap());
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("no-kubeconfig") && said.contains("took back 169.254.20.10 on lo"), "{said}");
    check_nothing("a start without credentials");

    // No API server is there: the start waits for its first view, and DNS answers meanwhile.
    fs::write(&kubeconfig, KUBECONFIG).unwrap();
    let mut waiting = cluster.node.spawn(&failing).unwrap();
    let ask = || cluster.node.resolve("dns-version.cluster.local", "TXT", [169, 254, 20, 10].into());
    cluster.wait_for("DNS to answer without a view", || ask().is_ok());
    assert!(waiting.stop(SOON).unwrap().success());
    let said = fs::read_to_string(waiting.log()).unwrap();
    assert!(said.contains("169.254.20.10 on lo was made by this start") && said.contains("DNS was asked"), "{said}");
    assert_eq!(on_lo(&cluster).len(), 2, "clients that asked there are refused, not led elsewhere: {said}");
    assert!(!cluster.bpf_root().exists(), "{said}");
    fs::remove_file(&kubeconfig).unwrap();
    assert_eq!(cleanup(&cluster, &[]).0, Some(0));
    check_nothing("a cleanup after a start that waited");

    // What an earlier daemon has left serves, so it stays.
    cluster.daemon().restart().unwrap();
    let (before, links) = (on_lo(&cluster), cluster.bpf_root().join("v5/links"));
    assert_eq!(before.len(), 2);
    assert!(cluster.daemon().stop().unwrap().success());
    let (code, _, said) = finish(cluster.node.spawn(&failing).unwrap());
    assert_eq!(code, Some(1), "{said}");
    assert_eq!((on_lo(&cluster), fs::read_dir(links).unwrap().count()), (before, 11), "{said}");
}
