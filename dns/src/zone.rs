//! The cluster domain as DNS data: a snapshot, the indices that lookups need, and the answer to every question.

mod apex;
mod index;
mod pod;
mod reverse;
mod service;
mod transfer;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::rr::{Name, Record, RecordType};
use shunt_model::Snapshot;

use crate::answer::{Absence, Answer, Records};
use crate::question::Question;
use crate::records;
use index::Index;

/// How long a chain of ExternalName Services is followed (DNS-2.6.2).
pub(crate) const LONGEST_ALIAS_CHAIN: usize = 10;

/// What the server answers from at the moment.
#[derive(Clone, Debug)]
pub struct View {
    /// The zone; without data until `synced`.
    pub zone: Arc<Zone>,
    /// The snapshot of `zone`, absent until the first complete one: until then a cluster name that is not found is
    /// SERVFAIL, because its absence is not certain (DNS-11.3).
    pub snapshot: Option<Arc<Snapshot>>,
}

/// What the operator decides about the zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneConfig {
    /// The cluster domain, absolute; normally `cluster.local.`.
    pub cluster_domain: Name,
    /// TTL of records in seconds.
    pub ttl: u32,
    /// Whether and how `pod` names are answered.
    pub pods: PodMode,
    /// Addresses of the DNS service itself, for NS and `ns.dns`; without any the apex has no NS.
    pub dns_addresses: Vec<IpAddr>,
    /// An endpoint without a hostname is named after its pod, if that name is short enough (DNS-2.4.5).
    pub endpoint_pod_names: bool,
    /// Only these namespaces exist; none means all (DNS-8.5).
    pub namespaces: BTreeSet<String>,
    /// A Service without a ready endpoint does not exist, whatever its kind (DNS-2.2.3).
    pub ignore_empty_service: bool,
}

impl ZoneConfig {
    /// The usual zone of a domain: TTL 5 s, names of pods by any address.
    #[must_use]
    pub fn usual(cluster_domain: Name) -> Self {
        Self {
            cluster_domain,
            ttl: 5,
            pods: PodMode::default(),
            dns_addresses: Vec::new(),
            endpoint_pod_names: false,
            namespaces: BTreeSet::new(),
            ignore_empty_service: false,
        }
    }
}

/// Names of the form `IP-WITH-DASHES.NS.pod` (DNS-6.1…6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodMode {
    /// No such names.
    Disabled,
    /// Any address, whether there is a Pod or not.
    #[default]
    Insecure,
    /// Only addresses of Pods of that Namespace.
    Verified,
}

/// An immutable zone. Make the next one with [`Zone::next`], which costs as much as the change.
#[derive(Clone, Debug, PartialEq)]
pub struct Zone {
    config: Arc<ZoneConfig>,
    snapshot: Arc<Snapshot>,
    index: Index,
    serial: u32,
}

impl Zone {
    /// The zone of a snapshot. `serial` is the SOA's: seconds since 1970.
    #[must_use]
    pub fn new(config: Arc<ZoneConfig>, snapshot: Arc<Snapshot>, serial: u32) -> Self {
        let empty = Self { config, snapshot: Arc::default(), index: Index::default(), serial };
        empty.next(snapshot, serial)
    }

    /// The zone after a change. The serial moves to `serial` if anything that is in DNS changed, and never backwards
    /// (DNS-3.6).
    #[must_use]
    pub fn next(&self, snapshot: Arc<Snapshot>, serial: u32) -> Self {
        let mut index = self.index.clone();
        let changed = index.apply(&self.snapshot, &snapshot, self.config.pods);
        let serial = if changed { self.serial.max(serial) } else { self.serial };
        Self { config: Arc::clone(&self.config), snapshot, index, serial }
    }

    /// What the zone was made with.
    #[must_use]
    pub fn config(&self) -> &ZoneConfig {
        &self.config
    }

    /// The answer to one question of class IN. Owner names repeat the spelling of `name`.
    #[must_use]
    pub fn answer(&self, name: &Name, rtype: RecordType) -> Answer {
        match self.lookup(name, rtype) {
            Answer::Alias { chain, target } => self.follow(name, rtype, chain, target),
            answer @ (Answer::Records(_)
            | Answer::NoData { .. }
            | Answer::NxDomain { .. }
            | Answer::UnknownAddress { .. }
            | Answer::NotOurs) => answer,
        }
    }

    /// The answer without following an alias.
    fn lookup(&self, name: &Name, rtype: RecordType) -> Answer {
        match Question::parse(name, &self.config.cluster_domain) {
            Question::Outside => Answer::NotOurs,
            Question::Reverse(address) => self.reverse(name, address, rtype),
            Question::Apex => self.apex(name, rtype),
            Question::Version => self.version(name, rtype),
            Question::NameServer => self.name_server(name, rtype),
            Question::Services => self.no_data(name),
            Question::Pods => self.no_data(name),
            Question::Namespace(namespace) => self.namespace(name, &namespace),
            Question::Service(key) => self.service(name, &key, rtype),
            Question::Endpoint(key, label) => self.endpoint(name, &key, &label, rtype),
            Question::Port(key, port, protocol) => self.port(name, &key, &port, protocol, rtype),
            Question::PodNamespace(namespace) => self.pod_namespace(name, &namespace),
            Question::Pod(namespace, label) => self.pod(name, &namespace, &label, rtype),
            Question::Shapeless => self.absent(name, Absence::Shape),
        }
    }

    /// Follows an ExternalName through the zone (DNS-2.6.2, DNS-2.6.4). A chain that ends in nothing keeps its CNAMEs
    /// and says NODATA with the SOA; so does a loop.
    fn follow(&self, name: &Name, rtype: RecordType, mut chain: Vec<Record>, mut target: Name) -> Answer {
        while chain.len() < LONGEST_ALIAS_CHAIN && !chain.iter().any(|link| link.name == target) {
            if !self.config.cluster_domain.zone_of(&target) {
                return Answer::Alias { chain, target };
            }
            match self.lookup(&target, rtype) {
                Answer::Alias { chain: mut link, target: next } => {
                    chain.append(&mut link);
                    target = next;
                }
                Answer::Records(mut records) => {
                    chain.append(&mut records.answers);
                    return Answer::Records(Records { answers: chain, ..records });
                }
                Answer::NoData { .. } | Answer::NxDomain { .. } | Answer::UnknownAddress { .. } | Answer::NotOurs => {
                    break;
                }
            }
        }
        Answer::Records(Records { answers: chain, authority: Some(self.soa(name)), additionals: Vec::new() })
    }

    /// Answers with the addresses of the asked family, or NODATA.
    fn addresses(&self, name: &Name, rtype: RecordType, addresses: impl IntoIterator<Item = IpAddr>) -> Answer {
        let answers: Vec<Record> = addresses
            .into_iter()
            .filter(|address| of_type(address, rtype))
            .map(|address| records::address(name.clone(), self.config.ttl, address))
            .collect();
        if answers.is_empty() {
            return self.no_data(name);
        }
        Answer::Records(Records { answers, ..Records::default() })
    }

    fn no_data(&self, name: &Name) -> Answer {
        Answer::NoData { soa: self.soa(name) }
    }

    fn absent(&self, name: &Name, why: Absence) -> Answer {
        Answer::NxDomain { why, soa: self.soa(name) }
    }

    /// The SOA of a reverse zone, or of any zone that `name` lies in, spelled as there (DNS-5.5).
    pub(crate) fn soa_of(&self, name: &Name, zone: &Name) -> Record {
        records::soa(records::suffix(name, zone.iter().len()), self.config.ttl, self.serial)
    }

    /// The SOA, its owner spelled as in the question (DNS-3.5).
    fn soa(&self, name: &Name) -> Record {
        records::soa(self.domain_in(name), self.config.ttl, self.serial)
    }

    /// The cluster domain as `name`, which lies in it, spells it (DNS-9.3).
    fn domain_in(&self, name: &Name) -> Name {
        records::suffix(name, self.config.cluster_domain.iter().len())
    }
}

fn of_type(address: &IpAddr, rtype: RecordType) -> bool {
    match address {
        IpAddr::V4(_) => rtype == RecordType::A,
        IpAddr::V6(_) => rtype == RecordType::AAAA,
    }
}
