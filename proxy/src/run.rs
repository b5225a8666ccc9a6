//! `shunt run`: the parts of the daemon in the order in which they start.

mod daemon;
mod datapath;
mod dns;
mod node_ports;
mod prerequisites;
mod surfaces;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use shunt_model::source::Source;
use tracing::info;

use self::daemon::Parts;
use self::dns::StartedDns;
use crate::config::Config;
use crate::datapath::{Chosen, Options};
use crate::made::Ledger;
use crate::metrics::Durations;
use crate::reconcile::{Input, Reconciler, Sinks};
use crate::{host, reload, source};

/// Runs the daemon until SIGTERM or SIGINT. What is programmed stays in place (SY-17). `file` is the configuration
/// file: when it changes the daemon ends, and its supervisor starts it with the new one (SY-18). `passed` are the
/// descriptors that the service manager has passed.
pub async fn run(config: Config, file: Option<PathBuf>, passed: Vec<OwnedFd>) -> Result<()> {
    let (chosen, options) = prerequisites::check(&config)?;
    prerequisites::adjust_oom_score(config.oom_score_adj);
    shunt_serving::limits::raise_open_files();
    let mut parts = Parts::bind(config, &chosen)?;
    if let Some(file) = file {
        parts.tasks.spawn(reload::until_changed(file, parts.stop.clone())?);
    }
    let stop = parts.stop.clone();
    let started = tokio::select! {
        biased;
        () = stop.cancelled() => None,
        started = parts.start(chosen, options, passed) => Some(started),
    };
    let ledger = std::mem::take(&mut parts.ledger);
    // The source must outlive all other parts: a source that ends early would look like a failure.
    let (_source, outcome, unserved) = match started {
        Some(Ok(source)) => (Some(source), parts.watch_over().await, Ledger::default()),
        Some(Err(error)) => (None, Err(error), ledger),
        None => (None, Ok(()), ledger),
    };
    // Until all is taken back no other daemon may begin.
    let _lock = Arc::clone(&parts.lock);
    let in_use = parts.end().await;
    unserved.take_back(in_use).await;
    outcome
}

impl Parts {
    /// First the daemon serves health (HM-11). Nothing is written before the first view of the cluster is complete
    /// (SY-1). DNS does not wait for it: the tables of an earlier daemon may lead clients here already, and other names
    /// need no cluster (DNS-11.2). The source must live as long as the daemon.
    async fn start(&mut self, chosen: Chosen, options: Options, passed: Vec<OwnedFd>) -> Result<Source> {
        let config = Arc::clone(&self.config);
        self.start_health().await?;
        let StartedDns { server, listen, sockets } = self.start_dns(passed).await?;
        // While the daemon waits for the first view, it also answers at the control socket why it waits.
        self.start_control(server.as_ref());
        let durations = Durations::new(self.health.metrics.clone());
        self.start_metrics(durations.clone(), server.as_ref()).await?;
        let (source, events) = source::start(&config, &self.status).await?;
        info!("first view of the cluster is complete");
        self.start_events(events);
        self.start_counting(source.snapshots.clone());
        let mode = chosen.mode;
        let (mut path, disturbed) = self.open_datapath(chosen, options).await?;
        path.mark_own_dns(&sockets).context("marking the sockets of the bundled DNS")?;
        drop(sockets);
        let options = datapath::plan_options(&config, listen);
        let goal = self.choose_dns(server.as_ref(), options, source.snapshots.clone())?;
        let addresses = host::addresses::watch().await.context("watching the addresses of this node")?;
        self.start_health_checks();
        let input = Input { goal, health: source.health.clone(), addresses, disturbed };
        let sinks = Sinks { status: self.status.clone(), pending: self.health.pending.clone(), durations };
        self.start_reconciler(Reconciler::new(path, input, sinks));
        self.until_stopped(node_ports::warn_if_given(self.status.subscribe()));
        info!(node = config.node, %mode, "started");
        self.events.starting(&config.node);
        Ok(source)
    }
}
