//! The manifests folder of a lab, and short ways to write the objects a test needs.

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::node::{Node, Pod};

/// When the pods of a lab were deleted. Any time does; only its presence counts (IN-42).
const DELETED_AT: &str = "2026-01-01T00:00:00Z";

/// A folder of manifests. Files are replaced by rename, so a reader never sees half of one.
#[derive(Clone, Debug)]
pub struct Manifests {
    directory: PathBuf,
}

impl Manifests {
    /// The folder at `directory`, created if it is not there.
    pub fn new(directory: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes `objects` as the file `name.json`, replacing what it held.
    pub fn put(&self, name: &str, objects: &[Value]) -> anyhow::Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.put_text(&format!("{name}.json"), &format!("{list:#}\n"))
    }

    /// Writes `text` as the file `file`, its ending included.
    pub fn put_text(&self, file: &str, text: &str) -> anyhow::Result<()> {
        let (hidden, visible) = (self.directory.join(format!(".{file}.new")), self.directory.join(file));
        fs::write(&hidden, text).with_context(|| format!("writing {}", hidden.display()))?;
        fs::rename(&hidden, &visible).with_context(|| format!("replacing {}", visible.display()))
    }

    /// Removes the file `name.json`; one that is gone already is fine.
    pub fn remove(&self, name: &str) -> anyhow::Result<()> {
        self.remove_file(&format!("{name}.json"))
    }

    /// Removes the file `file`; one that is gone already is fine.
    pub fn remove_file(&self, file: &str) -> anyhow::Result<()> {
        let path = self.directory.join(file);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", path.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// What state a pod is in, as its endpoints see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodState {
    /// Running and ready.
    Ready,
    /// Running, its readiness probe fails.
    Unready,
    /// Being deleted, its readiness probe fails.
    Terminating,
    /// Being deleted; it goes on serving meanwhile.
    TerminatingServing,
}

/// A Namespace.
#[must_use]
pub fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

/// A Node with its addresses and pod ranges.
#[must_use]
pub fn node(node: &Node) -> Value {
    let cidrs = node.pod_cidrs();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": node.name(), "labels": {"kubernetes.io/hostname": node.name()}},
        "spec": {"podCIDR": &cidrs[0], "podCIDRs": &cidrs},
        "status": {"addresses": [
            {"type": "InternalIP", "address": node.ipv4},
            {"type": "InternalIP", "address": node.ipv6},
            {"type": "Hostname", "address": node.name()},
        ]},
    })
}

/// A Pod of the lab in `namespace` with label `app`, in the given state, with container ports.
#[must_use]
pub fn pod(namespace: &str, app: &str, pod: &Pod, state: PodState, ports: &[Port<'_>]) -> Value {
    let ready = match state {
        PodState::Ready | PodState::TerminatingServing => "True",
        PodState::Unready | PodState::Terminating => "False",
    };
    let container_ports: Vec<Value> = ports
        .iter()
        .map(|port| json!({"name": port.name, "containerPort": port.target, "protocol": port.protocol}))
        .collect();
    let mut object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": pod.name(), "namespace": namespace, "labels": {"app": app}},
        "spec": {
            "nodeName": pod.node(), "hostname": pod.name(), "subdomain": format!("{app}-headless"),
            "containers": [{"name": app, "image": app, "ports": container_ports}],
        },
        "status": {
            "phase": "Running", "podIP": pod.ipv4, "podIPs": [{"ip": pod.ipv4}, {"ip": pod.ipv6}],
            "conditions": [{"type": "Ready", "status": ready}],
        },
    });
    if matches!(state, PodState::Terminating | PodState::TerminatingServing)
        && let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut)
    {
        metadata.insert("deletionTimestamp".to_owned(), DELETED_AT.into());
    }
    object
}

/// A named port: what clients dial and what the pods listen on.
#[derive(Clone, Copy, Debug)]
pub struct Port<'a> {
    /// Its name.
    pub name: &'a str,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: &'a str,
    /// The port of the Service.
    pub port: u16,
    /// The port of the pods.
    pub target: u16,
}

impl<'a> Port<'a> {
    /// A TCP port.
    #[must_use]
    pub fn tcp(name: &'a str, port: u16, target: u16) -> Self {
        Self { name, protocol: "TCP", port, target }
    }

    /// An SCTP port.
    #[must_use]
    pub fn sctp(name: &'a str, port: u16, target: u16) -> Self {
        Self { name, protocol: "SCTP", port, target }
    }

    /// A UDP port.
    #[must_use]
    pub fn udp(name: &'a str, port: u16, target: u16) -> Self {
        Self { name, protocol: "UDP", port, target }
    }
}

/// A Service with these cluster addresses, and of their families; without any it is dual-stack and is given some.
/// `selector` is the `app` label of its pods, `None` for one whose slices are written by hand.
#[must_use]
pub fn service(namespace: &str, name: &str, selector: Option<&str>, ips: &[IpAddr], ports: &[Port<'_>]) -> Value {
    let mut object = service_with(namespace, name, selector, ports);
    if let (Some(first), Some(spec)) = (ips.first(), object.get_mut("spec").and_then(Value::as_object_mut)) {
        let families: Vec<&str> = ips.iter().map(|ip| if ip.is_ipv4() { "IPv4" } else { "IPv6" }).collect();
        let policy = if ips.len() == 1 { "SingleStack" } else { "RequireDualStack" };
        spec.insert("clusterIP".to_owned(), json!(first));
        spec.insert("clusterIPs".to_owned(), json!(ips));
        spec.insert("ipFamilies".to_owned(), json!(families));
        spec.insert("ipFamilyPolicy".to_owned(), json!(policy));
    }
    object
}

/// A headless Service.
#[must_use]
pub fn headless(namespace: &str, name: &str, selector: &str, ports: &[Port<'_>]) -> Value {
    let mut object = service_with(namespace, name, Some(selector), ports);
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("clusterIP".to_owned(), "None".into());
        spec.insert("clusterIPs".to_owned(), json!(["None"]));
    }
    object
}

fn service_with(namespace: &str, name: &str, selector: Option<&str>, ports: &[Port<'_>]) -> Value {
    let ports: Vec<Value> = ports
        .iter()
        .map(|port| json!({"name": port.name, "protocol": port.protocol, "port": port.port, "targetPort": port.target}))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "type": "ClusterIP", "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
            "selector": selector.map(|app| json!({"app": app})), "ports": ports,
        },
    })
}

/// An endpoint of a hand-written slice.
#[derive(Clone, Debug)]
pub struct SliceEndpoint {
    /// Its address.
    pub address: IpAddr,
    /// The node it runs on.
    pub node: String,
    /// Whether it is ready.
    pub ready: bool,
}

/// An EndpointSlice of one family for the Service `service`.
#[must_use]
pub fn slice(namespace: &str, service: &str, name: &str, endpoints: &[SliceEndpoint], ports: &[Port<'_>]) -> Value {
    let family = if endpoints.first().is_some_and(|first| first.address.is_ipv6()) { "IPv6" } else { "IPv4" };
    let ports: Vec<Value> =
        ports.iter().map(|port| json!({"name": port.name, "protocol": port.protocol, "port": port.target})).collect();
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|endpoint| {
            json!({
                "addresses": [endpoint.address], "nodeName": endpoint.node,
                "conditions": {"ready": endpoint.ready, "serving": endpoint.ready, "terminating": false},
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
        "metadata": {"name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": service}},
        "endpoints": endpoints, "ports": ports,
    })
}
