//! Starts the source that the configuration names, and reports why its first view takes long.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use shunt_model::Snapshot;
use shunt_model::source::kube::{self, Events, KubeOptions};
use shunt_model::source::manifests::{self, ManifestsOptions};
use shunt_model::source::{Problem, Source};
use tokio::sync::watch;
use tracing::info;

use crate::config::{Annotation, Config, KubeConfig, PodNames, SourceConfig};
use crate::status::Status;

/// Checks the source's settings before the daemon changes anything.
pub(crate) fn check(source: &SourceConfig) -> Result<()> {
    match source {
        SourceConfig::Manifests(folder) => {
            ensure!(
                folder.is_dir(),
                "--manifests {}: there is no such folder; create it or name another",
                folder.display()
            );
        }
        SourceConfig::Kube(KubeConfig { .. }) => {}
    }
    Ok(())
}

/// The source with its first view, which is complete, and where events go if it takes any. `status` says why it is not
/// complete yet.
pub(crate) async fn start(config: &Config, status: &watch::Sender<Status>) -> Result<(Source, Option<Events>)> {
    match &config.source {
        SourceConfig::Manifests(folder) => {
            info!(manifests = %folder.display(), "reading");
            let source = manifests::start(manifests_options(config, folder)).await?;
            Ok((source, None))
        }
        SourceConfig::Kube(kube) => {
            let starting = kube::start(kube_options(config, kube)).await?;
            info!("listing services and endpoint slices");
            let events = starting.events.clone();
            let mut health = starting.health.clone();
            let mut complete = std::pin::pin!(starting.complete());
            loop {
                tokio::select! {
                    source = &mut complete => {
                        return Ok((source.context("the Kubernetes source ended; this is a bug of shunt")?, Some(events)));
                    }
                    Ok(()) = health.changed() => {
                        let health = Arc::new(health.borrow_and_update().clone());
                        status.send_modify(|status| status.source = health);
                    }
                }
            }
        }
    }
}

/// How long one read of a cluster may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The present state of a cluster.
pub struct Look {
    /// Its objects.
    pub snapshot: Snapshot,
    /// What the source ignores.
    pub problems: Vec<Problem>,
    /// Why the node's name is a wrong one, if the cluster does not know it.
    pub unknown_node: Option<String>,
}

/// Reads the present state of the cluster behind `kubeconfig`, for `node`.
pub fn look(kubeconfig: &Path, node: &str, opt_out: &[Annotation]) -> Result<Look> {
    let options = KubeOptions {
        kubeconfig: Some(kubeconfig.to_owned()),
        node: node.to_owned(),
        names: true,
        pod_annotations: annotation_keys(opt_out),
        ..KubeOptions::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let look = async {
        let starting = kube::start(options).await?;
        let mut health = starting.health.clone();
        let source = tokio::select! {
            source = starting.complete() => source,
            // Give up: the user can run the command again. A daemon would retry.
            Ok(health) = health.wait_for(|health| health.unreachable.is_some()) => {
                bail!("no view of the cluster: {}", health.unreachable.as_deref().unwrap_or_default());
            }
            () = tokio::time::sleep(PATIENCE) => {
                bail!("no view of the cluster within {} s: the lists do not end", PATIENCE.as_secs());
            }
        };
        let source = source.context("the Kubernetes source ended; this is a bug of shunt")?;
        let snapshot = Snapshot::clone(&source.snapshots.borrow());
        // The view is published before the report on it.
        let mut health = source.health.clone();
        let health = health.wait_for(|health| health.complete).await.context("the Kubernetes source ended")?;
        let (problems, unknown_node) = (health.problems.clone(), health.unknown_node.clone());
        Ok(Look { snapshot, problems, unknown_node })
    };
    let looked = runtime.block_on(look);
    // A credential plug-in that hangs does not keep the command from ending.
    runtime.shutdown_background();
    looked
}

fn manifests_options(config: &Config, folder: &Path) -> ManifestsOptions {
    ManifestsOptions {
        dir: folder.to_path_buf(),
        service_cidrs: config.service_cidrs.clone(),
        reserved: config.cluster_dns.clone(),
        pod_annotations: annotation_keys(&config.opt_out),
    }
}

fn kube_options(config: &Config, kube: &KubeConfig) -> KubeOptions {
    KubeOptions {
        kubeconfig: kube.kubeconfig.clone(),
        kubeconfig_setting: kube.setting,
        state_dir: Some(config.state_dir.clone()),
        master: kube.master.clone(),
        node: config.node.clone(),
        names: config.dns.is_some(),
        all_pods: config.dns.as_ref().is_some_and(|dns| dns.pods == PodNames::Verified),
        pod_annotations: annotation_keys(&config.opt_out),
        until_known: "Services stay as an earlier daemon left them, if one ran on this node",
    }
}

fn annotation_keys(annotations: &[Annotation]) -> Vec<String> {
    annotations.iter().map(|annotation| annotation.key.clone()).collect()
}
