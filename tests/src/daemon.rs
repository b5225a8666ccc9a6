//! The daemon of a node.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::http::{HttpResponse, http_get};
use crate::network::ROUTER_V4;
use crate::node::Node;
use crate::process::{POLL, Process};
use crate::signals;

/// For one answer of a daemon on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// The service ranges of every lab.
const SERVICE_CIDR: &str = "10.96.0.0/16,fd00:10:96::/112";
const CLUSTER_DNS: &str = "10.96.0.10,fd00:10:96::a";
const DNS_BIND: &str = "169.254.20.10,fd00:169:254:20::10";
const HEALTH_PORT: u16 = 10256;
const READY_WITHIN: Duration = Duration::from_secs(30);

/// What differs between daemons; all other settings follow from the node.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// The folder it reads, unless it has a `kubeconfig`.
    pub manifests: PathBuf,
    /// Where it finds an API server, such as [`KubeApi`](crate::KubeApi).
    pub kubeconfig: Option<PathBuf>,
    /// A DNS server of the lab, such as `lab-peer dns-upstream`. Without one, the router's address, where no server
    /// listens.
    pub dns_upstream: Option<SocketAddr>,
    /// The file that it finds as `/etc/resolv.conf`, which it then reads instead of asking `dns_upstream`.
    pub resolv_conf: Option<PathBuf>,
    /// A Corefile instead of `dns_upstream`.
    pub corefile: Option<PathBuf>,
    /// Where its DNS listens, instead of what it chooses itself.
    pub dns_bind: Option<String>,
    /// Further arguments.
    pub extra: Vec<String>,
    /// The only capabilities it may have, such as `net_admin`; all of them unless given.
    pub capabilities: Option<Vec<String>>,
    /// How long it may take to become ready: a large folder takes its time to parse.
    pub ready_within: Duration,
}

impl DaemonOptions {
    /// Reads `manifests`; all other options have their defaults.
    #[must_use]
    pub fn new(manifests: &Path) -> Self {
        Self {
            manifests: manifests.to_owned(),
            kubeconfig: None,
            dns_upstream: None,
            resolv_conf: None,
            corefile: None,
            dns_bind: Some(DNS_BIND.to_owned()),
            extra: Vec::new(),
            capabilities: None,
            ready_within: READY_WITHIN,
        }
    }
}

impl Node {
    /// Starts the daemon of this node and waits until it is ready.
    pub fn daemon(&self, options: DaemonOptions) -> anyhow::Result<Daemon> {
        Daemon::start(self.clone(), options)
    }
}

/// A daemon, running or stopped. Dropping it kills the process; what it programmed stays, as with any daemon that dies.
#[derive(Debug)]
pub struct Daemon {
    node: Node,
    options: DaemonOptions,
    process: Process,
}

impl Daemon {
    pub(crate) fn start(node: Node, options: DaemonOptions) -> anyhow::Result<Self> {
        let process = launch(&node, &options)?;
        let mut daemon = Self { node, options, process };
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Starts it without waiting: for what happens before it is ready.
    pub fn start_without_waiting(node: &Node, options: DaemonOptions) -> anyhow::Result<Self> {
        Ok(Self { node: node.clone(), process: launch(node, &options)?, options })
    }

    /// Waits until `/readyz` says 200.
    pub fn wait_ready(&mut self) -> anyhow::Result<()> {
        let patience = self.options.ready_within;
        let deadline = Instant::now() + patience;
        loop {
            signals::check()?;
            if !self.process.is_running()? {
                return Err(self.process.failure("ended before it was ready"));
            }
            let last = match self.health("/readyz") {
                Ok(response) if response.status == 200 => return Ok(()),
                Ok(response) => format!("/readyz says {} {}", response.status, response.body.trim()),
                Err(error) => format!("/readyz: {error:#}"),
            };
            if Instant::now() > deadline {
                return Err(self.process.failure(&format!("is not ready after {patience:?} ({last})")));
            }
            sleep(POLL);
        }
    }

    /// Asks its health server for `path`.
    pub fn health(&self, path: &str) -> anyhow::Result<HttpResponse> {
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), HEALTH_PORT);
        self.node.in_netns(|| http_get(address, path, PATIENCE))
    }

    /// Asks its metrics server for `path`.
    pub fn metrics(&self, path: &str) -> anyhow::Result<HttpResponse> {
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);
        self.node.in_netns(|| http_get(address, path, PATIENCE))
    }

    /// Asks it over its control socket what it serves, as `shunt services` does but without a process of its own.
    pub fn services(&self) -> anyhow::Result<String> {
        let ask = || {
            let mut stream = UnixStream::connect(self.control_socket())?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(br#"{"request":"services"}"#)?;
            stream.shutdown(Shutdown::Write)?;
            let mut reply = String::new();
            stream.read_to_string(&mut reply).map(|_| reply)
        };
        ask().map_err(|error: std::io::Error| self.process.failure(&format!("does not answer: {error}")))
    }

    /// Runs another `shunt` command against this daemon, such as `services -o json`, and returns what it prints.
    pub fn command(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let shunt = self.node.core.binaries.shunt()?.to_owned();
        let mut all = vec![shunt.into_os_string()];
        all.extend(arguments.iter().map(Into::into));
        all.extend(["--control-socket".into(), self.control_socket().into_os_string()]);
        let process = self.node.spawn(&all)?;
        let log = process.log().to_owned();
        let finished = process.finish(Duration::from_secs(10))?;
        if !finished.status.success() {
            anyhow::bail!("shunt {}: {}", arguments.join(" "), crate::process::log_tail(&log, 20));
        }
        Ok(finished.lines.join("\n"))
    }

    /// Starts a `shunt` command against this daemon that goes on until it is stopped, such as `monitor`.
    pub fn start_command(&self, arguments: &[&str]) -> anyhow::Result<Process> {
        let mut all = vec![self.node.core.binaries.shunt()?.as_os_str().to_owned()];
        all.extend(arguments.iter().map(Into::into));
        all.extend(["--control-socket".into(), self.control_socket().into_os_string()]);
        self.node.spawn(&all)
    }

    /// Runs a `shunt` command on this node that succeeds, and returns what it writes to stderr.
    pub fn said(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut all = vec![self.node.core.binaries.shunt()?.as_os_str().to_owned()];
        all.extend(arguments.iter().map(Into::into));
        let process = self.node.spawn(&all)?;
        let log = process.log().to_owned();
        let finished = process.finish(PATIENCE)?;
        let said = std::fs::read_to_string(&log).with_context(|| format!("reading {}", log.display()))?;
        anyhow::ensure!(finished.status.success(), "shunt {}: {said}", arguments.join(" "));
        Ok(said)
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its process, for one that ends by itself.
    #[must_use]
    pub fn into_process(self) -> Process {
        self.process
    }

    /// Its control socket.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.node.core.control_socket(self.node.name())
    }

    /// Where it pins its programs, links and maps.
    #[must_use]
    pub fn bpf_root(&self) -> PathBuf {
        self.node.core.bpf_root(self.node.name())
    }

    /// Where it remembers the API server's endpoints.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.node.core.state_dir(self.node.name())
    }

    /// What it has logged.
    pub fn log(&self) -> anyhow::Result<String> {
        std::fs::read_to_string(self.process.log()).context("reading the daemon's log")
    }

    /// Changes the options for the next start.
    pub fn options(&mut self) -> &mut DaemonOptions {
        &mut self.options
    }

    /// Kills it with SIGKILL.
    pub fn kill9(&mut self) -> anyhow::Result<()> {
        self.process.kill9()
    }

    /// Stops it with SIGTERM.
    pub fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        self.process.stop(Duration::from_secs(10))
    }

    /// Starts it again with the same options after [`stop`](Self::stop) or [`kill9`](Self::kill9), and waits until it
    /// is ready.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.relaunch()?;
        self.wait_ready()
    }

    /// Starts it again without waiting.
    pub fn relaunch(&mut self) -> anyhow::Result<()> {
        self.process = launch(&self.node, &self.options)?;
        Ok(())
    }
}

fn launch(node: &Node, options: &DaemonOptions) -> anyhow::Result<Process> {
    let core = &node.core;
    let text = |path: PathBuf| path.into_os_string().into_string().ok().context("a path of the lab is not UTF-8");
    let upstream = options.dns_upstream.unwrap_or(SocketAddr::new(IpAddr::V4(ROUTER_V4), 53));
    let cgroup = core.node_cgroup(node.name());
    let mut arguments = options.capabilities.as_ref().map(|only| bounded(only)).unwrap_or_default();
    if let Some(file) = &options.resolv_conf {
        let mount = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
        arguments.extend(["unshare", "--mount", "sh", "-c", mount].map(str::to_owned));
        arguments.push(text(file.clone())?);
    }
    arguments.extend([text(core.binaries.shunt()?.to_owned())?, "run".to_owned()]);
    let flags = [
        match &options.kubeconfig {
            None => ("--manifests", text(options.manifests.clone())?),
            Some(kubeconfig) => ("--kubeconfig", text(kubeconfig.clone())?),
        },
        ("--hostname-override", node.name().to_owned()),
        ("--cgroup-root", text(cgroup)?),
        ("--bpf-root", text(core.bpf_root(node.name()))?),
        ("--control-socket", text(core.control_socket(node.name()))?),
        ("--state-dir", text(core.state_dir(node.name()))?),
        ("--service-cidr", SERVICE_CIDR.to_owned()),
        ("--cluster-dns", CLUSTER_DNS.to_owned()),
        ("--healthz-bind-address", format!("0.0.0.0:{HEALTH_PORT}")),
    ];
    arguments.extend(options.dns_bind.iter().map(|addresses| format!("--dns-bind-address={addresses}")));
    arguments.extend(flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
    match (&options.corefile, &options.resolv_conf) {
        (Some(corefile), _) => arguments.extend(["--corefile".to_owned(), text(corefile.clone())?]),
        (None, None) => arguments.extend(["--dns-upstream".to_owned(), upstream.to_string()]),
        (None, Some(_)) => {}
    }
    arguments.extend(options.extra.iter().cloned());
    node.spawn(&arguments)
}

/// Root's program gets what the bounding set leaves of all capabilities, as in a container.
fn bounded(capabilities: &[String]) -> Vec<String> {
    let added: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
    let arguments = ["setpriv", "--inh-caps=-all", &format!("--bounding-set=-all{added}"), "--no-new-privs"];
    arguments.map(str::to_owned).to_vec()
}
