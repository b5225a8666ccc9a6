//! Rules about what we link: permissive licences only, and a report of what is linked in two versions.

use crate::ui::say;
use crate::workspace::Package;
use std::collections::{BTreeMap, BTreeSet};

/// Licences under which a binary may be passed on with no more than a notice.
const ALLOWED: [&str; 12] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Packages that are linked although their licence is not on the list: its terms reach their own files only, which we
/// use as published and do not change.
const ACCEPTED: [(&str, &str); 2] = [("imbl", "MPL-2.0+"), ("imbl-sized-chunks", "MPL-2.0+")];

/// Broken rules; versions that are there twice are only reported, since they come and go with other people's releases.
pub(super) fn check(packages: &[Package]) -> Vec<String> {
    let twice = several_versions(packages);
    if !twice.is_empty() {
        say(format!("   {} dependencies, several versions of: {}", packages.len(), twice.join(", ")));
    }
    packages.iter().filter_map(not_permissive).collect()
}

fn not_permissive(package: &Package) -> Option<String> {
    let name = format!("dependency {} {}", package.name, package.version);
    match package.license.as_deref() {
        Some(licence) if is_permissive(licence) || ACCEPTED.contains(&(&package.name, licence)) => None,
        Some(licence) => Some(format!("{name}: the licence {licence} is not on the list in xtask/src/tidy")),
        None => Some(format!("{name}: no licence is declared")),
    }
}

/// Reads an SPDX expression: one of the choices of every OR, and all parts of every AND.
fn is_permissive(expression: &str) -> bool {
    // An old way to write OR, still found in published packages.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    any_of(&mut rest) && rest.is_empty()
}

fn any_of(words: &mut &[&str]) -> bool {
    let mut permissive = all_of(words);
    while let ["OR", rest @ ..] = *words {
        *words = rest;
        permissive |= all_of(words);
    }
    permissive
}

fn all_of(words: &mut &[&str]) -> bool {
    let mut permissive = one(words);
    while let ["AND", rest @ ..] = *words {
        *words = rest;
        permissive &= one(words);
    }
    permissive
}

fn one(words: &mut &[&str]) -> bool {
    match *words {
        ["(", rest @ ..] => {
            *words = rest;
            let permissive = any_of(words);
            let ([")", rest @ ..] | rest) = *words;
            *words = rest;
            permissive
        }
        [licence, "WITH", exception, rest @ ..] => {
            *words = rest;
            ALLOWED.contains(&format!("{licence} WITH {exception}").as_str())
        }
        [licence, rest @ ..] => {
            *words = rest;
            ALLOWED.contains(licence)
        }
        [] => false,
    }
}

fn several_versions(packages: &[Package]) -> Vec<String> {
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages {
        versions.entry(&package.name).or_default().insert(&package.version);
    }
    let several = versions.into_iter().filter(|(_, versions)| versions.len() > 1);
    several.map(|(name, versions)| format!("{name} ({})", versions.into_iter().collect::<Vec<_>>().join(" "))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_licence(expression: &str, wanted: bool) {
        assert_eq!(is_permissive(expression), wanted, "{expression}");
    }

    #[test]
    fn a_licence_is_permissive_when_a_choice_of_permissive_parts_is() {
        check_licence("MIT OR Apache-2.0", true);
        check_licence("MIT/Apache-2.0", true);
        check_licence("GPL-2.0-only", false);
        check_licence("GPL-2.0-only OR MIT", true);
        check_licence("MIT AND GPL-2.0-only", false);
        check_licence("(MIT OR Apache-2.0) AND Unicode-3.0", true);
        check_licence("Apache-2.0 WITH LLVM-exception OR GPL-3.0-only", true);
        check_licence("GPL-2.0-only WITH Classpath-exception-2.0", false);
        check_licence("", false);
        check_licence("MIT OR", true);
        check_licence("(MIT", true);
        check_licence("MIT Apache-2.0", false);
    }

    #[test]
    fn an_exception_holds_for_one_package_and_one_licence() {
        let package = |name: &str, licence: &str| Package {
            id: String::new(),
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            license: Some(licence.to_owned()),
            targets: Vec::new(),
        };
        assert_eq!(not_permissive(&package("imbl", "MPL-2.0+")), None);
        assert!(not_permissive(&package("imbl", "GPL-3.0-only")).is_some());
        assert!(not_permissive(&package("other", "MPL-2.0+")).is_some());
    }

    #[test]
    fn versions_are_reported_when_there_are_several() {
        let package = |name: &str, version: &str| Package {
            id: String::new(),
            name: name.to_owned(),
            version: version.to_owned(),
            license: None,
            targets: Vec::new(),
        };
        let packages = [package("a", "1.0.0"), package("b", "1.0.0"), package("b", "2.0.0"), package("b", "2.0.0")];
        assert_eq!(several_versions(&packages), ["b (1.0.0 2.0.0)"]);
    }
}
