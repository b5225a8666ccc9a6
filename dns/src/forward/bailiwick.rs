//! What of an upstream's answer belongs to the question: nothing else is passed on or kept.
//!
//! An upstream speaks for the name that it was asked for, for the names that this one is an alias of, and for addresses
//! of hosts that its records name. Anything else may be an attempt to plant names in a cache behind us.

use std::collections::HashSet;

use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::wire::{Received, Sections, chain, layout};

/// Drops all other records. What is left out may have been part of what the upstream validated.
pub(super) fn keep_what_was_asked(received: &mut Received, asked: &Name) {
    let Sections { answers, authorities, additionals } = &mut received.sections;
    let before = answers.len() + authorities.len() + additionals.len();
    let chain = chain(answers, asked);
    answers.retain(|record| is_of(record, &chain));
    authorities.retain(|record| is_above(record, &chain));
    let hosts: HashSet<Name> = answers.iter().chain(authorities.iter()).filter_map(host).collect();
    additionals.retain(|record| hosts.contains(&record.name) || chain.contains(&record.name));
    received.authentic &= before == answers.len() + authorities.len() + additionals.len();
}

/// It is about a name of the chain, or a DNAME that made one of them.
fn is_of(record: &Record, chain: &HashSet<Name>) -> bool {
    let redirects = record.record_type() == RecordType::DNAME || record.record_type() == RecordType::RRSIG;
    chain.contains(&record.name) || (redirects && chain.iter().any(|name| record.name.zone_of(name)))
}

/// It is about a zone that a name of the chain lies in, or proves what that zone has not.
fn is_above(record: &Record, chain: &HashSet<Name>) -> bool {
    let proves = [RecordType::NSEC, RecordType::NSEC3, RecordType::RRSIG].contains(&record.record_type());
    proves || chain.iter().any(|name| record.name.zone_of(name))
}

/// The host whose addresses a client will want next.
fn host(record: &Record) -> Option<Name> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "no other type leads to a host")]
    match &record.data {
        RData::SRV(srv) => Some(srv.target.clone()),
        RData::MX(mx) => Some(mx.exchange.clone()),
        RData::NS(ns) => Some(ns.0.clone()),
        RData::Unknown { code: code @ (RecordType::SVCB | RecordType::HTTPS | RecordType::NAPTR), rdata } => {
            // `.` stands for the owner (RFC 9460 section 2.5).
            layout::first_name(*code, &rdata.anything)
                .map(|target| if target.is_root() { record.name.clone() } else { target })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::{A, CNAME, MX, NS, SOA};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    /// `OWNER TYPE TARGET`.
    fn record(text: &str) -> Record {
        let words: Vec<&str> = text.split(' ').collect();
        let data = match words[1] {
            "A" => RData::A(A::new(192, 0, 2, 1)),
            "CNAME" => RData::CNAME(CNAME(name(words[2]))),
            "MX" => RData::MX(MX::new(10, name(words[2]))),
            "NS" => RData::NS(NS(name(words[2]))),
            "SOA" => RData::SOA(SOA::new(name("ns.x."), name("admin.x."), 1, 1, 1, 1, 1)),
            other => panic!("{other}"),
        };
        Record::from_rdata(name(words[0]), 60, data)
    }

    /// Each section; a `-` in front of those that are dropped.
    #[track_caller]
    fn check(asked: &str, sections: [&[&str]; 3]) {
        let records = |texts: &[&str]| texts.iter().map(|text| record(text.trim_start_matches('-'))).collect();
        let [answers, authorities, additionals] = sections.map(records);
        let sections_read = Sections { answers, authorities, additionals };
        let mut received = Received { authentic: true, sections: sections_read, ..Received::default() };
        keep_what_was_asked(&mut received, &name(asked));
        let kept = |texts: &[&str]| -> Vec<Record> {
            texts.iter().filter(|text| !text.starts_with('-')).map(|text| record(text)).collect()
        };
        let [answers, authorities, additionals] = sections.map(kept);
        assert_eq!(received.sections, Sections { answers, authorities, additionals }, "{asked} {sections:?}");
        let dropped = sections.iter().copied().flatten().any(|text| text.starts_with('-'));
        assert_eq!(received.authentic, !dropped, "{asked} {sections:?}");
    }

    #[test]
    fn an_upstream_speaks_for_what_it_was_asked_only() {
        check("www.x.", [&["WWW.x. A"], &["x. NS ns.x."], &["ns.x. A", "-www.bank. A"]]);
        check("www.x.", [&["-www.bank. A", "www.x. A"], &[], &["-web.shop.svc.cluster.local. A"]]);
        check("www.x.", [&["-www.bank. A"], &["-bank. NS ns.x."], &["-ns.x. A"]]);
        check("nothing.x.", [&[], &["x. SOA"], &[]]);
        check("x.", [&["x. MX mail.y."], &[], &["mail.y. A", "-mail.z. A"]]);
    }

    #[test]
    fn aliases_are_followed_in_any_order() {
        check("a.x.", [&["a.x. CNAME b.y.", "b.y. CNAME c.z.", "c.z. A", "-d.z. A"], &["z. NS ns.z."], &["ns.z. A"]]);
        check("a.x.", [&["c.z. A", "b.y. CNAME c.z.", "a.x. CNAME b.y."], &[], &[]]);
        check("a.x.", [&["a.x. CNAME b.x.", "b.x. CNAME a.x."], &[], &[]]);
        check("a.x.", [&["-b.y. CNAME c.z.", "-c.z. A"], &[], &[]]);
    }
}
