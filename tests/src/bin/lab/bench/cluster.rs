//! One node with a daemon, a server, a client, and as many services beside theirs as are asked for.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lab::peer::BenchLine;
use lab::{Binaries, Daemon, DaemonOptions, Lab, Manifests, Pod, Process};
use serde_json::{Value, json};

pub(super) const ENDPOINTS: u32 = 10;
/// Services in one file; a change re-reads one file only.
pub(super) const BATCH: u32 = 1_000;
const PORT: u16 = 7000;
const TARGET: Ipv4Addr = Ipv4Addr::new(10, 96, 250, 1);
const CHANGING: Ipv4Addr = Ipv4Addr::new(10, 96, 250, 2);
/// The server that answers, without and with session affinity.
const ECHO: Ipv4Addr = Ipv4Addr::new(10, 96, 250, 3);
const STICKY: Ipv4Addr = Ipv4Addr::new(10, 96, 250, 4);
const LARGE: Ipv4Addr = Ipv4Addr::new(10, 96, 250, 5);
const ECHO_PORT: u16 = 7001;
/// Endpoints of the large service.
const MANY: u32 = 5_000;
/// Cluster IPs of the services that are only there.
const FILLER_SERVICES: Ipv4Addr = Ipv4Addr::new(10, 96, 16, 0);
/// Their endpoints: addresses that the lab does not route and no client dials.
const FILLER_ENDPOINTS: Ipv4Addr = Ipv4Addr::new(10, 250, 0, 0);
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// Dropped in this order: processes before the lab that holds them.
pub(super) struct BenchNode {
    daemon: Daemon,
    _server: Process,
    client: Pod,
    server: Pod,
    manifests: Manifests,
    services: u32,
    _lab: Lab,
}

/// The daemon's metrics.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    pub(super) syncs: f64,
    pub(super) writes: f64,
    pub(super) plan_seconds: f64,
    pub(super) sync_seconds: f64,
}

impl Counters {
    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            syncs: self.syncs - before.syncs,
            writes: self.writes - before.writes,
            plan_seconds: self.plan_seconds - before.plan_seconds,
            sync_seconds: self.sync_seconds - before.sync_seconds,
        }
    }
}

impl BenchNode {
    pub(super) fn start(shunt: &Path, peer: &Path) -> Result<Self> {
        let binaries = Binaries { shunt: Some(shunt.to_owned()), peer: peer.to_owned() };
        let lab = Lab::with_binaries("bench", binaries)?;
        let node = lab.node("n1")?;
        let (client, server) = (node.pod("client")?, node.pod("server")?);
        let listener = server.serve(
            "server",
            &["--sink", &PORT.to_string(), "--tcp", &ECHO_PORT.to_string(), "--udp", &ECHO_PORT.to_string()],
        )?;
        let manifests = Manifests::new(&lab.directory().join("manifests"))?;
        let address = server.ipv4;
        manifests.put("target", &[service("target", TARGET), slice("target", &[address])])?;
        manifests.put("echo", &echo(address))?;
        manifests.put("changing", &changing(ENDPOINTS))?;
        let options = DaemonOptions { ready_within: PATIENCE, ..DaemonOptions::new(manifests.directory()) };
        let daemon = node.daemon(options)?;
        Ok(Self { daemon, _server: listener, client, server, manifests, services: 1, _lab: lab })
    }

    /// Adds services until there are `services`.
    pub(super) fn grow_to(&mut self, services: u32) -> Result<()> {
        for start in (self.services..services).step_by(BATCH as usize) {
            let objects: Vec<Value> = (start..services.min(start.saturating_add(BATCH)))
                .flat_map(|number| filler(number, ENDPOINTS))
                .collect();
            self.manifests.put(&format!("filler-{start}"), &objects)?;
        }
        self.services = services;
        let deadline = Instant::now() + PATIENCE;
        while self.metric("shunt_service_ports")? < f64::from(services) {
            if Instant::now() > deadline {
                bail!("the daemon has not taken up {services} services within {PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    pub(super) fn endpoints(&self) -> u32 {
        self.services.saturating_mul(ENDPOINTS)
    }

    /// Connects from the client pod to the server itself and through its Service.
    pub(super) fn bench_connect(&self, samples: u32, udp: bool) -> Result<Vec<BenchLine>> {
        const ROUNDS: u32 = 20;
        let targets = format!("{}:{PORT},{TARGET}:{PORT}", self.server.ipv4);
        let (samples, rounds) = ((samples / ROUNDS).to_string(), ROUNDS.to_string());
        let mut arguments = vec!["bench-connect", "--to", &targets, "--samples", &samples, "--rounds", &rounds];
        if udp {
            arguments.push("--udp");
        }
        self.client.ask(&arguments, PATIENCE)
    }

    /// Connect, one request, its answer and close: at the server itself, through its Service, and with affinity.
    pub(super) fn bench_request_response(&self, samples: u32) -> Result<Vec<BenchLine>> {
        self.bench_echo("bench-rr", samples)
    }

    /// A datagram there and back on an unconnected socket, with the same targets.
    pub(super) fn bench_datagrams(&self, samples: u32) -> Result<Vec<BenchLine>> {
        self.bench_echo("bench-udp", samples)
    }

    fn bench_echo(&self, what: &str, samples: u32) -> Result<Vec<BenchLine>> {
        const ROUNDS: u32 = 20;
        let targets = [self.server.ipv4, ECHO, STICKY].map(|ip| format!("{ip}:{ECHO_PORT}")).join(",");
        let (samples, rounds) = ((samples / ROUNDS).to_string(), ROUNDS.to_string());
        self.client.ask(&[what, "--to", &targets, "--samples", &samples, "--rounds", &rounds], PATIENCE)
    }

    /// Adds the large service, dialled at three addresses.
    pub(super) fn grow_large(&mut self) -> Result<()> {
        let before = self.metric("shunt_syncs_total")?;
        self.change_large(0, before)
    }

    /// Adds an endpoint to the large service or takes it away again.
    pub(super) fn change_one_of_many(&mut self, number: u32) -> Result<()> {
        let before = self.metric("shunt_syncs_total")?;
        self.change_large(number.wrapping_add(1), before)
    }

    fn change_large(&mut self, number: u32, before: f64) -> Result<()> {
        let started = Instant::now();
        self.manifests.put("large", &large(MANY + number % 2))?;
        while self.metric("shunt_syncs_total")? <= before {
            if started.elapsed() > PATIENCE {
                bail!("the daemon has not noticed a change within {PATIENCE:?}");
            }
        }
        Ok(())
    }

    /// Adds an endpoint or takes it away again; returns the time from the file's change to the next finished sync, as
    /// far as asking the daemon again and again can tell.
    pub(super) fn change_one_endpoint(&mut self, number: u32) -> Result<Duration> {
        let before = self.metric("shunt_syncs_total")?;
        let started = Instant::now();
        self.manifests.put("changing", &changing(ENDPOINTS + 1 - number % 2))?;
        while self.metric("shunt_syncs_total")? <= before {
            if started.elapsed() > PATIENCE {
                bail!("the daemon has not noticed a change within {PATIENCE:?}");
            }
        }
        Ok(started.elapsed())
    }

    /// Ends the daemon, removes what it programmed and starts it again.
    pub(super) fn start_afresh(&mut self) -> Result<()> {
        self.daemon.stop()?;
        let root = self.daemon.bpf_root();
        for version in fs::read_dir(&root).context("reading the pins")? {
            let version = version?.path();
            fs::remove_dir_all(&version).with_context(|| format!("removing {}", version.display()))?;
        }
        self.daemon.restart()
    }

    pub(super) fn counters(&self) -> Result<Counters> {
        let all = self.metrics()?;
        let get = |name: &str| all.get(name).copied().with_context(|| format!("the daemon has no metric {name}"));
        Ok(Counters {
            syncs: get("shunt_syncs_total")?,
            writes: get("shunt_kernel_writes_total")?,
            plan_seconds: get("shunt_plan_duration_seconds_sum")?,
            sync_seconds: get("shunt_sync_duration_seconds_sum")?,
        })
    }

    fn metric(&self, name: &str) -> Result<f64> {
        self.metrics()?.get(name).copied().with_context(|| format!("the daemon has no metric {name}"))
    }

    fn metrics(&self) -> Result<BTreeMap<String, f64>> {
        metrics(&self.daemon)
    }

    pub(super) fn rss_kib(&self) -> Result<u64> {
        rss_kib(self.daemon.process())
    }
}

pub(super) fn metrics(daemon: &Daemon) -> Result<BTreeMap<String, f64>> {
    let page = daemon.metrics("/metrics")?.body;
    let samples = page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
    Ok(samples.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect())
}

/// Resident memory of a process.
pub(super) fn rss_kib(process: &Process) -> Result<u64> {
    let path = format!("/proc/{}/status", process.pid());
    let status = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    line.trim().trim_end_matches(" kB").parse().context("reading VmRSS")
}

fn after(first: Ipv4Addr, number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(first).wrapping_add(number))
}

/// Cluster IP of a service of [`filler`].
pub(super) fn cluster_ip_of(number: u32) -> Ipv4Addr {
    after(FILLER_SERVICES, number)
}

/// Cluster IP and endpoints of a service of [`filler`].
pub(super) fn filler_addresses(number: u32, endpoints: u32) -> (Ipv4Addr, Vec<Ipv4Addr>) {
    let first = number.wrapping_mul(endpoints);
    let ends = (0..endpoints).map(|end| after(FILLER_ENDPOINTS, first.wrapping_add(end)));
    (cluster_ip_of(number), ends.collect())
}

pub(super) fn filler(number: u32, endpoints: u32) -> [Value; 2] {
    let name = format!("filler-{number}");
    let (address, endpoints) = filler_addresses(number, endpoints);
    [service(&name, address), slice(&name, &endpoints)]
}

/// The Service of the server that answers, and a second one with session affinity.
fn echo(server: Ipv4Addr) -> Vec<Value> {
    let ports = json!([
        {"name": "tcp", "protocol": "TCP", "port": ECHO_PORT}, {"name": "udp", "protocol": "UDP", "port": ECHO_PORT},
    ]);
    let objects = |(name, address, affinity): (&str, Ipv4Addr, &str)| {
        let (mut service, mut slice) = (service(name, address), slice(name, &[server]));
        if let (Some(spec), Some(slice)) = (service.get_mut("spec"), slice.as_object_mut()) {
            spec["ports"] = ports.clone();
            spec["sessionAffinity"] = affinity.into();
            slice.insert("ports".to_owned(), ports.clone());
        }
        [service, slice]
    };
    [("echo", ECHO, "None"), ("sticky", STICKY, "ClientIP")].into_iter().flat_map(objects).collect()
}

/// A service of many endpoints in slices of a thousand, with external IPs beside its cluster IP.
fn large(endpoints: u32) -> Vec<Value> {
    let first = Ipv4Addr::new(10, 252, 0, 1);
    let mut service = service("large", LARGE);
    if let Some(spec) = service.get_mut("spec") {
        spec["externalIPs"] = json!(["203.0.113.1", "203.0.113.2"]);
    }
    let mut objects = vec![service];
    for start in (0..endpoints).step_by(1000) {
        let ends: Vec<Ipv4Addr> = (start..endpoints.min(start + 1000)).map(|end| after(first, end)).collect();
        let mut part = slice("large", &ends);
        if let Some(metadata) = part.get_mut("metadata") {
            metadata["name"] = format!("large-{start}").into();
        }
        objects.push(part);
    }
    objects
}

pub(super) fn changing(endpoints: u32) -> [Value; 2] {
    let first = Ipv4Addr::new(10, 251, 0, 1);
    let endpoints: Vec<Ipv4Addr> = (0..endpoints).map(|end| after(first, end)).collect();
    [service("changing", CHANGING), slice("changing", &endpoints)]
}

fn service(name: &str, address: Ipv4Addr) -> Value {
    let ports = ports(name);
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "bench"},
        "spec": {"clusterIP": address, "clusterIPs": [address], "ports": ports},
    })
}

fn slice(service: &str, endpoints: &[Ipv4Addr]) -> Value {
    let endpoints: Vec<Value> = endpoints.iter().map(|address| json!({"addresses": [address]})).collect();
    let ports = ports(service);
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": service, "namespace": "bench", "labels": {"kubernetes.io/service-name": service}},
        "endpoints": endpoints, "ports": ports,
    })
}

/// The same for a Service and its slice, which makes the target port the port. Only the one that is dialled has UDP, so
/// that a service is one service port.
fn ports(service: &str) -> Vec<Value> {
    let mut ports = vec![json!({"name": "sink", "protocol": "TCP", "port": PORT})];
    if service == "target" {
        ports.push(json!({"name": "datagrams", "protocol": "UDP", "port": PORT}));
    }
    ports
}
