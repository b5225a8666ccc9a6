//! The whole zone, for whoever keeps a copy of it (rule 4.5, RFC 5936).

use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_proto::rr::{Name, Record, RecordType};
use shunt_model::{ClusterIps, Service, ServiceKind};

use super::Zone;
use super::service::visible_name;
use crate::answer::{Answer, Records};

impl Zone {
    /// The serial of this zone.
    #[must_use]
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// The SOA of the zone, as a transfer begins and ends with it.
    #[must_use]
    pub fn soa_record(&self) -> Record {
        self.soa(&self.config.cluster_domain)
    }

    /// All records of Services, SOA excluded: what [`Zone::answer`] says to every name that is listed. Pods, reverse
    /// names and `dns-version` are left out, as CoreDNS does.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        let apex = self.config.cluster_domain.clone();
        let server = crate::records::below(&["ns", "dns"], &apex);
        let names = std::iter::once((apex, RecordType::NS))
            .chain(server.into_iter().flat_map(|name| addresses_of(&name)))
            .flat_map(|(name, rtype)| self.listed(&name, rtype));
        let services = self.snapshot.services.values().flat_map(|service| {
            let names = self.names_below(service);
            names.into_iter().flat_map(|(name, rtype)| self.listed(&name, rtype)).chain(self.endpoints_of(service))
        });
        names.chain(services)
    }

    fn listed(&self, name: &Name, rtype: RecordType) -> Vec<Record> {
        match self.lookup(name, rtype) {
            Answer::Records(Records { answers, .. }) => answers,
            Answer::Alias { chain, .. } => chain,
            Answer::NoData { .. } | Answer::NxDomain { .. } | Answer::UnknownAddress { .. } | Answer::NotOurs => {
                Vec::new()
            }
        }
    }

    /// The addresses under the names of endpoints. They are not looked up: a lookup goes through all of them.
    fn endpoints_of(&self, service: &Service) -> impl Iterator<Item = Record> {
        let shown = !matches!(service.kind, ServiceKind::ExternalName(_)) && self.visible(&service.key).is_ok();
        let slices = self.snapshot.slices_of(&service.key).filter(|_| shown);
        let ready = slices.flat_map(|slice| &slice.endpoints).filter(|endpoint| endpoint.ready);
        let named = ready.flat_map(|endpoint| {
            endpoint.addresses.iter().filter_map(move |address| {
                let label = self.label_of(endpoint, *address);
                Some((visible_name(&self.config.cluster_domain, Some(&label), &service.key)?, *address))
            })
        });
        let named: BTreeSet<(Name, IpAddr)> = named.collect();
        named.into_iter().map(|(name, address)| crate::records::address(name, self.config.ttl, address))
    }

    /// Every name and type that belongs to a Service, but for those of its endpoints.
    fn names_below(&self, service: &Service) -> BTreeSet<(Name, RecordType)> {
        let domain = &self.config.cluster_domain;
        let Some(own) = visible_name(domain, None, &service.key) else { return BTreeSet::new() };
        if let ServiceKind::ExternalName(_) = service.kind {
            return [(own, RecordType::CNAME)].into();
        }
        let mut names: BTreeSet<(Name, RecordType)> = addresses_of(&own).into();
        let mut port = |name: &str, protocol: shunt_model::Protocol| {
            let labels = [format!("_{name}"), format!("_{}", protocol.to_string().to_ascii_lowercase())];
            let labels = labels.iter().map(String::as_bytes).chain(own.iter());
            names.extend(
                Name::from_labels(labels).ok().filter(|_| !name.is_empty()).map(|name| (name, RecordType::SRV)),
            );
        };
        for service_port in &service.ports {
            port(&service_port.name, service_port.protocol);
        }
        for slice in self.snapshot.slices_of(&service.key) {
            if service.cluster_ips == ClusterIps::Headless {
                slice.ports.iter().for_each(|slice_port| port(&slice_port.name, slice_port.protocol));
            }
        }
        names
    }
}

fn addresses_of(name: &Name) -> [(Name, RecordType); 2] {
    [RecordType::A, RecordType::AAAA].map(|rtype| (name.clone(), rtype))
}
