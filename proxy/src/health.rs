//! The HTTP surfaces: `/healthz`, `/livez` and `/readyz` for load balancers and kubelets, `/metrics` for Prometheus.

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hickory_proto::rr::Name;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::datapath::ebpf::upkeep;
use crate::dns_service;
use crate::reconcile::chain;
use crate::status::Status;

/// How long a failure may last before the node counts as unhealthy: kube-proxy's 2 × syncPeriod (spec HM-13).
const GRACE: Duration = Duration::from_mins(1);

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("listening on {address} for {flag}; is another daemon running here? Choose another address with {flag}")]
pub struct BindError {
    flag: &'static str,
    address: SocketAddr,
    #[source]
    source: std::io::Error,
}

/// Takes an address given with `flag`.
pub async fn bind(flag: &'static str, address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { flag, address, source })
}

/// What health is read from.
#[derive(Clone)]
pub struct Health {
    /// The reconcile loop's word.
    pub status: watch::Receiver<Status>,
    /// Where the bundled DNS answers; `None` until it is started.
    pub dns: watch::Receiver<DnsState>,
    /// Whether the programs are in effect.
    pub upkeep: watch::Receiver<upkeep::Report>,
}

/// How far DNS is.
#[derive(Clone, Debug, Default)]
pub enum DnsState {
    /// Not there yet.
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
    },
}

impl Health {
    /// What keeps the node from being ready; asks the DNS server a question.
    async fn not_ready(&self) -> Vec<String> {
        let mut reasons = self.status.borrow().not_ready();
        let upkeep = self.upkeep.borrow().clone();
        if upkeep.checkups == 0 && reasons.is_empty() {
            reasons.push("self-test: not run yet".to_owned());
        }
        reasons.extend(upkeep.not_in_effect.into_iter().map(|reason| format!("self-test: {reason}")));
        let dns = self.dns.borrow().clone();
        match dns {
            DnsState::Off => {}
            DnsState::Starting => reasons.push("dns: not started yet".to_owned()),
            DnsState::Serving { addresses, domain } => {
                for address in addresses {
                    if let Err(error) = dns_service::probe(address, &domain).await {
                        reasons.push(format!("dns: {}", chain(&error)));
                    }
                }
            }
        }
        reasons
    }

    /// Healthy is: nothing to do, or done, or failing only for a short while. A daemon that starts is healthy.
    fn report(&self) -> Report {
        let status = self.status.borrow();
        let failing_since = status.failing_since;
        let healthy = failing_since.is_none_or(|since| since.elapsed().unwrap_or_default() <= GRACE);
        Report { healthy, last_sync: status.last_sync.map(|sync| sync.at), error: status.error.clone() }
    }
}

struct Report {
    healthy: bool,
    last_sync: Option<SystemTime>,
    error: Option<String>,
}

/// `/healthz`, `/livez` and `/readyz`.
pub fn health_routes(health: Health) -> Router {
    Router::new()
        .route("/healthz", get(healthy))
        .route("/livez", get(healthy))
        .route("/readyz", get(ready))
        .with_state(health)
}

/// `/metrics` and `/proxyMode`.
pub fn metrics_routes(registry: Registry, mode: &'static str) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/proxyMode", get(async move || mode))
        .route("/healthz", get(async || "ok"))
        .with_state(Arc::new(registry))
}

/// Serves until stopped.
pub async fn serve(listener: TcpListener, routes: Router, stop: CancellationToken) -> std::io::Result<()> {
    // Not axum's graceful shutdown: it waits for clients that keep a connection open.
    tokio::select! {
        served = async { axum::serve(listener, routes).await } => served,
        () = stop.cancelled() => Ok(()),
    }
}

async fn healthy(State(health): State<Health>) -> Response {
    let Report { healthy, last_sync, error } = health.report();
    // HM-18: a healthy proxy is up to date now, an unhealthy one was at its last success.
    let updated = if healthy { Some(SystemTime::now()) } else { last_sync };
    let body = json!({
        "lastUpdated": updated.and_then(rfc3339), "currentTime": rfc3339(SystemTime::now()),
        "healthy": healthy, "error": error,
    });
    answer(healthy, body)
}

async fn ready(State(health): State<Health>) -> Response {
    let reasons = health.not_ready().await;
    let last_sync = health.status.borrow().last_sync;
    answer(reasons.is_empty(), json!({ "ready": reasons.is_empty(), "reasons": reasons, "lastSync": last_sync }))
}

async fn metrics(State(registry): State<Arc<Registry>>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
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
