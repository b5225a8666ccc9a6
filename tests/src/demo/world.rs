//! Nodes, daemons, pods and clients of the demo.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::json;

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
/// The Service for clients outside, its load balancer's addresses, and its node ports for HTTP and for datagrams.
const PUBLIC: &str = "web-public";
const BALANCED: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(203, 0, 113, 80)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x203, 0, 0, 0, 0, 0x80))];
pub(super) const NODE_PORTS: (u16, u16) = (30_080, 30_070);
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
    pub(super) fn new(binaries: Binaries, kube: bool, arguments: &[String]) -> anyhow::Result<Self> {
        let lab = Lab::with_binaries("demo", binaries)?;
        let nodes = vec![lab.node("n1")?, lab.node("n2")?];
        let manifests = Manifests::new(&lab.directory().join("manifests"))?;
        let mut objects = vec![manifests::namespace(SHOP)];
        objects.extend(nodes.iter().map(manifests::node));
        manifests.put("cluster", &objects)?;
        let api = kube.then(|| KubeApi::start(&lab, manifests.directory())).transpose()?;
        let mut options = DaemonOptions::new(manifests.directory());
        options.kubeconfig = api.as_ref().map(|api| api.kubeconfig().to_owned());
        options.extra.extend(arguments.iter().cloned());
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
        // As a load balancer would that has chosen the first node.
        lab.balance_to(nodes.first().context("no node")?)?;
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

    /// Starts four client loops in pods, against the addresses the name resolved to, and four outside.
    pub(super) fn start_traffic(&mut self, v4: IpAddr, v6: IpAddr) -> anyhow::Result<()> {
        let [one, two] = self.clients.as_slice() else { bail!("the demo has two clients") };
        let (web, echo, outside) = (80, ECHO, &self.lab.outside);
        let [port_v4, port_v6, balanced_v4, balanced_v6] = self.addresses_outside()?;
        let loops = [
            (&**one, "TCP IPv4, HTTP", SocketAddr::new(v4, web), Mode::Http),
            (&**two, "TCP IPv6, HTTP", SocketAddr::new(v6, web), Mode::Http),
            (&**one, "UDP IPv4, connected", SocketAddr::new(v4, echo), Mode::Udp),
            (&**two, "UDP IPv6, not connected", SocketAddr::new(v6, echo), Mode::UdpUnconnected),
            (outside, "TCP IPv4, node port", SocketAddr::new(port_v4, NODE_PORTS.0), Mode::Http),
            (outside, "TCP IPv6, load balancer", SocketAddr::new(balanced_v6, web), Mode::Http),
            (outside, "UDP IPv4, load balancer", SocketAddr::new(balanced_v4, echo), Mode::Udp),
            (outside, "UDP IPv6, node port", SocketAddr::new(port_v6, NODE_PORTS.1), Mode::UdpUnconnected),
        ];
        for (place, how, to, mode) in loops {
            let label = format!("{} {how}", place.name());
            self.traffic.push(Traffic { label, client: place.connect_loop(to, mode, 8)? });
        }
        Ok(())
    }

    /// Where a client outside finds the pods: the second node's addresses, with node ports, then those of the load
    /// balancer.
    pub(super) fn addresses_outside(&self) -> anyhow::Result<[IpAddr; 4]> {
        let node = self.nodes.get(1).context("no second node")?;
        let [balanced_v4, balanced_v6] = BALANCED;
        Ok([node.ipv4.into(), node.ipv6.into(), balanced_v4, balanced_v6])
    }

    /// Writes a Service by which clients outside reach the web pods.
    pub(super) fn publish(&self) -> anyhow::Result<()> {
        let (http, echo) = NODE_PORTS;
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": PUBLIC, "namespace": SHOP},
            "spec": {
                "type": "LoadBalancer", "selector": {"app": "web"},
                "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
                "ports": [
                    {"name": "http", "protocol": "TCP", "port": 80, "targetPort": HTTP, "nodePort": http},
                    {"name": "echo", "protocol": "UDP", "port": ECHO, "targetPort": ECHO, "nodePort": echo},
                ],
            },
            "status": {"loadBalancer": {"ingress": BALANCED.map(|ip| json!({"ip": ip}))}},
        });
        self.manifests.put(PUBLIC, &[service])
    }

    /// Takes that Service away.
    pub(super) fn unpublish(&self) -> anyhow::Result<()> {
        self.manifests.remove(PUBLIC)
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
