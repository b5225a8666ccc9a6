//! What of an upstream's answer belongs to the question: nothing else is passed on or kept.
//!
//! An upstream speaks for the name that it was asked for, for the names that this one is an alias of, and for addresses
//! of hosts that its records name. Anything else may be an attempt to plant names in a cache behind us.

use std::collections::HashSet;

use hickory_proto::op::Message;
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// Aliases of aliases, in the worst order; resolvers follow no more either.
const LONGEST_CHAIN: usize = 16;

/// Drops all other records.
pub(super) fn keep_what_was_asked(message: &mut Message, asked: &Name) {
    let chain = chain(&message.answers, asked);
    message.answers.retain(|record| is_of(record, &chain));
    message.authorities.retain(|record| is_above(record, &chain));
    let hosts: HashSet<&Name> = message.answers.iter().chain(&message.authorities).filter_map(host).collect();
    message.additionals.retain(|record| hosts.contains(&record.name) || chain.contains(&record.name));
}

/// The asked name, and what aliases make of it.
fn chain(answers: &[Record], asked: &Name) -> HashSet<Name> {
    let mut chain = HashSet::from([asked.clone()]);
    // Servers may order aliases as they like; each round finds one more at least.
    for _ in 0..LONGEST_CHAIN {
        let before = chain.len();
        for record in answers {
            #[expect(clippy::wildcard_enum_match_arm, reason = "no other type makes an alias")]
            match &record.data {
                RData::CNAME(target) if chain.contains(&record.name) => drop(chain.insert(target.0.clone())),
                _ => {}
            }
        }
        if chain.len() == before {
            break;
        }
    }
    chain
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
fn host(record: &Record) -> Option<&Name> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "no other type leads to a host")]
    match &record.data {
        RData::SRV(srv) => Some(&srv.target),
        RData::MX(mx) => Some(&mx.exchange),
        RData::NS(ns) => Some(&ns.0),
        RData::SVCB(svcb) => Some(&svcb.target_name),
        RData::HTTPS(https) => Some(&https.0.target_name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{MessageType, OpCode};
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
        let mut message = Message::new(1, MessageType::Response, OpCode::Query);
        [message.answers, message.authorities, message.additionals] = sections.map(records);
        keep_what_was_asked(&mut message, &name(asked));
        let kept = |texts: &[&str]| -> Vec<Record> {
            texts.iter().filter(|text| !text.starts_with('-')).map(|text| record(text)).collect()
        };
        let wanted = sections.map(kept);
        assert_eq!([message.answers, message.authorities, message.additionals], wanted, "{asked} {sections:?}");
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
