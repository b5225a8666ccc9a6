//! The rule that `shunt-dns` links nothing that only a privileged process has a use for.

use std::collections::{BTreeMap, VecDeque};

use crate::workspace::{Metadata, Node};

/// The program that runs as any user.
const UNPRIVILEGED: &str = "shunt-dns";
/// What changes the kernel, by name.
const PRIVILEGED: [&str; 4] = ["aya", "proxy-abi", "rtnetlink", "shunt-proxy"];
/// The same, by how names begin.
const FAMILIES: [&str; 3] = ["aya-", "libbpf", "netlink-"];

/// One line for each such package, with how it got there.
pub(super) fn check(metadata: &Metadata) -> Vec<String> {
    let nodes = metadata.resolve.as_ref().map_or_else(Vec::new, |resolve| resolve.nodes.iter().collect());
    let names: BTreeMap<&str, &str> =
        metadata.packages.iter().map(|package| (package.id.as_str(), package.name.as_str())).collect();
    broken_rules(&nodes, &names)
}

fn broken_rules(nodes: &[&Node], names: &BTreeMap<&str, &str>) -> Vec<String> {
    let name = |id: &str| names.get(id).copied().unwrap_or_default();
    let Some(first) = nodes.iter().find(|node| name(&node.id) == UNPRIVILEGED) else {
        return vec![format!("there is no package {UNPRIVILEGED}: mend xtask/src/tidy/privileges.rs")];
    };
    let nodes: BTreeMap<&str, &Node> = nodes.iter().map(|node| (node.id.as_str(), *node)).collect();
    let mut ways = BTreeMap::from([(first.id.as_str(), UNPRIVILEGED.to_owned())]);
    let mut next = VecDeque::from([*first]);
    let mut broken = Vec::new();
    while let Some(node) = next.pop_front() {
        let way = ways.get(node.id.as_str()).cloned().unwrap_or_default();
        for id in linked(node) {
            if ways.contains_key(id) {
                continue;
            }
            let way = format!("{way} -> {}", name(id));
            if is_privileged(name(id)) {
                broken.push(format!("{UNPRIVILEGED} must not link what needs privileges: {way}"));
            }
            ways.insert(id, way);
            next.extend(nodes.get(id));
        }
    }
    broken
}

/// Of the dependencies of a package those that end up in a program.
fn linked(node: &Node) -> impl Iterator<Item = &str> {
    let linked = node.deps.iter().filter(|dependency| dependency.dep_kinds.iter().any(|kind| kind.kind.is_none()));
    linked.map(|dependency| dependency.pkg.as_str())
}

fn is_privileged(name: &str) -> bool {
    PRIVILEGED.contains(&name) || FAMILIES.iter().any(|family| name.starts_with(family))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::{Dependency, DependencyKind};

    /// Packages as `name: dependency dependency`, where `dev:name` is for tests only.
    #[track_caller]
    fn check(packages: &[&str], wanted: &[&str]) {
        let nodes: Vec<Node> = packages.iter().map(|line| node(line)).collect();
        let names: BTreeMap<&str, &str> = nodes
            .iter()
            .flat_map(|node| node.deps.iter().map(|to| &to.pkg).chain([&node.id]))
            .map(|n| (&**n, &**n))
            .collect();
        let broken = broken_rules(&nodes.iter().collect::<Vec<_>>(), &names);
        let ways: Vec<&str> = broken.iter().map(|line| line.split_once(": ").unwrap().1).collect();
        assert_eq!(ways, wanted, "{packages:?}");
    }

    fn node(line: &str) -> Node {
        let (id, deps) = line.split_once(':').unwrap();
        let dependency = |word: &str| {
            let (kind, name) = word.split_once(':').map_or((None, word), |(kind, name)| (Some(kind.to_owned()), name));
            Dependency { pkg: name.to_owned(), dep_kinds: vec![DependencyKind { kind }] }
        };
        Node { id: id.to_owned(), deps: deps.split_whitespace().map(dependency).collect() }
    }

    #[test]
    fn what_needs_privileges_is_found_however_deep_it_lies() {
        check(&["shunt-dns: tokio", "tokio: mio", "mio:"], &[]);
        check(&["shunt-dns: tokio", "tokio: rtnetlink", "rtnetlink:"], &["shunt-dns -> tokio -> rtnetlink"]);
        check(&["shunt-dns: aya", "aya: aya-obj", "aya-obj:"], &["shunt-dns -> aya", "shunt-dns -> aya -> aya-obj"]);
        check(
            &["shunt-dns: shunt-serving", "shunt-serving: proxy-abi", "proxy-abi:"],
            &["shunt-dns -> shunt-serving -> proxy-abi"],
        );
        check(&["shunt-dns: a b", "a: netlink-sys", "b: netlink-sys"], &["shunt-dns -> a -> netlink-sys"]);
    }

    #[test]
    fn what_is_not_linked_does_not_count() {
        check(&["shunt-dns: dev:lab", "lab: rtnetlink", "rtnetlink:"], &[]);
        check(&["shunt-dns: build:aya-build", "aya-build:"], &[]);
        check(&["shunt-proxy: aya shunt-dns", "shunt-dns:", "aya:"], &[]);
        // A dependency of which only the name is like one of them.
        check(&["shunt-dns: netlinks ayame", "netlinks:", "ayame:"], &[]);
    }

    #[test]
    fn packages_in_a_circle_end() {
        check(&["shunt-dns: a", "a: b", "b: a aya"], &["shunt-dns -> a -> b -> aya"]);
    }

    #[test]
    fn a_program_that_is_not_there_is_told_of() {
        check(&["other:"], &["mend xtask/src/tidy/privileges.rs"]);
    }
}
