//! What a mistake costs: one clear message with file, object and reason, and nothing else.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed, its helpers included")]
#![expect(clippy::indexing_slicing, reason = "a test that cannot go on has failed, its helpers included")]

mod cluster;
mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use cluster::{Cluster, Shop};
use lab::manifests::PodState;
use lab::peer::{Mode, now};
use lab::{Binaries, Client};

const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// A Service that works, and clients that reach it all along.
struct Watched {
    cluster: std::sync::Arc<Cluster>,
    shop: Shop,
    clients: Vec<Client>,
}

impl Watched {
    fn open(name: &str) -> Option<Self> {
        let cluster = Cluster::alone(name)?;
        let shop = Shop::open(&cluster, "shop", &[PodState::Ready]);
        let modes = [Mode::Tcp, Mode::Udp];
        let pairs = shop.addresses().into_iter().flat_map(|to| modes.map(|mode| (to, mode)));
        let clients = pairs.map(|(to, mode)| shop.client.connect_loop(to, mode, 10).unwrap()).collect();
        Some(Self { cluster, shop, clients })
    }

    /// The lines of the daemon's log that ask for attention and contain all of `parts`.
    fn warnings(&self, parts: &[&str]) -> Vec<String> {
        let log = fs::read_to_string(self.cluster.daemon().process().log()).unwrap();
        let wanted = |line: &&str| line.contains(" WARN ") && parts.iter().all(|part| line.contains(part));
        log.lines().filter(wanted).map(str::to_owned).collect()
    }

    /// The sum of a metric over its labels.
    fn metric(&self, name: &str) -> u64 {
        let text = self.cluster.daemon().metrics("/metrics").unwrap().body;
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    fn ignored(&self) -> u64 {
        self.metric("shunt_objects_ignored_total")
    }

    #[track_caller]
    fn wait_until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
            sleep(POLL);
        }
    }

    /// Every client got answers since now, and none ever a failure.
    #[track_caller]
    fn assert_served(&mut self, after: &str) {
        let since = now();
        for client in &mut self.clients {
            client.wait_for_attempts(since, 3).unwrap();
            assert_eq!(client.failures().unwrap(), [], "after {after}");
        }
    }

    /// Writes `file`, and checks that it is reported once, with everything in `message`, and has no other effect.
    #[track_caller]
    fn check(&mut self, file: &str, text: &str, message: &[&str]) {
        let path = self.cluster.manifests.directory().join(file).display().to_string();
        let parts = [&[path.as_str()], message].concat();
        let before = self.ignored();
        self.cluster.manifests.put_text(file, text).unwrap();
        self.wait_until(&format!("{parts:?} in the log"), |watched| !watched.warnings(&parts).is_empty());
        self.wait_until(&format!("{file} is counted"), |watched| watched.ignored() > before);
        self.cluster.wait_until_applied(&self.shop.client);
        assert_eq!(self.warnings(&[&path]).len(), 1, "{:#?}", self.warnings(&[&path]));
        assert_eq!(self.ignored(), before + 1, "{file}");
        self.assert_served(file);
    }
}

fn object(kind: &str, name: &str, rest: &str) -> String {
    let version = if kind == "EndpointSlice" { "discovery.k8s.io/v1" } else { "v1" };
    format!("{{apiVersion: {version}, kind: {kind}, metadata: {{namespace: test, name: {name}}}, {rest}}}\n")
}

fn service(name: &str, spec: &str) -> String {
    object("Service", name, &format!("spec: {{{spec}}}"))
}

#[test]
fn a_bad_manifest_is_told_of_once_and_costs_nothing_else() {
    let Some(mut good) = Watched::open("badinput") else { return };
    let taken = good.shop.addresses()[0].ip();
    let long = "n".repeat(70);
    let orphan = "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, \
        metadata: {namespace: test, name: orphan, labels: {kubernetes.io/service-name: nobody}}, \
        endpoints: [{addresses: [10.9.9.9]}], ports: [{port: 80}]}\n";

    good.check("broken.yaml", "kind: Service\nmetadata: {name: [\n", &["nothing of this file is in force"]);
    let portless = service("portless", "clusterIP: 10.96.2.1");
    good.check("portless.yaml", &portless, &["Service test/portless", "no ports"]);
    let thief = service("thief", &format!("clusterIP: {taken}, ports: [{{port: 80}}]"));
    let owner = format!("{taken} already belongs to Service test/shop");
    good.check("thief.yaml", &thief, &["Service test/thief", &owner]);
    good.check("orphan.yaml", orphan, &["EndpointSlice test/orphan", "no Service test/nobody"]);
    let address = service("address", "clusterIP: 10.96.300.2, ports: [{port: 80}]");
    good.check("address.yaml", &address, &["Service test/address", "\"10.96.300.2\" is not an IP address"]);
    let twice = service("twice", "clusterIP: 10.96.2.3, ports: [{name: a, port: 80}, {name: a, port: 81}]");
    good.check("twice.yaml", &twice, &["Service test/twice", "port name \"a\" is used twice"]);
    let loopback =
        service("loopback", "clusterIP: 10.96.2.5, externalIPs: [127.0.0.1, 203.0.113.7], ports: [{port: 80}]");
    let refused = "external IP \"127.0.0.1\" is a loopback address, which an API server refuses as an external IP";
    good.check("loopback.yaml", &loopback, &["Service test/loopback", refused]);
    let too_long = service(&long, "clusterIP: 10.96.2.4, ports: [{port: 80}]");
    good.check("long.yaml", &too_long, &[&format!("Service test/{long}"), "70 characters, more than 63"]);
    good.check("shop.json", "{ \"kind\": ", &["the last good version of this file stays in force"]);

    // What is left of the objects of which only a part is wrong is served, what is wrong is not.
    let programmed = good.cluster.services();
    let served = [("10.96.2.3", true), ("203.0.113.7", true)];
    let unserved = [("10.96.2.1", false), ("10.96.2.4", false), ("127.0.0.1", false)];
    for (address, served) in served.into_iter().chain(unserved) {
        assert_eq!(programmed.contains(&format!("\"{address}\"")), served, "{address} in\n{programmed}");
    }
    let ready = good.cluster.daemon().health("/readyz").unwrap();
    assert_eq!(ready.status, 200, "{}", ready.body);
}

#[test]
fn a_folder_that_vanishes_leaves_the_last_view_and_is_followed_again_when_it_is_back() {
    let Some(mut good) = Watched::open("vanished") else { return };
    let folder = good.cluster.manifests.directory().to_path_buf();
    let aside = folder.with_extension("aside");
    let parts = [&*folder.display().to_string(), "cannot read the manifests folder", "last good view stays in force"];

    fs::rename(&folder, &aside).unwrap();
    good.wait_until("the folder is missed", |good| !good.warnings(&parts).is_empty());
    good.wait_until("the metric is 1", |good| good.metric("shunt_source_unreachable") == 1);
    good.assert_served("the folder vanished");
    fs::rename(&aside, &folder).unwrap();
    good.wait_until("the folder is found", |good| good.metric("shunt_source_unreachable") == 0);
    let back = now();
    good.shop.add(PodState::Ready);
    for client in &mut good.clients {
        client.wait_for(back, "shop-1", |attempt| attempt.server.as_deref() == Some("shop-1")).unwrap();
    }
    good.assert_served("the folder is back");
    assert_eq!(good.warnings(&parts).len(), 1, "{:#?}", good.warnings(&parts));
}

#[test]
fn an_empty_folder_is_a_cluster_without_services() {
    if support::skipped() {
        return;
    }
    let lab = lab::Lab::new("empty").unwrap();
    let node = lab.node("n1").unwrap();
    let manifests = lab::Manifests::new(&lab.directory().join("manifests")).unwrap();
    let daemon =
        node.daemon(lab::DaemonOptions::new(manifests.directory())).unwrap_or_else(|error| panic!("{error:#}"));
    let log = fs::read_to_string(daemon.process().log()).unwrap();
    let folder = manifests.directory().display().to_string();
    let told = log.lines().filter(|line| line.contains("no manifests in the folder") && line.contains(&folder));
    assert_eq!(told.count(), 1, "{log}");
}

/// The first instruction of the program for IPv4 connects reads above the stack, which no verifier lets pass.
fn refused_object() -> Vec<u8> {
    let shunt = Binaries::find().unwrap().shunt().unwrap().to_owned();
    let built = shunt.ancestors().nth(2).unwrap().join("bpf/shunt-socket.o");
    let mut object = fs::read(&built).unwrap_or_else(|error| panic!("{}: {error}", built.display()));
    let program = section(&object, "cgroup/connect4");
    // r0 = *(u64 *)(r10 + 0)
    object[program..program + 8].copy_from_slice(&[0x79, 0xa0, 0, 0, 0, 0, 0, 0]);
    object
}

/// Where a section of a little-endian ELF64 file begins.
fn section(elf: &[u8], name: &str) -> usize {
    let number = |at: usize, bytes: usize| -> usize {
        elf[at..at + bytes].iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte))
    };
    let (table, size, count, names) = (number(0x28, 8), number(0x3a, 2), number(0x3c, 2), number(0x3e, 2));
    let offset = |header: usize| number(header + 0x18, 8);
    let names = offset(table + names * size);
    let wanted = [name.as_bytes(), b"\0"].concat();
    let mut headers = (0..count).map(|index| table + index * size);
    let found = headers.find(|header| elf[names + number(*header, 4)..].starts_with(&wanted));
    offset(found.unwrap_or_else(|| panic!("no section {name}")))
}

#[test]
fn a_program_the_kernel_refuses_is_shown_with_the_verifiers_reason_and_what_ran_before_still_serves() {
    let Some(mut good) = Watched::open("refused") else { return };
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), refused_object()).unwrap();
    let command = fs::read_to_string(format!("/proc/{}/cmdline", good.cluster.daemon().process().pid())).unwrap();
    let mut command: Vec<&str> = command.split_terminator('\0').collect();
    command.extend(["--bpf-object", file.path().to_str().unwrap()]);
    assert!(good.cluster.daemon().stop().unwrap().success());

    let refused = good.cluster.node.spawn(&command).unwrap();
    let log = refused.log().to_owned();
    let finished = refused.finish(PATIENCE).unwrap();
    let log = fs::read_to_string(log).unwrap();
    assert_eq!(finished.status.code(), Some(1), "{log}");
    for part in
        ["the kernel refused program shunt_connect4", "the verifier's last words:\n", "off=0 size=8", "processed "]
    {
        assert!(log.contains(part), "{part:?} is not in\n{log}");
    }
    good.assert_served("a refused program");
    good.cluster.daemon().restart().unwrap();
    assert_eq!(good.cluster.kernel_writes(), 0, "the refused one touched nothing");
    good.assert_served("the next start");
}

/// Runs `shunt` without a network, as it must not touch the one of the host should it start by mistake.
fn shunt(before: &[&str], binary: &Path, arguments: &str) -> Output {
    let mut command = Command::new("unshare");
    command.arg("--net").args(before).arg(binary).args(arguments.split_whitespace());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
        sleep(POLL);
    }
    if child.try_wait().unwrap().is_none() {
        child.kill().unwrap();
    }
    child.wait_with_output().unwrap()
}

struct CommandLine {
    place: tempfile::TempDir,
    binary: PathBuf,
}

impl CommandLine {
    /// Checks the exit code and that the one line on stderr contains `parts`; `DIR` stands for an empty directory.
    #[track_caller]
    fn check(&self, arguments: &str, code: i32, parts: &[&str]) {
        self.check_as(&[], arguments, code, parts);
    }

    #[track_caller]
    fn check_as(&self, before: &[&str], arguments: &str, code: i32, parts: &[&str]) {
        let here = self.place.path().to_str().unwrap();
        let Output { status, stdout, stderr } = shunt(before, &self.binary, &arguments.replace("DIR", here));
        let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        assert_eq!(status.code(), Some(code), "{arguments}: {stdout}{stderr}");
        let line = stderr.lines().next().unwrap_or_default();
        for part in parts {
            let part = part.replace("DIR", here);
            assert!(line.contains(&part), "{arguments}: {part:?} is not in the first line of\n{stderr}");
        }
        // The parser of the command line adds a tip and the usage.
        assert!(stderr.lines().count() <= 1 || stderr.contains("\nUsage: "), "{arguments}:\n{stderr}");
    }
}

#[test]
fn a_wrong_command_line_or_host_is_named_in_one_line() {
    if support::skipped() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(place.path().join("manifests")).unwrap();
    fs::write(place.path().join("typo.yaml"), "manifest: /nowhere\n").unwrap();
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    fs::write(place.path().join("unknown.yaml"), format!("{head}masqueradeAll: true\n")).unwrap();
    fs::write(place.path().join("misfit.yaml"), format!("{head}iptables:\n  masqueradeAll: maybe\n")).unwrap();
    fs::write(place.path().join("Corefile"), ".:53 {\n  kubernetes cluster.local\n  dnsmasq\n}\n").unwrap();
    // A user other than root may have no access to the one that was built.
    let binary = place.path().join("shunt");
    fs::copy(Binaries::find().unwrap().shunt().unwrap(), &binary).unwrap();
    let shunt = CommandLine { place, binary };
    let places = "--bpf-root DIR/bpf --control-socket DIR/socket";
    let toolless = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /usr/sbin && exec \"$@\"", "sh"];
    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];

    shunt.check(&format!("run {places}"), 2, &["--manifests"]);
    shunt.check(&format!("run {places} --manifest DIR/manifests"), 2, &["--manifest'"]);
    shunt.check(&format!("run {places} --config DIR/typo.yaml"), 2, &["DIR/typo.yaml", "`manifest`", "line 1"]);
    shunt.check(&format!("run {places} --config DIR/none.yaml"), 2, &["DIR/none.yaml", "No such file"]);
    let misfit = "DIR/misfit.yaml: iptables.masqueradeAll: is string \"maybe\", but it takes true or false (line 4)";
    shunt.check(&format!("run {places} --config DIR/misfit.yaml"), 2, &[misfit]);
    let warning = "DIR/unknown.yaml:3: KubeProxyConfiguration has no field masqueradeAll";
    shunt.check("run --init-only --config DIR/unknown.yaml", 0, &["WARN", warning]);
    let corefile = format!("run {places} --manifests DIR/manifests --corefile DIR/Corefile");
    shunt.check(&corefile, 2, &["DIR/Corefile:3: dnsmasq"]);
    shunt.check(&format!("run {places} --manifests DIR/none"), 1, &["--manifests DIR/none", "no such folder"]);
    let cgroup = format!("run {places} --manifests DIR/manifests --cgroup-root DIR");
    shunt.check(&cgroup, 1, &["DIR is not a directory of a cgroup2", "--cgroup-root"]);
    shunt.check_as(&nobody, &format!("run {places} --manifests DIR/manifests"), 1, &["must be root"]);
    for (mode, parts) in [
        ("nftables", ["--proxy-mode nftables was asked for", "no command nft in PATH", "install the package nftables"]),
        (
            "iptables",
            ["--proxy-mode iptables was asked for", "iptables-legacy-restore", "install the package iptables"],
        ),
        ("auto", ["no data path can work here", "install the package nftables", "install the package iptables"]),
    ] {
        let flags = "--dns=false --socket-lb off --proxy-mode";
        shunt.check_as(&toolless, &format!("run {places} --manifests DIR/manifests {flags} {mode}"), 1, &parts);
    }
    shunt.check_as(&nobody, "cleanup --bpf-root DIR/bpf", 1, &["must be root"]);
    shunt.check("cleanup --bpf-root DIR/bpf", 0, &[]);
    assert!(!shunt.place.path().join("bpf").exists(), "a run that fails early leaves no pins");
}
