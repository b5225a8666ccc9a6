//! Nodes, daemons, pods and clients of the demo.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::screen::{Row, Screen};
use super::web::{ECHO, HTTP, Web};
use crate::binaries::Binaries;
use crate::clients::Client;
use crate::daemon::{Daemon, DaemonOptions};
use crate::kube_api::KubeApi;
use crate::manifests::{self, Manifests, PodState, Port};
use crate::node::{Node, Pod};
use crate::peer::{Attempt, Mode};
use crate::signals;
use crate::topology::Lab;

/// The namespace of everything in the demo.
pub(super) const SHOP: &str = "shop";
const LOOK: Duration = Duration::from_millis(10);

/// Everything that lives in the demo. Fields are dropped in this order: traffic first, the lab last.
#[derive(Debug)]
pub(super) struct World {
    pub(super) traffic: Vec<Traffic>,
    pub(super) webs: Vec<Web>,
    pub(super) clients: Vec<Pod>,
    pub(super) daemons: Vec<Daemon>,
    pub(super) nodes: Vec<Node>,
    /// Through which the daemons see the manifests, if not by themselves.
    _api: Option<KubeApi>,
    pub(super) manifests: Manifests,
    /// Every web pod there ever was, as columns of the table.
    columns: Vec<String>,
    pub(super) lab: Lab,
}

/// One client loop.
#[derive(Debug)]
pub(super) struct Traffic {
    pub(super) label: String,
    client: Client,
}

impl World {
    /// Two nodes with daemons, a client pod on each, and an empty cluster.
    pub(super) fn new(binaries: Binaries, kube: bool) -> anyhow::Result<Self> {
        let lab = Lab::with_binaries("demo", binaries)?;
        let nodes = vec![lab.node("n1")?, lab.node("n2")?];
        let manifests = Manifests::new(&lab.directory().join("manifests"))?;
        let mut objects = vec![manifests::namespace(SHOP)];
        objects.extend(nodes.iter().map(manifests::node));
        manifests.put("cluster", &objects)?;
        let api = kube.then(|| KubeApi::start(&lab, manifests.directory())).transpose()?;
        let mut options = DaemonOptions::new(manifests.directory());
        options.kubeconfig = api.as_ref().map(|api| api.kubeconfig().to_owned());
        // Both at once: each waits for its own kernel.
        let mut daemons: Vec<Daemon> = nodes
            .iter()
            .map(|node| Daemon::start_without_waiting(node, options.clone()))
            .collect::<anyhow::Result<_>>()?;
        let clients = nodes
            .iter()
            .zip(["client-1", "client-2"])
            .map(|(node, name)| node.pod(name))
            .collect::<anyhow::Result<_>>()?;
        daemons.iter_mut().try_for_each(Daemon::wait_ready)?;
        let (traffic, webs, columns) = (vec![], vec![], vec![]);
        Ok(Self { traffic, webs, clients, daemons, nodes, _api: api, manifests, columns, lab })
    }

    /// Starts a web pod on the node with this index; it is no endpoint before [`write_pods`](Self::write_pods).
    pub(super) fn start_web(&mut self, name: &str, node: usize) -> anyhow::Result<()> {
        let node = self.nodes.get(node).context("no such node")?;
        self.webs.push(Web::start(node, name, self.lab.directory())?);
        self.columns.push(name.to_owned());
        Ok(())
    }

    /// Changes the state of a web pod; seen by the daemons after [`write_pods`](Self::write_pods).
    pub(super) fn set_state(&mut self, name: &str, state: PodState) -> anyhow::Result<()> {
        let web = self.webs.iter_mut().find(|web| web.pod.name() == name);
        web.with_context(|| format!("no pod {name}"))?.state = state;
        Ok(())
    }

    /// Takes a web pod out of the cluster and ends its servers.
    pub(super) fn kill_web(&mut self, name: &str) -> anyhow::Result<()> {
        let index = self.webs.iter().position(|web| web.pod.name() == name);
        let web = self.webs.remove(index.with_context(|| format!("no pod {name}"))?);
        self.write_pods()?;
        web.kill()
    }

    /// Writes the pods as they are now.
    pub(super) fn write_pods(&self) -> anyhow::Result<()> {
        let ports = [Port::tcp("http", 80, HTTP), Port::udp("echo", ECHO, ECHO)];
        let objects: Vec<_> =
            self.webs.iter().map(|web| manifests::pod(SHOP, "web", &web.pod, web.state, &ports)).collect();
        self.manifests.put("pods", &objects)
    }

    /// Starts the four client loops against the addresses the name resolved to.
    pub(super) fn start_traffic(&mut self, v4: IpAddr, v6: IpAddr) -> anyhow::Result<()> {
        let [one, two] = self.clients.as_slice() else { bail!("the demo has two clients") };
        let (web, echo) = (80, ECHO);
        let loops = [
            (one, "TCP  IPv4, HTTP", SocketAddr::new(v4, web), Mode::Http),
            (two, "TCP  IPv6, HTTP", SocketAddr::new(v6, web), Mode::Http),
            (one, "UDP  IPv4, connected", SocketAddr::new(v4, echo), Mode::Udp),
            (two, "UDP  IPv6, not connected", SocketAddr::new(v6, echo), Mode::UdpUnconnected),
        ];
        for (pod, how, to, mode) in loops {
            let label = format!("{} {how}", pod.name());
            self.traffic.push(Traffic { label, client: pod.connect_loop(to, mode, 4)? });
        }
        Ok(())
    }

    /// Lets time pass, with the table live.
    pub(super) fn watch(&mut self, screen: &mut Screen, time: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            self.look(screen)?;
        }
        Ok(())
    }

    /// Lets time pass until `seen` is true or `limit` is over, and says which.
    pub(super) fn watch_until(
        &mut self,
        screen: &mut Screen,
        limit: Duration,
        mut seen: impl FnMut(&mut Self) -> anyhow::Result<bool>,
    ) -> anyhow::Result<bool> {
        let deadline = Instant::now() + limit;
        loop {
            if seen(self)? {
                return Ok(true);
            }
            if Instant::now() > deadline {
                return Ok(false);
            }
            self.look(screen)?;
        }
    }

    fn look(&mut self, screen: &mut Screen) -> anyhow::Result<()> {
        signals::check()?;
        if !self.traffic.is_empty() {
            let rows = self.rows()?;
            screen.show(&self.columns, &rows)?;
        }
        sleep(LOOK);
        Ok(())
    }

    /// Prints the table so that it stays.
    pub(super) fn keep_table(&mut self, screen: &mut Screen) -> anyhow::Result<()> {
        let rows = self.rows()?;
        screen.keep(&self.columns, &rows)
    }

    fn rows(&mut self) -> anyhow::Result<Vec<Row>> {
        let columns = &self.columns;
        let row = |traffic: &mut Traffic| {
            let counts = count(traffic.client.attempts()?, 0);
            let answers = columns.iter().map(|pod| counts.get(pod.as_str()).copied().unwrap_or_default()).collect();
            Ok(Row { label: traffic.label.clone(), answers, failed: counts.get("").copied().unwrap_or_default() })
        };
        self.traffic.iter_mut().map(row).collect()
    }

    /// Per client loop: who answered how often since then; failures count for the empty name.
    pub(super) fn answers_since(&mut self, since: u64) -> anyhow::Result<Vec<(String, BTreeMap<String, usize>)>> {
        let one = |traffic: &mut Traffic| Ok((traffic.label.clone(), count(traffic.client.attempts()?, since)));
        self.traffic.iter_mut().map(one).collect()
    }

    /// All attempts that began since then.
    pub(super) fn attempts_since(&mut self, since: u64) -> anyhow::Result<Vec<Attempt>> {
        let mut all = Vec::new();
        for traffic in &mut self.traffic {
            all.extend(traffic.client.attempts()?.iter().filter(|attempt| attempt.began >= since).cloned());
        }
        Ok(all)
    }

    /// What failed so far, by kind of error.
    pub(super) fn failures(&mut self) -> anyhow::Result<Vec<String>> {
        let mut all = Vec::new();
        for traffic in &mut self.traffic {
            for attempt in traffic.client.failures()? {
                all.push(format!("{}: {}", traffic.label, attempt.error.map_or_else(String::new, String::from)));
            }
        }
        Ok(all)
    }
}

fn count(attempts: &[Attempt], since: u64) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for attempt in attempts.iter().filter(|attempt| attempt.began >= since) {
        *counts.entry(attempt.server.clone().unwrap_or_default()).or_default() += 1;
    }
    counts
}
