//! `shunt run`: starts the parts of the daemon in order, watches over them, and stops them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures::FutureExt as _;
use shunt_dns::Server;
use shunt_model::Snapshot;
use shunt_model::source::Source;
use shunt_model::source::kube::Events;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::{Annotation, Config, DnsConfig, EmptyLocal};
use crate::control::{self, Control, Views};
use crate::datapath::{self, Datapath, HostOptions, Mode, OpenPath, Opened, Options};
use crate::dns::addresses::Prepared;
use crate::dns::choice::PlanChoice;
use crate::dns::{addresses, service, watch as dns_watch};
use crate::events::{self, Recorded, Recorder};
use crate::host::{self, privileges};
use crate::http::health::{self, BindError, DnsState, Health};
use crate::http::health_checks::{Checks, HealthChecks};
use crate::metrics::{self, Durations, KubeProxy};
use crate::plan::{Detect, PlanOptions};
use crate::reconcile::{Input, Reconciler, Sinks};
use crate::status::{Pending, Status};
use crate::{reload, source};

/// For the tasks, and again for DNS: a stop takes less than two seconds.
const PATIENCE: Duration = Duration::from_millis(800);

/// The configuration takes no other yet.
const MODE: Mode = Mode::Ebpf;

/// Runs the daemon until SIGTERM or SIGINT. What is programmed stays in place (spec SY-17).
/// `file` is where the configuration came from: when it changes the daemon ends, for its supervisor to start it with
/// the new one (spec SY-18).
pub async fn run(config: Config, file: Option<PathBuf>) -> Result<()> {
    let options = check_prerequisites(&config)?;
    adjust_oom_score(config.oom_score_adj);
    shunt_dns::limits::raise_open_files();
    let mut daemon = Daemon::bind(config).await?;
    if let Some(file) = file {
        daemon.tasks.spawn(reload::until_changed(file, daemon.stop.clone())?);
    }
    let stop = daemon.stop.clone();
    let started = tokio::select! {
        biased;
        () = stop.cancelled() => None,
        started = daemon.start(options) => Some(started),
    };
    // The source lives until everything has ended: it is no source that failed which makes a daemon end.
    let (_source, outcome) = match started {
        Some(Ok(source)) => (Some(source), daemon.watch_over().await),
        Some(Err(error)) => (None, Err(error)),
        None => (None, Ok(())),
    };
    daemon.end().await;
    outcome
}

/// What the data path will need; errors that are cheap to find come before anything is touched.
fn check_prerequisites(config: &Config) -> Result<Options> {
    let root = nix::unistd::geteuid().is_root();
    ensure!(root, "shunt run must be root: it loads BPF programs and adds an address to lo; try sudo shunt run");
    let missing = privileges::missing(config.dns.is_some()).context("asking for the capabilities of this process")?;
    if let Some(privileges::Capability { name, purpose, .. }) = missing.first() {
        bail!("{name} is missing, which {purpose}; give this process all that docs/privileges.md lists");
    }
    source::check(&config.source)?;
    let options = Options {
        host: HostOptions { cgroup_root: config.cgroup_root.clone(), bpf_root: config.bpf_root.clone() },
        object: config.bpf_object.clone(),
        bind_protection: config.bind_protection,
        silent: config.empty_local == EmptyLocal::Pass,
    };
    datapath::check(MODE, &options)?;
    Ok(options)
}

/// Failure costs nothing but the protection (spec 9.1). A kubelet or a service manager has usually set one already.
fn adjust_oom_score(score: i32) {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        info!(score, %error, "oom-score-adj stays as it was: lowering it takes CAP_SYS_RESOURCE");
    }
}

/// Sockets, tasks and channels of the daemon.
struct Daemon {
    config: Arc<Config>,
    stop: CancellationToken,
    /// Every task of the daemon; each ends when `stop` says so.
    tasks: JoinSet<Result<()>>,
    control: Option<control::Listener>,
    events: Recorder,
    recorded: Option<Recorded>,
    health: Health,
    status: watch::Sender<Status>,
    dns: watch::Sender<DnsState>,
    /// It answers from its start on, and at the end whoever waits gets the answer.
    dns_server: Option<Arc<Server>>,
}

impl Daemon {
    /// Takes all sockets before anything else, so that a second daemon by mistake changes nothing; health is served
    /// from here on (spec HM-11).
    async fn bind(config: Config) -> Result<Self> {
        let mut tasks = JoinSet::new();
        let stop = CancellationToken::new();
        tasks.spawn(stop_on_signal(stop.clone())?);
        // The one that tells a second daemon by mistake: servers of HTTP may be tried again (spec HM-23).
        let control = Some(control::Listener::open(&config.control_socket)?);
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
        let config = Arc::new(config);
        let recorded = Some(recorded);
        let dns_server = None;
        let mut daemon = Self { config, stop, tasks, control, events, recorded, health, status, dns, dns_server };
        if let Some(address) = daemon.config.healthz {
            let routes = health::health_routes(daemon.health.clone());
            daemon.serve("--healthz-bind-address", "FailedToStartProxierHealthcheck", address, routes).await?;
        }
        Ok(daemon)
    }

    /// Serves HTTP, now or as soon as the address is to be had.
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

    /// Nothing is written before the first view of the cluster is complete (spec SY-1). DNS does not wait for it: what
    /// an earlier life left in the kernel leads here already, and other names need no cluster (spec DNS 11.2).
    /// The source must live as long as the daemon.
    async fn start(&mut self, options: Options) -> Result<Source> {
        let config = Arc::clone(&self.config);
        let (reachable, served) = watch::channel(None);
        let (dns, listen) = self.start_dns(served).await?;
        // Whoever asks why nothing comes is answered as well.
        self.start_control(dns.as_ref());
        let durations = Durations { kube_proxy: self.health.metrics.clone(), ..Durations::default() };
        self.start_metrics(durations.clone(), dns.as_ref()).await?;
        let (source, events) = source::start(&config, &self.status).await?;
        info!("first view of the cluster is complete");
        self.start_events(events);
        let datapath = self.open_datapath(options).await?;
        let mode = datapath.mode();
        let options = self.choose_dns(dns.as_ref(), plan_options(&config, listen))?;
        let addresses = host::addresses::watch().await.context("watching the addresses of this node")?;
        let (snapshots, health) = (source.snapshots.clone(), source.health.clone());
        let input = Input { snapshots, health, addresses: addresses.clone(), options };
        let health_checks = self.start_health_checks(addresses);
        let (status, pending) = (self.status.clone(), self.health.pending.clone());
        let sinks = Sinks { status, reachable, health_checks, pending, durations };
        let reconciler = Reconciler::new(datapath, input, sinks);
        let (stop, runtime) = (self.stop.clone(), tokio::runtime::Handle::current());
        // Syncs block, so they have a thread of their own.
        self.tasks.spawn_blocking(move || {
            runtime.block_on(reconciler.run(stop));
            Ok(())
        });
        info!(node = config.node, %mode, "started");
        self.events.starting(&config.node);
        Ok(source)
    }

    /// Opens the data path, and starts what must run beside it.
    async fn open_datapath(&mut self, options: Options) -> Result<Box<dyn Datapath>> {
        let opening = tokio::task::spawn_blocking(move || datapath::open(MODE, &options));
        let Opened { path, mode, adopted, report, beside } = opening.await.context("opening the data path")??;
        info!(%mode, adopted, "data path is open");
        self.health.path.publish(mode, report);
        if let Some(beside) = beside {
            let stop = self.stop.clone();
            self.tasks.spawn_blocking(move || {
                beside(stop);
                Ok(())
            });
        }
        Ok(path)
    }

    async fn start_dns(
        &mut self,
        served: watch::Receiver<Option<Arc<Snapshot>>>,
    ) -> Result<(Option<Arc<Server>>, Vec<SocketAddr>)> {
        let Some(config) = &self.config.dns else {
            self.dns.send_replace(DnsState::Off);
            return Ok((None, Vec::new()));
        };
        let Prepared { listen, on_lo } = addresses::prepare(&config.listen).await?;
        let cluster_dns = &self.config.cluster_dns;
        let mut started = service::start(config, listen, cluster_dns, served).await?;
        let (follow, keep) = (started.follow(cluster_dns), addresses::keep(on_lo)?);
        let server = started.server;
        let addresses = server.local_addresses().to_vec();
        info!(?addresses, "DNS is listening");
        let state = self.serving(config, &addresses)?;
        self.dns.send_replace(state);
        self.until_stopped(keep);
        if let Some(follow) = follow {
            self.until_stopped(follow);
        }
        self.dns_server = Some(Arc::clone(&server));
        Ok((Some(server), addresses))
    }

    /// Work that has no end of its own.
    fn until_stopped(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(work).await;
            Ok(())
        });
    }

    /// Whether the bundled DNS answers decides where its address leads, from now on; it does not answer before it knows
    /// the cluster.
    fn choose_dns(&mut self, server: Option<&Arc<Server>>, options: PlanOptions) -> Result<PlanChoice> {
        let (sender, serves) = watch::channel(false);
        if let (Some(config), Some(server)) = (&self.config.dns, server) {
            let domain = service::zone_config(config, &self.config.cluster_dns)?.cluster_domain;
            self.until_stopped(dns_watch::watch(server.local_addresses().to_vec(), domain, server.views(), sender));
        }
        Ok(PlanChoice::new(options, serves))
    }

    fn serving(&self, config: &DnsConfig, addresses: &[SocketAddr]) -> Result<DnsState> {
        let domain = service::zone_config(config, &self.config.cluster_dns)?.cluster_domain;
        Ok(DnsState::Serving { addresses: addresses.to_vec(), domain })
    }

    fn start_control(&mut self, dns: Option<&Arc<Server>>) {
        if let Some(listener) = self.control.take() {
            let views = Views {
                node: Arc::from(self.config.node.as_str()),
                status: self.status.subscribe(),
                dns: dns.map(|server| server.explainer()),
            };
            let (control, stop) = (Control::new(listener, views), self.stop.clone());
            self.tasks.spawn(async move {
                control.run(stop).await;
                Ok(())
            });
        }
    }

    async fn start_metrics(&mut self, durations: Durations, dns: Option<&Arc<Server>>) -> Result<()> {
        let Some(address) = self.config.metrics else { return Ok(()) };
        let (dns, path) = (dns.map(|server| server.exporter()), &self.health.path);
        let registry = metrics::registry(self.status.subscribe(), path.clone(), durations, dns);
        let routes = health::metrics_routes(registry, path.clone(), self.config.configz());
        self.serve("--metrics-bind-address", "FailedToStartMetricServer", address, routes).await
    }

    /// Servers of health checks follow the plan from a task of their own.
    fn start_health_checks(&mut self, addresses: watch::Receiver<Arc<BTreeSet<IpAddr>>>) -> watch::Sender<Checks> {
        let (sender, checks) = watch::channel(Checks::default());
        let own = BTreeSet::clone(&addresses.borrow());
        let servers = HealthChecks::new(self.health.clone(), self.events.clone(), self.config.node_ports.clone(), own);
        let serving = servers.run(checks, self.stop.clone());
        self.tasks.spawn(async move {
            serving.await;
            Ok(())
        });
        sender
    }

    /// Events go to `events` if the source takes any; what the data path refuses becomes one.
    fn start_events(&mut self, events: Option<Events>) {
        if let Some(recorded) = self.recorded.take() {
            self.until_stopped(recorded.write(events));
        }
        self.until_stopped(events::tell_refusals(self.events.clone(), self.status.subscribe()));
    }

    /// Until told to stop; a part that ends by itself is a failure.
    async fn watch_over(&mut self) -> Result<()> {
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

    async fn end(mut self) {
        info!("stopping; what is programmed stays in place");
        self.stop.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(PATIENCE, all).await.is_err() {
            warn!("a part of the daemon does not end in time and is left behind");
        }
        let Some(server) = self.dns_server.take() else { return };
        let ended = match Arc::into_inner(server) {
            Some(server) => tokio::time::timeout(PATIENCE, server.drain(PATIENCE / 2)).await.is_ok(),
            None => false,
        };
        if !ended {
            warn!("the DNS server does not end in time and is left behind");
        }
    }
}

fn plan_options(config: &Config, dns_backends: Vec<SocketAddr>) -> PlanOptions {
    PlanOptions {
        node: Arc::from(config.node.as_str()),
        detector: Detect::Both,
        cluster_dns: config.cluster_dns.clone(),
        dns_backends,
        node_ports: config.node_ports.clone(),
        external_ips: config.external_ips,
        service_cidrs: config.exclusive_cidrs.clone(),
        opt_out: config.opt_out.iter().map(Annotation::to_plan).collect(),
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
