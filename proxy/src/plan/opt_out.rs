//! Pods of this node that opt out of load balancing at their sockets by an annotation.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use shunt_model::{Pod, Snapshot};

use super::PlanOptions;

/// The addresses of opted-out pods with how many pods have each: for a moment two pods may have one address, the former
/// pod and the new one.
#[derive(Debug, Default)]
pub(super) struct OptedOut {
    pods: BTreeMap<IpAddr, usize>,
}

impl OptedOut {
    /// Follows what changed between two snapshots. Returns the new set, if it is another one.
    pub(super) fn follow(
        &mut self,
        old: &Snapshot,
        new: &Snapshot,
        options: &PlanOptions,
    ) -> Option<Arc<BTreeSet<IpAddr>>> {
        if options.opt_out.is_empty() {
            return None;
        }
        let mut changed = false;
        for item in old.pods.diff(&new.pods) {
            let (gone, come) = match item {
                DiffItem::Add(_, pod) => (None, Some(pod)),
                DiffItem::Remove(_, pod) => (Some(pod), None),
                DiffItem::Update { old: (_, old), new: (_, new) } => (Some(old), Some(new)),
            };
            for address in addresses(come, options) {
                changed |= self.add(*address);
            }
            for address in addresses(gone, options) {
                changed |= self.remove(*address);
            }
        }
        changed.then(|| Arc::new(self.pods.keys().copied().collect()))
    }

    /// True if it is a new address.
    fn add(&mut self, address: IpAddr) -> bool {
        let pods = self.pods.entry(address).or_default();
        *pods += 1;
        *pods == 1
    }

    /// True if no pod has the address any more.
    fn remove(&mut self, address: IpAddr) -> bool {
        let Some(pods) = self.pods.get_mut(&address) else { return false };
        *pods = pods.saturating_sub(1);
        let last = *pods == 0;
        if last {
            self.pods.remove(&address);
        }
        last
    }
}

/// The addresses of a pod, if it is opted out.
fn addresses<'a>(pod: Option<&'a Arc<Pod>>, options: &PlanOptions) -> impl Iterator<Item = &'a IpAddr> {
    pod.filter(|pod| is_opted_out(pod, options)).into_iter().flat_map(|pod| &pod.addresses)
}

/// A pod in the node's own network namespace is never opted out: the node itself would be.
fn is_opted_out(pod: &Pod, options: &PlanOptions) -> bool {
    let local = !options.node.is_empty() && pod.node.as_deref() == Some(&*options.node) && !pod.host_network;
    local
        && options.opt_out.iter().any(|(wanted, value)| {
            let mut given = pod.annotations.iter().filter(|(key, _)| key == wanted);
            given.any(|(_, given)| value.as_ref().is_none_or(|value| value == given))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::{NODE, options, pod};
    use crate::plan::{Planner, plan};

    const ANNOTATED: &str = "mesh=on";

    /// The opted-out addresses after each of several views of the pods.
    #[track_caller]
    fn check(opt_out: &[(&str, Option<&str>)], views: &[(&[&Pod], &str)]) {
        let opt_out = opt_out.iter().map(|(key, value)| (Arc::from(*key), value.map(Arc::from))).collect();
        let options = PlanOptions { opt_out, ..options() };
        let mut planner = Planner::new(options.clone());
        for (pods, wanted) in views {
            let mut snapshot = Snapshot::default();
            snapshot.pods.extend(pods.iter().map(|pod| (pod.key.clone(), Arc::new(Pod::clone(pod)))));
            let followed = planner.update(Arc::new(snapshot.clone())).clone();
            let shown: Vec<_> = followed.opted_out.iter().map(ToString::to_string).collect();
            assert_eq!(shown.join(" "), *wanted);
            assert_eq!(followed, plan(&snapshot, &options).0);
        }
    }

    #[test]
    fn annotated_pods_of_this_node_are_left_alone() {
        let mesh = &[("mesh", Some("on"))][..];
        let here = pod("a", "10.1.0.1 fd00::1", NODE, ANNOTATED);
        check(mesh, &[(&[&here], "10.1.0.1 fd00::1"), (&[], "")]);
        check(mesh, &[(&[&pod("a", "10.1.0.1", "elsewhere", ANNOTATED)], "")]);
        check(mesh, &[(&[&pod("a", "10.1.0.1", "", ANNOTATED)], "")]);
        check(mesh, &[(&[&Pod { host_network: true, ..here.clone() }], "")]);
        check(&[], &[(&[&here], "")]);
    }

    #[test]
    fn a_value_counts_only_if_the_option_names_one() {
        let off = pod("a", "10.1.0.1", NODE, "mesh=off");
        check(&[("mesh", Some("on"))], &[(&[&off], "")]);
        check(&[("mesh", None)], &[(&[&off], "10.1.0.1")]);
        check(&[("vm", None), ("mesh", Some("off"))], &[(&[&off], "10.1.0.1")]);
    }

    #[test]
    fn an_address_stays_as_long_as_one_opted_out_pod_has_it() {
        let (old, new) = (pod("a", "10.1.0.1", NODE, ANNOTATED), pod("b", "10.1.0.1", NODE, ANNOTATED));
        let plain = pod("b", "10.1.0.1", NODE, "");
        check(
            &[("mesh", None)],
            &[
                (&[&old], "10.1.0.1"),
                (&[&old, &new], "10.1.0.1"),
                (&[&new], "10.1.0.1"),
                (&[&old, &plain], "10.1.0.1"),
                (&[&plain], ""),
            ],
        );
    }
}
