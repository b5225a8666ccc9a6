//! Servers on health-check node ports: by them load balancers learn which nodes have an endpoint (spec 7.1).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use imbl::OrdMap;
use serde_json::json;
use shunt_model::{Family, ObjectKey};
use shunt_serving::http::serve_routes;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::events::Recorder;
use crate::http::health::Health;
use crate::plan::{HealthCheck, NodePortAddresses};

/// A port that is in use is tried again after this, and at every sync (spec HM-8).
const RETRY: Duration = Duration::from_secs(5);
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// The health checks of a plan.
pub type Checks = OrdMap<(ObjectKey, Family), HealthCheck>;

/// Owner of the servers.
pub struct HealthChecks {
    health: Health,
    events: Recorder,
    addresses: NodePortAddresses,
    /// This node's addresses, for those that `addresses` selects.
    own: BTreeSet<IpAddr>,
    open: BTreeMap<(ObjectKey, Family), Open>,
    /// Those told of already; a port that stays busy is one event.
    failed: BTreeSet<(ObjectKey, Family)>,
}

struct Open {
    check: HealthCheck,
    endpoints: Arc<AtomicUsize>,
    // Ends with it.
    _servers: JoinSet<()>,
}

#[derive(Clone)]
struct Served {
    service: ObjectKey,
    endpoints: Arc<AtomicUsize>,
    health: Health,
}

impl HealthChecks {
    /// None open yet. `own` are this node's addresses: they count once, at the start (spec HM-1).
    #[must_use]
    pub fn new(health: Health, events: Recorder, addresses: NodePortAddresses, own: BTreeSet<IpAddr>) -> Self {
        Self { health, events, addresses, own, open: BTreeMap::new(), failed: BTreeSet::new() }
    }

    /// Follows the plans until told to stop.
    pub async fn run(mut self, mut checks: watch::Receiver<Checks>, stop: CancellationToken) {
        loop {
            let wanted = checks.borrow_and_update().clone();
            self.reconcile(&wanted);
            let retry = async {
                match self.failed.is_empty() {
                    false => tokio::time::sleep(RETRY).await,
                    true => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                changed = checks.changed() => if changed.is_err() {
                    return stop.cancelled().await;
                },
                () = retry => {}
            }
        }
    }

    /// First closes and opens, then counts (spec HM-7).
    fn reconcile(&mut self, wanted: &Checks) {
        self.open.retain(|key, open| wanted.get(key).is_some_and(|check| check.port == open.check.port));
        self.failed.retain(|key| wanted.contains_key(key));
        for (key, check) in wanted {
            if !self.open.contains_key(key) {
                match self.open(key, *check) {
                    Ok(open) => {
                        self.failed.remove(key);
                        self.open.insert(key.clone(), open);
                    }
                    Err(error) => self.complain(key, *check, &error),
                }
            }
            if let Some(open) = self.open.get_mut(key) {
                open.check = *check;
                open.endpoints.store(check.local_endpoints, Ordering::Relaxed);
            }
        }
    }

    fn complain(&mut self, key: &(ObjectKey, Family), check: HealthCheck, error: &io::Error) {
        if self.failed.insert(key.clone()) {
            let (service, family) = key;
            let port = check.port;
            let note =
                format!("node {family} cannot listen on health-check node port {port}: {error}; it is tried again");
            self.events.service_warning(service, "FailedToStartServiceHealthcheck", "Listen", note);
        }
    }

    fn open(&self, (service, family): &(ObjectKey, Family), check: HealthCheck) -> io::Result<Open> {
        let endpoints = Arc::new(AtomicUsize::new(check.local_endpoints));
        let served =
            Served { service: service.clone(), endpoints: Arc::clone(&endpoints), health: self.health.clone() };
        let routes = Router::new().fallback(answer).with_state(served);
        let listen = |ip: &IpAddr| listen(SocketAddr::new(*ip, check.port.get()));
        let any = wildcard(*family);
        let selected = self.selected(*family);
        let listeners: io::Result<Vec<TcpListener>> = selected.iter().map(listen).collect();
        // Those already open are closed again; then the wildcard, as upstream does (spec HM-1).
        let listeners =
            listeners.or_else(|error| if selected == [any] { Err(error) } else { Ok(vec![listen(&any)?]) })?;
        let mut servers = JoinSet::new();
        for listener in listeners {
            let routes = routes.clone();
            servers.spawn(serve_routes(listener, routes));
        }
        Ok(Open { check, endpoints, _servers: servers })
    }

    fn selected(&self, family: Family) -> Vec<IpAddr> {
        let own = || self.own.iter().copied().filter(|ip| Family::of(ip) == family);
        let selected: Vec<IpAddr> = match &self.addresses {
            NodePortAddresses::All => Vec::new(),
            NodePortAddresses::Primary => own().filter(|ip| !ip.is_loopback()).take(1).collect(),
            NodePortAddresses::Within(ranges) => {
                own().filter(|ip| ranges.iter().any(|range| range.contains(ip))).collect()
            }
        };
        if selected.is_empty() { vec![wildcard(family)] } else { selected }
    }
}

fn wildcard(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// IPv6 alone on IPv6: the other family has a listener of its own.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    TcpListener::from_std(socket.into())
}

/// The same for every path and method (spec HM-2…6).
async fn answer(State(served): State<Served>) -> Response {
    let endpoints = served.endpoints.load(Ordering::Relaxed);
    let healthy = served.health.is_healthy();
    let code = if endpoints > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let ObjectKey { namespace, name } = &served.service;
    let body = json!({
        "service": {"namespace": &**namespace, "name": &**name},
        "localEndpoints": endpoints, "serviceProxyHealthy": healthy,
    });
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (WEIGHT, endpoints.to_string()),
    ];
    (code, headers, format!("{body:#}\n")).into_response()
}

#[cfg(test)]
mod tests;
