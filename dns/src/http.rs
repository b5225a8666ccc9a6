//! `/health`, `/ready` and `/metrics`, by CoreDNS's conventions (DNS-11.7…11.9 and DNS-12).

mod self_check;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse as _;
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use shunt_serving::http::serve_routes;
use shunt_serving::metrics::{Process, classic};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::metrics::Exporter;
use crate::sockets::{listen, one_for_all};
use crate::zone::View;

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The addresses on which each is served; `None` for not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HttpConfig {
    /// `/health`: 200 as long as queries are answered.
    pub health: Option<SocketAddr>,
    /// `/ready`: 200 from the first complete view of the cluster until the signal to stop, else 503.
    pub ready: Option<SocketAddr>,
    /// `/metrics`, for Prometheus.
    pub metrics: Option<SocketAddr>,
}

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("listening on {address} for /health, /ready or /metrics; is another server running here?")]
pub struct HttpError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

/// Where the replies come from.
pub struct HttpState {
    /// The view of the cluster; `None` if no cluster is served, which is ready at once.
    pub views: Option<watch::Receiver<View>>,
    /// True after the signal to stop.
    pub stopping: watch::Receiver<bool>,
    /// The counters.
    pub exporter: Exporter,
}

/// Serves until the tasks are dropped; returns the addresses.
pub async fn serve(config: HttpConfig, state: HttpState) -> Result<(Vec<SocketAddr>, JoinSet<()>), HttpError> {
    let HttpState { views, stopping, exporter } = state;
    let counters = Arc::clone(&exporter.metrics);
    let mut registry = Registry::default();
    exporter.register(&mut registry);
    registry.register_collector(Box::new(Process));
    let registry = Arc::new(registry);
    let health = Router::new().route("/health", get(|| async { "OK" }));
    let warnings = exporter.clone();
    let ready =
        Router::new().route("/ready", get(move || readiness(views.clone(), stopping.clone(), warnings.clone())));
    let metrics = Router::new().route("/metrics", get(move || metrics(Arc::clone(&registry))));
    let mut routers: BTreeMap<SocketAddr, Router> = BTreeMap::new();
    for (address, router) in [(config.health, health), (config.ready, ready), (config.metrics, metrics)] {
        let Some(address) = address.map(one_for_all) else { continue };
        let others = routers.remove(&address).unwrap_or_default();
        routers.insert(address, others.merge(router));
    }
    let (mut addresses, mut tasks) = (Vec::new(), JoinSet::new());
    for (address, router) in routers {
        let failed = |source| HttpError { address, source };
        let listener = listen(address, false).map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        addresses.push(bound);
        tasks.spawn(serve_routes(listener, router));
        if config.health.map(one_for_all) == Some(address) {
            tasks.spawn(self_check::every_second(bound, Arc::clone(&counters)));
        }
    }
    Ok((addresses, tasks))
}

async fn readiness(
    views: Option<watch::Receiver<View>>,
    stopping: watch::Receiver<bool>,
    exporter: Exporter,
) -> (StatusCode, String) {
    let unsynced = views.is_some_and(|views| views.borrow().snapshot.is_none());
    if *stopping.borrow() {
        (StatusCode::SERVICE_UNAVAILABLE, "Shutting down".to_owned())
    } else if unsynced {
        (StatusCode::SERVICE_UNAVAILABLE, "kubernetes".to_owned())
    } else {
        let warnings = exporter.warnings().into_iter().map(|warning| format!("\nwarning: {warning}"));
        (StatusCode::OK, std::iter::once("OK".to_owned()).chain(warnings).collect())
    }
}

async fn metrics(registry: Arc<Registry>) -> axum::response::Response {
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => ([(header::CONTENT_TYPE, TEXT)], classic(&text)).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
