//! What the HTTP surfaces say, asked over loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use shunt_dns::{ForwardConfig, Server, Upstreams};
use shunt_model::{Node, ObjectKey, Protocol, Snapshot};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{DnsState, Health, bind, health_routes, metrics_routes, serve, serve_in_the_end};
use crate::config::{DnsConfig, DnsListen, PodNames};
use crate::datapath::{Chosen, Installed, Looking, Mode, Number, NumberKind, OpenPath, Report};
use crate::metrics::KubeProxy;
use crate::metrics::census::Counts;
use crate::plan::PortKey;
use crate::status::{LastSync, Pending, Status};
use crate::{dns::service, metrics};

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Serves `routes` and asks for `path`; returns code and body.
async fn get(routes: axum::Router, path: &str) -> (u16, String) {
    let (head, body) = ask(routes, path, "").await;
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body)
}

/// The same with more header lines in the question; returns the head and the body.
async fn ask(routes: axum::Router, path: &str, headers: &str) -> (String, String) {
    let listener = bind("--flag", ANY_PORT).await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let server = tokio::spawn(serve(listener, routes, stop.clone()));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    stop.cancel();
    server.await.unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// An open data path that says so.
fn path(report: Report) -> OpenPath {
    let path = OpenPath::default();
    let chosen = Chosen { mode: Mode::Ebpf, sockets: true, packets: None, without: Vec::new() };
    path.publish(chosen, vec![watch::channel(report).1], Looking::default());
    path
}

fn health(status: Status, dns: DnsState, pending: Pending) -> Health {
    Health {
        node: Arc::from("node-a"),
        sync_period: Duration::from_secs(30),
        pending,
        metrics: KubeProxy::default(),
        status: watch::channel(status).1,
        dns: watch::channel(dns).1,
        path: path(Report { checked: true, ..Report::default() }),
    }
}

async fn asked(health: Health, path: &str) -> (u16, Value) {
    let (code, body) = get(health_routes(health), path).await;
    (code, serde_json::from_str(&body).unwrap())
}

async fn health_of(status: Status, dns: DnsState, path: &str) -> (u16, Value) {
    asked(health(status, dns, Pending::default()), path).await
}

#[track_caller]
fn check((code, body): (u16, Value), expected: u16, reasons: &[&str]) {
    assert_eq!(code, expected, "{body}");
    let found: Vec<&str> = body["reasons"].as_array().unwrap().iter().map(|r| r.as_str().unwrap()).collect();
    assert_eq!(found.len(), reasons.len(), "{found:?}");
    for (found, reason) in found.iter().zip(reasons) {
        assert!(found.starts_with(reason), "{found:?} does not start with {reason:?}");
    }
}

fn synced() -> Status {
    let last = LastSync { generation: 1, at: SystemTime::now(), elapsed: Duration::from_millis(2) };
    Status { syncs: 1, last_sync: Some(last), ..Status::default() }
}

async fn dns_server(
    upstreams: Upstreams,
    snapshot: Option<Arc<Snapshot>>,
) -> (Server, DnsState, watch::Sender<Option<Arc<Snapshot>>>) {
    let config = DnsConfig {
        listen: DnsListen::Given(vec![ANY_PORT]),
        domain: "cluster.local".to_owned(),
        forward: ForwardConfig::to(upstreams),
        corefile: None,
        pods: PodNames::Disabled,
        ttl: 5,
    };
    let cluster_dns = [[10, 96, 0, 10].into()];
    let (sender, receiver) = watch::channel(snapshot);
    let started = service::start(&config, vec![ANY_PORT], &cluster_dns, receiver, Vec::new()).await.unwrap();
    let server = Arc::into_inner(started.server).unwrap();
    let domain = service::zone_config(&config, &cluster_dns).unwrap().cluster_domain;
    let exporter = server.exporter();
    let state = DnsState::Serving { addresses: server.local_addresses().to_vec(), domain, exporter };
    (server, state, sender)
}

#[tokio::test]
async fn ready_is_a_complete_sync_and_a_dns_that_answers() {
    check(health_of(Status::default(), DnsState::Starting, "/readyz").await, 503, &["no sync yet", "dns: not started"]);
    check(health_of(synced(), DnsState::Off, "/readyz").await, 200, &[]);
    let failed = Status { error: Some("writing map X: no memory".to_owned()), ..synced() };
    check(health_of(failed, DnsState::Off, "/readyz").await, 503, &["last sync failed: writing map X: no memory"]);
    let key = PortKey {
        service: ObjectKey::new("default", "web"),
        port: Arc::from(""),
        protocol: Protocol::Tcp,
        family: shunt_model::Family::V4,
    };
    let full = Status { refused: vec![(key, "service map full".to_owned())], ..synced() };
    check(health_of(full, DnsState::Off, "/readyz").await, 503, &["service map full: 1 service ports"]);
}

#[tokio::test]
async fn ready_is_a_data_path_that_is_in_effect() {
    let report_of = |report| {
        let health = Health { path: path(report), ..health(synced(), DnsState::Off, Pending::default()) };
        asked(health, "/readyz")
    };
    let unopened = Health { path: OpenPath::default(), ..health(synced(), DnsState::Off, Pending::default()) };
    check(asked(unopened, "/readyz").await, 503, &["self-test: not run yet"]);
    check(report_of(Report::default()).await, 503, &["self-test: not run yet"]);
    let fault = Report { checked: true, faults: vec!["the connect hook".to_owned()], ..Report::default() };
    check(report_of(fault).await, 503, &["self-test: the connect hook"]);
    let lost = Installed { fault: Some("the programs at connect4 are not attached".to_owned()), restored: 3 };
    let detached = Report { checked: true, faults: vec!["x".to_owned()], installed: lost, ..Report::default() };
    check(report_of(detached.clone()).await, 503, &["the programs at connect4"]);
    let rows = [
        ("/healthz", detached.clone(), 503),
        ("/livez", detached, 200), // a restart does not help, and would end the DNS of this node too
        ("/healthz", Report::default(), 200),
    ];
    for (asked_for, report, code) in rows {
        let health = Health { path: path(report), ..health(synced(), DnsState::Off, Pending::default()) };
        assert_eq!(asked(health, asked_for).await.0, code);
    }
    let leftover = Report { checked: true, leftovers: vec!["the data path x".to_owned()], ..Report::default() };
    check(report_of(leftover).await, 503, &["the data path x"]);
    let foreign = Report { checked: true, foreign: vec!["cilium".to_owned()], ..Report::default() };
    let (code, body) = report_of(foreign).await;
    assert_eq!((code, &body["warnings"]), (200, &serde_json::json!(["cilium"])), "both serve");
}

#[tokio::test]
async fn dns_is_asked_a_real_question() {
    let (server, state, _views) = dns_server(Upstreams::Servers(Vec::new()), Some(Arc::default())).await;
    check(health_of(synced(), state.clone(), "/readyz").await, 200, &[]);
    server.shutdown().await;
    check(health_of(synced(), state, "/readyz").await, 503, &["dns: asking 127.0.0.1"]);
}

#[tokio::test]
async fn a_resolv_conf_that_is_missing_is_a_warning_until_it_is_there() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("resolv.conf");
    let (_server, state, _views) = dns_server(Upstreams::Usual(path.clone()), Some(Arc::default())).await;
    let (code, body) = health_of(synced(), state, "/readyz").await;
    let warning = format!("dns: {} names no server to ask: names outside of the cluster are refused", path.display());
    assert_eq!(
        (code, &body["warnings"], &body["reasons"]),
        (200, &serde_json::json!([warning]), &serde_json::json!([]))
    );
}

#[tokio::test]
async fn an_api_server_that_is_away_leaves_the_node_ready() {
    let mut status = synced();
    let unreachable = Some("the API server refuses connections".to_owned());
    status.source =
        Arc::new(shunt_model::source::SourceHealth { unreachable, ..shunt_model::source::SourceHealth::default() });
    let (code, body) = health_of(status.clone(), DnsState::Off, "/readyz").await;
    assert_eq!((code, &body["warnings"][0]), (200, &"the API server refuses connections".into()), "{body}");
    status.last_sync = None;
    check(health_of(status, DnsState::Off, "/readyz").await, 503, &["no sync yet: the API server refuses"]);
}

#[tokio::test]
async fn a_node_that_the_cluster_does_not_have_gets_no_new_connections() {
    // HM-15
    let mut status = synced();
    let unknown_node = Some("the cluster has no Node \"node-typo\"".to_owned());
    status.source =
        Arc::new(shunt_model::source::SourceHealth { unknown_node, ..shunt_model::source::SourceHealth::default() });
    let (code, body) = health_of(status.clone(), DnsState::Off, "/healthz").await;
    assert_eq!((code, &body["nodeEligible"]), (503, &Value::Bool(false)), "{body}");
    assert_eq!(health_of(status.clone(), DnsState::Off, "/livez").await.0, 200, "a restart does not help");
    let (code, body) = health_of(status, DnsState::Off, "/readyz").await;
    assert_eq!((code, &body["warnings"][0]), (200, &"the cluster has no Node \"node-typo\"".into()), "{body}");
}

#[tokio::test]
async fn a_change_may_wait_for_two_sync_periods() {
    let waits = |seconds| Pending::of_age(Duration::from_secs(seconds));
    for (pending, code) in [(Pending::default(), 200), (waits(55), 200), (waits(65), 503)] {
        for path in ["/healthz", "/livez"] {
            let health = health(synced(), DnsState::Off, pending.clone()); // HM-11…14
            let metrics = health.metrics.clone();
            let (found, body) = asked(health, path).await;
            assert_eq!(found, code, "{body}");
            assert_eq!(body["healthy"], code == 200);
            assert_eq!(body["status"]["IPv4"]["healthy"], code == 200, "{body}");
            assert!(body["lastUpdated"].as_str().unwrap().ends_with('Z'), "{body}"); // HM-17
            assert_eq!(body.get("nodeEligible").is_some(), path == "/healthz", "{body}");
            let mut registry = prometheus_client::registry::Registry::default();
            metrics.register(&mut registry);
            let (_, text) = get(metrics_routes(registry, OpenPath::default(), Value::Null), "/metrics").await;
            let line = format!("kubeproxy_proxy_{}_total{{code=\"{code}\"}} 1", &path[1..]);
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
    }
}

#[tokio::test]
async fn load_balancers_are_sent_away_from_a_node_that_goes() {
    let name: Arc<str> = Arc::from("node-a");
    let node = |eligible| {
        let name = Arc::clone(&name);
        Node { name, zone: None, addresses: Vec::new(), pod_cidrs: Vec::new(), eligible }
    };
    for (nodes, code) in [(vec![], 200), (vec![node(true)], 200), (vec![node(false)], 503)] {
        let mut snapshot = Snapshot::default();
        snapshot.nodes.extend(nodes.into_iter().map(|node| (Arc::clone(&node.name), Arc::new(node))));
        let status = Status { snapshot: Some(Arc::new(snapshot)), ..synced() };
        let (found, body) = health_of(status.clone(), DnsState::Off, "/healthz").await; // HM-15
        assert_eq!((found, body["nodeEligible"] == true), (code, code == 200), "{body}");
        let (livez, body) = health_of(status, DnsState::Off, "/livez").await; // HM-16
        assert_eq!(livez, 200, "{body}");
    }
}

fn counts() -> watch::Receiver<Counts> {
    watch::channel(Counts::default()).1
}

fn durations() -> metrics::Durations {
    metrics::Durations::new(KubeProxy::default())
}

#[tokio::test]
async fn metrics_come_in_the_format_that_is_asked_for() {
    let routes = || {
        let (_, status) = watch::channel(Status::default());
        let registry = metrics::registry(status, counts(), OpenPath::default(), durations(), None);
        metrics_routes(registry, path(Report::default()), serde_json::json!({"kubeproxy.config.k8s.io": {"mode": ""}}))
    };
    let (head, text) = ask(routes(), "/metrics", "").await;
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    assert!(text.contains("# TYPE shunt_syncs_total counter") && !text.contains("# EOF"), "{text}");
    assert!(text.contains("process_resident_memory_bytes "), "{text}");
    let (head, text) = ask(routes(), "/metrics", "Accept: application/openmetrics-text;version=1.0.0\r\n").await;
    assert!(head.contains("application/openmetrics-text"), "{head}");
    assert!(text.contains("# TYPE shunt_syncs counter") && text.ends_with("# EOF\n"), "{text}");
    let (head, mode) = ask(routes(), "/proxyMode", "").await; // HM-21
    assert!(head.contains("nosniff") && mode == "ebpf", "{head} {mode}");
    let unopened = metrics_routes(prometheus_client::registry::Registry::default(), OpenPath::default(), Value::Null);
    assert_eq!(get(unopened, "/proxyMode").await, (503, "no data path is open yet".to_owned()));
    let (_, configz) = ask(routes(), "/configz", "").await; // HM-22
    assert_eq!(configz, r#"{"kubeproxy.config.k8s.io":{"mode":""}}"#);
    let (_, slis) = ask(routes(), "/metrics/slis", "").await;
    assert!(slis.contains("kubernetes_healthcheck{"), "{slis}");
}

#[tokio::test(start_paused = true)]
async fn an_address_that_becomes_free_is_taken() {
    // HM-23
    let taken = bind("--metrics-bind-address", ANY_PORT).await.unwrap();
    let address = taken.local_addr().unwrap();
    let stop = CancellationToken::new();
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let complain = move |error: &super::BindError| told.send(error.to_string()).unwrap();
    let routes = axum::Router::new();
    let serving = tokio::spawn(serve_in_the_end("--metrics-bind-address", address, routes, stop.clone(), complain));
    assert!(heard.recv().await.unwrap().contains("--metrics-bind-address"));
    drop(taken);
    while TcpStream::connect(address).await.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stop.cancel();
    serving.await.unwrap();
}

#[tokio::test]
async fn metrics_carry_our_prefix_and_count_what_is_ignored() {
    let (server, _state, _views) = dns_server(Upstreams::Servers(Vec::new()), None).await;
    let mut status = synced();
    status.source = Arc::new(shunt_model::source::SourceHealth {
        counts: [("service", 3)].into_iter().collect(),
        ..shunt_model::source::SourceHealth::default()
    });
    let (_status, status) = watch::channel(status);
    let number = |name, kind, value| Number { name, help: "What it means", kind, value };
    let numbers = vec![number("sweeps", NumberKind::Counter, 4), number("left_alone", NumberKind::Gauge, 2)];
    let installed = Installed { fault: None, restored: 2 };
    let path = path(Report { numbers, installed, ..Report::default() });
    let durations = durations();
    durations.synced(true, Duration::from_millis(3));
    let registry = metrics::registry(status, counts(), path, durations, Some(server.exporter()));
    let (code, text) = get(metrics_routes(registry, OpenPath::default(), Value::Null), "/metrics").await;
    assert_eq!(code, 200);
    for line in [
        "shunt_syncs_total 1",
        "shunt_failed_syncs_total 0",
        "# HELP shunt_sweeps_total What it means",
        "# TYPE shunt_left_alone gauge",
        "shunt_sweeps_total 4",
        "shunt_left_alone 2",
        "shunt_installation_restored_total 2",
        "shunt_objects_ignored_total{kind=\"service\"} 3",
        "shunt_sync_duration_seconds_count 1",
        "coredns_forward_max_concurrent_rejects_total 0",
        "shunt_dns_forwards_total 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
    }
}

#[tokio::test]
async fn an_address_in_use_names_its_flag() {
    let taken = bind("--healthz-bind-address", ANY_PORT).await.unwrap();
    let error = bind("--metrics-bind-address", taken.local_addr().unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("--metrics-bind-address"), "{error}");
}
