//! Every type of record through forward, cache and rewrite: as the upstream sent it, octet for octet.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::belongs;
use super::cases::{Case, Fate, Place, TTL, cases};
use super::raw::{self, AD, DO, Message, Question, Record, TC};
use super::types;
use super::upstream::{Asked, Upstream};
use crate::{client, corefile};

const REFUSED: u16 = 5;
const NOERROR: u16 = 0;
const SERVFAIL: u16 = 2;
const IN: u16 = 1;
/// The domain that the upstream knows, and the one that clients ask for where it is rewritten.
const INSIDE: &str = "kind.test";
const OUTSIDE: &str = "kind.office.test";

/// With room for all of them, long ones count several times.
const CACHE: &str = "cache 3600 {\n success 100000\n }";

/// Its reply to the case that the first label names, and none to all others.
fn upstream_says(cases: &[Case], asked: &Asked) -> Vec<u8> {
    let number = asked.label().strip_prefix('c').and_then(|number| number.parse::<usize>().ok());
    match number.and_then(|number| cases.get(number)).filter(|case| case.asked_type() == asked.question.rtype) {
        Some(case) => case.reply(asked.id, &asked.question, asked.edns, asked.limit).0,
        None => asked.head(REFUSED, [0; 3]),
    }
}

fn question(case: &Case, number: usize, label: &str, domain: &str) -> Question {
    Question { name: raw::labels(&format!("{label}{number}.{domain}")), rtype: case.asked_type(), class: IN }
}

/// A name below the client's domain as the upstream calls it.
fn inside(name: Vec<u8>) -> Vec<u8> {
    let (outside, inner) = (raw::labels(OUTSIDE), raw::labels(INSIDE));
    let start = name.len().saturating_sub(outside.len());
    if name[start..].eq_ignore_ascii_case(&outside) { [&name[..start], &inner].concat() } else { name }
}

/// Compares a reply with what the upstream said to `sent`; `question` is the client's.
fn check(case: &Case, question: &Question, sent: &Question, edns: bool, reply: &[u8]) -> Result<Message, String> {
    let got = Message::read(reply)?;
    belongs::to_the_question(&got, 7, question, edns)?;
    let (_, sections) = case.reply(0, sent, false, 65535);
    // A lone record that cannot be read leaves nothing to tell.
    let lone = case.fate == Fate::MayBeLost && case.place == Place::Answer;
    if got.rcode() != NOERROR && !(lone && got.rcode() == SERVFAIL) {
        return Err(format!("rcode {}", got.rcode()));
    }
    for (wanted, got_records) in sections.iter().zip(&got.sections) {
        let told: Vec<Record> = got_records.iter().map(|record| told(record, question, sent)).collect();
        if let Some(alien) = told.iter().find(|record| !wanted.iter().any(|sent| same(sent, record))) {
            return Err(format!("a record that nobody sent: {alien:x?}"));
        }
        let may_be_absent =
            |record: &Record| case.fate == Fate::MayBeLost && record.rtype == case.kind.number || got.flags & TC != 0;
        let lost = |sent: &&Record| !told.iter().any(|record| same(sent, record)) && !may_be_absent(sent);
        if let Some(lost) = wanted.iter().find(lost) {
            return Err(format!("lost: {lost:x?}, told {told:x?}"));
        }
    }
    let is_whole = got.rcode() == NOERROR
        && got.flags & TC == 0
        && sections.iter().map(Vec::len).eq(got.sections.iter().map(Vec::len));
    // Who asks with DO wants to know what the upstream has validated, which it is only as it came.
    let validated = edns && is_whole && question.name.ends_with(&raw::labels(INSIDE));
    if got.flags & TC == 0 && (got.flags & AD != 0) != validated {
        return Err(format!("AD is {}", got.flags & AD != 0));
    }
    if let Some(ttl) = got.sections.iter().flatten().map(|record| record.ttl).find(|ttl| *ttl > TTL) {
        return Err(format!("TTL {ttl}"));
    }
    Ok(got)
}

/// The record as the upstream would say it: its names are spelled as the upstream's question where they are that.
fn told(record: &Record, question: &Question, sent: &Question) -> Record {
    // Any other owner is nobody's.
    let owner = if record.owner == question.name { sent.name.clone() } else { Vec::new() };
    let rdata = if question.name.ends_with(&raw::labels(OUTSIDE)) {
        types::renamed(record, inside)
    } else {
        record.rdata.clone()
    };
    Record { owner, rdata, ..record.clone() }
}

fn same(a: &Record, b: &Record) -> bool {
    let parts = |record: &Record| (record.owner.clone(), record.rtype, record.class, record.rdata.clone());
    parts(a) == parts(b)
}

/// Over UDP and TCP, with DO and without; of a reply that is cut over UDP, what is there counts.
async fn ask(at: SocketAddr, question: &Question, tcp: bool, edns: bool) -> Vec<u8> {
    let query = raw::query(7, question, edns.then_some((1232, DO, &[])));
    if tcp { client::tcp_bytes(at, &query).await } else { client::udp_bytes(at, &query).await }
}

/// Asks for all cases, once or twice; the second time the upstream does not know them any more.
async fn check_all(corefile: &str, domain: &str, cached: bool) {
    let all = Arc::new(cases());
    let forgets = Arc::new(AtomicBool::new(false));
    let (known, forgotten) = (Arc::clone(&all), Arc::clone(&forgets));
    let upstream = Upstream::start(move |asked| {
        let known: &[Case] = if forgotten.load(Ordering::Relaxed) { &[] } else { &known };
        upstream_says(known, asked)
    })
    .await;
    let place = tempfile::tempdir().unwrap();
    let text = format!(".:53 {{\n {corefile}\n forward . {}\n}}\n", upstream.address);
    let (server, _) = corefile::start(&text, place.path(), None).await;
    let at = server.local_addresses()[0];
    let mut wrong = Vec::new();
    let labels = if cached { ["c", "C"].as_slice() } else { &["c"] };
    for label in labels {
        for (number, case) in all.iter().enumerate() {
            // What may be lost may be kept out of the cache, too.
            if *label == "C" && case.fate == Fate::MayBeLost {
                continue;
            }
            let asked = question(case, number, label, domain);
            let sent = question(case, number, "c", INSIDE);
            let ways = [(false, false), (true, true), (false, true), (true, false)];
            // Those beside are many.
            for (tcp, edns) in ways.into_iter().take(if case.place == Place::Answer { 4 } else { 2 }) {
                let reply = ask(at, &asked, tcp, edns).await;
                if let Err(why) = check(case, &asked, &sent, edns, &reply) {
                    let why: String = why.chars().take(300).collect();
                    let Case { kind, what, words, place, .. } = case;
                    let words: String = words.chars().take(80).collect();
                    let way = if tcp { "TCP" } else { "UDP" };
                    wrong.push(format!("{} {what} {place:?} {way} {label} [{words}]: {why}", kind.mnemonic));
                }
            }
        }
        forgets.store(true, Ordering::Relaxed);
    }
    assert!(wrong.is_empty(), "{} of {} cases went wrong:\n{}", wrong.len(), all.len(), first(&wrong));
}

/// Enough of them to see what they have in common.
fn first(wrong: &[String]) -> String {
    wrong.iter().take(60).cloned().collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_is_passed_on_as_it_came() {
    check_all("", INSIDE, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_is_kept_as_it_came() {
    check_all(CACHE, INSIDE, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_keeps_its_rdata_under_another_name() {
    check_all(&format!("rewrite name suffix .{OUTSIDE} .{INSIDE}"), OUTSIDE, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_keeps_its_rdata_but_for_names_that_are_mapped_back() {
    check_all(&format!("{CACHE}\n rewrite name suffix .{OUTSIDE} .{INSIDE} answer auto"), OUTSIDE, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn types_that_are_only_asked_for_are_forwarded() {
    let upstream = Upstream::start(|asked| {
        let mut wire = asked.head(NOERROR, [1, 0, u16::from(asked.edns)]);
        raw::put_record(&mut wire, &[0xc0, 12], 16, IN, TTL, &asked.question.rtype.to_be_bytes());
        if asked.edns {
            raw::put_record(&mut wire, &[0], raw::OPT, 1232, 0, &[]);
        }
        wire
    })
    .await;
    let place = tempfile::tempdir().unwrap();
    let text = format!(".:53 {{\n cache\n forward . {}\n}}\n", upstream.address);
    let (server, _) = corefile::start(&text, place.path(), None).await;
    for rtype in types::ONLY_ASKED {
        let question = Question { name: raw::labels("Meta.kind.test"), rtype, class: IN };
        for tcp in [false, true] {
            let got = Message::read(&ask(server.local_addresses()[0], &question, tcp, true).await).unwrap();
            belongs::to_the_question(&got, 7, &question, true).unwrap();
            let told: Vec<&[u8]> = got.sections[0].iter().map(|record| record.rdata.as_slice()).collect();
            assert_eq!((got.rcode(), told), (NOERROR, vec![rtype.to_be_bytes().as_slice()]), "type {rtype}");
        }
    }
}
