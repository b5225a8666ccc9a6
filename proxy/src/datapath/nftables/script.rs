//! Turns a change into one transaction, in nft's language.

use std::fmt::Write as _;
use std::sync::Arc;

use shunt_model::Family;

use super::collection::{Collection, address_type, word};
use super::difference::{Change, Named};
use super::hooks::{MARKER, TRANSLATES, hook};
use super::image::Place;
use super::installed::Client;
use crate::plan::{PortKey, PortPlan};

/// The name of our tables.
pub(super) const TABLE: &str = "shunt";

/// What nft reads; the kernel takes all of it or nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Script {
    pub(super) text: String,
    /// For each line, the service port that it is about, if it is about one.
    owners: Vec<Option<Arc<PortPlan>>>,
}

/// What is declared before a change, and what moves in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Around {
    /// Tables that are deleted and made again.
    pub(super) replaced: Vec<Family>,
    /// Tables that may be missing.
    pub(super) tables: Vec<Family>,
    /// Maps and sets that are missing.
    pub(super) collections: Vec<(Family, Collection)>,
    /// Clients whose time-out changes, with the new one, by set.
    pub(super) moved: Vec<(Named, Vec<Client>)>,
}

/// A thing that nothing refers to any more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Unused {
    pub(super) family: Family,
    /// `chain`, `set` or `map`.
    pub(super) kind: &'static str,
    pub(super) name: String,
}

/// The transaction that leaves nothing of a table but what keeps the kernel translating the flows that it knows: a
/// chain of the type, and a rule that asks about connections, without which it does not track any.
pub(super) fn retired(family: Family) -> String {
    let ip = word(family);
    format!(
        "add table {ip} {TABLE}\ndelete table {ip} {TABLE}\nadd table {ip} {TABLE}\nadd chain {ip} {TABLE} {MARKER}\n\
         add chain {ip} {TABLE} {TRANSLATES} {{ type nat hook prerouting priority -100; }}\n\
         add rule {ip} {TABLE} {TRANSLATES} ct status dnat accept\n"
    )
}

impl Script {
    /// The transaction of a change. Elements that go come before those that take their keys, declarations before what
    /// refers to them.
    pub(super) fn of(change: &Change, around: &Around) -> Self {
        let mut script = Self::default();
        script.declare(change, around);
        script.elements("delete", change, |step| step.old.as_ref().map(|_| None), None);
        script.rules(change);
        script.elements("add", change, |step| step.new.as_deref().map(Some), Some(change));
        for (name, clients) in &around.moved {
            script.move_clients(name, clients);
        }
        for ((family, name), _) in change.clients.iter().filter(|(_, step)| step.new.is_none()) {
            // Its clients must not be known when the endpoint comes back (SA-6).
            script.line(None, format_args!("flush set {} {TABLE} {name}", word(*family)));
        }
        script
    }

    /// Deletes what nothing refers to since an earlier transaction.
    pub(super) fn delete<'a>(unused: impl IntoIterator<Item = &'a Unused>) -> Self {
        let mut script = Self::default();
        for Unused { family, kind, name } in unused {
            script.line(None, format_args!("delete {kind} {} {TABLE} {name}", word(*family)));
        }
        script
    }

    /// The service port that a line is about.
    pub(super) fn owner(&self, line: usize) -> Option<&PortKey> {
        let owner = self.owners.get(line.checked_sub(1)?)?;
        owner.as_ref().map(|port| &port.key)
    }

    pub(super) fn lines(&self) -> usize {
        self.owners.len()
    }

    fn line(&mut self, owner: Option<&Arc<PortPlan>>, text: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        self.text.write_fmt(text).unwrap_or_default();
        self.text.push('\n');
        self.owners.push(owner.cloned());
    }

    fn declare(&mut self, change: &Change, around: &Around) {
        for family in &around.tables {
            self.line(None, format_args!("add table {} {TABLE}", word(*family)));
        }
        for family in &around.replaced {
            let ip = word(*family);
            self.line(None, format_args!("delete table {ip} {TABLE}"));
            self.line(None, format_args!("add table {ip} {TABLE}"));
        }
        for (family, collection) in &around.collections {
            let (kind, name, inside) = (collection.kind(), collection.name(), collection.declaration(*family));
            self.line(None, format_args!("add {kind} {} {TABLE} {name} {{ {inside} }}", word(*family)));
        }
        for ((family, name), step) in &change.clients {
            if step.old.is_none() {
                let (ip, address) = (word(*family), address_type(*family));
                let inside = format!("type {address}; flags dynamic,timeout;");
                self.line(step.owner.as_ref(), format_args!("add set {ip} {TABLE} {name} {{ {inside} }}"));
            }
        }
        for ((family, name), step) in change.chains.iter().filter(|(_, step)| step.old.is_none()) {
            let (ip, owner) = (word(*family), step.owner.as_ref());
            match hook(name) {
                None => self.line(owner, format_args!("add chain {ip} {TABLE} {name}")),
                Some(at) => {
                    let (kind, hook, priority) = (at.kind, at.hook, at.priority);
                    let at = format!("type {kind} hook {hook} priority {priority}; policy accept;");
                    self.line(owner, format_args!("add chain {ip} {TABLE} {name} {{ {at} }}"));
                }
            }
        }
        // All of it is in force at once, so a chain that is empty for a moment is never seen so. One that is new may
        // be one that is not deleted yet.
        for (family, name) in change.chains.keys() {
            self.line(None, format_args!("flush chain {} {TABLE} {name}", word(*family)));
        }
    }

    fn rules(&mut self, change: &Change) {
        for ((family, name), step) in &change.chains {
            for rule in step.new.iter().flatten() {
                self.line(step.owner.as_ref(), format_args!("add rule {} {TABLE} {name} {rule}", word(*family)));
            }
        }
    }

    /// One command for each map, one line for each element: so nft's errors say which.
    fn elements<'a>(
        &mut self,
        command: &str,
        change: &'a Change,
        takes: impl Fn(&'a super::difference::Step<String>) -> Option<Option<&'a str>>,
        owned: Option<&Change>,
    ) {
        let mut open: Option<(Family, Collection)> = None;
        for (Place { family, collection, key }, step) in &change.elements {
            let Some(leads_to) = takes(step) else { continue };
            if open != Some((*family, *collection)) {
                if open.is_some() {
                    self.line(None, format_args!("}}"));
                }
                let (ip, name) = (word(*family), collection.name());
                self.line(None, format_args!("{command} element {ip} {TABLE} {name} {{"));
                open = Some((*family, *collection));
            }
            let owner = owned.and(step.owner.as_ref());
            match leads_to.filter(|_| collection.is_map()) {
                Some(leads_to) => self.line(owner, format_args!("{key} : {leads_to},")),
                None => self.line(owner, format_args!("{key},")),
            }
        }
        if open.is_some() {
            self.line(None, format_args!("}}"));
        }
    }

    fn move_clients(&mut self, (family, name): &Named, clients: &[Client]) {
        let ip = word(*family);
        self.line(None, format_args!("flush set {ip} {TABLE} {name}"));
        if clients.is_empty() {
            return;
        }
        self.line(None, format_args!("add element {ip} {TABLE} {name} {{"));
        for Client { address, timeout, expires } in clients {
            self.line(None, format_args!("{address} timeout {timeout}s expires {expires}s,"));
        }
        self.line(None, format_args!("}}"));
    }
}

/// What becomes of a client when its time-out changes: what counts is its last use. None if it is forgotten then.
pub(super) fn moved(client: &Client, timeout: u32) -> Option<Client> {
    let since = client.timeout.saturating_sub(client.expires);
    let expires = timeout.checked_sub(since).filter(|left| *left > 0)?;
    Some(Client { timeout, expires, ..*client })
}
