//! The Kubernetes API as a source: lists, then watches, and keeps only what the model has.
//!
//! `reflector` follows one resource each (with `wire` for what is read of its objects), all over one `session` (with
//! `client` and `kubeconfig` for credentials, `transport` for connections, `remembered` for other addresses); `view`
//! joins their messages into a snapshot, and `follow` publishes it. Nothing is handed out before Services and
//! EndpointSlices have been listed once (SY-1); while the API is away, the last view stays in force.

mod backoff;
mod client;
mod events;
mod failure;
mod follow;
mod kubeconfig;
mod reflector;
mod remembered;
mod session;
mod transport;
mod verifier;
mod view;
mod wire;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

pub use client::{ConnectError, KubeconfigSetting};
pub use events::{Events, NewEvent, PostError};
pub use kubeconfig::{KubeconfigProblem, ServerUrlError};
pub use transport::{TokenError, TransportError};
pub use verifier::AuthorityError;

use crate::snapshot::Snapshot;
use crate::source::{Source, SourceHealth};

/// What to follow, and with which credentials.
#[derive(Clone, Debug, Default)]
pub struct KubeOptions {
    /// The kubeconfig file; without one, the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// Where the operator can name one, for messages.
    pub kubeconfig_setting: KubeconfigSetting,
    /// Where the API server's endpoints are remembered across restarts; nowhere without it.
    pub state_dir: Option<PathBuf>,
    /// The API server's URL, instead of the one that the credentials name.
    pub master: Option<String>,
    /// This node: its Node object is followed, and its Pods. Empty for a server of DNS alone: then neither Nodes nor
    /// ServiceCIDRs are followed.
    pub node: String,
    /// Names are answered too: headless Services, those of other proxies, and Namespaces are followed as well.
    pub names: bool,
    /// Pods of all nodes are followed, not only this node's.
    pub all_pods: bool,
    /// Which annotations of Pods to keep, by key. Without any, and without `all_pods`, Pods are not followed.
    pub pod_annotations: Vec<String>,
    /// What holds until the first view is complete, for messages; nothing is said without it.
    pub until_known: &'static str,
}

/// A source that has not seen everything yet.
pub struct Starting {
    /// Why it takes so long.
    pub health: watch::Receiver<SourceHealth>,
    /// Takes events about objects of the cluster.
    pub events: Events,
    first: tokio::sync::oneshot::Receiver<watch::Receiver<Arc<Snapshot>>>,
    tasks: follow::Tasks,
}

/// Begins to follow the cluster. Fails only if the credentials cannot be read; an API server that does not answer, or
/// refuses, is asked again.
pub async fn start(options: KubeOptions) -> Result<Starting, ConnectError> {
    let session = session::Session::open(options).await?;
    let events = Events::new(Arc::clone(&session), &session.options().node);
    let (tasks, first, health) = follow::start(&session);
    Ok(Starting { health, events, first, tasks })
}

impl Starting {
    /// Waits for the first complete view; `None` if the source ended, which would be a bug.
    pub async fn complete(self) -> Option<Source> {
        let snapshots = self.first.await.ok()?;
        Some(Source { snapshots, health: self.health, _stop: Box::new(self.tasks) })
    }
}

/// The resources that are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kind {
    Service,
    Slice,
    Node,
    Pod,
    Namespace,
    ServiceCidr,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Service, Self::Slice, Self::Node, Self::Pod, Self::Namespace, Self::ServiceCidr];

    /// As in `kind:`.
    fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::Slice => "EndpointSlice",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Namespace => "Namespace",
            Self::ServiceCidr => "ServiceCIDR",
        }
    }

    /// As in paths and in RBAC rules.
    fn resource(self) -> &'static str {
        match self {
            Self::Service => "services",
            Self::Slice => "endpointslices",
            Self::Node => "nodes",
            Self::Pod => "pods",
            Self::Namespace => "namespaces",
            Self::ServiceCidr => "servicecidrs",
        }
    }

    /// Where the API has it.
    fn group(self) -> &'static str {
        match self {
            Self::Service | Self::Node | Self::Pod | Self::Namespace => "/api/v1",
            Self::Slice => "/apis/discovery.k8s.io/v1",
            Self::ServiceCidr => "/apis/networking.k8s.io/v1",
        }
    }

    /// As in [`Problem::kind`](crate::source::Problem::kind).
    fn problem(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Slice => "endpointslice",
            Self::Node => "node",
            Self::Pod => "pod",
            Self::Namespace => "namespace",
            Self::ServiceCidr => "servicecidr",
        }
    }

    /// What is missing while this resource has never been read; `None` if there is no view at all without it.
    fn without(self) -> Option<&'static str> {
        match self {
            Self::Service | Self::Slice => None,
            Self::Node => Some("this node's zone and taints are not known: hints for zones have no effect"),
            Self::Pod => {
                Some("annotations of Pods are not seen, so no Pod opts out, and names of Pods are not verified")
            }
            Self::Namespace => Some("only namespaces with Services are known to DNS"),
            Self::ServiceCidr => Some("only the ranges given with --service-cidr are known to be of Services"),
        }
    }

    /// What holds while this resource cannot be followed after it has been read.
    fn as_last_seen(self) -> &'static str {
        match self {
            Self::Service | Self::Slice => "the last good view stays in force",
            Self::Node => "this node's zone and taints stay as last seen",
            Self::Pod => "Pods stay as last seen: new ones do not opt out, and their names are not verified",
            Self::Namespace => "namespaces stay as last seen: of new ones, DNS knows those with Services",
            Self::ServiceCidr => "the ranges of Services stay as last seen",
        }
    }

    /// Which objects of it: label selector and field selector (IN-1, IN-2, IN-4).
    fn selectors(self, options: &KubeOptions) -> (Option<String>, Option<String>) {
        let some = |text: &str| Some(text.to_owned());
        match self {
            // DNS answers for what other proxies balance, and for headless Services.
            Self::Service | Self::Slice if options.names => (None, None),
            Self::Service => (some("!service.kubernetes.io/service-proxy-name"), some("spec.clusterIP!=None")),
            Self::Slice => (some("!service.kubernetes.io/headless"), None),
            Self::Node => (None, Some(format!("metadata.name={}", options.node))),
            Self::Pod if options.all_pods => (None, None),
            Self::Pod => (None, Some(format!("spec.nodeName={}", options.node))),
            Self::Namespace | Self::ServiceCidr => (None, None),
        }
    }

    /// Whether anything reads it.
    fn is_wanted(self, options: &KubeOptions) -> bool {
        match self {
            Self::Service | Self::Slice => true,
            Self::Node | Self::ServiceCidr => !options.node.is_empty(),
            Self::Pod => options.all_pods || !options.pod_annotations.is_empty(),
            Self::Namespace => options.names,
        }
    }
}

#[cfg(test)]
mod tests;
