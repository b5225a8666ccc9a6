//! Chains to write and to remove, as `iptables-restore` reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::rule::{Name, Rule, Table};

/// Ends a table, and writes it.
const COMMIT: &str = "COMMIT";

/// What changes in both tables. The order of its parts is the order in which they are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// What begins to be refused, before it ceases to be translated.
    pub(super) filter_before: TableChanges,
    pub(super) nat: TableChanges,
    /// What ceases to be refused, and all else.
    pub(super) filter: TableChanges,
}

/// What changes in a table, at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TableChanges {
    /// Chains to write anew.
    pub(super) writes: BTreeMap<Name, Vec<Rule>>,
    /// Chains to remove, to which nothing leads any more.
    pub(super) removals: BTreeSet<Name>,
    /// Jumps to put first in a chain of the kernel.
    pub(super) jumps: Vec<String>,
    /// Jumps to remove from a chain of the kernel.
    pub(super) surplus: Vec<String>,
}

impl Changes {
    /// The parts in the order of writing.
    pub(super) fn parts(&self) -> [(Table, &TableChanges); 3] {
        [(Table::Filter, &self.filter_before), (Table::Nat, &self.nat), (Table::Filter, &self.filter)]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts().iter().all(|(_, changes)| changes.is_empty())
    }

    /// How many transactions they are.
    pub(super) fn commits(&self) -> u32 {
        self.parts().iter().map(|(_, changes)| u32::from(!changes.is_empty())).sum()
    }

    /// What comes to a table, before the other.
    pub(super) fn table(&mut self, table: Table) -> &mut TableChanges {
        match table {
            Table::Nat => &mut self.nat,
            Table::Filter => &mut self.filter_before,
        }
    }

    /// What leaves a table, after the other.
    pub(super) fn table_at_the_end(&mut self, table: Table) -> &mut TableChanges {
        match table {
            Table::Nat => &mut self.nat,
            Table::Filter => &mut self.filter,
        }
    }

    /// The input of `iptables-restore`.
    pub(super) fn script(&self) -> Script {
        let mut script = Script::default();
        for (table, changes) in self.parts() {
            changes.print(table, &mut script);
        }
        script
    }
}

impl TableChanges {
    pub(super) fn is_empty(&self) -> bool {
        let Self { writes, removals, jumps, surplus } = self;
        writes.is_empty() && removals.is_empty() && jumps.is_empty() && surplus.is_empty()
    }

    /// A chain to write; it is not removed, whatever was noted before.
    pub(super) fn write(&mut self, name: Name, rules: Vec<Rule>) {
        self.removals.remove(&name);
        self.writes.insert(name, rules);
    }

    /// A chain to remove, unless it is to be written.
    pub(super) fn remove(&mut self, name: Name) {
        if !self.writes.contains_key(&name) {
            self.removals.insert(name);
        }
    }

    /// What leads from some chains to others.
    pub(super) fn follow(&mut self, old: &BTreeMap<Name, Vec<Rule>>, new: &BTreeMap<Name, Vec<Rule>>) {
        for (name, rules) in new.iter().filter(|(name, rules)| old.get(*name) != Some(*rules)) {
            self.write(name.clone(), rules.clone());
        }
        for name in old.keys().filter(|name| !new.contains_key(*name)) {
            self.remove(name.clone());
        }
    }

    fn print(&self, table: Table, script: &mut Script) {
        if self.is_empty() {
            return;
        }
        let Self { writes, removals, jumps, surplus } = self;
        script.frame(&format!("*{}", table.as_str()));
        // Declaring a chain makes it, or empties it.
        for name in writes.keys().chain(removals) {
            script.line(format_args!(":{name} - [0:0]"), Some((table, name)));
        }
        for (name, rules) in writes {
            for rule in rules {
                script.line(format_args!("-A {name} {rule}"), Some((table, name)));
            }
        }
        for jump in jumps {
            script.line(format_args!("-I {jump}"), None);
        }
        for jump in surplus {
            script.line(format_args!("-D {jump}"), None);
        }
        for name in removals {
            script.line(format_args!("-X {name}"), Some((table, name)));
        }
        script.frame(COMMIT);
    }
}

/// The input of `iptables-restore`.
#[derive(Clone, Debug, Default)]
pub(super) struct Script {
    pub(super) text: String,
    /// To which chain each line belongs.
    owners: Vec<Option<(Table, Name)>>,
    writes: u64,
}

impl Script {
    fn line(&mut self, text: std::fmt::Arguments<'_>, owner: Option<(Table, &Name)>) {
        // Writing to a String cannot fail.
        writeln!(self.text, "{text}").unwrap_or_default();
        self.owners.push(owner.map(|(table, name)| (table, name.clone())));
        self.writes = self.writes.saturating_add(1);
    }

    /// Where a table begins or ends.
    fn frame(&mut self, text: &str) {
        self.text.push_str(text);
        self.text.push('\n');
        self.owners.push(None);
    }

    /// How many rules and chains it declares, writes or removes.
    pub(super) fn writes(&self) -> u64 {
        self.writes
    }

    /// How many tables end before a line, counted from 1.
    pub(super) fn commits_before(&self, line: usize) -> u32 {
        let lines = self.text.lines().take(line.saturating_sub(1));
        lines.map(|line| u32::from(line == COMMIT)).sum()
    }

    /// The chain of a line, counted from 1.
    pub(super) fn owner(&self, line: usize) -> Option<&(Table, Name)> {
        self.owners.get(line.checked_sub(1)?)?.as_ref()
    }
}
