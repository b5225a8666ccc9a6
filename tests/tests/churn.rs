//! Thousands of services and a thousand endpoint changes a second, while clients connect as fast as they can.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed, its helpers included")]
#![expect(clippy::print_stderr, reason = "figures are printed, not asserted")]

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::peer::{Attempt, CallError, Mode, now};
use lab::{Client, DaemonOptions, Lab, Manifests, Pod, Process};
use serde_json::{Value, json};

const FILLERS: u32 = 10_000;
/// Services in one file.
const BATCH: u32 = 500;
const ROUNDS: u8 = 30;
/// A round is a second: a hundred files are written, and each changes ten endpoints.
const FILES: u32 = 100;
const CHANGED: u32 = 10;
const CHURNING: u32 = 20;
const PORT: u16 = 80;
const TARGET: u16 = 7000;
const SHOP: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 1);

fn after(first: Ipv4Addr, number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(first).wrapping_add(number))
}

/// A Service with its slice; the endpoints need not exist.
fn service(name: &str, address: Ipv4Addr, endpoints: &[Ipv4Addr]) -> [Value; 2] {
    let ports = |port: u16| json!([{"name": "tcp", "port": port}, {"name": "udp", "protocol": "UDP", "port": port}]);
    let ends: Vec<Value> = endpoints.iter().map(|address| json!({"addresses": [address]})).collect();
    [
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"clusterIP": address, "clusterIPs": [address], "ports": ports(PORT)},
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
            "endpoints": ends, "ports": ports(TARGET),
        }),
    ]
}

fn put(manifests: &Manifests, name: &str, address: Ipv4Addr, endpoints: &[Ipv4Addr]) {
    manifests.put(name, &service(name, address, endpoints)).unwrap();
}

/// Waits until all that was written before is in force: a Service written last has no endpoints, so it refuses.
fn wait_until_applied(manifests: &Manifests, client: &Pod, number: u8) {
    let marker = Ipv4Addr::new(10, 96, 2, number);
    put(manifests, &format!("zz-marker-{number}"), marker, &[]);
    let deadline = Instant::now() + Duration::from_secs(20);
    let dial = ["--count", "1", "--timeout", "200"];
    loop {
        let attempt = client.connect_with(SocketAddr::from((marker, PORT)), Mode::Tcp, &dial).unwrap().remove(0);
        if attempt.error == Some(CallError::Refused) {
            return;
        }
        assert!(Instant::now() < deadline, "marker {number} is not in force after 20 s: {attempt:?}");
    }
}

#[test]
fn under_churn_no_connection_fails_and_none_reaches_a_removed_endpoint() {
    if support::skipped() {
        return;
    }
    let lab = Lab::new("churn").unwrap();
    let node = lab.node("n1").unwrap();
    let manifests = Manifests::new(&lab.directory().join("manifests")).unwrap();
    for start in (0..FILLERS).step_by(BATCH as usize) {
        let filler = |number: u32| {
            let ends = [after(Ipv4Addr::new(10, 250, 0, 0), number)];
            service(&format!("filler-{number}"), after(Ipv4Addr::new(10, 96, 16, 0), number), &ends)
        };
        let objects: Vec<Value> = (start..start + BATCH).flat_map(filler).collect();
        manifests.put(&format!("filler-{start}"), &objects).unwrap();
    }
    let servers: Vec<(Pod, Process)> = (0..4)
        .map(|number| {
            let pod = node.pod(&format!("s{number}")).unwrap();
            let port = TARGET.to_string();
            let server = pod.serve(&format!("s{number}"), &["--tcp", &port, "--udp", &port]).unwrap();
            (pod, server)
        })
        .collect();
    let all_but = |gone: usize| -> Vec<Ipv4Addr> {
        let others = servers.iter().enumerate().filter(|(number, _)| *number != gone);
        others.map(|(_, (pod, _))| pod.ipv4).collect()
    };
    put(&manifests, "shop", SHOP, &all_but(usize::MAX));
    let client = node.pod("client").unwrap();
    let options = DaemonOptions { ready_within: Duration::from_secs(180), ..DaemonOptions::new(manifests.directory()) };
    let _daemon = node.daemon(options).unwrap_or_else(|error| panic!("{error:#}"));
    wait_until_applied(&manifests, &client, 1);

    let to = SocketAddr::from((SHOP, PORT));
    let mut clients: Vec<Client> = [Mode::Tcp, Mode::Udp].map(|mode| client.connect_loop(to, mode, 0).unwrap()).into();
    let (began, mut changes, mut removed) = (Instant::now(), 0, Vec::new());
    for round in 0..ROUNDS {
        let start = Instant::now();
        let gone = usize::from(round) % servers.len();
        put(&manifests, "shop", SHOP, &all_but(gone));
        wait_until_applied(&manifests, &client, round + 2);
        let (since, turn) = (now(), Instant::now());
        for file in 0..FILES {
            churn(&manifests, u32::from(round) * FILES + file);
            changes += CHANGED;
            let due = start + Duration::from_secs(1) / FILES * (file + 1);
            sleep(due.saturating_duration_since(Instant::now()));
        }
        removed.push((format!("s{gone}"), since, since + u64::try_from(turn.elapsed().as_nanos()).unwrap()));
    }
    let rate = f64::from(changes) / began.elapsed().as_secs_f64();
    for client in &mut clients {
        let attempts = client.attempts().unwrap();
        eprintln!("{rate:.0} endpoint changes/s at {FILLERS} services: {} connections", attempts.len());
        assert!(attempts.len() > 1000, "too few to prove anything: {}", attempts.len());
        let failed: Vec<&Attempt> = attempts.iter().filter(|attempt| attempt.error.is_some()).collect();
        assert!(failed.is_empty(), "{} failed, the first: {:?}\n{}", failed.len(), failed[0], lab.logs());
        for (server, since, until) in &removed {
            let to_removed = |a: &&Attempt| a.began >= *since && a.t < *until && a.server.as_deref() == Some(server);
            assert_eq!(attempts.iter().find(to_removed), None, "{server} was removed");
        }
    }
}

/// Replaces half of the endpoints of one of the churning services.
fn churn(manifests: &Manifests, number: u32) {
    let service = number % CHURNING;
    let turn = number / CHURNING;
    let first = after(Ipv4Addr::new(10, 251, 0, 0), service * 1000 + turn % 50 * CHANGED);
    let endpoints: Vec<Ipv4Addr> = (0..2 * CHANGED).map(|end| after(first, end)).collect();
    put(manifests, &format!("churning-{service}"), after(Ipv4Addr::new(10, 96, 3, 0), service + 1), &endpoints);
}
