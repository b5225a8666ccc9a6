//! A node with a daemon, and Services with real pods on it, for the integration tests.
#![expect(unreachable_pub, dead_code, reason = "each test file uses its own part of this")]
#![expect(clippy::indexing_slicing, reason = "a test that cannot go on has failed, its helpers included")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::manifests::{self, PodState, Port, SliceEndpoint};
use lab::peer::{CallError, Mode};
use lab::{Client, Daemon, DaemonOptions, Lab, Manifests, Node, Pod, Process};

use crate::support;

/// Every way to dial.
pub const MODES: [Mode; 3] = [Mode::Tcp, Mode::Udp, Mode::UdpUnconnected];
/// The version of the tables, in the names of pins.
pub const TABLES: u32 = 5;
/// The address of the cluster DNS Service.
pub const CLUSTER_DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
const NAMESPACE: &str = "test";
const PORT: u16 = 80;
const TARGET: u16 = 7000;
/// Only an event that never comes takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node with its daemon. Fields are dropped in this order.
pub struct Cluster {
    daemon: Mutex<Daemon>,
    pub node: Node,
    pub manifests: Manifests,
    services: AtomicU8,
    markers: AtomicU32,
    lab: Lab,
}

/// The one that the tests of a file share while any of them runs.
static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());

impl Cluster {
    /// The cluster's own DNS, as CoreDNS would be: a Service at the usual address with a pod that answers 192.0.2.99.
    pub fn old_dns(&self) -> (Pod, Process) {
        let pod = self.node.pod("coredns").unwrap();
        let address = IpAddr::V4(pod.ipv4);
        let process = pod.dns_upstream(address, &["web.test.svc.cluster.local=192.0.2.99"]).unwrap();
        let ports = [Port::udp("dns", 53, 53), Port::tcp("dns-tcp", 53, 53)];
        let service = manifests::service("kube-system", "kube-dns", None, &[CLUSTER_DNS], &ports);
        let endpoint = SliceEndpoint { address, node: "n1".to_owned(), ready: true };
        let slice = manifests::slice("kube-system", "kube-dns", "kube-dns-1", &[endpoint], &ports);
        self.manifests.put("kube-dns", &[manifests::namespace("kube-system"), service, slice]).unwrap();
        (pod, process)
    }

    /// The shared one; `None` where no lab can run.
    pub fn get() -> Option<Arc<Self>> {
        if support::skipped() {
            return None;
        }
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cluster) = shared.upgrade() {
            return Some(cluster);
        }
        // The lab before it, if there was one, may still be on its way out.
        static NUMBER: AtomicU8 = AtomicU8::new(0);
        let cluster = Arc::new(Self::start(&format!("services{}", NUMBER.fetch_add(1, Ordering::Relaxed)), |_| {}));
        *shared = Arc::downgrade(&cluster);
        Some(cluster)
    }

    /// One of its own, for a test that kills the daemon.
    pub fn alone(name: &str) -> Option<Arc<Self>> {
        Self::alone_with(name, |_| {})
    }

    /// The same with other options for the daemon.
    pub fn alone_with(name: &str, change: impl FnOnce(&mut DaemonOptions)) -> Option<Arc<Self>> {
        (!support::skipped()).then(|| Arc::new(Self::start(name, change)))
    }

    /// The same with the node's pods on one bridge.
    pub fn bridged_with(name: &str, change: impl FnOnce(&mut DaemonOptions)) -> Option<Arc<Self>> {
        let start = || {
            let lab = Lab::new(name).unwrap();
            let node = lab.bridged_node("n1").unwrap();
            Arc::new(Self::start_on(lab, node, change))
        };
        (!support::skipped()).then(start)
    }

    fn start(name: &str, change: impl FnOnce(&mut DaemonOptions)) -> Self {
        let lab = Lab::new(name).unwrap();
        let node = lab.node("n1").unwrap();
        Self::start_on(lab, node, change)
    }

    fn start_on(lab: Lab, node: Node, change: impl FnOnce(&mut DaemonOptions)) -> Self {
        let manifests = Manifests::new(&lab.directory().join("manifests")).unwrap();
        manifests.put("cluster", &[manifests::namespace(NAMESPACE), manifests::node(&node)]).unwrap();
        let mut options = DaemonOptions::new(manifests.directory());
        change(&mut options);
        let daemon = node.daemon(options).unwrap_or_else(|error| panic!("{error:#}"));
        let (services, markers) = (AtomicU8::new(20), AtomicU32::new(0));
        Self { daemon: Mutex::new(daemon), node, manifests, services, markers, lab }
    }

    pub fn daemon(&self) -> MutexGuard<'_, Daemon> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The router, where servers run that are in no node's cgroup.
    pub fn router(&self) -> &lab::Place {
        &self.lab.router
    }

    /// The lab around it.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    pub fn bpf_root(&self) -> PathBuf {
        self.daemon().bpf_root()
    }

    /// What the daemon reports as programmed.
    pub fn services(&self) -> String {
        self.daemon().command(&["services", "-o", "json"]).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// How many elements this daemon has written to the kernel since it started.
    pub fn kernel_writes(&self) -> u64 {
        let metrics = self.daemon().metrics("/metrics").unwrap_or_else(|error| panic!("{error:#}")).body;
        let line = metrics.lines().find(|line| line.contains("kernel_writes_total") && !line.starts_with('#'));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or_else(|| panic!("no kernel_writes:\n{metrics}"))
    }

    /// Waits until a condition holds.
    pub fn wait_for(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}\n{}", self.lab.logs());
            sleep(Duration::from_millis(2));
        }
    }

    /// Waits until everything written so far is in force: changes take effect in order, so a Service written after
    /// them is the mark. It has no endpoints, so a connect is refused once it is there and has no route before. Gives
    /// the mark's name and address.
    pub fn wait_until_applied(&self, client: &Pod) -> (String, IpAddr) {
        let number = self.markers.fetch_add(1, Ordering::Relaxed);
        let last = u8::try_from(number).unwrap() + 1;
        let to = SocketAddr::from((Ipv4Addr::new(10, 96, 99, last), PORT));
        let marker = format!("zz-marker-{number}");
        let ports = [Port::tcp("tcp", PORT, TARGET)];
        self.manifests
            .put(&marker, &[manifests::service(NAMESPACE, &marker, Some(&marker), &[to.ip()], &ports)])
            .unwrap();
        let deadline = Instant::now() + PATIENCE;
        // Packets are refused before sockets are: the path for packets takes a plan first. So the daemon's word, too.
        let is_reported = || self.daemon().services().unwrap_or_else(|error| panic!("{error:#}")).contains(&marker);
        let is_refused = || client.connect(to, Mode::Tcp, 1).unwrap()[0].error == Some(CallError::Refused);
        while !is_reported() || !is_refused() {
            assert!(Instant::now() < deadline, "{marker} is not in force after {PATIENCE:?}\n{}", self.lab.logs());
            sleep(Duration::from_millis(2));
        }
        (format!("{marker}.{NAMESPACE}.svc.cluster.local"), to.ip())
    }
}

impl Drop for Cluster {
    #[expect(clippy::print_stderr, reason = "the logs of a failed test must be seen")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("logs of the lab:\n{}", self.lab.logs());
        }
    }
}

/// A Service with pods in given states, and a client.
pub struct Shop {
    pub client: Pod,
    pods: Vec<(Pod, Process, PodState)>,
    name: String,
    number: u8,
    cluster: Arc<Cluster>,
}

impl Shop {
    /// Opens one and waits until it is in force. Every pod runs its servers, in every state.
    pub fn open(cluster: &Arc<Cluster>, name: &str, states: &[PodState]) -> Self {
        let client = cluster.node.pod(&format!("{name}-client")).unwrap();
        let number = cluster.services.fetch_add(1, Ordering::Relaxed);
        let mut shop = Self { client, pods: vec![], name: name.to_owned(), number, cluster: Arc::clone(cluster) };
        for state in states {
            shop.start(*state);
        }
        shop.write();
        cluster.wait_until_applied(&shop.client);
        shop
    }

    /// Its name, which is also the `app` label of its pods.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One of its pods.
    pub fn pod(&self, index: usize) -> &Pod {
        &self.pods[index].0
    }

    /// Its addresses, IPv4 and IPv6; TCP and UDP have the same port.
    pub fn addresses(&self) -> [SocketAddr; 2] {
        self.ips().map(|ip| SocketAddr::new(ip, PORT))
    }

    /// Its IPv4 address as an IPv6 socket sees it.
    pub fn mapped_address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::new(10, 96, 1, self.number).to_ipv6_mapped(), PORT))
    }

    /// Clients that dial each address again and again, in each mode.
    pub fn dial_in_every_way(&self) -> Vec<(SocketAddr, Mode, Client)> {
        let ways = self.addresses().into_iter().flat_map(|to| MODES.map(|mode| (to, mode)));
        ways.map(|(to, mode)| (to, mode, self.client.connect_loop(to, mode, 5).unwrap())).collect()
    }

    /// Adds a pod.
    pub fn add(&mut self, state: PodState) {
        self.start(state);
        self.write();
    }

    /// Changes the state of a pod.
    pub fn set(&mut self, index: usize, state: PodState) {
        self.pods[index].2 = state;
        self.write();
    }

    fn ips(&self) -> [IpAddr; 2] {
        let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x100 + u16::from(self.number));
        [Ipv4Addr::new(10, 96, 1, self.number).into(), v6.into()]
    }

    fn start(&mut self, state: PodState) {
        let name = format!("{}-{}", self.name, self.pods.len());
        let pod = self.cluster.node.pod(&name).unwrap();
        let server = pod.serve(&name, &["--tcp", &TARGET.to_string(), "--udp", &TARGET.to_string()]).unwrap();
        self.pods.push((pod, server, state));
    }

    fn write(&self) {
        let ports = [Port::tcp("tcp", PORT, TARGET), Port::udp("udp", PORT, TARGET)];
        let service = manifests::service(NAMESPACE, &self.name, Some(&self.name), &self.ips(), &ports);
        let pods = self.pods.iter().map(|(pod, _, state)| manifests::pod(NAMESPACE, &self.name, pod, *state, &ports));
        self.cluster.manifests.put(&self.name, &std::iter::once(service).chain(pods).collect::<Vec<_>>()).unwrap();
    }
}
