//! The HTTP surfaces: `/healthz`, `/livez` and `/readyz` for load balancers and kubelets, `/metrics` for Prometheus.

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hickory_proto::rr::Name;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use shunt_dns::Exporter;
use shunt_model::with_causes;
use shunt_serving::http::serve_routes;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::datapath::{Mode, OpenPath};
use crate::dns::service;
use crate::metrics::KubeProxy;
use crate::status::{Pending, Status};

/// How often the daemon retries to listen on an address (HM-23).
const RETRY: Duration = Duration::from_secs(5);

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("listening on {address} for {flag}; is another daemon running here? Choose another address with {flag}")]
pub struct BindError {
    flag: &'static str,
    address: SocketAddr,
    #[source]
    source: std::io::Error,
}

/// Listens on an address given with `flag`.
pub async fn bind(flag: &'static str, address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { flag, address, source })
}

/// Listens on an address and serves `routes` there; retries until the address can be listened on.
pub async fn serve_in_the_end(
    flag: &'static str,
    address: SocketAddr,
    routes: Router,
    stop: CancellationToken,
    failed: impl Fn(&BindError),
) {
    loop {
        match bind(flag, address).await {
            Ok(listener) => return serve(listener, routes, stop).await,
            Err(error) => failed(&error),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// The inputs of health.
#[derive(Clone)]
pub struct Health {
    /// This node's name.
    pub node: Arc<str>,
    /// A change that waits for twice as long makes the node unhealthy (HM-13).
    pub sync_period: Duration,
    /// Since when a change waits.
    pub pending: Pending,
    /// Counts the answers.
    pub metrics: KubeProxy,
    /// The reconcile loop's status.
    pub status: watch::Receiver<Status>,
    /// Where the bundled DNS answers; `None` until it is started.
    pub dns: watch::Receiver<DnsState>,
    /// Whether the data path is in effect.
    pub path: OpenPath,
}

/// The state of DNS.
#[derive(Clone, Debug, Default)]
pub enum DnsState {
    /// Not started yet.
    #[default]
    Starting,
    /// Switched off.
    Off,
    /// Serving.
    Serving {
        /// Its addresses.
        addresses: Vec<SocketAddr>,
        /// The cluster domain.
        domain: Name,
        /// The server's own warnings.
        exporter: Exporter,
    },
}

impl Health {
    /// The reasons why the node is not ready; asks the DNS server a question.
    async fn not_ready(&self) -> Vec<String> {
        let mut reasons = self.status.borrow().not_ready();
        let path = self.path.report();
        if !path.checked && reasons.is_empty() {
            reasons.push("self-test: not run yet".to_owned());
        }
        reasons.extend(path.not_in_effect());
        reasons.extend(path.leftovers);
        let dns = self.dns.borrow().clone();
        match dns {
            DnsState::Off => {}
            DnsState::Starting => reasons.push("dns: not started yet".to_owned()),
            DnsState::Serving { addresses, domain, exporter: _ } => {
                for address in addresses {
                    if let Err(error) = service::probe(address, &domain).await {
                        reasons.push(format!("dns: {}", with_causes(&error)));
                    }
                }
            }
        }
        reasons
    }

    fn dns_warnings(&self) -> Vec<String> {
        let warnings = match &*self.dns.borrow() {
            DnsState::Starting | DnsState::Off => Vec::new(),
            DnsState::Serving { addresses: _, domain: _, exporter } => exporter.warnings(),
        };
        warnings.into_iter().map(|warning| format!("dns: {warning}")).collect()
    }

    /// Healthy: alive, and what the data path has installed is still there. A daemon that starts is healthy.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.is_alive() && self.path.report().installed.fault.is_none()
    }

    /// Alive: no change waits, or the oldest one waits only for a short time. What another program took from the data
    /// path does not count: a restart would not bring it back, and would end the DNS of this node too.
    fn is_alive(&self) -> bool {
        self.pending.age() <= self.sync_period * 2
    }

    /// Whether load balancers may send new connections here (HM-15). Without a cluster's API no Node is taken out of
    /// service, so there a missing Node object does not count.
    fn is_eligible(&self) -> bool {
        let status = self.status.borrow();
        if status.source.unknown_node.is_some() {
            return false;
        }
        let node = status.snapshot.as_ref().and_then(|snapshot| snapshot.nodes.get(&*self.node).cloned());
        node.is_none_or(|node| node.eligible)
    }

    fn report(&self, healthy: bool, eligible: Option<bool>) -> Value {
        let status = self.status.borrow();
        let last_sync = status.last_sync.map(|sync| sync.at);
        // HM-18: a healthy proxy is up to date now, an unhealthy one was at its last success.
        let updated = if healthy && eligible != Some(false) { Some(SystemTime::now()) } else { last_sync };
        // One sync is of both families.
        let family = json!({"lastUpdated": last_sync.and_then(rfc3339), "healthy": healthy});
        let mut body = json!({
            "lastUpdated": updated.and_then(rfc3339), "currentTime": rfc3339(SystemTime::now()),
            "healthy": healthy, "error": status.error, "status": {"IPv4": family, "IPv6": family},
        });
        if let (Some(eligible), Some(body)) = (eligible, body.as_object_mut()) {
            body.insert("nodeEligible".to_owned(), json!(eligible));
        }
        body
    }
}

/// `/healthz`, `/livez` and `/readyz`.
pub fn health_routes(health: Health) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/livez", get(livez))
        .route("/readyz", get(ready))
        .with_state(health)
}

/// `/metrics/slis`: Kubernetes components show there which of their health checks succeed. This server has one.
const SLIS: &str = "\
# HELP kubernetes_healthcheck 1 while this server answers
# TYPE kubernetes_healthcheck gauge
kubernetes_healthcheck{name=\"metrics\",type=\"healthz\"} 1
";

/// `/metrics`, `/proxyMode` and `/configz`.
pub fn metrics_routes(registry: Registry, path: OpenPath, configz: Value) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/metrics/slis", get(async || SLIS))
        .route("/proxyMode", get(async move || proxy_mode(path.chosen().map(|chosen| chosen.mode))))
        .route("/configz", get(async move || Json(configz.clone())))
        .route("/healthz", get(async || "ok"))
        .with_state(Arc::new(registry))
}

/// Serves until stopped.
pub async fn serve(listener: TcpListener, routes: Router, stop: CancellationToken) {
    tokio::select! {
        () = serve_routes(listener, routes) => {}
        () = stop.cancelled() => {}
    }
}

async fn healthz(State(health): State<Health>) -> Response {
    let eligible = health.is_eligible();
    let healthy = health.is_healthy();
    let good = healthy && eligible;
    health.metrics.healthz(if good { 200 } else { 503 });
    answer(good, health.report(healthy, Some(eligible)))
}

async fn livez(State(health): State<Health>) -> Response {
    let good = health.is_alive();
    health.metrics.livez(if good { 200 } else { 503 });
    answer(good, health.report(good, None))
}

async fn ready(State(health): State<Health>) -> Response {
    let reasons = health.not_ready().await;
    let (last_sync, source) = {
        let status = health.status.borrow();
        (status.last_sync, Arc::clone(&status.source))
    };
    // An API server that is away must not take every node out of service at once: the data path stays in force.
    let foreign = health.path.report().foreign;
    let warnings: Vec<String> = source.warnings().cloned().chain(health.dns_warnings()).chain(foreign).collect();
    let ready = reasons.is_empty();
    answer(ready, json!({ "ready": ready, "reasons": reasons, "warnings": warnings, "lastSync": last_sync }))
}

fn proxy_mode(mode: Option<Mode>) -> Response {
    let plain = [(header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    match mode {
        Some(mode) => (plain, mode.as_str()).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, plain, "no data path is open yet").into_response(),
    }
}

async fn metrics(State(registry): State<Arc<Registry>>, headers: HeaderMap) -> Response {
    let mut text = String::new();
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) if accept.contains("application/openmetrics-text") => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Ok(()) => {
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], shunt_serving::metrics::classic(&text)).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn answer(good: bool, body: Value) -> Response {
    let code = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, [(header::X_CONTENT_TYPE_OPTIONS, "nosniff")], Json(body)).into_response() // HM-19
}

fn rfc3339(time: SystemTime) -> Option<String> {
    jiff::Timestamp::try_from(time).ok().map(|time| time.to_string())
}
