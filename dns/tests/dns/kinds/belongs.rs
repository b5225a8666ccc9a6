//! What every reply has to be, whatever an upstream sent: one to the question, without a record that is not its own.

use std::collections::BTreeSet;

use super::raw::{Message, QR, Question, RA, RD, Record};
use super::types;

const IN: u16 = 1;
const CNAME: u16 = 5;
const DNAME: u16 = 39;
const RRSIG: u16 = 46;
/// What proves that a zone has no such name stands beside that.
const PROOFS: [u16; 3] = [47, 50, RRSIG];

/// Whether `got` is a reply to `question`, as any client would accept it.
pub(super) fn to_the_question(got: &Message, id: u16, question: &Question, edns: bool) -> Result<(), String> {
    let header = (got.id, got.flags & (QR | 0x7800 | RD | RA));
    if header != (id, QR | RD | RA) {
        return Err(format!("header {header:x?}"));
    }
    if got.questions.as_slice() != [question.clone()] {
        return Err(format!("question {:?}", got.questions));
    }
    if got.opt.is_some() != edns {
        return Err(format!("OPT {:?}", got.opt));
    }
    Ok(())
}

/// Whether all its records belong to the question: answers to the name and its aliases, authorities to zones that these
/// lie in, additionals to hosts that they name.
pub(super) fn own_records_only(got: &Message, question: &Question) -> Result<(), String> {
    let [answers, authorities, additionals] = &got.sections;
    if let Some(record) = got.sections.iter().flatten().find(|record| record.class != IN || record.ttl >> 31 != 0) {
        return Err(format!("a class or TTL: {record:x?}"));
    }
    let mut chain = BTreeSet::from([lower(&question.name)]);
    for _ in answers {
        let aliases = answers.iter().filter(|record| record.rtype == CNAME && chain.contains(&lower(&record.owner)));
        let targets: Vec<Vec<u8>> = aliases.map(|record| lower(&record.rdata)).collect();
        chain.extend(targets);
    }
    let is_above = |owner: &[u8]| chain.iter().any(|name| zones(name).any(|zone| zone == lower(owner)));
    let answers_it = |record: &&Record| {
        chain.contains(&lower(&record.owner)) || [DNAME, RRSIG].contains(&record.rtype) && is_above(&record.owner)
    };
    if let Some(record) = answers.iter().find(|record| !answers_it(record)) {
        return Err(format!("an answer to another question: {record:x?}"));
    }
    let speaks_for_it = |record: &&Record| PROOFS.contains(&record.rtype) || is_above(&record.owner);
    if let Some(record) = authorities.iter().find(|record| !speaks_for_it(record)) {
        return Err(format!("an authority of another zone: {record:x?}"));
    }
    let mut hosts = chain.clone();
    hosts.extend(answers.iter().chain(authorities).flat_map(types::names).map(|name| lower(&name)));
    match additionals.iter().find(|record| !hosts.contains(&lower(&record.owner))) {
        Some(record) => Err(format!("a host that nothing names: {record:x?}")),
        None => Ok(()),
    }
}

fn lower(name: &[u8]) -> Vec<u8> {
    name.to_ascii_lowercase()
}

/// The name and all above it, the root included.
fn zones(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::successors(Some(name), |name| {
        let length = usize::from(*name.first()?);
        if length == 0 { None } else { name.get(length + 1..) }
    })
}
