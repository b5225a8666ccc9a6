//! Names of addresses (DNS-5.1…5.8).

use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_proto::rr::{Name, Record, RecordType};
use shunt_model::{Service, ServiceKind};

use super::Zone;
use super::service::visible_name;
use crate::answer::{Answer, Records};
use crate::records;

impl Zone {
    /// PTRs of `address`; `None` for a name in a reverse tree that is no whole address.
    pub(super) fn reverse(&self, name: &Name, address: Option<IpAddr>, rtype: RecordType) -> Answer {
        let targets = address.map(|address| self.names_of(address)).unwrap_or_default();
        if targets.is_empty() {
            // `in-addr.arpa.` or `ip6.arpa.`, as asked (DNS-5.5).
            let soa = records::soa(records::suffix(name, 2), self.config.ttl, self.serial);
            return Answer::UnknownAddress { soa };
        }
        if rtype != RecordType::PTR {
            return Answer::NoData { soa: records::soa(records::suffix(name, 2), self.config.ttl, self.serial) };
        }
        let pointer = |target| records::ptr(name.clone(), self.config.ttl, target);
        let answers: Vec<Record> = targets.into_iter().map(pointer).collect();
        Answer::Records(Records { answers, ..Records::default() })
    }

    /// Services with this cluster IP, else the names of ready endpoints with this address (DNS-5.2).
    fn names_of(&self, address: IpAddr) -> BTreeSet<Name> {
        let services = self.index.services_with(address).filter_map(|key| self.visible(key).ok());
        let names: BTreeSet<Name> =
            services.filter_map(|service| visible_name(&self.config.cluster_domain, None, &service.key)).collect();
        if !names.is_empty() {
            return names;
        }
        // Nothing lives below an ExternalName Service (DNS-2.6.7).
        let has_endpoints = |service: &Service| !matches!(service.kind, ServiceKind::ExternalName(_));
        let slices = self.index.slices_with(address).filter(|key| self.visible(&key.service).is_ok_and(has_endpoints));
        slices
            .filter_map(|key| Some((key, self.snapshot.slices.get(key)?)))
            .flat_map(|(key, slice)| slice.endpoints.iter().map(move |endpoint| (key, endpoint)))
            .filter(|(_, endpoint)| endpoint.ready && endpoint.addresses.contains(&address))
            .filter_map(|(key, endpoint)| {
                visible_name(&self.config.cluster_domain, Some(&self.label_of(endpoint, address)), &key.service)
            })
            .collect()
    }
}
