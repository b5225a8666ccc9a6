//! What a planner says in the log: each thing once, also when the planner is made anew with other options.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;

use shunt_model::{ObjectKey, Snapshot};
use tracing::{info, warn};

use super::PortKey;
use super::built_in::built_in_key;
use super::claims::{Claim, Conflict};
use super::frontends::{newly_not_served, why_not_served};
use super::health_checks::newly_without_port;

/// What has been said so far.
#[derive(Debug, Default)]
pub(super) struct Said {
    snapshot: Arc<Snapshot>,
    /// The winner for each frontend and loser, once these are said: another winner is no news to the loser. Those that
    /// lost to the node's own DNS stay here while it does not serve, so that an outage of it repeats nothing.
    conflicts: BTreeMap<(Claim, PortKey), PortKey>,
    /// The Service that has the name of the node's own DNS.
    namesake: Option<ObjectKey>,
    /// Those in whose place the node's own DNS answers. They too stay here while it does not.
    replaced: BTreeSet<ObjectKey>,
}

/// What holds after an update.
pub(super) struct Now<'a> {
    pub(super) snapshot: &'a Arc<Snapshot>,
    /// `None` if they are as they were.
    pub(super) conflicts: Option<BTreeSet<Conflict>>,
    /// The name of the node's own DNS, while it is planned.
    pub(super) reserved: Option<&'a ObjectKey>,
    pub(super) replaced: BTreeSet<ObjectKey>,
}

impl Said {
    /// Says what is new.
    pub(super) fn say(&mut self, now: Now<'_>) {
        let Now { snapshot, conflicts, reserved, replaced } = now;
        let namesake = reserved.filter(|name| snapshot.services.contains_key(*name)).cloned();
        if let Some(service) = namesake.iter().find(|name| self.namesake.as_ref() != Some(*name)) {
            warn!(%service, "not served: the name is taken by the bundled DNS; rename the service");
        }
        for service in newly_without_port(&self.snapshot, snapshot) {
            warn!(%service, "no health check: externalTrafficPolicy is Local, but healthCheckNodePort is not set");
        }
        for (service, address) in newly_not_served(&self.snapshot, snapshot) {
            let reason = why_not_served(&address).unwrap_or_default();
            warn!(%service, %address, reason, "not served at this address: take it out of the service");
        }
        for service in replaced.difference(&self.replaced) {
            info!(%service, "the bundled DNS answers in place of this Service's endpoints");
        }
        if let Some(conflicts) = conflicts {
            self.say_conflicts(conflicts, reserved.is_some());
        }
        if reserved.is_some() {
            self.replaced = replaced;
        }
        (self.snapshot, self.namesake) = (Arc::clone(snapshot), namesake);
    }

    fn say_conflicts(&mut self, conflicts: BTreeSet<Conflict>, own_dns_serves: bool) {
        // A node port that is contested in both families reads the same in both.
        let mut told = BTreeSet::new();
        let mut lost = BTreeMap::new();
        for conflict in conflicts {
            let key = (conflict.frontend, conflict.loser.clone());
            if !self.conflicts.contains_key(&key) && told.insert(conflict.to_string()) {
                let Conflict { frontend, winner, loser } = &conflict;
                warn!(%frontend, service = %loser, %winner, "two services claim one frontend; only the winner gets it");
            }
            lost.insert(key, conflict.winner);
        }
        if !own_dns_serves {
            let own = built_in_key();
            for (key, winner) in mem::take(&mut self.conflicts).into_iter().filter(|(_, winner)| winner.service == own)
            {
                lost.entry(key).or_insert(winner);
            }
        }
        self.conflicts = lost;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::logged::logged;
    use crate::plan::fixture::{cluster, ip, options, service};
    use crate::plan::{PlanOptions, Planner};
    use shunt_model::Snapshot;

    fn dns(words: &str) -> shunt_model::Service {
        service("kube-dns", &format!("created=1 port=dns:53/udp port=dns-tcp:53/tcp port=metrics:9153/tcp {words}"))
    }

    fn with_own_dns(serves: bool) -> PlanOptions {
        let backends = if serves { vec!["169.254.20.10:53".parse().unwrap()] } else { Vec::new() };
        PlanOptions { cluster_dns: vec![ip("10.96.0.10"), ip("fd00:96::a")], dns_backends: backends, ..options() }
    }

    /// The lines that an update writes, without time and target.
    fn lines(planner: &mut Planner, snapshot: &Snapshot) -> Vec<String> {
        logged(|| {
            planner.update(Arc::new(snapshot.clone()));
        })
    }

    #[test]
    fn own_dns_at_the_address_of_the_clusters_dns_is_one_line_and_no_conflict() {
        let snapshot = cluster([dns("ip=10.96.0.10 ip=fd00:96::a")], []);
        let mut planner = Planner::new(with_own_dns(true));
        let said = lines(&mut planner, &snapshot);
        assert_eq!(
            said,
            ["INFO the bundled DNS answers in place of this Service's endpoints service=default/kube-dns"]
        );
        assert_eq!(planner.conflicts().count(), 0);
        // Its own server was away for a while.
        for serves in [false, true, false, true] {
            planner.renew(with_own_dns(serves));
            assert_eq!(lines(&mut planner, &snapshot), [""; 0]);
        }
    }

    #[test]
    fn who_takes_the_address_without_being_the_clusters_dns_is_a_conflict() {
        let thief = |words: &str| service("thief", &format!("ip=10.96.0.7 port=dns:53/udp {words}"));
        for words in ["ext=10.96.0.10", "vip=10.96.0.10 type=lb"] {
            let snapshot = cluster([dns("ip=10.96.0.10"), thief(words)], []);
            let mut planner = Planner::new(with_own_dns(true));
            let said = lines(&mut planner, &snapshot);
            assert_eq!(said.len(), 2, "{said:?}");
            assert!(said[1].starts_with("WARN two services claim one frontend; only the winner gets it"), "{said:?}");
            assert!(said[1].contains("service=default/thief:dns/udp winner=shunt/cluster-dns:dns/udp"), "{said:?}");
            assert_eq!(planner.conflicts().count(), 1);
        }
        // A second one with that cluster IP, which only a folder can have, loses to the first in any case.
        let second = service("second", "ip=10.96.0.10 port=dns:53/udp created=2");
        let mut planner = Planner::new(with_own_dns(true));
        let said = lines(&mut planner, &cluster([dns("ip=10.96.0.10"), second], []));
        assert_eq!((said.len(), planner.conflicts().count()), (2, 1), "{said:?}");
    }

    #[test]
    fn an_outage_of_own_dns_repeats_no_conflict() {
        let thief = service("thief", "ip=10.96.0.7 port=dns:53/udp ext=10.96.0.10");
        let late = service("late", "ip=10.96.0.8 port=dns:53/udp ext=10.96.0.10 created=9");
        for others in [vec![dns("ip=10.96.0.10")], vec![late], vec![]] {
            let snapshot = cluster(others.into_iter().chain([thief.clone()]), []);
            let mut planner = Planner::new(with_own_dns(true));
            let said = lines(&mut planner, &snapshot);
            assert!(said.iter().any(|line| line.contains("service=default/thief:dns/udp")), "{said:?}");
            for serves in [false, true, false, true] {
                planner.renew(with_own_dns(serves));
                assert_eq!(lines(&mut planner, &snapshot), [""; 0]);
            }
        }
        // One that is solved and comes again is said again.
        let mut planner = Planner::new(with_own_dns(true));
        for serves in [true, false, true] {
            planner.renew(with_own_dns(serves));
            assert_eq!(lines(&mut planner, &cluster([thief.clone()], [])).len(), usize::from(serves));
            assert_eq!(lines(&mut planner, &cluster([], [])), [""; 0]);
        }
    }

    #[test]
    fn other_options_do_not_repeat_what_was_said() {
        let contested = [service("a", "ip=10.96.0.1 created=1"), service("b", "ip=10.96.0.1 created=2")];
        let unchecked = service("lb", "ip=10.96.0.2 type=lb eTP");
        let snapshot = cluster(contested.into_iter().chain([unchecked]), []);
        let mut planner = Planner::new(with_own_dns(false));
        let said = lines(&mut planner, &snapshot);
        assert_eq!(said.len(), 2, "{said:?}");
        planner.renew(with_own_dns(true));
        assert_eq!(lines(&mut planner, &snapshot), [""; 0]);
        assert_eq!(planner.conflicts().count(), 1);
    }

    #[test]
    fn a_node_port_that_is_contested_in_both_families_is_one_line() {
        let dual = |name: &str, last: u8, created: u8| {
            service(name, &format!("ip=10.96.0.{last} ip=fd00:96::{last} np=30080 created={created}"))
        };
        let mut planner = Planner::new(with_own_dns(false));
        let said = lines(&mut planner, &cluster([dual("a", 1, 1), dual("b", 2, 2)], []));
        assert_eq!((said.len(), planner.conflicts().count()), (1, 2), "{said:?}");
        assert!(said[0].contains("frontend=*:30080/tcp service=default/b:http/tcp winner=default/a"), "{said:?}");
    }

    #[test]
    fn the_name_of_own_dns_is_reported_when_it_is_taken() {
        let mut impostor = service("cluster-dns", "ip=10.96.0.10 port=dns:53/udp created=1");
        impostor.key.namespace = "shunt".into();
        let snapshot = cluster([impostor], []);
        let said = lines(&mut Planner::new(with_own_dns(true)), &snapshot);
        let taken = "WARN not served: the name is taken by the bundled DNS; rename the service";
        assert_eq!(said, [format!("{taken} service=shunt/cluster-dns")]);
        assert_eq!(lines(&mut Planner::new(with_own_dns(false)), &snapshot), [""; 0]);
    }
}
