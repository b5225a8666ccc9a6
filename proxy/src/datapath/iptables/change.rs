//! Chains to write and to remove, as `iptables-restore` reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use super::rule::{Name, Rule, Table};

/// Ends a table, and writes it.
const COMMIT: &str = "COMMIT";
/// How many lines a transaction has at most whose order does not matter. With the nft variant its cost grows with the
/// square: 50,000 services take minutes at once, and 9 s in pieces.
const PIECE: usize = if cfg!(test) { 20 } else { 4000 };

/// How tables are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pieces {
    /// All that changes in a table at once: each transaction costs the whole table.
    One,
    /// What nothing leads to yet, or any more, in transactions of its own.
    Many,
}

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
    /// Those of them that are missing or empty so far, and so lead nowhere.
    pub(super) fresh: BTreeSet<Name>,
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
    pub(super) fn script(&self, pieces: Pieces) -> Script {
        let mut script = Script::default();
        for (table, changes) in self.parts() {
            changes.print(table, pieces, &mut script);
        }
        script
    }
}

impl TableChanges {
    pub(super) fn is_empty(&self) -> bool {
        let Self { writes, fresh: _, removals, jumps, surplus } = self;
        writes.is_empty() && removals.is_empty() && jumps.is_empty() && surplus.is_empty()
    }

    /// A chain to write; it is not removed, whatever was noted before.
    pub(super) fn write(&mut self, name: Name, rules: Vec<Rule>) {
        self.removals.remove(&name);
        self.writes.insert(name, rules);
    }

    /// A chain to write that is missing or empty.
    pub(super) fn write_fresh(&mut self, name: Name, rules: Vec<Rule>) {
        // One that was to be removed is neither.
        if !self.removals.remove(&name) {
            self.fresh.insert(Arc::clone(&name));
        }
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
        self.come(old, new);
        self.leave(old, new);
    }

    /// The part of it that writes chains.
    pub(super) fn come(&mut self, old: &BTreeMap<Name, Vec<Rule>>, new: &BTreeMap<Name, Vec<Rule>>) {
        for (name, rules) in new {
            match old.get(name) {
                Some(same) if same == rules => {}
                Some(_) => self.write(Arc::clone(name), rules.clone()),
                None => self.write_fresh(Arc::clone(name), rules.clone()),
            }
        }
    }

    /// The part of it that removes chains.
    pub(super) fn leave(&mut self, old: &BTreeMap<Name, Vec<Rule>>, new: &BTreeMap<Name, Vec<Rule>>) {
        for name in old.keys().filter(|name| !new.contains_key(*name)) {
            self.remove(Arc::clone(name));
        }
    }

    fn print(&self, table: Table, pieces: Pieces, script: &mut Script) {
        if self.is_empty() {
            return;
        }
        let Self { writes, fresh, removals, jumps, surplus } = self;
        let none = BTreeSet::new();
        let (ahead, behind) = match pieces {
            Pieces::Many if self.lines() > PIECE => (fresh, removals),
            Pieces::One | Pieces::Many => (&none, &none),
        };
        let mut section = Section { table, script, lines: 0 };
        section.each(ahead, |script, name| script.declare(table, name));
        section.each(ahead, |script, name| script.append(table, name, writes.get(name).into_iter().flatten()));
        section.end();

        let at_once = || writes.iter().filter(|(name, _)| !ahead.contains(*name));
        let removed = if behind.is_empty() { removals } else { &none };
        section.begin();
        // Declaring a chain makes it, or empties it.
        at_once().for_each(|(name, _)| section.script.declare(table, name));
        removed.iter().for_each(|name| section.script.declare(table, name));
        at_once().for_each(|(name, rules)| section.script.append(table, name, rules));
        for jump in jumps {
            section.script.line(format_args!("-I {jump}"), None);
        }
        for jump in surplus {
            section.script.line(format_args!("-D {jump}"), None);
        }
        removed.iter().for_each(|name| section.script.remove(table, name));
        section.end();

        section.each(behind, |script, name| script.declare(table, name));
        section.end();
        section.each(behind, |script, name| script.remove(table, name));
        section.end();
    }

    fn lines(&self) -> usize {
        let rules = self.writes.values().map(|rules| rules.len().saturating_add(1)).sum::<usize>();
        rules.saturating_add(self.removals.len())
    }
}

/// A transaction in the making.
struct Section<'a> {
    table: Table,
    script: &'a mut Script,
    /// How many lines the script had when it began; 0 before.
    lines: usize,
}

impl Section<'_> {
    fn begin(&mut self) {
        if self.lines == 0 {
            self.script.frame(&format!("*{}", self.table.as_str()));
            self.lines = self.script.owners.len();
        }
    }

    fn end(&mut self) {
        if self.lines > 0 {
            self.script.frame(COMMIT);
            self.script.commits = self.script.commits.saturating_add(1);
            self.lines = 0;
        }
    }

    /// Prints something of each chain, in as many transactions as it takes.
    fn each(&mut self, chains: &BTreeSet<Name>, print: impl Fn(&mut Script, &Name)) {
        for name in chains {
            self.begin();
            print(self.script, name);
            if self.script.owners.len().saturating_sub(self.lines) >= PIECE {
                self.end();
            }
        }
    }
}

/// The input of `iptables-restore`.
#[derive(Clone, Debug, Default)]
pub(super) struct Script {
    pub(super) text: String,
    /// To which chain each line belongs.
    owners: Vec<Option<(Table, Name)>>,
    writes: u64,
    commits: u32,
}

impl Script {
    fn line(&mut self, text: std::fmt::Arguments<'_>, owner: Option<(Table, &Name)>) {
        // Writing to a String cannot fail.
        writeln!(self.text, "{text}").unwrap_or_default();
        self.owners.push(owner.map(|(table, name)| (table, name.clone())));
        self.writes = self.writes.saturating_add(1);
    }

    fn declare(&mut self, table: Table, name: &Name) {
        self.line(format_args!(":{name} - [0:0]"), Some((table, name)));
    }

    fn append<'a>(&mut self, table: Table, name: &Name, rules: impl IntoIterator<Item = &'a Rule>) {
        for rule in rules {
            self.line(format_args!("-A {name} {rule}"), Some((table, name)));
        }
    }

    fn remove(&mut self, table: Table, name: &Name) {
        self.line(format_args!("-X {name}"), Some((table, name)));
    }

    /// Where a table begins or ends.
    fn frame(&mut self, text: &str) {
        self.text.push_str(text);
        self.text.push('\n');
        self.owners.push(None);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// How many rules and chains it declares, writes or removes.
    pub(super) fn writes(&self) -> u64 {
        self.writes
    }

    /// How many transactions it has.
    pub(super) fn commits(&self) -> u32 {
        self.commits
    }

    /// How many of them end before a line, counted from 1.
    pub(super) fn commits_before(&self, line: usize) -> u32 {
        let lines = self.text.lines().take(line.saturating_sub(1));
        lines.map(|line| u32::from(line == COMMIT)).sum()
    }

    /// The chain of a line, counted from 1.
    pub(super) fn owner(&self, line: usize) -> Option<&(Table, Name)> {
        self.owners.get(line.checked_sub(1)?)?.as_ref()
    }
}
