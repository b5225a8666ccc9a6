//! A lab: the router that joins its nodes, and the client outside.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context as _, ensure};

use crate::binaries::Binaries;
use crate::leftovers::{prefix, remove_leftovers};
use crate::lifetime::Core;
use crate::network::PodNetwork;
use crate::node::Node;
use crate::place::Place;
use crate::{host, network};

/// A router with nodes around it. Clones of its handles keep it alive; the last one removes everything.
#[derive(Debug)]
pub struct Lab {
    /// The router namespace: gateway of the nodes, and place of servers such as the API server. Its processes are in no
    /// node's cgroup.
    pub router: Place,
    /// The client outside of the cluster: a host beyond the router, in a network that no node has an address of.
    pub outside: Place,
    core: Arc<Core>,
}

impl Lab {
    /// A lab with the programs found next to this executable. `name`: lower-case letters and digits.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        Self::with_binaries(name, Binaries::find()?)
    }

    /// A lab with these programs.
    pub fn with_binaries(name: &str, binaries: Binaries) -> anyhow::Result<Self> {
        if let Some(missing) = host::missing() {
            anyhow::bail!(missing);
        }
        ensure!(
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()),
            "a lab's name is of lower-case letters and digits, not {name:?}"
        );
        remove_leftovers().context("removing what dead labs left")?;
        let core = Arc::new(Core::new(prefix(name), binaries)?);
        let router = Place::new(&core, "router", core.cgroup.join("router"))?;
        network::make_router(&router)?;
        let outside = Place::new(&core, "outside", core.cgroup.join("outside"))?;
        network::join_outside(&router, &outside)?;
        Ok(Self { router, outside, core })
    }

    /// Adds a node: a namespace on the router's bridge and a cgroup directory.
    pub fn node(&self, name: &str) -> anyhow::Result<Node> {
        self.add_node(name, PodNetwork::Routed)
    }

    /// Adds a node whose pods hang on one bridge, through which netfilter sees no packets until that is turned on.
    pub fn bridged_node(&self, name: &str) -> anyhow::Result<Node> {
        self.add_node(name, PodNetwork::Bridged)
    }

    fn add_node(&self, name: &str, network: PodNetwork) -> anyhow::Result<Node> {
        let number = self.core.nodes.fetch_add(1, Ordering::Relaxed) + 1;
        // Node addresses begin at .11.
        let number =
            u8::try_from(number).ok().filter(|number| *number < 240).context("a lab has room for 239 nodes")?;
        Node::new(&self.core, &self.router, name, number, network)
    }

    /// Does a load balancer's job: from now on packets of the client outside for an address that no host of the lab has
    /// arrive at `node`. Before the first call, and for all other senders, such addresses are unreachable.
    pub fn balance_to(&self, node: &Node) -> anyhow::Result<()> {
        network::balance_to(&self.router, node.ipv4, node.ipv6)
    }

    /// The prefix of everything this lab made.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.core.prefix
    }

    /// Where its logs and sockets are, and where manifests may be put.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.core.directory
    }

    /// The addresses of the client outside, IPv4 first.
    #[must_use]
    pub fn outside_addresses(&self) -> [IpAddr; 2] {
        [network::OUTSIDE_V4.into(), network::OUTSIDE_V6.into()]
    }

    /// The end of every log, for a failed test.
    #[must_use]
    pub fn logs(&self) -> String {
        let entries = fs::read_dir(&self.core.directory).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut logs: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
        logs.sort();
        logs.iter()
            .map(|log| (log, crate::process::log_tail(log, 30)))
            .filter(|(_, tail)| !tail.is_empty())
            .map(|(log, tail)| format!("  {}\n{tail}", log.display()))
            .collect()
    }
}
