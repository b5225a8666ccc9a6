//! Joins the objects of all files into a snapshot, file by file, at a cost in proportion to the change.
//!
//! Files are replaced whole; only objects that really differ go further. A changed object marks what depends on it
//! (a Pod marks the Services that select it, a Service its addresses), and [`Assembly::settle`] redoes just that.
//! The result is always the same as that of a fresh assembly of the same files, but for what only a former version
//! knew: objects that cannot be read any more, and Pods that were there before their deletion began.

mod index;
mod report;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;

use super::ManifestsOptions;
use super::allocate::{self, Assigned, Claim, Wish};
use super::derive;
use super::object::{Declared, Draft, Object, ObjectId, ObjectKind};
use super::parse::ParseError;
use crate::endpoint::EndpointSlice;
use crate::key::{ObjectKey, SliceKey};
use crate::node::Namespace;
use crate::service::{ClusterIps, Service};
use crate::snapshot::Snapshot;
use index::PodIndex;

/// All files' objects and the view they amount to.
#[derive(Debug)]
pub(super) struct Assembly {
    dir: PathBuf,
    networks: Vec<IpNet>,
    reserved: Vec<std::net::IpAddr>,
    files: BTreeMap<Arc<str>, File>,
    /// The declarations of an object, in order of file name and line; the first one counts.
    declarers: HashMap<ObjectId, Vec<Declarer>>,
    /// Objects declared more than once.
    contested: BTreeSet<ObjectId>,
    drafts: BTreeMap<ObjectKey, Arc<Draft>>,
    claims: BTreeMap<ObjectKey, Claim>,
    assigned: HashMap<ObjectKey, Assigned>,
    /// Names of the slices that files declare for a Service.
    own_slices: HashMap<ObjectKey, BTreeSet<Arc<str>>>,
    derived: HashMap<ObjectKey, Vec<Arc<str>>>,
    /// Services that do not exist although slices name them.
    missing: BTreeSet<ObjectKey>,
    /// Services that did not get every address they want.
    deprived: BTreeSet<ObjectKey>,
    /// Files with something to report.
    faulty: BTreeSet<Arc<str>>,
    /// How many namespaced objects are in a namespace; one that is used exists.
    uses: HashMap<Arc<str>, usize>,
    pods: PodIndex,
    dirty: Dirty,
    snapshot: Snapshot,
}

/// One file: what of it is in force, and what is wrong with it.
#[derive(Debug, Default)]
struct File {
    declared: Vec<Declared>,
    /// The present text does not parse; `declared` is of an earlier one.
    error: Option<ParseError>,
}

#[derive(Clone, Debug)]
struct Declarer {
    file: Arc<str>,
    line: usize,
    object: Object,
}

/// The parts of the view that must be computed again.
#[derive(Debug, Default)]
struct Dirty {
    addresses: bool,
    services: BTreeSet<ObjectKey>,
    endpoints: BTreeSet<ObjectKey>,
}

impl Assembly {
    pub(super) fn new(options: &ManifestsOptions) -> Self {
        Self {
            dir: options.dir.clone(),
            networks: options.service_cidrs.clone(),
            reserved: options.reserved.clone(),
            files: BTreeMap::new(),
            declarers: HashMap::new(),
            contested: BTreeSet::new(),
            drafts: BTreeMap::new(),
            claims: BTreeMap::new(),
            assigned: HashMap::new(),
            own_slices: HashMap::new(),
            derived: HashMap::new(),
            missing: BTreeSet::new(),
            deprived: BTreeSet::new(),
            faulty: BTreeSet::new(),
            uses: HashMap::new(),
            pods: PodIndex::default(),
            dirty: Dirty::default(),
            snapshot: Snapshot::default(),
        }
    }

    /// The file now declares this.
    pub(super) fn replace(&mut self, name: &Arc<str>, mut declared: Vec<Declared>) {
        let file = self.files.entry(Arc::clone(name)).or_default();
        file.error = None;
        let before = std::mem::take(&mut file.declared);
        keep_last_good(&before, &mut declared);
        self.faulty.remove(name);
        if declared.iter().any(|declared| !declared.notes.is_empty()) {
            self.faulty.insert(Arc::clone(name));
        }
        self.redeclare(name, &before, &declared);
        if let Some(file) = self.files.get_mut(name) {
            file.declared = declared;
        }
    }

    /// The file cannot be read; what it declared before stays in force.
    pub(super) fn fail(&mut self, name: &Arc<str>, error: ParseError) {
        self.files.entry(Arc::clone(name)).or_default().error = Some(error);
        self.faulty.insert(Arc::clone(name));
    }

    /// Whether objects of the file are in force.
    pub(super) fn has(&self, name: &str) -> bool {
        self.files.get(name).is_some_and(|file| file.declared.iter().any(|declared| declared.object.is_some()))
    }

    /// The file is gone, so its objects are removed.
    pub(super) fn remove(&mut self, name: &Arc<str>) {
        self.faulty.remove(name);
        if let Some(file) = self.files.remove(name) {
            self.redeclare(name, &file.declared, &[]);
        }
    }

    /// Redoes what depends on the changes since the last call, and returns the view.
    pub(super) fn settle(&mut self) -> Snapshot {
        if std::mem::take(&mut self.dirty.addresses) {
            let assigned = allocate::assign(&self.claims, &self.networks, &self.reserved);
            let moved = assigned.iter().filter(|(key, now)| self.assigned.get(*key) != Some(*now));
            self.dirty.services.extend(moved.map(|(key, _)| key.clone()));
            self.assigned = assigned;
            let deprived = self.assigned.iter().filter(|(_, assigned)| !assigned.complaints.is_empty());
            self.deprived = deprived.map(|(key, _)| key.clone()).collect();
        }
        for key in std::mem::take(&mut self.dirty.services) {
            self.settle_service(&key);
        }
        for key in std::mem::take(&mut self.dirty.endpoints) {
            self.settle_endpoints(&key);
        }
        self.snapshot.clone()
    }

    fn redeclare(&mut self, name: &Arc<str>, before: &[Declared], after: &[Declared]) {
        let present = |declared: &Declared| declared.object.is_some().then(|| declared.id.clone());
        let touched: HashSet<ObjectId> = before.iter().chain(after).filter_map(present).collect();
        let mut now: HashMap<&ObjectId, Vec<Declarer>> = HashMap::new();
        for declared in after {
            if let Some(object) = &declared.object {
                let declarer = Declarer { file: Arc::clone(name), line: declared.line, object: object.clone() };
                now.entry(&declared.id).or_default().push(declarer);
            }
        }
        for id in touched {
            let of_this_file = now.remove(&id).unwrap_or_default();
            self.redeclare_object(name, id, of_this_file);
        }
    }

    fn redeclare_object(&mut self, name: &Arc<str>, id: ObjectId, of_this_file: Vec<Declarer>) {
        let mut declarers = self.declarers.remove(&id).unwrap_or_default();
        let before = declarers.first().map(|first| first.object.clone());
        declarers.retain(|declarer| declarer.file != *name);
        declarers.extend(of_this_file);
        declarers.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        if let (Some(before), Some(first)) = (&before, declarers.first_mut())
            && first.object == *before
        {
            // Equal: the one that the snapshot already holds stays, so that readers see no change.
            first.object = before.clone();
        }
        let after = declarers.first().map(|first| first.object.clone());
        if declarers.len() > 1 {
            self.contested.insert(id.clone());
        } else {
            self.contested.remove(&id);
        }
        if !declarers.is_empty() {
            self.declarers.insert(id.clone(), declarers);
        }
        if before != after {
            self.change(&id, before, after);
        }
    }

    /// An object appears, differs or vanishes.
    fn change(&mut self, id: &ObjectId, before: Option<Object>, after: Option<Object>) {
        match id.kind {
            ObjectKind::Namespace => self.count_use(&id.key.name, before.is_some(), after.is_some()),
            ObjectKind::Service | ObjectKind::Slice | ObjectKind::Pod => {
                self.count_use(&id.key.namespace, before.is_some(), after.is_some());
            }
            ObjectKind::Node | ObjectKind::Unknown => {}
        }
        if let Some(before) = before {
            self.withdraw(id, before, after.is_none());
        }
        if let Some(after) = after {
            self.admit(id, after);
        }
    }

    /// Removes the effects of an object; `gone` if no other version replaces it.
    fn withdraw(&mut self, id: &ObjectId, object: Object, gone: bool) {
        match object {
            Object::Namespace(_) => {}
            Object::Service(draft) => {
                self.pods.remove_selection(&draft);
                if gone {
                    self.drafts.remove(&id.key);
                    self.dirty.addresses |= self.claims.remove(&id.key).is_some();
                    self.dirty.services.insert(id.key.clone());
                }
            }
            Object::Slice(slice) => {
                // The new version may name another Service, so its place in the snapshot may differ.
                self.snapshot.slices.remove(&slice.key);
                self.disown(&slice.key);
            }
            Object::Pod(pod) => {
                self.dirty.endpoints.extend(self.pods.selecting(&pod));
                self.pods.remove(&pod);
                if gone {
                    self.snapshot.pods.remove(&id.key);
                }
            }
            Object::Node(node) => {
                self.dirty.endpoints.extend(self.pods.selecting_on(&node.name));
                if gone {
                    self.snapshot.nodes.remove(&node.name);
                }
            }
        }
    }

    fn admit(&mut self, id: &ObjectId, object: Object) {
        match object {
            // Settled by the count of uses.
            Object::Namespace(_) => {}
            Object::Service(draft) => {
                self.pods.add_selection(&draft);
                self.claim(&draft);
                self.drafts.insert(id.key.clone(), draft);
                self.dirty.services.insert(id.key.clone());
            }
            Object::Slice(slice) => {
                let key = &slice.key;
                self.own_slices.entry(key.service.clone()).or_default().insert(Arc::clone(&key.slice));
                self.dirty.endpoints.insert(key.service.clone());
                self.snapshot.slices.insert(key.clone(), slice);
            }
            Object::Pod(pod) => {
                self.dirty.endpoints.extend(self.pods.selecting(&pod));
                // A known Pod stays as it was until it is deleted.
                if !pod.leaving {
                    self.snapshot.pods.insert(id.key.clone(), Arc::clone(&pod.pod));
                }
                self.pods.insert(pod);
            }
            Object::Node(node) => {
                self.dirty.endpoints.extend(self.pods.selecting_on(&node.name));
                self.snapshot.nodes.insert(Arc::clone(&node.name), node);
            }
        }
    }

    fn claim(&mut self, draft: &Draft) {
        let key = &draft.service.key;
        if draft.claim.wish == Wish::Nothing {
            self.dirty.addresses |= self.claims.remove(key).is_some();
        } else if self.claims.get(key) != Some(&draft.claim) {
            self.claims.insert(key.clone(), draft.claim.clone());
            self.dirty.addresses = true;
        }
    }

    fn disown(&mut self, key: &SliceKey) {
        if let Some(own) = self.own_slices.get_mut(&key.service) {
            own.remove(&key.slice);
            if own.is_empty() {
                self.own_slices.remove(&key.service);
            }
        }
        self.dirty.endpoints.insert(key.service.clone());
    }

    fn count_use(&mut self, namespace: &Arc<str>, before: bool, after: bool) {
        let count = self.uses.entry(Arc::clone(namespace)).or_default();
        *count = (*count + usize::from(after)).saturating_sub(usize::from(before));
        if *count == 0 {
            self.uses.remove(namespace);
            self.snapshot.namespaces.remove(namespace);
        } else if !self.snapshot.namespaces.contains_key(namespace) {
            // A namespace that is used is there, whether or not a manifest says so.
            let object = Arc::new(Namespace { name: Arc::clone(namespace) });
            self.snapshot.namespaces.insert(Arc::clone(namespace), object);
        }
    }

    fn settle_service(&mut self, key: &ObjectKey) {
        self.dirty.endpoints.insert(key.clone());
        let Some(draft) = self.drafts.get(key) else {
            self.snapshot.services.remove(key);
            return;
        };
        let service = with_addresses(&draft.service, self.assigned.get(key));
        if self.snapshot.services.get(key).is_none_or(|known| **known != service) {
            self.snapshot.services.insert(key.clone(), Arc::new(service));
        }
    }

    fn settle_endpoints(&mut self, key: &ObjectKey) {
        if self.own_slices.contains_key(key) && !self.drafts.contains_key(key) {
            self.missing.insert(key.clone());
        } else {
            self.missing.remove(key);
        }
        let slices = self.derived_slices(key);
        let names: Vec<Arc<str>> = slices.iter().map(|slice| Arc::clone(&slice.key.slice)).collect();
        let before =
            if names.is_empty() { self.derived.remove(key) } else { self.derived.insert(key.clone(), names.clone()) };
        for slice in before.into_iter().flatten().filter(|slice| !names.contains(slice)) {
            let declared = self.own_slices.get(key).is_some_and(|own| own.contains(&slice));
            if !declared {
                self.snapshot.slices.remove(&SliceKey { service: key.clone(), slice });
            }
        }
        for slice in slices {
            if self.snapshot.slices.get(&slice.key).is_none_or(|known| **known != slice) {
                self.snapshot.slices.insert(slice.key.clone(), Arc::new(slice));
            }
        }
    }

    fn derived_slices(&self, key: &ObjectKey) -> Vec<EndpointSlice> {
        let selection = self.drafts.get(key).and_then(|draft| draft.selection.as_ref());
        match selection {
            Some(selection) if !self.own_slices.contains_key(key) => {
                let zone_of = |node: &str| self.snapshot.nodes.get(node).and_then(|node| node.zone.clone());
                derive::slices(selection, self.pods.candidates(selection, key), zone_of)
            }
            Some(_) | None => Vec::new(),
        }
    }
}

/// An object that cannot be read any more stays as it was, like a file that does not parse.
fn keep_last_good(before: &[Declared], declared: &mut [Declared]) {
    if declared.iter().all(|declared| declared.unreadable.is_none()) {
        return;
    }
    let known: HashMap<&ObjectId, &Object> =
        before.iter().filter_map(|before| Some((&before.id, before.object.as_ref()?))).collect();
    let mut present: HashSet<ObjectId> =
        declared.iter().filter(|declared| declared.object.is_some()).map(|declared| declared.id.clone()).collect();
    for declared in declared {
        let Some(reason) = declared.unreadable.take() else { continue };
        let kept = known.get(&declared.id).filter(|_| present.insert(declared.id.clone()));
        declared.object = kept.map(|kept| Object::clone(kept));
        let outcome = if kept.is_some() { "its last good version stays in force" } else { "it is ignored" };
        declared.notes.push(format!("it cannot be read ({reason}), so {outcome}"));
    }
}

/// The Service as it goes into the snapshot.
fn with_addresses(service: &Service, assigned: Option<&Assigned>) -> Service {
    let mut service = service.clone();
    if let Some(assigned) = assigned {
        service.cluster_ips = if assigned.addresses.is_empty() {
            ClusterIps::Unassigned
        } else {
            ClusterIps::Assigned(assigned.addresses.clone())
        };
    }
    service
}

#[cfg(test)]
mod tests;
