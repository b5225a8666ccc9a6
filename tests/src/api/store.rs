//! The objects, their versions, and the history from which watches are served.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::Resource;
use super::selector::Selector;

/// Namespace and name; the namespace of Nodes and the like is empty.
pub(super) type Name = (String, String);

/// One change of one object.
#[derive(Clone, Debug)]
struct Change {
    version: u64,
    resource: Resource,
    before: Option<Arc<Value>>,
    after: Option<Arc<Value>>,
}

/// All state of the server.
#[derive(Debug)]
pub(super) struct Store {
    version: u64,
    objects: BTreeMap<(Resource, Name), Arc<Value>>,
    history: Vec<Change>,
    /// Changes up to this version are forgotten.
    compacted: u64,
    created: u64,
    /// What is left of lists that are read page by page, by token.
    pages: BTreeMap<String, (u64, Vec<Arc<Value>>)>,
}

/// A part of a list.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) version: u64,
    pub(super) items: Vec<Arc<Value>>,
    pub(super) token: Option<String>,
    pub(super) remaining: usize,
}

/// The version that was asked for is no longer known.
#[derive(Debug)]
pub(super) struct Gone;

impl Default for Store {
    fn default() -> Self {
        // Not from 0: that has a meaning of its own in requests.
        Self {
            version: 100,
            objects: BTreeMap::new(),
            history: Vec::new(),
            compacted: 100,
            created: 0,
            pages: BTreeMap::new(),
        }
    }
}

impl Store {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn get(&self, resource: Resource, name: &Name) -> Option<Arc<Value>> {
        self.objects.get(&(resource, name.clone())).cloned()
    }

    pub(super) fn names(&self, resource: Resource) -> Vec<Name> {
        self.objects.keys().filter(|(of, _)| *of == resource).map(|(_, name)| name.clone()).collect()
    }

    /// Stores an object as a client would: metadata that only a server gives is added. Equal ones change nothing.
    pub(super) fn apply(&mut self, resource: Resource, mut object: Value) -> anyhow::Result<bool> {
        let name = name_of(resource, &object).context("the object has no name")?;
        let before = self.get(resource, &name);
        let metadata = object.get_mut("metadata").and_then(Value::as_object_mut).context("no metadata")?;
        if resource.is_namespaced() {
            metadata.insert("namespace".into(), json!(name.0));
        }
        for (field, fresh) in [
            ("uid", json!(format!("00000000-0000-0000-0000-{:012x}", self.created))),
            ("creationTimestamp", json!("2026-01-01T00:00:00Z")),
        ] {
            let kept = before.as_ref().and_then(|before| before.pointer(&format!("/metadata/{field}")).cloned());
            metadata.entry(field).or_insert_with(|| kept.unwrap_or(fresh));
        }
        if let Some(before) = &before {
            metadata.insert(
                "resourceVersion".into(),
                before.pointer("/metadata/resourceVersion").cloned().unwrap_or_default(),
            );
            if **before == object {
                return Ok(false);
            }
        }
        self.created += u64::from(before.is_none());
        self.put(resource, name, object);
        Ok(true)
    }

    /// Stores an object as it is, but for its version.
    pub(super) fn put(&mut self, resource: Resource, name: Name, mut object: Value) {
        self.version += 1;
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("resourceVersion".into(), json!(self.version.to_string()));
        }
        let after = Arc::new(object);
        let before = self.objects.insert((resource, name), Arc::clone(&after));
        self.history.push(Change { version: self.version, resource, before, after: Some(after) });
    }

    pub(super) fn delete(&mut self, resource: Resource, name: &Name) -> bool {
        let Some(before) = self.objects.remove(&(resource, name.clone())) else { return false };
        self.version += 1;
        self.history.push(Change { version: self.version, resource, before: Some(before), after: None });
        true
    }

    pub(super) fn compact(&mut self) {
        self.compacted = self.version;
        self.history.clear();
        self.pages.clear();
    }

    /// The first page of a list, or the next.
    pub(super) fn list(
        &mut self,
        resource: Resource,
        namespace: &str,
        selector: &Selector,
        limit: usize,
        token: &str,
    ) -> Result<Page, Gone> {
        let (version, mut items) = if token.is_empty() {
            (self.version, self.matching(resource, namespace, selector))
        } else {
            self.pages.remove(token).ok_or(Gone)?
        };
        let rest = if limit == 0 || items.len() <= limit { Vec::new() } else { items.split_off(limit) };
        let remaining = rest.len();
        let token =
            (remaining > 0).then(|| format!("{}-v{version}-{remaining}-{}", resource.plural(), self.pages.len()));
        if let Some(token) = &token {
            self.pages.insert(token.clone(), (version, rest));
        }
        Ok(Page { version, items, token, remaining })
    }

    /// The objects of a list as they were at an earlier version, as far as history goes back.
    pub(super) fn earlier(&self, resource: Resource, selector: &Selector) -> Page {
        let mut objects = self.objects.clone();
        for change in self.history.iter().rev() {
            let object = change.before.as_ref().or(change.after.as_ref());
            let Some(name) = object.and_then(|object| name_of(change.resource, object)) else { continue };
            match &change.before {
                Some(before) => drop(objects.insert((change.resource, name), Arc::clone(before))),
                None => drop(objects.remove(&(change.resource, name))),
            }
        }
        let items = objects.iter().filter(|((of, _), object)| *of == resource && selector.matches(object));
        let items = items.map(|(_, object)| Arc::clone(object)).collect();
        Page { version: self.compacted, items, token: None, remaining: 0 }
    }

    fn matching(&self, resource: Resource, namespace: &str, selector: &Selector) -> Vec<Arc<Value>> {
        let from = (resource, (namespace.to_owned(), String::new()));
        let here = self
            .objects
            .range(from..)
            .take_while(|((of, name), _)| *of == resource && (namespace.is_empty() || name.0 == namespace));
        here.filter(|(_, object)| selector.matches(object)).map(|(_, object)| Arc::clone(object)).collect()
    }

    /// What a watch that has seen everything up to `version` must get: lines, and the version they lead to.
    pub(super) fn events_after(
        &self,
        version: u64,
        resource: Resource,
        namespace: &str,
        selector: &Selector,
    ) -> Result<Vec<(u64, Value)>, Gone> {
        if version < self.compacted {
            return Err(Gone);
        }
        let first = self.history.partition_point(|change| change.version <= version);
        let new = self.history.iter().skip(first).filter(|change| change.resource == resource);
        let selects = |object: &Option<Arc<Value>>| {
            object.as_deref().filter(|object| selector.matches(object) && is_in(namespace, object)).is_some()
        };
        Ok(new
            .filter_map(|change| {
                let kind = match (selects(&change.before), selects(&change.after)) {
                    (false, true) => "ADDED",
                    (true, true) => "MODIFIED",
                    // Deleted, or no longer selected (IN-3).
                    (true, false) => "DELETED",
                    (false, false) => return None,
                };
                let mut object = Value::clone(change.after.as_ref().or(change.before.as_ref())?);
                if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.insert("resourceVersion".into(), json!(change.version.to_string()));
                }
                Some((change.version, json!({"type": kind, "object": object})))
            })
            .collect())
    }
}

fn is_in(namespace: &str, object: &Value) -> bool {
    namespace.is_empty() || object.pointer("/metadata/namespace").and_then(Value::as_str) == Some(namespace)
}

/// The name under which an object is stored.
pub(super) fn name_of(resource: Resource, object: &Value) -> Option<Name> {
    let text = |field: &str| object.pointer(&format!("/metadata/{field}")).and_then(Value::as_str);
    let name = text("name").filter(|name| !name.is_empty())?.to_owned();
    let namespace =
        if resource.is_namespaced() { text("namespace").unwrap_or("default").to_owned() } else { String::new() };
    Some((namespace, name))
}
