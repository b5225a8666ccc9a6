//! The data path and the loop that makes it follow the cluster, as parts of the daemon.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tracing::{info, warn};

use super::daemon::Parts;
use crate::config::{Annotation, Config};
use crate::datapath::{self, Chosen, Datapath, Opened, Options, PacketPath, kube_proxy};
use crate::host::sysctls::{self, Told};
use crate::plan::{Detect, PlanOptions};
use crate::reconcile::Reconciler;

impl Parts {
    /// Opens the data path and starts its upkeep.
    pub(super) async fn open_datapath(
        &mut self,
        chosen: Chosen,
        options: Options,
    ) -> Result<(Box<dyn Datapath>, Arc<Notify>)> {
        let lock = Arc::clone(&self.lock);
        let serves = chosen.clone();
        if chosen.packets.is_some() {
            let conntrack = sysctls::Wanted::new(&self.config.kube_proxy.conntrack, sysctls::cores());
            sysctls::apply(&conntrack)?.iter().for_each(Told::log);
            if chosen.packets == Some(PacketPath::Programs) {
                sysctls::prepare_for_programs().iter().for_each(Told::log);
            } else {
                sysctls::show_bridged_packets().iter().for_each(Told::log);
                sysctls::faults().iter().for_each(|fault| warn!("{fault}"));
            }
        }
        if chosen.packets == Some(PacketPath::Nftables) {
            // Reading the rules of a large cluster takes its time, and nothing waits for it.
            let told = || kube_proxy::drops_of_iptables().iter().for_each(|fault| warn!("{fault}"));
            drop(tokio::task::spawn_blocking(told));
        }
        let opening = tokio::task::spawn_blocking(move || datapath::open(&serves, &options, &lock));
        // If this is dropped, the thread goes on: the end of the daemon waits for it.
        let opened = self.opening.insert(opening).await;
        self.opening = None;
        let Opened { path, adopted, reports, looking, disturbed, beside } =
            opened.context("opening the data path")??;
        info!(mode = %chosen.mode, serves = %chosen, adopted, "data path is open");
        self.health.path.publish(chosen, reports, looking);
        for beside in beside {
            let stop = self.stop.clone();
            self.tasks.spawn_blocking(move || {
                beside(stop);
                Ok(())
            });
        }
        Ok((path, disturbed))
    }

    /// Syncs block, so they have a thread of their own.
    pub(super) fn start_reconciler(&mut self, reconciler: Reconciler) {
        let (stop, lock) = (self.stop.clone(), Arc::clone(&self.lock));
        self.tasks.spawn_blocking(move || {
            Handle::current().block_on(reconciler.run(stop));
            // A sync that hangs in the kernel when the daemon ends holds the lock until it returns.
            drop(lock);
            Ok(())
        });
    }
}

pub(super) fn plan_options(config: &Config, dns_backends: Vec<SocketAddr>) -> PlanOptions {
    PlanOptions {
        node: Arc::from(config.node.as_str()),
        detector: Detect::Both,
        cluster_dns: config.cluster_dns.clone(),
        dns_backends,
        node_ports: config.node_ports.clone(),
        external_ips: config.external_ips,
        service_cidrs: config.exclusive_cidrs.clone(),
        empty_local: config.empty_local,
        pods: config.pods.clone(),
        masquerade_all: config.kube_proxy.iptables.masquerade_all || config.kube_proxy.nftables.masquerade_all,
        opt_out: config.opt_out.iter().map(Annotation::to_plan).collect(),
    }
}
