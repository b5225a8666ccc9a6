//! Kubernetes objects into the model: pure, one object at a time, and lenient where one bad part need not cost the
//! rest.
//!
//! An object that cannot be used at all is a [`Rejection`]; a part that is left out is a note of the [`Conversion`].
//! Whether an API server has seen an object before matters to its addresses alone.

mod address;
mod names;
mod node;
mod service;
mod slice;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use address::ordinary_address;
pub(crate) use address::{network, usable_address};
pub(crate) use names::port_name_fault;
pub(crate) use node::{is_leaving, namespace, node, pod, service_cidr};
pub(crate) use service::{port_number, protocol, service};
pub(crate) use slice::slice;

use crate::key::ObjectKey;

/// Why an object is not loaded at all; lower case, no full stop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Rejection(pub(crate) String);

/// What outlives the conversion of one object: shared strings, and notes on the parts that were left out.
#[derive(Debug, Default)]
pub(crate) struct Conversion {
    names: HashSet<Arc<str>>,
    /// Length of `names` at which unused ones are looked for again.
    sweep_at: usize,
    notes: Vec<String>,
    /// Keys of the Pod annotations that are kept.
    pod_annotations: Box<[Arc<str>]>,
    origin: Origin,
}

/// Who has looked at the objects before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Origin {
    /// An API server. What it admits holds, as for kube-proxy, also what only an older one admitted.
    #[default]
    ApiServer,
    /// Nobody: what an API server would refuse is left out here.
    Folder,
}

impl Conversion {
    /// Keeps these annotations of Pods, and no others: most are long and not read here.
    pub(crate) fn keeping(pod_annotations: &[String]) -> Self {
        let keys: BTreeSet<&str> = pod_annotations.iter().map(String::as_str).collect();
        Self { pod_annotations: keys.into_iter().map(Arc::from).collect(), ..Self::default() }
    }

    /// Of objects that come from there.
    pub(crate) fn of(self, origin: Origin) -> Self {
        Self { origin, ..self }
    }

    /// An address that is an external IP, or an endpoint or becomes one, or why it is none: `"x" is not an IP address`.
    fn dialled_address(&self, text: &str) -> Result<IpAddr, String> {
        match self.origin {
            Origin::ApiServer => usable_address(text),
            Origin::Folder => ordinary_address(text),
        }
    }

    /// One shared copy of a string that many objects repeat (node, zone, port and service names).
    pub(crate) fn intern(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.names.get(text) {
            return Arc::clone(known);
        }
        if self.names.len() >= self.sweep_at {
            self.names.retain(|name| Arc::strong_count(name) > 1);
            self.sweep_at = (self.names.len() * 2).max(1024);
        }
        let name: Arc<str> = Arc::from(text);
        self.names.insert(Arc::clone(&name));
        name
    }

    /// `text` shared, or nothing if it is empty.
    pub(crate) fn intern_some(&mut self, text: Option<&str>) -> Option<Arc<str>> {
        text.filter(|text| !text.is_empty()).map(|text| self.intern(text))
    }

    /// Reports a part of the object at hand that is left out.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// The notes since the last call.
    pub(crate) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Those of a Pod's annotations that are kept, in order of their keys.
    fn wanted_annotations(&mut self, given: Option<&BTreeMap<String, String>>) -> Box<[(Arc<str>, Arc<str>)]> {
        let Some(given) = given else { return Box::default() };
        let keys = self.pod_annotations.clone();
        let kept = keys.into_iter().filter_map(|key| Some((given.get(&*key)?, key)));
        kept.map(|(value, key)| (key, self.intern(value))).collect()
    }

    /// The hostname of an endpoint, unless it is none: then its address names it.
    pub(crate) fn hostname(&mut self, given: Option<&str>) -> Option<Arc<str>> {
        let name = given.filter(|name| !name.is_empty())?;
        if let Some(fault) = names::label_fault(name) {
            self.note(format!("hostname {name:?} {fault}, so it is left out"));
            return None;
        }
        Some(Arc::from(name))
    }

    /// The key of a namespaced object; no namespace means `default`.
    pub(crate) fn key(&mut self, metadata: &ObjectMeta) -> ObjectKey {
        let namespace = metadata.namespace.as_deref().filter(|name| !name.is_empty()).unwrap_or("default");
        let name = metadata.name.as_deref().unwrap_or_default();
        ObjectKey { namespace: self.intern(namespace), name: self.intern(name) }
    }

    /// The key, if both names are ones that Kubernetes would accept.
    fn checked_key(&mut self, metadata: &ObjectMeta, name_rule: names::Rule) -> Result<ObjectKey, Rejection> {
        let key = self.key(metadata);
        names::check("the name", &key.name, name_rule)?;
        names::check("the namespace", &key.namespace, names::Rule::Label)?;
        Ok(key)
    }
}

#[cfg(test)]
mod tests;
