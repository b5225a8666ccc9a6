//! From what `iptables-save` prints to the input of `iptables-restore --noflush` that removes kube-proxy's part.

use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Chains that kube-proxy makes, whatever its mode.
const CHAINS: [&str; 13] = [
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-FORWARD",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
    "KUBE-LOAD-BALANCER",
    "KUBE-MARK-MASQ",
    "KUBE-NODE-PORT",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-PROXY-CANARY",
    "KUBE-PROXY-FIREWALL",
    "KUBE-SERVICES",
    "KUBE-SOURCE-RANGES-FIREWALL",
];
/// Of chains for each Service or endpoint (LY-5). The kubelet and others make chains that begin with `KUBE-` too.
const PREFIXES: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-", "KUBE-XLB-"];

/// What is removed from one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Removal {
    pub(super) table: String,
    /// How many chains.
    pub(super) chains: usize,
    /// Input for `iptables-restore --noflush`.
    pub(super) script: String,
}

/// What becomes of the chain in which kube-proxy accepts forwarded packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forward {
    Remove,
    /// It stays where all others are dropped and no chain takes its place: rules of nftables cannot (TP-45).
    KeepWhereDropped,
}

const FORWARD: &str = "KUBE-FORWARD";
/// Accepts the same, by this daemon.
const OUR_FORWARD: &str = "SHUNT-FORWARD";

/// A table as it was saved.
#[derive(Debug, Default)]
struct Table<'a> {
    name: &'a str,
    /// The policy of the chain FORWARD.
    drops: bool,
    built_in: BTreeSet<&'a str>,
    ours: BTreeSet<&'a str>,
    rules: Vec<Rule<'a>>,
}

#[derive(Debug)]
struct Rule<'a> {
    chain: &'a str,
    /// The chain to which it leads, if it leads to one; else what else becomes of the packet.
    target: Option<String>,
    /// All behind `-A `.
    text: &'a str,
}

/// What of kube-proxy is to be removed, by table; none if there is nothing.
pub(super) fn removals(saved: &str, forward: Forward) -> Vec<Removal> {
    tables(saved).iter().filter_map(|table| table.removal(forward)).collect()
}

/// Whether [`removals`] leaves the chain that accepts forwarded packets.
pub(super) fn keeps_forward(saved: &str, forward: Forward) -> bool {
    tables(saved).iter().any(|table| table.keeps_forward(forward))
}

/// Whether forwarded packets are dropped that neither a firewall nor this daemon accepts.
pub(super) fn drops_forwarded(saved: &str) -> bool {
    tables(saved).iter().any(Table::drops_forwarded)
}

/// Whether forwarded packets are dropped that no rule accepts, whosever it is.
pub(super) fn has_policy_drop(saved: &str) -> bool {
    tables(saved).iter().any(|table| table.drops)
}

fn tables(saved: &str) -> Vec<Table<'_>> {
    let mut tables = Vec::new();
    for line in saved.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('*') {
            tables.push(Table { name, ..Table::default() });
            continue;
        }
        let Some(table) = tables.last_mut() else { continue };
        if let Some(declared) = line.strip_prefix(':') {
            let mut words = declared.split_whitespace();
            let (Some(chain), Some(policy)) = (words.next(), words.next()) else { continue };
            if policy != "-" {
                table.built_in.insert(chain);
                table.drops |= table.name == "filter" && chain == "FORWARD" && policy == "DROP";
            } else if is_kube_proxys(chain) {
                table.ours.insert(chain);
            }
        } else if let Some(text) = line.strip_prefix("-A ") {
            let chain = text.split_whitespace().next().unwrap_or_default();
            table.rules.push(Rule { chain, target: target(text), text });
        }
    }
    tables
}

fn is_kube_proxys(chain: &str) -> bool {
    CHAINS.contains(&chain) || PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

/// The word behind `-j` or `-g`, which may also stand in a comment.
fn target(rule: &str) -> Option<String> {
    let mut words = words(rule).into_iter();
    words.find(|word| word == "-j" || word == "-g")?;
    words.next()
}

/// The words of a rule; those between quotes are one.
fn words(rule: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    let mut characters = rule.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => quoted = !quoted,
            '\\' => word.extend(characters.next()),
            ' ' if !quoted => words.push(std::mem::take(&mut word)),
            other => word.push(other),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

impl Table<'_> {
    /// Chains of kube-proxy that others use, such as a plug-in for host ports that has packets marked for source NAT:
    /// without them their rules could not stand.
    fn used_by_others(&self) -> BTreeSet<&str> {
        let is_of_others = |chain| !self.ours.contains(chain) && !self.built_in.contains(chain);
        let mut used: BTreeSet<&str> = BTreeSet::new();
        let mut reached: Vec<&str> =
            self.rules.iter().filter(|rule| is_of_others(rule.chain)).filter_map(|rule| self.leads_to(rule)).collect();
        while let Some(chain) = reached.pop() {
            if used.insert(chain) {
                reached.extend(
                    self.rules.iter().filter(|rule| rule.chain == chain).filter_map(|rule| self.leads_to(rule)),
                );
                // The mark does nothing without the chain that acts on it.
                reached.extend(self.ours.get("KUBE-POSTROUTING").filter(|_| chain == "KUBE-MARK-MASQ"));
            }
        }
        used
    }

    /// The chain of kube-proxy to which a rule leads.
    fn leads_to(&self, rule: &Rule<'_>) -> Option<&str> {
        self.ours.get(rule.target.as_deref()?).copied()
    }

    fn drops_forwarded(&self) -> bool {
        self.drops && !self.rules.iter().any(|rule| rule.target.as_deref() == Some(OUR_FORWARD))
    }

    fn keeps_forward(&self, forward: Forward) -> bool {
        forward == Forward::KeepWhereDropped && self.drops_forwarded() && self.ours.contains(FORWARD)
    }

    fn removal(&self, forward: Forward) -> Option<Removal> {
        let mut used = self.used_by_others();
        used.extend(self.keeps_forward(forward).then_some(FORWARD));
        let gone: BTreeSet<&str> = self.ours.difference(&used).copied().collect();
        if gone.is_empty() {
            return None;
        }
        let mut script = format!("*{}\n", self.name);
        let mut write = |line: std::fmt::Arguments<'_>| writeln!(script, "{line}").unwrap_or_default();
        // A chain that is declared is emptied, so that no rule leads to another of these when they go.
        for chain in &gone {
            write(format_args!(":{chain} - [0:0]"));
        }
        let leads_to_gone = |rule: &&Rule<'_>| self.leads_to(rule).is_some_and(|chain| gone.contains(chain));
        for rule in self.rules.iter().filter(leads_to_gone).filter(|rule| !gone.contains(rule.chain)) {
            write(format_args!("-D {}", rule.text));
        }
        for chain in &gone {
            write(format_args!("-X {chain}"));
        }
        write(format_args!("COMMIT"));
        Some(Removal { table: self.name.to_owned(), chains: gone.len(), script })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(saved: &str, scripts: &[&str]) {
        check_with(saved, Forward::Remove, scripts);
    }

    #[track_caller]
    fn check_with(saved: &str, forward: Forward, scripts: &[&str]) {
        let found: Vec<String> = removals(saved, forward).into_iter().map(|removal| removal.script).collect();
        assert_eq!(found, scripts);
    }

    #[test]
    fn kube_proxys_chains_and_what_leads_to_them_go() {
        let saved = r#"# Generated by iptables-save v1.8.9
*mangle
:PREROUTING ACCEPT [0:0]
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*nat
:PREROUTING ACCEPT [5:300]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-DROP - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SEP-SXIVWICOYRO3J4NJ - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-XPGD46QRK7WJZT7O - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -m addrtype --dst-type LOCAL -m comment --comment "not -j KUBE-SERVICES" -j DOCKER
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-XPGD46QRK7WJZT7O
-A KUBE-SVC-XPGD46QRK7WJZT7O -j KUBE-SEP-SXIVWICOYRO3J4NJ
COMMIT
"#;
        check(
            saved,
            &[
                "*mangle\n:KUBE-PROXY-CANARY - [0:0]\n-X KUBE-PROXY-CANARY\nCOMMIT\n",
                r#"*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SEP-SXIVWICOYRO3J4NJ - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-XPGD46QRK7WJZT7O - [0:0]
-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-D OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-D POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-X KUBE-MARK-MASQ
-X KUBE-POSTROUTING
-X KUBE-SEP-SXIVWICOYRO3J4NJ
-X KUBE-SERVICES
-X KUBE-SVC-XPGD46QRK7WJZT7O
COMMIT
"#,
            ],
        );
    }

    #[test]
    fn chains_that_others_use_stay() {
        let saved = "*nat\n:POSTROUTING ACCEPT [0:0]\n:CNI-HOSTPORT-SETMARK - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
                     :KUBE-POSTROUTING - [0:0]\n:KUBE-SERVICES - [0:0]\n-A POSTROUTING -j KUBE-POSTROUTING\n\
                     -A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ\n-A KUBE-SERVICES -j KUBE-MARK-MASQ\nCOMMIT\n";
        check(saved, &["*nat\n:KUBE-SERVICES - [0:0]\n-X KUBE-SERVICES\nCOMMIT\n"]);
    }

    #[test]
    fn what_accepts_forwarded_packets_stays_where_nothing_else_does() {
        let saved = |policy: &str, more: &str| {
            format!(
                "*filter\n:FORWARD {policy} [0:0]\n:KUBE-FORWARD - [0:0]\n:KUBE-SERVICES - [0:0]\n\
                 -A FORWARD -j KUBE-FORWARD\n-A FORWARD -j KUBE-SERVICES\n{more}\
                 -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\nCOMMIT\n"
            )
        };
        let rest = "*filter\n:KUBE-SERVICES - [0:0]\n-D FORWARD -j KUBE-SERVICES\n-X KUBE-SERVICES\nCOMMIT\n";
        let all = "*filter\n:KUBE-FORWARD - [0:0]\n:KUBE-SERVICES - [0:0]\n-D FORWARD -j KUBE-FORWARD\n\
                   -D FORWARD -j KUBE-SERVICES\n-X KUBE-FORWARD\n-X KUBE-SERVICES\nCOMMIT\n";
        let ours = "-A FORWARD -j SHUNT-FORWARD\n";
        for (policy, more, forward, script, drops) in [
            ("DROP", "", Forward::KeepWhereDropped, rest, true),
            ("DROP", "", Forward::Remove, all, true),
            ("DROP", ours, Forward::KeepWhereDropped, all, false),
            ("ACCEPT", "", Forward::KeepWhereDropped, all, false),
        ] {
            let saved = saved(policy, more);
            check_with(&saved, forward, &[script]);
            assert_eq!(keeps_forward(&saved, forward), script == rest);
            assert_eq!(drops_forwarded(&saved), drops);
        }
    }

    #[test]
    fn where_nothing_is_left_nothing_is_written() {
        check("", &[]);
        check("*filter\n:INPUT ACCEPT [0:0]\n:KUBE-FIREWALL - [0:0]\n-A INPUT -j KUBE-FIREWALL\nCOMMIT\n", &[]);
        check("garbage\n-A INPUT -j KUBE-SERVICES\n", &[]);
    }

    #[test]
    fn words_between_quotes_are_one() {
        let rule = r#"INPUT -m comment --comment "a \"b\" -j X" -g Y"#;
        assert_eq!(words(rule), ["INPUT", "-m", "comment", "--comment", "a \"b\" -j X", "-g", "Y"]);
        assert_eq!(target(rule).as_deref(), Some("Y"));
        assert_eq!(target("INPUT -m comment --comment x"), None);
    }
}
