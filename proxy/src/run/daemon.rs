//! What all parts of the daemon share, and the tasks that must run until it stops.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use shunt_dns::Server;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::Config;
use crate::control::Listener;
use crate::datapath::{Chosen, Lock, OpenError, OpenPath, Opened};
use crate::events::{self, Recorded, Recorder};
use crate::http::health::{DnsState, Health};
use crate::made::{InUse, Ledger, Made};
use crate::metrics::KubeProxy;
use crate::status::{Pending, Status};

/// For the tasks, and again for DNS: a stop takes less than two seconds.
const PATIENCE: Duration = Duration::from_millis(800);

/// Sockets, tasks and channels of the daemon.
pub(super) struct Parts {
    pub(super) config: Arc<Config>,
    pub(super) stop: CancellationToken,
    /// Every task of the daemon; each ends when `stop` says so.
    pub(super) tasks: JoinSet<Result<()>>,
    pub(super) control: Option<Listener>,
    /// No other daemon works with the same pins, nor with the packets of this network namespace.
    pub(super) lock: Arc<Lock>,
    /// What this start has made, to be taken back if it fails.
    pub(super) ledger: Ledger,
    /// The thread that opens the data path.
    pub(super) opening: Option<JoinHandle<Result<Opened, OpenError>>>,
    pub(super) events: Recorder,
    pub(super) recorded: Option<Recorded>,
    pub(super) health: Health,
    pub(super) status: watch::Sender<Status>,
    pub(super) dns: watch::Sender<DnsState>,
    /// It answers from its start on; at the end it still answers the clients that wait.
    pub(super) dns_server: Option<Arc<Server>>,
}

impl Parts {
    /// Opens the control socket and locks what the data path works with before anything else, so that a second daemon
    /// started by mistake changes nothing.
    pub(super) fn bind(config: Config, chosen: &Chosen) -> Result<Self> {
        let mut tasks = JoinSet::new();
        let stop = CancellationToken::new();
        tasks.spawn(stop_on_signal(stop.clone())?);
        // Only these detect a second daemon: the daemon retries addresses of HTTP that are in use (HM-23).
        let control = Some(Listener::open(&config.control_socket)?);
        let lock = Arc::new(Lock::take(&config.bpf_root, chosen)?);
        let mut ledger = Ledger::default();
        if lock.has_made_root() {
            ledger.note(Made::BpfRoot(config.bpf_root.clone()));
        }
        let (status, _) = watch::channel(Status::default());
        let (dns, _) = watch::channel(DnsState::default());
        let (events, recorded) = events::recorder();
        let health = Health {
            node: Arc::from(config.node.as_str()),
            sync_period: config.sync_period,
            pending: Pending::default(),
            metrics: KubeProxy::default(),
            status: status.subscribe(),
            dns: dns.subscribe(),
            path: OpenPath::default(),
        };
        let (config, recorded) = (Arc::new(config), Some(recorded));
        let (opening, dns_server) = (None, None);
        Ok(Self {
            config,
            stop,
            tasks,
            control,
            lock,
            ledger,
            opening,
            events,
            recorded,
            health,
            status,
            dns,
            dns_server,
        })
    }

    /// Adds work that does not end by itself.
    pub(super) fn until_stopped(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(work).await;
            Ok(())
        });
    }

    /// Waits until the daemon is stopped; a part that ends by itself is a failure.
    pub(super) async fn watch_over(&mut self) -> Result<()> {
        let stop = self.stop.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => Ok(()),
            ended = self.tasks.join_next() => match ended {
                Some(ended) if !stop.is_cancelled() => {
                    ended.context("a part of the daemon died")??;
                    bail!("a part of the daemon ended by itself")
                }
                Some(_) | None => Ok(()),
            }
        }
    }

    /// Stops all parts, DNS last. Returns what a start that did not come to its end may not take back.
    pub(super) async fn end(mut self) -> InUse {
        info!("stopping; programs and tables stay in place");
        self.stop.cancel();
        let all = async {
            while self.tasks.join_next().await.is_some() {}
            if let Some(opening) = &mut self.opening {
                drop(opening.await);
            }
        };
        if tokio::time::timeout(PATIENCE, all).await.is_err() {
            warn!("a part of the daemon did not stop in time; the daemon ends without it");
        }
        let datapath = self.opening.is_some_and(|opening| !opening.is_finished());
        let Some(server) = self.dns_server.take() else { return InUse { dns: false, datapath } };
        let stats = server.stats();
        let dns = stats.udp_queries > 0 || stats.tcp_queries > 0;
        let ended = match Arc::into_inner(server) {
            Some(server) => tokio::time::timeout(PATIENCE, server.drain(PATIENCE / 2)).await.is_ok(),
            None => false,
        };
        if !ended {
            warn!("the DNS server did not stop in time; the daemon ends without it");
        }
        InUse { dns, datapath }
    }
}

/// A task that waits for SIGTERM or SIGINT.
fn stop_on_signal(stop: CancellationToken) -> Result<impl Future<Output = Result<()>>> {
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = stop.cancelled() => {}
        }
        stop.cancel();
        Ok(())
    })
}
