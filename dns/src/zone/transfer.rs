//! The whole zone, for servers that keep a copy of it (DNS-4.5, RFC 5936).

use std::collections::{BTreeMap, BTreeSet};

use hickory_proto::rr::{Name, Record, RecordType};
use shunt_model::{ClusterIps, Protocol, Service, ServiceKind};

use super::Zone;
use super::service::{Ports, SrvEntries, visible_name};
use crate::answer::{Answer, Records};
use crate::records;

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
        let apex = &self.config.cluster_domain;
        let servers = self.lookup(apex, RecordType::NS);
        let server = records::below(&["ns", "dns"], apex);
        let glue = server.into_iter().flat_map(move |name| {
            [RecordType::A, RecordType::AAAA].into_iter().flat_map(move |rtype| answers(self.lookup(&name, rtype)))
        });
        let of_services = self.snapshot.services.values().flat_map(|service| self.records_of(service));
        answers(servers).into_iter().chain(glue).chain(of_services)
    }

    /// Every record that belongs to a Service.
    fn records_of(&self, service: &Service) -> Vec<Record> {
        let Some(own) = visible_name(&self.config.cluster_domain, None, &service.key) else { return Vec::new() };
        if self.visible(&service.key).is_err() {
            return Vec::new();
        }
        if let ServiceKind::ExternalName(_) = service.kind {
            return answers(self.service(&own, &service.key, RecordType::CNAME));
        }
        match &service.cluster_ips {
            ClusterIps::Assigned(ips) => {
                let addresses = ips.iter().map(|ip| records::address(own.clone(), self.config.ttl, *ip));
                let ports: BTreeSet<(&str, Protocol)> =
                    service.ports.iter().map(|port| (&*port.name, port.protocol)).collect();
                let servers = ports.into_iter().filter_map(|(port, protocol)| {
                    let name = port_name(port, protocol, &own)?;
                    self.cluster_ip_srv(&name, service, ips, Ports::Named(port, protocol))
                });
                addresses.chain(servers.flat_map(answers)).chain(self.of_members(&own, service)).collect()
            }
            ClusterIps::Headless => self.of_members(&own, service),
            ClusterIps::Unassigned => Vec::new(),
        }
    }

    /// The names of a Service's endpoints, and for a headless one its own addresses and ports: in one pass, for there
    /// may be many thousands.
    fn of_members(&self, own: &Name, service: &Service) -> Vec<Record> {
        let headless = service.cluster_ips == ClusterIps::Headless;
        let (mut addresses, mut endpoints) = (BTreeSet::new(), BTreeSet::new());
        let mut ports: BTreeMap<(String, Protocol), SrvEntries<'_>> = BTreeMap::new();
        for member in self.members(&service.key) {
            let label = self.label_of(member.endpoint, member.address);
            if headless {
                addresses.insert(member.address);
                for port in &member.slice.ports {
                    let found = ports.entry((port.name.to_ascii_lowercase(), port.protocol)).or_default();
                    found.add(label.clone(), member.address, port.port);
                }
            }
            endpoints.insert((label, member.address));
        }
        let ttl = self.config.ttl;
        let addresses = addresses.into_iter().map(|ip| records::address(own.clone(), ttl, ip));
        let servers = ports.iter().filter_map(|((port, protocol), found)| {
            self.srv_of(&port_name(port, *protocol, own)?, &service.key, found)
        });
        let endpoints = endpoints.iter().filter_map(|(label, ip)| {
            let name = visible_name(&self.config.cluster_domain, Some(label), &service.key)?;
            Some(records::address(name, ttl, *ip))
        });
        addresses.chain(servers.flat_map(answers)).chain(endpoints).collect()
    }
}

/// `_PORT._PROTO` of a Service; unnamed ports have no name (DNS-2.5.1).
fn port_name(port: &str, protocol: Protocol, service: &Name) -> Option<Name> {
    let labels = [format!("_{port}"), format!("_{}", protocol.to_string().to_ascii_lowercase())];
    let [port_label, protocol] = labels.each_ref().map(String::as_str);
    records::below(&[port_label, protocol], service).filter(|_| !port.is_empty())
}

fn answers(answer: Answer) -> Vec<Record> {
    match answer {
        Answer::Records(Records { answers, .. }) => answers,
        Answer::Alias { chain, .. } => chain,
        Answer::NoData { .. } | Answer::NxDomain { .. } | Answer::UnknownAddress { .. } | Answer::NotOurs => Vec::new(),
    }
}
