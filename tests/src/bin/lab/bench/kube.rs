//! The same services from an API server: until the kernel has all of them, and until it has one change.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};
use lab::{Binaries, Daemon, DaemonOptions, KubeApi, Lab, Manifests};
use serde_json::{Value, json};

use super::cluster::{BATCH, ENDPOINTS, PATIENCE, changing, filler, metrics, rss_kib};

/// What was measured.
pub(super) struct Figures {
    /// From the start of the process until everything is in the kernel, the lists included.
    pub(super) start: Duration,
    /// Resident memory then.
    pub(super) rss_kib: u64,
    /// From telling the API server of one changed slice until it is in the kernel.
    pub(super) changes: Vec<Duration>,
}

/// Measures with so many services and changes.
pub(super) fn measure(shunt: &Path, peer: &Path, services: u32, changes: u32) -> Result<Figures> {
    let lab = Lab::with_binaries("benchapi", Binaries { shunt: Some(shunt.to_owned()), peer: peer.to_owned() })?;
    let node = lab.node("n1")?;
    let manifests = Manifests::new(&lab.directory().join("manifests"))?;
    for start in (0..services).step_by(BATCH as usize) {
        let objects: Vec<Value> =
            (start..services.min(start.saturating_add(BATCH))).flat_map(|number| filler(number, ENDPOINTS)).collect();
        manifests.put(&format!("filler-{start}"), &objects)?;
    }
    manifests.put("changing", &changing(ENDPOINTS))?;
    let mut api = KubeApi::start(&lab, manifests.directory())?;
    let mut options = DaemonOptions { ready_within: PATIENCE, ..DaemonOptions::new(manifests.directory()) };
    options.kubeconfig = Some(api.kubeconfig().to_owned());
    let started = Instant::now();
    let daemon = Daemon::start_without_waiting(&node, options)?;
    // Its metrics are served once the first view is complete.
    while syncs(&daemon).unwrap_or_default() < 1.0 {
        if started.elapsed() > PATIENCE {
            bail!("the daemon has not taken up {services} services within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let start = started.elapsed();
    let ports = metrics(&daemon)?.get("shunt_service_ports").copied().unwrap_or_default();
    if ports < f64::from(services) {
        bail!("the first sync had {ports} service ports and not {services}");
    }
    let rss_kib = rss_kib(daemon.process())?;
    let files = [ENDPOINTS + 1, ENDPOINTS].map(|endpoints| write(&lab, endpoints));
    let [more, fewer] = files;
    let (more, fewer) = (more?, fewer?);
    let mut seen = Vec::new();
    for number in 0..changes {
        let file = if number % 2 == 0 { &more } else { &fewer };
        seen.push(change(&mut api, &daemon, file)?);
    }
    seen.sort_unstable();
    Ok(Figures { start, rss_kib, changes: seen })
}

fn write(lab: &Lab, endpoints: u32) -> Result<PathBuf> {
    let path = lab.directory().join(format!("changing-{endpoints}.json"));
    let list = json!({"apiVersion": "v1", "kind": "List", "items": changing(endpoints)});
    fs::write(&path, list.to_string()).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// From the order to the end of the sync that follows, as the daemon's own clock has it.
fn change(api: &mut KubeApi, daemon: &Daemon, file: &Path) -> Result<Duration> {
    let (before, _) = last_sync(daemon)?;
    let started = SystemTime::now();
    api.order(&format!("apply {}", file.display()))?;
    loop {
        let (generation, at) = last_sync(daemon)?;
        if generation > before {
            return Ok(at.duration_since(started).unwrap_or_default());
        }
        if started.elapsed().unwrap_or_default() > PATIENCE {
            bail!("the daemon has not noticed a change within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn last_sync(daemon: &Daemon) -> Result<(u64, SystemTime)> {
    let body = daemon.health("/readyz")?.body;
    let answer: Value = serde_json::from_str(&body).with_context(|| format!("reading {body}"))?;
    let number =
        |field: &str| answer.pointer(&format!("/lastSync/{field}")).with_context(|| format!("no {field} in {body}"));
    let generation = number("generation")?.as_u64().context("the generation is no number")?;
    let at = number("unixSeconds")?.as_f64().context("the time is no number")?;
    Ok((generation, SystemTime::UNIX_EPOCH + Duration::from_secs_f64(at)))
}

fn syncs(daemon: &Daemon) -> Result<f64> {
    metrics(daemon)?.get("shunt_syncs_total").copied().context("the daemon has no metric shunt_syncs_total")
}
