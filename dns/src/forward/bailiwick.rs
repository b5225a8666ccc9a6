//! What of an upstream's answer belongs to the question: nothing else is passed on or kept.
//!
//! An upstream speaks for the name that it was asked for, for the names that this one is an alias of, and for addresses
//! of hosts that its records name. Anything else may be an attempt to plant names in a cache behind us.

use std::collections::HashSet;

use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::wire::{Received, Sections, chain, layout};

/// The longest name, in octets (RFC 1035 section 2.3.4).
const LONGEST_NAME: usize = 255;

/// Drops all other records. What is left out may have been part of what the upstream validated.
pub(super) fn keep_what_was_asked(received: &mut Received, asked: &Name) {
    let Sections { answers, authorities, additionals } = &mut received.sections;
    let before = answers.len() + authorities.len() + additionals.len();
    let chain = chain(answers, asked);
    let has_moves = answers.iter().any(|record| record.record_type() == RecordType::DNAME);
    let moves = if has_moves { moves(answers, &chain) } else { HashSet::new() };
    answers.retain(|record| is_of(record, &chain, &moves));
    authorities.retain(|record| is_above(record, &chain));
    let hosts: HashSet<Name> = answers.iter().chain(authorities.iter()).filter_map(host).collect();
    additionals.retain(|record| hosts.contains(&record.name) || chain.contains(&record.name));
    received.authentic &= before == answers.len() + authorities.len() + additionals.len();
}

/// It is about a name of the chain, a DNAME that made one of them, or may be the signature of that.
fn is_of(record: &Record, chain: &HashSet<Name>, moves: &HashSet<(Name, Name)>) -> bool {
    let mut below = chain.iter().filter(|name| record.name.zone_of(name));
    #[expect(clippy::wildcard_enum_match_arm, reason = "no other type is about names below its owner")]
    let is_above = match &record.data {
        RData::Unknown { code: RecordType::RRSIG, .. } => below.next().is_some(),
        RData::Unknown { code: RecordType::DNAME, rdata } => {
            layout::first_name(RecordType::DNAME, &rdata.anything).is_some_and(|target| {
                // A name that would be too long is the answer too (YXDOMAIN).
                let too_long = |name: &Name| octets(name) + octets(&target) > LONGEST_NAME + octets(&record.name);
                below.any(too_long) || moves.contains(&(record.name.clone(), target))
            })
        }
        _ => false,
    };
    is_above || chain.contains(&record.name)
}

/// The DNAMEs that could have made the aliases of the chain, as owner and target: what is left of an alias and its
/// target without the labels that both begin with.
fn moves(answers: &[Record], chain: &HashSet<Name>) -> HashSet<(Name, Name)> {
    let mut moves = HashSet::new();
    for record in answers.iter().filter(|record| chain.contains(&record.name)) {
        let RData::CNAME(target) = &record.data else { continue };
        let labels = record.name.iter().zip(target.0.iter());
        let same = labels.take_while(|(label, other)| label.eq_ignore_ascii_case(other)).count();
        for count in 1..=same {
            let rest = |name: &Name| Name::from_labels(name.iter().skip(count));
            if let (Ok(owner), Ok(target)) = (rest(&record.name), rest(&target.0)) {
                moves.insert((owner, target));
            }
        }
    }
    moves
}

/// As they are in a message without compression.
fn octets(name: &Name) -> usize {
    name.iter().map(|label| label.len() + 1).sum::<usize>() + 1
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
        RData::Unknown { code, rdata } if leads_to_host(*code) => {
            // `.` stands for the owner (RFC 9460 section 2.5).
            layout::first_name(*code, &rdata.anything)
                .map(|target| if target.is_root() { record.name.clone() } else { target })
        }
        _ => None,
    }
}

/// AFSDB, RT, NAPTR, KX, SVCB, HTTPS and LP.
fn leads_to_host(rtype: RecordType) -> bool {
    matches!(u16::from(rtype), 18 | 21 | 35 | 36 | 64 | 65 | 107)
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::{A, CNAME, MX, NS, SOA};

    use super::*;
    use crate::presentation;

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
            "DNAME" | "AFSDB" | "KX" => {
                let number = if words[1] == "DNAME" { "" } else { "1 " };
                let rtype = crate::types::record_type(words[1]).unwrap();
                presentation::data(rtype, &format!("{number}{}", words[2])).unwrap()
            }
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
        check("x.", [&["x. AFSDB afs.y."], &[], &["afs.y. A", "-afs.z. A"]]);
        check("x.", [&["x. KX kx.y."], &[], &["kx.y. A"]]);
    }

    #[test]
    fn aliases_are_followed_in_any_order() {
        check("a.x.", [&["a.x. CNAME b.y.", "b.y. CNAME c.z.", "c.z. A", "-d.z. A"], &["z. NS ns.z."], &["ns.z. A"]]);
        check("a.x.", [&["c.z. A", "b.y. CNAME c.z.", "a.x. CNAME b.y."], &[], &[]]);
        check("a.x.", [&["a.x. CNAME b.x.", "b.x. CNAME a.x."], &[], &[]]);
        check("a.x.", [&["-b.y. CNAME c.z.", "-c.z. A"], &[], &[]]);
    }

    #[test]
    fn a_dname_is_of_the_answer_if_it_made_one_of_its_aliases() {
        check("a.b.x.", [&["b.x. DNAME c.y.", "a.b.x. CNAME a.c.y.", "a.c.y. A"], &[], &[]]);
        check("a.x.", [&["X. DNAME y.", "A.x. CNAME a.Y.", "y. DNAME z.", "a.y. CNAME a.z.", "a.z. A"], &[], &[]]);
        check("x.", [&["x. DNAME y."], &[], &[]]);
        // Else it would move a zone of others.
        check("www.bank.", [&["-bank. DNAME evil.", "www.bank. A"], &[], &[]]);
        check("a.x.", [&["a.x. CNAME www.bank.", "-bank. DNAME evil.", "www.bank. A"], &[], &[]]);
        check("a.x.", [&["-. DNAME evil.", "a.x. A"], &[], &[]]);
        // The name that it makes is too long (YXDOMAIN), so there is no alias.
        let (long, label) = ("l".repeat(63), "m".repeat(60));
        let target = format!("{long}.{long}.{long}.");
        check(&format!("{label}.m.x."), [&[&format!("x. DNAME {target}")], &[], &[]]);
    }
}
