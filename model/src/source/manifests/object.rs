//! The declarations of a manifest file: objects in the model's terms, with the extra fields that only this source
//! needs.

use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::allocate::{Claim, Families, FamilyPolicy, Wish};
use super::derive::{Candidate, Selection};
use super::parse::{Fault, KnownKind, Manifest, Parsed};
use crate::endpoint::EndpointSlice;
use crate::key::{Family, ObjectKey};
use crate::node::{Namespace, Node};
use crate::service::{ClusterIps, Service, ServiceKind};
use crate::source::convert::{self, Conversion, Rejection};

/// One object of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Declared {
    /// Line in the file.
    pub(super) line: usize,
    /// Which object.
    pub(super) id: ObjectId,
    /// The object, unless it is unusable or of no interest.
    pub(super) object: Option<Object>,
    /// Why it or a part of it is left out.
    pub(super) notes: Vec<String>,
    /// Why it cannot be read as its kind; then the assembly decides which version is in force.
    pub(super) unreadable: Option<String>,
}

impl Declared {
    /// Why the whole object is unusable, if it is.
    pub(super) fn useless(&self) -> Option<&str> {
        let rejected = || self.object.is_none().then(|| self.notes.last()).flatten();
        self.unreadable.as_ref().or_else(rejected).map(String::as_str)
    }
}

/// Identity of an object among all files.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ObjectId {
    pub(super) kind: ObjectKind,
    /// The namespace is empty for Namespaces and Nodes.
    pub(super) key: ObjectKey,
}

/// Kinds of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum ObjectKind {
    Namespace,
    Service,
    Slice,
    Pod,
    Node,
    /// A document without a known kind.
    Unknown,
}

/// An object, shared so that an unchanged one stays the same allocation in every snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Object {
    Namespace(Arc<Namespace>),
    Service(Arc<Draft>),
    Slice(Arc<EndpointSlice>),
    Pod(Arc<Candidate>),
    Node(Arc<Node>),
}

/// A Service before its addresses are settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Draft {
    /// With the cluster IPs that the manifest gives.
    pub(super) service: Service,
    /// What it wants of the allocator.
    pub(super) claim: Claim,
    /// How endpoints are derived; none without a selector.
    pub(super) selection: Option<Selection>,
}

impl ObjectKind {
    fn of(kind: KnownKind) -> Self {
        match kind {
            KnownKind::Namespace => Self::Namespace,
            KnownKind::Service => Self::Service,
            KnownKind::Slice => Self::Slice,
            KnownKind::Pod => Self::Pod,
            KnownKind::Node => Self::Node,
        }
    }

    /// As in `kind:`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Service => "Service",
            Self::Slice => "EndpointSlice",
            Self::Pod => "Pod",
            Self::Node => "Node",
            Self::Unknown => "document",
        }
    }

    /// As in [`Problem::kind`](crate::source::Problem::kind).
    pub(super) fn problem(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Service => "service",
            Self::Slice => "endpointslice",
            Self::Pod => "pod",
            Self::Node => "node",
            Self::Unknown => "document",
        }
    }
}

impl ObjectId {
    /// `Kind namespace/name`, without what is not there.
    pub(super) fn describe(&self) -> Option<String> {
        let kind = self.kind.name();
        if self.key.name.is_empty() {
            return (self.kind != ObjectKind::Unknown).then(|| kind.to_owned());
        }
        Some(match self.kind {
            ObjectKind::Namespace | ObjectKind::Node => format!("{kind} {}", self.key.name),
            ObjectKind::Service | ObjectKind::Slice | ObjectKind::Pod | ObjectKind::Unknown => {
                format!("{kind} {}", self.key)
            }
        })
    }
}

/// What a parsed document declares.
pub(super) fn declare(parsed: Parsed, cx: &mut Conversion) -> Declared {
    let line = parsed.line;
    let (id, object) = match parsed.manifest {
        Err(Fault::NoObject(reason)) => {
            let id = ObjectId { kind: ObjectKind::Unknown, key: ObjectKey::new("", "") };
            return Declared { line, id, object: None, notes: vec![reason], unreadable: None };
        }
        Err(Fault::Mistyped { kind, metadata, reason }) => {
            let id = id(kind.map_or(ObjectKind::Unknown, ObjectKind::of), &metadata, cx);
            return Declared { line, id, object: None, notes: Vec::new(), unreadable: Some(reason) };
        }
        Ok(manifest) => (identity(&manifest, cx), object(&manifest, cx)),
    };
    let mut notes = cx.take_notes();
    let object = object.unwrap_or_else(|Rejection(reason)| {
        notes.push(reason);
        None
    });
    Declared { line, id, object, notes, unreadable: None }
}

fn identity(manifest: &Manifest, cx: &mut Conversion) -> ObjectId {
    match manifest {
        Manifest::Namespace(object) => id(ObjectKind::Namespace, &object.metadata, cx),
        Manifest::Service(object) => id(ObjectKind::Service, &object.metadata, cx),
        Manifest::Slice(object) => id(ObjectKind::Slice, &object.metadata, cx),
        Manifest::Pod(object) => id(ObjectKind::Pod, &object.metadata, cx),
        Manifest::Node(object) => id(ObjectKind::Node, &object.metadata, cx),
    }
}

fn id(kind: ObjectKind, metadata: &ObjectMeta, cx: &mut Conversion) -> ObjectId {
    let mut key = cx.key(metadata);
    if matches!(kind, ObjectKind::Namespace | ObjectKind::Node) {
        key.namespace = cx.intern("");
    }
    ObjectId { kind, key }
}

fn object(manifest: &Manifest, cx: &mut Conversion) -> Result<Option<Object>, Rejection> {
    Ok(match manifest {
        Manifest::Namespace(object) => Some(Object::Namespace(Arc::new(convert::namespace(object, cx)?))),
        Manifest::Service(object) => Some(Object::Service(Arc::new(draft(object, cx)?))),
        Manifest::Slice(object) => convert::slice(object, cx)?.map(|slice| Object::Slice(Arc::new(slice))),
        Manifest::Pod(object) => Candidate::new(object, cx)?.map(|pod| Object::Pod(Arc::new(pod))),
        Manifest::Node(object) => Some(Object::Node(Arc::new(convert::node(object, cx)?))),
    })
}

fn draft(object: &core::Service, cx: &mut Conversion) -> Result<Draft, Rejection> {
    let service = convert::service(object, cx)?;
    let empty = core::ServiceSpec::default();
    let spec = object.spec.as_ref().unwrap_or(&empty);
    let families = families(spec, cx);
    let claim = Claim { created: service.created, wish: wish(spec, &service, families.clone()) };
    let selection = Selection::new(object, &service, &families, cx);
    Ok(Draft { service, claim, selection })
}

fn wish(spec: &core::ServiceSpec, service: &Service, families: Families) -> Wish {
    match (&service.kind, &service.cluster_ips) {
        (ServiceKind::ExternalName(_), _) | (_, ClusterIps::Headless) => Wish::Nothing,
        (_, ClusterIps::Assigned(addresses)) => Wish::Given(addresses.clone()),
        (_, ClusterIps::Unassigned) => {
            let listed = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
            // A mistyped address must not silently become a different one.
            if listed.into_iter().any(|ip| !ip.is_empty()) { Wish::Nothing } else { Wish::Allocate(families) }
        }
    }
}

fn families(spec: &core::ServiceSpec, cx: &mut Conversion) -> Families {
    let mut listed = Vec::new();
    for name in spec.ip_families.iter().flatten() {
        match name.as_str() {
            "IPv4" => listed.push(Family::V4),
            "IPv6" => listed.push(Family::V6),
            other => cx.note(format!("ipFamilies has {other:?}, which is neither IPv4 nor IPv6, so it is left out")),
        }
    }
    let policy = match spec.ip_family_policy.as_deref() {
        None | Some("SingleStack") => FamilyPolicy::Single,
        Some("PreferDualStack") => FamilyPolicy::PreferDual,
        Some("RequireDualStack") => FamilyPolicy::RequireDual,
        Some(other) => {
            cx.note(format!("ipFamilyPolicy {other:?} is not known, so SingleStack counts"));
            FamilyPolicy::Single
        }
    };
    Families { listed, policy }
}
