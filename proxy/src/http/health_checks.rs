//! Servers on health-check node ports, by which load balancers learn which nodes have an endpoint (HM-1…10a).

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
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
use crate::plan::{HealthCheck, HealthCheckAddresses, Plan};
use crate::status::Status;

/// How often the daemon retries a port that is in use, beside every sync (HM-8).
const RETRY: Duration = Duration::from_secs(5);
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// The health checks of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checks {
    /// As [`Plan::health_checks`].
    pub wanted: OrdMap<(ObjectKey, Family), HealthCheck>,
    /// As [`Plan::health_check_addresses`].
    pub addresses: Arc<HealthCheckAddresses>,
}

impl From<&Plan> for Checks {
    fn from(plan: &Plan) -> Self {
        Self { wanted: plan.health_checks.clone(), addresses: Arc::clone(&plan.health_check_addresses) }
    }
}

/// Owner of the servers.
pub struct HealthChecks {
    health: Health,
    events: Recorder,
    open: BTreeMap<(ObjectKey, Family), Open>,
    /// The failures that have an event already; a port that stays busy is one event.
    failed: BTreeSet<(ObjectKey, Family)>,
}

struct Open {
    check: HealthCheck,
    endpoints: Arc<AtomicUsize>,
    /// Where it should listen; if that failed, it listens at the wildcard.
    addresses: Vec<IpAddr>,
    /// One for each address; they end with it.
    servers: BTreeMap<IpAddr, JoinSet<()>>,
}

#[derive(Clone)]
struct Served {
    service: ObjectKey,
    endpoints: Arc<AtomicUsize>,
    health: Health,
}

impl HealthChecks {
    /// None open yet.
    #[must_use]
    pub fn new(health: Health, events: Recorder) -> Self {
        Self { health, events, open: BTreeMap::new(), failed: BTreeSet::new() }
    }

    /// Follows the plan that the kernel serves until it is stopped: after the sync, so that a load balancer sends no
    /// client here too early (HM-7).
    pub async fn run(mut self, mut status: watch::Receiver<Status>, stop: CancellationToken) {
        let mut wanted = Checks::default();
        loop {
            self.reconcile(&wanted).await;
            let retry = async {
                match self.failed.is_empty() {
                    false => tokio::time::sleep(RETRY).await,
                    true => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                changed = next(&mut status, &wanted) => match changed {
                    Some(changed) => wanted = changed,
                    None => return stop.cancelled().await,
                },
                () = retry => {}
            }
        }
    }

    /// First closes and opens, then counts (HM-7).
    async fn reconcile(&mut self, Checks { wanted, addresses }: &Checks) {
        let stale = |key: &_, open: &mut Open| wanted.get(key).is_none_or(|check| check.port != open.check.port);
        for (_, mut open) in self.open.extract_if(.., stale) {
            open.close_besides(&[]).await;
        }
        self.failed.retain(|key| wanted.contains_key(key));
        for (key, check) in wanted {
            let addresses = match addresses.of(key.1) {
                [] => vec![wildcard(key.1)],
                addresses => addresses.to_vec(),
            };
            if self.open.get(key).is_none_or(|open| open.addresses != addresses) {
                let open = match self.open.remove(key) {
                    Some(open) => open,
                    None => Open::new(*check),
                };
                match self.listen(key, open, addresses).await {
                    (open, Ok(())) => {
                        self.failed.remove(key);
                        self.open.insert(key.clone(), open);
                    }
                    (open, Err(error)) => {
                        self.complain(key, &error);
                        if !open.servers.is_empty() {
                            self.open.insert(key.clone(), open);
                        }
                    }
                }
            }
            if let Some(open) = self.open.get_mut(key) {
                open.check = *check;
                open.endpoints.store(check.local_endpoints, Ordering::Relaxed);
            }
        }
    }

    fn complain(&mut self, key: &(ObjectKey, Family), error: &BindError) {
        if self.failed.insert(key.clone()) {
            let note = error.note(&self.health.node);
            self.events.service_warning(&key.0, "FailedToStartServiceHealthcheck", "Listen", note);
        }
    }

    /// Listens at these addresses and no others. Listeners at addresses that stay in the list remain open. After an
    /// error those that could be opened serve, and the others are retried.
    async fn listen(
        &self,
        key: &(ObjectKey, Family),
        mut open: Open,
        addresses: Vec<IpAddr>,
    ) -> (Open, Result<(), BindError>) {
        let (service, family) = key;
        let served =
            Served { service: service.clone(), endpoints: Arc::clone(&open.endpoints), health: self.health.clone() };
        let routes = Router::new().fallback(answer).with_state(served);
        open.close_besides(&addresses).await;
        let any = [wildcard(*family)];
        let mut outcome = open.listen_at(&addresses, &routes);
        // Where another process has the port, it has it at the wildcard too.
        let falls_back = |error: &BindError| !error.is_in_use() && addresses != any;
        if outcome.as_ref().is_err_and(falls_back) {
            // Close those that are open and listen at the wildcard, as kube-proxy does (HM-1).
            open.close_besides(&any).await;
            outcome = open.listen_at(&any, &routes);
        }
        open.addresses = if outcome.is_ok() { addresses } else { Vec::new() };
        (open, outcome)
    }
}

/// The health checks that the kernel serves, as soon as they differ from `known`; `None` if the status has ended.
async fn next(status: &mut watch::Receiver<Status>, known: &Checks) -> Option<Checks> {
    let differ = |status: &Status| Checks::from(&status.programmed) != *known;
    status.wait_for(differ).await.ok().map(|status| Checks::from(&status.programmed))
}

impl Open {
    fn new(check: HealthCheck) -> Self {
        let endpoints = Arc::new(AtomicUsize::new(check.local_endpoints));
        Self { check, endpoints, addresses: Vec::new(), servers: BTreeMap::new() }
    }

    /// Returns when the sockets are closed: the port of one at the wildcard is taken at every address.
    async fn close_besides(&mut self, addresses: &[IpAddr]) {
        for (_, mut server) in self.servers.extract_if(.., |address, _| !addresses.contains(address)) {
            server.shutdown().await;
        }
    }

    /// Listens at each of them that can be opened; the error is that of the first that cannot.
    fn listen_at(&mut self, addresses: &[IpAddr], routes: &Router) -> Result<(), BindError> {
        let mut outcome = Ok(());
        for address in addresses {
            let Entry::Vacant(place) = self.servers.entry(*address) else { continue };
            let at = SocketAddr::new(*address, self.check.port.get());
            match listen(at) {
                Ok(listener) => drop(place.insert(JoinSet::new()).spawn(serve_routes(listener, routes.clone()))),
                Err(error) => outcome = outcome.and(Err(BindError { at, error })),
            }
        }
        outcome
    }
}

/// A health-check node port that cannot be opened.
#[derive(Debug)]
struct BindError {
    at: SocketAddr,
    error: io::Error,
}

impl BindError {
    fn is_in_use(&self) -> bool {
        self.error.kind() == io::ErrorKind::AddrInUse
    }

    /// For whoever looks at the Service: what its load balancer sees, and what to do.
    fn note(&self, node: &str) -> String {
        let Self { at, error } = self;
        let advice = match self.is_in_use() {
            true => {
                let port = at.port();
                format!("; end the process on that node that has the port (`ss -ltnp sport = :{port}` names it)")
            }
            false => String::new(),
        };
        format!(
            "load balancers cannot check node {node} at healthCheckNodePort {at}, so they may send it no clients: \
             {error}{advice}; the node tries again every {} s",
            RETRY.as_secs()
        )
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

/// The same for every path and method (HM-2…6).
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
