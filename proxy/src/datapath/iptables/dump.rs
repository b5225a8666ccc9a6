//! What `iptables-save` prints of one table: our chains, and the jumps to them.

use std::collections::BTreeMap;

use super::change::{Changes, TableChanges};
use super::fixed::JUMPS;
use super::image::Image;
use super::rule::{Name, OURS, Rule, Table};

/// Our part of one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Dump<'a> {
    /// Our chains with their rules, without `-A` and the name of the chain.
    chains: BTreeMap<&'a str, Vec<&'a str>>,
    /// Jumps to our chains from those of others, without `-A`.
    jumps: Vec<&'a str>,
}

/// What is not as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Chains that were missing or had other rules.
    pub(super) wrong: usize,
    /// Jumps from the kernel's chains that were missing.
    pub(super) jumps: usize,
    /// Chains and jumps that nothing needs.
    pub(super) surplus: usize,
    /// One of them, by its name.
    pub(super) example: Option<String>,
}

impl Found {
    pub(super) fn count(&self) -> usize {
        self.wrong.saturating_add(self.jumps).saturating_add(self.surplus)
    }
}

impl<'a> Dump<'a> {
    /// Reads the text; what concerns no chain of ours is passed over.
    pub(super) fn parse(text: &'a str) -> Self {
        let mut dump = Self::default();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix(':').and_then(|rest| rest.split(' ').next()) {
                if name.starts_with(OURS) {
                    dump.chains.entry(name).or_default();
                }
                continue;
            }
            let Some(rest) = line.strip_prefix("-A ") else { continue };
            let Some((chain, rule)) = rest.split_once(' ') else { continue };
            if chain.starts_with(OURS) {
                dump.chains.entry(chain).or_default().push(rule);
            } else if leads_to_us(rule) {
                dump.jumps.push(rest);
            }
        }
        dump
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.jumps.is_empty()
    }

    pub(super) fn chains(&self) -> usize {
        self.chains.len()
    }

    /// What removes all of it.
    pub(super) fn removal(&self) -> TableChanges {
        TableChanges {
            removals: self.chains.keys().map(|name| Name::from(*name)).collect(),
            surplus: self.jumps.iter().map(|jump| (*jump).to_owned()).collect(),
            ..TableChanges::default()
        }
    }
}

/// `-j SHUNT-…` or `-g SHUNT-…` in a rule of another chain.
fn leads_to_us(rule: &str) -> bool {
    let mut words = rule.split(' ').rev();
    let (last, option) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    last.starts_with(OURS) && (option == "-j" || option == "-g")
}

/// What makes the kernel's tables those of an image.
pub(super) fn compare<'a>(image: &Image, mut nat: Dump<'a>, mut filter: Dump<'a>) -> (Changes, Found) {
    let (mut changes, mut found) = (Changes::default(), Found::default());
    let mut text = String::new();
    for (table, name, rules) in image.chains() {
        let dump = match table {
            Table::Nat => &mut nat,
            Table::Filter => &mut filter,
        };
        let installed = dump.chains.remove(&*name);
        if installed.as_ref().is_some_and(|installed| are_same(&rules, installed, &mut text)) {
            continue;
        }
        found.wrong = found.wrong.saturating_add(1);
        found.example.get_or_insert_with(|| format!("chain {name} of table {}", table.as_str()));
        match installed.is_none_or(|installed| installed.is_empty()) {
            true => changes.table(table).write_fresh(name, rules),
            false => changes.table(table).write(name, rules),
        }
    }
    for (table, dump) in [(Table::Nat, nat), (Table::Filter, filter)] {
        let mut left = dump.jumps;
        for (_, jump) in JUMPS.iter().filter(|(of, _)| *of == table) {
            match left.iter().position(|installed| installed == jump) {
                Some(position) => drop(left.remove(position)),
                None => {
                    found.jumps = found.jumps.saturating_add(1);
                    found.example.get_or_insert_with(|| format!("jump {jump} of table {}", table.as_str()));
                    changes.table(table).jumps.push(first_in_chain(jump));
                }
            }
        }
        found.surplus = found.surplus.saturating_add(left.len()).saturating_add(dump.chains.len());
        let leaving = changes.table_at_the_end(table);
        leaving.surplus.extend(left.into_iter().map(str::to_owned));
        leaving.removals.extend(dump.chains.into_keys().map(Name::from));
    }
    (changes, found)
}

/// `OUTPUT -j X` as an insertion at the first place.
fn first_in_chain(jump: &str) -> String {
    jump.replacen(' ', " 1 ", 1)
}

fn are_same(rules: &[Rule], installed: &[&str], text: &mut String) -> bool {
    use std::fmt::Write as _;
    rules.len() == installed.len()
        && rules.iter().zip(installed).all(|(rule, installed)| {
            text.clear();
            // Writing to a String cannot fail.
            write!(text, "{rule}").unwrap_or_default();
            text == installed || words(text).eq(words(installed))
        })
}

/// The words of a rule, where versions of iptables differ in their own way of writing: newer ones leave out the first
/// and the last port of a range, and digits of a probability.
fn words(rule: &str) -> impl Iterator<Item = Word<'_>> {
    let mut before = "";
    rule.split(' ').filter(|word| !word.is_empty()).map(move |word| {
        let option = std::mem::replace(&mut before, word);
        match (option, word.split_once(':')) {
            ("--dport", Some((first, last))) => {
                Word::Ports(if first.is_empty() { "0" } else { first }, if last.is_empty() { "65535" } else { last })
            }
            ("--probability", _) => {
                // The kernel counts in units of 2^-31, and so many digits tell them apart.
                Word::Probability(word.parse().map(|number: f64| format!("{number:.9}")).unwrap_or_default())
            }
            _ => Word::Other(word),
        }
    })
}

#[derive(PartialEq, Eq)]
enum Word<'a> {
    Ports(&'a str, &'a str),
    Probability(String),
    Other(&'a str),
}

#[cfg(test)]
mod tests {
    use shunt_model::Protocol;

    use super::*;
    use crate::datapath::iptables::rule::{Match, Target};

    #[track_caller]
    fn check(rule: &Rule, installed: &str, same: bool) {
        assert_eq!(are_same(std::slice::from_ref(rule), &[installed], &mut String::new()), same, "{rule} {installed}");
    }

    #[test]
    fn ways_of_writing_one_rule_are_the_same() {
        let ports = |first, last| Rule::all(Target::Drop).of(Protocol::Tcp).when(Match::Ports(first, last));
        check(&ports(0, 4095), "-p tcp -m tcp --dport 0:4095 -j DROP", true);
        check(&ports(0, 4095), "-p tcp -m tcp --dport :4095 -j DROP", true);
        check(&ports(61440, 65535), "-p tcp -m tcp --dport 61440: -j DROP", true);
        check(&ports(61440, 65535), "-p tcp -m tcp --dport 61440:65534 -j DROP", false);
        check(&ports(80, 80), "-p udp -m tcp --dport 80 -j DROP", false);
        let third = Rule::all(Target::Return).when(Match::OnceIn(3));
        check(&third, "-m statistic --mode random --probability 0.33333333349 -j RETURN", true);
        check(&third, "-m statistic --mode random --probability 0.3333333335 -j RETURN", true);
        check(&third, "-m statistic --mode random --probability 0.25000000000 -j RETURN", false);
        check(&third, "-m statistic --mode random --probability 0.33333333349 -j ACCEPT", false);
    }

    #[test]
    fn only_what_is_ours_is_read() {
        let text = "*nat\n:OUTPUT ACCEPT [3:180]\n:KUBE-MARK-MASQ - [0:0]\n:SHUNT-OUTPUT - [0:0]\n:SHUNT-MARK - [0:0]\n\
                    -A OUTPUT -j SHUNT-OUTPUT\n-A OUTPUT -m comment --comment \"-j SHUNT-X\" -j KUBE-MARK-MASQ\n\
                    -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n-A SHUNT-MARK -j RETURN\nCOMMIT\n";
        let dump = Dump::parse(text);
        assert_eq!(dump.jumps, ["OUTPUT -j SHUNT-OUTPUT"]);
        assert_eq!(dump.chains.get("SHUNT-MARK").unwrap(), &["-j RETURN"]);
        assert_eq!(dump.chains(), 2);
        let removal = dump.removal();
        assert_eq!((removal.removals.len(), removal.surplus.len()), (2, 1));
    }
}
