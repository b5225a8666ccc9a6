//! Replies of upstreams that are cut, lie about themselves, or hold what stands in no other reply: what can be read of
//! them is told.

use super::belongs;
use super::raw::{self, Message, Question, Record};
use super::types;
use super::upstream::{Asked, Upstream};
use crate::{client, corefile};

const A: u16 = 1;
const IN: u16 = 1;
const ADDRESS: [u8; 4] = [192, 0, 2, 53];
/// An address of the asked name, and what else is in replies.
const GOOD: &str = "c00c 0001 0001 0000012c 0004 c0000235";
const TEXT: &str = "c00c 0010 0001 0000012c 0004 03616263";

/// What is odd, how many records each section says it has, and what follows the question; GOOD and TEXT are records.
const REPLIES: &[(&str, [u16; 3], &str)] = &[
    ("nothing", [1, 0, 0], "GOOD"),
    ("octets after the last record", [1, 0, 0], "GOOD 00"),
    ("a record after the last one", [1, 0, 0], "GOOD TEXT"),
    ("more answers than there are", [2, 0, 0], "GOOD"),
    ("65,535 answers", [65535, 0, 0], "GOOD"),
    ("more authorities than there are", [1, 1, 0], "GOOD"),
    ("more additionals than there are", [1, 0, 7], "GOOD TEXT"),
    ("an additional cut in its owner", [1, 0, 1], "GOOD 03 7777"),
    ("an additional cut in its pointer", [1, 0, 1], "GOOD c0"),
    ("an additional cut in its type", [1, 0, 1], "GOOD c00c 00"),
    ("an additional cut in its data", [1, 0, 1], "GOOD c00c 0001 0001 0000012c 0004 c00002"),
    ("an additional that says it is longer than the message", [1, 0, 1], "GOOD c00c 0010 0001 0000012c ffff 03616263"),
    ("an authority cut in its data", [1, 1, 1], "GOOD c00c 0010 0001 0000012c 0010 03616263"),
    ("an owner of no known kind", [1, 0, 2], "GOOD 80 0001 0001 0000012c 0004 c0000235 TEXT"),
    ("an owner that points out of the message", [1, 0, 2], "GOOD ffff 0001 0001 0000012c 0004 c0000235 TEXT"),
    ("an owner that points to itself", [1, 0, 2], "GOOD @ 0001 0001 0000012c 0004 c0000235 TEXT"),
    (
        "an owner of 257 octets",
        [1, 0, 2],
        "GOOD 3f 5a*63 3f 5a*63 3f 5a*63 3f 5a*63 00 0001 0001 0000012c 0004 c0000235 TEXT",
    ),
    ("a record of another class", [1, 0, 2], "GOOD c00c 0001 0003 0000012c 0004 c0000236 TEXT"),
    ("an answer of another class", [2, 0, 0], "GOOD c00c 0001 0003 0000012c 0004 c0000236"),
    ("an odd address beside a good one", [1, 0, 2], "GOOD c00c 0001 0001 0000012c 0003 c00002 TEXT"),
    ("a record of class ANY", [1, 0, 1], "GOOD c00c 0001 00ff 00000000 0000"),
    ("two OPTs", [1, 0, 2], "GOOD 00 0029 04d0 00000000 0000 00 0029 04d0 00000000 0000"),
    ("an OPT with a name", [1, 0, 1], "GOOD c00c 0029 04d0 00000000 0000"),
    ("an OPT as answer", [2, 0, 0], "GOOD 00 0029 04d0 00000000 0000"),
    ("an OPT as authority", [1, 1, 0], "GOOD 00 0029 04d0 00000000 0000"),
    ("an OPT of version 255", [1, 0, 1], "GOOD 00 0029 04d0 00ff0000 0000"),
    ("an OPT in front of others", [1, 0, 2], "GOOD 00 0029 04d0 00000000 0000 TEXT"),
    ("a TSIG", [1, 0, 1], "GOOD c00c 00fa 00ff 00000000 0010 00 000000000001 012c 0000 0007 0000 00"),
    ("a TSIG that is none", [1, 0, 1], "GOOD c00c 00fa 00ff 00000000 0001 ff"),
    (
        "a SIG of the message",
        [1, 0, 1],
        "GOOD 00 0018 00ff 00000000 0013 0000 0d 00 00000000 68000000 67000000 3039 00 5a",
    ),
    (
        "one odd mail server of two",
        [1, 0, 2],
        "GOOD c00c 000f 0001 0000012c 0004 000a 0161 c00c 000f 0001 0000012c 0005 000a 016100",
    ),
    ("an answer for another name that is odd", [2, 0, 0], "GOOD 016100 0001 0001 0000012c 0003 c00002"),
    ("an answer for another name", [2, 0, 0], "GOOD 016100 0001 0001 0000012c 0004 c0000236"),
    ("a TTL with the highest bit", [2, 0, 0], "GOOD c00c 0010 0001 80000001 0004 03616263"),
];

/// The address is there, and else nothing that was not sent.
fn check(what: &str, question: &Question, reply: &[u8]) {
    let got = Message::read(reply).unwrap_or_else(|error| panic!("{what}: {error}"));
    belongs::to_the_question(&got, 7, question, false).unwrap_or_else(|error| panic!("{what}: {error}"));
    belongs::own_records_only(&got, question).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(got.rcode(), 0, "{what}");
    let is_address = |record: &&Record| record.rtype == A && record.rdata == ADDRESS;
    assert_eq!(got.sections[0].iter().filter(is_address).count(), 1, "{what}: {got:?}");
    let is_text = |record: &Record| record.rtype == 16 && record.rdata == [3, 97, 98, 99];
    let others = got.sections.iter().flatten().filter(|record| !is_address(record) && !is_text(record));
    assert_eq!(others.collect::<Vec<_>>(), Vec::<&Record>::new(), "{what}");
    assert!(got.sections.iter().flatten().all(|record| record.ttl <= 300), "{what}: {got:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_costs_nothing_else() {
    let says = |asked: &Asked| {
        let number = asked.label().strip_prefix('m').and_then(|number| number.parse::<usize>().ok());
        let Some((_, counts, words)) = number.and_then(|number| REPLIES.get(number)) else {
            return asked.head(5, [0; 3]);
        };
        let mut wire = asked.head(0, *counts);
        let words = words.replace("GOOD", GOOD).replace("TEXT", TEXT);
        wire.extend(types::compose(&words, wire.len(), &asked.question.name).0);
        wire
    };
    let upstream = Upstream::start(says).await;
    let place = tempfile::tempdir().unwrap();
    let text = format!(".:53 {{\n cache\n forward . {}\n}}\n", upstream.address);
    let (server, _) = corefile::start(&text, place.path(), None).await;
    for (number, (what, ..)) in REPLIES.iter().enumerate() {
        let question = Question { name: raw::labels(&format!("m{number}.kind.test")), rtype: A, class: IN };
        let query = raw::query(7, &question, None);
        // The second is from the cache, if the first was whole.
        for reply in [
            client::udp_bytes(server.local_addresses()[0], &query).await,
            client::tcp_bytes(server.local_addresses()[0], &query).await,
        ] {
            check(what, &question, &reply);
        }
    }
}
