//! A Kubernetes API server over a folder of manifests; its standard input orders the faults that it makes.

use std::fs;
use std::io::stdin;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;

use crate::api::FakeApi;

/// What to serve, and where.
#[derive(Args, Debug)]
pub struct ApiArguments {
    /// The address to listen at.
    #[arg(long)]
    pub listen: SocketAddr,
    /// The folder of manifests.
    #[arg(long)]
    pub manifests: PathBuf,
    /// Where to write a kubeconfig for clients.
    #[arg(long)]
    pub kubeconfig: PathBuf,
}

/// Serves until standard input ends.
pub(super) fn serve(arguments: &ApiArguments) -> anyhow::Result<()> {
    let api = FakeApi::start_at(arguments.listen)?;
    api.follow(&arguments.manifests)?;
    let path = &arguments.kubeconfig;
    fs::write(path, api.kubeconfig()).with_context(|| format!("writing {}", path.display()))?;
    super::print(&serde_json::json!({super::SERVING: api.address()}))?;
    for line in stdin().lines() {
        obey(&api, &line?)?;
    }
    Ok(())
}

fn obey(api: &FakeApi, line: &str) -> anyhow::Result<()> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["stop-listening"] => api.stop_listening(),
        ["resume"] => api.resume()?,
        ["move", address] => api.move_to(address.parse()?)?,
        ["drop-watches"] => api.drop_watches(),
        ["compact"] => api.compact(),
        ["bookmark"] => api.bookmark(),
        ["clear"] => api.faults().clear(),
        ["apply", path] => api.apply(&fs::read_to_string(path).with_context(|| format!("reading {path}"))?)?,
        ["random", seed, per_mille] => api.faults().random(seed.parse()?, per_mille.parse()?),
        _ => bail!("{line:?} is no order"),
    }
    // The process that gave the order waits for this line.
    super::print(&serde_json::json!({"done": line, "faults": api.faults().fired()}))
}
