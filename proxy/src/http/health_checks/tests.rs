//! Health checks asked over loopback.

use std::num::NonZeroU16;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::events::recorder;
use crate::http::health::DnsState;
use crate::metrics::KubeProxy;
use crate::status::{Pending, Status};

fn servers(pending: Pending) -> HealthChecks {
    let health = Health {
        node: Arc::from("n1"),
        sync_period: Duration::from_secs(30),
        pending,
        metrics: KubeProxy::default(),
        status: watch::channel(Status::default()).1,
        dns: watch::channel(DnsState::Off).1,
        path: crate::datapath::OpenPath::default(),
    };
    let (events, _) = recorder();
    HealthChecks::new(health, events)
}

fn free_port() -> NonZeroU16 {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    NonZeroU16::new(listener.local_addr().unwrap().port()).unwrap()
}

fn checks(family: Family, port: NonZeroU16, local_endpoints: usize) -> Checks {
    let key = (ObjectKey::new("shop", "web"), family);
    Checks { wanted: OrdMap::unit(key, HealthCheck { port, local_endpoints }), ..Checks::default() }
}

/// The head and the body of the answer to `request`, or that no server listens.
async fn ask(ip: IpAddr, port: NonZeroU16, request: &str) -> Option<(String, String)> {
    let mut stream = TcpStream::connect((ip, port.get())).await.ok()?;
    stream.write_all(format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    Some((head.to_lowercase(), body.to_owned()))
}

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

#[tokio::test]
async fn the_answer_is_that_of_kube_proxy() {
    // HM-2…6
    let (mut servers, port) = (servers(Pending::default()), free_port());
    servers.reconcile(&checks(Family::V4, port, 2)).await;
    for request in ["GET /", "POST /any/path", "DELETE /x?y=z"] {
        let (head, body) = ask(V4, port, request).await.unwrap();
        assert!(head.starts_with("http/1.1 200"), "{head}");
        for header in ["content-type: application/json", "x-content-type-options: nosniff"] {
            assert!(head.lines().any(|line| line == header), "{header} is not in {head}");
        }
        assert!(head.contains("x-load-balancing-endpoint-weight: 2"), "{head}");
        let expected = json!({
            "service": {"namespace": "shop", "name": "web"}, "localEndpoints": 2, "serviceProxyHealthy": true,
        });
        assert_eq!(serde_json::from_str::<serde_json::Value>(&body).unwrap(), expected);
    }
    // No endpoint here: 503, on the same server and with the weight.
    servers.reconcile(&checks(Family::V4, port, 0)).await;
    let (head, body) = ask(V4, port, "GET /").await.unwrap();
    assert!(head.starts_with("http/1.1 503") && head.contains("endpoint-weight: 0"), "{head}");
    assert!(body.contains("\"localEndpoints\": 0"), "{body}");
}

#[tokio::test]
async fn an_unhealthy_proxy_gives_503() {
    // HM-4, HM-10
    let (mut servers, port) = (servers(Pending::of_age(Duration::from_secs(61))), free_port());
    servers.reconcile(&checks(Family::V4, port, 2)).await;
    let (head, body) = ask(V4, port, "GET /").await.unwrap();
    assert!(head.starts_with("http/1.1 503") && body.contains("\"serviceProxyHealthy\": false"), "{head} {body}");
}

#[tokio::test]
async fn each_family_has_a_server_of_its_own() {
    // HM-1
    let (mut servers, port) = (servers(Pending::default()), free_port());
    servers.reconcile(&checks(Family::V6, port, 1)).await;
    assert!(ask(V6, port, "GET /").await.unwrap().0.starts_with("http/1.1 200"));
    assert!(ask(V4, port, "GET /").await.is_none());
    let both = checks(Family::V6, port, 1).wanted.union(checks(Family::V4, port, 0).wanted);
    servers.reconcile(&Checks { wanted: both, ..Checks::default() }).await;
    assert!(ask(V4, port, "GET /").await.unwrap().0.starts_with("http/1.1 503"));
    assert!(ask(V6, port, "GET /").await.unwrap().0.starts_with("http/1.1 200"));
}

#[tokio::test]
async fn a_server_follows_its_port_and_ends_with_its_service() {
    // HM-7, HM-9
    let (mut servers, first, second) = (servers(Pending::default()), free_port(), free_port());
    servers.reconcile(&checks(Family::V4, first, 1)).await;
    servers.reconcile(&checks(Family::V4, second, 1)).await;
    assert!(ask(V4, second, "GET /").await.is_some());
    assert!(ask(V4, first, "GET /").await.is_none());
    servers.reconcile(&Checks::default()).await;
    assert!(ask(V4, second, "GET /").await.is_none());
}

#[tokio::test]
async fn a_busy_port_is_reported_and_tried_again() {
    // HM-8
    let other = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = NonZeroU16::new(other.local_addr().unwrap().port()).unwrap();
    let mut servers = servers(Pending::default());
    servers.reconcile(&checks(Family::V4, port, 1)).await;
    assert_eq!((servers.open.len(), servers.failed.len()), (0, 1));
    drop(other);
    servers.reconcile(&checks(Family::V4, port, 1)).await;
    assert_eq!((servers.open.len(), servers.failed.len()), (1, 0));
    assert!(ask(V4, port, "GET /").await.is_some());
}

fn at(addresses: &[IpAddr], checks: &Checks) -> Checks {
    let v4 = addresses.to_vec();
    Checks { addresses: Arc::new(HealthCheckAddresses::new([v4, Vec::new()])), ..checks.clone() }
}

const OTHERS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3))];

#[tokio::test]
async fn only_the_planned_addresses_listen_and_a_server_follows_them() {
    // HM-1
    let (mut servers, port) = (servers(Pending::default()), free_port());
    let checks = checks(Family::V4, port, 1);
    let mut check = async |addresses: &[IpAddr], wanted: [bool; 3]| {
        servers.reconcile(&at(addresses, &checks)).await;
        assert_eq!(servers.failed.len(), 0);
        let mut open = Vec::new();
        for address in [V4, OTHERS[0], OTHERS[1]] {
            open.push(ask(address, port, "GET /").await.is_some());
        }
        assert_eq!(open, wanted, "{addresses:?}");
    };
    check(&[], [true; 3]).await; // the wildcard
    check(&[V4, OTHERS[0]], [true, true, false]).await;
    check(&[V4, OTHERS[0]], [true, true, false]).await;
    check(&OTHERS, [false, true, true]).await;
    check(&[], [true; 3]).await;
    // An address that is not there after all: the wildcard instead, as long as it is wanted.
    let absent = "192.0.2.1".parse().unwrap();
    check(&[OTHERS[0], absent], [true; 3]).await;
    check(&[V4], [true, false, false]).await;
}

#[tokio::test]
async fn an_address_whose_port_is_taken_costs_the_others_nothing() {
    // HM-1, HM-8
    let other = std::net::TcpListener::bind((OTHERS[0], 0)).unwrap();
    let port = NonZeroU16::new(other.local_addr().unwrap().port()).unwrap();
    let (mut servers, checks) = (servers(Pending::default()), checks(Family::V4, port, 1));
    servers.reconcile(&at(&[V4], &checks)).await;
    for _ in 0..2 {
        servers.reconcile(&at(&[V4, OTHERS[0]], &checks)).await;
        assert_eq!(servers.failed.len(), 1, "it is retried");
        assert!(ask(V4, port, "GET /").await.is_some(), "the other address still answers");
    }
    drop(other);
    servers.reconcile(&at(&[V4, OTHERS[0]], &checks)).await;
    assert_eq!(servers.failed.len(), 0);
    assert!(ask(OTHERS[0], port, "GET /").await.is_some());
}

#[tokio::test]
async fn a_server_stays_open_where_it_is_still_wanted() {
    // HM-1
    let (mut servers, port) = (servers(Pending::default()), free_port());
    let checks = checks(Family::V4, port, 1);
    servers.reconcile(&at(&[V4], &checks)).await;
    // It waits for its request while the other addresses come and go.
    let mut stream = TcpStream::connect((V4, port.get())).await.unwrap();
    servers.reconcile(&at(&[V4, OTHERS[0]], &checks)).await;
    servers.reconcile(&at(&[V4, OTHERS[1]], &checks)).await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
}

#[tokio::test]
async fn two_services_may_exchange_their_ports() {
    // HM-7
    let (mut servers, first, second) = (servers(Pending::default()), free_port(), free_port());
    let checks = |web, api| {
        let check = |name, port| ((ObjectKey::new("shop", name), Family::V4), HealthCheck { port, local_endpoints: 1 });
        Checks { wanted: [check("web", web), check("api", api)].into_iter().collect(), ..Checks::default() }
    };
    servers.reconcile(&checks(first, second)).await;
    servers.reconcile(&checks(second, first)).await;
    assert_eq!((servers.open.len(), servers.failed.len()), (2, 0));
    assert!(ask(V4, first, "GET /").await.unwrap().1.contains("api"));
    assert!(ask(V4, second, "GET /").await.unwrap().1.contains("web"));
}

#[tokio::test]
async fn servers_open_once_the_kernel_serves_the_plan() {
    // HM-7
    let (port, stop) = (free_port(), CancellationToken::new());
    let plan = Plan { health_checks: checks(Family::V4, port, 1).wanted, ..Plan::default() };
    let (status, status_read) = watch::channel(Status { planned: plan.clone(), ..Status::default() });
    let mut known = status_read.clone();
    let serving = tokio::spawn(servers(Pending::default()).run(status_read, stop.clone()));
    let failed = Status { planned: plan.clone(), error: Some("no memory".to_owned()), ..Status::default() };
    status.send_replace(failed);
    let soon = Duration::from_millis(50);
    assert!(tokio::time::timeout(soon, next(&mut known, &Checks::default())).await.is_err(), "a plan that only waits");
    assert!(ask(V4, port, "GET /").await.is_none());
    status.send_replace(Status { programmed: plan.clone(), ..Status::default() });
    assert_eq!(next(&mut known, &Checks::default()).await, Some(Checks::from(&plan)));
    while ask(V4, port, "GET /").await.is_none() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    stop.cancel();
    serving.await.unwrap();
}

#[test]
fn the_event_says_what_load_balancers_see_and_what_to_do() {
    let note = |at: &str, code: i32| {
        BindError { at: at.parse().unwrap(), error: io::Error::from_raw_os_error(code) }.note("n1")
    };
    assert_eq!(
        note("0.0.0.0:30900", 98),
        "load balancers cannot check node n1 at healthCheckNodePort 0.0.0.0:30900, so they may send it no clients: \
         Address already in use (os error 98); end the process on that node that has the port \
         (`ss -ltnp sport = :30900` names it); the node tries again every 5 s"
    );
    assert_eq!(
        note("[fd00::1]:30900", 99),
        "load balancers cannot check node n1 at healthCheckNodePort [fd00::1]:30900, so they may send it no clients: \
         Cannot assign requested address (os error 99); the node tries again every 5 s"
    );
}

#[tokio::test]
async fn a_port_that_is_taken_is_an_event_once() {
    // HM-8
    let taken = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = NonZeroU16::new(taken.local_addr().unwrap().port()).unwrap();
    let (events, mut recorded) = recorder();
    let mut servers = HealthChecks { events, ..servers(Pending::default()) };
    for _ in 0..2 {
        servers.reconcile(&checks(Family::V4, port, 1)).await;
    }
    let event = recorded.next().unwrap();
    assert_eq!((event.kind, &*event.namespace, &*event.name, event.warning), ("Service", "shop", "web", true));
    assert!(event.note.contains(&format!("node n1 at healthCheckNodePort 0.0.0.0:{port}")), "{}", event.note);
    assert!(recorded.next().is_none());
}
