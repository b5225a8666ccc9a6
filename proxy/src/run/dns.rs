//! The bundled DNS as a part of the daemon: its server, its addresses, and the watch that finds out whether it serves.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::Result;
use shunt_dns::Server;
use shunt_model::Snapshot;
use tokio::sync::watch;
use tracing::{info, warn};

use super::daemon::Parts;
use crate::config::DnsConfig;
use crate::dns::addresses::Prepared;
use crate::dns::choice::PlanChoice;
use crate::dns::{addresses, reachable, service, watch as dns_watch};
use crate::host::fd_store::Manager;
use crate::http::health::DnsState;
use crate::plan::PlanOptions;
use crate::reconcile::Goal;

/// Sockets that were kept for a server that is off now would take queries which are never read.
fn forget_sockets(passed: Vec<OwnedFd>) {
    let manager = Manager::of_environment();
    drop(passed);
    if let Err(error) = manager.keep(&[]) {
        warn!(%error, "the service manager cannot be asked to close the sockets that it keeps of DNS");
    }
}

/// The server, if DNS is switched on, and where it listens.
#[derive(Default)]
pub(super) struct StartedDns {
    pub(super) server: Option<Arc<Server>>,
    pub(super) listen: Vec<SocketAddr>,
    /// Its sockets, to be marked for the data path.
    pub(super) sockets: Vec<OwnedFd>,
}

impl Parts {
    /// It answers cluster names from the views that the kernel serves.
    pub(super) async fn start_dns(&mut self, passed: Vec<OwnedFd>) -> Result<StartedDns> {
        let Some(config) = &self.config.dns else {
            self.dns.send_replace(DnsState::Off);
            forget_sockets(passed);
            return Ok(StartedDns::default());
        };
        let (reachable, served) = watch::channel(None);
        let Prepared { listen, on_lo } = addresses::prepare(&config.listen, &mut self.ledger).await?;
        let cluster_dns = &self.config.cluster_dns;
        let mut started = service::start(config, listen, cluster_dns, served, passed).await?;
        let (follow, keep) = (started.follow(cluster_dns), addresses::keep(on_lo)?);
        let (server, sockets) = (started.server, started.sockets);
        let listen = server.local_addresses().to_vec();
        info!(addresses = ?listen, "DNS is listening");
        let state = self.serving(config, &listen, &server)?;
        self.dns.send_replace(state);
        self.until_stopped(keep);
        self.until_stopped(reachable::follow(self.status.subscribe(), reachable));
        if let Some(follow) = follow {
            self.until_stopped(follow);
        }
        self.dns_server = Some(Arc::clone(&server));
        Ok(StartedDns { server: Some(server), listen, sockets })
    }

    fn serving(&self, config: &DnsConfig, addresses: &[SocketAddr], server: &Server) -> Result<DnsState> {
        let domain = service::zone_config(config, &self.config.cluster_dns)?.cluster_domain;
        Ok(DnsState::Serving { addresses: addresses.to_vec(), domain, exporter: server.exporter() })
    }

    /// From now on the cluster DNS address leads to the bundled DNS while that answers; it does not answer before it
    /// knows the cluster. At the stop it leads to the cluster's own DNS, if there is any. Returns each view in
    /// `snapshots` with the options that follow.
    pub(super) fn choose_dns(
        &mut self,
        server: Option<&Arc<Server>>,
        options: PlanOptions,
        snapshots: watch::Receiver<Arc<Snapshot>>,
    ) -> Result<watch::Receiver<Goal>> {
        let (sender, serves) = watch::channel(false);
        if let (Some(config), Some(server)) = (&self.config.dns, server) {
            let domain = service::zone_config(config, &self.config.cluster_dns)?.cluster_domain;
            self.until_stopped(dns_watch::watch(server.local_addresses().to_vec(), domain, server.views(), sender));
        }
        let (choice, goal) = PlanChoice::new(options, serves, snapshots);
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            choice.run(stop.clone()).await;
            stop.cancelled().await;
            Ok(())
        });
        Ok(goal)
    }
}
