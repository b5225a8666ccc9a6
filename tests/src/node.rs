//! Nodes and the pods on them.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context as _;

use crate::lifetime::Core;
use crate::network::{self, PodNetwork};
use crate::place::Place;

/// A node: everything that runs on it, pods included, is below its cgroup directory.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its address on the router's bridge.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address on the router's bridge.
    pub ipv6: Ipv6Addr,
    host: Place,
    number: u8,
    network: PodNetwork,
    /// Pods so far. An address is never given out twice, so "the old pod took nothing" means what it says.
    pods: Arc<AtomicU32>,
}

/// A pod: a namespace joined to its node.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address.
    pub ipv6: Ipv6Addr,
    node: String,
    place: Place,
}

impl Node {
    pub(crate) fn new(
        core: &Arc<Core>,
        router: &Place,
        name: &str,
        number: u8,
        network: PodNetwork,
    ) -> anyhow::Result<Self> {
        // Processes of the node itself get a directory of their own beside its pods.
        let host = Place::new(core, name, core.node_cgroup(name).join("host"))?;
        let (ipv4, ipv6) = network::node_addresses(number);
        network::join_node(router, &host, number).with_context(|| format!("joining node {name}"))?;
        if network == PodNetwork::Bridged {
            network::make_pod_bridge(&host, number).with_context(|| format!("making the bridge of node {name}"))?;
        }
        Ok(Self { ipv4, ipv6, host, number, network, pods: Arc::default() })
    }

    /// Adds a pod to this node.
    pub fn pod(&self, name: &str) -> anyhow::Result<Pod> {
        // .0 and .1 look like the network and its gateway; no pod gets them.
        let number =
            u8::try_from(self.pods.fetch_add(1, Ordering::Relaxed) + 2).context("a node has room for 254 pods")?;
        self.pod_with_number(name, number)
    }

    /// Adds a pod whose addresses end in `number`, which no other pod of this node has.
    pub fn pod_with_number(&self, name: &str, number: u8) -> anyhow::Result<Pod> {
        let core = &self.host.core;
        let place = Place::new(core, name, core.node_cgroup(self.name()).join(name))?;
        let (ipv4, ipv6) = network::pod_addresses(self.number, number);
        let joined = network::join_pod(&self.host, self.number, self.network, &place, number);
        joined.with_context(|| format!("joining pod {name}"))?;
        Ok(Pod { ipv4, ipv6, node: self.name().to_owned(), place })
    }

    /// The IPv4 and IPv6 ranges of its pods, as `spec.podCIDRs` has them.
    #[must_use]
    pub fn pod_cidrs(&self) -> [String; 2] {
        network::pod_cidrs(self.number)
    }

    /// The namespace and cgroup of the node's own processes.
    #[must_use]
    pub fn host(&self) -> &Place {
        &self.host
    }
}

impl Pod {
    /// The name of its node.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }
}

impl Deref for Node {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.host
    }
}

impl Deref for Pod {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}
