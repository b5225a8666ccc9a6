//! Mistakes that show only in a whole block or file.

use super::text::Line;
use super::{Corefile, CorefileError};
use crate::plugin::Plugin;
use crate::zone::PodMode;

/// Refuses a second directive whose settings do not add up: one of the two would have no effect.
pub(super) fn once(directives: &[Line]) -> Result<(), CorefileError> {
    for (at, directive) in directives.iter().enumerate() {
        let once = Plugin::named(directive.name()).is_some_and(|plugin| !plugin.adds_up());
        let mut earlier = directives.iter().take(at).filter(|_| once);
        if let Some(earlier) = earlier.find(|earlier| earlier.name() == directive.name()) {
            return Err(directive.error(format!("stands in this block already, at {}: make one of them", earlier.at)));
        }
    }
    Ok(())
}

pub(super) fn check(servers: &[Line], file: &Corefile) -> Result<(), CorefileError> {
    let find = |server: &'_ Line, plugin: Plugin| {
        server.block.iter().flatten().find(|line| line.name() == plugin.name()).cloned()
    };
    // There is one set of sockets, and every block answers on it.
    if let Some(bind) = servers.iter().find_map(|server| find(server, Plugin::Bind))
        && let Some(other) = servers.iter().find(|server| find(server, Plugin::Bind).is_none())
    {
        return Err(bind.error(format!("counts for all server blocks: say the same in the one at {}", other.at)));
    }
    let knows_pods = file.kubernetes.as_ref().is_some_and(|settings| settings.pods == PodMode::Verified);
    match servers.iter().find_map(|server| find(server, Plugin::Autopath)) {
        Some(autopath) if !knows_pods => {
            Err(autopath.error("must know the namespaces of pods: write `pods verified` into the block of kubernetes"))
        }
        Some(_) | None => Ok(()),
    }
}
