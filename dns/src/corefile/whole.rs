//! Mistakes that show only in a whole block or file.

use super::text::Line;
use super::{Corefile, CorefileError};
use crate::zone::PodMode;

/// Directives that may stand in a block more than once: their settings add up, or they have none.
const REPEATED: [&str; 6] = ["debug", "forward", "loadbalance", "loop", "rewrite", "template"];

/// Refuses a second directive whose settings do not add up: one of the two would have no effect.
pub(super) fn once(directives: &[Line]) -> Result<(), CorefileError> {
    for (at, directive) in directives.iter().enumerate() {
        let name = directive.name();
        let earlier = directives.iter().take(at).find(|earlier| earlier.name() == name);
        if let Some(earlier) = earlier.filter(|_| !REPEATED.contains(&name)) {
            return Err(directive.error(format!("stands in this block already, at {}: make one of them", earlier.at)));
        }
    }
    Ok(())
}

/// The same for the options of a directive, which may say the same twice. Those of `rewrite` are the words of a rule.
pub(super) fn options_once(directive: &Line) -> Result<(), CorefileError> {
    let options = directive.block.as_deref().unwrap_or_default();
    if let Some(option) = options.iter().find(|option| option.block.is_some()) {
        return Err(option.error("takes no braces"));
    }
    for (at, option) in options.iter().enumerate().filter(|_| directive.name() != "rewrite") {
        let mut earlier = options.iter().take(at).filter(|earlier| earlier.name() == option.name());
        if !adds_up(directive, option) && earlier.any(|earlier| earlier.words != option.words) {
            return Err(option.error(format!("stands in this {} already: make one of them", directive.name())));
        }
    }
    Ok(())
}

fn adds_up(directive: &Line, option: &Line) -> bool {
    match (directive.name(), option.name()) {
        ("cache", "disable")
        | ("errors", "consolidate")
        | ("forward", "except")
        | ("kubernetes", "namespaces")
        | ("log", "class")
        | ("template", "additional" | "answer" | "authority" | "match")
        | ("transfer", "to") => true,
        ("hosts", word) => crate::hosts::address(word).is_some(),
        _ => false,
    }
}

pub(super) fn check(servers: &[Line], file: &Corefile) -> Result<(), CorefileError> {
    let find = |server: &'_ Line, name: &str| server.block.iter().flatten().find(|line| line.name() == name).cloned();
    // There is one set of sockets, and every block answers on it.
    if let Some(bind) = servers.iter().find_map(|server| find(server, "bind"))
        && let Some(other) = servers.iter().find(|server| find(server, "bind").is_none())
    {
        return Err(bind.error(format!("counts for all server blocks: say the same in the one at {}", other.at)));
    }
    let knows_pods = file.kubernetes.as_ref().is_some_and(|settings| settings.pods == PodMode::Verified);
    match servers.iter().find_map(|server| find(server, "autopath")) {
        Some(autopath) if !knows_pods => {
            Err(autopath.error("must know the namespaces of pods: write `pods verified` into the block of kubernetes"))
        }
        Some(_) | None => Ok(()),
    }
}
