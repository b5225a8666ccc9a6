//! Which service port gets a frontend that several claim (IN-27): the same one on every node and at every start.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use serde::Serialize;
use shunt_model::{Family, Protocol};

use super::PortKey;

/// A frontend as something that only one service port can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// The family, which a node port does not show.
    pub family: Family,
    /// The address; `None` is every accepted node address.
    pub address: Option<IpAddr>,
    /// Protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: NonZeroU16,
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", super::view::socket(self.address, self.port.get()), self.protocol)
    }
}

/// Two service ports claim one frontend, and only one of them gets it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// The frontend.
    pub frontend: Claim,
    /// The service port that gets it.
    pub winner: PortKey,
    /// The service port that does not get it.
    pub loser: PortKey,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { frontend, winner, loser } = self;
        write!(f, "{frontend} is claimed by {winner} and {loser}; {winner} gets it")
    }
}

/// Precedence between claimants; the smallest wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// The node's own DNS: no Service may take its address.
    BuiltIn,
    /// The address is the Service's cluster IP. A user who may write a Service can name any address as an external IP;
    /// this must not take over the cluster IP of another Service, however old the first one is.
    ClusterIp(Age),
    /// External and load balancer addresses, and node ports.
    Other(Age),
    /// A health-check node port. Clients of a Service count for more than the probes of a load balancer; the kernel
    /// would decide by what was opened first.
    HealthCheck(Age),
}

/// Precedence by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Age {
    /// Seconds since 1970: the older Service wins, so a newcomer cannot take over what already works.
    Created(i64),
    /// Without a time of creation, as in manifests: after all that have one.
    Undated,
}

/// A service port that claims a frontend. Ordered by precedence: rank, then namespace, name and port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claimant {
    pub(super) rank: Rank,
    pub(super) port: PortKey,
}

/// All claims of the cluster.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// In order of precedence, never empty.
    claimants: HashMap<Claim, Vec<Claimant>>,
}

impl Claims {
    /// The claimants of a frontend, if there are several; empty otherwise.
    pub(super) fn rivals(&self, claim: &Claim) -> &[Claimant] {
        match self.claimants.get(claim) {
            Some(claimants) if claimants.len() > 1 => claimants,
            Some(_) | None => &[],
        }
    }

    /// Whether `port` has the frontend.
    pub(super) fn is_won_by(&self, claim: &Claim, port: &PortKey) -> bool {
        self.winner(claim).is_some_and(|first| first.port == *port)
    }

    /// The claimant that has the frontend.
    pub(super) fn winner(&self, claim: &Claim) -> Option<&Claimant> {
        self.claimants.get(claim).and_then(|claimants| claimants.first())
    }

    /// The conflicts about one frontend. That the node's own DNS answers in place of the cluster's is none.
    pub(super) fn conflicts(&self, claim: &Claim) -> Vec<Conflict> {
        let Some((winner, losers)) = self.rivals(claim).split_first() else { return Vec::new() };
        let replaced = usize::from(self.replaced(claim).is_some());
        let conflict =
            |loser: &Claimant| Conflict { frontend: *claim, winner: winner.port.clone(), loser: loser.port.clone() };
        losers.iter().skip(replaced).map(conflict).collect()
    }

    /// Whose cluster IP it is, if the node's own DNS has the frontend: it answers in the place of that Service.
    pub(super) fn replaced(&self, claim: &Claim) -> Option<&PortKey> {
        let (winner, losers) = self.rivals(claim).split_first()?;
        let first = losers.first()?;
        match (winner.rank, first.rank) {
            (Rank::BuiltIn, Rank::ClusterIp(_)) => Some(&first.port),
            (Rank::BuiltIn, Rank::BuiltIn | Rank::Other(_) | Rank::HealthCheck(_))
            | (Rank::ClusterIp(_) | Rank::Other(_) | Rank::HealthCheck(_), _) => None,
        }
    }

    pub(super) fn add(&mut self, claim: Claim, claimant: Claimant) {
        // Nearly every frontend has one claimant: room for exactly that.
        let claimants = self.claimants.entry(claim).or_insert_with(|| Vec::with_capacity(1));
        if let Err(place) = claimants.binary_search(&claimant) {
            claimants.insert(place, claimant);
        }
    }

    pub(super) fn remove(&mut self, claim: &Claim, claimant: &Claimant) {
        let Some(claimants) = self.claimants.get_mut(claim) else { return };
        claimants.retain(|other| other != claimant);
        if claimants.is_empty() {
            self.claimants.remove(claim);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::plan::fixture::{cluster, frontends, options, service};
    use crate::plan::{Planner, plan};
    use shunt_model::{Service, Snapshot};
    use std::sync::Arc;

    /// The planned service ports with their frontends, and the conflicts.
    #[track_caller]
    fn check(services: &[Service], wanted: &[&str], lost: &[&str]) {
        let snapshot = cluster(services.to_vec(), []);
        let (whole, conflicts) = plan(&snapshot, &options());
        let planned: Vec<_> = whole.ports.values().map(|p| format!("{}: {}", p.key, frontends(p))).collect();
        assert_eq!(planned, wanted);
        let conflicts: Vec<_> = conflicts.iter().map(|c| format!("{} {}", c.loser, c.frontend)).collect();
        assert_eq!(conflicts, lost);
        // The order in which the planner saw the Services does not matter.
        let mut planner = Planner::new(options());
        let mut seen = Snapshot::default();
        for service in services.iter().rev() {
            seen.services.insert(service.key.clone(), Arc::new(service.clone()));
            planner.update(Arc::new(seen.clone()));
        }
        assert_eq!(*planner.plan(), whole);
    }

    #[test]
    fn the_oldest_service_gets_a_contested_frontend() {
        let old = service("old", "ip=10.96.0.1 ext=192.0.2.1 created=10");
        let new = service("a-new", "ip=10.96.0.2 ext=192.0.2.1 created=20");
        let undated = service("a-file", "ip=10.96.0.3 ext=192.0.2.1");
        check(
            &[old, new.clone(), undated.clone()],
            &[
                "default/a-file:http/tcp: 10.96.0.3:80",
                "default/a-new:http/tcp: 10.96.0.2:80",
                "default/old:http/tcp: 10.96.0.1:80 192.0.2.1:80",
            ],
            &["default/a-new:http/tcp 192.0.2.1:80/tcp", "default/a-file:http/tcp 192.0.2.1:80/tcp"],
        );
        check(
            &[new, undated],
            &["default/a-file:http/tcp: 10.96.0.3:80", "default/a-new:http/tcp: 10.96.0.2:80 192.0.2.1:80"],
            &["default/a-file:http/tcp 192.0.2.1:80/tcp"],
        );
    }

    #[test]
    fn among_equals_the_name_decides_and_a_port_without_frontend_is_not_planned() {
        let twins = [service("b", "ip=10.96.0.1 created=5"), service("a", "ip=10.96.0.1 created=5")];
        check(&twins, &["default/a:http/tcp: 10.96.0.1:80"], &["default/b:http/tcp 10.96.0.1:80/tcp"]);
        let nodes = [service("b", "ip=10.96.0.1 np=30080"), service("a", "ip=10.96.0.2 np=30080")];
        check(
            &nodes,
            &["default/a:http/tcp: *:30080 10.96.0.2:80", "default/b:http/tcp: 10.96.0.1:80"],
            &["default/b:http/tcp *:30080/tcp"],
        );
    }

    #[test]
    fn an_external_ip_does_not_take_over_a_cluster_ip() {
        let thief = service("a-thief", "ip=10.96.0.1 ext=10.96.0.2 vip=10.96.0.3 created=1");
        let (web, api) = (service("web", "ip=10.96.0.2 created=7"), service("z-api", "ip=10.96.0.3"));
        check(
            &[thief, web, api],
            &[
                "default/a-thief:http/tcp: 10.96.0.1:80",
                "default/web:http/tcp: 10.96.0.2:80",
                "default/z-api:http/tcp: 10.96.0.3:80",
            ],
            &["default/a-thief:http/tcp 10.96.0.2:80/tcp", "default/a-thief:http/tcp 10.96.0.3:80/tcp"],
        );
    }

    #[test]
    fn a_port_that_only_lost_an_address_stays_at_the_others() {
        let sctp = service("a", "ip=10.96.0.1 port=x:53/sctp ext=192.0.2.1 created=1");
        let late = service("b", "ip=10.96.0.2 port=x:53/sctp ext=192.0.2.1 ext=192.0.2.2 created=2");
        check(
            &[sctp, late],
            &["default/a:x/sctp: 10.96.0.1:53 192.0.2.1:53", "default/b:x/sctp: 10.96.0.2:53 192.0.2.2:53"],
            &["default/b:x/sctp 192.0.2.1:53/sctp"],
        );
    }

    #[test]
    fn other_protocols_ports_and_families_do_not_contend() {
        let tcp = service("a", "ip=10.96.0.1 port=x:53/tcp");
        let udp = service("b", "ip=10.96.0.1 port=x:53/udp");
        let port = service("c", "ip=10.96.0.1 port=x:54/tcp");
        check(
            &[tcp, udp, port],
            &["default/a:x/tcp: 10.96.0.1:53", "default/b:x/udp: 10.96.0.1:53", "default/c:x/tcp: 10.96.0.1:54"],
            &[],
        ); // IN-14
    }
}
