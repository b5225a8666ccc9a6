//! DNS: how many questions one processor answers in a second, beside other servers with the same work.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lab::peer::DnsLoadLine;
use lab::{Binaries, KubeApi, Lab, Manifests, Node, Process};
use serde_json::{Value, json};

use super::cluster::{BATCH, ENDPOINTS, PATIENCE, cluster_ip_of, filler, rss_kib};

/// The only address that is used; everything happens on the loopback of a node of the lab.
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Names outside of the cluster that are asked for, few enough for every cache.
const OTHERS: u32 = 100;
const ROUNDS: u32 = 7;
/// The load comes from one processor, and the server has the other one.
const CLIENT_CPU: &str = "0";
const SERVER_CPU: &str = "1";

const A: u16 = 1;
const NOERROR: u16 = 0;
const NXDOMAIN: u16 = 3;

/// What was measured of one server with one kind of question.
pub(super) struct DnsFigures {
    pub(super) questions: &'static str,
    pub(super) server: String,
    /// Per second, the median of the rounds.
    pub(super) rate: f64,
    /// In nanoseconds, medians of the rounds.
    pub(super) p50: u64,
    pub(super) p99: u64,
    pub(super) rss_kib: u64,
}

/// A server and where it listens.
struct MeasuredServer {
    name: &'static str,
    address: SocketAddr,
    process: Process,
}

/// Measures with so many services, beside two authoritative servers with the same names and two caches, which xtask has
/// installed.
pub(super) fn measure(shunt_dns: &Path, peer: &Path, services: u32) -> Result<Vec<DnsFigures>> {
    let lab = Lab::with_binaries("benchdns", Binaries { shunt: None, peer: peer.to_owned() })?;
    let node = lab.node("n1")?;
    let manifests = Manifests::new(&lab.directory().join("manifests"))?;
    manifests.put("namespaces", &[namespace("bench"), namespace("shop")])?;
    for start in (0..services).step_by(BATCH as usize) {
        let objects: Vec<Value> =
            (start..services.min(start.saturating_add(BATCH))).flat_map(|number| filler(number, ENDPOINTS)).collect();
        manifests.put(&format!("filler-{start}"), &objects)?;
    }
    let upstream = SocketAddr::from((LOOPBACK, 5300));
    let answers: Vec<String> =
        (0..OTHERS).flat_map(|n| ["--answer".to_owned(), format!("{}=192.0.2.7", other(n))]).collect();
    let mut arguments = vec!["dns-upstream".to_owned(), "--listen".to_owned(), upstream.to_string()];
    arguments.extend(answers);
    let _upstream = node.host().peer(&arguments)?;

    let ours = ours(&node, shunt_dns, manifests.directory(), upstream)?;
    let [knot, nsd] = authoritative(&lab, &node, services)?;
    let [unbound, dnsmasq] = caches(&lab, &node, upstream)?;
    let existing = lines((0..services).map(|n| (filler_name(n), NOERROR)));
    let absent = lines((0..services).map(|n| (format!("{}.shop.svc.cluster.local", filler_name(n)), NXDOMAIN)));
    let others = lines((0..OTHERS).map(|n| (other(n), NOERROR)));
    let mut figures = Vec::new();
    for (what, questions, targets, at_once) in [
        ("existing names", &existing, [&ours, &knot, &nsd], MANY),
        ("names that do not exist", &absent, [&ours, &knot, &nsd], MANY),
        ("names of others, cached", &others, [&ours, &unbound, &dnsmasq], MANY),
        ("existing names, 8 at once", &existing, [&ours, &knot, &nsd], FEW),
        ("names that do not exist, 8 at once", &absent, [&ours, &knot, &nsd], FEW),
        ("existing names, one at a time", &existing, [&ours, &knot, &nsd], ONE),
    ] {
        let file = lab.directory().join("questions");
        fs::write(&file, questions).with_context(|| format!("writing {}", file.display()))?;
        figures.extend(load(&node, peer, what, &file, &targets, at_once)?);
    }
    Ok(figures)
}

/// How many sockets, and how many unanswered queries on each.
type AtOnce = [&'static str; 2];
const MANY: AtOnce = ["8", "8"];
const FEW: AtOnce = ["8", "1"];
const ONE: AtOnce = ["1", "1"];

/// What a server's memory is measured with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Population {
    pub(super) services: u32,
    /// Of each Service.
    pub(super) endpoints: u32,
    /// Whose names are answered; without any, names of pods are not verified.
    pub(super) pods: u32,
}

/// The memory of a server that has learned all names from an API server, in KiB.
pub(super) fn memory(shunt_dns: &Path, peer: &Path, population: Population) -> Result<u64> {
    let Population { services, endpoints, pods } = population;
    let lab = Lab::with_binaries("benchpods", Binaries { shunt: None, peer: peer.to_owned() })?;
    let node = lab.node("n1")?;
    let manifests = Manifests::new(&lab.directory().join("manifests"))?;
    manifests.put("namespaces", &[namespace("bench")])?;
    for start in (0..services).step_by(BATCH as usize) {
        let batch = start..services.min(start.saturating_add(BATCH));
        manifests
            .put(&format!("services-{start}"), &batch.flat_map(|n| populated(n, endpoints)).collect::<Vec<_>>())?;
    }
    for start in (0..pods).step_by(BATCH as usize) {
        let batch = start..pods.min(start.saturating_add(BATCH));
        manifests.put(&format!("pods-{start}"), &batch.map(pod).collect::<Vec<_>>())?;
    }
    let api = KubeApi::start(&lab, manifests.directory())?;
    let (program, kubeconfig) = (shunt_dns.display().to_string(), api.kubeconfig().display().to_string());
    let listen = SocketAddr::from((LOOPBACK, 5301)).to_string();
    let mode = if pods > 0 { "verified" } else { "insecure" };
    let flags = ["--kubeconfig", &kubeconfig, "--listen", &listen, "--upstream", "", "--pods", mode];
    let known = filler_name(services.saturating_sub(1));
    let target = start(&node, "shunt-dns", 5301, &[&[program.as_str()], flags.as_slice()].concat(), &known)?;
    rss_kib(&target.process)
}

/// A Service and its slice with all that the slice controller writes of pods.
fn populated(number: u32, endpoints: u32) -> [Value; 2] {
    let [service, mut slice] = filler(number, 0);
    let first = number.saturating_mul(endpoints);
    let ends = (first..first.saturating_add(endpoints)).map(|end| {
        json!({
            "addresses": [pod_ip(end)], "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": format!("node-{}", end / 100), "zone": format!("zone-{}", end % 3),
            "targetRef": {"kind": "Pod", "namespace": "bench", "name": pod_name(end)},
        })
    });
    if let Some(slice) = slice.as_object_mut() {
        slice.insert("endpoints".to_owned(), ends.collect());
    }
    [service, slice]
}

/// As a Deployment's pods are called.
fn pod_name(number: u32) -> String {
    format!("filler-{}-7d4b9c66d5-{number:05x}", number / 10)
}

fn pod_ip(number: u32) -> String {
    let [_, a, b, c] = number.to_be_bytes();
    Ipv4Addr::new(10, 128 + a, b, c).to_string()
}

fn pod(number: u32) -> Value {
    let ip = pod_ip(number);
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "bench", "name": pod_name(number)},
        "spec": {"nodeName": format!("node-{}", number / 100), "containers": []},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
    })
}

/// All targets in turn, round by round.
fn load(
    node: &Node,
    peer: &Path,
    what: &'static str,
    questions: &Path,
    targets: &[&MeasuredServer],
    [sockets, window]: AtOnce,
) -> Result<Vec<DnsFigures>> {
    let to = targets.iter().map(|target| target.address.to_string()).collect::<Vec<_>>().join(",");
    let (peer, questions, rounds) = (peer.display().to_string(), questions.display().to_string(), ROUNDS.to_string());
    let load = [&peer, "bench-dns", "--to", &to, "--questions", &questions, "--rounds", &rounds];
    let at_once = ["--sockets", sockets, "--window", window];
    let command = [["taskset", "-c", CLIENT_CPU].as_slice(), &load, &at_once].concat();
    let finished = node.host().spawn(&command)?.finish(PATIENCE)?;
    if !finished.status.success() {
        bail!("the load of {what} ended with {}", finished.status);
    }
    let lines: Vec<DnsLoadLine> = finished
        .lines
        .iter()
        .map(|line| serde_json::from_str(line).with_context(|| format!("reading {line:?}")))
        .collect::<Result<_>>()?;
    targets.iter().map(|target| figures(what, target, &lines)).collect()
}

fn figures(questions: &'static str, target: &MeasuredServer, lines: &[DnsLoadLine]) -> Result<DnsFigures> {
    let rounds: Vec<&DnsLoadLine> = lines.iter().filter(|line| line.target == target.address).collect();
    if let Some(bad) = rounds.iter().find(|line| line.wrong > 0 || line.answered == 0) {
        bail!("{} answered {} of {} questions for {questions} wrongly", target.name, bad.wrong, bad.answered);
    }
    let mut rates: Vec<f64> = rounds.iter().map(|line| line.answered as f64 / line.seconds).collect();
    rates.sort_by(f64::total_cmp);
    let median = |of: fn(&DnsLoadLine) -> u64| {
        let mut values: Vec<u64> = rounds.iter().map(|line| of(line)).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    Ok(DnsFigures {
        questions,
        server: target.name.to_owned(),
        rate: rates.get(rates.len() / 2).copied().unwrap_or_default(),
        p50: median(|line| line.p50),
        p99: median(|line| line.p99),
        rss_kib: rss_kib(&target.process)?,
    })
}

fn ours(node: &Node, shunt_dns: &Path, manifests: &Path, upstream: SocketAddr) -> Result<MeasuredServer> {
    let (program, manifests, upstream) =
        (shunt_dns.display().to_string(), manifests.display().to_string(), upstream.to_string());
    let listen = SocketAddr::from((LOOPBACK, 5301)).to_string();
    let arguments = ["--manifests", &manifests, "--listen", &listen, "--upstream", &upstream];
    start(node, "shunt-dns", 5301, &[&[program.as_str()], arguments.as_slice()].concat(), &filler_name(0))
}

/// Servers that read the same names from a zone file.
fn authoritative(lab: &Lab, node: &Node, services: u32) -> Result<[MeasuredServer; 2]> {
    let directory = lab.directory();
    let mut zone = "$ORIGIN cluster.local.\n$TTL 5\n@ SOA ns.dns hostmaster 1 7200 1800 86400 5\n@ NS ns.dns\nns.dns A 10.96.0.10\n".to_owned();
    for number in 0..services {
        writeln!(zone, "filler-{number}.bench.svc A {}", cluster_ip_of(number)).context("writing to memory")?;
    }
    zone.push_str("x.shop.svc A 10.96.0.11\n"); // the namespace exists
    let file = write(directory, "cluster.local.zone", &zone)?;
    let state = directory.join("knot");
    fs::create_dir_all(&state).with_context(|| format!("creating {}", state.display()))?;
    let knot = write(
        directory,
        "knot.conf",
        &format!(
            "server:\n    rundir: \"{0}\"\n    listen: 127.0.0.1@5302\n    udp-workers: 1\n    tcp-workers: 1\n    background-workers: 1\n\
         database:\n    storage: \"{0}\"\ntemplate:\n  - id: default\n    storage: \"{0}\"\n    zonefile-sync: -1\n    journal-content: none\n\
         zone:\n  - domain: cluster.local\n    file: \"{1}\"\n",
            state.display(),
            file.display()
        ),
    )?;
    let nsd = write(
        directory,
        "nsd.conf",
        &format!(
            "server:\n  ip-address: 127.0.0.1@5303\n  server-count: 1\n  username: \"\"\n  chroot: \"\"\n  zonesdir: \"{0}\"\n  database: \"\"\n\
         \x20 pidfile: \"{0}/nsd.pid\"\n  xfrdfile: \"{0}/xfrd.state\"\n  zonelistfile: \"{0}/zone.list\"\n  xfrdir: \"{0}\"\n  rrl-ratelimit: 0\n  rrl-whitelist-ratelimit: 0\n\
         remote-control:\n  control-enable: no\nzone:\n  name: cluster.local\n  zonefile: \"{1}\"\n",
            directory.display(),
            file.display()
        ),
    )?;
    Ok([
        start(node, "knot", 5302, &["knotd", "-c", &knot.display().to_string()], &filler_name(0))?,
        start(node, "nsd", 5303, &["nsd", "-d", "-c", &nsd.display().to_string()], &filler_name(0))?,
    ])
}

fn caches(lab: &Lab, node: &Node, upstream: SocketAddr) -> Result<[MeasuredServer; 2]> {
    let (ip, port) = (upstream.ip(), upstream.port());
    let unbound = write(
        lab.directory(),
        "unbound.conf",
        &format!(
            "server:\n  interface: 127.0.0.1@5304\n  num-threads: 1\n  username: \"\"\n  chroot: \"\"\n  do-daemonize: no\n  use-syslog: no\n  pidfile: \"\"\n\
         \x20 do-not-query-localhost: no\n  module-config: \"iterator\"\n  cache-min-ttl: 60\nremote-control:\n  control-enable: no\nforward-zone:\n  name: \".\"\n  forward-addr: {ip}@{port}\n"
        ),
    )?;
    let server = format!("--server={ip}#{port}");
    let dnsmasq = [
        "dnsmasq",
        "--keep-in-foreground",
        "--no-resolv",
        "--no-hosts",
        "--port=5305",
        "--listen-address=127.0.0.1",
        "--bind-interfaces",
        "--conf-file=/dev/null",
        "--cache-size=10000",
        "--min-cache-ttl=60",
        "--user=root",
        "--pid-file=",
        "--dns-forward-max=1000",
        &server,
    ];
    Ok([
        start(node, "unbound", 5304, &["unbound", "-d", "-p", "-c", &unbound.display().to_string()], &other(0))?,
        start(node, "dnsmasq", 5305, &dnsmasq, &other(0))?,
    ])
}

/// Starts a server on its processor and waits until it knows a name.
fn start(node: &Node, name: &'static str, port: u16, arguments: &[&str], known: &str) -> Result<MeasuredServer> {
    let address = SocketAddr::from((LOOPBACK, port));
    let command = [&["taskset", "-c", SERVER_CPU], arguments].concat();
    let process = node.host().spawn(&command).with_context(|| format!("starting {name}"))?;
    let mut target = MeasuredServer { name, address, process };
    let deadline = Instant::now() + PATIENCE;
    while !node.host().in_netns(|| Ok(knows(address, known)))? {
        if !target.process.is_running()? || Instant::now() > deadline {
            bail!("{name} does not answer:\n{}", target.process.log_tail(20));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(target)
}

/// Whether there is an address record of this name.
fn knows(address: SocketAddr, name: &str) -> bool {
    let ask = || -> std::io::Result<bool> {
        let socket = UdpSocket::bind((LOOPBACK, 0))?;
        socket.connect(address)?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        let mut query = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0".to_vec(); // id 1, one question
        for label in name.split('.') {
            query.push(u8::try_from(label.len()).unwrap_or_default());
            query.extend_from_slice(label.as_bytes());
        }
        query.extend_from_slice(b"\0\0\x01\0\x01");
        socket.send(&query)?;
        let mut reply = [0; 512];
        socket.recv(&mut reply)?;
        let [_, _, _, flags, _, _, high, low, ..] = reply;
        Ok(flags & 15 == 0 && (high, low) != (0, 0))
    };
    ask().unwrap_or_default()
}

fn filler_name(number: u32) -> String {
    format!("filler-{number}.bench.svc.cluster.local")
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

fn other(number: u32) -> String {
    format!("www-{number}.example")
}

fn lines(questions: impl Iterator<Item = (String, u16)>) -> String {
    questions.map(|(name, rcode)| format!("{name} {A} {rcode}\n")).collect()
}

fn write(directory: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = directory.join(name);
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}
