//! Daemons whose API server is away, has moved, dies in silence, or does not know their node.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed, its helpers included")]
#![expect(clippy::print_stderr, reason = "figures are printed, not asserted")]

mod support;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::manifests::{self, Port, SliceEndpoint};
use lab::{Daemon, DaemonOptions, KubeApi, Lab, Manifests, Node};

/// The API server's Service.
const KUBERNETES: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// Where the lab's API server is.
const SERVER: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 1);
const PORT: u16 = 6443;
/// Where it moves to.
const OTHER_PORT: u16 = 6444;
const PATIENCE: Duration = Duration::from_secs(60);

/// A node and an API server, and the folder that it serves. Fields are dropped in this order.
struct World {
    daemon: Daemon,
    api: KubeApi,
    manifests: Manifests,
    node: Node,
    lab: Lab,
}

impl World {
    /// A daemon that asks the API server at its own address, or at its Service's as a service account says.
    fn new(name: &str, at: Address, change: impl FnOnce(&mut DaemonOptions, &Manifests, &Node)) -> Option<Self> {
        if support::skipped() {
            return None;
        }
        let lab = Lab::new(name).unwrap();
        let node = lab.node("n1").unwrap();
        let manifests = Manifests::new(&lab.directory().join("manifests")).unwrap();
        manifests.put("cluster", &[manifests::namespace("default"), manifests::node(&node)]).unwrap();
        served_at(&manifests, PORT);
        let api = KubeApi::start(&lab, manifests.directory()).unwrap();
        let mut options = DaemonOptions::new(manifests.directory());
        options.kubeconfig = Some(match at {
            Address::Own => api.kubeconfig().to_owned(),
            Address::Service => at_the_service(&lab, &api),
        });
        change(&mut options, &manifests, &node);
        let daemon = node.daemon(options).unwrap_or_else(|error| panic!("{error:#}"));
        Some(Self { daemon, api, manifests, node, lab })
    }

    #[track_caller]
    fn wait_for(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}\n{}", self.lab.logs());
            sleep(Duration::from_millis(10));
        }
    }

    fn health(&self, path: &str) -> (u16, String) {
        self.daemon.health(path).map(|answer| (answer.status, answer.body)).unwrap_or_default()
    }

    fn remembered(&self) -> String {
        std::fs::read_to_string(self.daemon.state_dir().join("api-servers.json")).unwrap_or_default()
    }

    /// Everything in the kernel is gone, as after a reboot.
    fn reboot(&mut self) {
        assert!(self.daemon.stop().unwrap().success());
        let root = self.daemon.bpf_root();
        self.daemon.said(&["cleanup", "--bpf-root", root.to_str().unwrap()]).unwrap();
        assert!(!root.exists(), "{} is still there", root.display());
    }

    /// What a command of `shunt` writes to stderr.
    fn said(&self, command: &str) -> String {
        self.daemon.said(&command.split(' ').collect::<Vec<_>>()).unwrap()
    }

    /// Runs `ip` where the API server is.
    fn ip(&self, arguments: &str) {
        let command: Vec<&str> = std::iter::once("ip").chain(arguments.split(' ')).collect();
        let finished = self.lab.router.spawn(&command).unwrap().finish(Duration::from_secs(5)).unwrap();
        assert!(finished.status.success(), "ip {arguments}");
    }
}

#[derive(Clone, Copy)]
enum Address {
    Own,
    Service,
}

/// The Service `default/kubernetes` with one endpoint.
fn served_at(manifests: &Manifests, port: u16) {
    let ports = [Port::tcp("https", 443, port)];
    let service = manifests::service("default", "kubernetes", None, &[KUBERNETES.into()], &ports);
    let endpoint = SliceEndpoint { address: SERVER.into(), node: "elsewhere".to_owned(), ready: true };
    let slice = manifests::slice("default", "kubernetes", "kubernetes", &[endpoint], &ports);
    manifests.put("kubernetes", &[service, slice]).unwrap();
}

/// A kubeconfig as a pod's service account is one: the server is the Service's address.
fn at_the_service(lab: &Lab, api: &KubeApi) -> PathBuf {
    let text = std::fs::read_to_string(api.kubeconfig()).unwrap();
    let path = lab.directory().join("kubeconfig-service");
    std::fs::write(&path, text.replace(&format!("{SERVER}:{PORT}"), &format!("{KUBERNETES}:443"))).unwrap();
    path
}

/// The address of the first start, since nothing translates the Service's.
fn first_start(options: &mut DaemonOptions) {
    options.extra = vec!["--master".to_owned(), format!("https://{SERVER}:{PORT}")];
}

#[test]
fn after_a_reboot_the_api_server_is_found_without_its_service() {
    let change = |options: &mut DaemonOptions, _: &Manifests, _: &Node| first_start(options);
    let Some(mut world) = World::new("apireboot", Address::Service, change) else { return };
    world.wait_for("the endpoint on disk", || world.remembered().contains(&format!("\"{SERVER}:{PORT}\"")));
    assert!(!world.remembered().contains("t0ken"), "no secret: {}", world.remembered());

    world.reboot();
    world.daemon.options().extra.clear();
    let begun = Instant::now();
    world.daemon.restart().unwrap_or_else(|error| panic!("{error:#}"));
    eprintln!("ready {:?} after a reboot", begun.elapsed());
    assert!(world.daemon.log().unwrap().contains("one of its endpoints that is remembered does"));

    // Without what is remembered nothing leads there: that is what the test is about.
    world.reboot();
    std::fs::remove_dir_all(world.daemon.state_dir()).unwrap();
    world.daemon.relaunch().unwrap();
    world.wait_for("the reason", || {
        let (code, body) = world.health("/readyz");
        code == 503 && body.contains(&format!("cannot follow the cluster of https://{KUBERNETES}:443"))
    });
}

#[test]
fn an_api_server_that_moved_while_the_daemon_was_down_is_found() {
    let change = |options: &mut DaemonOptions, _: &Manifests, _: &Node| first_start(options);
    let Some(mut world) = World::new("apimoved", Address::Service, change) else { return };
    // It has been at the other place before, and was seen there.
    for port in [OTHER_PORT, PORT] {
        served_at(&world.manifests, port);
        let first = format!("\"endpoints\":[\"{SERVER}:{port}\"");
        world.wait_for("the endpoint on disk", || world.remembered().contains(&first));
    }
    assert!(world.daemon.stop().unwrap().success());
    // The pinned tables lead the Service's address to where the API server was.
    world.api.order(&format!("move {SERVER}:{OTHER_PORT}")).unwrap();
    served_at(&world.manifests, OTHER_PORT);
    world.daemon.options().extra.clear();
    world.daemon.restart().unwrap_or_else(|error| panic!("{error:#}"));
    world.wait_for("the Service", || {
        world.daemon.services().is_ok_and(|services| services.contains(&format!("{SERVER}:{OTHER_PORT}")))
    });
}

#[test]
fn an_api_server_that_dies_in_silence_is_noticed() {
    let Some(world) = World::new("apisilent", Address::Own, |_, _, _| {}) else { return };
    let node = world.node.ipv4;
    world.wait_for("readiness without a warning", || world.health("/readyz").1.contains("\"warnings\":[]"));
    // What the API server sends to the node goes nowhere, and nothing says so.
    world.ip(&format!("route add blackhole {node}/32"));
    let begun = Instant::now();
    world.wait_for("the warning", || {
        let (code, body) = world.health("/readyz");
        code == 200 && body.contains("the last good view stays in force")
    });
    eprintln!("a dead API server is noticed after {:?}", begun.elapsed());
    world.ip(&format!("route del blackhole {node}/32"));
    world.wait_for("the API server", || world.health("/readyz").1.contains("\"warnings\":[]"));
}

#[test]
fn an_outage_is_one_line_at_its_start_and_one_at_its_end() {
    let Some(mut world) = World::new("apilines", Address::Own, |_, _, _| {}) else { return };
    // Services, slices, nodes, pods, namespaces and ranges are all followed.
    let before = world.daemon.log().unwrap().len();
    world.api.order("stop-listening").unwrap();
    world.wait_for("the warning", || world.health("/readyz").1.contains("stays in force"));
    world.api.order("resume").unwrap();
    world.wait_for("the API server", || world.health("/readyz").1.contains("\"warnings\":[]"));
    served_at(&world.manifests, OTHER_PORT);
    world.wait_for("a change", || {
        world.daemon.services().is_ok_and(|services| services.contains(&format!("{SERVER}:{OTHER_PORT}")))
    });
    let log = world.daemon.log().unwrap();
    let lines: Vec<&str> = log.get(before..).unwrap().lines().filter(|line| !line.contains("synced")).collect();
    let [start, end] = lines.as_slice() else { panic!("{lines:#?}") };
    assert!(start.contains("WARN") && start.contains("cannot follow the cluster of https://"), "{start}");
    assert!(end.contains("INFO") && end.contains("the source can be read again"), "{end}");
}

#[test]
fn a_node_that_the_cluster_does_not_have_is_told_of() {
    let without_node = |_: &mut DaemonOptions, manifests: &Manifests, _: &Node| {
        manifests.put("cluster", &[manifests::namespace("default")]).unwrap();
    };
    let Some(world) = World::new("apinonode", Address::Own, without_node) else { return };
    let told = "the cluster has no Node \"n1\"";
    let escaped = told.replace('"', "\\\"");
    world.wait_for("the warning", || {
        let (code, body) = world.health("/readyz");
        code == 200 && body.contains(&escaped)
    });
    let (code, body) = world.health("/healthz");
    assert!(code == 503 && body.contains("\"nodeEligible\":false"), "{code} {body}");
    assert_eq!(world.health("/livez").0, 200);
    let kubeconfig = world.api.kubeconfig().to_str().unwrap().to_owned();
    let offline = format!("--kubeconfig {kubeconfig} --hostname-override n1");
    for (command, expected) in [
        (format!("plan {offline}"), told),
        (format!("explain node {KUBERNETES}:443 {offline}"), told),
        (
            format!("plan --kubeconfig {kubeconfig} --hostname-override node-typo"),
            "the cluster has no Node \"node-typo\"",
        ),
    ] {
        let said = world.said(&command);
        assert!(said.contains(&format!("warning: {expected}")), "{command}: {said}");
    }
    for command in ["explain node 10.96.0.1:443", "services"] {
        let said = world.said(&format!("{command} --control-socket {}", world.daemon.control_socket().display()));
        assert!(said.contains(&format!("warning: {told}")), "{command}: {said}");
    }

    world.manifests.put("cluster", &[manifests::namespace("default"), manifests::node(&world.node)]).unwrap();
    world.wait_for("health", || world.health("/healthz").0 == 200);
    assert!(world.health("/readyz").1.contains("\"warnings\":[]"));
    let log = world.daemon.log().unwrap();
    assert_eq!(log.matches(told).count(), 1, "{log}");
}
