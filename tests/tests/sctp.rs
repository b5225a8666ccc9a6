//! SCTP through a Service, by real sockets: on this kernel if it has them, else on Debian's in a guest.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed, its helpers included"
)]

mod guests;
mod support;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use lab::guest::inside;
use lab::manifests::{self, PodState, Port};
use lab::peer::{Attempt, CallError, Mode};
use lab::{Daemon, DaemonOptions, Lab, Manifests, Node, Place, Pod, Process};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

const NAMESPACE: &str = "test";
const NAME: &str = "signalling";
const PORT: u16 = 3868;
const TARGET: u16 = 7000;
const NODE_PORT: u16 = 30868;
/// Enough for each of two endpoints to be chosen: one is missed by chance once in 10^9 runs.
const ENOUGH: u32 = 30;
/// Only an event that never comes takes so long, under emulation too.
const PATIENCE: Duration = Duration::from_secs(120);

// Not on one kernel, so that the daemon, with its programs at sockets, is seen to serve on both.
#[test]
fn nftables_serves_sctp() {
    if runs_here("nftables_serves_sctp", "debian-6.1") {
        Stage::set(&["--proxy-mode", "nftables"]).play();
    }
}

#[test]
fn iptables_serves_sctp() {
    if runs_here("iptables_serves_sctp", "debian-6.12") {
        Stage::set(&["--proxy-mode", "iptables"]).play();
    }
}

/// Pods leave the checksum of SCTP to devices where these can compute it, the client outside computes its own. On the
/// oldest kernel, whose verifier takes the least, and which has no TCX.
#[test]
fn packet_programs_serve_sctp() {
    if runs_here("packet_programs_serve_sctp", "debian-6.1") {
        Stage::set(&["--proxy-mode=ebpf"]).play();
    }
}

/// Whether the body of a test is to run here. If this kernel lacks SCTP, the test has been run in a guest instead.
fn runs_here(test: &str, kernel: &str) -> bool {
    // Such a socket loads the module, which in a guest is left to the servers.
    if inside().is_some() || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::SCTP)).is_ok() {
        return !support::skipped();
    }
    if let Some(kernel) = guests::kernel(kernel) {
        guests::run_test(kernel, test).unwrap();
    }
    false
}

/// A node with a client and two pods, and a client outside whose packets to external addresses arrive at the node.
struct Stage {
    _servers: Vec<Process>,
    _daemon: Daemon,
    pods: [Pod; 2],
    client: Pod,
    manifests: Manifests,
    node: Node,
    lab: Lab,
}

impl Stage {
    fn set(flags: &[&str]) -> Self {
        let lab = Lab::new("sctp").unwrap();
        let node = lab.node("n1").unwrap();
        let (client, pods) = (node.pod("client").unwrap(), ["one", "two"].map(|name| node.pod(name).unwrap()));
        let manifests = Manifests::new(&lab.directory().join("manifests")).unwrap();
        manifests.put("cluster", &[manifests::namespace(NAMESPACE), manifests::node(&node)]).unwrap();
        lab.balance_to(&node).unwrap();
        let mut options = DaemonOptions::new(manifests.directory());
        options.extra = flags.iter().map(|flag| (*flag).to_owned()).collect();
        options.ready_within = PATIENCE;
        write(&manifests, &pods, PodState::Ready);
        let daemon = node.daemon(options).unwrap_or_else(|error| panic!("{error:#}"));
        if inside().is_some() {
            // E2E-45: that is the operator's choice.
            let modules = std::fs::read_to_string("/proc/modules").unwrap();
            assert!(!modules.lines().any(|line| line.starts_with("sctp ")), "the daemon loaded SCTP:\n{modules}");
        }
        let servers = pods.iter().flat_map(|pod| {
            // At one address each: an SCTP server names all of its addresses to its clients, which then try those too.
            [IpAddr::V4(pod.ipv4), pod.ipv6.into()].map(|address| {
                pod.serve(pod.name(), &["--sctp", &TARGET.to_string(), "--address", &address.to_string()]).unwrap()
            })
        });
        let servers = servers.collect();
        Self { _servers: servers, _daemon: daemon, pods, client, manifests, node, lab }
    }

    fn play(&self) {
        let both: BTreeSet<String> = ["one", "two"].map(str::to_owned).into();
        for (from, to) in self.ways() {
            self.wait_until(from, to, None);
            let attempts = connect(from, to, ENOUGH);
            let servers: BTreeSet<String> = attempts
                .iter()
                .map(|attempt| attempt.server.clone().unwrap_or_else(|| format!("{:?}", attempt.error)))
                .collect();
            assert_eq!(servers, both, "from {} to {to}\n{}", from.name(), self.lab.logs());
            assert!(attempts.iter().all(|attempt| attempt.peername == Some(to)), "from {} to {to}", from.name());
        }
        write(&self.manifests, &self.pods, PodState::Unready);
        for (from, to) in self.ways() {
            self.wait_until(from, to, Some(&CallError::Refused));
        }
        write(&self.manifests, &self.pods, PodState::Ready);
        for (from, to) in self.ways() {
            self.wait_until(from, to, None);
        }
    }

    /// Who dials what: a pod the cluster IP; the outside the node port and the external IP; in both families.
    fn ways(&self) -> Vec<(&Place, SocketAddr)> {
        let at = |port| move |address| SocketAddr::new(address, port);
        let node: [IpAddr; 2] = [self.node.ipv4.into(), self.node.ipv6.into()];
        let cluster = cluster_addresses().map(at(PORT)).map(|to| (&*self.client, to));
        let node = node.map(at(NODE_PORT)).map(|to| (&self.lab.outside, to));
        let external = external_addresses().map(at(PORT)).map(|to| (&self.lab.outside, to));
        [cluster, node, external].concat()
    }

    /// Waits until a connection ends so; an answer has no error.
    fn wait_until(&self, from: &Place, to: SocketAddr, wanted: Option<&CallError>) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let error = connect(from, to, 1).remove(0).error;
            if error.as_ref() == wanted {
                return;
            }
            let what = format!("from {} to {to}: {error:?} instead of {wanted:?}", from.name());
            assert!(Instant::now() < deadline, "{what} after {PATIENCE:?}\n{}", self.lab.logs());
        }
    }
}

fn write(manifests: &Manifests, pods: &[Pod], state: PodState) {
    let ports = [Port::sctp("sctp", PORT, TARGET)];
    let mut service = manifests::service(NAMESPACE, NAME, Some(NAME), &cluster_addresses(), &ports);
    service["spec"]["type"] = json!("NodePort");
    service["spec"]["ports"][0]["nodePort"] = json!(NODE_PORT);
    service["spec"]["externalIPs"] = json!(external_addresses());
    let pods = pods.iter().map(|pod| manifests::pod(NAMESPACE, NAME, pod, state, &ports));
    manifests.put(NAME, &std::iter::once(service).chain(pods).collect::<Vec<_>>()).unwrap();
}

/// The first packet of a connection may be refused while the kernel is still in connect(), which then only notes the
/// error; the refusal of the second one ends it, and that one is sent after 3 s.
fn connect(from: &Place, to: SocketAddr, count: u32) -> Vec<Attempt> {
    from.connect_with(to, Mode::Sctp, &["--count", &count.to_string(), "--timeout", "20000"]).unwrap()
}

fn cluster_addresses() -> [IpAddr; 2] {
    [Ipv4Addr::new(10, 96, 1, 7).into(), Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x107).into()]
}

/// Documentation addresses, which nothing outside of the lab has.
fn external_addresses() -> [IpAddr; 2] {
    [Ipv4Addr::new(192, 0, 2, 7).into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7).into()]
}
