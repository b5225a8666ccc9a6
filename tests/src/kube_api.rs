//! The lab's Kubernetes API server: a process in the router's namespace, where every node reaches it.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;

use crate::network::ROUTER_V4;
use crate::peer::SERVING;
use crate::process::Process;
use crate::topology::Lab;

const PORT: u16 = 6443;
const PATIENCE: Duration = Duration::from_secs(30);

/// A running API server that follows a folder of manifests.
#[derive(Debug)]
pub struct KubeApi {
    process: Process,
    kubeconfig: PathBuf,
}

#[derive(Deserialize)]
struct Done {
    done: String,
    faults: usize,
}

impl KubeApi {
    /// Serves `manifests` in `lab`.
    pub fn start(lab: &Lab, manifests: &Path) -> anyhow::Result<Self> {
        let kubeconfig = lab.directory().join("kubeconfig");
        let listen = SocketAddr::new(IpAddr::V4(ROUTER_V4), PORT).to_string();
        let (manifests, path) = (text(manifests)?, text(&kubeconfig)?);
        let arguments = ["--listen", &listen, "--manifests", &manifests, "--kubeconfig", &path];
        let process = lab.router.listening_peer("api", &arguments)?;
        process.wait_for_line(PATIENCE, |line| line.contains(SERVING))?;
        Ok(Self { process, kubeconfig })
    }

    /// A file by which daemons find it.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Gives an order (see `lab-peer api`) and waits until it is carried out; returns how many requests have gone
    /// wrong on purpose so far.
    pub fn order(&mut self, order: &str) -> anyhow::Result<usize> {
        self.process.say(order)?;
        let line = self
            .process
            .wait_for_line(PATIENCE, |line| serde_json::from_str::<Done>(line).is_ok_and(|done| done.done == order))?;
        Ok(serde_json::from_str::<Done>(&line)?.faults)
    }

    /// Its process.
    #[must_use]
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

fn text(path: &Path) -> anyhow::Result<String> {
    Ok(path.to_str().context("a path of the lab is not UTF-8")?.to_owned())
}
