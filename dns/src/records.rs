//! Names and records made of cluster data: owner names, address labels, the SOA.

use std::net::IpAddr;

use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record};

/// The longest a negative answer may be kept, whatever the configured TTL (DNS-3.5).
const NEGATIVE_TTL_CAP: u32 = 300;

/// An A or AAAA record.
pub(crate) fn address(owner: Name, ttl: u32, address: IpAddr) -> Record {
    let data = match address {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    };
    Record::from_rdata(owner, ttl, data)
}

/// A CNAME record.
pub(crate) fn cname(owner: Name, ttl: u32, target: Name) -> Record {
    Record::from_rdata(owner, ttl, RData::CNAME(CNAME(target)))
}

/// An NS record.
pub(crate) fn ns(owner: Name, ttl: u32, server: Name) -> Record {
    Record::from_rdata(owner, ttl, RData::NS(NS(server)))
}

/// A PTR record.
pub(crate) fn ptr(owner: Name, ttl: u32, target: Name) -> Record {
    Record::from_rdata(owner, ttl, RData::PTR(PTR(target)))
}

/// An SRV record of priority 0 (DNS-2.5.4).
pub(crate) fn srv(owner: Name, ttl: u32, weight: u16, port: u16, target: Name) -> Record {
    Record::from_rdata(owner, ttl, RData::SRV(SRV::new(0, weight, port, target)))
}

/// A TXT record of one string.
pub(crate) fn txt(owner: Name, ttl: u32, text: &str) -> Record {
    Record::from_rdata(owner, ttl, RData::TXT(TXT::new(vec![text.to_owned()])))
}

/// The SOA of `zone` (DNS-3.5): TTL and minimum say how long an absence may be believed.
pub(crate) fn soa(zone: Name, ttl: u32, serial: u32) -> Record {
    // A zone so long that nothing fits below it has no names to be absent either.
    let server = below(&["ns", "dns"], &zone).unwrap_or_else(|| zone.clone());
    let mailbox = below(&["hostmaster"], &zone).unwrap_or_else(|| zone.clone());
    let data = SOA::new(server, mailbox, serial, 7200, 1800, 86400, ttl);
    Record::from_rdata(zone, ttl.min(NEGATIVE_TTL_CAP), RData::SOA(data))
}

/// `labels` in front of `zone`; `None` if that is no name (longer than 255 octets).
pub(crate) fn below(labels: &[&str], zone: &Name) -> Option<Name> {
    let labels = labels.iter().map(|label| label.as_bytes()).chain(zone.iter());
    Name::from_labels(labels).ok()
}

/// The last `count` labels of `name`, spelled as there.
pub(crate) fn suffix(name: &Name, count: usize) -> Name {
    name.trim_to(count)
}

/// The label of an endpoint without a hostname (DNS-2.4.2).
pub(crate) fn dashed(address: IpAddr) -> String {
    let mut label = address.to_string().replace(['.', ':'], "-");
    if label.ends_with('-') {
        label.push('0');
    }
    label
}

/// The address a label spells with dashes (DNS-6.2): three single dashes are IPv4, everything else is IPv6.
pub(crate) fn undashed(label: &str) -> Option<IpAddr> {
    if label.contains(['.', ':']) {
        return None; // possible on the wire, and no spelling of ours
    }
    if label.bytes().filter(|byte| *byte == b'-').count() == 3 && !label.contains("--") {
        label.replace('-', ".").parse().ok().map(IpAddr::V4)
    } else {
        label.replace('-', ":").parse().ok().map(IpAddr::V6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(label: &str, wanted: Option<&str>) {
        assert_eq!(undashed(label), wanted.map(|text| text.parse().unwrap()), "{label}");
    }

    #[test]
    fn labels_spell_addresses() {
        check("10-1-2-3", Some("10.1.2.3"));
        check("fd00--1", Some("fd00::1"));
        check("--1", Some("::1"));
        check("1-2-3-4-5-6-7-8", Some("1:2:3:4:5:6:7:8"));
        check("fd88-77-0-0-9--0", Some("fd88:77:0:0:9::"));
        check("01-1-2-3", None);
        check("256-1-2-3", None);
        check("1-2-3", None);
        check("1-2-3-4-5", None);
        check("1.2-3-4", None);
        check("fd00::1", None);
        check("web-0", None);
        check("", None);
    }

    #[test]
    fn an_address_label_reads_back() {
        for text in ["10.1.2.3", "::1", "fd00::", "fd88:77:0:0:9::", "1:2:3:4:5:6:7:8"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(undashed(&dashed(address)), Some(address), "{text}");
        }
        assert_eq!(dashed("fd88:77:0:0:9::".parse().unwrap()), "fd88-77-0-0-9--0"); // DNS-2.4.2
    }
}
