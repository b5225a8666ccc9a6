//! Names that exist without any object: the apex, `dns-version`, `ns.dns`, and the namespace nodes.

use hickory_proto::rr::{Name, RecordType};

use super::Zone;
use crate::answer::{Absence, Answer, Records};
use crate::records;

/// The schema that these records follow (DNS-2.1.1).
const SCHEMA_VERSION: &str = "1.1.0";
/// It changes with the program only.
const VERSION_TTL: u32 = 28800;

impl Zone {
    /// SOA and NS of the zone itself (DNS-4.1…4.3).
    pub(super) fn apex(&self, name: &Name, rtype: RecordType) -> Answer {
        if rtype == RecordType::SOA {
            return Answer::Records(Records { answers: vec![self.soa(name)], ..Records::default() });
        }
        let server = records::below(&["ns", "dns"], name);
        match server.filter(|_| rtype == RecordType::NS && !self.config.dns_addresses.is_empty()) {
            Some(server) => Answer::Records(Records {
                answers: vec![records::ns(name.clone(), self.config.ttl, server.clone())],
                authority: None,
                additionals: self
                    .config
                    .dns_addresses
                    .iter()
                    .map(|address| records::address(server.clone(), self.config.ttl, *address))
                    .collect(),
            }),
            None => self.no_data(name),
        }
    }

    /// `dns-version` (DNS-2.1).
    pub(super) fn version(&self, name: &Name, rtype: RecordType) -> Answer {
        if rtype != RecordType::TXT {
            return self.no_data(name);
        }
        let answers = vec![records::txt(name.clone(), VERSION_TTL, SCHEMA_VERSION)];
        Answer::Records(Records { answers, ..Records::default() })
    }

    /// `ns.dns`, the server named in SOA and NS (DNS-4.4).
    pub(super) fn name_server(&self, name: &Name, rtype: RecordType) -> Answer {
        self.addresses(name, rtype, self.config.dns_addresses.iter().copied())
    }

    /// `NS.svc`: exists, has no records (DNS-3.2).
    pub(super) fn namespace(&self, name: &Name, namespace: &str) -> Answer {
        if self.has_namespace(namespace) { self.no_data(name) } else { self.absent(name, Absence::Namespace) }
    }

    pub(super) fn has_namespace(&self, namespace: &str) -> bool {
        let shown = &self.config.namespaces;
        (shown.is_empty() || shown.contains(namespace)) && self.snapshot.namespaces.contains_key(namespace)
    }
}
