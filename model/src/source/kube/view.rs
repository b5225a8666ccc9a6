//! Builds the snapshot from the messages of all reflectors: pure, one message at a time.
//!
//! While a resource is listed again its objects stay in the view; the end of the list removes those that were not in
//! it. An object that cannot be read keeps its last good version; one that can be read but is invalid is removed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::failure::Cause;
use super::reflector::{Message, News};
use super::wire::ApiObject;
use super::{Kind, KubeOptions};
use crate::key::{ObjectKey, SliceKey};
use crate::node::Namespace;
use crate::snapshot::Snapshot;
use crate::source::Problem;
use crate::source::convert::{self, Conversion, Rejection};

/// The view and what it still lacks.
#[derive(Debug)]
pub(super) struct View {
    /// The name of this node; empty if none is followed.
    node: Arc<str>,
    snapshot: Snapshot,
    conversion: Conversion,
    /// The resources that are followed.
    progress: BTreeMap<Kind, Progress>,
    /// Which Service a slice belonged to when it was last seen.
    owners: HashMap<ObjectKey, ObjectKey>,
    /// What is wrong with an object, by name.
    notes: BTreeMap<(Kind, ObjectKey), Vec<String>>,
    /// Something that [`View::problems`] shows has changed.
    reported: bool,
    /// As in the options.
    until_known: &'static str,
}

/// How far one resource is.
#[derive(Debug, Default)]
struct Progress {
    /// Listed at least once, or not to be waited for.
    complete: bool,
    /// Listed at least once.
    listed: bool,
    /// What the list under way has shown so far.
    listing: Option<HashSet<ObjectKey>>,
    /// Why it cannot be followed.
    failing: Option<Failing>,
}

/// Why a resource cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failing {
    pub(super) cause: Cause,
    pub(super) reason: String,
}

impl View {
    pub(super) fn new(options: &KubeOptions) -> Self {
        let wanted = Kind::ALL.into_iter().filter(|kind| kind.is_wanted(options));
        Self {
            node: Arc::from(options.node.as_str()),
            snapshot: Snapshot::default(),
            conversion: Conversion::keeping(&options.pod_annotations),
            progress: wanted.map(|kind| (kind, Progress::default())).collect(),
            owners: HashMap::new(),
            notes: BTreeMap::new(),
            reported: true,
            until_known: options.until_known,
        }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        self.snapshot.clone()
    }

    /// Everything that is waited for has been listed.
    pub(super) fn is_complete(&self) -> bool {
        self.progress.values().all(|progress| progress.complete)
    }

    /// Stops waiting for resources that the view can do without (SY-13).
    pub(super) fn stop_waiting(&mut self) {
        for (kind, progress) in &mut self.progress {
            progress.complete |= kind.without().is_some();
        }
    }

    /// Whether [`View::unreachable`] or [`View::problems`] may have changed since the last call.
    pub(super) fn take_reported(&mut self) -> bool {
        std::mem::take(&mut self.reported)
    }

    /// Why the cluster cannot be followed, if it cannot: a resource that is needed fails, or the server is away for
    /// any.
    pub(super) fn unreachable(&self) -> Option<Failing> {
        let needed = self.progress.iter().filter(|(kind, _)| kind.without().is_none());
        let failing =
            needed.chain(&self.progress).filter_map(|(kind, progress)| Some((kind, progress.failing.as_ref()?)));
        let mut grave = failing.filter(|(kind, failing)| kind.without().is_none() || failing.cause.is_of_server());
        let Failing { cause, reason } = grave.next()?.1;
        let reason = match (self.is_complete(), self.until_known) {
            (true, _) => format!("{reason}; the last good view stays in force"),
            (false, "") => format!("{reason}; the cluster is not known yet"),
            (false, meanwhile) => format!("{reason}; the cluster is not known yet: {meanwhile}"),
        };
        Some(Failing { cause: *cause, reason })
    }

    /// What is wrong with this node's name, if the cluster has no such Node.
    pub(super) fn unknown_node(&self) -> Option<String> {
        let listed = self.progress.get(&Kind::Node)?.listed;
        let key = ObjectKey { namespace: Arc::from(""), name: Arc::clone(&self.node) };
        let known = self.snapshot.nodes.contains_key(&self.node) || self.notes.contains_key(&(Kind::Node, key));
        (listed && !known).then(|| {
            format!(
                "the cluster has no Node {:?}: no endpoint counts as local, and this node's zone, taints and addresses \
                 are not known; set --hostname-override to the name that kubectl get nodes shows",
                self.node
            )
        })
    }

    /// What is ignored or missing right now, in a fixed order.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let problem = |kind: Kind, object: Option<String>, reason: String| Problem {
            kind: kind.problem(),
            file: None,
            line: None,
            object,
            reason,
        };
        let missing = self.progress.iter().filter_map(|(kind, progress)| {
            let (without, failing) = (kind.without()?, progress.failing.as_ref()?);
            // One outage is told of once, and not for each resource again.
            let reason = (!failing.cause.is_of_server()).then_some(&failing.reason)?;
            let meanwhile = if progress.listed { kind.as_last_seen() } else { without };
            Some(problem(*kind, None, format!("{reason}; meanwhile {meanwhile}")))
        });
        let ignored = self.notes.iter().flat_map(|((kind, key), notes)| {
            let described = describe(*kind, key);
            notes.iter().map(move |note| problem(*kind, Some(described.clone()), note.clone()))
        });
        let mut problems: Vec<Problem> = missing.chain(ignored).collect();
        problems.sort();
        problems
    }

    pub(super) fn take(&mut self, message: Message) {
        let Message { kind, news } = message;
        match news {
            News::Listing => {
                if let Some(progress) = self.progress.get_mut(&kind) {
                    progress.listing = Some(HashSet::new());
                }
            }
            News::Present(key, object) => {
                if let Some(listing) = self.progress.get_mut(&kind).and_then(|progress| progress.listing.as_mut()) {
                    listing.insert(key.clone());
                }
                self.present(kind, key, object);
            }
            News::Gone(key) => self.forget(kind, &key),
            News::Listed => {
                self.listed(kind);
                self.recovered(kind);
            }
            News::Watching => self.recovered(kind),
            News::Failing { cause, reason, denied } => self.failing(kind, Failing { cause, reason }, denied),
        }
    }

    fn failing(&mut self, kind: Kind, failing: Failing, denied: bool) {
        let Some(progress) = self.progress.get_mut(&kind) else { return };
        progress.complete |= denied && kind.without().is_some();
        self.reported |= progress.failing.as_ref() != Some(&failing);
        progress.failing = Some(failing);
    }

    fn recovered(&mut self, kind: Kind) {
        if let Some(progress) = self.progress.get_mut(&kind) {
            self.reported |= progress.failing.take().is_some();
        }
    }

    /// Removes the objects that were not in the list.
    fn listed(&mut self, kind: Kind) {
        let Some(progress) = self.progress.get_mut(&kind) else { return };
        progress.complete = true;
        progress.listed = true;
        self.reported |= kind == Kind::Node;
        let Some(seen) = progress.listing.take() else { return };
        for key in self.known(kind).into_iter().filter(|key| !seen.contains(key)) {
            self.forget(kind, &key);
        }
    }

    /// Every object of a kind that is in the view or has a note.
    fn known(&self, kind: Kind) -> Vec<ObjectKey> {
        let cluster = |name: &Arc<str>| ObjectKey { namespace: Arc::from(""), name: Arc::clone(name) };
        let mut known: Vec<ObjectKey> = match kind {
            Kind::Service => self.snapshot.services.keys().cloned().collect(),
            Kind::Slice => self.owners.keys().cloned().collect(),
            Kind::Pod => self.snapshot.pods.keys().cloned().collect(),
            Kind::Node => self.snapshot.nodes.keys().map(cluster).collect(),
            Kind::Namespace => self.snapshot.namespaces.keys().map(cluster).collect(),
            Kind::ServiceCidr => self.snapshot.service_cidrs.keys().map(cluster).collect(),
        };
        known.extend(self.notes.keys().filter(|(noted, _)| *noted == kind).map(|(_, key)| key.clone()));
        known
    }

    fn present(&mut self, kind: Kind, key: ObjectKey, object: Result<ApiObject, String>) {
        self.reported |= kind == Kind::Node;
        let outcome = match object {
            Ok(object) => self.admit(&key, &object).map_err(|Rejection(reason)| {
                self.remove(kind, &key);
                reason
            }),
            Err(reason) => Err(format!("it cannot be read ({reason}), so its last good version stays in force")),
        };
        let mut notes = self.conversion.take_notes();
        notes.extend(outcome.err());
        self.note(kind, key, notes);
    }

    fn forget(&mut self, kind: Kind, key: &ObjectKey) {
        self.reported |= kind == Kind::Node;
        self.remove(kind, key);
        self.reported |= self.notes.remove(&(kind, key.clone())).is_some();
    }

    fn note(&mut self, kind: Kind, key: ObjectKey, notes: Vec<String>) {
        if notes.is_empty() {
            if !self.notes.is_empty() {
                self.reported |= self.notes.remove(&(kind, key)).is_some();
            }
        } else {
            let before = self.notes.insert((kind, key), notes.clone());
            self.reported |= before != Some(notes);
        }
    }

    /// Inserts an object. One that is equal to the known one changes nothing (IN-7, IN-13).
    fn admit(&mut self, key: &ObjectKey, object: &ApiObject) -> Result<(), Rejection> {
        let cx = &mut self.conversion;
        let snapshot = &mut self.snapshot;
        match object {
            ApiObject::Service(object) => {
                let service = convert::service(object, cx)?;
                self.infer_namespace(&service.key.namespace);
                place(&mut self.snapshot.services, service.key.clone(), service);
            }
            ApiObject::Slice(object) => match convert::slice(object, cx)? {
                Some(slice) => {
                    // Its label may name another Service than before, and so its key changes.
                    let owner = self.owners.insert(slice_name(&slice.key), slice.key.service.clone());
                    if let Some(service) = owner.filter(|owner| *owner != slice.key.service) {
                        snapshot.slices.remove(&SliceKey { service, slice: Arc::clone(&slice.key.slice) });
                    }
                    place(&mut snapshot.slices, slice.key.clone(), slice);
                }
                None => self.remove(Kind::Slice, key),
            },
            ApiObject::Node(object) => {
                let node = convert::node(object, cx)?;
                place(&mut snapshot.nodes, Arc::clone(&node.name), node);
            }
            ApiObject::Pod(object) => match convert::pod(object, cx)? {
                // A known Pod stays as it was until it is deleted.
                Some(pod) if convert::is_leaving(object, &pod) => {}
                Some(pod) => place(&mut snapshot.pods, pod.key.clone(), pod),
                None => self.remove(Kind::Pod, key),
            },
            ApiObject::Namespace(object) => {
                let namespace = convert::namespace(object, cx)?;
                place(&mut snapshot.namespaces, Arc::clone(&namespace.name), namespace);
            }
            ApiObject::ServiceCidr(object) => {
                let range = convert::service_cidr(object, cx)?;
                place(&mut snapshot.service_cidrs, Arc::clone(&range.name), range);
            }
        }
        Ok(())
    }

    /// Until Namespaces have been listed (kube-proxy's role does not allow that), a namespace with a Service exists.
    fn infer_namespace(&mut self, name: &Arc<str>) {
        let listed = self.progress.get(&Kind::Namespace).is_some_and(|p| p.complete && p.failing.is_none());
        if !listed && !self.snapshot.namespaces.contains_key(name) {
            self.snapshot.namespaces.insert(Arc::clone(name), Arc::new(Namespace { name: Arc::clone(name) }));
        }
    }

    fn remove(&mut self, kind: Kind, key: &ObjectKey) {
        let snapshot = &mut self.snapshot;
        match kind {
            Kind::Service => drop(snapshot.services.remove(key)),
            Kind::Slice => {
                if let Some(service) = self.owners.remove(key) {
                    snapshot.slices.remove(&SliceKey { service, slice: Arc::clone(&key.name) });
                }
            }
            Kind::Node => drop(snapshot.nodes.remove(&key.name)),
            Kind::Pod => drop(snapshot.pods.remove(key)),
            Kind::Namespace => drop(snapshot.namespaces.remove(&key.name)),
            Kind::ServiceCidr => drop(snapshot.service_cidrs.remove(&key.name)),
        }
    }
}

fn slice_name(key: &SliceKey) -> ObjectKey {
    ObjectKey { namespace: Arc::clone(&key.service.namespace), name: Arc::clone(&key.slice) }
}

fn place<K: Ord + Clone, V: PartialEq>(map: &mut imbl::OrdMap<K, Arc<V>>, key: K, value: V) {
    if map.get(&key).is_none_or(|known| **known != value) {
        map.insert(key, Arc::new(value));
    }
}

fn describe(kind: Kind, key: &ObjectKey) -> String {
    let name = kind.name();
    if key.namespace.is_empty() { format!("{name} {}", key.name) } else { format!("{name} {key}") }
}
