//! What the HTTP surfaces say, asked over loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use shunt_dns::Server;
use shunt_model::{ObjectKey, Protocol, Snapshot};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{DnsState, Health, bind, health_routes, metrics_routes, serve};
use crate::config::{DnsConfig, DnsListen, PodNames, Upstreams};
use crate::datapath::ebpf::upkeep::Report;
use crate::plan::PortKey;
use crate::status::{LastSync, Status};
use crate::{dns_service, metrics};

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Serves `routes` and asks for `path`; returns code and body.
async fn get(routes: axum::Router, path: &str) -> (u16, String) {
    let listener = bind("--flag", ANY_PORT).await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let server = tokio::spawn(serve(listener, routes, stop.clone()));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    stop.cancel();
    server.await.unwrap().unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

async fn health_of(status: Status, dns: DnsState, path: &str) -> (u16, Value) {
    let (_status, status) = watch::channel(status);
    let (_dns, dns) = watch::channel(dns);
    let (_upkeep, upkeep) = watch::channel(Report { checkups: 1, ..Report::default() });
    let (code, body) = get(health_routes(Health { status, dns, upkeep }), path).await;
    (code, serde_json::from_str(&body).unwrap())
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

async fn dns_server(snapshot: Option<Arc<Snapshot>>) -> (Server, DnsState, watch::Sender<Option<Arc<Snapshot>>>) {
    let config = DnsConfig {
        listen: DnsListen::Given(vec![ANY_PORT]),
        domain: "cluster.local".to_owned(),
        upstreams: Upstreams::Servers(Vec::new()),
        pods: PodNames::Disabled,
        ttl: 5,
    };
    let cluster_dns = [[10, 96, 0, 10].into()];
    let (sender, receiver) = watch::channel(snapshot);
    let server = dns_service::start(&config, vec![ANY_PORT], &cluster_dns, receiver).await.unwrap();
    let domain = dns_service::zone_config(&config, &cluster_dns).unwrap().cluster_domain;
    let state = DnsState::Serving { addresses: server.local_addresses().to_vec(), domain };
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
async fn dns_is_asked_a_real_question() {
    let (server, state, _views) = dns_server(Some(Arc::default())).await;
    check(health_of(synced(), state.clone(), "/readyz").await, 200, &[]);
    server.shutdown().await;
    check(health_of(synced(), state, "/readyz").await, 503, &["dns: asking 127.0.0.1"]);
}

#[tokio::test]
async fn health_forgives_a_failure_for_a_while() {
    let since = |seconds| SystemTime::now() - Duration::from_secs(seconds);
    let failing = |seconds| Status { failing_since: Some(since(seconds)), error: Some("no".to_owned()), ..synced() };
    for (status, code) in [(Status::default(), 200), (synced(), 200), (failing(5), 200), (failing(120), 503)] {
        for path in ["/healthz", "/livez"] {
            let (found, body) = health_of(status.clone(), DnsState::Off, path).await; // HM-13, HM-14
            assert_eq!(found, code, "{body}");
            assert_eq!(body["healthy"], code == 200);
            assert!(body["lastUpdated"].as_str().unwrap().ends_with('Z'), "{body}"); // HM-17
        }
    }
}

#[tokio::test]
async fn metrics_carry_our_prefix_and_count_what_is_ignored() {
    let (server, _state, _views) = dns_server(None).await;
    let mut status = synced();
    status.source = Arc::new(shunt_model::source::SourceHealth {
        counts: [("service", 3)].into_iter().collect(),
        ..shunt_model::source::SourceHealth::default()
    });
    let (_status, status) = watch::channel(status);
    let durations = metrics::Durations::default();
    durations.sync.observe(0.003);
    let server = Arc::new(server);
    let stats = Arc::clone(&server);
    let registry = metrics::registry(
        status,
        watch::channel(Report::default()).1,
        durations,
        Some(Box::new(move || stats.stats())),
    );
    let (code, text) = get(metrics_routes(registry, "ebpf"), "/metrics").await;
    assert_eq!(code, 200);
    for line in [
        "shunt_syncs_total 1",
        "shunt_failed_syncs_total 0",
        "shunt_objects_ignored_total{kind=\"service\"} 3",
        "shunt_sync_duration_seconds_count 1",
        "shunt_dns_queries_total{protocol=\"udp\"} 0",
        "shunt_dns_forwards_total 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
    }
    let (_, empty) = watch::channel(Status::default());
    let registry = metrics::registry(empty, watch::channel(Report::default()).1, metrics::Durations::default(), None);
    assert_eq!(get(metrics_routes(registry, "ebpf"), "/proxyMode").await, (200, "ebpf".to_owned())); // HM-21
}

#[tokio::test]
async fn an_address_in_use_names_its_flag() {
    let taken = bind("--healthz-bind-address", ANY_PORT).await.unwrap();
    let error = bind("--metrics-bind-address", taken.local_addr().unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("--metrics-bind-address"), "{error}");
}
