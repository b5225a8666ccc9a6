//! A source with everything it has published so far.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lab::api::FakeApi;
use serde_json::{Value, json};
use shunt_model::Snapshot;
use shunt_model::source::kube::{self, KubeOptions};
use shunt_model::source::{Source, SourceHealth};
use tokio::task::JoinHandle;

/// Longer than any test waits when it passes.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Watched {
    pub(crate) source: Source,
    /// Services that were missing in any view after they had once been there.
    lost: Arc<Mutex<BTreeSet<String>>>,
    recorder: JoinHandle<()>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.recorder.abort();
    }
}

pub(crate) fn options(kubeconfig: &Path) -> KubeOptions {
    KubeOptions { kubeconfig: Some(kubeconfig.to_owned()), node: "n1".into(), names: true, ..KubeOptions::default() }
}

/// A kubeconfig file that lives as long as the returned folder.
pub(crate) fn file(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

impl Watched {
    /// A source that has seen everything there is.
    pub(crate) async fn new(api: &FakeApi) -> Self {
        let (folder, path) = file(&api.kubeconfig());
        let watched = Self::with(options(&path)).await;
        // The file is read again after a failure.
        std::mem::forget(folder);
        watched
    }

    pub(crate) async fn with(options: KubeOptions) -> Self {
        let starting = kube::start(options).await.unwrap();
        let health = starting.health.clone();
        let complete = tokio::time::timeout(PATIENCE, starting.complete()).await;
        let source = complete.unwrap_or_else(|_| panic!("no view: {:?}", *health.borrow())).unwrap();
        let lost = Arc::new(Mutex::new(BTreeSet::new()));
        let recorder = tokio::spawn(record(source.snapshots.clone(), Arc::clone(&lost)));
        Self { source, lost, recorder }
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.source.snapshots.borrow())
    }

    /// Waits for a view that `wanted` accepts.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&Snapshot) -> bool) {
        let mut snapshots = self.source.snapshots.clone();
        let seen = tokio::time::timeout(PATIENCE, snapshots.wait_for(|snapshot| wanted(snapshot))).await;
        assert!(seen.is_ok(), "never {what}: {} and {:?}", services(&self.snapshot()), self.health());
    }

    pub(crate) async fn until_services(&self, expected: &str) {
        self.until(expected, |snapshot| services(snapshot) == expected).await;
    }

    pub(crate) async fn until_health(&self, what: &str, wanted: impl Fn(&SourceHealth) -> bool) {
        let mut health = self.source.health.clone();
        let seen = tokio::time::timeout(PATIENCE, health.wait_for(|health| wanted(health))).await;
        assert!(seen.is_ok(), "never {what}: {:?}", self.health());
    }

    pub(crate) fn health(&self) -> SourceHealth {
        self.source.health.borrow().clone()
    }

    /// Services that vanished from a view, if only for a moment.
    pub(crate) fn lost(&self) -> BTreeSet<String> {
        self.lost.lock().unwrap().clone()
    }
}

async fn record(mut snapshots: tokio::sync::watch::Receiver<Arc<Snapshot>>, lost: Arc<Mutex<BTreeSet<String>>>) {
    let mut before = Arc::clone(&snapshots.borrow_and_update());
    while snapshots.changed().await.is_ok() {
        let now = Arc::clone(&snapshots.borrow_and_update());
        let gone = before.services.keys().filter(|key| !now.services.contains_key(*key));
        lost.lock().unwrap().extend(gone.map(|key| key.name.to_string()));
        before = now;
    }
}

/// Names and cluster IPs, and the endpoints of each.
pub(crate) fn services(snapshot: &Snapshot) -> String {
    let one = |service: &shunt_model::Service| {
        let endpoints: Vec<String> = snapshot
            .slices_of(&service.key)
            .flat_map(|slice| &slice.endpoints)
            .map(|endpoint| format!("{}{}", endpoint.addresses[0], if endpoint.ready { "" } else { "!" }))
            .collect();
        if endpoints.is_empty() {
            service.key.name.to_string()
        } else {
            format!("{}[{}]", service.key.name, endpoints.join(","))
        }
    };
    snapshot.services.values().map(|service| one(service)).collect::<Vec<_>>().join(" ")
}

pub(crate) fn service(name: &str, number: u32) -> Value {
    let ip = std::net::Ipv4Addr::from_bits(0x0a60_0000 + number);
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80, "protocol": "TCP"}]},
    })
}

pub(crate) fn slice(service: &str, endpoints: &[&str]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|address| json!({"addresses": [address], "conditions": {"ready": true}, "nodeName": "n1"}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": format!("{service}-x"), "namespace": "default",
            "labels": {"kubernetes.io/service-name": service},
        },
        "endpoints": endpoints, "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
    })
}

/// A cluster with a Service `a` of one endpoint and a Service `b` of none.
pub(crate) fn cluster() -> FakeApi {
    let api = FakeApi::start().unwrap();
    for object in [service("a", 1), service("b", 2), slice("a", &["10.1.0.1"])] {
        api.apply_object(object).unwrap();
    }
    api
}
