//! The parts by which users and load balancers watch and ask the daemon: HTTP, the control socket, health checks and
//! events.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use futures::FutureExt as _;
use shunt_dns::Server;
use shunt_model::Snapshot;
use shunt_model::source::kube::Events;
use tokio::sync::watch;

use super::daemon::Parts;
use crate::control::{Control, Views};
use crate::datapath::HostOptions;
use crate::events;
use crate::http::health::{self, BindError};
use crate::http::health_checks::HealthChecks;
use crate::metrics::census::{self, Counts};
use crate::metrics::{self, Durations};

impl Parts {
    pub(super) async fn start_health(&mut self) -> Result<()> {
        let Some(address) = self.config.healthz else { return Ok(()) };
        let routes = health::health_routes(self.health.clone());
        self.serve("--healthz-bind-address", "FailedToStartProxierHealthcheck", address, routes).await
    }

    pub(super) async fn start_metrics(&mut self, durations: Durations, dns: Option<&Arc<Server>>) -> Result<()> {
        let Some(address) = self.config.metrics else { return Ok(()) };
        let (dns, path) = (dns.map(|server| server.exporter()), &self.health.path);
        let (sender, counts) = watch::channel(Counts::default());
        let registry = metrics::registry(self.status.subscribe(), counts, path.clone(), durations, dns);
        let routes = health::metrics_routes(registry, path.clone(), self.config.configz());
        self.until_stopped(census::follow(self.status.subscribe(), sender, self.health.metrics.clone()));
        self.serve("--metrics-bind-address", "FailedToStartMetricServer", address, routes).await
    }

    /// Counts changes of the cluster as kube-proxy does, if metrics are served.
    pub(super) fn start_counting(&mut self, snapshots: watch::Receiver<Arc<Snapshot>>) {
        if self.config.metrics.is_some() {
            self.until_stopped(self.health.metrics.clone().follow(snapshots, self.status.subscribe()));
        }
    }

    /// Serves HTTP, now or as soon as the daemon can listen on the address.
    async fn serve(
        &mut self,
        flag: &'static str,
        reason: &'static str,
        address: SocketAddr,
        routes: axum::Router,
    ) -> Result<()> {
        let (events, node, stop) = (self.events.clone(), self.config.node.clone(), self.stop.clone());
        let complain = move |error: &BindError| {
            events.node_warning(&node, reason, "StartKubeProxy", shunt_model::with_causes(error));
        };
        if self.config.bind_address_hard_fail {
            let listener = health::bind(flag, address).await.inspect_err(&complain)?;
            self.tasks.spawn(health::serve(listener, routes, stop).map(Ok));
        } else {
            let serving = health::serve_in_the_end(flag, address, routes, stop, complain);
            self.tasks.spawn(serving.map(Ok));
        }
        Ok(())
    }

    pub(super) fn start_control(&mut self, dns: Option<&Arc<Server>>) {
        if let Some(listener) = self.control.take() {
            let views = Views {
                node: Arc::from(self.config.node.as_str()),
                status: self.status.subscribe(),
                path: self.health.path.clone(),
                host: HostOptions {
                    cgroup_root: self.config.cgroup_root.clone(),
                    bpf_root: self.config.bpf_root.clone(),
                },
                dns: dns.map(|server| server.explainer()),
            };
            let (control, stop) = (Control::new(listener, views), self.stop.clone());
            self.tasks.spawn(async move {
                control.run(stop).await;
                Ok(())
            });
        }
    }

    /// Starts the servers of health checks, which follow the plan that the kernel serves.
    pub(super) fn start_health_checks(&mut self) {
        let servers = HealthChecks::new(self.health.clone(), self.events.clone());
        let serving = servers.run(self.status.subscribe(), self.stop.clone());
        self.tasks.spawn(async move {
            serving.await;
            Ok(())
        });
    }

    /// Writes events to `events`, if the source takes any; each service port that the data path refuses is one.
    pub(super) fn start_events(&mut self, events: Option<Events>) {
        if let Some(recorded) = self.recorded.take() {
            self.until_stopped(recorded.write(events));
        }
        self.until_stopped(events::tell_refusals(self.events.clone(), self.status.subscribe()));
    }
}
