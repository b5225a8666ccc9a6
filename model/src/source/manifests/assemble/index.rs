//! Which Services select a Pod and which Pods a Service selects, without looking at all of either.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::super::derive::{Candidate, Label, Selection};
use super::super::object::Draft;
use crate::key::ObjectKey;

/// A label in a namespace.
type NamespacedLabel = (Arc<str>, Label);

/// Pods and selectors by label.
#[derive(Debug, Default)]
pub(super) struct PodIndex {
    pods: BTreeMap<ObjectKey, Arc<Candidate>>,
    /// Each Pod under each of its labels.
    by_label: HashMap<NamespacedLabel, BTreeSet<Arc<str>>>,
    by_node: HashMap<Arc<str>, BTreeSet<ObjectKey>>,
    /// Each Service with a selector under one label of it, the first.
    services: HashMap<NamespacedLabel, BTreeMap<ObjectKey, Arc<Draft>>>,
}

impl PodIndex {
    pub(super) fn insert(&mut self, candidate: Arc<Candidate>) {
        let key = &candidate.pod.key;
        for label in &candidate.labels {
            self.by_label.entry(place(key, label)).or_default().insert(Arc::clone(&key.name));
        }
        if let Some(node) = &candidate.pod.node {
            self.by_node.entry(Arc::clone(node)).or_default().insert(key.clone());
        }
        self.pods.insert(key.clone(), candidate);
    }

    pub(super) fn remove(&mut self, candidate: &Candidate) {
        let key = &candidate.pod.key;
        for label in &candidate.labels {
            let place = place(key, label);
            if let Some(names) = self.by_label.get_mut(&place) {
                names.remove(&key.name);
                if names.is_empty() {
                    self.by_label.remove(&place);
                }
            }
        }
        if let Some(node) = &candidate.pod.node
            && let Some(keys) = self.by_node.get_mut(node)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.by_node.remove(node);
            }
        }
        self.pods.remove(key);
    }

    pub(super) fn add_selection(&mut self, draft: &Arc<Draft>) {
        if let Some(place) = selection_place(draft) {
            self.services.entry(place).or_default().insert(draft.service.key.clone(), Arc::clone(draft));
        }
    }

    pub(super) fn remove_selection(&mut self, draft: &Draft) {
        let Some(place) = selection_place(draft) else { return };
        if let Some(services) = self.services.get_mut(&place) {
            services.remove(&draft.service.key);
            if services.is_empty() {
                self.services.remove(&place);
            }
        }
    }

    /// The Services that select this Pod.
    pub(super) fn selecting(&self, candidate: &Candidate) -> Vec<ObjectKey> {
        let near = candidate.labels.iter().filter_map(|label| self.services.get(&place(&candidate.pod.key, label)));
        let selects = |draft: &Draft| draft.selection.as_ref().is_some_and(|selection| selection.selects(candidate));
        near.flatten().filter(|(_, draft)| selects(draft)).map(|(key, _)| key.clone()).collect()
    }

    /// The Services that select a Pod on this Node.
    pub(super) fn selecting_on(&self, node: &str) -> Vec<ObjectKey> {
        let pods = self.by_node.get(node).into_iter().flatten().filter_map(|key| self.pods.get(key));
        pods.flat_map(|pod| self.selecting(pod)).collect()
    }

    /// The Pods worth asking, in order of their names: those with the rarest label of the selector.
    pub(super) fn candidates<'a>(
        &'a self,
        selection: &Selection,
        service: &ObjectKey,
    ) -> impl Iterator<Item = &'a Candidate> + use<'a> {
        let places = selection.selector.iter().map(|label| self.by_label.get(&place(service, label)));
        // A label that no Pod has settles it: none.
        let rarest = places.min_by_key(|names| names.map_or(0, BTreeSet::len)).flatten();
        let namespace = Arc::clone(&service.namespace);
        rarest.into_iter().flatten().filter_map(move |name| {
            let key = ObjectKey { namespace: Arc::clone(&namespace), name: Arc::clone(name) };
            self.pods.get(&key).map(|pod| &**pod)
        })
    }
}

fn place(key: &ObjectKey, label: &Label) -> NamespacedLabel {
    (Arc::clone(&key.namespace), label.clone())
}

fn selection_place(draft: &Draft) -> Option<NamespacedLabel> {
    let label = draft.selection.as_ref()?.selector.first()?;
    Some(place(&draft.service.key, label))
}
