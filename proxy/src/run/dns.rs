//! The bundled DNS as a part of the daemon: its server, its addresses, and the watch that finds out whether it serves.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use shunt_dns::Server;
use shunt_model::Snapshot;
use tokio::sync::watch;
use tracing::info;

use super::daemon::Parts;
use crate::config::DnsConfig;
use crate::dns::addresses::Prepared;
use crate::dns::choice::PlanChoice;
use crate::dns::{addresses, service, watch as dns_watch};
use crate::http::health::DnsState;
use crate::plan::PlanOptions;

/// The server, if DNS is switched on, and where it listens.
#[derive(Default)]
pub(super) struct StartedDns {
    pub(super) server: Option<Arc<Server>>,
    pub(super) listen: Vec<SocketAddr>,
}

impl Parts {
    /// It answers cluster names from the views in `served`.
    pub(super) async fn start_dns(&mut self, served: watch::Receiver<Option<Arc<Snapshot>>>) -> Result<StartedDns> {
        let Some(config) = &self.config.dns else {
            self.dns.send_replace(DnsState::Off);
            return Ok(StartedDns::default());
        };
        let Prepared { listen, on_lo } = addresses::prepare(&config.listen).await?;
        let cluster_dns = &self.config.cluster_dns;
        let mut started = service::start(config, listen, cluster_dns, served).await?;
        let (follow, keep) = (started.follow(cluster_dns), addresses::keep(on_lo)?);
        let server = started.server;
        let listen = server.local_addresses().to_vec();
        info!(addresses = ?listen, "DNS is listening");
        let state = self.serving(config, &listen)?;
        self.dns.send_replace(state);
        self.until_stopped(keep);
        if let Some(follow) = follow {
            self.until_stopped(follow);
        }
        self.dns_server = Some(Arc::clone(&server));
        Ok(StartedDns { server: Some(server), listen })
    }

    fn serving(&self, config: &DnsConfig, addresses: &[SocketAddr]) -> Result<DnsState> {
        let domain = service::zone_config(config, &self.config.cluster_dns)?.cluster_domain;
        Ok(DnsState::Serving { addresses: addresses.to_vec(), domain })
    }

    /// From now on the cluster DNS address leads to the bundled DNS while that answers; it does not answer before it
    /// knows the cluster.
    pub(super) fn choose_dns(&mut self, server: Option<&Arc<Server>>, options: PlanOptions) -> Result<PlanChoice> {
        let (sender, serves) = watch::channel(false);
        if let (Some(config), Some(server)) = (&self.config.dns, server) {
            let domain = service::zone_config(config, &self.config.cluster_dns)?.cluster_domain;
            self.until_stopped(dns_watch::watch(server.local_addresses().to_vec(), domain, server.views(), sender));
        }
        Ok(PlanChoice::new(options, serves))
    }
}
