//! Pods of this node that opt out of load balancing at their sockets by an annotation.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use shunt_model::{Pod, Snapshot};

use super::PlanOptions;
use super::pods::{PodAddresses, is_local};

/// The addresses of opted-out pods.
#[derive(Debug, Default)]
pub(super) struct OptedOut(PodAddresses);

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
        let changed = self.0.follow(old, new, |pod| is_opted_out(pod, options));
        changed.then(|| Arc::new(self.0.iter().collect()))
    }
}

/// A pod in the node's own network namespace is never opted out: the node itself would be.
fn is_opted_out(pod: &Pod, options: &PlanOptions) -> bool {
    is_local(pod, options)
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
