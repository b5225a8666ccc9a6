//! Names of Services, their endpoints and their ports (DNS-2.2…2.6).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;

use hickory_proto::rr::{Name, Record, RecordType};
use shunt_model::{ClusterIps, Endpoint, EndpointSlice, ObjectKey, Protocol, Service, ServiceKind};

use super::Zone;
use crate::answer::{Absence, Answer, Records};
use crate::names;
use crate::records;

/// As many SRV records as no message holds: each takes 20 octets at least. More would be built to be cut off.
const BEYOND_ANY_MESSAGE: usize = 65_535 / 20 + 1;

/// Which ports an SRV question means.
#[derive(Clone, Copy)]
pub(super) enum Ports<'a> {
    /// All, unnamed ones included: the question was for the Service or endpoint itself (DNS-2.5.6).
    All,
    /// The one with this name and protocol.
    Named(&'a str, Protocol),
}

impl Ports<'_> {
    fn includes(self, name: &str, protocol: Protocol) -> bool {
        match self {
            Self::All => true,
            Self::Named(wanted, of) => protocol == of && !wanted.is_empty() && name.eq_ignore_ascii_case(wanted),
        }
    }
}

/// An address behind a Service that DNS may show, with its name and its slice's ports.
pub(super) struct Member<'a> {
    pub(super) slice: &'a EndpointSlice,
    pub(super) endpoint: &'a Endpoint,
    pub(super) address: IpAddr,
}

impl Zone {
    /// `S.NS.svc`.
    pub(super) fn service(&self, name: &Name, key: &ObjectKey, rtype: RecordType) -> Answer {
        let service = match self.visible(key) {
            Ok(service) => service,
            Err(why) => return self.absent(name, why),
        };
        if let ServiceKind::ExternalName(target) = &service.kind {
            return self.alias(name, target, rtype);
        }
        match &service.cluster_ips {
            ClusterIps::Assigned(addresses) if rtype == RecordType::SRV => {
                self.cluster_ip_srv(name, service, addresses, Ports::All).unwrap_or_else(|| self.no_data(name))
            }
            ClusterIps::Assigned(addresses) => self.addresses(name, rtype, addresses.iter().copied()),
            ClusterIps::Headless if rtype == RecordType::SRV => {
                self.headless_srv(name, key, Ports::All).unwrap_or_else(|| self.no_data(name))
            }
            ClusterIps::Headless => {
                let union: BTreeSet<IpAddr> = self.members(key).map(|member| member.address).collect();
                self.addresses(name, rtype, union)
            }
            ClusterIps::Unassigned => self.absent(name, Absence::Unassigned),
        }
    }

    /// `E.S.NS.svc`: also below Services with a cluster IP (DNS-2.2.6).
    pub(super) fn endpoint(&self, name: &Name, key: &ObjectKey, label: &str, rtype: RecordType) -> Answer {
        let service = match self.visible(key) {
            Ok(service) => service,
            Err(why) => return self.absent(name, why),
        };
        if let ServiceKind::ExternalName(_) = service.kind {
            return self.absent(name, Absence::BelowExternalName);
        }
        let spelled = records::undashed(label);
        let members: Vec<Member<'_>> =
            self.members(key).filter(|member| self.is_called(member, label, spelled)).collect();
        if members.is_empty() {
            return self.absent(name, Absence::Endpoint);
        }
        if rtype == RecordType::SRV {
            // Under an endpoint's own name the target is that name.
            let found = self.srv_entries(members.into_iter(), Ports::All);
            let entries = found.entries.into_iter().map(|(_, port)| (name.clone(), port)).collect();
            let addresses = found.addresses.into_iter().map(|(_, address)| (name.clone(), address)).collect();
            return self.srv(name, found.matched, entries, addresses).unwrap_or_else(|| self.no_data(name));
        }
        let union: BTreeSet<IpAddr> = members.iter().map(|member| member.address).collect();
        self.addresses(name, rtype, union)
    }

    /// `_PORT._PROTO.S.NS.svc`.
    pub(super) fn port(
        &self,
        name: &Name,
        key: &ObjectKey,
        port: &str,
        protocol: Option<Protocol>,
        rtype: RecordType,
    ) -> Answer {
        let service = match self.visible(key) {
            Ok(service) => service,
            Err(why) => return self.absent(name, why),
        };
        if let ServiceKind::ExternalName(_) = service.kind {
            return self.absent(name, Absence::BelowExternalName);
        }
        let Some(protocol) = protocol else {
            return self.absent(name, Absence::Port);
        };
        let found = match &service.cluster_ips {
            ClusterIps::Assigned(addresses) => {
                self.cluster_ip_srv(name, service, addresses, Ports::Named(port, protocol))
            }
            ClusterIps::Headless => self.headless_srv(name, key, Ports::Named(port, protocol)),
            ClusterIps::Unassigned => return self.absent(name, Absence::Unassigned),
        };
        match found {
            Some(records) if rtype == RecordType::SRV => records,
            Some(_) => self.no_data(name),
            None => self.absent(name, Absence::Port),
        }
    }

    /// The Service, if DNS shows it at all: its Namespace is known (DNS-8.3), and a headless one has a ready endpoint
    /// (DNS-2.3.3).
    pub(super) fn visible(&self, key: &ObjectKey) -> Result<&Service, Absence> {
        if !self.has_namespace(&key.namespace) {
            return Err(Absence::Namespace);
        }
        let service = self.snapshot.services.get(key).ok_or(Absence::Service)?;
        if let ServiceKind::ExternalName(_) = service.kind {
            return Ok(service);
        }
        match &service.cluster_ips {
            ClusterIps::Assigned(addresses) if addresses.is_empty() => Err(Absence::Unassigned),
            ClusterIps::Unassigned => Err(Absence::Unassigned),
            ClusterIps::Headless => self.with_ready_endpoint(key, service),
            ClusterIps::Assigned(_) if self.config.ignore_empty_service => self.with_ready_endpoint(key, service),
            ClusterIps::Assigned(_) => Ok(service),
        }
    }

    fn with_ready_endpoint<'a>(&self, key: &ObjectKey, service: &'a Service) -> Result<&'a Service, Absence> {
        self.members(key).next().map(|_| service).ok_or(Absence::NoReadyEndpoint)
    }

    /// The addresses of ready endpoints. What the slice says counts, not the Service's fields (DNS-2.3.4, DNS-2.3.5).
    pub(super) fn members<'a>(&'a self, key: &'a ObjectKey) -> impl Iterator<Item = Member<'a>> {
        self.snapshot.slices_of(key).flat_map(|slice| {
            let ready = slice.endpoints.iter().filter(|endpoint| endpoint.ready);
            ready.flat_map(move |endpoint| {
                endpoint.addresses.iter().map(move |address| Member { slice, endpoint, address: *address })
            })
        })
    }

    /// An ExternalName Service (DNS-2.6).
    fn alias(&self, name: &Name, target: &str, rtype: RecordType) -> Answer {
        let Some(target) = external_target(target) else {
            return self.absent(name, Absence::ExternalTarget);
        };
        let chain = vec![records::cname(name.clone(), self.config.ttl, target.clone())];
        if rtype == RecordType::CNAME {
            Answer::Records(Records { answers: chain, ..Records::default() })
        } else if rtype == RecordType::A || rtype == RecordType::AAAA {
            Answer::Alias { chain, target }
        } else {
            self.no_data(name)
        }
    }

    /// SRV records of a Service with cluster IPs (DNS-2.5.2); `None` if no port is meant.
    pub(super) fn cluster_ip_srv(
        &self,
        name: &Name,
        service: &Service,
        ips: &[IpAddr],
        ports: Ports<'_>,
    ) -> Option<Answer> {
        let target = visible_name(&self.domain_in(name), None, &service.key)?;
        let ports = service.ports.iter().filter(|port| ports.includes(&port.name, port.protocol));
        let numbers: Vec<NonZeroU16> = ports.map(|port| port.port).collect();
        let entries = numbers.iter().map(|port| (target.clone(), *port)).collect();
        let addresses = ips.iter().map(|address| (target.clone(), *address)).collect();
        self.srv(name, numbers.len() * ips.len(), entries, addresses)
    }

    /// SRV records of a headless Service: one per endpoint name and slice port (DNS-2.5.3).
    fn headless_srv(&self, name: &Name, key: &ObjectKey, ports: Ports<'_>) -> Option<Answer> {
        self.srv_of(name, key, &self.srv_entries(self.members(key), ports))
    }

    /// The names of a headless Service's endpoints in SRV records.
    pub(super) fn srv_of(&self, name: &Name, key: &ObjectKey, found: &SrvEntries<'_>) -> Option<Answer> {
        let domain = self.domain_in(name);
        let names: BTreeMap<&str, Name> = found
            .addresses
            .iter()
            .filter_map(|(label, _)| Some((label.as_ref(), visible_name(&domain, Some(label), key)?)))
            .collect();
        let named = |label: &Cow<'_, str>| names.get(label.as_ref()).cloned();
        let entries = found.entries.iter().filter_map(|(label, port)| Some((named(label)?, *port))).collect();
        let addresses = found.addresses.iter().filter_map(|(label, ip)| Some((named(label)?, *ip))).collect();
        self.srv(name, found.matched, entries, addresses)
    }

    /// A hostname replaces the generated label (DNS-2.4.3). `spelled` is the address that `label` spells.
    fn is_called(&self, member: &Member<'_>, label: &str, spelled: Option<IpAddr>) -> bool {
        match self.own_label(member.endpoint) {
            Some(own) => own.eq_ignore_ascii_case(label),
            None => spelled == Some(member.address),
        }
    }

    /// The label of an endpoint's address (DNS-2.4.1, DNS-2.4.2).
    pub(super) fn label_of<'a>(&self, endpoint: &'a Endpoint, address: IpAddr) -> Cow<'a, str> {
        self.own_label(endpoint).map_or_else(|| Cow::Owned(records::dashed(address)), Cow::Borrowed)
    }

    /// The label that an endpoint has whatever its address is (DNS-2.4.5).
    fn own_label<'a>(&self, endpoint: &'a Endpoint) -> Option<&'a str> {
        // A static pod's name may have dots in it, which makes it no label.
        let is_label = |name: &&str| name.len() < 64 && !name.contains('.');
        let pod = endpoint.target.as_deref().filter(|_| self.config.endpoint_pod_names).filter(is_label);
        endpoint.hostname.as_deref().or(pod)
    }

    /// What the weight counts, and as many of the entries as a message may hold.
    fn srv_entries<'a>(&self, members: impl Iterator<Item = Member<'a>>, wanted: Ports<'_>) -> SrvEntries<'a> {
        let mut found = SrvEntries::default();
        for member in members {
            for port in member.slice.ports.iter().filter(|port| wanted.includes(&port.name, port.protocol)) {
                if found.entries.len() < BEYOND_ANY_MESSAGE {
                    found.add(self.label_of(member.endpoint, member.address), member.address, port.port);
                } else {
                    found.matched += 1;
                }
            }
        }
        found
    }

    /// One SRV per entry; every address of every target once (DNS-2.5.7). `None` without entries.
    fn srv(
        &self,
        name: &Name,
        matched: usize,
        entries: BTreeSet<(Name, NonZeroU16)>,
        addresses: BTreeSet<(Name, IpAddr)>,
    ) -> Option<Answer> {
        if entries.is_empty() {
            return None;
        }
        let (ttl, weight) = (self.config.ttl, weight(matched));
        let answers: Vec<Record> = entries
            .into_iter()
            .map(|(target, port)| records::srv(name.clone(), ttl, weight, port.get(), target))
            .collect();
        let additionals = addresses.into_iter().map(|(owner, address)| records::address(owner, ttl, address)).collect();
        Some(Answer::Records(Records { answers, authority: None, additionals }))
    }
}

/// Matched endpoint names with their ports and addresses.
#[derive(Default)]
pub(super) struct SrvEntries<'a> {
    /// (address, port) pairs before duplicates are dropped, which decide the weight (DNS-2.5.4).
    matched: usize,
    entries: BTreeSet<(Cow<'a, str>, NonZeroU16)>,
    addresses: BTreeSet<(Cow<'a, str>, IpAddr)>,
}

impl<'a> SrvEntries<'a> {
    pub(super) fn add(&mut self, label: Cow<'a, str>, address: IpAddr, port: NonZeroU16) {
        self.matched += 1;
        self.addresses.insert((label.clone(), address));
        self.entries.insert((label, port));
    }
}

/// floor(100 / n), at least 1 (DNS-2.5.4).
fn weight(matched: usize) -> u16 {
    u16::try_from(100 / matched.max(1)).unwrap_or(100).max(1)
}

/// The name of a Service or of one of its endpoints.
pub(super) fn visible_name(domain: &Name, endpoint: Option<&str>, key: &ObjectKey) -> Option<Name> {
    match endpoint {
        Some(label) => records::below(&[label, &key.name, &key.namespace, "svc"], domain),
        None => records::below(&[&key.name, &key.namespace, "svc"], domain),
    }
}

/// The target as an absolute name; IP addresses are none (DNS-2.6.8).
fn external_target(target: &str) -> Option<Name> {
    let target = target.strip_suffix('.').unwrap_or(target);
    if target.is_empty() || target.parse::<IpAddr>().is_ok() {
        return None;
    }
    names::absolute(target).ok()
}
