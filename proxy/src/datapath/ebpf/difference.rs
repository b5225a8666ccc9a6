//! What leads from one plan to the next: the service ports to write, to remove, and to rename.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use imbl::ordmap::DiffItem;

use crate::plan::{Frontend, Plan, PortKey, PortPlan};

/// What leads from one plan to the next.
pub(super) struct Difference {
    /// Service ports to write; they include those that were refused earlier.
    pub(super) upserts: Vec<Arc<PortPlan>>,
    /// Service ports to remove.
    pub(super) removals: Vec<PortKey>,
    /// Of these, the ones whose frontends another service port takes over.
    pub(super) renames: Vec<(PortKey, PortKey)>,
    /// How many service ports that changed need source addresses, in the new plan.
    pub(super) ranges_gained: usize,
    /// How many service ports that changed or left needed source addresses, in the old plan.
    pub(super) ranges_lost: usize,
}

impl Difference {
    pub(super) fn between(old: &Plan, new: &Plan, refused: &BTreeMap<PortKey, String>) -> Self {
        let mut upserts: BTreeMap<&PortKey, &Arc<PortPlan>> =
            refused.keys().filter_map(|key| new.ports.get_key_value(key)).collect();
        let (mut removals, mut ranges_gained, mut ranges_lost) = (Vec::new(), 0_usize, 0_usize);
        let (mut removed, mut added) = (Vec::new(), Vec::new());
        for item in old.ports.diff(&new.ports) {
            let (gone, come) = match item {
                DiffItem::Add(_, port) => {
                    added.push(port);
                    (None, Some(port))
                }
                DiffItem::Update { old: (_, old), new: (_, port) } => (Some(old), Some(port)),
                DiffItem::Remove(key, port) => {
                    removed.push(port);
                    removals.push(key.clone());
                    (Some(port), None)
                }
            };
            let asks =
                |port: Option<&Arc<PortPlan>>| usize::from(port.is_some_and(|port| port.source_ranges.is_some()));
            ranges_lost = ranges_lost.saturating_add(asks(gone));
            ranges_gained = ranges_gained.saturating_add(asks(come));
            upserts.extend(come.map(|port| (&port.key, port)));
        }
        let renames = renames(&removed, &added);
        Self { upserts: upserts.into_values().cloned().collect(), removals, renames, ranges_gained, ranges_lost }
    }
}

/// Which of the removed service ports each added one replaces: a Service or a port that was renamed, or deleted and
/// created again, has a frontend as before.
fn renames(removed: &[&Arc<PortPlan>], added: &[&Arc<PortPlan>]) -> Vec<(PortKey, PortKey)> {
    let dialled =
        |port: &PortPlan, frontend: &Frontend| (port.key.family, port.key.protocol, frontend.address, frontend.port);
    let frontends =
        removed.iter().flat_map(|port| port.frontends.iter().map(|found| (dialled(port, found), &port.key)));
    let former: HashMap<_, _> = frontends.collect();
    let mut taken = BTreeSet::new();
    let mut renames = Vec::new();
    for port in added {
        let candidates = port.frontends.iter().filter_map(|found| former.get(&dialled(port, found)).copied());
        if let Some(old) = candidates.into_iter().find(|old| !taken.contains(old)) {
            taken.insert(old);
            renames.push((old.clone(), port.key.clone()));
        }
    }
    renames
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::{cluster, options, service};
    use crate::plan::plan;

    /// Old and new names of the service ports that are renamed between the plans of two clusters.
    #[track_caller]
    fn check(old: &[(&str, &str)], new: &[(&str, &str)], wanted: &[(&str, &str)]) {
        let planned = |services: &[(&str, &str)]| {
            plan(&cluster(services.iter().map(|(name, words)| service(name, words)), []), &options()).0
        };
        let found = Difference::between(&planned(old), &planned(new), &BTreeMap::new()).renames;
        let found: Vec<_> = found.iter().map(|(old, new)| (old.to_string(), new.to_string())).collect();
        let wanted: Vec<_> = wanted.iter().map(|(old, new)| ((*old).to_owned(), (*new).to_owned())).collect();
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_service_port_that_takes_over_a_frontend_of_a_removed_one_is_that_one_renamed() {
        let web = ("web", "ip=10.96.0.1 port=dns:53/udp");
        check(
            &[web],
            &[("web", "ip=10.96.0.1 port=names:53/udp")],
            &[("default/web:dns/udp", "default/web:names/udp")],
        );
        check(
            &[web],
            &[("shop", "ip=10.96.0.1 ext=192.0.2.7 port=dns:53/udp")],
            &[("default/web:dns/udp", "default/shop:dns/udp")],
        );
        check(&[web], &[("web", "ip=10.96.0.2 port=names:53/udp")], &[]);
        check(&[web], &[("web", "ip=10.96.0.1 port=names:53/tcp")], &[]);
        check(&[web], &[("web", "ip=10.96.0.1 port=names:54/udp")], &[]);
    }

    #[test]
    fn a_frontend_that_moves_between_two_living_services_renames_nothing() {
        let blue = ("blue", "ip=10.96.0.1 port=dns:53/udp");
        let green = ("green", "ip=10.96.0.2 port=dns:53/udp");
        let [with_blue, with_green] =
            ["ip=10.96.0.1 ext=192.0.2.7 port=dns:53/udp", "ip=10.96.0.2 ext=192.0.2.7 port=dns:53/udp"];
        check(&[("blue", with_blue), green], &[blue, ("green", with_green)], &[]);
    }

    #[test]
    fn of_two_successors_one_is_the_heir() {
        let old = ("web", "ip=10.96.0.1 ext=192.0.2.7 port=dns:53/udp");
        let new = [("one", "ip=10.96.0.1 port=dns:53/udp"), ("two", "ip=10.96.0.9 ext=192.0.2.7 port=dns:53/udp")];
        check(&[old], &new, &[("default/web:dns/udp", "default/one:dns/udp")]);
    }
}
