//! Daemons of a cluster with an API server: outages, bad answers, crowds of objects, and what clients see of them.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed, its helpers included")]
#![expect(clippy::print_stderr, reason = "figures are printed, not asserted")]

mod support;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::manifests::{self, PodState, Port, SliceEndpoint};
use lab::peer::{CallError, Mode, now};
use lab::{Client, Daemon, DaemonOptions, KubeApi, Lab, Manifests, Node, Pod, Process};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;

const NAMESPACE: &str = "test";
const SHOP: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 1);
const WEB: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 2);
const CLUSTER_DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const TARGET: u16 = 7000;
const PORTS: [Port<'static>; 2] = [
    Port { name: "tcp", protocol: "TCP", port: 80, target: TARGET },
    Port { name: "udp", protocol: "UDP", port: 80, target: TARGET },
];
const PATIENCE: Duration = Duration::from_secs(60);

/// A node whose daemon asks an API server, two servers, and a client. Fields are dropped in this order.
struct ApiNode {
    daemon: Daemon,
    client: Pod,
    servers: Vec<(Pod, Process)>,
    api: KubeApi,
    manifests: Manifests,
    markers: u8,
    node: Node,
    lab: Lab,
}

impl ApiNode {
    fn new(name: &str) -> Option<Self> {
        if support::skipped() {
            return None;
        }
        let lab = Lab::new(name).unwrap();
        let node = lab.node("n1").unwrap();
        let servers = ["s0", "s1"].map(|name| {
            let pod = node.pod(name).unwrap();
            let port = TARGET.to_string();
            let server = pod.serve(name, &["--tcp", &port, "--udp", &port]).unwrap();
            (pod, server)
        });
        let client = node.pod("client").unwrap();
        let manifests = Manifests::new(&lab.directory().join("manifests")).unwrap();
        manifests.put("cluster", &[manifests::namespace(NAMESPACE), manifests::node(&node)]).unwrap();
        manifests.put("shop", &service("shop", SHOP, &[servers[0].0.ipv4])).unwrap();
        let api = KubeApi::start(&lab, manifests.directory()).unwrap();
        let mut options = DaemonOptions::new(manifests.directory());
        options.kubeconfig = Some(api.kubeconfig().to_owned());
        let daemon = node.daemon(options).unwrap_or_else(|error| panic!("{error:#}"));
        let servers = servers.into();
        let mut world = Self { daemon, client, servers, api, manifests, markers: 0, node, lab };
        world.wait_until_applied();
        Some(world)
    }

    fn clients(&self) -> [Client; 2] {
        let to = SocketAddr::from((SHOP, 80));
        [Mode::Tcp, Mode::Udp].map(|mode| self.client.connect_loop(to, mode, 5).unwrap())
    }

    fn endpoint(&self, index: usize) -> Ipv4Addr {
        self.servers.get(index).unwrap().0.ipv4
    }

    /// The API sends Services in order, and slices in order: when the last of each is in force, so are all before them.
    fn wait_until_applied(&mut self) {
        self.markers += 1;
        let [service_ip, endpoint] = [[10, 96, 99, self.markers], [192, 0, 2, self.markers]].map(Ipv4Addr::from);
        self.manifests.put("zz-marker", &service("zz-marker", service_ip, &[endpoint])).unwrap();
        let marks = [format!("\"{service_ip}\""), format!("\"{endpoint}:")];
        self.wait_for("the last change", |world| {
            let services = world.daemon.services().unwrap();
            marks.iter().all(|mark| services.contains(mark))
        });
    }

    /// A change of the cluster, or something that goes wrong with its server; then how much has gone wrong so far.
    fn disturb(&mut self, random: &mut StdRng) -> Option<usize> {
        match random.random_range(0..40) {
            0 => return Some(self.api.order("drop-watches").unwrap()),
            1 => return Some(self.api.order("compact").unwrap()),
            2 => return Some(self.api.order("bookmark").unwrap()),
            3 => {
                self.api.order("stop-listening").unwrap();
                sleep(Duration::from_millis(random.random_range(0..300)));
                return Some(self.api.order("resume").unwrap());
            }
            4..8 => {
                let endpoint = self.endpoint(random.random_range(0..2));
                self.manifests.put("shop", &service("shop", SHOP, &[endpoint])).unwrap();
            }
            8..14 => self.manifests.remove(&format!("other-{}", random.random_range(0..50))).unwrap(),
            _ => {
                let number = random.random_range(0..50_u8);
                let endpoints: Vec<Ipv4Addr> = (0..random.random_range(0..6_u8))
                    .map(|_| Ipv4Addr::new(10, 250, 0, random.random_range(1..200)))
                    .collect();
                let (name, address) = (format!("other-{number}"), Ipv4Addr::new(10, 96, 7, number));
                self.manifests.put(&name, &service(&name, address, &endpoints)).unwrap();
            }
        }
        None
    }

    #[track_caller]
    fn wait_for(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}\n{}", self.lab.logs());
            sleep(Duration::from_millis(10));
        }
    }

    fn readyz(&self) -> (u16, String) {
        self.daemon.health("/readyz").map(|answer| (answer.status, answer.body)).unwrap_or_default()
    }

    fn metric(&self, name: &str) -> u64 {
        let text = self.daemon.metrics("/metrics").unwrap().body;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
            .unwrap_or_else(|| panic!("{text}"));
        line.parse().unwrap()
    }

    /// What is programmed is what a daemon would program that starts now: it finds nothing to write.
    #[track_caller]
    fn assert_as_after_a_fresh_start(&mut self) {
        let before = programmed(&self.daemon);
        assert!(self.daemon.stop().unwrap().success());
        self.daemon.restart().unwrap_or_else(|error| panic!("{error:#}"));
        assert_eq!(self.metric("shunt_kernel_writes_total"), 0, "{}", self.lab.logs());
        let after = programmed(&self.daemon);
        for (field, value) in before.as_object().unwrap() {
            assert_eq!(after.get(field), Some(value), "{field}");
        }
    }
}

/// What a daemon serves, and which problems it reports.
fn programmed(daemon: &Daemon) -> Value {
    let all: Value = serde_json::from_str(&daemon.services().unwrap()).unwrap();
    all.get("services").unwrap_or_else(|| panic!("{all:#}")).clone()
}

/// A Service with its slice; the endpoints need not exist.
fn service(name: &str, address: Ipv4Addr, endpoints: &[Ipv4Addr]) -> Vec<Value> {
    let ends: Vec<SliceEndpoint> = endpoints
        .iter()
        .map(|address| SliceEndpoint { address: IpAddr::V4(*address), node: "n1".to_owned(), ready: true })
        .collect();
    let slice = manifests::slice(NAMESPACE, name, &format!("{name}-a"), &ends, &PORTS);
    vec![manifests::service(NAMESPACE, name, None, &[address.into()], &PORTS), slice]
}

#[track_caller]
fn assert_served(clients: &mut [Client], after: &str) {
    let since = now();
    for client in clients {
        client.wait_for_attempts(since, 20).unwrap();
        assert_eq!(client.failures().unwrap(), [], "after {after}");
    }
}

#[test]
fn an_outage_of_the_api_is_told_of_and_costs_no_connection() {
    let Some(mut world) = ApiNode::new("apiaway") else { return };
    let mut clients = world.clients();
    world.api.order("stop-listening").unwrap();
    world.wait_for("the metric", |world| world.metric("shunt_source_unreachable") == 1);
    world.wait_for("readiness with a warning", |world| {
        let (code, body) = world.readyz();
        code == 200 && body.contains("the last good view stays in force")
    });
    assert_eq!(world.daemon.health("/healthz").unwrap().status, 200);
    world.manifests.put("shop", &service("shop", SHOP, &[world.endpoint(1)])).unwrap();
    assert_served(&mut clients, "the API server went");

    // A daemon that starts during the outage leaves in force what it finds.
    world.daemon.kill9().unwrap();
    world.daemon.relaunch().unwrap();
    world.wait_for("the reason", |world| {
        let (code, body) = world.readyz();
        let left = "the cluster is not known yet: Services stay as an earlier daemon left them";
        code == 503 && body.contains("no sync yet: ") && body.contains(left)
    });
    let services = world.daemon.services().unwrap();
    assert!(services.contains("has applied nothing yet: no sync yet: "), "{services}");
    world.wait_for("metrics without the API server", |world| {
        world.daemon.metrics("/metrics").is_ok_and(|answer| answer.body.contains("shunt_source_unreachable 1\n"))
    });
    assert_served(&mut clients, "the daemon was killed during the outage");

    world.api.order("resume").unwrap();
    world.wait_for("the API server", |world| world.readyz().0 == 200 && world.metric("shunt_source_unreachable") == 0);
    world.wait_until_applied();
    let back = now();
    for client in &mut clients {
        client.wait_for(back, "s1", |attempt| attempt.server.as_deref() == Some("s1")).unwrap();
    }
    assert_served(&mut clients, "the API server came back");
    assert!(!world.readyz().1.contains("stays in force"));
    world.assert_as_after_a_fresh_start();
}

#[test]
fn a_daemon_that_starts_during_an_outage_of_the_api_answers_other_names_at_once() {
    let Some(mut world) = ApiNode::new("apidns") else { return };
    let upstream = Ipv4Addr::new(172, 18, 0, 1).into();
    let _upstream = world.lab.router.dns_upstream(upstream, &["www.example.org=192.0.2.7"]).unwrap();
    let ask = |world: &ApiNode, name: &str| match world.client.resolve(name, "A", CLUSTER_DNS.into()) {
        Ok(answer) => format!("{} {}", answer.rcode, answer.data().join(" ")),
        Err(error) => format!("{error:#}"),
    };
    let (shop, absent) = ("shop.test.svc.cluster.local", "absent.test.svc.cluster.local");
    world.wait_for("the first names", |world| ask(world, shop) == "NoError 10.96.1.1");
    world.api.order("stop-listening").unwrap();
    world.daemon.kill9().unwrap();
    world.daemon.relaunch().unwrap();
    world.wait_for("other names", |world| ask(world, "www.example.org") == "NoError 192.0.2.7");
    for name in [shop, absent] {
        // Silence comes first, as long as the first view may still come in time (DNS-11.1).
        world.wait_for("an error in place of an answer", |world| {
            let answer = ask(world, name);
            assert!(
                answer == "ServFail " || answer.contains("receiving: "),
                "a server that does not know answered for {name}: {answer}"
            );
            answer == "ServFail "
        });
    }
    // DNS is asked for this, and may take its time.
    world.wait_for("one reason against readiness", |world| {
        let (code, body) = world.readyz();
        code == 503 && body.contains("no sync yet: ") && !body.contains("dns: ")
    });

    world.api.order("resume").unwrap();
    world.wait_for("names of the cluster", |world| ask(world, shop) == "NoError 10.96.1.1");
    world.wait_for("denials", |world| ask(world, absent) == "NXDomain ");
    world.wait_for("readiness", |world| world.readyz().0 == 200);
}

/// Set `SHUNT_SOAK_SECONDS` for a longer one and `SHUNT_SOAK_SEED` for another.
#[test]
fn after_faults_at_random_the_kernel_is_as_a_fresh_start_makes_it() {
    let Some(mut world) = ApiNode::new("apisoak") else { return };
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |value| value.parse().unwrap());
    let (seconds, seed) = (number("SHUNT_SOAK_SECONDS", 15), number("SHUNT_SOAK_SEED", 1));
    let mut random = StdRng::seed_from_u64(seed);
    let mut clients = world.clients();
    world.api.order(&format!("random {seed} 200")).unwrap();
    let (end, mut steps) = (Instant::now() + Duration::from_secs(seconds), 0_u32);
    let (mut faults, mut shown, mut connections) = (0, Instant::now(), 0);
    while Instant::now() < end {
        steps += 1;
        faults = world.disturb(&mut random).unwrap_or(faults);
        sleep(Duration::from_millis(random.random_range(0..40)));
        if shown.elapsed() > Duration::from_secs(30) {
            shown = Instant::now();
            // No client runs for longer than a few minutes.
            for client in &mut std::mem::replace(&mut clients, world.clients()) {
                assert_eq!(client.failures().unwrap(), [], "seed {seed}");
                connections += client.attempts().unwrap().len();
            }
            eprintln!("soak: {steps} changes, {faults} faults, {connections} connections");
        }
    }
    faults = faults.max(world.api.order("clear").unwrap());
    world.api.order("drop-watches").unwrap();
    world.manifests.put("shop", &service("shop", SHOP, &[world.endpoint(1)])).unwrap();
    world.wait_until_applied();
    world.wait_for("the end of all complaints", |world| {
        world.metric("shunt_source_unreachable") == 0
            && programmed(&world.daemon).get("problems").and_then(Value::as_array).is_some_and(Vec::is_empty)
    });
    let back = now();
    for client in &mut clients {
        client.wait_for(back, "s1", |attempt| attempt.server.as_deref() == Some("s1")).unwrap();
        assert_eq!(client.failures().unwrap(), [], "seed {seed}");
    }
    connections += clients.iter_mut().map(|client| client.attempts().unwrap().len()).sum::<usize>();
    eprintln!(
        "soak of {seconds} s, seed {seed}: {steps} changes, {faults} faults, {connections} connections, none failed"
    );
    assert!(faults > 0, "nothing went wrong, so nothing is proved");
    world.assert_as_after_a_fresh_start();
}

#[test]
fn five_thousand_services_in_ten_seconds_disturb_no_client() {
    let Some(mut world) = ApiNode::new("apicrowd") else { return };
    let mut clients = world.clients();
    let start = Instant::now();
    for batch in 0..50_u8 {
        let objects: Vec<Value> = (0..100_u8)
            .flat_map(|number| {
                let address = Ipv4Addr::new(10, 96, 100 + batch, number);
                service(&format!("crowd-{batch}-{number}"), address, &[Ipv4Addr::new(10, 250, batch, number)])
            })
            .collect();
        world.manifests.put(&format!("crowd-{batch}"), &objects).unwrap();
        sleep((start + Duration::from_millis(200) * (u32::from(batch) + 1)).saturating_duration_since(Instant::now()));
    }
    let created = start.elapsed();
    world.wait_for("all of them", |world| world.metric("shunt_service_ports") >= 10_000);
    world.wait_until_applied();
    eprintln!("5,000 services created in {created:?}, in force after {:?}", start.elapsed());
    assert_served(&mut clients, "the crowd came");
    for batch in 0..50_u8 {
        world.manifests.remove(&format!("crowd-{batch}")).unwrap();
    }
    world.wait_for("none of them", |world| world.metric("shunt_service_ports") < 100);
    assert_served(&mut clients, "the crowd left");
    world.assert_as_after_a_fresh_start();
}

/// The Service's pods as the API has them, and what a client sees of them by name and by address.
struct WatchedService {
    world: ApiNode,
    pods: Vec<(Pod, Process, PodState)>,
}

impl WatchedService {
    fn start(&mut self, name: &str, state: PodState) {
        let pod = self.world.node.pod(name).unwrap();
        let port = TARGET.to_string();
        let server = pod.serve(name, &["--tcp", &port, "--udp", &port]).unwrap();
        self.pods.push((pod, server, state));
        self.write();
    }

    fn set(&mut self, name: &str, state: PodState) {
        self.pods.iter_mut().find(|(pod, ..)| pod.name() == name).unwrap().2 = state;
        self.write();
    }

    fn write(&self) {
        let pods = self.pods.iter().map(|(pod, _, state)| manifests::pod(NAMESPACE, "web", pod, *state, &PORTS));
        self.world.manifests.put("web-pods", &pods.collect::<Vec<_>>()).unwrap();
    }

    fn resolve(&self, name: &str) -> (String, BTreeSet<String>) {
        let name = format!("{name}.{NAMESPACE}.svc.cluster.local");
        // A datagram may be lost, as with any resolver.
        let answer = (0..10).find_map(|_| self.world.client.resolve(&name, "A", CLUSTER_DNS.into()).ok()).unwrap();
        (answer.rcode.clone(), answer.data().into_iter().map(str::to_owned).collect())
    }

    /// Names and load balancing agree: both are the ready pods, and no others.
    #[track_caller]
    fn assert_agreed(&self) {
        let ready = || self.pods.iter().filter(|(.., state)| *state == PodState::Ready).map(|(pod, ..)| pod);
        let addresses: BTreeSet<String> = ready().map(|pod| pod.ipv4.to_string()).collect();
        let names: BTreeSet<&str> = ready().map(|pod| pod.name()).collect();
        self.world.wait_for("names", |_| self.resolve("web-headless").1 == addresses);
        let to = SocketAddr::from((WEB, 80));
        // The mark by which names change is the one by which endpoints do: no further waiting.
        let attempts = self.world.client.connect(to, Mode::Tcp, 60).unwrap();
        let reached: BTreeSet<&str> = attempts.iter().filter_map(|attempt| attempt.server.as_deref()).collect();
        assert_eq!(reached, names);
        if names.is_empty() {
            assert!(attempts.iter().all(|attempt| attempt.error == Some(CallError::Refused)), "{attempts:?}");
        } else {
            assert_eq!(attempts.iter().find(|attempt| attempt.error.is_some()), None);
        }
        assert_eq!(self.resolve("web").1, BTreeSet::from([WEB.to_string()]));
    }
}

#[test]
fn a_deployment_comes_changes_and_goes_and_no_connection_fails_that_could_have_succeeded() {
    let Some(world) = ApiNode::new("apistory") else { return };
    let web = manifests::service(NAMESPACE, "web", Some("web"), &[WEB.into()], &PORTS);
    let headless = manifests::headless(NAMESPACE, "web-headless", "web", &PORTS);
    world.manifests.put("web", &[web, headless]).unwrap();
    let mut story = WatchedService { world, pods: Vec::new() };
    story.world.wait_for("the name", |_| story.resolve("web").0 == "NoError");
    story.assert_agreed();

    // Three pods appear; each takes traffic as it turns ready, not before.
    for name in ["web-1", "web-2", "web-3"] {
        story.start(name, PodState::Unready);
        story.world.wait_until_applied();
        story.assert_agreed();
    }
    story.set("web-1", PodState::Ready);
    story.assert_agreed();
    let to = SocketAddr::from((WEB, 80));
    let mut clients = [Mode::Tcp, Mode::Udp].map(|mode| story.world.client.connect_loop(to, mode, 2).unwrap());
    for name in ["web-2", "web-3"] {
        story.set(name, PodState::Ready);
        story.assert_agreed();
    }

    // One is deleted and replaced. It goes on serving while it terminates, and ends when it is out of the slices.
    story.set("web-2", PodState::TerminatingServing);
    story.assert_agreed();
    story.start("web-4", PodState::Unready);
    story.world.wait_until_applied();
    story.assert_agreed();
    story.set("web-4", PodState::Ready);
    story.assert_agreed();
    let gone = story.pods.remove(1);
    story.write();
    story.world.wait_until_applied();
    drop(gone);
    story.assert_agreed();
    assert_served(&mut clients, "a pod was replaced");

    // The Deployment goes, then the Service.
    for client in &mut clients {
        assert_eq!(client.failures().unwrap(), []);
    }
    drop(clients);
    story.pods.clear();
    story.world.manifests.remove("web-pods").unwrap();
    story.assert_agreed();
    story.world.manifests.remove("web").unwrap();
    story.world.wait_for("the end of the name", |_| story.resolve("web").0 == "NXDomain");
    let last = story.world.client.connect_with(to, Mode::Tcp, &["--count", "1", "--timeout", "300"]).unwrap();
    assert!(last.iter().all(|attempt| attempt.server.is_none()), "{last:?}");
    story.world.assert_as_after_a_fresh_start();
}
